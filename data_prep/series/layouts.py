"""From the lines of a table to series: files, times and labels, checked.

Decisions, each with a row in errors.csv where it applies:

- a visit without a file name is a missing visit: it is left out (a note);
- a visit whose time is not a number is left out, the others stay;
- visits out of order are sorted by time (a note);
- two visits at one time: the series is refused, because nobody but its owner
  can say which one counts, and a rate of change between them has no meaning;
- a second row, or history, with the id of an earlier one is left out;
- labels that differ between the visits of a series: the last one counts (a
  note); `config.sequences="history"` keeps them all;
- a patient in two splits: all series of the patient are left out.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import splits
from data_prep.files.errors import SlideError
from data_prep.files.values import number
from data_prep.series import files as series_files
from data_prep.series.spans import (
  Collector,
  Series,
  Span,
  first,
  literal,
  time_of,
)
from data_prep.series.table import SeriesRow, SeriesTable


def find_series(
  table: SeriesTable, config: Mapping[str, Any]
) -> tuple[list[Series], list[SlideError]]:
  """Turns the lines of a table into series."""
  collector = Collector(table, config)
  {"series": _one_row_each, "visits": _one_row_a_visit, "lists": _lists}[
    table.layout
  ](collector)
  good, bad = splits.one_each(
    collector.series.values(), lambda one: one.series_id, "series"
  )
  good.sort(key=lambda series: series.series_id)
  return good, [*table.errors, *collector.errors, *bad]


def _grouped(c: Collector) -> dict[str, list[SeriesRow]]:
  """The rows of each series id; those without one are errors."""
  groups: dict[str, list[SeriesRow]] = {}
  for row in c.table.rows:
    series_id = c.table.cell(row, "series_id")
    if series_id:
      groups.setdefault(series_id, []).append(row)
    else:
      c.error(row.where, "bad_row", f"{row.where} has no series id")
  return groups


# A row is a series.


def _one_row_each(c: Collector) -> None:
  if c.config["sequences"] == "history":
    raise ValueError(
      "config.sequences='history' needs a table with one row a visit, or "
      "with a column Scan_history"
    )
  for series_id, rows in _grouped(c).items():
    for row in rows[1:]:
      c.error(
        series_id,
        "duplicate_id",
        f"{row.where}: an earlier row has the id {series_id!r} too; this one "
        "is not used",
      )
    # All rows, so that one subject in two tables is found out.
    c.add(series_id, rows, lambda s, r: [_file_span(c, s, r[0])])


def _file_span(c: Collector, series_id: str, row: SeriesRow) -> Span:
  files, is_stack = _files(c, series_id, row)
  times, fps = None, 0.0
  cell = c.table.cell(row, "fps")
  if cell:
    fps = number(cell) or 0.0
    if fps <= 0:
      raise SlideError(
        f"{row.where}: fps is {cell!r}, want a positive number",
        "table",
        "bad_fps",
      )
  cell = c.table.cell(row, "times")
  if cell:
    words = re.split(r"[;,\s]+", cell.strip("[]() "))
    times = [time_of(word, row) for word in words]
    if not is_stack and len(times) == len(files):
      pairs = c.in_order(series_id, zip(times, files, strict=True))
      times, files = zip(*pairs, strict=True)
    elif times != sorted(set(times)):
      raise SlideError(
        f"{row.where}: times do not increase", "table", "unsorted_times"
      )
  labels = c.labels(series_id, [row])
  given = None if times is None else tuple(times)
  return Span("", tuple(files), is_stack, given, fps, labels)


def _files(
  c: Collector, series_id: str, row: SeriesRow
) -> tuple[list[str], bool]:
  """The files of a row, and whether they are one stack of frames."""
  cell, root = c.table.cell(row, "file"), c.table.root
  if not cell:
    names = ["", *series_files.EXTENSIONS]
    found = [root / (series_id + end) for end in names]
    found = [path for path in found if path.exists()]
    if not found:
      raise SlideError(
        f"{row.where}: no file {series_id}.* and no folder {series_id} in "
        f"{root}",
        "find",
        "missing_file",
      )
    path = found[0]
  elif ";" in cell or cell.startswith("["):
    words = literal(cell, row) if cell.startswith("[") else cell.split(";")
    names = [str(word).strip() for word in words if str(word).strip()]
    if not names:
      raise SlideError(f"{row.where} names no file", "table", "empty_series")
    return [str(c.table.path(name)) for name in names], False
  else:
    path = c.table.path(cell)
  if not path.is_dir():
    return [str(path)], True
  inside = [
    item
    for item in path.iterdir()
    if item.suffix.lower() in (*series_files.PICTURES, *series_files.ARRAYS)
    and item.name[0] != "."
  ]
  if not inside:
    raise SlideError(
      f"{row.where}: no picture in the folder {path}", "find", "empty_series"
    )
  inside.sort(key=lambda item: _natural(item.name))
  missing = _gaps([item.name for item in inside])
  if missing and not c.table.cell(row, "times"):
    c.note(
      series_id,
      "missing_frames",
      f"the numbers of the pictures in {path} leave {missing} out, and frames "
      "are counted without them: give the column times if they are lost",
    )
  return [str(item) for item in inside], False


# A row is a visit.


def _one_row_a_visit(c: Collector) -> None:
  for series_id, rows in _grouped(c).items():
    c.add(series_id, rows, lambda s, r: _visit_spans(c, s, r))


def _visit_spans(
  c: Collector, series_id: str, rows: Sequence[SeriesRow]
) -> list[Span]:
  visits, undated = [], []
  for row in rows:
    name = c.table.cell(row, "file")
    try:
      time = time_of(c.table.cell(row, "time"), row)
    except SlideError as error:
      undated.append(row)
      c.error(series_id, error.error, f"{error.message}; left out")
      continue
    if not name:
      text = f"{row.where}: no file, a missing visit; left out"
      c.note(series_id, "missing_visit", text)
    visits.append((time, (name, row)))
  rows = [*undated, *(row for _, (_, row) in sorted(visits, key=first))]
  visits = [v for v in visits if v[1][0]]
  visits = c.in_order(series_id, visits)
  files = [str(c.table.path(name)) for _, (name, _) in visits]
  times = [time for time, _ in visits]
  if c.config["sequences"] == "series":
    labels = c.labels(series_id, rows)
    return [Span("", tuple(files), False, tuple(times), 0.0, labels)]
  return [
    Span(
      f"n{n}",
      tuple(files[:n]),
      False,
      tuple(times[:n]),
      0.0,
      c.labels(series_id, [row]),
    )
    for n, (_, (_, row)) in enumerate(visits, 1)
  ]


# A row holds lists of visits.


def _lists(c: Collector) -> None:
  history = c.config["sequences"] == "history"
  if history and not c.table.columns["history"]:
    raise ValueError(
      "config.sequences='history' needs a column Scan_history; the table "
      "has Video alone"
    )
  key = "history" if history or not c.table.columns["video"] else "video"
  groups: dict[str, list[tuple[SeriesRow, list]]] = {}
  for row in c.table.rows:
    try:
      visits = _list(c, row, key)
      other = visits
      if c.table.columns["video"] and key == "history":
        # Histories of one eye share the eye's whole list, if not the first.
        other = _list(c, row, "video") or visits
      series_id = c.table.cell(row, "series_id")
      if not series_id and not other:
        raise SlideError(f"{row.where} lists no visit", "table", "empty_series")
      series_id = series_id or _id_of(other[0][0])
    except SlideError as error:
      error.slide = c.table.cell(row, "series_id") or row.where
      c.errors.append(error)
      continue
    groups.setdefault(series_id, []).append((row, visits))
  make = _history_spans if history else _longest_span
  for series_id, pairs in groups.items():
    rows = [row for row, _ in pairs]
    c.add(series_id, rows, lambda s, _, pairs=pairs: make(c, s, pairs))


def _list(c: Collector, row: SeriesRow, key: str) -> list[tuple[str, Any]]:
  """Reads a cell that holds a Python list of (path, year)."""
  cell = c.table.cell(row, key)
  if not cell:
    return []
  items = literal(cell, row)
  for item in items:
    if not (
      isinstance(item, (tuple, list))
      and len(item) == 2
      and isinstance(item[0], str)
    ):
      raise SlideError(
        f"{row.where}: {c.table.columns[key]} holds {item!r}, want "
        "(path, year)",
        "table",
        "bad_list",
      )
  return [tuple(item) for item in items]


def _history_spans(
  c: Collector, series_id: str, pairs: Sequence[tuple[SeriesRow, list]]
) -> list[Span]:
  spans: dict[str, Span] = {}
  for row, visits in pairs:
    try:
      span = _list_span(c, series_id, row, visits, [row])
    except SlideError as error:
      c.error(series_id, error.error, f"{row.where}: {error.message}")
      continue
    span = dataclasses.replace(span, name=f"n{len(span.files)}")
    if span.name in spans:
      c.error(
        series_id,
        "duplicate_id",
        f"{row.where}: an earlier row has a history of {len(span.files)} "
        f"visits of {series_id!r} too; this one is not used",
      )
      continue
    spans[span.name] = span
  if not spans:
    raise SlideError("no history is left", "table", "empty_series")
  return sorted(spans.values(), key=lambda span: len(span.files))


def _longest_span(
  c: Collector, series_id: str, pairs: Sequence[tuple[SeriesRow, list]]
) -> list[Span]:
  row, visits = max(pairs, key=lambda pair: len(pair[1]))
  # The row with the longest history is the latest visit.
  by_length = [row for row, _ in pairs]
  if c.table.columns["history"]:
    by_length.sort(key=lambda r: len(_list(c, r, "history")))
  return [_list_span(c, series_id, row, visits, by_length)]


def _list_span(
  c: Collector,
  series_id: str,
  row: SeriesRow,
  visits: Sequence[tuple[str, Any]],
  labelled: Sequence[SeriesRow],
) -> Span:
  timed = []
  for path, text in visits:
    try:
      timed.append((time_of(str(text), row), path))
    except SlideError as error:
      c.error(series_id, error.error, f"{error.message}; left out")
  timed = c.in_order(series_id, timed)
  files = tuple(str(c.table.path(path)) for _, path in timed)
  times = tuple(time for time, _ in timed)
  labels = c.labels(series_id, labelled)
  return Span("", files, False, times, 0.0, labels)


def _id_of(path: str) -> str:
  """Names a series by its first scan.

  Example:
    >>> _id_of("left/p7/scan_0.png")
    'left_p7_scan_0'
  """
  return "_".join(pathlib.PurePosixPath(path).with_suffix("").parts)


def _gaps(names: Sequence[str]) -> str:
  """Which numbers are missing where names differ in one alone; '' for none.

  Example:
    >>> _gaps(["f1.png", "f2.png", "f4.png"]), _gaps(["f10.png", "f20.png"])
    ('3', '')
  """
  parts = [re.split(r"(\d+)", name) for name in names]
  if len({len(part) for part in parts}) > 1:
    return ""
  columns = [set(column) for column in zip(*parts, strict=True)]
  varying = [i for i, column in enumerate(columns) if len(column) > 1]
  if len(varying) != 1 or varying[0] % 2 == 0:
    return ""
  numbers = sorted({int(part[varying[0]]) for part in parts})
  if len(numbers) < 2:
    return ""
  step = min(b - a for a, b in itertools.pairwise(numbers))
  known = set(numbers)
  expected = range(numbers[0], numbers[-1] + 1, step)
  missing = len(expected) - sum(n in expected for n in numbers)
  some = itertools.islice((n for n in expected if n not in known), 5)
  more = f" and {missing - 5} more" if missing > 5 else ""
  return ", ".join(map(str, some)) + more


def _natural(name: str) -> list[tuple[int, int, str]]:
  """Sorts scan_10 after scan_9.

  Example:
    >>> sorted(["s10.png", "s9.png"], key=_natural)
    ['s9.png', 's10.png']
  """
  parts = re.split(r"(\d+)", name)
  return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]
