"""Tables: one reader for everybody's, one writer for ours."""

import codecs
import csv
import dataclasses
import io
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from data_prep.files import aliases, atomic, values

# NUL, and marks without a width, which come along when cells are copied.
_UNSEEN = re.compile("[\0\u200b-\u200f\u2060\ufeff]")
# slides.csv, of every job; a job leaves empty what it does not know.
SLIDE_COLUMNS = (
  *("slide_id", "patient_id", "label", "split", "filename", "status"),
  *("sequences", "tiles", "bad_tiles", "mpp", "mpp_origin", "target_mpp"),
  *("width_px", "height_px", "tissue_mm2", "seconds", "waiting", "reason"),
)


def say(message: str) -> None:
  """Prints a remark."""
  print(message, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a table."""

  where: str  # `row 7 of cohort.csv`, counted as a spreadsheet does
  # column to text, without blanks around it; '' where nothing is known
  cells: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """A table as somebody wrote it."""

  path: pathlib.Path  # the file
  heading: tuple[str, ...]  # names of the columns
  rows: tuple[Row, ...]  # lines with anything in them
  # (first cell, what is wrong) of lines that are no rows
  bad: tuple[tuple[str, str], ...] = ()
  twins: frozenset[str] = frozenset()  # columns of which there are two
  has_comma: bool = False  # whether numbers may have a decimal comma

  @property
  def is_ours(self) -> bool:
    """Whether it is the slides.csv of a run, not somebody's description."""
    return {"slide_id", "status", "seconds", "reason"} <= set(self.heading)

  def column(self, name: str, key: str) -> str:
    """The column that a user named in the config.

    Raises:
      ValueError: there is none, or there are two.
    """
    found = [c for c in self.heading if c == name]
    plain = aliases.plain(name)
    found = found or [c for c in self.heading if aliases.plain(c) == plain]
    if not found or not plain:
      raise ValueError(
        f"config.{key}: {self.path} has no column {name!r}, only "
        f"{list(self.heading)}"
      )
    return self._alone(found)

  def columns(
    self, keys: Iterable[str], given: Mapping[str, str] | None = None
  ) -> dict[str, str]:
    """Which column holds what.

    Args:
      keys: of `aliases.ALIASES`.
      given: `config.columns`, key to the name of a column, before aliases.

    Returns:
      Key to a name of the heading, '' where there is none.

    Raises:
      ValueError: a given column is not there, or one is there twice.
    """
    found = {}
    for key in keys:
      if name := (given or {}).get(key):
        found[key] = self.column(name, f"columns.{key}")
        continue
      try:
        names = aliases.find(self.heading, key)
      except ValueError as error:
        raise ValueError(f"{self.path}: {error}") from error
      found[key] = self._alone(names) if names else ""
    return found

  def _alone(self, names: Sequence[str]) -> str:
    """One column; several spellings of its name have to say the same."""
    first, *others = (
      name for name in names for _ in range(1 + (name in self.twins))
    )
    for other in others:
      if first == other or any(
        row.cells[first] != row.cells[other] for row in self.rows
      ):
        both = repr(first) if first == other else f"{first!r} and {other!r}"
        raise ValueError(f"{self.path}: there are two columns {both}")
    return first

  def number(self, row: Row, column: str) -> float | None:
    """The number in a cell; None where it says nothing.

    Raises:
      ValueError: it is something else; column, row and cell are named.
    """
    text = row.cells.get(column, "")
    if not text:
      return None
    if self.has_comma and re.fullmatch(r"[+-]?\d+,\d+", text):
      text = text.replace(",", ".")
    return values.need_number(text, f"{row.where}: column {column}")


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How a table is written as text."""

  encoding: str  # 'utf-8-sig', 'cp1252' or one of UTF-16
  delimiter: str  # one character
  skipped: int  # lines above the heading


def dialect(content: bytes) -> Dialect:
  r"""Tells how a table is written from all of it, or from its beginning.

  Example:
    >>> dialect(b"# made by X\nslide;mpp\na;0,25\n")
    Dialect(encoding='utf-8-sig', delimiter=';', skipped=1)
  """
  encoding = "utf-8-sig"
  if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
    encoding = "utf-16"
  elif b"\0" in content[:2]:  # without a mark; headings are plain letters
    encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
  else:
    try:  # the last letter may be cut
      codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
      encoding = "cp1252"
  delimiter, skipped, heading = "", 0, ""
  for line in content.decode(encoding, errors="replace").split("\n"):
    # Excel's own hint, and remarks.
    if line.strip() and not re.fullmatch(r"#[^,;\t|]*|sep=.\s*", line):
      heading = re.sub(r'"[^"]*"', "", line)
      break
    delimiter = line[4:5] if line.startswith("sep=") else delimiter
    skipped += 1
  # The one that the heading has most of, outside quotes.
  delimiter = delimiter or max((",", ";", "\t", "|"), key=heading.count)
  return Dialect(encoding, delimiter, skipped)


def read(
  path: str | os.PathLike,
  keep: Collection[str] = (),
  log: Callable[[str], None] = say,
) -> Table:
  """Reads a table of commas, semicolons, tabs or bars, as people write them.

  Args:
    path: the file: UTF-8, UTF-16, or what Excel calls CSV in the west.
    keep: words that are values though they look like "unknown": class names.
    log: is told which words were taken for "unknown".

  Raises:
    ValueError: no such file, or no table.
  """
  path = pathlib.Path(path).expanduser()
  try:
    content = path.read_bytes()
  except OSError as error:
    raise ValueError(f"cannot read {path}: {error.strerror}") from error
  if content[:4] in (b"PK\3\4", b"PAR1", b"\xd0\xcf\x11\xe0"):
    raise ValueError(f"cannot read {path}: a workbook; save the sheet as CSV")
  form = dialect(content)
  if form.encoding == "cp1252":
    log(f"{path}: not UTF-8, read as Windows-1252")
  text = content.decode(form.encoding, errors="replace")
  for _ in range(form.skipped):
    text = text.partition("\n")[2]
  try:
    # `strict`: an unclosed quote would swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True,
                        delimiter=form.delimiter)  # fmt: skip
    lines = [(n, line) for n, line in enumerate(reader, 1 + form.skipped)]
  except csv.Error as error:
    raise ValueError(f"cannot read {path}: {error}") from error
  lines = [(n, [_text(cell) for cell in line]) for n, line in lines]
  lines = [(n, line) for n, line in lines if any(line)]
  if not lines:
    raise ValueError(f"cannot read {path}: it is empty")
  heading, twins = _heading(lines[0][1])
  rows, bad = [], []
  for number, line in lines[1:]:
    where = f"row {number} of {path.name}"
    if any(line[len(heading) :]):
      more = f"{where} has more cells than the heading: {line[len(heading) :]}"
      bad.append((line[0] or where, more))
      continue
    line = line[: len(heading)] + [""] * (len(heading) - len(line))
    rows.append((where, line))
  return Table(
    path,
    tuple(name for name in heading if name),
    _rows(path, heading, rows, keep, log),
    tuple(bad),
    frozenset(twins),
    form.delimiter != ",",
  )


def describe(
  table: Table,
  found: Mapping[str, str],
  log: Callable[[str], None] = say,
  more: Mapping[str, str] | None = None,
  rest: str = "not read",
) -> None:
  """Says which column was taken for what, and that patients are unknown."""
  used = {**found, **(more or {})}
  taken = [f"{key} is {name!r}" for key, name in used.items() if name]
  left = [repr(n) for n in table.heading if n not in used.values()]
  text = f"{table.path}: {', '.join(taken)}"
  log(text + (f"; {rest}: {', '.join(left)}" if left else ""))
  if not found.get("patient_id", True):
    some = ", ".join(aliases.ALIASES["patient_id"][:3])
    log(f"warning: {table.path} has no column of patients ({some}, ...)")


def _text(cell: str) -> str:
  """A cell without blanks; spreadsheets write ="007" to keep it a text."""
  cell = _UNSEEN.sub("", cell).replace("\N{NO-BREAK SPACE}", " ").strip()
  is_formula = cell[:2] == '="' and cell[-1:] == '"' and len(cell) > 2
  return cell[2:-1].strip() if is_formula else cell


def _heading(line: Sequence[str]) -> tuple[list[str], set[str]]:
  """Names of columns, each once, and which of them there are two of."""
  heading, twins = [], set()
  for name in line:
    if name and name in heading:
      twins.add(name)
      name = ""
    heading.append(name)
  return heading, twins


def _rows(path, heading, rows, keep, log) -> tuple[Row, ...]:
  """Rows with '' where a cell says nothing; says which words those were."""
  columns = []
  for place, name in enumerate(heading):
    texts = [line[place] for _, line in rows]
    known = values.without_unknown(texts, keep)
    words = {a for a, b in zip(texts, known, strict=True) if a and not b}
    if name and words:
      log(f"{path}: {name!r} is unknown where it says {sorted(words)}")
    columns.append(known)
  return tuple(
    Row(where, {n: c[i] for n, c in zip(heading, columns, strict=True) if n})
    for i, (where, _) in enumerate(rows)
  )


def refuse_others(folder: pathlib.Path, key: str) -> None:
  """Keeps a run from writing its slides.csv over a table of the user.

  Args:
    folder: the output folder.
    key: config key of it.

  Raises:
    ValueError: there is a slides.csv that no run wrote.
  """
  path = folder / "slides.csv"
  if path.is_file() and not read(path, log=lambda text: None).is_ours:
    raise ValueError(
      f"config.{key} = {str(folder)!r} holds a slides.csv that no run wrote, "
      "and that would be lost: choose another folder"
    )


def write(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> bool:
  """Writes a table of ours, whole or not at all.

  Args:
    path: the file.
    columns: its columns in order.
    rows: a column that one lacks is an empty cell. Floats have six digits,
      those that are not finite are empty.

  Returns:
    Whether the file changed.

  Raises:
    ValueError: a row has a key that is no column.
    OSError: it cannot be written; the old file is still there.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow({key: _cell(value) for key, value in row.items()})
  return atomic.write_atomic(path, text.getvalue())


def _cell(value: Any) -> Any:
  if isinstance(value, float):
    return f"{value:.6g}" if math.isfinite(value) else ""
  return value


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a table of ours, as they were written; [] without a file."""
  if not path.is_file():
    return []
  with open(path, newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))
