"""Tables written as they are: predictions of models and of slides, errors.

Columns of predictions: `p_<class>` for classes and labels, `value` for a number
or a risk (in deviations of the validation slides, see `trainer.values_of`).

Every slide has its rows. `status` is 'ok', or why the training prior stands
there; `scored` is 1 where the row counts in metrics.csv and summary.csv, which
failures do like all others, and 0 where it does not: the label is unknown, the
models were trained on the slide's patient (`mil_predict`), or the split is not
the test split.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.files import errors
from data_prep.files.errors import SlideError
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import Result


def value_columns(cohort: Cohort) -> list[str]:
  """Names of the columns of predictions."""
  if cohort.target_type in ("regression", "survival"):
    return ["value"]
  return [f"p_{name}" for name in cohort.classes]


def _threshold_columns(cohort: Cohort) -> list[str]:
  if cohort.target_type != "multilabel":
    return ["threshold"]
  return [f"threshold_{name}" for name in cohort.classes]


def _thresholds(cohort: Cohort, threshold: np.ndarray) -> dict[str, float]:
  """One threshold, that of the positive class; of each of several labels."""
  columns = _threshold_columns(cohort)
  last = threshold if cohort.target_type == "multilabel" else threshold[-1:]
  return dict(zip(columns, last.tolist(), strict=True))


def prediction_columns(cohort: Cohort) -> list[str]:
  """Columns of predictions.csv."""
  return [
    "slide_id", "patient_id", "repeat", "fold", "seed", "split", "label",
    "status", "scored", *_threshold_columns(cohort), *value_columns(cohort),
  ]  # fmt: skip


def prediction_rows(
  cohort: Cohort, results: Sequence[Result]
) -> Iterator[dict[str, Any]]:
  """Rows of predictions.csv: every model's predictions, by split."""
  slides = {slide.slide_id: slide for slide in cohort.slides}
  is_labelled = dict(zip(cohort.ids, cohort.is_labelled, strict=True))
  columns = value_columns(cohort)
  for result in results:
    for split, part in result.predicted.items():
      for slide_id, values, status in zip(
        part.ids, part.values.tolist(), part.status, strict=True
      ):
        yield {
          "slide_id": slide_id,
          "patient_id": slides[slide_id].patient_id,
          **dataclasses.asdict(result.run),
          "split": split,
          "label": slides[slide_id].text,
          "status": status,
          "scored": int(split == "test" and is_labelled[slide_id]),
          **_thresholds(cohort, result.threshold),
          **dict(zip(columns, values, strict=True)),
        }


def slide_columns(cohort: Cohort) -> list[str]:
  """Columns of predictions_slide.csv."""
  columns = value_columns(cohort)
  return [
    "slide_id", "patient_id", "target_type", "label", "status", "scored",
    "models", "predicted", *_threshold_columns(cohort), *columns,
    *(f"std_{c}" for c in columns),
  ]  # fmt: skip


def slide_rows(
  cohort: Cohort,
  status: Mapping[str, str],
  whole: Any,
  spread: np.ndarray,
  count: np.ndarray,
) -> Iterator[dict[str, Any]]:
  """Rows of predictions_slide.csv.

  Args:
    cohort: the slides.
    status: of each.
    whole: the ensemble's prediction, a `tables.Whole`.
    spread: deviation over its models, [n y].
    count: how many models, [n].
  """
  columns, is_labelled = value_columns(cohort), cohort.is_labelled
  for i, row in enumerate(whole.rows):
    slide = cohort.slides[row]
    yield {
      "slide_id": slide.slide_id,
      "patient_id": slide.patient_id,
      "target_type": cohort.target_type,
      "label": slide.text,
      "status": status[slide.slide_id],
      "scored": int(is_labelled[row]),
      "models": int(count[i]),
      "predicted": predicted_name(cohort, whole.values[i], whole.threshold[i]),
      **_thresholds(cohort, whole.threshold[i]),
      **dict(zip(columns, whole.values[i].tolist(), strict=True)),
      **{
        f"std_{name}": value
        for name, value in zip(columns, spread[i].tolist(), strict=True)
      },
    }


def predicted_name(
  cohort: Cohort, values: np.ndarray, threshold: np.ndarray
) -> str:
  """The class or the labels that a prediction says; '' for a number."""
  if cohort.target_type == "binary":
    return cohort.classes[int(values[-1] >= threshold[-1])]
  if cohort.target_type == "multiclass":
    return cohort.classes[int(values.argmax())]
  if cohort.target_type == "multilabel":
    chosen = zip(cohort.classes, values >= threshold, strict=True)
    return ";".join(name for name, is_there in chosen if is_there)
  return ""


def write_errors(
  path: pathlib.Path,
  cohort: Cohort,
  status: Mapping[str, str],
  reason: Mapping[str, str],
) -> None:
  """Writes errors.csv: slides and rows that cannot be used, and why."""
  errors.write(
    path,
    [
      *cohort.errors,
      *(
        SlideError(text, "features", status[slide_id], slide_id)
        for slide_id, text in reason.items()
      ),
    ],
  )
