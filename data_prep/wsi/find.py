"""Which slides a run works on: files, folders, globs, or a table.

`find_slides` turns what the user named into a list of `SlideEntry` and a list
of `SlideError` for what cannot be used; nothing named is lost in between.

Tables have a heading; our own columns are `slide_id, filename, patient_id,
label, mpp`, plus `split`, `mask` and `tissue_<parameter>` (see
`data_prep.wsi.tissue`). Names of other tools are understood
(`data_prep.files.aliases`), as is CLAM's `process`. File names are
relative to the table; without one the slide is looked for by its id, beside the
table and below. Rows of one file that contradict each other refuse it.

Folders are searched with everything below them (`folders.py`). A `slides.csv`
in a slide's folder, or in the folder above it, describes slides, also those
named by file or glob: splits by patient must not depend on how slides were
named. The slides.csv that a run writes is not taken for one. What was named
decides which slides are used, so slides that the table does not list are not
lost; a file which the table says is in a named folder and is not becomes an
error.

Slide id: the file name without extension. Patient: the table's, a TCGA
barcode's first 12 characters, a DICOM file's PatientID, else the slide id.

DICOM is one file per pyramid level, known by its content where it has no
extension; `dicom_series.py` groups instances into slides.
"""

import collections
import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from data_prep.files import done, names, tables, values
from data_prep.files.errors import SlideError
from data_prep.wsi import dicom_series, folders, oddities, slide_table
from data_prep.wsi.slide_table import Note

# Workbooks are no tables, and get a row that says so.
_TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm", ".xls", ".ods")
_TCGA = re.compile(r"TCGA-\w{2}-\w{4}(?=-|$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class SlideEntry:
  """One slide to work on."""

  slide_id: str  # unique in a run
  path: str  # the file
  patient_id: str  # splits never part the slides of a patient
  label: str | None = None  # class name; None = unknown
  mpp: float | None = None  # um/px that replaces what the file says
  # parameters of `tissue.tissue_mask` for this slide alone
  tissue: dict[str, str | float] = dataclasses.field(default_factory=dict)
  mask_path: str | None = None  # tissue mask to use instead of computing one
  split: str | None = None  # 'train', 'val', 'test'; None = to be drawn


def patient_id_of(slide_id: str) -> str:
  """The patient a slide id tells of: TCGA's, else the slide itself.

  Example:
    >>> patient_id_of('TCGA-A1-A0SB-01Z-00-DX1.ABC'), patient_id_of('S7')
    ('TCGA-A1-A0SB', 'S7')
  """
  match = _TCGA.match(slide_id)
  return match.group() if match else slide_id


def warn_of_patients(
  patients: Mapping[str, str], log: Callable[[str], None] = tables.say
) -> None:
  """Says how many slides count as patients of their own."""
  told = {patient for slide, patient in patients.items() if slide != patient}
  for text in values.odd_ids(told):
    log(f"warning: {text}")
  alone = sum(slide == patient for slide, patient in patients.items())
  if alone > 1:
    log(
      f"warning: nothing says whose {alone} of the {len(patients)} slides are: "
      "each counts as a patient of its own"
    )


def find_slides(
  spec: str | os.PathLike | Iterable[str | os.PathLike],
  table: str | os.PathLike = "",
  classes: Collection[str] = (),
  log: Callable[[str], None] = tables.say,
) -> tuple[list[SlideEntry], list[SlideError]]:
  """Finds the slides a user named."""
  finder = _Finder(classes, log)
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

  def __init__(self, classes: Collection[str], log: Callable[[str], None]):
    self.classes, self.log = classes, log
    self.files: dict[str, pathlib.Path] = {}  # real path -> path as named
    self.places: dict[pathlib.Path, str] = {}  # path below what was named
    self.notes = collections.defaultdict(list)  # real path -> rows of tables
    self.waiting: list[tuple[Note, pathlib.Path | None]] = []
    self.errors: list[SlideError] = []
    self.tables: list[pathlib.Path] = []  # in the order they were read
    self.differing: list[str] = []  # what several tables say differently

  def error(self, slide, code: str, message: str) -> None:
    self.errors.append(SlideError(message, "find", code, str(slide)))

  # What the user named.

  def add(self, part: str) -> None:
    path = pathlib.Path(part).expanduser()
    if path.is_dir():
      self.add_folder(path)
    elif path.suffix.lower() in _TABLES:
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
      for one in map(pathlib.Path, found):
        if one.is_dir():
          self.add_folder(one)
        elif self.is_slide(one):
          self.add_file(one)
          self.describe_near(one.parent)
    else:
      self.error(part, "missing_file", f"no such file or folder: {part}")

  def add_file(self, path: pathlib.Path, root: pathlib.Path | None = None):
    path = self.files.setdefault(os.path.realpath(path), path)
    self.places.setdefault(path, os.path.relpath(path, root or path.parent))

  def is_slide(self, path: pathlib.Path) -> bool:
    """Whether a file that nobody named is a slide; one in vain is an error."""
    if folders.is_unreadable(path.name):
      text = f"{path}: {path.suffix} is not read: export it as TIFF or DICOM"
      self.error(names.stem(path), "unsupported_format", text)
    elif folders.is_unfinished(path.name):
      text = f"{path}: {path.suffix} is a copy under way, or packed: finish it"
      self.error(names.stem(path.stem), "unfinished_file", text)
    return folders.is_slide(path)

  def add_folder(self, folder: pathlib.Path) -> None:
    def unreadable(error: OSError) -> None:
      self.error(
        error.filename or folder,
        "unreadable_folder",
        f"cannot read the folder {error.filename}: {error.strerror}",
      )

    before = len(self.files) + len(self.errors)
    for place, paths in folders.walk(folder, unreadable):
      found = [path for path in paths if self.is_slide(path)]
      for path in found:
        self.add_file(path, folder)
      if found or place == folder:
        self.describe_near(place, folder)
      elif not any(paths) and place.name.lower().endswith(
        names.SLIDE_EXTENSIONS
      ):
        text = f"{place} is an empty folder with the name of a slide"
        self.error(names.stem(place), "not_an_image", text)
    if len(self.files) + len(self.errors) == before:
      self.error(folder, "no_slides", f"no slide in the folder {folder}")

  # What tables say.

  def select(self, table: pathlib.Path) -> None:
    """Takes every slide of a table, and what it says of them."""
    below: names.Files | None = None
    for note in self.read_table(table, is_named=True):
      name = note.asked
      path = names.below(table.parent, name)
      # `m.mrxs` has its data in the folder `m`.
      if not (path and path.is_file()) and not note.problem:
        below = below or folders.index(table.parent)
        try:
          path = below.find(name) or path
        except ValueError as error:
          self.error(note.name, "ambiguous_name", f"{note.where}: {error}")
          continue
      if path is None and not note.problem:
        self.error(
          note.name,
          "missing_file",
          f"{note.where}: no file {name} in {table.parent} or below",
        )
      elif path is not None and path.is_dir():
        self.add_folder(path)
        for inside in list(self.places):
          if inside.is_relative_to(path):
            self.notes[os.path.realpath(inside)].append(note)
      elif path is not None:
        self.add_file(path, table.parent)
        self.notes[os.path.realpath(path)].append(note)
      else:
        self.error(note.name, "bad_row", note.problem)

  def describe_near(
    self, place: pathlib.Path, folder: pathlib.Path | None = None
  ) -> None:
    """Takes what a `slides.csv` in a folder or above it says."""
    place = place.absolute()
    for one in (place, place.parent):
      table = names.below(one, "slides.csv")
      if table and table.is_file() and table not in self.tables:
        self.describe(table, folder, is_named=False)

  def describe(
    self,
    table: pathlib.Path,
    folder: pathlib.Path | None = None,
    is_named: bool = True,
  ) -> None:
    """Takes what a table says of slides; those of `folder` have to exist."""
    notes = self.read_table(table, is_named)
    self.waiting += [(note, folder) for note in notes]

  def read_table(self, path: pathlib.Path, is_named: bool) -> list[Note]:
    self.tables.append(path)
    notes, errors = slide_table.read(path, self.classes, self.log, is_named)
    self.errors += errors
    return notes

  # From files to slides.

  def finish(self) -> tuple[list[SlideEntry], list[SlideError]]:
    self.match_waiting()
    plain, dicom = [], []
    for path in self.files.values():
      kind = path.suffix.lower()
      is_dicom = kind in names.DICOM_EXTENSIONS or (
        kind not in names.SLIDE_EXTENSIONS and dicom_series.is_dicom(path)
      )
      (dicom if is_dicom else plain).append(path)
    candidates = [(path, names.stem(path), "", [path]) for path in plain]
    series, errors = dicom_series.group(dicom)
    self.errors += errors
    candidates += [
      (one.path, one.slide_id, one.patient_id, one.members) for one in series
    ]
    entries: dict[str, SlideEntry] = {}
    for path, slide_id, patient, members in candidates:
      reason = folders.not_a_slide(path)
      if reason:
        self.error(slide_id, *reason)
        continue
      facts = self.facts_of(slide_id, members)
      if facts is None:
        continue
      slide_id = facts.get("slide_id", slide_id)
      if slide_id in entries:
        self.error(
          slide_id,
          "duplicate_id",
          f"two slides have the id {slide_id}: {entries[slide_id].path} is "
          f"used, {path} is not; give ids in a CSV",
        )
        continue
      other = patient or patient_id_of(slide_id)
      entry = {"slide_id": slide_id, "patient_id": other, **facts}
      entries[slide_id] = SlideEntry(path=str(path), **entry)
    slides = sorted(entries.values(), key=lambda entry: entry.slide_id)
    warn_of_patients({s.slide_id: s.patient_id for s in slides}, self.log)
    oddities.warn_of_copies(slides, self.log)
    if self.differing:
      self.log(
        f"warning: of {len(self.differing)} slides several tables say "
        f"different things, {self.tables[0]} counts; {self.differing[0]}"
      )
    return slides, self.errors

  def match_waiting(self) -> None:
    """Finds the files of rows that describe."""
    index = names.Files(self.places)
    lost = collections.Counter()
    for note, folder in self.waiting:
      name = note.asked
      path = names.below(note.table.parent, name)
      try:
        path = path if path and path.is_file() else index.find(name)
      except ValueError:
        path = None  # two slides of one id: one is an error
      if path is not None:
        self.notes[os.path.realpath(path)].append(note)
        continue
      # A DICOM slide has the name of its folder.
      self.notes[names.folded(names.stem(note.name))].append(note)
      path = (note.table.parent / note.asked).absolute()
      if note.has_file and folder and path.is_relative_to(folder.absolute()):
        text = f"{note.where}: no such file {path}"
        self.error(note.name, "missing_file", text)
      elif not folder:
        lost[note.table] += 1
    for table, count in lost.items():
      self.log(f"{table}: {count} rows are of slides that were not named")

  def facts_of(
    self, slide_id: str, members: Sequence[pathlib.Path]
  ) -> dict[str, Any] | None:
    """What the tables say of a slide; None if they contradict themselves."""
    keys = [os.path.realpath(path) for path in members]
    keys += [names.folded(slide_id)]
    notes = next((self.notes[k] for k in keys if k in self.notes), [])
    wrong = [note for note in notes if note.problem]
    for note in wrong:
      self.error(note.name, "bad_row", note.problem)
    facts: dict[str, Any] = {}
    # Of several tables the one that was read first counts.
    for table in self.tables:
      rows = [note for note in notes if note.table == table]
      own, clash = slide_table.merged(rows)
      wrong += rows if clash else []
      for name in dict.fromkeys(row.name for row in rows if clash):
        self.error(
          name,
          "contradicting_rows",
          f"{' and '.join(row.where for row in rows)} name one file, "
          f"{members[0]}, and differ in {sorted(clash)}: it is left out; leave "
          "one of the rows",
        )
      facts = {**own, **facts}
    _, clash = slide_table.merged(notes)
    if clash and not wrong:
      rows = " and ".join(f"{n.where} in {n.table.parent}" for n in notes)
      self.differing.append(f"{slide_id}: {rows} differ in {sorted(clash)}")
    return None if wrong else facts


def usable_names(
  entries: Sequence[SlideEntry],
) -> tuple[list[SlideEntry], list[SlideError]]:
  """Sets slides aside whose id cannot be the name of a file or folder."""
  good, bad = [], []
  for entry in entries:
    name = entry.slide_id
    if why := names.unusable(name):
      message = (
        f"the slide id {name!r} cannot name a file or folder ({why}): give "
        "another in a CSV"
      )
      bad.append(SlideError(message, "find", "bad_slide_id", name))
    else:
      good.append(entry)
  return good, bad


def content(entry: SlideEntry) -> dict[str, Any]:
  """Returns everything of a slide that shapes what is made from it.

  Where its file lies, its label and its split do not.
  """
  own = dataclasses.asdict(entry)
  for key in ("path", "split", "label"):
    del own[key]
  try:
    path = pathlib.Path(entry.path)
    own["file"] = done.file_digest(path)
    # A copy that is finished later has other parts.
    if parts := folders.parts_of(path):
      own["parts"] = [(one.name, one.stat().st_size) for one in parts]
    if entry.mask_path:
      own["mask_path"] = done.file_digest(entry.mask_path)
  except OSError as error:
    raise SlideError(
      f"cannot read {error.filename}: {error.strerror}",
      stage="open",
      error="unreadable",
      slide=entry.slide_id,
    ) from error
  return own
