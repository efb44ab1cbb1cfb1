"""Masks of nuclei: each label rule by hand or by a slow loop, odd inputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from wsiseq_jax import parallel
from wsiseq_jax.segment import clicks, nuclei, nucleus_masks
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.clicks import IGNORE
from wsiseq_jax.segment.colour_window import ColourWindow

OUTLINES = nucleus_masks.Outlines()


def test_voronoi_labels_are_those_of_a_slow_loop():
  # No pixel is equally near to two points.
  pixels = np.array([[3, 4], [10, 15], [20, 2]])  # column, row
  found = nucleus_masks.voronoi_labels(pixels * 1.0, (20, 24), OUTLINES)
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
    v = nucleus_masks.voronoi_labels(none, (6, 7), OUTLINES, is_negative)
    c = nucleus_masks.cluster_labels(white, none, OUTLINES, is_negative)
    assert (v == want).all() and (c == want).all()


def test_one_point_has_no_border():
  found = nucleus_masks.voronoi_labels(np.array([[3.0, 3.0]]), (9, 9), OUTLINES)
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
  found = nucleus_masks.cluster_labels(pixels, centres, OUTLINES)
  # Dilated by 5 and eroded by 7: 2 px smaller, and the hole is filled.
  assert (found[discs(centres, (64, 96), 9)] == 1).all()
  assert not (found[~discs(centres, (64, 96), 12)] == 1).any()
  labels, count = ndimage.label(found == 1)
  assert count == 2  # parted along the border of their cells
  is_background = found == 0
  assert is_background[:8, :8].all()
  assert not (is_background & discs(centres, (64, 96), 10)).any()
  again = nucleus_masks.cluster_labels(pixels, centres, OUTLINES)
  assert (again == found).all()


def test_a_picture_of_one_colour_has_labels_all_the_same():
  grey = np.full((40, 40, 3), 128, np.uint8)
  found = nucleus_masks.cluster_labels(grey, np.array([[20.0, 20.0]]), OUTLINES)
  assert found.shape == (40, 40) and set(np.unique(found)) <= {0, 1, IGNORE}


def test_outline_map_and_its_loss_by_hand():
  voronoi = np.array([[0, 1, IGNORE, IGNORE]], np.uint8)
  clusters = np.array([[1, IGNORE, 0, IGNORE]], np.uint8)
  target = nucleus_masks.outline_map(voronoi, clusters)
  assert target.tolist() == [[1, 5, 6, 8]]
  share = np.array([[0.7, 0.4, 0.8, 0.1]])  # of background
  logits = jnp.log(jnp.asarray(np.stack([share, 1 - share], -1)))[None]
  by_voronoi = -(math.log(0.7) + math.log(0.6)) / 2
  by_cluster = -(math.log(0.3) + math.log(0.8)) / 2
  found = nucleus_masks.outline_loss(logits, jnp.asarray(target)[None])
  np.testing.assert_allclose(found, (by_voronoi + by_cluster) / 2, rtol=1e-5)
  padding = jnp.full((1, 1, 4), IGNORE)
  value, slope = jax.value_and_grad(nucleus_masks.outline_loss)(logits, padding)
  assert value == 0 and not np.asarray(slope).any()


def test_instances_part_what_touches_and_drop_what_is_small():
  mask = np.zeros((8, 12), bool)
  mask[1:4, 1:9] = True  # one piece of two nuclei
  mask[6, 0:2] = True  # a speck without a point
  mask[5:8, 9:12] = True  # a nucleus without a point
  points = np.array([[2.0, 2.0], [6.0, 2.0], [10.0, 0.0]])  # last: beside
  found = nucleus_masks.instances(mask, points, min_px=3)
  assert found[2, 1] != found[2, 8] and (found[~mask] == 0).all()
  assert not found[6, :2].any()
  assert sorted(np.bincount(found.ravel())[1:].tolist()) == [9, 12, 12]
  assert found.max() == 3
  assert not nucleus_masks.instances(np.zeros((4, 4), bool), points).any()


def test_parameter_trees_are_the_golden_ones(repo_root):
  backbone, lines = Backbone(), []
  frozen = jax.eval_shape(backbone.init, jax.random.key(0))
  networks = {
    "clicks": clicks.network(backbone, 2, 64, clicks.ClickLoss()),
    "detect": nuclei.network(backbone, 64, 10.0),
    "nuclei": nucleus_masks.network(backbone, 64, 0.0, ColourWindow()),
  }
  for name, network in networks.items():
    shapes = jax.eval_shape(network.init, jax.random.key(0), frozen, None)
    lines += [
      f"{name}: {parallel.path_name(path)} {list(leaf.shape)} {leaf.dtype}"
      for path, leaf in jax.tree.leaves_with_path(shapes)
    ]
  path = repo_root / "tests" / "golden" / "params_points.txt"
  assert "\n".join(lines) + "\n" == path.read_text()
