"""Which slides a run works on: files, folders, globs, or a table.

`find_slides` turns what the user named into a list of `SlideEntry` and a list
of `SlideError` for what cannot be used; nothing named is lost in between.

Tables. A CSV with a heading, our own columns being `slide_id, filename,
case_id, label, mpp`, plus `split`, `mask` and `tissue_<parameter>` (see
`data_prep.wsi.tissue`). The names used by CLAM (`case_id, slide_id, label`,
`process`), TRIDENT (`wsi, mpp`), STAMP (`PATIENT, FILENAME`) and slideflow
(`patient, slide`) are understood (`ALIASES`). File names are relative to the
table; without a file name the slide is looked for next to the table by its id.

Folders are searched with everything below them. A `slides.csv` in a slide's
folder, or in the folder above it, gives case, label, mpp and so on, also to
slides named by file or glob: splits by patient must not depend on how slides
were named. What was named decides which slides are used, so slides that the
table does not list are not lost; a file which the table says is in a named
folder and is not becomes an error.

Slide id: the file name without extension. Patient: the table's case, a TCGA
barcode's first 12 characters, a DICOM file's PatientID, else the slide id.

DICOM is one file per pyramid level, so instances are grouped by
SeriesInstanceUID, and the one with the largest picture stands for the slide.
"""

import csv
import dataclasses
import glob
import math
import os
import pathlib
import re
from collections.abc import Iterable

from data_prep.files.errors import SlideError
from data_prep.wsi import dicom_series, tissue

TIFF_EXTENSIONS = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif")
DICOM_EXTENSIONS = (".dcm", ".dicom")
# `.dat` lies beside `.mrxs` by the dozen and is never a slide.
SLIDE_EXTENSIONS = (
  *TIFF_EXTENSIONS,
  *DICOM_EXTENSIONS,
  ".mrxs",
  ".svslide",
  ".vms",
  ".vmu",
  ".czi",
)
ALIASES = {
  "slide_id": ("slide_id", "slide", "image_id"),
  "filename": (
    "filename",
    "wsi",
    "file",
    "path",
    "slide_path",
    "image_filename",
    "image",
  ),
  "patient_id": ("case_id", "patient_id", "patient", "case"),
  "label": ("label",),
  "mpp": ("mpp",),
  "split": ("split",),
  "mask": ("mask", "mask_path"),
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TCGA = re.compile(r"TCGA-\w{2}-\w{4}(?=-|$)")


@dataclasses.dataclass(frozen=True)
class SlideEntry:
  """One slide to work on.

  Attributes:
    slide_id: unique in a run.
    path: the file.
    patient_id: splits never part the slides of a patient.
    label: class name; None = unknown.
    mpp: um/px that replaces what the file says.
    tissue: parameters of `tissue.tissue_mask` for this slide alone.
    mask_path: tissue mask to use instead of computing one.
    split: 'train', 'val', 'test'; None = to be drawn.
  """

  slide_id: str
  path: str
  patient_id: str
  label: str | None = None
  mpp: float | None = None
  tissue: dict[str, str | float] = dataclasses.field(default_factory=dict)
  mask_path: str | None = None
  split: str | None = None


def slide_id_of(path: str | os.PathLike) -> str:
  """Returns the file name without its extension.

  Args:
    path: a file name.

  Returns:
    The slide id.

  Example:
    >>> slide_id_of('a/b/S-1.2.ome.tif'), slide_id_of('x.svs')
    ('S-1.2', 'x')
  """
  name = pathlib.Path(path).stem
  return name[:-4] if name.lower().endswith(".ome") else name


def patient_id_of(slide_id: str) -> str:
  """Returns the patient a slide id tells of: TCGA's, else the slide itself.

  Args:
    slide_id: the slide.

  Returns:
    The patient id.

  Example:
    >>> patient_id_of('TCGA-A1-A0SB-01Z-00-DX1.ABC'), patient_id_of('S7')
    ('TCGA-A1-A0SB', 'S7')
  """
  match = _TCGA.match(slide_id)
  return match.group() if match else slide_id


def find_slides(
  spec: str | os.PathLike | Iterable[str | os.PathLike],
  table: str | os.PathLike = "",
) -> tuple[list[SlideEntry], list[SlideError]]:
  """Finds the slides a user named.

  Args:
    spec: a file, folder, glob, or CSV, or several of them in a list (or in one
      string, with commas between).
    table: a CSV that describes slides named in `spec` (case, label, mpp, ...);
      it selects nothing.

  Returns:
    The slides, sorted by id, and what cannot be used, each with its reason.

  Raises:
    ValueError: `spec` names nothing, or `table` is no table.
  """
  finder = _Finder()
  if isinstance(spec, (str, os.PathLike)):
    whole = str(spec)
    # A comma may belong to a name; what exists as it stands is one name.
    parts = [whole] if os.path.exists(whole) else whole.split(",")
  else:
    parts = [str(part) for part in spec]
  parts = [part.strip() for part in parts if part.strip()]
  if not parts:
    raise ValueError(f"slides={spec!r}: name files, a folder, a glob, or a CSV")
  if table:
    if not os.path.isfile(table):
      raise ValueError(f"table={str(table)!r}: no such file")
    finder.describe(pathlib.Path(table))
  for part in parts:
    finder.add(part)
  return finder.finish()


class _Finder:
  """Collects files and what tables say of them; see `find_slides`."""

  def __init__(self):
    self.files: dict[str, pathlib.Path] = {}  # real path -> path as named
    self.rows: dict[str, dict] = {}  # real path, or id -> row of a table
    self.errors: list[SlideError] = []
    self.described: set[pathlib.Path] = set()  # tables that were found

  def error(self, slide, error: str, message: str) -> None:
    self.errors.append(
      SlideError(message, stage="find", error=error, slide=str(slide))
    )

  # What the user named.

  def add(self, part: str) -> None:
    path = pathlib.Path(part).expanduser()
    if path.is_dir():
      self.add_folder(path)
    elif path.suffix.lower() == ".csv":
      if path.is_file():
        self.select(path)
      else:
        self.error(part, "missing_file", f"no such table: {part}")
    elif path.is_file():
      self.add_file(path)
      self.describe_near(path.parent)
    elif glob.has_magic(part):
      found = sorted(glob.glob(str(path), recursive=True))
      if not found:
        self.error(part, "no_match", f"no file matches {part}")
      for name in found:
        if os.path.isdir(name):
          self.add_folder(pathlib.Path(name))
        elif name.lower().endswith(SLIDE_EXTENSIONS):
          self.add_file(pathlib.Path(name))
          self.describe_near(pathlib.Path(name).parent)
    else:
      self.error(part, "missing_file", f"no such file or folder: {part}")

  def add_file(self, path: pathlib.Path) -> None:
    self.files.setdefault(os.path.realpath(path), path)

  def add_folder(self, folder: pathlib.Path) -> None:
    def unreadable(error: OSError) -> None:
      self.error(
        error.filename or folder,
        "unreadable_folder",
        f"cannot read the folder {error.filename}: {error.strerror}",
      )

    before = len(self.files) + len(self.errors)
    for place, folders, names in os.walk(folder, onerror=unreadable):
      folders[:] = sorted(name for name in folders if name[0] != ".")
      found = [
        name
        for name in sorted(names)
        if name.lower().endswith(SLIDE_EXTENSIONS) and name[0] != "."
      ]
      for name in found:
        self.add_file(pathlib.Path(place, name))
      if found or place == str(folder):
        self.describe_near(pathlib.Path(place), folder)
    if len(self.files) + len(self.errors) == before:
      self.error(folder, "no_slides", f"no slide in the folder {folder}")

  # What tables say.

  def select(self, table: pathlib.Path) -> None:
    """Takes every slide of a table, and what it says of them."""
    for number, row in self.read_table(table):
      path = self.locate(table, row)
      name = row["slide_id"] or row["filename"]
      if path is None:
        where = row["filename"] or f"{row['slide_id']}.*"
        self.error(
          name,
          "missing_file",
          f"row {number} of {table}: no file {where} in {table.parent}",
        )
        continue
      self.add_file(path)
      self.note(path, row)

  def describe_near(
    self, place: pathlib.Path, folder: pathlib.Path | None = None
  ) -> None:
    """Takes what a `slides.csv` in a folder or above it says."""
    place = place.absolute()
    for table in (place / "slides.csv", place.parent / "slides.csv"):
      if table.is_file() and table not in self.described:
        self.described.add(table)
        self.describe(table, folder)

  def describe(
    self, table: pathlib.Path, folder: pathlib.Path | None = None
  ) -> None:
    """Takes what a table says of slides; those of `folder` have to exist."""
    for number, row in self.read_table(table):
      path = self.locate(table, row)
      if path is not None:
        self.note(path, row)
        continue
      self.rows.setdefault(row["slide_id"], row)
      path = (table.parent / row["filename"]).absolute()
      if row["filename"] and folder and path.is_relative_to(folder.absolute()):
        self.error(
          row["slide_id"] or row["filename"],
          "missing_file",
          f"row {number} of {table}: no such file {path}",
        )

  def note(self, path: pathlib.Path, row: dict) -> None:
    self.rows.setdefault(os.path.realpath(path), row)

  def read_table(self, table: pathlib.Path) -> list[tuple[int, dict]]:
    """Reads a table under our names; rows that cannot be read are errors."""
    try:
      with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        heading = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = heading
        lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
      self.error(table, "unreadable_table", f"cannot read {table}: {error}")
      return []
    found = {}
    for ours, names in ALIASES.items():
      for name in names:
        hits = [column for column in heading if column.lower() == name]
        if hits:
          found[ours] = hits[0]
          break
    if "slide_id" not in found and "filename" not in found:
      self.error(
        table,
        "unreadable_table",
        f"{table} has the columns {heading}: expected one of "
        f"{[*ALIASES['slide_id'], *ALIASES['filename']]}",
      )
      return []
    rows = []
    for number, line in enumerate(lines, 2):
      row = {
        key: (line.get(found.get(key, "")) or "").strip() for key in ALIASES
      }
      row["table"], row["number"] = table, number
      try:
        skipped = float(line.get("process") or 1) == 0  # CLAM's process lists
        row["mpp"] = float(row["mpp"]) if row["mpp"] else None
        row["tissue"] = _tissue_columns(line)
        if row["mpp"] is not None and not math.isfinite(row["mpp"]):
          row["mpp"] = None  # pandas writes an empty cell as nan
      except ValueError as error:
        self.error(
          row["slide_id"] or row["filename"],
          "bad_row",
          f"row {number} of {table}: {error}",
        )
        continue
      if not (row["slide_id"] or row["filename"]):
        self.error(table, "bad_row", f"row {number} of {table} names no slide")
      elif not skipped:
        rows.append((number, row))
    return rows

  def locate(self, table: pathlib.Path, row: dict) -> pathlib.Path | None:
    """Returns the file of a row, None where there is none."""
    if row["filename"]:
      path = table.parent / pathlib.Path(row["filename"]).expanduser()
      return path if path.is_file() else None
    # CLAM's tables give the id alone, with or without the extension.
    for suffix in ("", *SLIDE_EXTENSIONS, ".ome.tif", ".ome.tiff"):
      path = table.parent / (row["slide_id"] + suffix)
      if path.is_file():
        return path
    return None

  # From files to slides.

  def finish(self) -> tuple[list[SlideEntry], list[SlideError]]:
    plain, dicom = [], []
    for path in self.files.values():
      is_dicom = path.suffix.lower() in DICOM_EXTENSIONS
      (dicom if is_dicom else plain).append(path)
    entries = {}
    candidates = [(path, slide_id_of(path), "", [path]) for path in plain]
    series, errors = dicom_series.group(dicom)
    self.errors += errors
    candidates += [
      (one.path, one.slide_id, one.patient_id, one.members) for one in series
    ]
    for path, slide_id, patient, members in candidates:
      reason = _not_a_slide(path)
      if reason:
        self.error(slide_id, *reason)
        continue
      row = self.row_of(slide_id, members)
      slide_id = _row_id(row) or slide_id
      if slide_id in entries:
        self.error(
          slide_id,
          "duplicate_id",
          f"two slides have the id {slide_id}: {entries[slide_id].path} is "
          f"used, {path} is not; give ids in a CSV",
        )
        continue
      entries[slide_id] = self.entry(slide_id, path, patient, row)
    slides = sorted(entries.values(), key=lambda entry: entry.slide_id)
    return slides, self.errors

  def row_of(self, slide_id: str, members: list[pathlib.Path]) -> dict:
    for path in members:
      row = self.rows.get(os.path.realpath(path))
      if row:
        return row
    return self.rows.get(slide_id, {})

  def entry(
    self, slide_id: str, path: pathlib.Path, patient: str, row: dict
  ) -> SlideEntry:
    mask = row.get("mask") or None
    if mask:
      mask = str(row["table"].parent / pathlib.Path(mask).expanduser())
    return SlideEntry(
      slide_id=slide_id,
      path=str(path),
      patient_id=row.get("patient_id") or patient or patient_id_of(slide_id),
      label=row.get("label") or None,
      mpp=row.get("mpp"),
      tissue=row.get("tissue", {}),
      mask_path=mask,
      split=row.get("split") or None,
    )


def _row_id(row: dict) -> str:
  """Returns a row's slide id less the extension some tables leave on it."""
  slide_id = row.get("slide_id", "")
  known = slide_id.lower().endswith(SLIDE_EXTENSIONS)
  return slide_id_of(slide_id) if known else slide_id


def _tissue_columns(line: dict[str, str]) -> dict[str, str | float]:
  """Reads the `tissue_<parameter>` columns of a row; empty cells say none."""
  found = {}
  for column, value in line.items():
    if not column or not column.lower().startswith("tissue_"):
      continue
    if not (value or "").strip():
      continue
    name = column.lower().removeprefix("tissue_")
    if name != "method" and name not in tissue.PARAMETERS:
      raise ValueError(
        f"column {column}: no such tissue parameter; choose "
        f"{['method', *sorted(tissue.PARAMETERS)]}"
      )
    found[name] = value.strip() if name == "method" else float(value)
  if found.get("method", "guarded") not in tissue.METHODS:
    raise ValueError(
      f"tissue_method={found['method']!r}: choose {sorted(tissue.METHODS)}"
    )
  return found


def _not_a_slide(path: pathlib.Path) -> tuple[str, str] | None:
  """Returns (error, message) for a file that cannot be a slide at a glance."""
  try:
    with open(path, "rb") as file:
      start = file.read(4)
  except OSError as error:
    return "unreadable", f"cannot read {path}: {error.strerror}"
  if not start:
    return "empty_file", f"the file is empty: {path}"
  is_tiff = path.suffix.lower() in TIFF_EXTENSIONS
  if is_tiff and start not in _TIFF_STARTS:
    return (
      "not_an_image",
      f"{path} is named like a slide but is no TIFF (it starts with {start!r})",
    )
  return None
