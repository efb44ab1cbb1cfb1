"""Clusters, members, and scores, with values worked out by hand."""

import numpy as np
import pytest

from wsiseq_jax.search import clustering


def blobs(sizes=(30, 20, 10), seed=0):
  """Three directions in 8-D with a little noise and any length."""
  rng = np.random.default_rng(seed)
  label = np.repeat(np.arange(len(sizes)), sizes)
  x = np.eye(8)[label] + rng.normal(0, 0.05, (len(label), 8))
  return (x * rng.uniform(0.1, 50, (len(x), 1))).astype(np.float32), label


def test_kmeans_finds_directions_whatever_their_length():
  x, label = blobs()
  found = clustering.kmeans(x, 3, seed=1)
  # The largest cluster is number 0.
  np.testing.assert_array_equal(found.assignment, label)
  assert found.sizes.tolist() == [30, 20, 10]
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  np.testing.assert_allclose(
    found.centroids[1], unit[label == 1].mean(0), atol=1e-5
  )
  np.testing.assert_allclose(
    found.distance,
    np.linalg.norm(unit - found.centroids[label], axis=1),
    atol=1e-5,
  )


def test_kmeans_repeats_itself():
  x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
  first, again = (clustering.kmeans(x, 7, seed=3) for _ in range(2))
  np.testing.assert_array_equal(first.assignment, again.assignment)


def test_kmeans_names_what_is_wrong():
  x, _ = blobs()
  with pytest.raises(ValueError, match="clusters=61.*report.clusters"):
    clustering.kmeans(x, 61)
  x[4] = 0
  with pytest.raises(ValueError, match="1 of 60 rows.*row 4"):
    clustering.kmeans(x, 3)


def test_members_are_nearest_first_and_one_per_region():
  clusters = clustering.Clusters(
    assignment=np.array([0, 0, 0, 0, 1, 1]),
    centroids=np.zeros((2, 2), np.float32),
    distance=np.array([0.3, 0.1, 0.2, 0.4, 0.6, 0.5], np.float32),
    seed=0,
  )
  everyone = clustering.nearest_members(clusters, 3)
  assert [m.tolist() for m in everyone] == [[1, 2, 0], [5, 4]]
  groups = np.array([7, 5, 5, 7, 9, 9])
  once = clustering.nearest_members(clusters, 3, groups)
  assert [m.tolist() for m in once] == [[1, 0], [5]]


def test_regions_need_the_same_slide_and_start():
  slide = np.array(["a", "a", "b", "a", "c", "c"])
  xy = np.array(
    [[10.2, 5], [10, 5], [10, 5], [400, 5], [np.nan] * 2, [np.nan] * 2]
  )
  groups = clustering.region_groups(slide, xy)
  assert groups.tolist() == [0, 0, 1, 2, 3, 4]


def test_mutual_information_leaves_out_the_unknown():
  assignment = np.array([0, 0, 1, 1, 0])
  assert clustering.mutual_information(
    assignment, np.array([3, 3, 4, 4, -1])
  ) == pytest.approx(1)
  # Independent: each cluster holds both labels equally.
  assert clustering.mutual_information(
    assignment[:4], np.array(["x", "y", "x", "y"])
  ) == pytest.approx(0)
  with pytest.raises(ValueError, match="none is known"):
    clustering.mutual_information(assignment, np.full(5, -1))
