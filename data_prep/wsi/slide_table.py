"""What the rows of a table say of slides."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from data_prep import splits
from data_prep.files import aliases, names, tables, values
from data_prep.files.errors import SlideError
from data_prep.wsi import tissue

_COLUMNS = (
  *("slide_id", "file", "patient_id", "label", "mpp", "split", "mask"),
  "process",
)


@dataclasses.dataclass(frozen=True)
class Note:
  """What a row of a table says of a slide."""

  table: pathlib.Path  # the table
  where: str  # the row, for messages
  name: str  # the slide's id, for messages
  asked: str  # how the row names the file, or else the slide
  has_file: bool  # whether it names the file
  facts: dict[str, Any]  # fields of `SlideEntry` that are known
  problem: str = ""  # why the row cannot be used; '' if it can


def read(
  path: pathlib.Path,
  classes: Collection[str],
  log: Callable[[str], None],
  is_named: bool,
  more: Mapping[str, str] | None = None,
) -> tuple[list[Note], list[SlideError]]:
  """Reads a table of slides, and what is wrong with it.

  Args:
    path: the table.
    classes: names of classes.
    log: is told which column was taken for what.
    is_named: whether the user named it. If not, the slides.csv of a run says
      nothing.
    more: further facts and the columns that they are in, taken as text; a
      `label` here is the label.
  """
  more = dict(more or {})
  try:
    table = tables.read(path, classes, log)
    if table.is_ours and not is_named:
      log(f"{path} was written by a run: it describes no slides")
      return [], []
    found = table.columns(_COLUMNS)
    if not (found["slide_id"] or found["file"]):
      expected = [*aliases.ALIASES["slide_id"], *aliases.ALIASES["file"]]
      raise ValueError(
        f"{path} has the columns {list(table.heading)}: expected one of "
        f"{expected}"
      )
  except ValueError as error:
    return [], [SlideError(str(error), "find", "unreadable_table", str(path))]
  if table.is_ours:  # what was measured is no description
    found |= {"mpp": "", "mask": ""}
  found |= more
  tables.describe(table, found, log, _tissue_columns(table.heading))
  bad = list(table.bad)
  notes = []
  for row in table.rows:
    note = _note(table, found, row, set(more) - {"label"})
    if not note.name:
      bad.append((str(path), f"{row.where} names no slide"))
    elif values.number(row.cells.get(found["process"], "")) != 0:
      notes.append(note)
  return notes, [
    SlideError(text, "find", "bad_row", name) for name, text in bad
  ]


def merged(notes: Sequence[Note]) -> tuple[dict[str, Any], set[str]]:
  """What rows of one slide say together, and in what they differ."""
  facts: dict[str, Any] = {}
  clash = set()
  for key, value in (item for note in notes for item in note.facts.items()):
    first = facts.setdefault(key, value)
    if names.folded(str(value)) != names.folded(str(first)):
      clash.add(key)
  return facts, clash


def by_name(
  notes: Iterable[Note], ids: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[SlideError]]:
  """What rows say of slides that are known by their names alone.

  Args:
    notes: the rows.
    ids: the slides.

  Returns:
    Facts of slides by their ids, and a row for each slide whose rows cannot be
    used or contradict each other: nothing is known of those.
  """
  rows: dict[str, list[Note]] = {}
  for note in notes:
    rows.setdefault(names.folded(note.name), []).append(note)
  found, bad = {}, []
  for slide_id, mine in names.match(ids, rows).items():
    facts, clash = merged(mine)
    wrong = next((note.problem for note in mine if note.problem), "")
    code = "bad_row"
    if clash:
      places = " and ".join(note.where for note in mine)
      wrong = (
        f"{places} contradict each other in {sorted(clash)}: leave one of them"
      )
      code = "contradicting_rows"
    if wrong:
      bad.append(SlideError(wrong, "find", code, slide_id))
    else:
      found[slide_id] = facts
  return found, bad


def _note(
  table: tables.Table,
  found: dict[str, str],
  row: tables.Row,
  more: Iterable[str],
) -> Note:
  """What a row says."""
  cell = {key: row.cells.get(column, "") for key, column in found.items()}
  facts: dict[str, Any] = {key: cell[key] for key in more if cell[key]}
  problem = ""
  if cell["slide_id"]:
    facts["slide_id"] = names.stem(cell["slide_id"])
  if cell["patient_id"]:
    facts["patient_id"] = values.id_of(cell["patient_id"])
  if cell["split"]:
    facts["split"] = splits.name_of(cell["split"]) or cell["split"]
  if cell["label"]:
    facts["label"] = values.class_name(cell["label"])
  if cell["mask"]:
    mask = names.below(table.path.parent, cell["mask"])
    facts["mask_path"] = str(mask or table.path.parent / cell["mask"])
  try:
    mpp = table.number(row, found["mpp"])
    facts |= {} if mpp is None else {"mpp": mpp}
    tissue_facts = _tissue(table, row)
    facts |= {"tissue": tissue_facts} if tissue_facts else {}
  except ValueError as error:
    problem = str(error)
    if row.where not in problem:
      problem = f"{row.where}: {problem}"
  name = names.stem(cell["slide_id"] or cell["file"])
  asked = cell["file"] or cell["slide_id"]
  return Note(
    table.path, row.where, name, asked, bool(cell["file"]), facts, problem
  )


def _tissue_columns(heading: Iterable[str]) -> dict[str, str]:
  """The columns `tissue_<parameter>`, by parameter."""
  plain = {re.sub(r"[\s-]+", "_", name.lower()): name for name in heading}
  return {
    name.removeprefix("tissue_"): column
    for name, column in plain.items()
    if name.startswith("tissue_") and name != "tissue_mm2"
  }


def _tissue(table: tables.Table, row: tables.Row) -> dict[str, str | float]:
  """The parameters of tissue in a row; empty cells say none."""
  found: dict[str, str | float] = {}
  for name, column in _tissue_columns(table.heading).items():
    if not row.cells[column]:
      continue
    if name != "method" and name not in tissue.PARAMETERS:
      raise ValueError(
        f"column {column}: no such tissue parameter; choose "
        f"{['method', *sorted(tissue.PARAMETERS)]}"
      )
    is_name = name in ("method", "mask_values")
    found[name] = row.cells[column] if is_name else table.number(row, column)
  if found.get("method", "guarded") not in tissue.METHODS:
    raise ValueError(
      f"tissue_method={found['method']!r}: choose {sorted(tissue.METHODS)}"
    )
  return found
