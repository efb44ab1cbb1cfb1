"""ROC and calibration: what is drawn of which numbers."""

import numpy as np
import pytest

from wsiseq_jax import charts
from wsiseq_jax.metrics import curves


def test_band_of_the_roc():
  labels = np.array([0.0, 0, 1, 1])
  patients = np.array(list("abcd"))
  score = np.array([1.0, 2, 3, 4])
  low, high = curves.roc_band(labels, score, patients, 50)
  assert (low == 1).all() and (high == 1).all()
  # Equal scores say nothing: the diagonal, whatever is drawn.
  low, high = curves.roc_band(labels, np.ones(4), patients, 50)
  np.testing.assert_allclose(low, np.linspace(0, 1, 101))
  np.testing.assert_allclose(high, low)
  low, _ = curves.roc_band(np.ones(4), np.ones(4), patients, 50)
  assert np.isnan(low).all()


def test_roc_is_drawn_over_those_of_single_predictions():
  _, (axes,) = charts.grid(1)
  labels = np.array([0.0, 1, 0, 1])
  score = np.array([0.1, 0.4, 0.5, 0.9])
  curves.roc(
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
  bins = curves.calibration_bins(labels, p, np.array(list("aabc")), 2)
  assert bins.slides.tolist() == [2, 2] and bins.patients.tolist() == [1, 2]
  assert bins.predicted.tolist() == pytest.approx([0.25, 0.8])
  assert bins.observed.tolist() == [0.5, 1.0]
  # Wilson's interval of two of two patients.
  assert bins.low[1] == pytest.approx(2 / (2 + 1.96**2))
  _, (axes,) = charts.grid(1)
  curves.calibration_curve(axes, bins)
  bars, dots = axes.collections
  assert dots.get_offsets().tolist() == [[0.25, 0.5], [0.8, 1.0]]
  assert len(bars.get_segments()) == 2
