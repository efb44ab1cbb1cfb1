import dataclasses

import numpy as np
import pytest
import scipy.stats
import shapely

from wsiseq_jax.spatial import level_sets, windows

WINDOW = shapely.box(0, 0, 1000, 1000)
REGION = shapely.box(-5000, -5000, 400, 6000)


def test_score_by_hand():
  found = level_sets.Levels(
    counts=np.array([30, 10]),
    areas=np.array([100.0, 100.0]),
    distances=np.array([150.0, 150.0]),
    points=100,
    area=1000.0,
  )
  coupling = level_sets.coupling(found)
  # K = 300, 100 against 100, with σ = √(100 · 900 / 100) = 30.
  np.testing.assert_allclose(coupling.score, [200 / 30, 0])
  assert coupling.threshold == pytest.approx(np.sqrt(2 * np.log(2)))
  assert coupling.significant.tolist() == [True, False]
  np.testing.assert_allclose(coupling.probability, [2 / 3, 0])
  assert coupling.accumulation == pytest.approx(0.4)
  assert coupling.significant_accumulation == pytest.approx(0.3)
  assert coupling.association == pytest.approx(0.2)
  assert coupling.corrected_association == pytest.approx(0.2 / 0.9)
  assert coupling.distance == pytest.approx(5.0)
  p = 2 * scipy.stats.norm.sf(200 / 30)
  assert coupling.log10_p == pytest.approx(np.log10(p))


def test_two_identical_fields_keep_indices_and_raise_the_score():
  rng = np.random.default_rng(0)
  points = np.vstack(
    [
      windows.sample(shapely.box(400, 0, 415, 1000), 60, rng),
      windows.sample(WINDOW, 500, rng),
    ]
  )
  one = level_sets.levels(points, REGION, WINDOW, distance=150)
  a = level_sets.coupling(one)
  b = level_sets.coupling(level_sets.pool([one, one]))
  np.testing.assert_allclose(b.score, np.sqrt(2) * a.score)
  assert b.association == pytest.approx(a.association)
  assert b.distance == pytest.approx(a.distance)


def test_points_inside_regions_do_not_count():
  points = np.array([[100.0, 5.0], [405.0, 5.0], [415.0, 5.0], [999.0, 5.0]])
  found = level_sets.levels(points, REGION, WINDOW, distance=25)
  assert found.counts.tolist() == [1, 1, 0]  # the last zone is whole
  assert found.points == 3 and found.area == 600_000
  np.testing.assert_allclose(found.areas, 10_000)
  np.testing.assert_allclose(found.distances, [5, 15, 0])


def test_far_tail_stays_finite():
  found = level_sets.Levels(
    counts=np.array([100_000, 0]),
    areas=np.array([100.0, 100.0]),
    distances=np.zeros(2),
    points=100_000,
    area=1000.0,
  )
  assert -1e7 < level_sets.coupling(found).log10_p < -1e4


def test_zones_without_area_and_bad_settings():
  one = level_sets.levels(
    np.array([[500.0, 500.0]]), REGION, WINDOW, width=100, distance=900
  )
  coupling = level_sets.coupling(one)
  np.testing.assert_array_equal(np.isnan(coupling.score), one.areas == 0)
  assert coupling.threshold == pytest.approx(np.sqrt(2 * np.log(6)))
  with pytest.raises(ValueError, match="no points outside"):
    level_sets.coupling(dataclasses.replace(one, points=0))
  with pytest.raises(ValueError, match="width is 0"):
    level_sets.levels(np.zeros((1, 2)), REGION, WINDOW, width=0)
  with pytest.raises(ValueError, match="cover the whole window"):
    level_sets.levels(
      np.ones((1, 2)), shapely.box(-900, -900, 2000, 2000), WINDOW
    )
  with pytest.raises(ValueError, match="the same zones"):
    level_sets.pool([])
