"""An index that is open: vectors in, the nearest rows out.

    index = Index.open("INDEX")
    hits = index.search(vectors, k=10, where={"cohort": "tcga"})

Vectors have length 1. `distance` is the Euclidean distance of two of them, from
0 to 2: √(2 − 2 cos). How unusual a distance is depends on the encoder, so each
hit is compared with up to 10,000 fixed random rows of its own cohort: `z` is
how many standard deviations it is from their mean distance to the query, and
`background_share` the share of them that are as near or nearer.

Up to `EXACT` rows, after filters, all are looked at. Of more, codes find
candidates (`ann.py`), and the vectors rank them: distances are exact always.
A filter that leaves a tenth of the rows has ten times the lists looked at.

Reference: HERE ranks by the same distance, z and share.
"""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int

from data_prep.files import names
from data_prep.files.schema import did_you_mean
from wsiseq_jax.search import ann, contents, neighbours
from wsiseq_jax.search.clustering import l2_normalise

COLUMNS = (
  *("query", "rank", "row", "slide_id", "patient_id", "cohort", "label"),
  *("x0", "y0", "w0", "h0", "mpp", "distance", "z", "background_share"),
  *("organ", "score"),
)
FILTERS = contents.FILTERS
EXACT = 20_000  # rows up to which all are looked at
_LISTS = 64  # lists looked at
# Candidates that are ranked by their vectors, for each hit, and at least.
_CANDIDATES, _FEWEST = 20, 200
_SPARE = 16  # more than k are kept, until distances are exact
_ROUNDING = 1e-3  # of a distance near 0, which comes from a cosine near 1

Names = str | Sequence[str]


class _Gathered:
  """Vectors of some rows, read where they are sliced."""

  def __init__(self, held: contents.Contents, rows: Int[np.ndarray, " n"]):
    self.rows, self._held = rows, held

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, part: slice) -> np.ndarray:
    return self._held.gather(self._held.vectors, self.rows[part])


class Index:
  """An index as it was when it was opened.

  Attributes:
    folder: where it is.
    settings: what it was built with: `width`, `encoder`, ...
    width: numbers of a vector.
    slides: a row for each slide, a DataFrame with the columns slide_id,
      patient_id, cohort, organ, label, path, mpp, first, rows.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._contents = contents.Contents(folder)
    self.settings = self._contents.settings
    self.slides = self._contents.slides
    self.width = int(self.settings["width"])
    self._live = int(self._contents.is_live.sum())
    self._ann = self._assembled()
    self._background = self._read_background()

  @classmethod
  def open(cls, folder: str | os.PathLike) -> "Index":
    """Opens an index for reading.

    Args:
      folder: the workdir of a job `index`.

    Raises:
      ValueError: there is no index there, or it is damaged.
    """
    return cls(pathlib.Path(folder))

  def __len__(self) -> int:
    """Rows of slides that were not removed."""
    return self._live

  def vectors(self, ids: Any) -> Float32[np.ndarray, "n d"]:
    """Vectors of rows, of length 1.

    Raises:
      ValueError: there is no such row.
    """
    rows = self._contents.check_rows(ids)
    if not len(rows):
      return np.empty((0, self.width), np.float32)
    found = self._contents.gather(self._contents.vectors, rows)
    return l2_normalise(found.astype(np.float32))

  def rows(self, ids: Any) -> pd.DataFrame:
    """What is known of rows.

    Args:
      ids: numbers of rows.

    Returns:
      In their order: row, slide_id, patient_id, cohort, organ, label, path,
      mpp (um per level-0 pixel), x0, y0, w0, h0 (level-0 pixels), score.

    Raises:
      ValueError: there is no such row.
    """
    return self._contents.rows(ids)

  def _assembled(self):
    """The lists of codes of all rows that are live; None if there are none."""
    name = self.settings.get("quantiser", "")
    if not name or self._live <= EXACT:
      return None
    quantiser = ann.read(self.folder / f"quantiser-{name}.faiss")
    return ann.assemble(quantiser, self._codes(name))

  def _codes(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in self._contents.parts:
      codes = self._contents.array(part, f"codes-{name}.npy")
      live = self._contents.is_live[part.first : part.first + part.rows]
      kept = np.flatnonzero(live)
      yield codes[kept] if len(kept) < part.rows else codes, kept + part.first

  def _read_background(self) -> dict[str, tuple[np.ndarray, pd.DataFrame]]:
    """Vectors and facts of what distances are compared with, by cohort."""
    rows: dict[str, list[int]] = {}
    for cohort, row in self._contents.background:
      rows.setdefault(cohort, []).append(row)
    return {
      cohort: (self.vectors(numbers), self.rows(numbers))
      for cohort, numbers in rows.items()
    }

  # Filters.

  @functools.lru_cache(maxsize=8)  # noqa: B019  an index lives with its process
  def _filtered(self, where: tuple, no_slides: tuple, no_patients: tuple):
    rows = self._contents.allowed(where, no_slides, no_patients)
    return rows, self._live if rows is None else int(rows.sum())

  def _check_where(self, where: Mapping[str, Any] | None) -> tuple:
    known = {}
    for name, wanted in (where or {}).items():
      if name == "score":
        ends = tuple(float(v) for v in np.atleast_1d(wanted))
        if len(ends) != 2 or not ends[0] <= ends[1]:
          raise ValueError(f"filter score = {wanted!r}: want (lowest, highest)")
        known[name] = ends
        continue
      if name not in FILTERS:
        raise ValueError(
          f"filter {name!r}: must be one of {[*FILTERS, 'score']}"
          f"{did_you_mean(name, (*FILTERS, 'score'))}"
        )
      known[name] = self._known_values(name, _names(wanted))
    return tuple(known.items())

  def _known_values(self, name: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The values that are meant, whatever their spelling."""
    values = sorted(set(self.slides[name]))
    spelled: dict[str, list[str]] = {}
    for value in values:
      text = names.stem(value) if name == "slide_id" else value
      spelled.setdefault(names.folded(text), []).append(value)
    found = []
    for one in wanted:
      text = names.stem(one) if name == "slide_id" else one
      alike = [one] if one in values else spelled.get(names.folded(text), [])
      if not alike:
        some = [value for value in values if value]
        raise ValueError(
          f"filter {name} = {one!r}: no slide has it; there are "
          f"{some[:10]}{did_you_mean(one, some)}"
        )
      found += alike
    return tuple(found)

  # Search.

  def search(
    self,
    vectors: Any,
    k: int = 10,
    where: Mapping[str, Any] | None = None,
    exclude_slide: Names = (),
    exclude_patient: Names = (),
    apart: float | int = 0.0,
    exact: bool = False,
  ) -> pd.DataFrame:
    """The k nearest rows of each vector.

    Args:
      vectors: queries, [q, d], of any length above 0.
      k: hits of a query, at most.
      where: filters: slide_id, patient_id, cohort, organ, label (a value, or
        several of which one has to hold), score (lowest, highest).
      exclude_slide: slides that are never found, the query's own for example.
      exclude_patient: patients whose slides are never found.
      apart: a hit is left out if its centre is less than so many of its own
        sides, in x and in y, from that of a nearer hit on the same slide: 1
        leaves out what overlaps, 2 what touches; 0 leaves out nothing.
      exact: looks at all rows.

    Returns:
      A row for each hit with the columns `COLUMNS`, by query and rank (from 0);
      fewer than k of a query where there are no more.

    Raises:
      ValueError: queries of another width, not finite or zero; an unknown
        filter; the index is empty.
    """
    queries = self._check_queries(vectors)
    if k < 1 or apart < 0:
      raise ValueError(f"k = {k} must be 1 or more, apart = {apart} 0 or more")
    slides, patients = _names(exclude_slide), _names(exclude_patient)
    key = (self._check_where(where), slides, patients)
    allowed, count = self._filtered(*key)
    found = self._distinct(queries, k, allowed, count, apart, exact)
    return self._table(queries, found, set(slides), set(patients))

  def _check_queries(self, vectors: Any) -> Float32[np.ndarray, "q d"]:
    if not self._live:
      raise ValueError(f"the index {str(self.folder)!r} is empty")
    queries = np.asarray(vectors, np.float32)
    if queries.ndim != 2 or queries.shape[1] != self.width:
      raise ValueError(
        f"queries of shape {queries.shape}: must be (queries, {self.width}), "
        "the width of the index; another encoder?"
      )
    return l2_normalise(queries)

  def _distinct(
    self, queries, k: int, allowed, count: int, apart: float | int, exact: bool
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, distances) of each query, neighbourhoods once."""
    if not apart:
      return self._nearest(queries, k, allowed, count, exact)
    found: list = [None] * len(queries)
    todo, wanted = list(range(len(queries))), 4 * k
    while todo:
      left = []
      nearest = self._nearest(queries[todo], wanted, allowed, count, exact)
      for number, (rows, distances) in zip(todo, nearest, strict=True):
        kept = self._apart(rows, apart)[:k]
        found[number] = rows[kept], distances[kept]
        if len(kept) < k and len(rows) == wanted:
          left.append(number)
      todo, wanted = left, 4 * wanted
    return found

  def _apart(
    self, rows: Int[np.ndarray, " n"], apart: float | int
  ) -> Int[np.ndarray, " m"]:
    """Places of rows that are not beside an earlier one of their slide."""
    places = self._contents.gather(self._contents.places, rows)
    slide = self._contents.slide_of(rows)
    size = np.stack([places["w0"], places["h0"]], 1)
    centre = np.stack([places["x0"], places["y0"]], 1) + size / 2
    kept: list[int] = []
    for i in range(len(rows)):
      near = np.abs(centre[kept] - centre[i]) < apart * size[i] - 1e-3
      if not (near.all(axis=1) & (slide[kept] == slide[i])).any():
        kept.append(i)
    return np.array(kept, np.int64)

  def _nearest(
    self, queries, k: int, allowed, count: int, exact: bool
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    if self._ann is None or exact or count <= EXACT:
      return self._exact(queries, k, allowed)
    lists = min(self._ann.nlist, -(-_LISTS * self._live // count))
    wanted = min(max(_CANDIDATES * k, _FEWEST), count)
    candidates = ann.search(self._ann, queries, wanted, lists, allowed)
    found = []
    for query, rows in zip(queries, candidates, strict=True):
      found.append(self._ranked(query, np.sort(rows[rows >= 0]), k))
    return found

  def _ranked(
    self, query: Float32[np.ndarray, " d"], rows: Int[np.ndarray, " n"], k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of some rows and their distances, of equal ones the first.

    Half precision has shortened the vectors a little, which is undone here.
    """
    distance = np.linalg.norm(self.vectors(rows) - query, axis=1)
    order = np.lexsort((rows, distance))[:k]
    return rows[order], distance[order]

  def _exact(
    self, queries, k: int, allowed
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Looks at every row, on the devices."""
    is_allowed = self._contents.is_live if allowed is None else allowed
    looked = _Gathered(self._contents, np.flatnonzero(is_allowed))
    nearest = neighbours.nearest(queries, looked, k + _SPARE)
    return [
      self._ranked(query, np.sort(looked.rows[index[index >= 0]]), k)
      for query, index in zip(queries, nearest.index, strict=True)
    ]

  def _table(self, queries, found, slides: set, patients: set) -> pd.DataFrame:
    """Facts and statistics of hits."""
    counts = [len(rows) for rows, _ in found]
    rows = np.concatenate([rows for rows, _ in found])
    table = self.rows(rows)
    table["query"] = np.repeat(np.arange(len(found)), counts)
    table["rank"] = np.concatenate([np.arange(n) for n in counts])
    table["distance"] = np.concatenate([d for _, d in found]).astype(np.float64)
    z = np.full(len(table), np.nan)
    share = np.full(len(table), np.nan)
    for cohort, (vectors, about) in self._background.items():
      mine = (table["cohort"] == cohort).to_numpy()
      kept = ~about["slide_id"].isin(slides).to_numpy()
      kept &= ~about["patient_id"].isin(patients).to_numpy()
      if not (mine.any() and kept.any()):
        continue
      for number in np.unique(table["query"][mine]):
        hits = mine & (table["query"] == number).to_numpy()
        similarity = vectors[kept] @ queries[number]
        others = np.sort(np.sqrt(np.maximum(2 - 2 * similarity, 0)))
        distance = table["distance"].to_numpy()[hits]
        spread = others.std()
        z[hits] = (distance - others.mean()) / spread if spread else np.nan
        below = np.searchsorted(others, distance + _ROUNDING, side="right")
        share[hits] = below / len(others)
    table["z"], table["background_share"] = z, share
    return table[list(COLUMNS)]


def by_slide(hits: pd.DataFrame) -> pd.DataFrame:
  """Groups the hits of a query by slide, the best slide first.

  A slide's score is the sum over its hits of k − rank, so that a slide with
  many near hits stands above one with a single nearest (as in HERE).

  Args:
    hits: of one query, as `Index.search` returns them.

  Returns:
    slide_id, patient_id, cohort, organ, label, hits, score, distance (of the
    nearest).
  """
  weight = hits["rank"].max() + 1 - hits["rank"] if len(hits) else hits["rank"]
  grouped = hits.assign(weight=weight).groupby("slide_id", sort=False)
  names = ["patient_id", "cohort", "organ", "label"]
  found = grouped.agg(
    **{name: (name, "first") for name in names},
    hits=("row", "size"),
    score=("weight", "sum"),
    distance=("distance", "min"),
  ).reset_index()
  return found.sort_values(
    ["score", "distance"], ascending=[False, True], kind="stable"
  ).reset_index(drop=True)


def _names(given: Any) -> tuple[str, ...]:
  """One name or several, as a tuple."""
  if given is None:
    return ()
  if isinstance(given, str):
    return (given,)
  return tuple(sorted({str(name) for name in given}))
