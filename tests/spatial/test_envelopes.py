import numpy as np
import pytest

from tests.spatial import shapes
from wsiseq_jax.spatial import envelopes, ripley, shifts, windows

RADII = np.arange(10.0, 61, 10)


def test_extreme_rank_length_by_hand():
  simulated = np.array([[1, 5, 3], [2, 4, 2], [3, 3, 5], [4, 2, 4.0]])
  # Ranks from the top: the observed curve is highest at two of three places,
  # the third simulation at one, so it alone is not more extreme.
  observed = np.array([9, 9, 1.0])
  test = envelopes.global_envelope(
    observed, simulated, alpha=0.3, alternative="greater"
  )
  assert test.p == 1 / 5
  np.testing.assert_array_equal(test.low, -np.inf)
  np.testing.assert_array_equal(test.high, [4, 5, 5])
  np.testing.assert_allclose(test.central, [2.5, 3.5, 3.5])
  # Tied with the third, after the first and the fourth, which are highest
  # somewhere alone; the second is second somewhere, which comes before 2.5.
  tied = envelopes.global_envelope(
    simulated[2], simulated, alpha=0.3, alternative="greater"
  )
  assert tied.p == 4 / 5


def test_p_of_two_sides_and_one():
  rng = np.random.default_rng(0)
  simulated = rng.normal(size=(99, 8))
  low = np.full(8, -10.0)
  p = {
    side: envelopes.global_envelope(low, simulated, alternative=side).p
    for side in envelopes.ALTERNATIVES
  }
  assert p == {"two-sided": 0.01, "less": 0.01, "greater": 1.0}


def test_curve_leaves_the_band_where_it_is_rejected():
  rng = np.random.default_rng(0)
  for _ in range(40):
    curves = rng.normal(size=(40, 6)).cumsum(axis=1)
    test = envelopes.global_envelope(curves[0], curves[1:])
    out = (test.observed < test.low) | (test.observed > test.high)
    assert out.any() == (test.p <= 0.05)


def test_distances_without_values_are_left_out():
  curves = np.random.default_rng(0).normal(size=(40, 3))
  curves[5, 1] = np.nan
  test = envelopes.global_envelope(curves[0], curves[1:])
  assert np.isnan(test.low).tolist() == [False, True, False]
  with pytest.raises(ValueError, match="no distance at which all"):
    envelopes.global_envelope(curves[0] * np.nan, curves[1:])
  with pytest.raises(ValueError, match="39 simulations allow 0.025 to 1"):
    envelopes.global_envelope(curves[0], curves[1:], alpha=0.01)
  with pytest.raises(ValueError, match="'more', allowed: two-sided, greater"):
    envelopes.global_envelope(curves[0], curves[1:], alternative="more")


def test_points_that_follow_others_are_found_by_all_models():
  rng = np.random.default_rng(0)
  window = shapes.block()
  others = shapes.clusters(window, rng, windows.sample(window, 15, rng), 200)
  points = shapes.clusters(window, rng, others[:20], 150)
  keys = {"simulations": 39, "rng": rng, "alternative": "greater"}
  shift = shifts.cross_k(points, others, window, RADII, reach=300, **keys)
  exact = ripley.k(points, window, RADII, others=others).value
  uniform = envelopes.random_points(
    lambda p: ripley.k(p, window, RADII, others=others).value,
    points, window, **keys,
  )  # fmt: skip
  np.testing.assert_allclose(uniform.observed, exact)
  rest = windows.sample(window, 400, rng)
  cells = np.vstack([points, others, rest])
  types = np.repeat([0, 1, 2], [len(points), len(others), len(rest)])
  labels = envelopes.random_labels(cells, types, (0, 1), window, RADII, **keys)
  np.testing.assert_allclose(labels.observed, exact, rtol=1e-9)
  assert shift.p == uniform.p == labels.p == 1 / 40


def test_labels_from_some_focal_cells():
  rng = np.random.default_rng(0)
  window = shapes.block()
  points = windows.sample(window, 600, rng)
  types = (points[:, 0] > 600).astype(int)
  test = envelopes.random_labels(
    points, types, (0, 1), window, RADII,
    simulations=39, rng=rng, focal=150, alternative="less",
  )  # fmt: skip
  assert test.p == 1 / 40  # the types are apart
  assert (test.observed < 0.5 * test.central).all()
  with pytest.raises(ValueError, match="no cell is of type 5"):
    envelopes.random_labels(
      points, types, (0, 5), window, RADII, simulations=39, rng=rng
    )
