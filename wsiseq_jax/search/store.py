r"""The files of an index: a database of slides, and parts full of vectors.

    INDEX/
      index.sqlite              slides, parts, labels of rows, settings
      quantiser-<name>.faiss    what codes are made with
      parts/<name>/             never changed once it has its mark
        vectors.npy             float16 [n, d], of length 1
        rows.npy                place and score of each row, `ROW`
        codes-<quantiser>.npy   uint8 [n, bytes], what FAISS searches
        done.json

The database is the index: files that it does not name count for nothing. Each
change is one transaction, made when the files that it names are whole; a writer
that is killed leaves the index as it was. A reader sees the state at the moment
it opened the index.

A row has its number for ever. The rows of a slide are contiguous. A slide that
is removed keeps its numbers, and its bytes until the index is built anew.

SQLite rather than DuckDB: a viewer reads while a job writes, which DuckDB's
lock on the whole file forbids; what is filtered by are facts of slides, of
which there are thousands, and not of rows.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from data_prep.files import atomic
from data_prep.files.schema import did_you_mean

# x0, y0: top-left corner, w0, h0: size, level-0 pixels, NaN = unknown; score:
# what a model said of the row, NaN = nothing.
ROW = np.dtype(
  [(name, np.float32) for name in ("x0", "y0", "w0", "h0", "score")]
)
FILE = "index.sqlite"
VERSION = 1
BACKGROUND = 10_000  # rows a cohort, that distances are compared with
_SEED = 0x9E3779B97F4A7C15

_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE parts (
  name TEXT PRIMARY KEY, first INTEGER NOT NULL, rows INTEGER NOT NULL);
CREATE TABLE slides (
  number INTEGER PRIMARY KEY, slide_id TEXT NOT NULL, patient_id TEXT NOT NULL,
  cohort TEXT NOT NULL, organ TEXT NOT NULL, label TEXT NOT NULL,
  path TEXT NOT NULL, mpp REAL, digest TEXT NOT NULL, first INTEGER NOT NULL,
  rows INTEGER NOT NULL, removed INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX one_of_each ON slides (slide_id) WHERE NOT removed;
CREATE TABLE background (cohort TEXT NOT NULL, row INTEGER NOT NULL);
"""


@dataclasses.dataclass(frozen=True)
class SlideFacts:
  """What is known of a slide; all but its id may change later."""

  slide_id: str
  patient_id: str
  cohort: str = ""
  organ: str = ""
  label: str = ""  # '' = unknown
  path: str = ""  # the slide's file; '' = unknown
  mpp: float | None = None  # um per level-0 pixel; None = unknown


@dataclasses.dataclass(frozen=True, eq=False)
class SlideRows:
  """The vectors of one slide, to be added."""

  slide_id: str
  vectors: Float32[np.ndarray, "n d"]  # of any length above 0
  rows: np.ndarray  # of `ROW`, [n]
  level0_mpp: float | None = None  # as the source says; None = it does not


@dataclasses.dataclass(frozen=True)
class Added:
  """A slide in a part: `rows` rows from `first` of the part on."""

  slide_id: str
  digest: str  # of what it was made from
  first: int
  rows: int
  mpp: float | None = None


@dataclasses.dataclass(frozen=True)
class IndexPart:
  """A part, and where its rows begin in the index."""

  name: str
  first: int
  rows: int


def part_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Where a part is."""
  return folder / "parts" / name


def has_index(folder: str | os.PathLike) -> bool:
  """Whether there is an index in a folder."""
  return (pathlib.Path(folder) / FILE).is_file()


@contextlib.contextmanager
def database(folder: str | os.PathLike) -> Iterator[sqlite3.Connection]:
  """An index's database, closed at the end.

  Raises:
    ValueError: there is no index, or one of another version.
  """
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    raise ValueError(
      f"{os.fspath(folder)!r} is no index (no {FILE}): make one with "
      "--config=configs/search.py --config.job=index"
    )
  try:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
  except sqlite3.Error as error:
    raise ValueError(f"cannot read {path}: {error}") from error
  with contextlib.closing(connection):
    try:
      version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
      raise ValueError(f"cannot read {path}: {error}") from error
    if version != VERSION:
      raise ValueError(
        f"{path} is of version {version}, this code reads {VERSION}: build "
        "the index anew in another folder"
      )
    yield connection


@contextlib.contextmanager
def change(folder: str | os.PathLike) -> Iterator[sqlite3.Connection]:
  """A transaction: all that is done within, or nothing."""
  with database(folder) as connection:
    connection.execute("BEGIN IMMEDIATE")
    try:
      yield connection
    except BaseException:
      connection.execute("ROLLBACK")
      raise
    connection.execute("COMMIT")


def create(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Makes an index without rows, whole or not at all."""
  folder.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(folder / FILE) as draft:
    draft.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(draft)) as connection, connection:
      connection.executescript(_SCHEMA)
      connection.execute(f"PRAGMA user_version = {VERSION}")
      write_settings(connection, settings)


def write_settings(
  connection: sqlite3.Connection, settings: Mapping[str, Any]
) -> None:
  """Sets some of the settings."""
  connection.executemany(
    "INSERT OR REPLACE INTO settings VALUES (?, ?)",
    [(name, json.dumps(value)) for name, value in settings.items()],
  )


def read_settings(connection: sqlite3.Connection) -> dict[str, Any]:
  """All settings."""
  found = connection.execute("SELECT name, value FROM settings")
  return {name: json.loads(value) for name, value in found}


def read_parts(connection: sqlite3.Connection) -> list[IndexPart]:
  """All parts in the order of their rows."""
  return [
    IndexPart(*row)
    for row in connection.execute("SELECT * FROM parts ORDER BY first")
  ]


def add(
  connection: sqlite3.Connection,
  parts: Iterable[tuple[str, Sequence[Added]]],
  facts: Mapping[str, SlideFacts],
) -> None:
  """Adds parts; a slide that is there already is replaced.

  Args:
    connection: within a `change`.
    parts: name and slides of each part, whose files are written.
    facts: by slide id; what is not in it is known by its id alone.
  """
  for name, slides in parts:
    (end,) = connection.execute(
      "SELECT coalesce(max(first + rows), 0) FROM parts"
    ).fetchone()
    count = sum(slide.rows for slide in slides)
    connection.execute("INSERT INTO parts VALUES (?, ?, ?)", (name, end, count))
    for slide in slides:
      remove(connection, [slide.slide_id], is_known=False)
      about = facts.get(slide.slide_id)
      about = about or SlideFacts(slide.slide_id, slide.slide_id)
      first = end + slide.first
      connection.execute(
        "INSERT INTO slides (slide_id, patient_id, cohort, organ, label, path, "
        "mpp, digest, first, rows) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
          *(about.slide_id, about.patient_id, about.cohort, about.organ),
          *(about.label, about.path, about.mpp or slide.mpp, slide.digest),
          *(first, slide.rows),
        ),
      )


def remove(
  connection: sqlite3.Connection,
  slide_ids: Iterable[str],
  is_known: bool = True,
) -> None:
  """Removes slides.

  Args:
    connection: within a `change`.
    slide_ids: the slides.
    is_known: whether a slide that is not there is an error.

  Raises:
    ValueError: there is no such slide.
  """
  for slide_id in slide_ids:
    found = connection.execute(
      "SELECT number FROM slides WHERE slide_id = ? AND NOT removed",
      (slide_id,),
    ).fetchone()
    if found is None:
      if is_known:
        _unknown_slide(connection, slide_id)
      continue
    connection.execute("UPDATE slides SET removed = 1 WHERE number = ?", found)


def _unknown_slide(connection: sqlite3.Connection, slide_id: str) -> None:
  known = [
    name
    for (name,) in connection.execute(
      "SELECT slide_id FROM slides WHERE NOT removed"
    )
  ]
  raise ValueError(
    f"slide {slide_id!r} is not in the index{did_you_mean(slide_id, known)}"
  )


def set_facts(
  connection: sqlite3.Connection, slides: Iterable[SlideFacts]
) -> int:
  """Writes what is now known of slides; returns of how many that changed.

  Raises:
    ValueError: there is no such slide.
  """
  changed = 0
  for slide in slides:
    known = connection.execute(
      "SELECT patient_id, cohort, organ, label, path, mpp FROM slides "
      "WHERE slide_id = ? AND NOT removed",
      (slide.slide_id,),
    ).fetchone()
    if known is None:
      _unknown_slide(connection, slide.slide_id)
    now = (
      *(slide.patient_id, slide.cohort, slide.organ, slide.label, slide.path),
      slide.mpp if slide.mpp is not None else known[-1],
    )
    if now != known:
      changed += 1
      connection.execute(
        "UPDATE slides SET patient_id = ?, cohort = ?, organ = ?, label = ?, "
        "path = ?, mpp = ? WHERE slide_id = ? AND NOT removed",
        (*now, slide.slide_id),
      )
  return changed


def draw_background(connection: sqlite3.Connection) -> None:
  """Chooses the rows that distances are compared with, anew.

  Those with the lowest hashes of their number, in each cohort: the same
  whatever the order in which slides come, and mostly the same ones after slides
  were added.
  """
  best: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
  for cohort, first, rows in connection.execute(
    "SELECT cohort, first, rows FROM slides WHERE NOT removed"
  ):
    numbers = np.arange(first, first + rows)
    kept = best.setdefault(cohort, [])
    kept.append(_lowest(numbers, _hash(numbers)))
    if len(kept) > 64:
      best[cohort] = [_lowest(*map(np.concatenate, zip(*kept, strict=True)))]
  connection.execute("DELETE FROM background")
  for cohort, kept in best.items():
    numbers, _ = _lowest(*map(np.concatenate, zip(*kept, strict=True)))
    connection.executemany(
      "INSERT INTO background VALUES (?, ?)",
      [(cohort, int(number)) for number in np.sort(numbers)],
    )


def _lowest(
  numbers: Int[np.ndarray, " n"], hashes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  if len(numbers) <= BACKGROUND:
    return numbers, hashes
  chosen = np.argpartition(hashes, BACKGROUND)[:BACKGROUND]
  return numbers[chosen], hashes[chosen]


def _hash(numbers: Int[np.ndarray, " n"]) -> np.ndarray:
  """SplitMix64 of each number."""
  x = numbers.astype(np.uint64) + np.uint64(_SEED)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
  return x ^ (x >> np.uint64(31))
