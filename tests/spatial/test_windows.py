import numpy as np
import pytest
import shapely

from tests.spatial import shapes
from wsiseq_jax.spatial import windows


def test_overlapping_polygons_become_one_window():
  window = windows.union([shapely.box(0, 0, 2, 2), shapely.box(1, 1, 3, 3)])
  assert window.area == 7
  crossing = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
  assert windows.union([crossing]).area == pytest.approx(2)
  with pytest.raises(ValueError, match="no area"):
    windows.union([])


@pytest.mark.parametrize(
  ("window", "says"),
  [
    (shapely.Point(0, 0), "not Point"),
    (shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]), "Self-intersection"),
    (shapely.Polygon(), "no area"),
    (np.zeros((4, 2)), "not ndarray"),
  ],
)
def test_what_is_no_window(window, says):
  with pytest.raises(ValueError, match=says):
    windows.check_window(window)


@pytest.mark.parametrize(
  ("points", "says"),
  [
    (np.zeros((3, 3)), r"\(3, 3\) is not \[n, 2\]"),
    (np.full((1, 2), np.nan), "1 of 1 are not finite"),
    (np.array([[1.0, 1.0], [4000.0, 10.0]]), "1 of 2 lie outside"),
    (np.array([[450.0, 500.0]]), "1 of 1 lie outside"),  # in the hole
    (np.zeros((0, 2)), "there are 0, this needs at least 1"),
  ],
)
def test_points_that_do_not_fit(points, says):
  with pytest.raises(ValueError, match=says):
    windows.check_points(points, shapes.block())


def test_distance_to_the_border_and_to_holes():
  points = np.array([[10.0, 500.0], [340.0, 550.0], [560, 710], [200, 200]])
  expected = [10, 10, np.hypot(10, 10), 200]
  np.testing.assert_allclose(
    windows.border_distance(shapes.block(), points), expected
  )
  region = shapely.box(0, 0, 100, 100)
  far = windows.signed_distance(region, np.array([[50, 90.0], [103.0, 104.0]]))
  np.testing.assert_allclose(far, [-10, 5])


def test_segments_have_the_window_to_their_left():
  for window in (shapes.block(), shapes.pieces()):
    start, end = windows.segments(window)
    along = end - start
    length = np.hypot(*along.T)
    left = np.stack([-along[:, 1], along[:, 0]], axis=1) / length[:, None]
    assert length.sum() == pytest.approx(window.length)
    assert windows.inside(window, (start + end) / 2 + 1e-3 * left).all()
    assert not windows.inside(window, (start + end) / 2 - 1e-3 * left).any()


def test_sample_is_uniform():
  window = shapes.pieces()
  points = windows.sample(window, 20_000, np.random.default_rng(0))
  assert len(points) == 20_000 and windows.inside(window, points).all()
  share = windows.inside(shapely.box(900, 100, 1200, 800), points).mean()
  expected = 300 * 700 / window.area
  assert abs(share - expected) < 4 * np.sqrt(expected / 20_000)
  assert windows.sample(window, 0, np.random.default_rng(0)).shape == (0, 2)


def test_covariance_of_a_rectangle_by_hand():
  window = shapely.box(0, 0, 100, 50)
  lags = np.array([[0, 0], [10, -20], [-100, 0], [30, 60.0]])
  np.testing.assert_allclose(
    windows.set_covariance(window, lags), [5000, 90 * 30, 0, 0]
  )


def test_covariance_on_a_raster_is_that_of_polygons():
  window = shapes.pieces()
  rng = np.random.default_rng(0)
  lags = rng.uniform(-200, 200, (300, 2))
  table = windows.Covariance(window, 300.0)(*lags.T)
  exact = windows.set_covariance(window, lags)
  np.testing.assert_allclose(table, exact, atol=2e-3 * window.area)
  assert abs((table / exact).mean() - 1) < 3e-4


def test_raster_holds_pixels_whose_centre_is_inside():
  window = shapes.pieces()
  mask = windows.draw(window, (-20.0, -30.0), 3.7, (210, 300))
  rows, columns = np.indices(mask.shape)
  centres = np.stack([columns * 3.7 - 18.15, rows * 3.7 - 28.15], axis=-1)
  inside = windows.inside(window, centres.reshape(-1, 2))
  np.testing.assert_array_equal(mask.ravel(), inside)
  # What lies beyond the raster does no harm.
  part = windows.draw(window, (200.0, 300.0), 3.7, (50, 60))
  centres = np.stack([columns, rows], axis=-1)[:50, :60] * 3.7 + (
    201.85,
    301.85,
  )
  inside = windows.inside(window, centres.reshape(-1, 2))
  np.testing.assert_array_equal(part.ravel(), inside)
