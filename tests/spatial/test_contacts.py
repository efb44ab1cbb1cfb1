import numpy as np
import pytest

from wsiseq_jax.spatial import contacts


def test_graphs_of_a_square_by_hand():
  points = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 11.0]])
  near = contacts.neighbours(points, "radius", longest=10.5)
  np.testing.assert_array_equal(near, [[0, 1], [1, 2], [2, 3]])
  near = contacts.neighbours(points, "knn", k=1, longest=100.0)
  np.testing.assert_array_equal(near, [[0, 1], [1, 2], [2, 3]])
  near = contacts.neighbours(points, "delaunay", longest=100.0)
  assert len(near) == 5  # four sides and a diagonal
  near = contacts.neighbours(points, "delaunay", longest=12.0)
  np.testing.assert_array_equal(near, [[0, 1], [0, 3], [1, 2], [2, 3]])


@pytest.mark.parametrize("graph", contacts.GRAPHS)
def test_few_points(graph):
  for n, edges in ((0, 0), (1, 0), (2, 1)):
    points = np.arange(2.0 * n).reshape(n, 2)
    assert len(contacts.neighbours(points, graph, longest=9.0)) == edges


def test_count_is_symmetric_and_counts_an_edge_once():
  edges = np.array([[0, 1], [0, 2], [1, 2], [2, 3]])
  types = np.array([0, 1, 1, 0])
  table = contacts.count(edges, types, 3)
  np.testing.assert_array_equal(table, [[0, 3, 0], [3, 1, 0], [0, 0, 0]])


def test_enrichment_agrees_with_the_moments_of_shuffles():
  rng = np.random.default_rng(0)
  points = rng.uniform(0, 300, (400, 2))
  edges = contacts.neighbours(points, "delaunay", longest=40)
  types = np.array([0, 1, 2])[(points[:, 0] // 100).astype(int)]
  found = contacts.enrichment(edges, types, 4, simulations=199, rng=rng)
  n = np.bincount(types, minlength=4)
  share = np.outer(n, n) * 2 - np.diag(n * n + n)
  expected = len(edges) * share / (400 * 399)
  np.testing.assert_allclose(found.expected, expected, atol=6)
  assert (np.diag(found.z)[:3] > 5).all() and found.z[0, 2] < -5
  assert np.isnan(found.z[3]).all()
  assert found.p[0, 0] == found.p[0, 2] == 2 / 200
  np.testing.assert_array_equal(found.z, found.z.T)
  np.testing.assert_allclose(
    found.ratio[0, 0], found.observed[0, 0] / found.expected[0, 0]
  )


def test_shuffled_types_are_not_enriched():
  rng = np.random.default_rng(0)
  points = rng.uniform(0, 300, (300, 2))
  edges = contacts.neighbours(points, "knn", longest=60)
  p = [
    contacts.enrichment(
      edges, rng.integers(0, 2, 300), 2, simulations=99, rng=rng
    ).p[0, 1]
    for _ in range(60)
  ]
  assert np.mean(np.array(p) <= 0.1) < 0.25


def test_wrong_settings():
  points = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
  with pytest.raises(ValueError, match="'mst', allowed: delaunay, knn, radius"):
    contacts.neighbours(points, "mst", longest=5.0)
  with pytest.raises(ValueError, match="not all on one line"):
    contacts.neighbours(points, "delaunay", longest=5.0)
  with pytest.raises(ValueError, match="longest is 0"):
    contacts.neighbours(points, "knn", longest=0)
  edges = contacts.neighbours(points, "radius", longest=2.0)
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="types: 0 to 2, allowed: 0 to 1"):
    contacts.enrichment(edges, np.arange(3), 2, simulations=9, rng=rng)
