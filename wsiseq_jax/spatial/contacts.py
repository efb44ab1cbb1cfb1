"""Who touches whom: a graph of neighbours, and types that meet too often.

Reference: Schapiro et al., "histoCAT", Nature Methods 2017, for the permutation
test; contacts here have no direction, so the table is symmetric.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy import spatial

GRAPHS = ("delaunay", "knn", "radius")


@dataclasses.dataclass(frozen=True, eq=False)
class Enrichment:
  """Contacts between types against types shuffled over the same graph."""

  observed: Int[np.ndarray, "t t"]  # symmetric; an edge counts once
  expected: Float[np.ndarray, "t t"]  # mean over shuffles
  z: Float[np.ndarray, "t t"]  # grows with the cells: not to compare slides by
  ratio: Float[np.ndarray, "t t"]  # observed / expected: to compare slides by
  p: Float[np.ndarray, "t t"]  # two-sided, not corrected for many pairs
  simulations: int


def neighbours(
  points: Float[np.ndarray, "n 2"],
  graph: str,
  *,
  longest: int | float,
  k: int = 6,
) -> Int[np.ndarray, "e 2"]:
  """Edges between neighbouring cells, each once, the lower index first.

  Args:
    points: [n, 2] in µm.
    graph: "delaunay"; "knn", where one is among the other's `k` nearest;
      "radius", all nearer than `longest`.
    longest: edges up to this length are kept, µm, whatever the graph: cells on
      both sides of a hole do not touch.
    k: number of nearest cells.

  Returns:
    Pairs of indices, sorted. Cells without neighbours have no edge.

  Raises:
    ValueError: unknown graph, a length or k that is not positive; all cells of
      a Delaunay graph on one line.
  """
  if graph not in GRAPHS:
    raise ValueError(f"graph is {graph!r}, allowed: {', '.join(GRAPHS)}")
  if not longest > 0 or not k > 0:
    raise ValueError(f"longest is {longest}, k is {k}, allowed: above 0")
  points = np.asarray(points, np.float64)
  if len(points) < 2:
    return np.zeros((0, 2), np.int64)
  if graph == "radius":
    tree = spatial.cKDTree(points)
    edges = tree.query_pairs(longest, output_type="ndarray")
  elif graph == "knn":
    # The cell itself is among the found, or another in the same place.
    k = min(k + 1, len(points))
    near = spatial.cKDTree(points).query(points, k=k, workers=-1)[1]
    edges = np.stack([np.repeat(np.arange(len(points)), k), near.ravel()], 1)
    edges = edges[edges[:, 0] != edges[:, 1]]
  elif len(points) == 2:
    edges = np.array([[0, 1]])
  else:
    try:
      corners = spatial.Delaunay(points).simplices
    except spatial.QhullError as error:
      raise ValueError(
        f"A Delaunay graph needs cells that are not all on one line; these "
        f"{len(points)} are"
      ) from error
    edges = np.concatenate(
      [corners[:, [0, 1]], corners[:, 1:], corners[:, ::2]]
    )
  edges = np.sort(edges.astype(np.int64), axis=1)
  edges = edges[
    np.hypot(*(points[edges[:, 0]] - points[edges[:, 1]]).T) <= longest
  ]
  key = np.unique(edges @ (len(points), 1))
  return np.stack(np.divmod(key, len(points)), axis=1)


def count(
  edges: Int[np.ndarray, "e 2"], types: Int[np.ndarray, " n"], kinds: int
) -> Int[np.ndarray, "t t"]:
  """Edges between each two types, each edge once; symmetric."""
  pairs = types[edges[:, 0]] * kinds + types[edges[:, 1]]
  table = np.bincount(pairs, minlength=kinds * kinds).reshape(kinds, kinds)
  return table + table.T - np.diag(np.diag(table))


def enrichment(
  edges: Int[np.ndarray, "e 2"],
  types: Int[np.ndarray, " n"],
  kinds: int,
  *,
  simulations: int,
  rng: np.random.Generator,
) -> Enrichment:
  """Do types touch more, or less, often than if types were shuffled?

  Args:
    edges: of `neighbours`.
    types: of each cell, 0 to `kinds` - 1.
    kinds: number of types.
    simulations: number of shuffles.
    rng: of the shuffles.

  Returns:
    Tables [kinds, kinds]. z and ratio are NaN where shuffles always agree, or
    expect nothing.

  Raises:
    ValueError: types beyond `kinds`, fewer than two shuffles.
  """
  types = np.asarray(types, np.int64)
  if len(types) and not 0 <= types.min() <= types.max() < kinds:
    raise ValueError(
      f"types: {types.min()} to {types.max()}, allowed: 0 to {kinds - 1}"
    )
  if simulations < 2:
    raise ValueError(f"simulations is {simulations}, allowed: from 2")
  observed = count(edges, types, kinds)
  drawn = np.array(
    [count(edges, rng.permutation(types), kinds) for _ in range(simulations)]
  )
  expected, spread = drawn.mean(axis=0), drawn.std(axis=0, ddof=1)
  above = ((drawn >= observed).sum(axis=0) + 1) / (simulations + 1)
  below = ((drawn <= observed).sum(axis=0) + 1) / (simulations + 1)
  with np.errstate(divide="ignore", invalid="ignore"):
    return Enrichment(
      observed=observed,
      expected=expected,
      z=np.where(spread > 0, (observed - expected) / spread, np.nan),
      ratio=np.where(expected > 0, observed / expected, np.nan),
      p=np.minimum(1, 2 * np.minimum(above, below)),
      simulations=simulations,
    )
