"""What is known of slides: files, patients, cohorts, organs, labels."""

import pathlib
from collections.abc import Iterable, Mapping

from data_prep.files import aliases, names, tables, values
from data_prep.files.errors import SlideError
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import launch
from wsiseq_jax.search.settings import IndexBlock
from wsiseq_jax.search.store import SlideFacts

_MORE = ("cohort", "organ")  # columns of the table, by these names alone


def read(
  block: IndexBlock, slide_ids: Iterable[str]
) -> tuple[dict[str, SlideFacts], list[SlideError]]:
  """Collects what is known of the slides of an index.

  Args:
    block: names the table and the slides' files.
    slide_ids: the slides.

  Returns:
    Facts of every slide, and what is wrong with rows of the table.

  Raises:
    ValueError: the table cannot be read, or lacks a column that was named.
  """
  ids = list(slide_ids)
  errors: list[SlideError] = []
  entries: dict[str, SlideEntry] = {}
  if block.slides:
    found, errors = find.find_slides(block.slides, block.table)
    entries = names.match(ids, {entry.slide_id: entry for entry in found})
  rows: dict[str, dict[str, str]] = {}
  if block.table:
    cells, bad = _table(block)
    errors += bad
    rows = names.match(ids, cells)
  return {i: _facts(i, entries, rows, block) for i in ids}, errors


def _facts(
  slide_id: str,
  entries: Mapping[str, SlideEntry],
  rows: Mapping[str, Mapping[str, str]],
  block: IndexBlock,
) -> SlideFacts:
  entry, row = entries.get(slide_id), rows.get(slide_id, {})
  patient, label = row.get("patient_id", ""), row.get("label", "")
  path, mpp = "", values.number(row.get("mpp", ""))
  if entry is not None:
    path, mpp = str(pathlib.Path(entry.path).resolve()), entry.mpp or mpp
    patient = patient or entry.patient_id
    label = label or entry.label or ""
  return SlideFacts(
    slide_id,
    patient or find.patient_id_of(slide_id),
    row.get("cohort", "") or block.cohort,
    row.get("organ", ""),
    label,
    path,
    mpp,
  )


def _table(
  block: IndexBlock,
) -> tuple[dict[str, dict[str, str]], list[SlideError]]:
  """Cells by slide id; slides whose rows contradict each other are left out."""
  table = tables.read(block.table, log=launch.log)
  columns = table.columns(("slide_id", "file", "patient_id", "mpp"))
  if not (columns["slide_id"] or columns["file"]):
    raise ValueError(
      f"config.index.table: {table.path} has the columns "
      f"{list(table.heading)}, and none names slides"
    )
  if table.is_ours:
    columns["mpp"] = ""  # what was measured is no description
  has_label = any(
    aliases.plain(block.label) == aliases.plain(name) for name in table.heading
  )
  # The default need not be there; a column that somebody named has to be.
  if has_label or block.label != IndexBlock.label:
    columns["label"] = table.column(block.label, "index.label")
  for name in _MORE:
    same = [c for c in table.heading if aliases.plain(c) == aliases.plain(name)]
    columns[name] = same[0] if same else ""
  tables.describe(table, columns, launch.log)
  found: dict[str, dict[str, str]] = {}
  errors = [
    SlideError(text, "find", "bad_row", name) for name, text in table.bad
  ]
  for row in table.rows:
    cells = {key: row.cells.get(name, "") for key, name in columns.items()}
    slide_id = names.stem(cells.pop("slide_id") or cells["file"])
    cells.pop("file")
    if cells.get("label"):
      cells["label"] = values.class_name(cells["label"])
    if slide_id and found.setdefault(slide_id, cells) != cells:
      errors.append(
        SlideError(
          f"{row.where} says something else of this slide than an earlier row",
          "find",
          "contradiction",
          slide_id,
        )
      )
  for error in errors:
    found.pop(error.slide, None)
  return found, errors
