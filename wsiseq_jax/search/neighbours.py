"""Nearest neighbours by cosine similarity.

What a pathologist asks of an encoder: show me tissue that looks like this. The
same region under another heading would always win, so members of the query's
own group (by default its region) never come back.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from wsiseq_jax.search.clustering import l2_normalise

_ROWS = "rows"  # the axis of devices
_NOBODY = -2  # group of a row that only fills up a block
_QUERIES = 1024  # asked at once
_LEAST = 1024  # rows of a block, at least


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
  gallery: Any,
  k: int = 5,
  query_groups: np.ndarray | None = None,
  gallery_groups: np.ndarray | None = None,
  block: int = 1 << 17,
) -> Neighbours:
  """The k most similar gallery rows of each query, outside its own group.

  The gallery goes through the devices block by block, the rows of a block
  spread over them: memory grows with `block`, not with q·n. Of equal rows the
  first is nearer. On a TPU `approx_max_k` picks the k of each device's part of
  a block; it misses one in a thousand at most on average.

  Args:
    queries: of any length above 0.
    gallery: the rows that may be found, [n, d], an array or anything that gives
      one when it is sliced.
    k: how many.
    query_groups: group of each query, any values.
    gallery_groups: group of each gallery row.
    block: rows on the devices at once.

  Raises:
    ValueError: one kind of groups without the other, k or block below 1, or a
      row without a direction.
  """
  if (query_groups is None) != (gallery_groups is None):
    raise ValueError("query_groups and gallery_groups must be given together")
  if k < 1 or block < 1:
    raise ValueError(f"k={k} and block={block} must be at least 1")
  queries = l2_normalise(queries)
  own, groups = _numbered(query_groups, gallery_groups, queries, gallery)
  devices = jax.local_devices()
  mesh = jax.make_mesh(
    (len(devices),), (_ROWS,), (AxisType.Auto,), devices=devices
  )
  # Few shapes, so that few programs are compiled.
  rows = min(_power(block), _power(max(len(gallery), _LEAST)))
  rows = -(-rows // mesh.size) * mesh.size
  place = NamedSharding(mesh, PartitionSpec(_ROWS))
  asked, best = [], []
  for first in range(0, max(1, len(queries)), _QUERIES):
    part, of = (x[first : first + _QUERIES] for x in (queries, own))
    size = _power(len(part))
    asked.append((_padded(part, size), _padded(of, size)))
    best.append(
      (
        jnp.full((size, k), -jnp.inf, jnp.float32),
        jnp.full((size, k), -1, jnp.int32),
      )
    )
  # The gallery is read once, however many queries there are.
  for start in range(0, len(gallery), rows):
    part = _padded(l2_normalise(gallery[start : start + rows]), rows)
    kept = _padded(groups[start : start + rows], rows, _NOBODY)
    part, kept = jax.device_put((part, kept), place)
    best = [
      _merged(so_far, *of_queries, part, kept, start, mesh)
      for so_far, of_queries in zip(best, asked, strict=True)
    ]
  similarity, index = (
    np.concatenate(parts)[: len(queries)] for parts in zip(*best, strict=True)
  )
  index = np.where(np.isfinite(similarity), index, -1).astype(np.int64)
  return Neighbours(index, similarity)


def _power(count: int) -> int:
  """The power of two that is not below."""
  return 1 << max(0, count - 1).bit_length()


def _padded(rows: np.ndarray, count: int, value: int = 0) -> np.ndarray:
  wide = [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, wide, constant_values=value)


def _numbered(
  query_groups, gallery_groups, queries, gallery
) -> tuple[np.ndarray, np.ndarray]:
  """Groups as numbers from 0; a query without groups has one of its own."""
  if query_groups is None:
    return np.full(len(queries), -1, np.int32), np.zeros(len(gallery), np.int32)
  both = np.concatenate([np.asarray(query_groups), np.asarray(gallery_groups)])
  _, numbers = np.unique(both, return_inverse=True)
  numbers = numbers.astype(np.int32)
  return numbers[: len(queries)], numbers[len(queries) :]


@functools.partial(jax.jit, static_argnames="mesh")
def _merged(best, queries, own, gallery, groups, start, mesh):
  """The best of what was found and of a block, spread over the devices."""
  k = best[0].shape[1]

  def local(gallery, groups):
    alike = jnp.dot(
      queries, gallery.T, precision="highest", preferred_element_type="float32"
    )
    hidden = (groups[None] == own[:, None]) | (groups[None] == _NOBODY)
    alike = jnp.where(hidden, -jnp.inf, alike)
    count = min(k, alike.shape[1])
    if jax.default_backend() == "tpu":
      top, at = jax.lax.approx_max_k(alike, count, recall_target=0.999)
    else:
      top, at = jax.lax.top_k(alike, count)
    first = start + jax.lax.axis_index(_ROWS) * gallery.shape[0]
    return (
      jax.lax.all_gather(top, _ROWS, axis=1, tiled=True),
      jax.lax.all_gather(at + first, _ROWS, axis=1, tiled=True),
    )

  spread, same = PartitionSpec(_ROWS), PartitionSpec()
  top, at = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(spread, spread),
    out_specs=(same, same),
    check_vma=False,
  )(gallery, groups)
  top = jnp.concatenate([best[0], top], axis=1)
  at = jnp.concatenate([best[1], at], axis=1)
  top, order = jax.lax.top_k(top, k)
  return top, jnp.take_along_axis(at, order, axis=1)


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
