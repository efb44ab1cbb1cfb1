"""What an index holds: slides, places and vectors of rows, and filters."""

import pathlib
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from wsiseq_jax.search import store

FILTERS = ("slide_id", "patient_id", "cohort", "organ", "label")


class Contents:
  """An index's tables and arrays as they were when it was opened.

  Attributes:
    settings: what the index was built with.
    slides: a row for each slide: slide_id, patient_id, cohort, organ, label,
      path, mpp, first, rows.
    parts: the parts, by their first row.
    vectors: of each part, float16 [n, d], read as they are needed.
    places: of each part, of `store.ROW`, [n].
    size: one more than the highest number of a row.
    is_live: which numbers are rows of slides that were not removed.
    background: (cohort, row) of what distances are compared with.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    with store.database(folder) as connection:
      connection.execute("BEGIN")  # one state of all tables
      self.settings = store.read_settings(connection)
      self.parts = store.read_parts(connection)
      self.slides = _slides(connection)
      self.background = connection.execute(
        "SELECT cohort, row FROM background ORDER BY cohort, row"
      ).fetchall()
    self._firsts = np.array([part.first for part in self.parts], np.int64)
    self.size = self.parts[-1].first + self.parts[-1].rows if self.parts else 0
    self._slide_firsts = self.slides["first"].to_numpy(np.int64)
    self._slide_ends = self._slide_firsts + self.slides["rows"].to_numpy()
    self.vectors = [self.array(part, "vectors.npy") for part in self.parts]
    self.places = [self.array(part, "rows.npy") for part in self.parts]
    self.is_live = self._expand(np.ones(len(self.slides), bool))

  def array(self, part: store.IndexPart, name: str) -> np.ndarray:
    """A file of a part, read as it is needed.

    Raises:
      ValueError: it is not there, or damaged.
    """
    path = store.part_folder(self.folder, part.name) / name
    try:
      array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
      raise ValueError(f"the index is damaged: {path}: {error}") from error
    if len(array) != part.rows:
      raise ValueError(
        f"the index is damaged: {path} has {len(array)} rows, want {part.rows}"
      )
    return array

  def _expand(self, of_slides: Bool[np.ndarray, " s"]) -> np.ndarray:
    """Which rows are of these slides, bool [n]."""
    found = np.zeros(self.size, bool)
    for i in np.flatnonzero(of_slides):
      found[self._slide_firsts[i] : self._slide_ends[i]] = True
    return found

  def check_rows(self, ids: Any) -> Int[np.ndarray, " n"]:
    """Numbers of rows as an array; a ValueError if one is not live."""
    rows = np.atleast_1d(np.asarray(ids))
    if rows.size and rows.dtype.kind not in "iu":
      raise ValueError(f"rows {ids!r}: must be whole numbers")
    rows = rows.astype(np.int64)
    inside = (rows >= 0) & (rows < self.size)
    bad = rows[~inside] if not inside.all() else rows[~self.is_live[rows]]
    if len(bad):
      raise ValueError(
        f"row {int(bad[0])} is not in the index: its rows have numbers "
        f"below {self.size:,}, and those of removed slides are gone"
      )
    return rows

  def gather(
    self, parts: Sequence[np.ndarray], rows: Int[np.ndarray, " n"]
  ) -> np.ndarray:
    """Rows of `vectors` or `places`, whichever part they are in."""
    out = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
    number = np.searchsorted(self._firsts, rows, side="right") - 1
    for i in np.unique(number):
      mine = number == i
      out[mine] = parts[i][rows[mine] - self._firsts[i]]
    return out

  def slide_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Which row of `slides` each row belongs to."""
    return np.searchsorted(self._slide_firsts, rows, side="right") - 1

  def rows(self, ids: Any) -> pd.DataFrame:
    """What is known of rows, see `Index.rows`."""
    rows = self.check_rows(ids)
    at = self.slide_of(rows)
    found = self.slides.iloc[at].drop(columns=["first", "rows"])
    found = found.reset_index(drop=True)
    found.insert(0, "row", rows)
    places = np.empty(0, store.ROW)
    if len(rows):
      places = self.gather(self.places, rows)
    for name in store.ROW.names:
      found[name] = places[name].astype(np.float64)
    return found

  def allowed(
    self, where: tuple, no_slides: tuple, no_patients: tuple
  ) -> Bool[np.ndarray, " n"] | None:
    """Which rows may be found, bool [n]; None = all that are live.

    Args:
      where: (filter, values) pairs, checked.
      no_slides: slides that may not.
      no_patients: patients whose slides may not.
    """
    if not (where or no_slides or no_patients):
      return None
    slides = ~self.slides["slide_id"].isin(no_slides).to_numpy()
    slides &= ~self.slides["patient_id"].isin(no_patients).to_numpy()
    for name, wanted in where:
      if name in FILTERS:
        slides &= self.slides[name].isin(wanted).to_numpy()
    rows = self._expand(slides)
    for name, wanted in where:
      if name == "score":
        score = np.concatenate([part["score"] for part in self.places])
        rows &= (score >= wanted[0]) & (score <= wanted[1])
    return rows


def _slides(connection: sqlite3.Connection) -> pd.DataFrame:
  texts = ("slide_id", "patient_id", "cohort", "organ", "label", "path")
  names = [*texts, "mpp", "first", "rows"]
  rows = connection.execute(
    f"SELECT {', '.join(names)} FROM slides WHERE NOT removed "
    "ORDER BY first, rows"
  ).fetchall()
  numbers = {"mpp": np.float64, "first": np.int64, "rows": np.int64}
  found = pd.DataFrame(rows, columns=names)
  return found.astype({**dict.fromkeys(texts, object), **numbers})
