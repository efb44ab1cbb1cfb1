import numpy as np
import pytest
import shapely
from scipy import stats

from tests.spatial import shapes
from wsiseq_jax.spatial import envelopes, ripley, shifts, windows

RADII = np.arange(10.0, 61, 10)


def test_k_of_moved_points_against_polygons():
  """Each curve again, by exact discs of every point that counts."""
  window = shapes.block()
  rng = np.random.default_rng(0)
  others = shapes.clusters(window, rng, windows.sample(window, 15, rng), 200)
  points = shapes.clusters(window, rng, others[:20], 150)
  keys = {"reach": 200.0, "simulations": 39}
  test = shifts.cross_k(
    points, others, window, RADII, rng=np.random.default_rng(1), **keys
  )
  drawn = shifts.draw(
    points, window, rng=np.random.default_rng(1), pixel=1.25, **keys
  )

  def slow(place: np.ndarray) -> np.ndarray:
    at = drawn.points + place
    near = shapes.all_distances(at, others)[..., None] <= RADII
    discs = shapely.points(at)[:, None]
    area = shapely.area(window & shapely.buffer(discs, RADII, quad_segs=32))
    density = near.sum(axis=(0, 1)) / area.sum(axis=0)
    return np.pi * RADII**2 * density * window.area / len(others)

  np.testing.assert_allclose(
    test.observed, slow(drawn.places[0]), rtol=0.06, atol=20
  )
  np.testing.assert_allclose(
    test.central,
    np.mean([slow(place) for place in drawn.places[1:]], axis=0),
    rtol=0.03,
  )


def test_points_that_count_stay_in_the_window():
  window = shapes.pieces()
  rng = np.random.default_rng(0)
  points = windows.sample(window, 500, rng)
  drawn = shifts.draw(points, window, reach=100.0, simulations=99, rng=rng)
  assert drawn.places.shape == (100, 2)
  assert np.hypot(*drawn.places.T).max() <= 50
  for place in drawn.places:
    assert windows.inside(window, drawn.points + place).all()
  back = drawn.points + drawn.places[0]
  assert shapes.all_distances(back, points).min(axis=1).max() < 1e-9
  # All that can count do: as many as the inner window's share.
  share = drawn.inner.area / window.area
  assert 0.3 < share < 0.7
  assert len(back) == pytest.approx(500 * share, rel=0.1)


def test_independent_clusters_are_attracted_only_to_the_naive_model():
  rng = np.random.default_rng(1)
  window = shapes.block()
  naive, shifted = [], []
  for _ in range(10):
    points, others = (
      shapes.clusters(window, rng, windows.sample(window, 8, rng), 200)
      for _ in range(2)
    )
    keys = {"simulations": 19, "rng": rng}
    naive.append(
      envelopes.random_points(
        lambda p, o=others: ripley.k(p, window, RADII, others=o).value,
        points,
        window,
        **keys,
      ).p  # fmt: skip
    )
    shifted.append(
      shifts.cross_k(points, others, window, RADII, reach=250, **keys).p
    )
  assert np.mean(np.array(naive) <= 0.05) > 0.5
  assert np.mean(np.array(shifted) <= 0.05) < 0.3


def test_p_is_uniform_for_clusters_in_a_window_with_a_hole():
  """Counting lost points by an edge correction gave none below 0.05."""
  rng = np.random.default_rng(2)
  window, radii = shapes.block(), np.array([20.0, 40.0])
  p = []
  for _ in range(100):
    points, others = (
      shapes.clusters(window, rng, windows.sample(window, 25, rng), 200)
      for _ in range(2)
    )
    test = shifts.cross_k(
      points, others, window, radii, reach=200, simulations=39, rng=rng
    )
    p.append(test.p)
  # Steps of 1/40: spread within them.
  spread = np.array(p) - rng.uniform(0, 1 / 40, 100)
  assert stats.kstest(spread, "uniform").pvalue > 0.01
  assert 0.01 <= np.mean(np.array(p) <= 0.1) <= 0.2


def test_shifts_refuse_what_they_cannot_do():
  rng = np.random.default_rng(0)
  window = shapely.box(0, 0, 20_000, 20_000)
  points = windows.sample(window, 50, rng)
  keys = {"simulations": 39, "rng": rng}
  with pytest.raises(ValueError, match="reach is 50, allowed: above"):
    shifts.cross_k(points, points, window, RADII, reach=50, **keys)
  with pytest.raises(ValueError, match="two pixels"):
    shifts.cross_k(
      points, points, window, np.array([1.0, 2.0]), reach=50, **keys
    )
  small = shapely.box(0, 0, 300, 300)
  points = windows.sample(small, 50, rng)
  with pytest.raises(ValueError, match="0.0% of the window is farther"):
    shifts.cross_k(points, points, small, RADII, reach=400, **keys)
  with pytest.raises(ValueError, match="reach is None"):
    shifts.draw(points, small, reach=None, simulations=9, rng=rng)
  with pytest.raises(ValueError, match="none of 1 points"):
    shifts.draw(np.ones((1, 2)), small, reach=80, simulations=9, rng=rng)
