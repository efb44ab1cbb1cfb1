"""Approximate search with FAISS: lists of short codes, and exact distances.

A quantiser is trained once, on a sample: k-means splits the vectors into lists.
Each vector is written down as the signs of its difference from the middle of
its list, and two numbers that make distances of them (RaBitQ): `d / 8 + 8`
bytes, less than a tenth of its size, and nothing more to train. A query looks
at the nearest lists. What the codes find is ranked anew by the vectors
themselves (`Index.search`).

Codes are plain arrays: a slide's codes do not depend on other slides, so that
adding and removing slides touches nothing else, on any number of machines.
`benchmarks/search_index.py` has what the kinds of FAISS and of LanceDB cost.

Reference: Gao and Long, RaBitQ: quantizing high-dimensional vectors with a
theoretical error bound for approximate nearest neighbor search, SIGMOD 2024.
"""

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


def lists_for(rows: int) -> int:
  """How many lists so many vectors are split into.

  Example:
    >>> lists_for(1_000_000), lists_for(100)
    (4096, 64)
  """
  least, most = _LISTS
  lists = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(rows))))
  return min(max(lists, least), most)


def factory(lists: int) -> str:
  """What FAISS calls it.

  Example:
    >>> factory(4096), factory(65536)
    ('IVF4096,RaBitQ', 'IVF65536_HNSW32,RaBitQ')
  """
  graph = "_HNSW32" if lists >= _GRAPH_FROM else ""
  return f"IVF{lists}{graph},RaBitQ"


def sample_size(lists: int) -> int:
  """How many vectors to train with."""
  return max(_TRAIN_PER_LIST * lists, 20_000)


def train(
  sample: Float32[np.ndarray, "n d"], lists: int, seed: int = 0
) -> faiss.IndexIVF:
  """Trains a quantiser on vectors of length 1."""
  index = faiss.index_factory(sample.shape[1], factory(lists), faiss.METRIC_L2)
  index.cp.seed = seed
  index.cp.min_points_per_centroid = 1  # a small index is no fault
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
