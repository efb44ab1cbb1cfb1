"""From predictions to tables: of models, of slides, scores and a summary.

A *whole prediction* (`Whole`) has every test slide once. In cross-validation it
is put together from the k models of a repeat and a seed, each slide by the one
that did not know it; where trained models are applied to other slides it is
what one model says. Scores are computed of each; their mean and deviation are
the result of the method. Beside it stands the *ensemble*, the mean prediction
of a slide over all models that tested it.

Two kinds of uncertainty are kept apart: the deviation over seeds (and repeats)
says how much the start of training matters; the interval how much the patients
do, which are resampled, with all their slides, once for all whole predictions.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_prep.files import atomic
from data_prep.files import tables as files_tables
from wsiseq_jax.metrics import bootstrap, charts
from wsiseq_jax.mil import prediction_tables, scores
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import Result

SUMMARY = (
  "of", "class", "metric", "mean", "std", "low", "high", "mean_of_folds",
  "predictions", "slides", "patients", "failures",
)  # fmt: skip
METRICS = ("repeat", "fold", "seed", "class", "metric", "value")
METRIC_NAMES = {
  "auroc": "AUROC",
  "auprc": "AUPRC",
  "accuracy": "accuracy",
  "balanced_accuracy": "balanced accuracy",
  "sensitivity": "sensitivity",
  "specificity": "specificity",
  "ece": "ECE",
  "r2": "R²",
  "mae": "MAE",
  "concordance": "concordance",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Whole:
  """A prediction of all test slides.

  Attributes:
    key: repeat, fold and seed, 'all' for what it is put together from.
    rows: of the cohort, ascending.
    values: predictions, [n y].
    threshold: of the model behind each row, [n y].
  """

  key: tuple[Any, Any, Any]
  rows: np.ndarray
  values: Float[np.ndarray, "n y"]
  threshold: Float[np.ndarray, "n y"]


def one_model(cohort: Cohort, result: Result) -> Whole:
  """What one model says of its test slides."""
  row = {slide_id: i for i, slide_id in enumerate(cohort.ids)}
  test = result.predicted["test"]
  rows = np.array([row[slide_id] for slide_id in test.ids], int)
  order = np.argsort(rows)
  values = test.values[order]
  return Whole(
    (result.run.repeat, result.run.fold, result.run.seed),
    rows[order],
    values,
    np.broadcast_to(result.threshold, values.shape),
  )


def joined(parts: Sequence[Whole]) -> Whole:
  """The folds of a repeat and a seed as one."""
  rows = np.concatenate([part.rows for part in parts])
  order = np.argsort(rows)
  repeat, _, seed = parts[0].key
  return Whole(
    (repeat, "all", seed),
    rows[order],
    np.concatenate([part.values for part in parts])[order],
    np.concatenate([part.threshold for part in parts])[order],
  )


def ensemble(parts: Sequence[Whole]) -> tuple[Whole, np.ndarray, np.ndarray]:
  """The mean over all models that tested a slide.

  Returns:
    The prediction; the deviation over models [n y]; how many models, [n].
  """
  rows = np.unique(np.concatenate([part.rows for part in parts]))
  place = {row: i for i, row in enumerate(rows.tolist())}
  shape = (len(rows), parts[0].values.shape[1])
  count, total, square, threshold = (np.zeros(shape) for _ in range(4))
  for part in parts:
    at = [place[row] for row in part.rows.tolist()]
    count[at] += 1
    total[at] += part.values
    square[at] += part.values**2
    threshold[at] += part.threshold
  mean = total / count
  spread = np.sqrt(np.maximum(square / count - mean**2, 0.0))
  whole = Whole(("all", "all", "all"), rows, mean, threshold / count)
  return whole, spread, count[:, 0].astype(int)


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
  """Writes all tables and pictures; see `configs/mil.py`.

  Args:
    workdir: where to.
    cohort: slides; labels NaN where unknown, and then nothing is scored.
    status: of each slide.
    results: all models.
    resamples: for the intervals.
    bins: of the calibration error.
    is_crossed: whether models are of several folds, each with test slides of
      its own.
    notes: more lines for summary.md.

  Returns:
    The rows of summary.csv; [] if no label is known.
  """
  models = [one_model(cohort, result) for result in results]
  wholes = models
  if is_crossed:
    keys = dict.fromkeys((m.key[0], m.key[2]) for m in models)
    wholes = [
      joined([m for m in models if (m.key[0], m.key[2]) == key]) for key in keys
    ]
  together = ensemble(models)
  files_tables.write(
    workdir / "predictions.csv",
    prediction_tables.prediction_columns(cohort),
    prediction_tables.prediction_rows(cohort, results),
  )
  files_tables.write(
    workdir / "predictions_slide.csv",
    prediction_tables.slide_columns(cohort),
    prediction_tables.slide_rows(cohort, status, *together),
  )
  if not cohort.is_labelled.any():
    return []
  scored = _known(cohort, wholes), _known(cohort, [together[0]])[0]
  folds = _known(cohort, models) if is_crossed else []
  files_tables.write(
    workdir / "metrics.csv",
    METRICS,
    _metric_rows(cohort, [*folds, *scored[0], scored[1]], bins),
  )
  summary = summarise(cohort, status, *scored, folds, resamples, bins)
  files_tables.write(workdir / "summary.csv", SUMMARY, summary)
  text = markdown(cohort, status, results, summary, is_crossed, notes)
  atomic.write_atomic(workdir / "summary.md", text)
  _draw(workdir, cohort, *scored, resamples, bins)
  return summary


def _draw(workdir, cohort, wholes, together, resamples, bins) -> None:
  """Writes roc.png and calibration.png; none where numbers are predicted."""
  each = [_questions(cohort, whole) for whole in wholes]
  panels = [
    (name, labels, score, patients, [one[i][1:3] for one in each])
    for i, (name, labels, score, patients) in enumerate(
      _questions(cohort, together)
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
    charts.roc(above, labels, score, patients, resamples, others)
    found = charts.calibration_bins(labels, score, patients, bins)
    charts.calibration_curve(below, found)
  charts.to_png(roc, workdir / "roc.png")
  charts.to_png(calibration, workdir / "calibration.png")


def _questions(cohort: Cohort, whole: Whole) -> list[tuple]:
  """What is asked with yes or no: name, truth, probability and patients.

  The positive class of two; each of several classes against the rest; each
  label, where it is known. Nothing for numbers.
  """
  labels, values = cohort.labels[whole.rows], whole.values
  patients, columns = cohort.patients[whole.rows], range(len(cohort.classes))
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


def _known(cohort: Cohort, wholes: Sequence[Whole]) -> list[Whole]:
  """Without slides that have no label at all."""
  has = cohort.is_labelled
  return [
    Whole(w.key, w.rows[k], w.values[k], w.threshold[k])
    for w in wholes
    for k in [has[w.rows]]
  ]


def _score(cohort: Cohort, whole: Whole, bins: int, weights=None):
  """(class, metric) → value of each resample."""
  labels = cohort.labels[whole.rows]
  arguments = (
    cohort.target_type, labels, whole.values, whole.threshold, weights, bins,
  )  # fmt: skip
  found = {("", k): v for k, v in scores.scores(*arguments).items()}
  for number, each in scores.by_class(*arguments).items():
    name = cohort.classes[number]
    found.update({(name, metric): v for metric, v in each.items()})
  return found


def _metric_rows(cohort, wholes, bins) -> Iterator[dict[str, Any]]:
  for whole in wholes:
    for (name, metric), value in _score(cohort, whole, bins).items():
      repeat, fold, seed = whole.key
      yield {
        "repeat": repeat, "fold": fold, "seed": seed, "class": name,
        "metric": metric, "value": float(value[0]),
      }  # fmt: skip


def summarise(
  cohort: Cohort,
  status: Mapping[str, str],
  wholes: Sequence[Whole],
  together: Whole,
  folds: Sequence[Whole],
  resamples: int,
  bins: int,
) -> list[dict[str, Any]]:
  """Mean, deviation and interval of every score, of models and the ensemble.

  Args:
    cohort: the slides.
    status: of each slide.
    wholes: whole predictions, of the same slides all.
    together: the ensemble.
    folds: single models, for the mean of folds; () where that is the same.
    resamples: for the intervals.
    bins: of the calibration error.

  Returns:
    Rows with the keys of `SUMMARY`; the deviation of one prediction is NaN.
  """
  patients = cohort.patients[together.rows]
  failures = sum(
    status[cohort.slides[row].slide_id] != "ok" for row in together.rows
  )
  single = [_score(cohort, whole, bins) for whole in folds]
  rows = []
  for kind, members in (("model", wholes), ("ensemble", [together])):

    def mean(weights, members=members):
      each = [_score(cohort, whole, bins, weights) for whole in members]
      return {
        "\n".join(key): np.mean([one[key] for one in each], axis=0)
        for key in each[0]
      }

    ends = bootstrap.intervals(mean, patients, resamples)
    plain = [_score(cohort, whole, bins) for whole in members]
    for key in plain[0]:
      values = np.array([one[key][0] for one in plain])
      of_folds = np.array([one[key][0] for one in single] or [np.nan])
      of_folds = of_folds[np.isfinite(of_folds)]
      several = len(values) > 1
      rows.append(
        {
          "of": kind,
          "class": key[0],
          "metric": key[1],
          "mean": float(values.mean()),
          "std": float(values.std(ddof=1)) if several else math.nan,
          "low": ends["\n".join(key)][0],
          "high": ends["\n".join(key)][1],
          "mean_of_folds": float(of_folds.mean())
          if kind == "model" and len(of_folds)
          else math.nan,
          "predictions": len(values),
          "slides": len(together.rows),
          "patients": len(np.unique(patients)),
          "failures": failures,
        }
      )
  return rows


def markdown(
  cohort: Cohort,
  status: Mapping[str, str],
  results: Sequence[Result],
  summary: Sequence[Mapping[str, Any]],
  is_crossed: bool,
  notes: Sequence[str],
) -> str:
  """The summary as text, with what the numbers mean."""
  first = summary[0]
  failed = {s: list(status.values()).count(s) for s in ("no_tissue", "error")}
  of = "models"
  if is_crossed:
    of = "repeats and seeds, each of all folds together,"
  lines = [
    f"# {cohort.target_type}: {', '.join(cohort.classes)}",
    "",
    f"{first['slides']} test slides of {first['patients']} patients, "
    f"{len(results)} models. {first['failures']} of these slides are failures, "
    "predicted by the training prior and scored with the others; in all, "
    f"{failed['no_tissue']} slides have no tissue and {failed['error']} no "
    "usable features (errors.csv).",
    "",
    f"Mean ± deviation over {first['predictions']} {of} and the 95 % interval "
    "from resampling patients; then the ensemble, the mean over all models "
    "that did not know a slide.",
    "",
    "| | model | ensemble |" + (" mean of folds |" if is_crossed else ""),
    "|---|---:|---:|" + ("---:|" if is_crossed else ""),
  ]
  table = {(r["of"], r["class"], r["metric"]): r for r in summary}
  for row in summary:
    if row["of"] != "model":
      continue
    key = (row["class"], row["metric"])
    name = METRIC_NAMES[row["metric"]] + (f", {key[0]}" if key[0] else "")
    cells = [_cell(row), _cell(table["ensemble", *key])]
    if is_crossed:
      cells.append(f"{row['mean_of_folds']:.3f}")
    lines.append(f"| {name} | {' | '.join(cells)} |")
  epochs = [result.epoch for result in results]
  lines += [
    "",
    f"Best epochs {min(epochs)} to {max(epochs)}, median "
    f"{np.median(epochs):g}. Epoch and threshold are chosen on validation; the "
    "threshold by Youden's J, which is the highest balanced accuracy.",
  ]
  blind = sum(not result.is_chosen for result in results)
  if blind:
    lines.append(
      f"Validation of {blind} models had one class only: their threshold is "
      "0.5."
    )
  if cohort.unlabelled:
    lines.append(
      f"{len(cohort.unlabelled)} slides of the table have no label and were "
      "left out."
    )
  return "\n".join([*lines, *notes]) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
  spread = f" ± {row['std']:.3f}" if math.isfinite(row["std"]) else ""
  return f"{row['mean']:.3f}{spread} [{row['low']:.3f}, {row['high']:.3f}]"
