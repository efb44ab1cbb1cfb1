"""Scores of grids become classes of pixels."""

import numpy as np
import pytest

from wsiseq_jax.segment import decide


def test_enlarged_scores_lie_where_the_grid_says():
  # Of 65 x 30 px, a stride of 4: 17 x 8 places, the last of one row.
  grid = np.arange(17, dtype=np.float32)[None, :, None].repeat(8, axis=2)
  found = decide.enlarge(grid, (65, 30))
  assert found.shape == (1, 65, 30)
  # The centre of place i is between pixels 4 i + 1 and 4 i + 2.
  assert found[0, 41:43, 7].mean() == pytest.approx(10)
  np.testing.assert_allclose(np.diff(found[0, 2:62, 0]), 0.25)


def test_cut_takes_what_belongs_to_the_picture():
  grid = np.zeros((24, 24, 2))
  assert decide.cut(grid, (65, 30), 4).shape == (17, 8, 2)


def test_classes_of_several_scores():
  scores = np.array([[[0.9, 0.2, 0.4, 0.9]], [[0.8, 0.6, 0.1, 0.1]]])
  tissue = np.array([[1, 1, 1, 0]], np.uint8)
  found = decide.classes_of(scores, tissue, 0.5)
  assert found.tolist() == [[1, 2, 0, 0]] and found.dtype == np.uint8
  found = decide.classes_of(scores, tissue, 0.7, 0.3)
  assert found.tolist() == [[1, 255, 255, 0]]
