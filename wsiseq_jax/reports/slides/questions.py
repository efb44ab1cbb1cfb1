"""What a cohort was asked with yes or no: curves, counts, rates.

Numbers of the tables are shown as `summary.csv` has them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsiseq_jax import charts
from wsiseq_jax.metrics import bootstrap, curves
from wsiseq_jax.mil.summary import METRIC_NAMES
from wsiseq_jax.reports import page
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides.data import Predictions, SlideRow
from wsiseq_jax.reports.slides.slide import Context


def ensemble_row(
  found: Predictions, name: str, metric: str
) -> Mapping[str, str] | None:
  """The ensemble's row of `summary.csv`, of a class ('' = all)."""
  for row in found.summary:
    if (row["of"], row["class"], row["metric"]) == ("ensemble", name, metric):
      return row
  return None


def number(text: str) -> str:
  """A number of a table, as pages show it."""
  return page.number(float(text) if text else None)


def cell(row: Mapping[str, str]) -> str:
  """A mean and its interval."""
  low, high = number(row["low"]), number(row["high"])
  return f"{number(row['mean'])} [{low}, {high}]"


@dataclasses.dataclass(frozen=True)
class Question:
  """A class that is asked for, of the slides whose answer is known."""

  name: str
  rows: Sequence[SlideRow]
  true: Float[np.ndarray, " n"]
  score: Float[np.ndarray, " n"]
  patients: np.ndarray
  others: Sequence[curves.Score]


def questions(context: Context) -> Iterable[Question]:
  """One for each class or label; of two classes the positive one."""
  found = context.predictions
  asked = list(enumerate(found.classes))
  if found.target_type == "binary":
    asked = asked[-1:]
  true = report_data.truth(found, found.scored)
  score = report_data.values(found, found.scored)
  for column, name in asked:
    known = np.flatnonzero(np.isfinite(true[:, column]))
    rows = [found.scored[i] for i in known]
    answers = true[known, column]
    others = []
    for one in found.single:
      have = [i for i, row in enumerate(rows) if row.slide_id in one]
      if len(np.unique(answers[have])) > 1:
        scores = [one[rows[i].slide_id][column] for i in have]
        others.append((answers[have], np.array(scores)))
    patients = np.array([row.patient_id for row in rows])
    scores = score[known, column]
    yield Question(name, rows, answers, scores, patients, others)


def _positive(question: Question, context: Context) -> np.ndarray:
  """Whether each slide is above its threshold."""
  cut = context.decisions.threshold_of
  return question.score >= [cut(row, question.name) for row in question.rows]


def curves_of(question: Question, context: Context) -> dict[str, Any]:
  """ROC and calibration; no charts where all labels are the same."""
  found, true = context.predictions, question.true
  shown = {
    "name": question.name,
    "slides": len(true),
    "patients": len(set(question.patients.tolist())),
    "others": len(question.others),
    "auroc": _of_class(found, question.name, "auroc"),
    "ece": _of_class(found, question.name, "ece"),
    "roc": None,
  }
  if len(np.unique(true)) < 2:
    return shown
  point = None
  if found.target_type != "multiclass":
    said = _positive(question, context)
    point = (said[true == 0].mean(), said[true == 1].mean())
  roc, (axes,) = charts.grid(1)
  curves.roc(
    axes,
    true,
    question.score,
    question.patients,
    context.settings.resamples,
    question.others,
    point,
  )
  bins = curves.calibration_bins(
    true, question.score, question.patients, context.settings.bins
  )
  calibration, (axes,) = charts.grid(1)
  curves.calibration_curve(axes, bins)
  return shown | {
    "roc": page.svg(roc),
    "has_point": point is not None,
    "calibration": page.svg(calibration),
    "bins": [
      (n, of, f"{p:.3f}", f"{o:.3f}", f"{low:.3f} to {high:.3f}")
      for n, of, p, o, low, high in zip(
        *(column.tolist() for column in vars(bins).values()), strict=True
      )
    ],
  }


def _of_class(found: Predictions, name: str, metric: str) -> str:
  """A score of one class with its interval, as text; '' if there is none."""
  row = ensemble_row(found, name, metric)
  if row is None and found.target_type == "binary":
    row = ensemble_row(found, "", metric)
  return f"{METRIC_NAMES[metric]} {cell(row)}" if row else ""


def rates(
  true: Float[np.ndarray, " n"],
  said: Float[np.ndarray, " n"],
  weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
  """Sensitivity, specificity and predictive values of yes-or-no answers.

  Example:
    >>> found = rates(np.array([1., 1, 0, 0]), np.array([1., 0, 0, 0]),
    ...               np.ones((1, 4)))
    >>> {name: value.round(2).tolist() for name, value in found.items()}
    {'sensitivity': [0.5], 'specificity': [1.0], 'PPV': [1.0], 'NPV': [0.67]}
  """

  def share(right, of) -> np.ndarray:
    total = weights @ of
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.where(total > 0, weights @ (right * of) / total, np.nan)

  return {
    "sensitivity": share(said, true),
    "specificity": share(1 - said, 1 - true),
    "PPV": share(true, said),
    "NPV": share(1 - true, 1 - said),
  }


def confusion(question: Question, context: Context) -> dict[str, Any]:
  """Counts and rates at the threshold."""
  found, name, true = context.predictions, question.name, question.true
  said = _positive(question, context).astype(float)
  counts = [
    [int(((true == t) & (said == s)).sum()) for s in (0, 1)] for t in (0, 1)
  ]
  is_one_of_many = found.target_type == "multilabel"
  other = f"not {name}" if is_one_of_many else found.classes[0]
  ends = bootstrap.intervals(
    lambda weights: rates(true, said, weights),
    question.patients,
    context.settings.resamples,
  )
  plain = rates(true, said, np.ones((1, len(true))))
  return {
    "name": name,
    "names": (other, name),
    "counts": counts,
    "share": true.mean() if len(true) else np.nan,
    "rates": [
      (rate, page.number(value[0]), " to ".join(map(page.number, ends[rate])))
      for rate, value in plain.items()
    ],
  }


def matrix(context: Context) -> list[list[int]] | None:
  """Slides by label and predicted one of several classes."""
  found = context.predictions
  if found.target_type != "multiclass":
    return None
  number = {name: i for i, name in enumerate(found.classes)}
  counts = np.zeros((len(number), len(number)), int)
  for row in found.scored:
    predicted = context.decisions.predicted(found, row)
    counts[number[row.label], number[predicted]] += 1
  return counts.tolist()
