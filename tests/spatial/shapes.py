"""Windows with holes, and slow references."""

import numpy as np
import shapely

from wsiseq_jax.spatial import windows


def block():
  """A square with a rectangular hole, 1,000 µm wide."""
  return shapely.box(0, 0, 1000, 1000) - shapely.box(350, 400, 550, 700)


def pieces():
  """Two pieces, one with a round hole, and nothing between them."""
  ring = shapely.Point(400, 400).buffer(400) - shapely.Point(300, 420).buffer(
    90
  )
  return shapely.union_all([ring, shapely.box(900, 100, 1200, 800)])


def all_distances(first, second=None):
  """Distances of all pairs, infinite between a point and itself."""
  other = first if second is None else second
  d = np.hypot(*(first[:, None] - other[None]).transpose(2, 0, 1))
  if second is None:
    np.fill_diagonal(d, np.inf)
  return d


def clusters(window, rng, centres, size):
  """Cells in clumps of 15 µm around centres."""
  points = centres[rng.integers(0, len(centres), size)]
  points = points + rng.normal(0, 15, (size, 2))
  return points[windows.inside(window, points)]
