import numpy as np
import pytest
import shapely

from tests.spatial import shapes
from wsiseq_jax.spatial import nearest, windows

RADII = np.linspace(0, 60, 25)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("correction", nearest.CORRECTIONS)
def test_g_against_all_pairs(correction, cross):
  window = shapes.pieces()
  points = windows.sample(window, 150, np.random.default_rng(2))
  first, second = (points[:50], points[50:]) if cross else (points, None)
  near = shapes.all_distances(first, second).min(axis=1)
  border = windows.border_distance(window, first)
  expected = []
  for r in RADII:
    if correction == "none":
      expected.append((near <= r).mean())
    elif correction == "border":
      expected.append((near[border >= r] <= r).mean())
    else:
      left = 1.0
      for t in np.unique(near[(near <= border) & (near <= r)]):
        died = ((near == t) & (near <= border)).sum()
        left *= 1 - died / (np.minimum(near, border) >= t).sum()
      expected.append(1 - left)
  found = nearest.g(first, window, RADII, correction, others=second)
  np.testing.assert_allclose(found.value, expected, atol=1e-12)


def test_distances_skip_the_point_itself_but_not_its_double():
  points = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
  np.testing.assert_array_equal(nearest.distances(points), [0, 0, 5])
  others = np.array([[3.0, 0.0]])
  np.testing.assert_array_equal(nearest.distances(points, others), [3, 3, 4])
  assert np.isinf(nearest.distances(points[:1])).all()
  assert not len(nearest.distances(points[:0], others))


def test_wrong_settings():
  window = shapely.box(0, 0, 10, 10)
  points = np.array([[1.0, 1.0]])
  with pytest.raises(ValueError, match="'km', allowed: kaplan-meier, border"):
    nearest.g(points, window, RADII, "km")
  with pytest.raises(ValueError, match="at least 2"):
    nearest.g(points, window, RADII)
