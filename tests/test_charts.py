"""Charts: what is drawn, and how it is written."""

import numpy as np

from wsiseq_jax import charts


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
  charts.to_png(figure, tmp_path / "a.png", "a note")
  assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
