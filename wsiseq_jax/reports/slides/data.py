"""What the pages read from the workdir of a job `mil` or `mil_predict`.

Only tables: a report can be made without models, features, or JAX.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from data_prep.files import tables as files_tables

NUMBERS = ("regression", "survival")


@dataclasses.dataclass(frozen=True)
class SlideRow:
  """What was predicted for one slide."""

  slide_id: str  # the slide
  patient_id: str  # its patient
  label: str  # as the table writes it; '' = unknown
  # 'ok', 'no_tissue' or 'error'; of a failure all values are what the models
  # knew before they saw anything.
  status: str
  models: int  # how many models `values` is the mean of
  # Probability of each class or label, or the number.
  values: Mapping[str, float]
  # Standard deviation over the models, of each value.
  spread: Mapping[str, float]
  # Of each class that has one: the positive of two, every label.
  threshold: Mapping[str, float]
  is_scored: bool = True  # whether it counts in the metrics
  reason: str = ""  # why a failure is one

  @property
  def is_ok(self) -> bool:
    """Whether a model saw tiles of it."""
    return self.status == "ok"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """All predictions of a workdir."""

  target_type: str  # of the job's config
  classes: tuple[str, ...]  # classes, labels, or the one name 'value'
  # A row a slide, as `predictions_slide.csv` has them.
  rows: tuple[SlideRow, ...]
  # Each whole prediction (of a repeat and seed, or of one model) as {slide_id:
  # values in the order of `classes`}.
  single: tuple[Mapping[str, tuple[float, ...]], ...]
  # Rows of `summary.csv`; () where no label is known.
  summary: tuple[Mapping[str, str], ...]
  # Whether every slide was predicted only by models that were trained without
  # it and its patient.
  is_crossed: bool
  notes: str  # `summary.md`

  @property
  def is_number(self) -> bool:
    """Whether a number is predicted, and not classes."""
    return self.target_type in NUMBERS

  @property
  def labelled(self) -> tuple[SlideRow, ...]:
    """Slides with a label."""
    return tuple(row for row in self.rows if row.label.strip(";"))

  @property
  def scored(self) -> tuple[SlideRow, ...]:
    """Slides that the job has scored, failures among them.

    `mil_predict` does not score slides of patients that its models were trained
    on, though it knows their labels.
    """
    return tuple(row for row in self.rows if row.is_scored)


def read(workdir: pathlib.Path) -> Predictions:
  """Reads the tables of a workdir."""
  path = workdir / "predictions_slide.csv"
  if not path.is_file():
    raise ValueError(
      f"config.workdir = {str(workdir)!r}: has no predictions_slide.csv; name "
      "the workdir of a finished job 'mil' or 'mil_predict'"
    )
  lines = files_tables.rows_of(path)
  if not lines:
    raise ValueError(f"{path} has no slide")
  errors, summary, single = (
    files_tables.rows_of(workdir / f"{name}.csv")
    for name in ("errors", "summary", "predictions")
  )
  reasons = {line["slide_id"]: line["message"] for line in errors}
  try:
    target_type = lines[0]["target_type"]
    names = tuple(name[2:] for name in lines[0] if name.startswith("p_"))
    names = ("value",) if target_type in NUMBERS else names
    rows = tuple(_row(line, target_type, names, reasons) for line in lines)
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"{path} is no table of predictions of this version: {error!r}; run the "
      "job again"
    ) from error
  notes = workdir / "summary.md"
  return Predictions(
    target_type,
    names,
    rows,
    whole_predictions(single, _columns(target_type, names)),
    tuple(summary),
    (workdir / "splits.csv").is_file(),
    notes.read_text(encoding="utf-8") if notes.is_file() else "",
  )


def _columns(target_type: str, names: Sequence[str]) -> list[str]:
  return ["value"] if target_type in NUMBERS else [f"p_{n}" for n in names]


def _row(line, target_type, names, reasons) -> SlideRow:
  columns = _columns(target_type, names)
  threshold = {}
  if target_type == "binary":
    threshold = {names[-1]: float(line["threshold"])}
  elif target_type == "multilabel":
    threshold = {name: float(line[f"threshold_{name}"]) for name in names}
  return SlideRow(
    line["slide_id"],
    line["patient_id"],
    line["label"],
    line["status"],
    int(line["models"]),
    {n: float(line[c]) for n, c in zip(names, columns, strict=True)},
    {n: _number(line[f"std_{c}"]) for n, c in zip(names, columns, strict=True)},
    threshold,
    line["scored"] == "1",
    reasons.get(line["slide_id"], ""),
  )


def _number(text: str) -> float:
  return float(text) if text else math.nan


def whole_predictions(
  lines: Sequence[Mapping[str, str]], columns: Sequence[str]
) -> tuple[dict[str, tuple[float, ...]], ...]:
  """The folds of a repeat and a seed together."""
  by_seed: dict[tuple, dict[str, dict]] = {}
  for line in lines:
    if line["split"] == "test":
      folds = by_seed.setdefault((line["repeat"], line["seed"]), {})
      values = tuple(float(line[column]) for column in columns)
      folds.setdefault(line["fold"], {})[line["slide_id"]] = values
  whole = []
  for folds in by_seed.values():
    parts = list(folds.values())
    joined = {k: v for part in parts for k, v in part.items()}
    # Folds with slides of their own make one prediction; applied models do not.
    is_one = len(joined) == sum(map(len, parts))
    whole += [joined] if is_one else parts
  return tuple(whole)


def truth(
  predictions: Predictions, rows: Sequence[SlideRow]
) -> Float[np.ndarray, "n y"]:
  """Whether each class or label is true of each slide: 0, 1, or NaN = unknown.

  For a number: the number; NaN for survival, whose label has two parts.
  """
  names = predictions.classes
  if predictions.target_type == "multilabel":
    each = [row.label.split(";") for row in rows]
    found = [[_number(cell) for cell in cells] for cells in each]
  elif predictions.is_number:
    found = [
      [math.nan if ";" in row.label else _number(row.label)] for row in rows
    ]
  else:
    found = [
      [float(row.label == name) if row.label else math.nan for name in names]
      for row in rows
    ]
  return np.array(found, np.float64).reshape(len(rows), len(names))


def values(
  predictions: Predictions, rows: Sequence[SlideRow]
) -> Float[np.ndarray, "n y"]:
  """Predictions of slides, in the order of the classes."""
  found = [[row.values[name] for name in predictions.classes] for row in rows]
  return np.array(found, np.float64).reshape(-1, len(predictions.classes))


@dataclasses.dataclass(frozen=True)
class Decisions:
  """How predictions become words."""

  threshold_from: str = "validation"  # 'validation' or 'given'
  threshold: float = 0.5  # where it is given

  def threshold_of(self, row: SlideRow, name: str) -> float:
    """Above which a slide is of that class; NaN = the class has none."""
    if name not in row.threshold:
      return math.nan
    if self.threshold_from == "given":
      return self.threshold
    return row.threshold[name]

  def predicted(self, predictions: Predictions, row: SlideRow) -> str:
    """The class, or the labels with ';' between; '' for a number.

    Example:
      >>> row = SlideRow("s", "p", "", "ok", 1, {"no": 0.4, "yes": 0.6}, {},
      ...           {"yes": 0.7})
      >>> two = Predictions("binary", ("no", "yes"), (row,), (), (), True, "")
      >>> Decisions().predicted(two, row)
      'no'
      >>> Decisions("given", 0.5).predicted(two, row)
      'yes'
    """
    names = predictions.classes
    if predictions.target_type == "multiclass":
      return max(names, key=lambda name: row.values[name])
    above = [
      name for name in names if row.values[name] >= self.threshold_of(row, name)
    ]
    if predictions.target_type == "binary":
      return names[-1] if above else names[0]
    return ";".join(above)

  def is_right(self, predictions: Predictions, row: SlideRow) -> bool | None:
    """Whether the prediction is the label; None where that cannot be said."""
    if not row.label.strip(";") or predictions.is_number:
      return None
    if predictions.target_type != "multilabel":
      return self.predicted(predictions, row) == row.label
    said = self.predicted(predictions, row).split(";")
    known = truth(predictions, [row])[0]
    return all(
      (name in said) == bool(true)
      for name, true in zip(predictions.classes, known, strict=True)
      if math.isfinite(true)
    )


def headline(predictions: Predictions, row: SlideRow) -> tuple[str, float]:
  """What a slide is sorted by: the name of a class, and its value.

  The positive class of two; of several the most probable; the number.
  """
  if predictions.target_type == "binary":
    name = predictions.classes[-1]
  else:
    name = max(predictions.classes, key=lambda name: row.values[name])
  return name, row.values[name]
