"""What is known of slides: files, patients, cohorts, organs, labels."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.files import aliases, names, tables, values
from data_prep.files.errors import SlideError
from data_prep.wsi import find, slide_table
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.scale import MPP_RANGE
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
    Facts of every slide that no row is wrong of, and what is wrong.

  Raises:
    ValueError: the table cannot be read, is of no slide, or lacks a column that
      was named.
  """
  ids = list(slide_ids)
  errors: list[SlideError] = []
  entries: dict[str, SlideEntry] = {}
  if block.slides:
    found, errors = find.find_slides(block.slides, block.table)
    entries = names.match(ids, {entry.slide_id: entry for entry in found})
  rows: dict[str, dict[str, Any]] = {}
  refused: set[str] = set()
  if block.table:
    rows, bad = _rows(block, ids)
    refused = set(names.match(ids, {error.slide: 0 for error in bad}))
    said = {(error.slide, error.error) for error in errors}
    errors += [one for one in bad if (one.slide, one.error) not in said]
  about = {i: _facts(i, entries, rows, block) for i in ids if i not in refused}
  if block.slides or block.table:
    patients = {i: facts.patient_id for i, facts in about.items()}
    find.warn_of_patients(patients, launch.log)
  try:
    values.class_names(facts.label for facts in about.values() if facts.label)
  except ValueError as error:
    launch.log(f"warning: {error}")
  return about, errors


def _facts(
  slide_id: str,
  entries: Mapping[str, SlideEntry],
  rows: Mapping[str, Mapping[str, Any]],
  block: IndexBlock,
) -> SlideFacts:
  entry, row = entries.get(slide_id), rows.get(slide_id, {})
  patient, label = row.get("patient_id", ""), row.get("label", "")
  path, mpp = "", row.get("mpp")
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


def _rows(
  block: IndexBlock, ids: list[str]
) -> tuple[dict[str, dict[str, Any]], list[SlideError]]:
  """What the table says of slides, and the slides that it is wrong of."""
  path = pathlib.Path(block.table).expanduser()
  table = tables.read(path, log=lambda text: None)
  more = {}
  has_label = any(
    aliases.plain(block.label) == aliases.plain(name) for name in table.heading
  )
  # The default need not be there; a column that somebody named has to be.
  if has_label or block.label != IndexBlock.label:
    more["label"] = table.column(block.label, "index.label")
  for name in _MORE:
    same = [c for c in table.heading if aliases.plain(c) == aliases.plain(name)]
    more[name] = same[0] if same else ""
  notes, bad = slide_table.read(path, (), launch.log, True, more)
  if bad and not notes:
    raise ValueError(f"config.index.table: {bad[0].message}")
  rows, wrong = slide_table.by_name(notes, ids)
  for slide_id, row in list(rows.items()):
    low, high = MPP_RANGE
    if not low <= row.get("mpp", low) <= high:
      text = f"mpp {row['mpp']:g} of the table: expected {low:g} to {high:g}"
      wrong.append(SlideError(text, "mpp", "mpp_out_of_range", slide_id))
      del rows[slide_id]
  known = len(rows) + len(wrong)
  if ids and not known:
    raise ValueError(
      f"config.index.table: {path} has none of the {len(ids)} slides, such as "
      f"{ids[0]!r}; it has {notes[0].name if notes else ''!r}"
    )
  if known < len(ids):
    missing = len(ids) - known
    launch.log(f"{path} says nothing of {missing} of the {len(ids)} slides")
  return rows, [*bad, *wrong]
