"""Nuclei from points: each rule by hand or by a slow reference, odd inputs."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from data_prep.files import schema
from wsiseq_jax.segment import nuclei

IGNORE = nuclei.IGNORE
SMALL = nuclei.Detection(inner_px=3.0, outer_px=5.0, apart_px=2.0)
POINTS = np.array([[4.0, 3.0], [9.7, 8.4], [10.5, 1.5]])


def test_gaussian_map_is_that_of_a_slow_loop():
  found = nuclei.gaussian_map(POINTS, (12, 15), SMALL)
  for row in range(12):
    for column in range(15):
      apart = min(math.hypot(column - x, row - y) for x, y in POINTS)
      want = IGNORE if apart > 5 else 0
      if apart <= 3:
        want = 1 + round(253 * math.exp(-(apart**2) / (2 * 0.75**2)))
      assert found[row, column] == want, (row, column)
  assert found[3, 4] == 254  # the middle of this pixel is a point


def test_gaussian_map_without_points_and_with_background():
  empty = np.zeros((0, 2))
  assert (nuclei.gaussian_map(empty, (4, 5), SMALL) == IGNORE).all()
  everywhere = np.ones((12, 15), bool)
  assert not nuclei.gaussian_map(empty, (12, 15), SMALL, everywhere).any()
  found = nuclei.gaussian_map(POINTS[:1], (12, 15), SMALL, everywhere)
  assert found[3, 4] == 254 and found[11, 14] == 0


def test_points_off_the_picture_twins_and_odd_numbers_are_left_out():
  points = [[4, 3], [4.1, 3.1], [-1, 2], [14.6, 2], [2, math.nan], [0, 0]]
  found = nuclei.inside(np.array(points), (12, 15))
  assert found.tolist() == [[4, 3], [0, 0]]
  assert nuclei.inside(np.zeros((0, 2)), (3, 3)).shape == (0, 2)


def test_detection_loss_by_hand():
  target = jnp.array([[[254, 1, 0, IGNORE]]])
  share = jnp.array([[[0.5, 0.2, 0.1, 0.9]]])
  want = (10 * 0.25 + 10 * 0.04 + 0.01) / 21
  np.testing.assert_allclose(
    nuclei.detection_loss(share, target, 10.0), want, rtol=1e-5
  )
  nothing = jnp.full_like(target, IGNORE)
  assert nuclei.detection_loss(share, nothing, 10.0) == 0
  check_grads(
    lambda share: nuclei.detection_loss(jnp.asarray(share), target, 10.0),
    (share,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2,
  )  # fmt: skip


def bumps(points, shape, height=1.0):
  y, x = np.indices(shape)
  found = np.zeros(shape, np.float32)
  for (px, py), top in zip(points, np.broadcast_to(height, len(points)),
                           strict=True):  # fmt: skip
    apart = (x - px) ** 2 + (y - py) ** 2
    found = np.maximum(found, top * np.exp(-apart / 2))
  return found


def test_peaks_are_the_maxima_above_the_threshold():
  places = np.array([[5.0, 4.0], [15.0, 10.0], [25.0, 4.0]])
  share = bumps(places, (16, 30), np.array([0.9, 0.3, 0.6], np.float32))
  xy, height = nuclei.peaks(share, 0.35, 3.0)
  order = np.argsort(xy[:, 0])
  assert xy[order].tolist() == places[[0, 2]].tolist()
  np.testing.assert_allclose(height[order], [0.9, 0.6])
  xy, height = nuclei.peaks(np.zeros((8, 8)), 0.35, 3.0)
  assert xy.shape == (0, 2) and height.shape == (0,)


def test_self_training_adds_what_is_sure_and_not_known_yet():
  seen = np.array([[5.0, 4.0], [15.0, 10.0], [25.0, 4.0]])
  share = bumps(seen, (16, 30), np.array([0.9, 0.5, 0.8], np.float32))
  known = np.array([[6.0, 4.0]])  # a person's point for the first
  settings = dataclasses.replace(SMALL, sure=0.6, low=0.05)
  points, background = nuclei.taught(known, share, settings)
  # The second is not sure; the third is new.
  assert points.tolist() == [[6.0, 4.0], [25.0, 4.0]]
  assert (background == (share < 0.05)).all() and background.any()
  points, _ = nuclei.taught(np.zeros((0, 2)), share, settings)
  assert len(points) == 2


@pytest.mark.parametrize(
  "values, key",
  [
    ({"outer_px": 3.0}, "detect.rule.outer_px = 3"),
    ({"sure": 0.1}, "detect.rule.sure = 0.1"),
    ({"inner_px": 0.0}, "detect.rule.inner_px = 0.0"),
  ],
)
def test_a_wrong_setting_is_named(values, key):
  with pytest.raises(ValueError, match=key):
    schema.build(nuclei.Detection, values, "config.stages.detect.rule")
