"""Instances of displacements whose centres are known."""

import jax.numpy as jnp
import numpy as np

from wsiseq_jax.segment import instances

SHAPE = (20, 24)
CENTRES = np.array([[6.0, 5.0], [12.0, 17.0]])


def towards(step=1.0):
  """Displacement towards the nearer centre, of at most `step` + 2 pixels."""
  grid = np.stack(np.mgrid[: SHAPE[0], : SHAPE[1]], -1).astype(np.float32)
  away = CENTRES[:, None, None] - grid[None]
  owner = np.hypot(*np.moveaxis(away, -1, 0)).argmin(axis=0)
  return np.take_along_axis(away, owner[None, ..., None], 0)[0] * step, owner


def slowly(displacement, steps, size):
  """`follow` of every pixel in turn."""
  h, w = size
  ends = np.zeros((*SHAPE, 2), int)
  for place in np.ndindex(*SHAPE):
    y, x = (min(p, s - 1.0) for p, s in zip(place, size, strict=True))
    for _ in range(steps):
      y0, x0 = int(y), int(x)
      y1, x1 = min(y0 + 1, SHAPE[0] - 1), min(x0 + 1, SHAPE[1] - 1)
      fy, fx = y - y0, x - x0
      move = (
        (1 - fy) * (1 - fx) * displacement[y0, x0]
        + (1 - fy) * fx * displacement[y0, x1]
        + fy * (1 - fx) * displacement[y1, x0]
        + fy * fx * displacement[y1, x1]
      )
      y = float(np.clip(y + move[0], 0, h - 1))
      x = float(np.clip(x + move[1], 0, w - 1))
    ends[place] = round(y), round(x)
  return ends


def test_pixels_follow_the_displacement_between_pixels():
  displacement, _ = towards(0.3)
  displacement = displacement.astype(np.float64)
  size = (18, 21)
  found = instances.follow(
    jnp.asarray(displacement, jnp.float32), jnp.array(size), 7
  )
  np.testing.assert_array_equal(found, slowly(displacement, 7, size))


def test_pixels_of_one_centre_are_one_cluster():
  displacement, owner = towards(0.5)
  ends = instances.follow(jnp.asarray(displacement), jnp.array(SHAPE))
  found = instances.clusters(displacement, np.asarray(ends))
  assert len(np.unique(found)) == 2
  assert ((found == found[6, 5]) == (owner == 0)).mean() > 0.98


def test_instances_are_connected_and_small_ones_score_nothing():
  scores = np.zeros((2, 20, 30), np.float32)
  scores[0, 2:10, 2:10] = 1.0
  scores[1, 2:18, 15:28] = 0.5
  scores[1, 8:10, :] = 0  # one cluster, two parts
  scores[1, 19, 0] = 0.5  # and a third, of less than 1 %
  clusters = np.zeros((20, 30), int)
  clusters[:, 12:] = 1
  clusters[19, 0] = 1
  found = instances.instances(
    scores, clusters, lambda x: x, (20, 30), 0.25, most=5
  )
  assert found.classes.tolist() == [1, 2, 2, 2]
  np.testing.assert_allclose(sorted(found.scores), [0, 0.5, 0.5, 1], atol=1e-4)
  assert found.scores[found.numbers[19, 0] - 1] == 0
  expected = np.where(scores.max(axis=0) > 0, 1, 0)
  np.testing.assert_array_equal(found.numbers > 0, expected)
  # Parts of one cluster have numbers of their own.
  assert found.numbers[4, 20] != found.numbers[14, 20]


def test_clusters_with_the_highest_sums_are_spread():
  scores = np.full((1, 4, 8), 0.5, np.float32)
  clusters = np.repeat([[0, 1, 1, 1, 1, 1, 2, 2]], 4, axis=0)
  seen = []

  def spread(parts):
    seen.append(parts)
    return parts

  found = instances.instances(scores, clusters, spread, (4, 8), 0.1, most=2)
  assert len(seen) == 1 and (seen[0] > 0).sum(axis=(1, 2)).tolist()[:3] == [
    *(20, 8, 0)
  ]
  assert (found.numbers > 0).tolist() == (clusters > 0).tolist()


def test_a_picture_without_a_class_has_no_instance():
  def spread(parts):
    raise AssertionError("nothing to spread")

  found = instances.instances(
    np.zeros((1, 5, 6), np.float32),
    np.zeros((5, 6), int),
    spread,
    (20, 24),
    0.25,
    most=5,
  )
  assert found.numbers.shape == (20, 24) and not found.numbers.any()
  assert len(found.classes) == len(found.scores) == 0
