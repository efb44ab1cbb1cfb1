"""Charts: what is drawn of which numbers."""

import numpy as np
import pytest

from wsiseq_jax.metrics import charts


def test_band_of_the_roc():
  labels = np.array([0.0, 0, 1, 1])
  patients = np.array(list("abcd"))
  score = np.array([1.0, 2, 3, 4])
  low, high = charts.roc_band(labels, score, patients, 50)
  assert (low == 1).all() and (high == 1).all()
  # Equal scores say nothing: the diagonal, whatever is drawn.
  low, high = charts.roc_band(labels, np.ones(4), patients, 50)
  np.testing.assert_allclose(low, np.linspace(0, 1, 101))
  np.testing.assert_allclose(high, low)
  low, _ = charts.roc_band(np.ones(4), np.ones(4), patients, 50)
  assert np.isnan(low).all()


def test_roc_is_drawn_over_those_of_single_predictions():
  _, (axes,) = charts.grid(1)
  labels = np.array([0.0, 1, 0, 1])
  score = np.array([0.1, 0.4, 0.5, 0.9])
  charts.roc(
    axes, labels, score, np.arange(4), 20, [(labels, -score)], (0.5, 1.0)
  )
  other, ensemble, point, diagonal = axes.lines
  # Half of the negatives is above the lower positive.
  assert ensemble.get_xydata().tolist() == [
    [0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1],
  ]  # fmt: skip
  assert other.get_ydata()[0] == 0 and other.get_ydata()[-1] == 1
  assert point.get_xydata().tolist() == [[0.5, 1.0]]
  assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]


def test_calibration_counts_patients():
  labels = np.array([0.0, 1, 1, 1])
  p = np.array([0.2, 0.3, 0.9, 0.7])
  bins = charts.calibration_bins(labels, p, np.array(list("aabc")), 2)
  assert bins.slides.tolist() == [2, 2] and bins.patients.tolist() == [1, 2]
  assert bins.predicted.tolist() == pytest.approx([0.25, 0.8])
  assert bins.observed.tolist() == [0.5, 1.0]
  # Wilson's interval of two of two patients.
  assert bins.low[1] == pytest.approx(2 / (2 + 1.96**2))
  _, (axes,) = charts.grid(1)
  charts.calibration_curve(axes, bins)
  bars, dots = axes.collections
  assert dots.get_offsets().tolist() == [[0.25, 0.5], [0.8, 1.0]]
  assert len(bars.get_segments()) == 2


def test_dots_lead_to_pages_and_names_are_text():
  figure, axes = charts.grid(2, ["a $ b $ <i>", "numbers"])
  groups = {"n<o>": [(0.2, "n/1"), (0.1, "n/0")], "yes": [(0.9, "y/0")]}
  charts.dots_by_group(axes[0], groups, 0.5)
  charts.scatter(axes[1], np.array([1.0, 2]), np.array([1.0, 3]), ["s", "t"])
  svg = charts.to_svg(figure)
  for link in ("n/0", "n/1", "y/0", "s", "t"):
    assert f'xlink:href="{link}"' in svg
  assert "a $ b $ &lt;i&gt;" in svg and "n&lt;o&gt; (2)" in svg


def test_png(tmp_path):
  figure, (axes,) = charts.grid(1)
  axes.plot([0, 1], [0, 1])
  charts.to_png(figure, tmp_path / "a.png", "a note", dpi=10)
  assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
