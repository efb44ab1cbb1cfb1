"""Draws the windows and points that `spatstat.R` reads: `points.json`.

python tests/golden/spatstat/make_points.py
"""

import json
import pathlib

import numpy as np
import shapely

from tests.spatial import shapes
from wsiseq_jax.spatial import windows


def star(x, y, radius, corners, rng):
  """An irregular outline."""
  angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
  length = radius * rng.uniform(0.6, 1.0, corners)
  xy = np.stack([x + length * np.cos(angle), y + length * np.sin(angle)], 1)
  return shapely.Polygon(xy.round(2))


def main():
  rng = np.random.default_rng(0)
  holes = shapely.union_all(
    [star(350, 420, 90, 9, rng), star(560, 520, 60, 7, rng)]
  )
  rough = shapely.set_precision(shapes.pieces().simplify(2.0), 0.01)
  cases = {
    "rectangles": shapes.block(),
    "star": star(450, 450, 450, 25, rng) - holes,
    "pieces": rough,
  }
  out = {}
  for name, window in cases.items():
    window = windows.check_window(window)
    points = windows.sample(window.buffer(-0.01), 160, rng).round(3)
    rings = [
      # spatstat wants holes clockwise, no ring closed.
      {"x": xy[:-1, 0].tolist(), "y": xy[:-1, 1].tolist()}
      for xy in map(
        shapely.get_coordinates, shapely.get_rings(shapely.get_parts(window))
      )
    ]
    out[name] = {
      "rings": rings,
      "points": points.tolist(),
      "types": rng.integers(0, 2, len(points)).tolist(),
    }
  path = pathlib.Path(__file__).with_name("points.json")
  path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
  main()
