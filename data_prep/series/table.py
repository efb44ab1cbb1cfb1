"""Tables of series: which files, times and labels make up each sequence.

A table is a CSV with a heading. Three layouts are understood, told apart by
their columns (or by `config.layout`):

- `series`: a row is a series. `file` names an array, a video, a multi-frame
  DICOM, a folder of pictures (in natural order), or several pictures with `;`
  between; without it, `<images>/<id>.npy`, `.mp4`, ... or the folder
  `<images>/<id>` is taken. `times` (numbers with `;` between) or `fps` give
  times where the files do not.
- `visits`: a row is one picture of a series, with `file` and `time`.
- `lists`: `Scan_history` and `Video` hold Python lists of (path, decimal year);
  `Scan_history` ends at the row's visit, `Video` is the whole series.

`config.sequences` says what a sequence is: the whole `series`, or a `history`:
everything up to a visit, one for each visit, with the labels of that visit.

Names of columns are those of `data_prep.files.aliases`; `config.columns`
overrides them. Every column left over is a label, unless `config.targets` says
which are. Several tables are read as one; called `train*.csv`, `val*.csv` and
`test*.csv` they give the splits, as does a column `split`.

What is wrong in a row becomes a `SlideError` of stage `table`; a remark on
something that is kept has stage `note`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import splits
from data_prep.files import aliases, names, tables
from data_prep.files.errors import SlideError

LAYOUTS = ("auto", "series", "visits", "lists")
_COLUMNS = (
  *("series_id", "patient_id", "file", "time", "times", "fps", "split"),
  *("history", "video"),
)
# Columns that say what a row is; never labels, even where another one is used.
_NAMES = {
  aliases.plain(name)
  for key in ("series_id", "patient_id", "file")
  for name in aliases.ALIASES[key]
}
_SPLIT_FILE = re.compile(r"(train|val|test)(_.*)?$")


@dataclasses.dataclass(frozen=True)
class SeriesRow(tables.Row):
  """One line of a table, and the split by the table's name, if that has one."""

  split: str | None = None


@dataclasses.dataclass(frozen=True)
class SeriesTable:
  """All lines, and which column means what."""

  rows: tuple[SeriesRow, ...]  # the lines of all tables
  layout: str  # 'series', 'visits' or 'lists'
  # Our name to the heading's, '' where there is none.
  columns: Mapping[str, str]
  labels: tuple[str, ...]  # columns that may be labels
  root: pathlib.Path  # where relative file names start
  errors: tuple[SlideError, ...]  # lines that cannot be read

  def cell(self, row: SeriesRow, key: str) -> str:
    """Returns what a row has in one of our columns, '' if there is none."""
    return row.cells.get(self.columns[key], "")

  def path(self, name: str) -> pathlib.Path:
    """The file that a row means, which need not be there."""
    return names.below(self.root, name) or self.root / name


def table_paths(spec: str) -> list[pathlib.Path]:
  """Returns the tables a user named."""
  whole = pathlib.Path(spec).expanduser()
  if spec and whole.is_dir():
    found = [whole / f"{name}.csv" for name in splits.NAMES]
    found = [path for path in found if path.is_file()]
    if not found:
      raise ValueError(
        f"config.csv={spec!r} is a folder without train.csv, val.csv, test.csv"
      )
    return found
  # A comma may belong to a name; what exists as it stands is one name.
  parts = [spec] if whole.is_file() else spec.split(",")
  paths = [pathlib.Path(p.strip()).expanduser() for p in parts if p.strip()]
  if not paths:
    raise ValueError(f"config.csv={spec!r}: name a CSV file")
  for path in paths:
    if not path.is_file():
      raise ValueError(f"config.csv={spec!r}: no such file {path}")
  return paths


def read(config: Mapping[str, Any]) -> SeriesTable:
  """Reads the tables of a run."""
  paths = table_paths(config["csv"])
  # Names of classes are no words for "unknown".
  kinds = [item.rpartition(":class=")[2] for item in config["targets"]]
  keep = [name for kind in kinds for name in kind.split("|")]
  rows, errors = [], []
  columns = dict.fromkeys(_COLUMNS, "")
  first: dict[str, str] = {}  # a column is called as in the first table
  for path in paths:
    match = _SPLIT_FILE.match(path.stem) if len(paths) > 1 else None
    split = match.group(1) if match else None
    try:
      one = tables.read(path, keep)
      found = one.columns(_COLUMNS, config["columns"])
    except ValueError as error:
      raise ValueError(f"config.csv: {error}") from error
    called = {n: first.setdefault(aliases.plain(n), n) for n in one.heading}
    for key, name in found.items():
      columns[key] = columns[key] or name
      called |= {name: columns[key]} if name else {}
    tables.describe(one, found, rest="labels")
    errors += [SlideError(w, "table", "bad_row", name) for name, w in one.bad]
    for row in one.rows:
      cells = {called[name]: text for name, text in row.cells.items()}
      rows.append(SeriesRow(row.where, cells, split))
  headings = list(dict.fromkeys(first.values()))
  layout = config["layout"]
  if layout == "auto":
    layout = "series"
    if columns["history"] or columns["video"]:
      layout = "lists"
    elif columns["file"] and columns["time"]:
      layout = "visits"
  _check_layout(layout, columns, headings)
  root = pathlib.Path(config["images"] or paths[0].parent).expanduser()
  if not root.is_dir():
    raise ValueError(f"config.images={config['images']!r}: no such folder")
  labels = [
    name
    for name in headings
    if name not in columns.values() and aliases.plain(name) not in _NAMES
  ]
  return SeriesTable(
    tuple(rows), layout, columns, tuple(labels), root, tuple(errors)
  )


def _check_layout(
  layout: str, columns: dict[str, str], heading: Sequence[str]
) -> None:
  need = {
    "series": ("series_id",),
    "visits": ("series_id", "file", "time"),
    "lists": (),
  }[layout]
  for key in need:
    if not columns[key]:
      raise ValueError(
        f"config.csv: the layout {layout!r} needs a column {key!r} (or one of "
        f"{aliases.ALIASES[key]}, or config.columns.{key}); there are "
        f"{list(heading)}"
      )
  if layout == "lists" and not (columns["history"] or columns["video"]):
    raise ValueError(
      "config.csv: the layout 'lists' needs a column Scan_history or Video; "
      f"there are {list(heading)}"
    )
  # What a layout does not use stays free to be a label.
  unused = {
    "series": ("time", "history", "video"),
    "visits": ("times", "fps", "history", "video"),
    "lists": ("file", "time", "times", "fps"),
  }[layout]
  for key in unused:
    columns[key] = ""
