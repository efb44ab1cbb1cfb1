"""Neighbours of single cells: counts by hand, p by counting draws."""

import itertools

import numpy as np
import pytest

from wsiseq_jax.spatial import local

# Five cells on a line, 10 µm apart; types a a b b a.
XY = np.stack([np.arange(5) * 10.0, np.zeros(5)], axis=1)
TYPES = np.array([0, 0, 1, 1, 0])


def test_counts_and_p_by_hand():
  found = local.neighbours(XY, TYPES, (0, 1), 10.0)
  assert found.cell.tolist() == [0, 1, 4]
  assert found.count.tolist() == [0, 1, 1] and found.all.tolist() == [1, 2, 1]

  def share(m, k):
    # Of all m others among the four, those with k or more of the two b.
    draws = list(itertools.combinations([1, 1, 0, 0], m))
    return np.mean([sum(draw) >= k for draw in draws])

  np.testing.assert_allclose(found.p, [1, share(2, 1), share(1, 1)])
  # Three cells: the smallest p counts three times, the next 3 / 2 times.
  np.testing.assert_allclose(found.q, [1, 1, 1])


def test_a_cell_is_no_neighbour_of_itself():
  found = local.neighbours(XY, TYPES, (1, 1), 10.0)
  assert found.count.tolist() == [1, 1] and found.all.tolist() == [2, 2]
  # One of three b, a and a left: one b among two of four others.
  np.testing.assert_allclose(found.p, [1 - 3 / 6, 1 - 3 / 6])


def test_a_planted_cluster_is_found_and_nothing_else():
  rng = np.random.default_rng(0)
  xy = rng.uniform(0, 1000, (2000, 2))
  types = (rng.uniform(0, 1, 2000) < 0.1).astype(int)
  near = np.hypot(*(xy - 500).T) < 60
  types[near] = 1
  xy, types = np.vstack([xy, [[500, 500]]]), np.append(types, 0)
  found = local.neighbours(xy, types, (0, 1), 40.0)
  significant = found.cell[found.q <= 0.05]
  assert 2000 in significant
  assert (np.hypot(*(xy[significant] - 500).T) < 110).all()


@pytest.mark.parametrize(
  ("pair", "radius", "message"),
  [((0, 2), 10.0, "no cell of type"), ((0, 1), 0.0, "above 0")],
)
def test_bad_calls(pair, radius, message):
  with pytest.raises(ValueError, match=message):
    local.neighbours(XY, TYPES, pair, radius)
