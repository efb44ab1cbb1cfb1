"""The random walk against the matrix it is the power of."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.segment import dense_walk
from wsiseq_jax.segment import random_walk


def picture(h, w, seed=0, maps=2):
  rng = np.random.default_rng(seed)
  boundary = rng.uniform(0, 0.4, (h, w)).astype(np.float32)
  return rng.uniform(0, 2, (maps, h, w)).astype(np.float32), boundary


@pytest.mark.parametrize(
  ("h", "w", "radius", "beta"),
  # The last is smaller than a step is long.
  [(20, 17, 5, 10.0), (9, 14, 3, 4.0), (3, 2, 5, 10.0)],
)
def test_it_equals_the_power_of_the_dense_matrix(h, w, radius, beta):
  scores, boundary = picture(h, w)
  found = random_walk.walk(scores, boundary, radius, beta)
  expected = dense_walk.walk(scores, boundary, radius, beta)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_columns_sum_to_one():
  # A column of T holds what one pixel of the result takes from all pixels.
  _, boundary = picture(4, 5)
  each = np.eye(20, dtype=np.float32).reshape(20, 4, 5)
  matrix = np.asarray(random_walk.walk(each, boundary, steps=1)).reshape(20, 20)
  np.testing.assert_allclose(matrix, dense_walk.transition(boundary), atol=1e-6)
  np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-6)


def test_a_constant_stays_and_nothing_exceeds_the_maximum():
  scores, boundary = picture(30, 11)
  found = random_walk.walk(np.ones_like(scores), boundary)
  np.testing.assert_allclose(found, 1, atol=1e-4)
  found = np.asarray(random_walk.walk(scores, boundary))
  assert (found.max(axis=(1, 2)) <= scores.max(axis=(1, 2))).all()


def test_a_closed_ring_blocks_the_flow():
  boundary = np.zeros((24, 24), np.float32)
  boundary[6:18, 6:18] = 1
  boundary[7:17, 7:17] = 0
  inside = np.zeros((1, 24, 24), np.float32)
  inside[:, 7:17, 7:17] = 1
  found = random_walk.walk(inside, boundary)
  np.testing.assert_allclose(found, inside, atol=1e-4)
  # With a gap of one pixel it leaks.
  boundary[6, 12] = 0
  found = np.asarray(random_walk.walk(inside, boundary))[0]
  assert found[5, 12] > 0.1 and found[12, 12] < 0.99


def test_one_boundary_pixel_on_the_path_is_the_affinity():
  boundary = np.zeros((5, 6), np.float32)
  boundary[1, 2] = 0.75
  found = np.asarray(random_walk.affinities(jnp.asarray(boundary), 4))
  offsets = random_walk.half_disc(4)
  assert found.shape == (len(offsets), 5, 6)
  right, below = found[offsets.index((0, 3))], found[offsets.index((2, 1))]
  assert right[1].tolist() == [0.25, 0.25, 0.25, 0, 0, 0]
  assert right[0].tolist() == [1, 1, 1, 0, 0, 0]
  # (0, 1) → (2, 2) passes (1, 2); (3, 0) → (5, 1) leaves the picture.
  assert (below[0, 1], below[0, 0], below[3, 0]) == (0.25, 1, 0)


def test_a_radius_without_a_pair_is_refused():
  with pytest.raises(ValueError, match="radius = 1: must be 2"):
    random_walk.walk(np.ones((1, 4, 4)), np.zeros((4, 4)), radius=1)
