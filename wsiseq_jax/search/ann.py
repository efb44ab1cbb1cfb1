"""Approximate search with FAISS: lists of short codes, and exact distances.

A quantiser is trained once, on a sample: k-means splits the vectors into lists,
and a product quantiser writes each down in `d / 4` bytes, less than a tenth of
its size. A query looks at the nearest lists. What the codes find is ranked
anew by the vectors themselves (`Index.search`).

Codes are plain arrays: a slide's codes do not depend on other slides, so that
adding and removing slides touches nothing else, on any number of machines.
`benchmarks/search_index.py` has what the kinds of FAISS and of LanceDB cost.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from data_prep.files import atomic

_LISTS = (64, 65536)  # fewest and most
# Vectors a list that k-means needs; with fewer, lists mean nothing.
_TRAIN_PER_LIST = 40
# From here on the nearest lists are found by a graph (HNSW).
_GRAPH_FROM = 16384


@dataclasses.dataclass(frozen=True)
class ListShape:
  """The sizes of a quantiser."""

  lists: int  # of k-means
  code_bytes: int  # of a vector

  @property
  def factory(self) -> str:
    """What FAISS calls it."""
    graph = "_HNSW32" if self.lists >= _GRAPH_FROM else ""
    return f"IVF{self.lists}{graph},PQ{self.code_bytes}"


def shape_for(rows: int, width: int) -> ListShape:
  """The sizes for a number of vectors.

  Example:
    >>> shape_for(1_000_000, 256), shape_for(100_000, 10)
    (ListShape(lists=4096, code_bytes=64), ListShape(lists=1024, code_bytes=2))
  """
  least, most = _LISTS
  lists = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(rows))))
  codes = [n for n in range(1, width // 4 + 1) if width % n == 0] or [1]
  return ListShape(min(max(lists, least), most), codes[-1])


def sample_size(shape: ListShape) -> int:
  """How many vectors to train with."""
  return max(_TRAIN_PER_LIST * shape.lists, 20_000)


def train(
  sample: Float32[np.ndarray, "n d"], shape: ListShape, seed: int = 0
) -> faiss.IndexIVF:
  """Trains a quantiser on vectors of length 1."""
  index = faiss.index_factory(sample.shape[1], shape.factory, faiss.METRIC_L2)
  for clustering in (index.cp, index.pq.cp):
    clustering.seed = seed
    clustering.min_points_per_centroid = 1  # a small index is no fault
  index.train(np.ascontiguousarray(sample))
  return index


def write(path: pathlib.Path, quantiser: faiss.IndexIVF) -> None:
  """Writes a quantiser, whole or not at all."""
  with atomic.replacing(path) as draft:
    faiss.write_index(quantiser, str(draft))
    atomic.sync(draft)


def read(path: pathlib.Path) -> faiss.IndexIVF:
  """Reads a quantiser; a ValueError if it is none."""
  try:
    return faiss.read_index(str(path))
  except RuntimeError as error:
    text = str(error).splitlines()[0]
    raise ValueError(f"cannot read the quantiser {path}: {text}") from error


def encode(
  quantiser: faiss.IndexIVF, vectors: Float32[np.ndarray, "n d"]
) -> UInt8[np.ndarray, "n c"]:
  """Codes of vectors: the number of the list, and what lies in it."""
  return quantiser.sa_encode(np.ascontiguousarray(vectors, np.float32))


def assemble(
  quantiser: faiss.IndexIVF,
  parts: Iterable[tuple[UInt8[np.ndarray, "n c"], Int[np.ndarray, " n"]]],
) -> faiss.IndexIVF:
  """Fills the lists of a quantiser that was just read."""
  for codes, numbers in parts:
    if len(numbers):
      quantiser.add_sa_codes(
        np.ascontiguousarray(codes), np.ascontiguousarray(numbers, np.int64)
      )
  return quantiser


def search(
  index: faiss.IndexIVF,
  queries: Float32[np.ndarray, "q d"],
  k: int,
  lists: int,
  allowed: Bool[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, "q k"]:
  """Numbers of the nearest rows by their codes, −1 where there are no more.

  Args:
    index: what `assemble` returned.
    queries: of length 1.
    k: how many.
    lists: how many lists to look at.
    allowed: which rows may be found; None = all.
  """
  how = faiss.SearchParametersIVF(nprobe=min(lists, index.nlist))
  if allowed is not None:
    bits = np.packbits(allowed, bitorder="little")
    how.sel = faiss.IDSelectorBitmap(bits)
  return index.search(np.ascontiguousarray(queries), k, params=how)[1]
