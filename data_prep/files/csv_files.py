"""Tables of results as CSV files, the same for every job."""

import csv
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep.files import atomic


def write(
  path: pathlib.Path,
  columns: Sequence[str],
  rows: Iterable[Mapping[str, Any]],
) -> None:
  """Writes a table; it is there whole or not at all.

  Several processes may write the same file at the same time.

  Args:
    path: the file.
    columns: its columns in order.
    rows: one mapping for each line; a column that it lacks is an empty cell.
      Floats are written with six digits, those that are not finite as empty
      cells.

  Raises:
    ValueError: a row has a key that is no column.
    OSError: it cannot be written; the old file is still there.
  """
  with (
    atomic.replacing(path) as draft,
    draft.open("w", newline="", encoding="utf-8") as file,
  ):
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
      writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Any) -> Any:
  if isinstance(value, float):
    return f"{value:.6g}" if math.isfinite(value) else ""
  return value
