"""Cells in tables of anybody: CSV, TSV, Parquet; of one slide or of many.

Columns are found by name (`_X`, `_TYPE`, ...), without case, blanks, `_` and
`-`; a name may say its unit ("Centroid X µm"). A table of many slides is split
into one Parquet file a slide, a block of rows at a time.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data_prep.files import aliases, atomic, names, tables, values
from wsiseq_jax import launch
from wsiseq_jax.spatial import raw_cells
from wsiseq_jax.spatial.raw_cells import MICROMETRE, PIXEL, QUPATH, RawCells

ENDS = (".csv", ".tsv", ".txt", ".parquet")
_ROWS, _BLOCK_BYTES = 500_000, 64 << 20  # of a block
# Names of x; those of y have a y in the place of the x.
_X = (
  *("x", "centroid_x", "x_centroid", "x_coord", "x_coordinate", "center_x"),
  *(
    "centre_x",
    "cell_x_position",
    "x_position",
    "pos_x",
    "x_pos",
    "location_x",
  ),
  *("location_center_x", "nucleus_x", "cell_x", "centroid_x_coord", "cx"),
  *("global_x", "x_global", "x_location", "x_loc"),
)
_UNITS = {"": "", "px": PIXEL, "pixels": PIXEL, "pixel": PIXEL}
_UNITS |= {"um": MICROMETRE, "μm": MICROMETRE, "microns": MICROMETRE}
_UNITS |= {"micron": MICROMETRE, "micrometer": MICROMETRE}
_TYPE = (
  *("type", "cell_type", "celltype", "classification", "class", "class_name"),
  *("phenotype", "cell_class", "cell_phenotype", "label", "predicted_class"),
  "annotation",
)
_SCORE = (
  *("score", "probability", "prob", "detection_probability", "confidence"),
  *("type_prob", "class_probability"),
)
_SLIDE = (
  *aliases.ALIASES["slide_id"],
  *("image", "image_location", "filename", "file", "sample", "sample_id"),
  "core",
)
# HALO: a box for each cell, and a column for each marker.
_BOX = ("xmin", "xmax", "ymin", "ymax")
_MARKER = re.compile(r"(.+) positive classification", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CellColumns:
  """Which column holds what."""

  x: tuple[str, ...]  # their mean is x
  y: tuple[str, ...]
  unit: str  # as the names say it; '' = they do not
  type: str = ""  # '' = none
  score: str = ""
  slide: str = ""
  mpp: str = ""
  # Column of a marker (1 = positive) by its name.
  markers: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def used(self) -> list[str]:
    """The columns that are read."""
    single = (self.type, self.score, self.slide, self.mpp)
    every = (*self.x, *self.y, *filter(None, single), *self.markers.values())
    return list(dict.fromkeys(every))


def layout(
  path: str | os.PathLike, heading: Sequence[str], score: str = ""
) -> CellColumns:
  """Finds the columns of a table by their names.

  Args:
    path: the table, for messages.
    heading: its columns.
    score: the column of the score; '' = one that is named so.

  Raises:
    ValueError: there is no x or no y, or no column `score`.
  """
  if score and score not in heading:
    raise ValueError(
      f"{path} has the columns {list(heading)[:20]}: config.cells.score = "
      f"{score!r} is none of them"
    )
  by_name = {aliases.plain(name): name for name in reversed(heading)}

  def find(known: Sequence[str]) -> str:
    plain = (by_name.get(aliases.plain(name), "") for name in known)
    return next(filter(None, plain), "")

  markers = {}
  if all(name in by_name for name in _BOX):
    left, right, top, bottom = (by_name[name] for name in _BOX)
    x, y, unit = (left, right), (top, bottom), ""
    for name in heading:
      if match := _MARKER.fullmatch(name.strip()):
        markers[match.group(1)] = name
  else:
    found = [
      (by_name[a], by_name[b], unit)
      for unit in ("um", "μm", *_UNITS)
      for name in _X
      if (a := aliases.plain(name) + unit) in by_name
      and (b := aliases.plain(_y_name(name)) + unit) in by_name
    ]
    if not found:
      raise ValueError(
        f"{path} has the columns {list(heading)[:20]}: want x and y of cells, "
        "such as x_um and y_um, x_px and y_px, or Centroid X µm and Centroid "
        "Y µm"
      )
    x, y, unit = found[0]
    x, y = (x,), (y,)
  columns = CellColumns(
    x,
    y,
    _UNITS[unit],
    type="" if markers else find(_TYPE),
    score=score or find(_SCORE),
    slide=find(_SLIDE),
    mpp=next(iter(aliases.find(heading, "mpp")), ""),
    markers=markers,
  )
  plain = [aliases.plain(name) for name in heading]
  if twins := [n for n in columns.used if plain.count(aliases.plain(n)) > 1]:
    raise ValueError(f"{path}: there are two columns {twins[0]!r}")
  return columns


def _y_name(name: str) -> str:
  """The name of y by that of x.

  Example:
    >>> _y_name("cx"), _y_name("cell_x_position")
    ('cy', 'cell_y_position')
  """
  return re.sub(r"(?<![a-wyz])x|x$", "y", name)


def read(path: str | os.PathLike, score: str = "") -> RawCells:
  """Reads a table of the cells of one slide.

  Args:
    path: the table.
    score: as in `layout`.

  Raises:
    ValueError: no table of cells, or rows that contradict each other.
  """
  path = pathlib.Path(path)
  found = layout(path, heading_of(path), score)
  bad: list[int] = []
  whole = blocks(path, found.used, bad)
  parts = [_cells(path, found, block) for block in whole]
  skipped = (_left_out(bad),) if bad else ()
  if not parts:
    return raw_cells.make("table", [], unit=found.unit, skipped=skipped)
  scales = {part.mpp for part in parts} - {None}
  if len(scales) > 1:
    raise ValueError(_mixed(path, scales))
  return RawCells(
    parts[0].kind,
    np.concatenate([part.xy for part in parts]),
    np.concatenate([part.type for part in parts]),
    np.concatenate([part.score for part in parts]),
    found.unit,
    mpp=next(iter(scales), None),
    skipped=skipped,
  )


def _left_out(bad: Sequence[int]) -> str:
  return (
    f"{len(bad)} rows have another number of cells than the heading ({bad[0]})"
  )


def _mixed(path, scales) -> str:
  return (
    f"{path}: its rows have the scales {sorted(scales)} µm/px: one slide has "
    "one"
  )


def heading_of(path: pathlib.Path) -> list[str]:
  """The names of a table's columns.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    if path.suffix.lower() == ".parquet":
      return list(pq.read_schema(path).names)
    with _open_text(path, (), []) as reader:
      return list(reader.schema.names)
  except (OSError, ValueError, pa.ArrowException) as error:
    raise ValueError(f"{path}: not a table of cells: {error}") from error


def _open_text(
  path: pathlib.Path, columns: Sequence[str], bad: list[int]
) -> pa_csv.CSVStreamingReader:
  """Opens a text for its rows, a block at a time; all cells are texts."""

  def left_out(row: pa_csv.InvalidRow) -> str:
    bad.append(row.actual_columns)
    return "skip"

  with open(path, "rb") as file:
    form = tables.dialect(file.read(1 << 16))
  encoding = form.encoding.replace("utf-8-sig", "utf8")
  return pa_csv.open_csv(
    path,
    pa_csv.ReadOptions(
      encoding=encoding, block_size=_BLOCK_BYTES, skip_rows=form.skipped
    ),
    pa_csv.ParseOptions(delimiter=form.delimiter, invalid_row_handler=left_out),
    pa_csv.ConvertOptions(
      include_columns=list(columns),
      column_types=dict.fromkeys(columns, pa.string()),
      strings_can_be_null=False,
    ),
  )


def blocks(
  path: pathlib.Path, columns: Sequence[str], bad: list[int]
) -> Iterator[pd.DataFrame]:
  """The rows of a table, some at a time, of some columns.

  Args:
    path: the table.
    columns: those that are read.
    bad: takes the number of cells of each row that has not as many as the
      heading, and is left out.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    if path.suffix.lower() == ".parquet":
      with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=list(columns)):
          yield batch.to_pandas()
      return
    with _open_text(path, columns, bad) as reader:
      for batch in reader:
        yield batch.to_pandas()
  except (OSError, ValueError, pa.ArrowException) as error:
    raise ValueError(f"{path}: cannot be read: {error}") from error


def _cells(path, found: CellColumns, block: pd.DataFrame) -> RawCells:
  """The cells of some rows; a place that is no number is NaN."""
  axes = [
    np.mean([_numbers(block[name]) for name in columns], axis=0)
    for columns in (found.x, found.y)
  ]
  types, kind = None, "table"
  if found.unit and aliases.plain(found.x[0]).startswith("centroidx"):
    kind = QUPATH
  if found.markers:
    kind, types = "HALO", _markers(found, block)
  elif found.type:
    types = np.array(
      values.without_unknown(_texts(block[found.type]).tolist()), str
    )
  score = _numbers(block[found.score]) if found.score else None
  mpp = None
  if found.mpp:
    scales = np.unique(_numbers(block[found.mpp]))
    scales = scales[np.isfinite(scales)]
    if len(scales) > 1:
      raise ValueError(_mixed(path, scales.tolist()))
    mpp = float(scales[0]) if len(scales) else None
  xy = np.stack(axes, axis=1)
  return raw_cells.make(kind, xy, types, score, unit=found.unit, mpp=mpp)


def _numbers(column: pd.Series) -> np.ndarray:
  """Numbers, also with a decimal comma; what is none is NaN."""
  if not pd.api.types.is_numeric_dtype(column):
    text = column.astype(str).str.strip().str.replace(",", ".", regex=False)
    column = pd.to_numeric(text, errors="coerce")
  return column.to_numpy(np.float64, na_value=np.nan)


def _texts(column: pd.Series) -> np.ndarray:
  text = column.astype(object).where(column.notna(), "")
  return np.asarray([str(v).strip() for v in text.tolist()], str)


def _markers(found: CellColumns, block: pd.DataFrame) -> np.ndarray:
  """The markers that a cell is positive for, joined; 'negative' for none."""
  parts = [
    np.where(_numbers(block[column]) > 0, f"{name}+", "")
    for name, column in found.markers.items()
  ]
  joined = parts[0].astype(object)
  for part in parts[1:]:
    joined = joined + part
  return np.where(joined == "", "negative", joined).astype(str)


def split(
  path: str | os.PathLike, folder: pathlib.Path, score: str = ""
) -> dict[str, pathlib.Path]:
  """Splits a table of many slides into one Parquet file for each.

  Args:
    path: the table.
    folder: where the files are put.
    score: as in `layout`.

  Returns:
    Files by slide id; {} where no column names slides.

  Raises:
    ValueError: no table of cells.
  """
  path = pathlib.Path(path)
  found = layout(path, heading_of(path), score)
  if not found.slide:
    return {}
  folder.mkdir(parents=True, exist_ok=True)
  writers: dict[str, pq.ParquetWriter] = {}
  drafts: dict[str, pathlib.Path] = {}
  bad: list[int] = []
  try:
    for block in blocks(path, found.used, bad):
      owner = _texts(block[found.slide])
      for name in np.unique(owner).tolist():
        rows = block[owner == name].drop(columns=found.slide)
        # Texts throughout: a column may begin with numbers by chance.
        table = pa.table(
          {c: pa.array(_texts(rows[c]).tolist(), pa.string()) for c in rows}
        )
        slide_id = names.stem(name) or "unknown"
        if slide_id not in writers:
          drafts[slide_id] = folder / f"{slide_id}.parquet"
          draft = atomic.temporary_path(drafts[slide_id])
          writers[slide_id] = pq.ParquetWriter(draft, table.schema)
        writers[slide_id].write_table(table)
  finally:
    for writer in writers.values():
      writer.close()
  if bad:
    launch.log(f"{path}: {_left_out(bad)}: left out")
  for target in drafts.values():
    os.replace(atomic.temporary_path(target), target)
  return drafts
