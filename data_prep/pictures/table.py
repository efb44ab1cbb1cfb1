"""A table of pictures: which image, mask and points belong to which labels.

    filename, patient_id, tumour, stroma, mask, points, split
    filename, patient_id, label, mask, points            label: "tumour; stroma"

Labels are a column for each class (1, 0, empty = unknown), or one column of
words. Names of columns are those of `data_prep.files.aliases`. A picture is
called after its file, with the folders below the table's.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from data_prep import splits
from data_prep.files import aliases, names, tables, values
from data_prep.files.errors import NOTE, SlideError
from data_prep.pictures import classes as class_words
from data_prep.pictures.classes import Classes

_COLUMNS = tuple("file patient_id slide_id label mask points split".split())
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A row: one picture and what the table says of it."""

  picture_id: str
  patient_id: str
  slide_id: str
  split: str | None
  image: str  # the file
  mask: str  # the file, which need not be there; '' = none
  points: str  # a file, or the points themselves; '' = none
  labels: tuple[float, ...]  # of each class: 1, 0, NaN = unknown


@dataclasses.dataclass(frozen=True)
class PictureTable:
  """All rows that can be used."""

  pictures: tuple[Labelled, ...]
  classes: Classes
  errors: tuple[SlideError, ...]
  has_patients: bool  # whether a column names them


def read(config: Mapping[str, Any]) -> PictureTable:
  """Reads the table of a run.

  Raises:
    ValueError: it cannot be read, or does not say what labels are.
  """
  items = config["classes"]
  keep = [*config["negatives"], *items]
  keep += [w for item in items for w in item.partition("=")[2].split("|")]
  path = pathlib.Path(config["csv"]).expanduser()
  try:
    table = tables.read(path, keep)
    columns = table.columns(_COLUMNS, config["columns"])
  except ValueError as error:
    raise ValueError(f"config.csv: {error}") from error
  if not columns["file"]:
    raise ValueError(
      f"config.csv: {path} has the columns {list(table.heading)}; one of "
      f"{aliases.ALIASES['file']} must name the images (config.columns.file)"
    )
  root = pathlib.Path(config["images"] or path.parent).expanduser()
  if not root.is_dir():
    raise ValueError(f"config.images = {config['images']!r}: no such folder")
  labels = _label_columns(table, columns, config)
  words = Classes.of(
    items or labels or _found(table, columns["label"], config),
    config["negatives"],
  )
  more = {f"class {name}": name for name in labels}
  tables.describe(table, columns, more=more)
  reader = _Reader(table, columns, labels, words, root)
  found = reader.read()
  errors = [SlideError(w, "table", "bad_row", name) for name, w in table.bad]
  return PictureTable(
    tuple(sorted(found, key=lambda one: one.picture_id)),
    words,
    (*errors, *reader.errors),
    bool(columns["patient_id"]),
  )


def _label_columns(table, columns, config) -> tuple[str, ...]:
  """The columns of the classes, in their order; () for a column of words."""
  wanted = [item.partition("=")[0].strip() for item in config["classes"]]
  by_name = {aliases.plain(name): name for name in table.heading}
  found = [by_name.get(aliases.plain(name), "") for name in wanted]
  if wanted and all(found):
    return tuple(found)
  if columns["label"]:
    return ()
  if wanted:
    missing = [n for n, c in zip(wanted, found, strict=True) if not c]
    raise ValueError(
      f"config.classes: {table.path} has no column {missing}, and no column "
      f"label; there are {list(table.heading)}"
    )
  rest = [name for name in table.heading if name not in columns.values()]
  flags = tuple(name for name in rest if _is_flag(table, name))
  if not flags:
    raise ValueError(
      f"config.csv: {table.path} has neither a column label nor columns of 1 "
      f"and 0 for classes; there are {list(table.heading)} "
      "(config.columns.label, config.classes)"
    )
  return flags


def _is_flag(table: tables.Table, name: str) -> bool:
  cells = {values.class_name(row.cells[name]) for row in table.rows}
  return cells <= {"0", "1", ""} and "1" in cells


def _found(table, column: str, config) -> tuple[str, ...]:
  cells = [row.cells[column] for row in table.rows]
  found = class_words.found_in(cells, config["negatives"])
  if not found:
    raise ValueError(
      f"config.csv: column {column!r} of {table.path} names no class; "
      f"config.negatives are {config['negatives']}"
    )
  return found


class _Reader:
  """Turns rows into pictures; what is wrong with one is an error."""

  def __init__(
    self,
    table: tables.Table,
    columns: Mapping[str, str],
    labels: Sequence[str],
    words: Classes,
    root: pathlib.Path,
  ):
    self.table, self.columns, self.labels = table, columns, labels
    self.words, self.root = words, root
    self.errors: list[SlideError] = []

  def read(self) -> list[Labelled]:
    found: dict[str, Labelled] = {}
    for row in self.table.rows:
      try:
        one = self._picture(row)
        if one.picture_id in found:
          raise SlideError(
            f"{row.where}: an earlier row is of {one.picture_id!r} too; this "
            "one is not used",
            error="duplicate_id",
            slide=one.picture_id,
          )
        found[one.picture_id] = one
      except SlideError as error:
        error.stage = "table"
        error.slide = error.slide or self._cell(row, "file") or row.where
        self.errors.append(error)
    self.errors += self._without_row(found.values())
    good, bad = splits.one_each(
      found.values(), lambda one: one.picture_id, "picture"
    )
    self.errors += bad
    return good

  def _cell(self, row: tables.Row, key: str) -> str:
    return row.cells.get(self.columns[key], "")

  def _picture(self, row: tables.Row) -> Labelled:
    name = self._cell(row, "file")
    if not name:
      raise SlideError(f"{row.where} names no image", error="bad_row")
    picture_id = name_of(name, self.root)
    path = names.below(self.root, name)
    if path is None or not path.is_file():
      raise SlideError(
        f"{row.where}: no image {name} in {self.root}",
        error="missing_file",
        slide=picture_id,
      )
    split = self._cell(row, "split") or None
    if split and (split := splits.name_of(split)) is None:
      raise SlideError(
        f"{row.where}: split is {self._cell(row, 'split')!r}, allowed: "
        f"{splits.NAMES}",
        error="bad_split",
        slide=picture_id,
      )
    try:
      labels = self._labels(row)
    except ValueError as error:
      raise SlideError(
        f"{row.where}: {error}", error="bad_label", slide=picture_id
      ) from error
    if any(label != label for label in labels):
      self.errors.append(
        SlideError(
          f"{row.where}: no label for some class: stored as unknown (NaN)",
          NOTE,
          "missing_label",
          picture_id,
        )
      )
    mask = self._cell(row, "mask")
    points = self._cell(row, "points")
    return Labelled(
      picture_id,
      values.id_of(self._cell(row, "patient_id")) or picture_id,
      self._cell(row, "slide_id") or picture_id,
      split,
      str(path),
      str(names.below(self.root, mask) or self.root / mask) if mask else "",
      self._points(points),
      labels,
    )

  def _points(self, cell: str) -> str:
    if pathlib.PurePath(cell).suffix.lower() not in (".csv", ".tsv", ".txt"):
      return cell
    return str(names.below(self.root, cell) or self.root / cell)

  def _labels(self, row: tables.Row) -> tuple[float, ...]:
    if not self.labels:
      return self.words.labels(self._cell(row, "label"))
    return tuple(class_words.flag(row.cells[name]) for name in self.labels)

  def _without_row(self, found: Iterable[Labelled]) -> Iterator[SlideError]:
    """Images beside those of the table that no row names."""
    found = list(found)
    known = {
      os.path.realpath(p) for one in found for p in (one.image, one.mask)
    }
    named = set(self._named())
    folders = {pathlib.Path(one.image).parent for one in found}
    for folder in sorted(folders):
      for path in sorted(folder.iterdir()):
        is_image = path.suffix.lower() in IMAGES and path.name[0] != "."
        is_known = os.path.realpath(path) in known or path.name in named
        if is_image and not is_known:
          yield SlideError(
            f"{path} is in no row of {self.table.path.name}: an image without "
            "labels is not used",
            "table",
            "no_row",
            name_of(path, self.root),
          )

  def _named(self) -> Iterator[str]:
    """Names of files in rows that have an error of their own."""
    for row in self.table.rows:
      for key in ("file", "mask"):
        yield (names.folders_of(self._cell(row, key)) or [""])[-1]


def name_of(path: str | os.PathLike, root: pathlib.Path) -> str:
  """The id of a picture: its file without ending, folders below the root.

  Example:
    >>> name_of("a/b.01.png", pathlib.Path("/data")), name_of("/x/c.jpg",
    ...   pathlib.Path("/data"))
    ('a/b.01', 'c')
  """
  path = pathlib.Path(os.fspath(path).replace("\\", "/"))
  if path.is_absolute():
    inside = path.is_relative_to(root)
    path = path.relative_to(root) if inside else pathlib.Path(path.name)
  parts = [part for part in path.parts if part not in ("..", ".")]
  return "/".join(parts).removesuffix(path.suffix)
