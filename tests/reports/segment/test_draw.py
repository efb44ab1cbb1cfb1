"""Pictures of maps: values that a person can check by eye or hand."""

import numpy as np

from wsiseq_jax.reports.segment import draw
from wsiseq_jax.segment.slide_masks import colour

WHITE = np.full((16, 16, 3), 255, np.uint8)


def test_boundaries_are_dark():
  values = np.zeros((4, 4))
  values[:, 2] = 1
  found = draw.boundary(values, (16, 16))
  assert found.shape == (16, 16, 3)
  assert found[8, 1].tolist() == [255] * 3 and found[8, 10].max() < 64


def test_scores_are_those_of_the_likeliest_class():
  values = np.zeros((2, 4, 4))
  values[1, :, 3] = 1
  found = draw.scores(values, (16, 16)).astype(int)
  one = draw.scores(np.ones((1, 4, 4)), (16, 16)).astype(int)
  none = draw.scores(np.zeros((1, 4, 4)), (16, 16)).astype(int)
  assert (found[8, 15] == one[8, 15]).all()
  assert (found[8, 0] == none[8, 0]).all()
  assert np.abs(one[0, 0] - none[0, 0]).sum() > 100


def test_displacements_that_differ_in_direction_differ_in_hue():
  values = np.zeros((2, 4, 4))
  values[1, :, :2], values[1, :, 2:] = 3, -3  # to the right, to the left
  found = draw.displacement(values, (16, 16)).astype(int)
  assert np.abs(found[8, 1] - found[8, 14]).sum() > 200
  still = draw.displacement(np.zeros((2, 4, 4)), (16, 16))
  assert (still == 255).all()  # no length, no colour


def test_classes_and_instances_are_coloured_where_they_are():
  mask = np.zeros((16, 16), np.uint8)
  mask[4:12, 4:12] = 1
  mask[:2] = 255
  found = draw.classes(WHITE, mask).astype(int)
  want = 255 * 0.6 + np.array(colour(1)) * 0.4
  assert np.abs(found[8, 8] - want).max() <= 1
  assert found[14, 14].tolist() == [255] * 3
  assert len(set(found[0, 8].tolist())) == 1 and found[0, 8, 0] < 255
  parts = np.where(mask == 1, 1, 0) + (np.indices(mask.shape)[1] > 8) * (
    mask == 1
  )
  found = draw.instances(WHITE, parts).astype(int)
  assert np.abs(found[8, 5] - found[8, 10]).sum() > 60
  assert found[14, 14].tolist() == [255] * 3


def test_points_lie_where_they_are_and_none_is_fine():
  found = draw.dots(WHITE, np.array([[3.0, 12.0, 0.9]])).astype(int)
  assert np.argwhere(found[..., 1] < 100).mean(axis=0).tolist() == [12, 3]
  assert (draw.dots(WHITE, np.zeros((0, 3))) == 255).all()


def test_every_map_of_a_stage_has_a_picture():
  found = draw.maps(
    WHITE,
    {
      "scores": np.zeros((1, 4, 4), np.float16),
      "boundary": np.zeros((4, 4), np.float16),
      "displacement": np.zeros((2, 4, 4), np.float16),
      "instances": np.zeros((16, 16), np.int32),
      "classes": np.zeros((16, 16), np.uint8),  # is drawn as the result
    },
  )
  names = [name for name, _ in found]
  assert names == ["scores", "boundary", "displacement", "instances"]
