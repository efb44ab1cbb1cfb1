"""Nearest neighbours by cosine similarity.

What a pathologist asks of an encoder: show me tissue that looks like this. The
same region under another heading would always win, so members of the query's
own group (by default its region) never come back.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from wsiseq_jax.search.clustering import l2_normalise


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """The nearest sequences of each query, nearest first."""

  # Rows of the gallery; −1 where fewer than k were allowed, [q, k].
  index: Int[np.ndarray, "q k"]
  # Cosine similarity; −inf where index is −1, [q, k].
  similarity: Float[np.ndarray, "q k"]

  @property
  def distance(self) -> Float[np.ndarray, "q k"]:
    """Cosine distance, 1 − similarity: 0 = same direction, 2 = opposite."""
    return 1 - self.similarity


def nearest(
  queries: Float[np.ndarray, "q d"],
  gallery: Float[np.ndarray, "n d"],
  k: int = 5,
  query_groups: np.ndarray | None = None,
  gallery_groups: np.ndarray | None = None,
  block: int = 8192,
) -> Neighbours:
  """The k most similar gallery rows of each query, outside its own group.

  The gallery is searched in blocks: memory grows with q·block, not with q·n.
  """
  if (query_groups is None) != (gallery_groups is None):
    raise ValueError("query_groups and gallery_groups must be given together")
  if k < 1 or block < 1:
    raise ValueError(f"k={k} and block={block} must be at least 1")
  queries, gallery = l2_normalise(queries), l2_normalise(gallery)
  best = np.full((len(queries), k), -np.inf, np.float32)
  index = np.full((len(queries), k), -1, np.int64)
  for start in range(0, len(gallery), block):
    stop = min(start + block, len(gallery))
    similarity = queries @ gallery[start:stop].T
    if query_groups is not None:
      same = (
        np.asarray(query_groups)[:, None]
        == np.asarray(gallery_groups)[None, start:stop]
      )
      similarity[same] = -np.inf
    rows = np.broadcast_to(np.arange(start, stop), similarity.shape)
    merged = np.concatenate([best, similarity], 1)
    merged_rows = np.concatenate([index, rows], 1)
    order = np.argsort(-merged, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(merged, order, 1)
    index = np.take_along_axis(merged_rows, order, 1)
  index[~np.isfinite(best)] = -1
  return Neighbours(index, best)


def share_same(
  neighbours: Neighbours, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> float:
  """Share of neighbours that carry the query's label (precision at k).

  With slides or patients as labels it tells how far features follow stain and
  scanner; with tissue types how far they follow tissue.

  NaN if there are no neighbours.

  Example:
    >>> found = Neighbours(np.array([[1, 2], [0, -1]]), np.zeros((2, 2)))
    >>> share_same(found, np.array([7, 8]), np.array([8, 7, 9]))
    0.6666666666666666
  """
  exists = neighbours.index >= 0
  if not exists.any():
    return float("nan")
  found = np.asarray(gallery_labels)[np.maximum(neighbours.index, 0)]
  same = found == np.asarray(query_labels)[:, None]
  return float(same[exists].mean())
