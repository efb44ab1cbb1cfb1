"""One model: trained on a fold with a seed, its slides predicted, saved."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from data_prep.files import done
from wsiseq_jax import fit, launch
from wsiseq_jax.data import bags as bag_files
from wsiseq_jax.data.bags import Bags, UnreadableBag
from wsiseq_jax.mil import class_weights, folds, results, scores
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import FoldRun, Predicted, Result
from wsiseq_jax.mil.trainer import BagTrainer, values_of

# Changes when models of an older version must be trained again.
_VERSION = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """What all models share."""

  config: ConfigDict  # the config; its block `wandb` is read while training
  cohort: Cohort  # slides and labels
  bags: Bags  # their features
  folds: folds.Folds  # rows of each split by (repeat, fold)
  trainer: BagTrainer  # compiled once for all

  @property
  def workdir(self) -> pathlib.Path:
    """Where everything is written."""
    return pathlib.Path(self.config.workdir)

  @property
  def runs(self) -> list[FoldRun]:
    """All models, those of a fold next to each other."""
    return [
      FoldRun(repeat, fold, seed)
      for repeat, fold in sorted(self.folds)
      for seed in self.config.seeds
    ]


def inputs(job: Job, run: FoldRun) -> dict[str, Any]:
  """All that a model depends on: see `done.digest`."""
  bags, cohort = job.bags, job.cohort
  parts = job.folds[run.repeat, run.fold]
  return {
    "version": _VERSION,
    "target_type": cohort.target_type,
    "classes": cohort.classes,
    "model": job.trainer.model,
    "training": job.trainer.settings,
    "smallest_bucket": job.config.data.smallest_bucket,
    "run": run,
    "slides": {
      split: [
        (slide.slide_id, bags.digest[slide.slide_id], slide.text)
        for slide in (cohort.slides[row] for row in rows)
      ]
      for split, rows in parts.items()
    },
  }


def train(
  job: Job, run: FoldRun, preemption: launch.Preemption | None = None
) -> Result:
  """Trains one model, predicts its validation and test slides, saves it.

  Slides that turn out to be unreadable are left out, from the start again.
  """
  while True:
    try:
      return _train(job, run, preemption or launch.Preemption())
    except UnreadableBag as error:
      launch.log(f"  failure: {error}")


def _train(job: Job, run: FoldRun, preemption: launch.Preemption) -> Result:
  cohort, bags, trainer = job.cohort, job.bags, job.trainer
  parts = job.folds[run.repeat, run.fold]
  ids, labels = {}, {}
  for split in ("train", "val"):
    rows = [row for row in parts[split] if bags.ok(cohort.ids[row])]
    if not rows:
      raise ValueError(
        f"{run.name}: no {split} slide has usable features; see errors.csv"
      )
    ids[split] = [cohort.ids[row] for row in rows]
    labels[split] = cohort.labels[rows]
  made_from = inputs(job, run)
  folder = fit.FitFolder(
    job.workdir / "models" / run.name,
    # Broken slides are named by the inputs and left out.
    done.digest([made_from, ids]),
    preemption,
    job.config,
  )
  fitted = trainer.fit(
    bags,
    ids["train"],
    labels["train"],
    ids["val"],
    labels["val"],
    run.seed,
    folder,
  )
  scale = fitted.scale
  params = trainer.put(fitted.params)
  if cohort.target_type == "survival":
    risk = trainer.logits(params, bags, ids["val"])
    scale = (float(risk.mean()), float(risk.std()) or 1.0)
  prior = prior_of(
    cohort, cohort.labels[parts["train"]], trainer.settings.class_weights
  )
  predicted = {}
  for split in ("val", "test"):
    slides = [cohort.ids[row] for row in parts[split]]
    logits = readable_logits(trainer, [params], bags, slides)[0]
    predicted[split] = to_predicted(
      cohort.target_type, logits, scale, prior, bags, slides
    )
  val = predicted["val"]
  fine = np.array([status == bag_files.OK for status in val.status])
  threshold, is_chosen = thresholds(
    cohort.target_type, cohort.labels[parts["val"]][fine], val.values[fine]
  )
  result = Result(
    run=run,
    epoch=fitted.epoch,
    history=tuple(fitted.history),
    scale=scale,
    prior=prior,
    threshold=threshold,
    is_chosen=is_chosen,
    predicted=predicted,
    failures=dict(bags.reason),
  )
  results.save(job.workdir / "models", result, fitted.params, made_from)
  folder.clear()
  return result


def prior_of(
  cohort: Cohort, labels: Float[np.ndarray, "n k"], weighting: str = "none"
) -> Float[np.ndarray, " y"]:
  """What a failed slide is given: what a model that sees nothing would learn.

  Shares of classes or labels in training, the mean number, the mean risk (0).
  """
  weights = None
  if weighting == "balanced":
    weights = class_weights.balanced(labels, cohort.target_type)
  each = class_weights.of_labels(weights, labels)
  if cohort.target_type in ("binary", "multiclass"):
    count = np.bincount(
      labels[:, 0].astype(int), each[:, 0], minlength=len(cohort.classes)
    )
    return count / count.sum()
  if cohort.target_type == "survival":
    return np.zeros(1)
  known = np.isfinite(labels)
  count, total = (each * known).sum(axis=0), np.nansum(each * labels, axis=0)
  return np.where(count > 0, total / np.where(count > 0, count, 1.0), 0.5)


def readable_logits(
  trainer: BagTrainer, members: Sequence[Any], bags: Bags, ids: Sequence[str]
) -> Float[np.ndarray, "s n y"]:
  """Logits of slides by many parameters, NaN for slides that are failures."""
  found = np.full((len(members), len(ids), trainer.model.outputs), np.nan)
  while at := [i for i, slide_id in enumerate(ids) if bags.ok(slide_id)]:
    try:
      fine = [ids[i] for i in at]
      found[:, at] = trainer.logits_of_all(members, bags, fine)
      break
    except UnreadableBag as error:
      launch.log(f"  failure: {error}")
  return found


def to_predicted(
  target_type: str,
  logits: Float[np.ndarray, "n y"],
  scale: tuple[float, float],
  prior: Float[np.ndarray, " c"],
  bags: Bags,
  ids: Sequence[str],
) -> Predicted:
  """Predictions of slides; of failures, the prior."""
  values = values_of(target_type, logits, scale)
  fine = np.array([bags.ok(slide_id) for slide_id in ids])
  values = np.where(fine[:, None], values, prior)
  return Predicted(tuple(ids), values, tuple(bags.status[i] for i in ids))


def thresholds(
  target_type: str,
  labels: Float[np.ndarray, "n k"],
  values: Float[np.ndarray, "n y"],
) -> tuple[Float[np.ndarray, " y"], bool]:
  """Youden's threshold of each column, from validation."""
  found = np.full(values.shape[1], np.nan)
  if target_type == "binary":
    found[-1] = scores.youden(labels[:, 0], values[:, -1])
    found[0] = 1 - found[-1]
  elif target_type == "multilabel":
    found[:] = [
      scores.youden(labels[:, j], values[:, j]) for j in range(values.shape[1])
    ]
  else:
    return found, True
  is_chosen = bool(np.isfinite(found).all())
  return np.nan_to_num(found, nan=0.5), is_chosen
