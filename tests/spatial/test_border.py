import numpy as np
import pytest
import shapely

from wsiseq_jax.spatial import border, windows

WINDOW = shapely.box(0, 0, 1000, 1000)
REGION = shapely.box(0, 0, 400, 1000)  # beyond the window: see `beyond`
EDGES = np.array([-100.0, -50, 0, 50, 100])


def beyond():
  """Region of the left 400 µm whose only border in the window is x = 400."""
  return shapely.box(-5000, -5000, 400, 6000)


def test_profile_of_a_straight_border_by_hand():
  x = [399.0, 350.0, 349.0, 401.0, 450.0, 449.0, 440.0, 900.0]
  points = np.stack([x, np.full(8, 500.0)], axis=1)
  found = border.profile(points, beyond(), WINDOW, EDGES)
  # 350 is at -50 and 450 at 50: zones begin with their edge.
  np.testing.assert_array_equal(found.counts, [1, 2, 3, 1])
  np.testing.assert_allclose(found.areas, 50_000.0)
  np.testing.assert_allclose(found.per_mm2, [20, 40, 60, 20])
  assert found.points == 8 and found.area == 1e6
  low, high = found.interval()
  # Exact Poisson limits of 1 and 3 (Garwood).
  np.testing.assert_allclose(
    low[[0, 2]], [20 * 0.02532, 20 * 0.61867], rtol=1e-3
  )
  np.testing.assert_allclose(
    high[[0, 2]], [20 * 5.57164, 20 * 8.76727], rtol=1e-4
  )


def test_areas_around_a_corner_and_a_hole_in_the_window():
  window = WINDOW - shapely.box(700, 0, 1000, 1000)
  region = shapely.box(300, 300, 500, 500)
  edges = np.array([-200.0, -50, 0, 100, 300])
  found = border.profile(np.zeros((0, 2)), region, window, edges)
  np.testing.assert_allclose(found.areas[:2], [100 * 100, 30_000])
  ring = 4 * 200 * 100 + np.pi * 100**2
  assert found.areas[2] == pytest.approx(ring, rel=2e-4)
  assert found.areas[:].sum() < window.area
  np.testing.assert_array_equal(found.per_mm2, 0)
  # A zone that the window does not have has no density.
  far = border.profile(
    np.zeros((0, 2)), region, window, np.array([2000.0, 3000.0])
  )
  assert np.isnan(far.per_mm2).all()


@pytest.mark.parametrize("null", border.NULLS)
def test_planted_attraction_is_found(null):
  """Around discs: along a straight border no shift would part them."""
  rng = np.random.default_rng(0)
  centres = [(300, 300), (700, 350), (450, 720)]
  region = windows.union([shapely.Point(c).buffer(90) for c in centres])
  ring = region.buffer(20) - region
  near = windows.sample(ring, 200, rng)
  points = np.vstack([near, windows.sample(WINDOW, 800, rng)])
  edges = np.arange(-40.0, 101, 20)
  test = border.profile_test(
    points, region, WINDOW, edges,
    null=null, simulations=99, rng=rng, reach=250.0,
  )  # fmt: skip
  assert test.p <= 0.05
  assert np.argmax(test.observed - test.high) == 2
  density = 1e6 * (200 / ring.area + 800 / 1e6)
  assert test.observed[2] == pytest.approx(density, rel=0.1)


def test_one_cluster_is_coupled_only_if_taken_for_single_cells():
  """Clusters lie anywhere: cells by themselves would not."""
  rng = np.random.default_rng(3)
  naive, shifted = [], []
  for _ in range(8):
    centres = windows.sample(WINDOW, 12, rng)
    points = centres[rng.integers(0, 12, 600)] + rng.normal(0, 20, (600, 2))
    points = points[windows.inside(WINDOW, points)]
    keys = {"simulations": 39, "reach": 300.0, "rng": rng}
    args = (points, beyond(), WINDOW, np.arange(-100.0, 101, 50))
    naive.append(border.profile_test(*args, null="uniform", **keys).p)
    shifted.append(border.profile_test(*args, null="shift", **keys).p)
  assert np.mean(np.array(naive) <= 0.05) > 0.8
  assert np.mean(np.array(shifted) <= 0.05) <= 0.25


def test_cumulative_share_ends_at_one():
  rng = np.random.default_rng(0)
  points = windows.sample(WINDOW, 300, rng)
  test = border.profile_test(
    points, beyond(), WINDOW, EDGES,
    null="uniform", simulations=99, rng=rng, cumulative=True,
  )  # fmt: skip
  assert test.observed[-1] == 1 and test.p > 0.05
  np.testing.assert_allclose(test.central, [0.25, 0.5, 0.75, 1], atol=0.03)


def test_overlap_is_the_binomial_test():
  rng = np.random.default_rng(0)
  points = np.vstack(
    [
      windows.sample(shapely.box(0, 0, 400, 1000), 70, rng),
      windows.sample(shapely.box(400, 0, 1000, 1000), 30, rng),
    ]
  )
  found = border.overlap(points, beyond(), WINDOW, null="uniform")
  assert (found.inside, found.points) == (70, 100)
  assert found.area_share == pytest.approx(0.4)
  assert found.ratio == pytest.approx(0.7 / 0.4)
  assert found.p == pytest.approx(2.0e-9, rel=0.2)
  disc = shapely.Point(500, 500).buffer(120)
  within = np.vstack([windows.sample(disc, 30, rng), points])
  keys = {"null": "shift", "reach": 300.0, "rng": rng, "simulations": 99}
  moved = border.overlap(within, disc, WINDOW, **keys)
  assert moved.p <= 0.05 and moved.ratio > 5
  assert border.overlap(points, disc, WINDOW, **keys).p > 0.1


def test_wrong_settings():
  points = windows.sample(WINDOW, 5, np.random.default_rng(0))
  keys = {"simulations": 99, "rng": np.random.default_rng(0)}
  with pytest.raises(ValueError, match="edges: two or more that increase"):
    border.profile(points, REGION, WINDOW, EDGES[::-1])
  with pytest.raises(ValueError, match="does not meet the window"):
    border.profile(points, shapely.box(2000, 0, 3000, 10), WINDOW, EDGES)
  with pytest.raises(ValueError, match="'csr', allowed: shift, uniform"):
    border.profile_test(points, REGION, WINDOW, EDGES, null="csr", **keys)
  with pytest.raises(ValueError, match="reach is None"):
    border.profile_test(points, REGION, WINDOW, EDGES, null="shift", **keys)
  with pytest.raises(ValueError, match="0.0% of the window"):
    border.profile_test(
      points, REGION, WINDOW, EDGES, null="shift", reach=5000.0, **keys
    )
  with pytest.raises(ValueError, match="at least 1"):
    border.profile_test(
      points[:0], REGION, WINDOW, EDGES, null="uniform", **keys
    )
  with pytest.raises(ValueError, match="covers the whole window"):
    border.overlap(
      points, shapely.box(-10, -10, 1010, 1010), WINDOW, null="uniform"
    )
