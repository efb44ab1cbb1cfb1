"""From predictions to tables: of models, of slides, scores and a summary.

An *out-of-fold prediction* has every test slide once. In cross-validation it
joins the k models of a repeat and a seed, each slide by the one that was
trained without it; where trained models are applied to other slides it is what
one model says. Scores are computed of each; their mean and std are the result
of the method. Beside it stands the *ensemble*, the mean prediction of a slide
over all models that tested it.

Two kinds of uncertainty are kept apart: the std over seeds (and repeats) says
how much the start of training matters; the interval how much the patients do,
which are resampled, with all their slides, once for all predictions.

Every slide has its rows. `status` is 'ok', or why the training prior stands
there; `scored` is 1 where the row counts in metrics.csv and summary.csv, which
failures do like all others, and 0 where the label is unknown, the models were
trained on the slide's patient (`mil_predict`), or the split is not 'test'.
Columns of predictions: `p_<class>` for classes and labels, `value` for a number
or a risk (in std of the validation slides, see `trainer.values_of`).
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from data_prep.files import atomic, errors
from data_prep.files import tables as files_tables
from data_prep.files.errors import SlideError
from wsiseq_jax import charts
from wsiseq_jax.data.bags import Bags
from wsiseq_jax.metrics import curves
from wsiseq_jax.mil import summary
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import Result


@dataclasses.dataclass(frozen=True, eq=False)
class TestPrediction:
  """What is said of test slides."""

  __test__ = False  # no test class of pytest's

  # Repeat, fold and seed, 'all' for what several of them are joined to.
  key: tuple[Any, Any, Any]
  rows: np.ndarray  # of the cohort, ascending
  values: Float[np.ndarray, "n y"]  # predictions, [n y]
  threshold: Float[np.ndarray, "n y"]  # of the model behind each row, [n y]


def one_model(cohort: Cohort, result: Result) -> TestPrediction:
  """What one model says of its test slides."""
  row = {slide_id: i for i, slide_id in enumerate(cohort.ids)}
  test = result.predicted["test"]
  rows = np.array([row[slide_id] for slide_id in test.ids], int)
  order = np.argsort(rows)
  values = test.values[order]
  return TestPrediction(
    (result.run.repeat, result.run.fold, result.run.seed),
    rows[order],
    values,
    np.broadcast_to(result.threshold, values.shape),
  )


def out_of_fold(parts: Sequence[TestPrediction]) -> TestPrediction:
  """The folds of a repeat and a seed as one."""
  rows = np.concatenate([part.rows for part in parts])
  order = np.argsort(rows)
  repeat, _, seed = parts[0].key
  return TestPrediction(
    (repeat, "all", seed),
    rows[order],
    np.concatenate([part.values for part in parts])[order],
    np.concatenate([part.threshold for part in parts])[order],
  )


def ensemble(
  parts: Sequence[TestPrediction],
) -> tuple[TestPrediction, np.ndarray, np.ndarray]:
  """The mean over all models that tested a slide."""
  rows = np.unique(np.concatenate([part.rows for part in parts]))
  shape = (len(rows), parts[0].values.shape[1])
  count, total, square, threshold = (np.zeros(shape) for _ in range(4))
  for part in parts:
    at = np.searchsorted(rows, part.rows)
    count[at] += 1
    total[at] += part.values
    square[at] += part.values**2
    threshold[at] += part.threshold
  mean = total / count
  std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
  key = ("all", "all", "all")
  found = TestPrediction(key, rows, mean, threshold / count)
  return found, std, count[:, 0].astype(int)


def write(
  workdir: pathlib.Path,
  cohort: Cohort,
  status: Mapping[str, str],
  results: Sequence[Result],
  resamples: int,
  bins: int,
  is_crossed: bool,
  notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Writes all tables and pictures; see `configs/mil.py`."""
  models = [one_model(cohort, result) for result in results]
  mean, std, count = ensemble(models)
  _write_rows(workdir / "predictions.csv", _of_models(cohort, results))
  _write_rows(
    workdir / "predictions_slide.csv",
    _of_slides(cohort, status, mean, std, count),
  )
  if not cohort.is_labelled.any():
    return []
  mean, *models = _labelled(cohort, [mean, *models])
  folds, joined = [], models
  if is_crossed:
    folds, of_run = models, {}
    for model in models:
      of_run.setdefault((model.key[0], model.key[2]), []).append(model)
    joined = [out_of_fold(parts) for parts in of_run.values()]
  metrics = pd.concat(
    [
      summary.metrics_of(cohort, "fold", folds, bins),
      summary.metrics_of(cohort, "model", joined, bins),
      summary.metrics_of(cohort, "ensemble", [mean], bins),
    ]
  )
  plain = metrics.drop(columns="of").to_dict("records")
  _write_rows(workdir / "metrics.csv", plain)
  rows = summary.summarise(
    cohort, status, metrics, joined, mean, resamples, bins
  )
  _write_rows(workdir / "summary.csv", rows)
  text = summary.markdown(cohort, status, results, rows, is_crossed, notes)
  atomic.write_atomic(workdir / "summary.md", text)
  _draw(workdir, cohort, joined, mean, resamples, bins)
  return rows


def _write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  files_tables.write(path, list(rows[0]), rows)


def write_errors(path: pathlib.Path, cohort: Cohort, bags: Bags) -> None:
  """Writes errors.csv: slides and rows that cannot be used, and why."""
  of_bags = [
    SlideError(text, "features", bags.status[slide_id], slide_id)
    for slide_id, text in bags.reason.items()
  ]
  errors.write(path, [*cohort.errors, *of_bags])


def _value_columns(cohort: Cohort) -> list[str]:
  if cohort.target_type in ("regression", "survival"):
    return ["value"]
  return [f"p_{name}" for name in cohort.classes]


def _thresholds(cohort: Cohort, threshold: np.ndarray) -> dict[str, float]:
  """One threshold, that of the positive class; of each of several labels."""
  if cohort.target_type != "multilabel":
    return {"threshold": float(threshold[-1])}
  names = [f"threshold_{name}" for name in cohort.classes]
  return dict(zip(names, threshold.tolist(), strict=True))


def _of_models(
  cohort: Cohort, results: Sequence[Result]
) -> list[dict[str, Any]]:
  """Rows of predictions.csv: every model's predictions, by split."""
  slides = {slide.slide_id: slide for slide in cohort.slides}
  is_labelled = dict(zip(cohort.ids, cohort.is_labelled, strict=True))
  columns = _value_columns(cohort)
  return [
    {
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
    for result in results
    for split, part in result.predicted.items()
    for slide_id, values, status in zip(
      part.ids, part.values.tolist(), part.status, strict=True
    )
  ]


def _of_slides(cohort, status, mean, std, count) -> list[dict[str, Any]]:
  """Rows of predictions_slide.csv: the ensemble, its std and its models."""
  columns, is_labelled = _value_columns(cohort), cohort.is_labelled
  rows = []
  for i, row in enumerate(mean.rows):
    slide, values, threshold = (
      cohort.slides[row],
      mean.values[i],
      mean.threshold[i],
    )
    spread = zip(columns, std[i].tolist(), strict=True)
    rows.append(
      {
        "slide_id": slide.slide_id,
        "patient_id": slide.patient_id,
        "target_type": cohort.target_type,
        "label": slide.text,
        "status": status[slide.slide_id],
        "scored": int(is_labelled[row]),
        "models": int(count[i]),
        "predicted": predicted_name(cohort, values, threshold),
        **_thresholds(cohort, threshold),
        **dict(zip(columns, values.tolist(), strict=True)),
        **{f"std_{name}": value for name, value in spread},
      }
    )
  return rows


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


def _labelled(
  cohort: Cohort, parts: Sequence[TestPrediction]
) -> Iterator[TestPrediction]:
  """The same without slides that have no label at all."""
  for part in parts:
    has = cohort.is_labelled[part.rows]
    yield TestPrediction(
      part.key, part.rows[has], part.values[has], part.threshold[has]
    )


def _draw(workdir, cohort, joined, mean, resamples, bins) -> None:
  """Writes roc.png and calibration.png; none where numbers are predicted."""
  each = [_questions(cohort, part) for part in joined]
  panels = [
    (name, labels, score, patients, [one[i][1:3] for one in each])
    for i, (name, labels, score, patients) in enumerate(
      _questions(cohort, mean)
    )
    if len(np.unique(labels)) == 2
  ]
  if not panels:
    return
  names = [panel[0] for panel in panels]
  roc, roc_axes = charts.grid(len(panels), names)
  calibration, calibration_axes = charts.grid(len(panels), names)
  for (_, labels, score, patients, others), above, below in zip(
    panels, roc_axes, calibration_axes, strict=True
  ):
    curves.roc(above, labels, score, patients, resamples, others)
    found = curves.calibration_bins(labels, score, patients, bins)
    curves.calibration_curve(below, found)
  charts.to_png(
    roc,
    workdir / "roc.png",
    "Thick: ensemble, with its 95 % band over resampled patients\n"
    "Thin: single predictions (seeds, repeats)",
  )
  charts.to_png(
    calibration,
    workdir / "calibration.png",
    "Dots: ensemble, area by number of slides\n"
    "Bars: 95 % intervals (Wilson's) over patients",
  )


def _questions(cohort: Cohort, part: TestPrediction) -> list[tuple]:
  """What is asked with yes or no: name, truth, probability and patients.

  The positive class of two; each of several classes against the rest; each
  label, where it is known. Nothing for numbers.
  """
  labels, values = cohort.labels[part.rows], part.values
  patients, columns = cohort.patients[part.rows], range(len(cohort.classes))
  if cohort.target_type in ("regression", "survival"):
    return []
  if cohort.target_type == "binary":
    columns = columns[-1:]
  if cohort.target_type != "multilabel":
    labels = (labels == np.arange(len(cohort.classes))).astype(float)
  known = np.isfinite(labels)
  return [
    (cohort.classes[j], labels[k, j], values[k, j], patients[k])
    for j in columns
    for k in [known[:, j]]
  ]
