"""Slides of which there are cells and no pictures: whose they are."""

import dataclasses
import pathlib
from collections.abc import Mapping

from data_prep.files import names, tables
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
  rows: dict[str, list[slide_table.Note]] = {}
  for note in notes:
    rows.setdefault(names.folded(note.name), []).append(note)
  for name, mine in names.match(list(found), rows).items():
    known = [
      {k: v for k, v in note.facts.items() if k in _KNOWN} for note in mine
    ]
    wrong = next((note.problem for note in mine if note.problem), "")
    if any(facts != known[0] for facts in known):
      places = " and ".join(note.where for note in mine)
      wrong = f"{places} contradict each other; leave one of the rows"
    if wrong:
      bad.append(SlideError(wrong, "find", "bad_row", name))
      del found[name]
    else:
      found[name] = dataclasses.replace(found[name], **known[0])
  return found, bad
