"""Nearest neighbours against a brute-force ranking."""

import jax
import numpy as np
import pytest

from wsiseq_jax.search import neighbours


def test_blocks_give_what_one_matrix_gives():
  rng = np.random.default_rng(0)
  gallery = rng.normal(size=(57, 5)).astype(np.float32)
  queries = rng.normal(size=(6, 5)).astype(np.float32)
  unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
  q = queries / np.linalg.norm(queries, axis=1, keepdims=True)
  expected = np.argsort(-(q @ unit.T), axis=1)[:, :4]
  for block in (1, 7, 57, 1000):
    found = neighbours.nearest(queries, gallery, 4, block=block)
    np.testing.assert_array_equal(found.index, expected)
  np.testing.assert_allclose(
    found.distance,
    1 - np.take_along_axis(q @ unit.T, expected, 1),
    atol=1e-5,
  )


def test_own_region_never_comes_back():
  x = np.array([[1, 0], [1, 0.01], [0, 1], [0.5, 0.5]], np.float32)
  region = np.array([0, 0, 1, 2])
  found = neighbours.nearest(x, x, 3, region, region, block=2)
  assert found.index.tolist() == [
    [3, 2, -1],
    [3, 2, -1],
    [3, 1, 0],
    [1, 0, 2],
  ]
  assert np.isneginf(found.similarity[0, 2])


def test_ties_go_to_the_earlier_row():
  x = np.ones((5, 3), np.float32)
  found = neighbours.nearest(x[:1], x, 3, block=2)
  assert found.index.tolist() == [[0, 1, 2]]


def test_share_same_counts_only_what_exists():
  found = neighbours.Neighbours(
    np.array([[0, 1], [2, -1]]), np.zeros((2, 2), np.float32)
  )
  gallery = np.array(["a", "b", "b"])
  share = neighbours.share_same(found, np.array(["a", "b"]), gallery)
  assert share == pytest.approx(2 / 3)


def test_groups_come_in_pairs():
  x = np.ones((2, 2), np.float32)
  with pytest.raises(ValueError, match="together"):
    neighbours.nearest(x, x, 1, query_groups=np.array([0, 1]))
  with pytest.raises(ValueError, match="k=0"):
    neighbours.nearest(x, x, 0)


def test_rows_are_spread_over_devices_and_read_by_slices():
  assert jax.device_count() == 8
  rng = np.random.default_rng(1)
  rows = rng.normal(size=(5000, 7)).astype(np.float16)
  queries = rng.normal(size=(1500, 7)).astype(np.float32)  # more than one block

  class Lazy:
    most, read = 0, 0

    def __len__(self):
      return len(rows)

    def __getitem__(self, part):
      Lazy.most = max(Lazy.most, len(rows[part]))
      Lazy.read += len(rows[part])
      return rows[part]

  found = neighbours.nearest(queries, Lazy(), 5, block=2048)
  assert Lazy.most == 2048
  assert Lazy.read == len(rows)  # once
  unit = rows.astype(np.float32)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
  alike = asked @ unit.T
  wanted = -np.sort(-alike, axis=1)[:, :5]
  np.testing.assert_allclose(found.similarity, wanted, atol=1e-5)
  at = np.take_along_axis(alike, found.index, axis=1)
  np.testing.assert_allclose(at, wanted, atol=1e-5)


def test_fewer_rows_than_wanted_are_marked():
  x = np.eye(3, dtype=np.float32)
  found = neighbours.nearest(x[:1], x, 5)
  assert found.index.tolist() == [[0, 1, 2, -1, -1]]
  assert neighbours.nearest(x[:0], x, 5).index.shape == (0, 5)
