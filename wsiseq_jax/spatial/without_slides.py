"""Slides of which there are cells and no pictures: whose they are."""

import dataclasses
import pathlib
from collections.abc import Mapping

from data_prep.files import tables
from data_prep.files.errors import SlideError
from data_prep.wsi import find, slide_table
from data_prep.wsi.find import SlideEntry

# What a table may say of slides without files.
_KNOWN = ("patient_id", "label", "split")


def entries(
  table: str, cells: Mapping[str, pathlib.Path]
) -> tuple[dict[str, SlideEntry], list[SlideError]]:
  """Slides by their cells alone, and what a table says of them.

  Args:
    table: the table; '' has none.
    cells: files of cells by slide.

  Returns:
    Slides by id, and a row for each thing of the table that cannot be used:
    slides whose rows contradict each other are left out.

  Raises:
    ValueError: the table cannot be read.
  """
  found = {
    name: SlideEntry(name, str(path), find.patient_id_of(name))
    for name, path in cells.items()
  }
  if not table:
    return found, []
  path = pathlib.Path(table).expanduser()
  notes, bad = slide_table.read(path, (), tables.say, is_named=True)
  if bad and not notes:
    raise ValueError(f"config.data.table: {bad[0].message}")
  known, wrong = slide_table.by_name(notes, list(found))
  for error in wrong:
    del found[error.slide]
  for name, facts in known.items():
    facts = {k: v for k, v in facts.items() if k in _KNOWN}
    found[name] = dataclasses.replace(found[name], **facts)
  return found, [*bad, *wrong]
