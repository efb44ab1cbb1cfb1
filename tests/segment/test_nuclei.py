"""Nuclei from points: each rule by hand or by a slow reference, odd inputs."""

import dataclasses
import math

import jax
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


OUTLINES = nuclei.Outlines()


def test_voronoi_labels_are_those_of_a_slow_loop():
  # No pixel is equally near to two points.
  pixels = np.array([[3, 4], [10, 15], [20, 2]])  # column, row
  found = nuclei.voronoi_labels(pixels * 1.0, (20, 24), OUTLINES)
  y, x = np.indices((20, 24))
  apart = np.hypot(x[..., None] - pixels[:, 0], y[..., None] - pixels[:, 1])
  owner = apart.argmin(axis=-1)
  for row in range(20):
    for column in range(24):
      here = owner[row, column]
      want = 1 if apart[row, column].min() <= 2 else IGNORE
      if column + 1 < 24 and owner[row, column + 1] != here:
        want = 0
      if row + 1 < 20 and owner[row + 1, column] != here:
        want = 0
      assert found[row, column] == want, (row, column)


def test_labels_without_a_point_know_all_or_nothing():
  none, white = np.zeros((0, 2)), np.full((6, 7, 3), 255, np.uint8)
  for is_negative, want in ((False, IGNORE), (True, 0)):
    v = nuclei.voronoi_labels(none, (6, 7), OUTLINES, is_negative)
    c = nuclei.cluster_labels(white, none, OUTLINES, is_negative)
    assert (v == want).all() and (c == want).all()


def test_one_point_has_no_border():
  found = nuclei.voronoi_labels(np.array([[3.0, 3.0]]), (9, 9), OUTLINES)
  assert set(np.unique(found)) == {1, IGNORE} and (found == 1).sum() == 13


def discs(centres, shape, radius):
  y, x = np.indices(shape)
  return np.any([np.hypot(x - a, y - b) <= radius for a, b in centres], axis=0)


def test_cluster_labels_have_the_shape_of_nuclei():
  # Two touching dark discs on pink; one of them has a pale hole.
  centres = np.array([[30.0, 30.0], [54.0, 30.0]])
  dark = discs(centres, (64, 96), 12)
  pixels = np.full((64, 96, 3), (240, 190, 210), np.uint8)
  pixels[dark] = (90, 60, 140)
  pixels[28:31, 36:39] = (240, 190, 210)
  found = nuclei.cluster_labels(pixels, centres, OUTLINES)
  # Dilated by 5 and eroded by 7: 2 px smaller, and the hole is filled.
  assert (found[discs(centres, (64, 96), 9)] == 1).all()
  assert not (found[~discs(centres, (64, 96), 12)] == 1).any()
  labels, count = nuclei.ndimage.label(found == 1)
  assert count == 2  # parted along the border of their cells
  is_background = found == 0
  assert is_background[:8, :8].all()
  assert not (is_background & discs(centres, (64, 96), 10)).any()
  again = nuclei.cluster_labels(pixels, centres, OUTLINES)
  assert (again == found).all()


def test_a_picture_of_one_colour_has_labels_all_the_same():
  grey = np.full((40, 40, 3), 128, np.uint8)
  found = nuclei.cluster_labels(grey, np.array([[20.0, 20.0]]), OUTLINES)
  assert found.shape == (40, 40) and set(np.unique(found)) <= {0, 1, IGNORE}


def test_outline_map_and_its_loss_by_hand():
  voronoi = np.array([[0, 1, IGNORE, IGNORE]], np.uint8)
  clusters = np.array([[1, IGNORE, 0, IGNORE]], np.uint8)
  target = nuclei.outline_map(voronoi, clusters)
  assert target.tolist() == [[1, 5, 6, 8]]
  share = np.array([[0.7, 0.4, 0.8, 0.1]])  # of background
  logits = jnp.log(jnp.asarray(np.stack([share, 1 - share], -1)))[None]
  by_voronoi = -(math.log(0.7) + math.log(0.6)) / 2
  by_cluster = -(math.log(0.3) + math.log(0.8)) / 2
  found = nuclei.outline_loss(logits, jnp.asarray(target)[None])
  np.testing.assert_allclose(found, (by_voronoi + by_cluster) / 2, rtol=1e-5)
  padding = jnp.full((1, 1, 4), IGNORE)
  value, slope = jax.value_and_grad(nuclei.outline_loss)(logits, padding)
  assert value == 0 and not np.asarray(slope).any()


def test_instances_part_what_touches_and_drop_what_is_small():
  mask = np.zeros((8, 12), bool)
  mask[1:4, 1:9] = True  # one piece of two nuclei
  mask[6, 0:2] = True  # a speck without a point
  mask[5:8, 9:12] = True  # a nucleus without a point
  points = np.array([[2.0, 2.0], [6.0, 2.0], [10.0, 0.0]])  # last: beside
  found = nuclei.instances(mask, points, min_px=3)
  assert found[2, 1] != found[2, 8] and (found[~mask] == 0).all()
  assert not found[6, :2].any()
  assert sorted(np.bincount(found.ravel())[1:].tolist()) == [9, 12, 12]
  assert found.max() == 3
  assert not nuclei.instances(np.zeros((4, 4), bool), points).any()


@pytest.mark.parametrize(
  "values, key",
  [
    ({"outer_px": 3.0}, "nuclei.outer_px = 3"),
    ({"sure": 0.1}, "nuclei.sure = 0.1"),
    ({"inner_px": 0.0}, "nuclei.inner_px = 0.0"),
    ({"rounds": 0}, "nuclei.rounds = 0"),
  ],
)
def test_a_wrong_setting_is_named(values, key):
  with pytest.raises(ValueError, match=key):
    schema.build(nuclei.Detection, values, "config.nuclei")
