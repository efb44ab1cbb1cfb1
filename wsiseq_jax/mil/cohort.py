"""The table of a cohort: patient and label of each slide.

A CSV with a heading. Columns are found by the names that preparation knows
(`data_prep.wsi.find.ALIASES`): `slide_id` (or slide, image_id, or a file name,
whose extension is left off), `patient_id` (or patient, case, …). Without a
patient column a TCGA barcode tells the patient, else each slide is a patient of
its own. The label is in the column `data.label`.

Labels by `config.target_type`:

- `binary`, `multiclass`: class names in one column. Classes in the order of
  `data.classes`, by default sorted (as numbers where all are numbers); of two
  classes the last is the positive one.
- `multilabel`: `data.label` names several columns with commas between; each
  holds 0 or 1, or nothing where it is unknown.
- `regression`: a number.
- `survival`: `data.label` = 'time,event': the columns of the follow-up time
  (> 0, any unit) and of the event (1 = it happened, 0 = censored).

A slide whose label is unknown (an empty cell, 'nan' or 'na') can neither be
learned from nor scored: it is left out and counted.
"""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from data_prep import splits
from data_prep.wsi import find
from wsiseq_jax.mil import labels as slide_labels

TARGET_TYPES = ("binary", "multiclass", "multilabel", "regression", "survival")
CAMELYON16 = "camelyon16"
_CAMELYON_NAME = re.compile(r"(normal|tumor|test)_\d+$", re.IGNORECASE)
_UNKNOWN = ("", "nan", "na")
_FEATURE_EXTENSIONS = (".h5", ".hdf5", ".pt")


@dataclasses.dataclass(frozen=True)
class Slide:
  """One row of the table.

  Attributes:
    slide_id: its name, without extension.
    patient_id: its patient.
    text: the label as it is written; several with ';' between; '' = unknown.
    split: 'train', 'val' or 'test' where splits are given, else ''.
  """

  slide_id: str
  patient_id: str
  text: str = ""
  split: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
  """All slides with a known label.

  Attributes:
    slides: sorted by slide id.
    labels: f64 [n, k]: class number (k = 1), 0/1/NaN for each label, a number
      (k = 1), or time and event (k = 2).
    target_type: one of `TARGET_TYPES`.
    classes: names of classes or labels; for a number the column's name.
    unlabelled: slides of the table that were left out.
  """

  slides: tuple[Slide, ...]
  labels: Float[np.ndarray, "n k"]
  target_type: str
  classes: tuple[str, ...]
  unlabelled: tuple[str, ...] = ()

  @property
  def ids(self) -> list[str]:
    """Slide ids, in order."""
    return [slide.slide_id for slide in self.slides]

  @property
  def patients(self) -> np.ndarray:
    """Case of each slide."""
    return np.array([slide.patient_id for slide in self.slides])

  @property
  def is_labelled(self) -> np.ndarray:
    """Whether anything of each slide's label is known, bool [n]."""
    return np.isfinite(self.labels).any(axis=1)

  @property
  def positive(self) -> str:
    """The class whose score a map shows where nothing else was asked for."""
    return self.classes[-1] if self.target_type == "binary" else self.classes[0]


def read(
  table: str,
  label: str,
  target_type: str,
  classes: Sequence[str] = (),
  split_column: str = "",
  is_training: bool = True,
) -> Cohort:
  """Reads a table.

  Args:
    table: the CSV.
    label: column of the label; several with commas, see the module's docstring.
    target_type: one of `TARGET_TYPES`.
    classes: class names in order; () takes those that are found.
    split_column: a column with 'train', 'val' and 'test', 'camelyon16' for that
      challenge's official split by slide name, or '' for none.
    is_training: whether models are to be trained. If not, slides without a
      label are kept with NaN, `label` may be '' for none at all, `classes` are
      those of the models, and it does not matter which of them are there.

  Returns:
    The slides whose label is known.

  Raises:
    ValueError: no such file or column, a slide in two rows, a label that is
      none, a number of classes that does not fit, or a patient in two splits.
  """
  heading, rows = _lines(table)
  slide_of, case_of = _identity(table, heading)
  names = [name.strip() for name in label.split(",")]
  if not label and not is_training:
    names = []
  wanted = {"survival": 2, "multilabel": None}.get(target_type, 1)
  wanted = wanted if names else 0
  if "" in names or wanted not in (None, len(names)):
    what = {2: "two columns, time and event,", None: "column names"}
    raise ValueError(
      f"config.data.label = {label!r}: config.target_type = {target_type!r} "
      f"wants {what.get(wanted, 'the name of one column')} of {table}"
    )
  columns = [_column(heading, name, table, "data.label") for name in names]
  split_key = split_column
  if split_column and split_column != CAMELYON16:
    split_key = _column(heading, split_column, table, "data.split_column")
  found: dict[str, tuple[int, Slide]] = {}
  unknown = []
  for number, row in rows:
    slide_id = _slide_id(row[slide_of])
    if not slide_id:
      raise ValueError(
        f"config.data.table: row {number} of {table} names no slide"
      )
    if slide_id in found:
      raise ValueError(
        f"config.data.table: slide {slide_id!r} is in rows "
        f"{found[slide_id][0]} and {number} of {table}"
      )
    patient = row[case_of] if case_of else ""
    cells = [row[column] for column in columns]
    known = [cell.lower() not in _UNKNOWN for cell in cells]
    slide = Slide(
      slide_id,
      patient or find.patient_id_of(slide_id),
      ";".join(cell if k else "" for cell, k in zip(cells, known, strict=True)),
      _given_split(slide_id, row, split_key) if split_key else "",
    )
    found[slide_id] = (number, slide)
    if not (
      any(known) if target_type == "multilabel" else known and all(known)
    ):
      unknown.append(slide_id)
  _check_splits([slide for _, slide in found.values()])
  slides = sorted((s for _, s in found.values()), key=lambda s: s.slide_id)
  if not is_training:
    return _to_predict(slides, set(unknown), target_type, names, tuple(classes))
  left_out = set(unknown)
  slides = [slide for slide in slides if slide.slide_id not in left_out]
  if not slides:
    raise ValueError(
      f"config.data.table: {table} has no slide with a label in {label!r}"
    )
  texts = {slide.slide_id: slide.text for slide in slides}
  values, named = slide_labels.to_learn(
    texts, target_type, names, tuple(classes)
  )
  return Cohort(
    tuple(slides), values, target_type, named, tuple(sorted(unknown))
  )


def without_labels(
  ids: Sequence[str], target_type: str, classes: tuple[str, ...]
) -> Cohort:
  """A cohort of which only slide ids are known.

  Example:
    >>> cohort = without_labels(["b", "a"], "binary", ("no", "yes"))
    >>> cohort.ids, cohort.labels.tolist()
    (['a', 'b'], [[nan], [nan]])
  """
  slides = [Slide(name, find.patient_id_of(name)) for name in sorted(ids)]
  return _to_predict(slides, set(ids), target_type, [], classes)


def _to_predict(slides, unknown, target_type, names, classes) -> Cohort:
  """All slides, NaN for labels that are not known."""
  width = {"multilabel": len(classes), "survival": 2}.get(target_type, 1)
  values = np.full((len(slides), width), np.nan)
  known = [i for i, s in enumerate(slides) if s.slide_id not in unknown]
  if known:
    texts = {slides[i].slide_id: slides[i].text for i in known}
    values[known] = slide_labels.to_score(texts, target_type, names, classes)
  # Without a label nothing is written of one, not even of some.
  slides = [
    dataclasses.replace(s, text="") if s.slide_id in unknown else s
    for s in slides
  ]
  return Cohort(tuple(slides), values, target_type, classes)


def _lines(table: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
  path = pathlib.Path(table).expanduser()
  if not table or not path.is_file():
    raise ValueError(f"config.data.table = {table!r}: there is no such file")
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file)
      heading = [(name or "").strip() for name in reader.fieldnames or ()]
      reader.fieldnames = heading
      rows = [
        (number, {key: (row.get(key) or "").strip() for key in heading})
        for number, row in enumerate(reader, 2)
      ]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f"config.data.table = {table!r}: cannot be read: {error}"
    ) from error
  # A line of nothing but commas ends many a sheet.
  return heading, [(n, row) for n, row in rows if any(row.values())]


def _identity(table: str, heading: Sequence[str]) -> tuple[str, str]:
  """The columns of slide and patient; '' if no column tells the patient."""

  def first(*keys: str) -> str:
    for key in keys:
      for name in find.ALIASES[key]:
        for column in heading:
          if column.lower() == name:
            return column
    return ""

  slide = first("slide_id", "filename")
  if not slide:
    allowed = [*find.ALIASES["slide_id"], *find.ALIASES["filename"]]
    raise ValueError(
      f"config.data.table: {table} has the columns {list(heading)}: expected "
      f"one of {allowed}"
    )
  return slide, first("patient_id")


def _column(heading: Sequence[str], name: str, table: str, key: str) -> str:
  for column in heading:
    if column.lower() == name.lower():
      return column
  raise ValueError(
    f"config.{key}: {table} has no column {name!r}, only {list(heading)}"
  )


def _slide_id(name: str) -> str:
  """Less folder and extension, where the table has them.

  Example:
    >>> _slide_id("S-1.2"), _slide_id("a/S-1.2.svs"), _slide_id("x.h5")
    ('S-1.2', 'S-1.2', 'x')
  """
  known = (*find.SLIDE_EXTENSIONS, *_FEATURE_EXTENSIONS)
  if name.lower().endswith(known):
    return find.slide_id_of(name)
  return name.replace("\\", "/").rsplit("/", 1)[-1]


def _given_split(slide_id: str, row: Mapping[str, str], column: str) -> str:
  if column == CAMELYON16:
    match = _CAMELYON_NAME.match(slide_id)
    if not match:
      raise ValueError(
        f"config.data.split_column = 'camelyon16': slide {slide_id!r} is not "
        "named normal_*, tumor_* or test_* with a number"
      )
    return "test" if match[1].lower() == "test" else "train"
  split = row[column].lower()
  split = {"validation": "val", "valid": "val"}.get(split, split)
  if split not in splits.NAMES:
    raise ValueError(
      f"config.data.split_column: slide {slide_id!r} has {row[column]!r}, "
      f"allowed: {splits.NAMES}"
    )
  return split


def _check_splits(slides: Sequence[Slide]) -> None:
  first: dict[str, Slide] = {}
  for slide in slides:
    other = first.setdefault(slide.patient_id, slide)
    if other.split != slide.split:
      raise ValueError(
        f"config.data.split_column: patient {slide.patient_id!r} is in two "
        f"splits: slide {other.slide_id!r} in {other.split!r}, slide "
        f"{slide.slide_id!r} in {slide.split!r}"
      )
