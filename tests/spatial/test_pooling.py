import numpy as np
import pytest
import shapely

from wsiseq_jax.spatial import border, pooling, ripley, windows

RADII = np.array([10.0, 20.0])


def test_curves_are_pooled_as_counts():
  a = ripley.Curve(RADII, np.array([1.0, 2]), np.array([1.0, 1]), RADII)
  b = ripley.Curve(RADII, np.array([90.0, 0]), np.array([9.0, 0]), 3 * RADII)
  pooled = pooling.curves([a, b])
  np.testing.assert_allclose(pooled.value, [9.1, 2])
  np.testing.assert_allclose(pooled.theory, [28, 20])
  with pytest.raises(ValueError, match="the same radii"):
    pooling.curves([a, ripley.Curve(RADII[:1], *(np.ones((3, 1))))])


def test_k_of_two_halves_pools_to_k_of_pairs():
  window = shapely.box(0, 0, 200, 200)
  rng = np.random.default_rng(0)
  fields = [windows.sample(window, n, rng) for n in (30, 80)]
  found = [ripley.k(points, window, RADII) for points in fields]
  pairs = np.array([30 * 29, 80 * 79])
  expected = pairs @ np.array([curve.value for curve in found]) / pairs.sum()
  np.testing.assert_allclose(pooling.curves(found).value, expected)


def test_profiles_are_pooled_as_counts_over_areas():
  edges = np.array([0.0, 10, 20])
  a = border.Profile(edges, np.array([1, 0]), np.array([100.0, 0]), 3, 1e3)
  b = border.Profile(edges, np.array([5, 7]), np.array([500.0, 70]), 20, 2e3)
  pooled = pooling.profiles([a, b])
  np.testing.assert_allclose(pooled.per_mm2, [1e4, 1e5])
  assert (pooled.points, pooled.area) == (23, 3e3)
  with pytest.raises(ValueError, match="the same edges"):
    pooling.profiles([])


def test_groups_that_differ_are_found_and_others_not():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(30, 5))
  groups = np.repeat(["a", "b", "c"], 10)
  values[groups == "c", 3] += 4
  found = pooling.compare(values, groups, simulations=199, rng=rng)
  pairs = {test.groups: test for test in found}
  assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
  assert pairs["a", "b"].p > 0.05
  far = pairs["a", "c"]
  assert far.p == 0.005 and far.adjusted_p == 0.015
  assert far.t[3] < -far.critical and far.patients == (10, 10)
  assert (np.abs(far.t[[0, 1, 2, 4]]) < far.critical).all()
  mean = values[:10].mean(axis=0) - values[20:].mean(axis=0)
  np.testing.assert_allclose(far.difference, mean)


def test_a_number_a_patient_is_one_column():
  rng = np.random.default_rng(0)
  p = [
    pooling.compare(
      rng.normal(size=(12, 1)),
      ["a"] * 6 + ["b"] * 6,
      simulations=39,
      rng=rng,
    )[0].p  # fmt: skip
    for _ in range(80)
  ]
  assert np.mean(np.array(p) <= 0.1) < 0.22


def test_groups_that_cannot_be_compared():
  rng = np.random.default_rng(0)
  keys = {"simulations": 39, "rng": rng}
  with pytest.raises(ValueError, match="'b': 1"):
    pooling.compare(np.zeros((3, 1)), ["a", "a", "b"], **keys)
  with pytest.raises(ValueError, match="3 patients"):
    pooling.compare(np.zeros((3, 1)), ["a", "a"], **keys)


def test_distances_where_a_patient_has_no_value_are_left_out():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(8, 3))
  values[2, 1] = np.nan
  groups = ["a"] * 4 + ["b"] * 4
  found = pooling.compare(values, groups, simulations=39, rng=rng)[0]
  assert np.isnan(found.t).tolist() == [False, True, False]
  with pytest.raises(ValueError, match="a and b: at no distance"):
    pooling.compare(values[:, 1:2], groups, simulations=39, rng=rng)


def test_holm_keeps_what_is_missing():
  found = pooling.holm([0.5, np.nan, 0.01])
  np.testing.assert_allclose(found, [0.5, np.nan, 0.02])
