"""Scores of predictions, and their summary as rows and as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from wsiseq_jax.metrics import bootstrap
from wsiseq_jax.mil import scores
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import Result

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


def _score(cohort: Cohort, part: Any, bins: int, weights=None):
  """(class, metric) → value of each resample."""
  arguments = (
    cohort.target_type,
    cohort.labels[part.rows],
    part.values,
    part.threshold,
    weights,
    bins,
  )
  found = {("", k): v for k, v in scores.scores(*arguments).items()}
  for number, each in scores.by_class(*arguments).items():
    name = cohort.classes[number]
    found.update({(name, metric): v for metric, v in each.items()})
  return found


def metrics_of(
  cohort: Cohort, of: str, parts: Sequence[Any], bins: int
) -> pd.DataFrame:
  """A row for each `tables.TestPrediction`, class and metric."""
  rows = [
    (of, *part.key, *key, float(value[0]))
    for part in parts
    for key, value in _score(cohort, part, bins).items()
  ]
  columns = ["of", "repeat", "fold", "seed", "class", "metric", "value"]
  return pd.DataFrame(rows, columns=columns)


def summarise(
  cohort: Cohort,
  status: Mapping[str, str],
  metrics: pd.DataFrame,
  joined: Sequence[Any],
  mean: Any,
  resamples: int,
  bins: int,
) -> list[dict[str, Any]]:
  """Mean, std and interval of every score, of models and the ensemble."""
  patients = cohort.patients[mean.rows]
  ids = [cohort.ids[row] for row in mean.rows]
  common = {
    "slides": len(ids),
    "patients": len(np.unique(patients)),
    "failures": sum(status[slide_id] != "ok" for slide_id in ids),
  }
  values = metrics.groupby(["of", "class", "metric"], sort=False)["value"]
  of_folds = values.mean()
  rows = []
  for of, parts in (("model", joined), ("ensemble", [mean])):

    def resampled(weights, parts=parts):
      each = [_score(cohort, part, bins, weights) for part in parts]
      return {
        "\n".join(key): np.mean([one[key] for one in each], axis=0)
        for key in each[0]
      }

    ends = bootstrap.intervals(resampled, patients, resamples)
    for key, (low, high) in ends.items():
      name, metric = key.split("\n")
      one = values.get_group((of, name, metric))
      fold = of_folds.get(("fold", name, metric), math.nan)
      rows.append(
        {
          "of": of,
          "class": name,
          "metric": metric,
          "mean": float(one.mean(skipna=False)),
          "std": float(one.std(skipna=False)),
          "low": low,
          "high": high,
          "mean_of_folds": float(fold) if of == "model" else math.nan,
          "predictions": len(one),
          **common,
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
    f"Mean ± std over {first['predictions']} {of} and the 95 % interval from "
    "resampling patients; then the ensemble, the mean over all models that "
    "were trained without a slide.",
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
  std = f" ± {row['std']:.3f}" if math.isfinite(row["std"]) else ""
  return f"{row['mean']:.3f}{std} [{row['low']:.3f}, {row['high']:.3f}]"
