"""The table of a cohort: patient and label of each slide.

Columns have the names of `data_prep.files.aliases`: `slide_id` (or
slide, image_id, or a file name, whose extension is left off), `patient_id` (or
patient, case, …). Without a patient column a TCGA barcode tells the patient,
else each slide is a patient of its own. The label is in the column
`data.label`.

Labels by `config.target_type`:

- `binary`, `multiclass`: class names in one column. Classes in the order of
  `data.classes`, by default sorted (as numbers where all are numbers); of two
  classes the last is the positive one.
- `multilabel`: `data.label` names several columns with commas between; each
  holds 0 or 1, or nothing where it is unknown.
- `regression`: a number.
- `survival`: `data.label` = 'time,event': the columns of the follow-up time
  (> 0, any unit) and of the event (1 = it happened, 0 = censored).

A slide whose label is unknown (an empty cell, NA, …) can neither be learned
from nor scored: it is left out and counted. So is a slide whose rows contradict
each other; it has a row in errors.csv.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from data_prep import splits
from data_prep.files import aliases, tables, values
from data_prep.files import names as slide_names
from data_prep.files.errors import SlideError
from data_prep.wsi import find
from wsiseq_jax import launch
from wsiseq_jax.mil import labels as slide_labels

TARGET_TYPES = ("binary", "multiclass", "multilabel", "regression", "survival")
CAMELYON16 = "camelyon16"
_CAMELYON_NAME = re.compile(r"(normal|tumor|test)_\d+$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class CohortSlide:
  """One row of the table."""

  slide_id: str  # its name, without extension
  patient_id: str  # its patient
  # The label as it is written; several with ';' between; '' = unknown.
  text: str = ""
  split: str = ""  # 'train', 'val' or 'test' where splits are given, else ''


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
  """All slides with a known label."""

  slides: tuple[CohortSlide, ...]  # sorted by slide id
  # f64 [n, k]: class number (k = 1), 0/1/NaN for each label, a number (k = 1),
  # or time and event (k = 2).
  labels: Float[np.ndarray, "n k"]
  target_type: str  # one of `TARGET_TYPES`
  # Names of classes or labels; for a number the column's name.
  classes: tuple[str, ...]
  unlabelled: tuple[str, ...] = ()  # slides of the table that were left out
  errors: tuple[SlideError, ...] = ()  # rows that cannot be used

  @property
  def ids(self) -> list[str]:
    """Slide ids, in order."""
    return [slide.slide_id for slide in self.slides]

  @property
  def patients(self) -> np.ndarray:
    """Patient of each slide."""
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
  """Reads a table."""
  data, slide_of, patient_of = _open(table, classes)
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
  columns = [data.column(name, "data.label") for name in names]
  split_key = split_column
  if split_column and split_column != CAMELYON16:
    split_key = data.column(split_column, "data.split_column")
  found = {"slide_id": slide_of, "patient_id": patient_of}
  more = dict(zip(names, columns, strict=True)) | {"split": split_key}
  tables.describe(data, found, launch.log, more)
  is_class = target_type in ("binary", "multiclass")
  rows: dict[str, list[tuple[str, CohortSlide]]] = {}
  for row in data.rows:
    slide_id = slide_names.stem(row.cells[slide_of])
    cells = [row.cells[column] for column in columns]
    if is_class:
      cells = [values.class_name(cell) for cell in cells]
    slide = CohortSlide(
      slide_id,
      values.id_of(row.cells.get(patient_of, ""))
      or find.patient_id_of(slide_id),
      ";".join(cells),
      _given_split(slide_id, row.cells, split_key) if split_key else "",
    )
    key = slide_names.folded(slide_id)
    rows.setdefault(key, []).append((row.where, slide))
  slides, errors = _one_each(rows, data.bad)
  _check_splits(slides)
  unknown = [s.slide_id for s in slides if not _is_known(s, target_type, names)]
  find.warn_of_patients({s.slide_id: s.patient_id for s in slides}, launch.log)
  if not is_training:
    cohort = _to_predict(
      slides, set(unknown), target_type, names, tuple(classes)
    )
    return dataclasses.replace(cohort, errors=errors)
  left_out = set(unknown)
  slides = [slide for slide in slides if slide.slide_id not in left_out]
  if not slides:
    raise ValueError(
      f"config.data.table: {table} has no slide with a label in {label!r}"
    )
  texts = {slide.slide_id: slide.text for slide in slides}
  numbers, named = slide_labels.to_learn(
    texts, target_type, names, tuple(classes)
  )
  # A slide in `errors` has no label either.
  unlabelled = {*unknown, *(error.slide for error in errors)}
  return Cohort(
    tuple(slides),
    numbers,
    target_type,
    named,
    tuple(sorted(unlabelled)),
    errors,
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
  slides = [CohortSlide(name, find.patient_id_of(name)) for name in sorted(ids)]
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


def _open(table: str, classes: Sequence[str]) -> tuple[tables.Table, str, str]:
  """The table, and its columns of slides and of patients, '' without one."""
  if not table:
    raise ValueError("config.data.table = '': name a table")
  try:
    data = tables.read(table, classes, launch.log)
    found = data.columns(("slide_id", "file", "patient_id"))
  except ValueError as error:
    raise ValueError(f"config.data.table = {table!r}: {error}") from error
  if not (found["slide_id"] or found["file"]):
    allowed = [*aliases.ALIASES["slide_id"], *aliases.ALIASES["file"]]
    raise ValueError(
      f"config.data.table: {table} has the columns {list(data.heading)}: "
      f"expected one of {allowed}"
    )
  return data, found["slide_id"] or found["file"], found["patient_id"]


def _one_each(
  found: Mapping[str, Sequence[tuple[str, CohortSlide]]],
  bad: Sequence[tuple[str, str]],
) -> tuple[list[CohortSlide], tuple[SlideError, ...]]:
  """One row for each slide; what contradicts itself or names none is left out.

  Rows that say the same are one, in whatever spelling of the slide's name.
  """
  slides = []
  errors = [SlideError(text, "table", "bad_row", name) for name, text in bad]
  for key, rows in found.items():
    where = " and ".join(place for place, _ in rows)
    if not key:
      errors.append(SlideError(f"{where}: no slide", "table", "bad_row", where))
      continue
    first = rows[0][1]
    same = [dataclasses.replace(s, slide_id=first.slide_id) for _, s in rows]
    if all(slide == first for slide in same):
      slides.append(first)
      continue
    text = f"{where} contradict each other: left out; leave one of the rows"
    errors.append(
      SlideError(text, "table", "contradicting_rows", first.slide_id)
    )
  return sorted(slides, key=lambda slide: slide.slide_id), tuple(errors)


def _is_known(
  slide: CohortSlide, target_type: str, names: Sequence[str]
) -> bool:
  cells = slide.text.split(";") if names else []
  some = any if target_type == "multilabel" else all
  return bool(cells) and some(cells)


def _given_split(slide_id: str, row: Mapping[str, str], column: str) -> str:
  if column == CAMELYON16:
    match = _CAMELYON_NAME.match(slide_id)
    if not match:
      raise ValueError(
        f"config.data.split_column = 'camelyon16': slide {slide_id!r} is not "
        "named normal_*, tumor_* or test_* with a number"
      )
    return "test" if match[1].lower() == "test" else "train"
  split = splits.name_of(row[column])
  if split is None:
    raise ValueError(
      f"config.data.split_column: slide {slide_id!r} has {row[column]!r}, "
      f"allowed: {splits.NAMES}"
    )
  return split


def _check_splits(slides: Sequence[CohortSlide]) -> None:
  first: dict[str, CohortSlide] = {}
  for slide in slides:
    other = first.setdefault(slide.patient_id, slide)
    if other.split != slide.split:
      raise ValueError(
        f"config.data.split_column: patient {slide.patient_id!r} is in two "
        f"splits: slide {other.slide_id!r} in {other.split!r}, slide "
        f"{slide.slide_id!r} in {slide.split!r}"
      )
