"""Series and their spans, their times, and what their rows must agree on."""

import ast
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep import splits
from data_prep.files.errors import NOTE, SlideError
from data_prep.files.values import id_of, number
from data_prep.series.table import SeriesRow, SeriesTable

SEQUENCES = ("series", "history")


@dataclasses.dataclass(frozen=True)
class Span:
  """A stretch of a series: the source of one sequence (or of its windows)."""

  name: str  # '' for the whole series; tells the spans of a series apart
  # One stack of frames, or one picture for each visit in order of time.
  files: tuple[str, ...]
  is_stack: bool  # which of the two
  # Of each frame, in the unit of the table; None = the files say.
  times: tuple[float, ...] | None
  fps: float  # frames a second that replace what the file says; 0 = none
  labels: Mapping[str, str]  # column to text


@dataclasses.dataclass(frozen=True)
class Series:
  """One subject, eye or video."""

  series_id: str  # unique in a run
  patient_id: str  # splits never part the series of a patient
  split: str | None  # 'train', 'val', 'test'; None = to be drawn
  spans: tuple[Span, ...]  # what sequences are made of


def kept(span: Span, keep: Sequence[int]) -> Span:
  """Returns a span with some of its visits.

  A history without its own visit is none: its labels belong to that visit.
  """
  if span.is_stack and keep:
    return span  # its times are those of its frames
  if span.name and len(span.files) - 1 not in keep:
    keep = []
  times = span.times
  return dataclasses.replace(
    span,
    files=tuple(span.files[i] for i in keep),
    times=None if times is None else tuple(times[i] for i in keep),
  )


def frame_times(
  span: Span,
  count: int,
  seconds: Sequence[float] | None,
  config: Mapping[str, Any],
) -> tuple[float, ...]:
  """Returns the times of frames, from the first on, in the data set's unit.

  The table comes first (`times`, then `fps`), then `config.fps`, then the file.
  They start at 0: float32 resolves an hour in the year 2024, but seconds since
  1970 to two minutes only.
  """
  unit = config["time_unit"]
  if not count:
    return ()
  if span.times is not None:
    if len(span.times) != count:
      raise SlideError(
        f"{len(span.times)} times for {count} frames", "times", "times_count"
      )
    start = span.times[0]
    return tuple((t - start) / config["time_divisor"] for t in span.times)
  if unit == "frame":
    return tuple(float(i) for i in range(count))
  fps = span.fps or config["fps"]
  if unit == "s" and fps:
    return tuple(i / fps for i in range(count))
  if unit == "s" and seconds is not None:
    if any(b <= a for a, b in itertools.pairwise(seconds)):
      raise SlideError(
        f"{span.files[0]}: two frames have the same time; give fps",
        "times",
        "duplicate_times",
      )
    return tuple(seconds)
  raise SlideError(
    f"nothing gives the times of its frames in the unit {unit!r}: add a column "
    + ("times or fps, or set config.fps" if unit == "s" else "time or times")
    + ", or set config.time_unit='frame'",
    "times",
    "no_times",
  )


class Collector:
  """Collects series and what is wrong with others.

  Attributes:
    series: those that can be used, by id.
    errors: what cannot be used or was changed.
  """

  def __init__(self, table: SeriesTable, config: Mapping[str, Any]):
    self.table, self.config = table, config
    self.series: dict[str, Series] = {}
    self.errors: list[SlideError] = []

  def error(self, series_id: str, error: str, message: str) -> None:
    """Says what of a series cannot be used."""
    self.errors.append(SlideError(message, "table", error, series_id))

  def note(self, series_id: str, error: str, message: str) -> None:
    """Says what of a series was changed, though it is used."""
    self.errors.append(SlideError(message, NOTE, error, series_id))

  def add(
    self, series_id: str, rows: Sequence[SeriesRow], make_spans: Any
  ) -> None:
    """Adds a series, or the reason why not."""
    try:
      patient = self._same(series_id, rows, "patient_id") or series_id
      split = self._split(series_id, rows)
      spans = make_spans(series_id, rows)
    except SlideError as error:
      error.slide = series_id
      self.errors.append(error)
      return
    self.series[series_id] = Series(series_id, patient, split, tuple(spans))

  def _same(self, series_id: str, rows: Sequence[SeriesRow], key: str) -> str:
    """What all rows of a series have in a column; '' without the column."""
    if not self.table.columns[key]:
      return ""
    found = {id_of(self.table.cell(row, key)): row.where for row in rows}
    if len(found) == 1 and "" not in found:
      return next(iter(found))
    column = self.table.columns[key]
    raise SlideError(
      f"series {series_id!r} has in column {column!r}: "
      + ", ".join(f"{value!r} ({where})" for value, where in found.items()),
      "table",
      "no_patient" if set(found) == {""} else "patients_differ",
    )

  def _split(self, series_id: str, rows: Sequence[SeriesRow]) -> str | None:
    found = {}
    for row in rows:
      split = self.table.cell(row, "split") or row.split
      split = split and (splits.name_of(split) or split)
      if split:
        found.setdefault(split, row.where)
    for split, where in found.items():
      if split not in splits.NAMES:
        raise SlideError(
          f"{where}: split is {split!r}, allowed: {splits.NAMES}",
          "split",
          "bad_split",
        )
    if len(found) > 1:
      places = ", ".join(f"{split} ({where})" for split, where in found.items())
      raise SlideError(
        f"series {series_id!r} is in the splits {places}",
        "split",
        "patient_in_two_splits",
      )
    return next(iter(found), None)

  def in_order(
    self, series_id: str, visits: Iterable[tuple[float, Any]]
  ) -> list[tuple[float, Any]]:
    """Sorts visits by time; refuses two at one time and none at all."""
    visits = list(visits)
    if not visits:
      raise SlideError("no visit is left", "table", "empty_series")
    times = [time for time, _ in visits]
    if times != sorted(times):
      self.note(
        series_id,
        "unsorted_times",
        f"visits are not in order of time ({_short(times)}); sorted",
      )
    visits.sort(key=first)
    times.sort()
    twice = sorted(
      {a for a, b in zip(times, times[1:], strict=False) if a == b}
    )
    if twice:
      raise SlideError(
        f"two visits at the time {_short(twice)}: remove one, or give them "
        "their own times",
        "table",
        "duplicate_times",
      )
    return visits

  def labels(self, series_id: str, rows: Sequence[SeriesRow]) -> dict[str, str]:
    """The last value of each label; a note where it changes on the way."""
    labels, changed = {}, []
    for name in self.table.labels:
      values = [row.cells.get(name, "") for row in rows]
      values = [value for value in values if value]
      labels[name] = values[-1] if values else ""
      if len(set(values)) > 1 and self._is_wanted(name):
        changed.append(name)
    if changed:
      self.note(
        series_id,
        "labels_differ",
        f"{', '.join(changed)} differ between visits: the last one counts "
        "(config.sequences='history' keeps all)",
      )
    return labels

  def _is_wanted(self, name: str) -> bool:
    wanted = self.config["targets"]
    return not wanted or any(
      name in (item, item.rsplit(":", 1)[0]) for item in wanted
    )


def first(pair: tuple[float, Any]) -> float:
  """Returns the time of a (time, visit) pair; sorts keep the others' order."""
  return pair[0]


def _short(times: Sequence[float]) -> str:
  text = ", ".join(f"{time:g}" for time in times[:6])
  return text + (", ..." if len(times) > 6 else "")


def time_of(text: str, row: SeriesRow) -> float:
  """Reads a time; what is no finite number is a `SlideError`."""
  value = number(text)
  if value is None:
    raise SlideError(
      f"{row.where}: the time {text!r} is not a number",
      "table",
      "time_not_a_number",
    )
  return value


def literal(text: str, row: SeriesRow) -> list:
  """Reads a Python list, without running anything."""
  # How NumPy 2 and pandas print numbers inside lists; neither is a literal.
  text = re.sub(r"np\.float\d+\(([^()]*)\)", r"\1", text)
  text = re.sub(r",\s*nan\s*([)\]])", r", None\1", text)
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
    raise SlideError(
      f"{row.where}: {text[:60]!r} is no Python list: {error}",
      "table",
      "bad_list",
    ) from error
  if not isinstance(value, (list, tuple)):
    raise SlideError(
      f"{row.where}: {text[:60]!r} is no Python list", "table", "bad_list"
    )
  return list(value)
