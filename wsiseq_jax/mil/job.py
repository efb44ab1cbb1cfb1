"""The job `mil`: cross-validation times seeds, tables, maps of tiles.

One model is one (repeat, fold, seed). Models are independent; each leaves its
parameters and predictions in `models/`, with a stamp of everything it depends
on (features, labels, split, settings). A model whose stamp is right is done.
Scores, intervals, tables, pictures and maps are made from these files, so they
can be made again without training anything.

Several processes share out the models by number and meet before the tables.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float
from ml_collections import ConfigDict

from data_prep.files import atomic, done
from wsiseq_jax import config as configs
from wsiseq_jax import fit, launch
from wsiseq_jax.data import bags as bag_files
from wsiseq_jax.data.bags import Bags, UnreadableBag
from wsiseq_jax.mil import (
  class_weights,
  folds,
  prediction_tables,
  results,
  scores,
  settings,
  synthetic,
  tables,
  write_maps,
)
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.results import Predicted, Result, Run
from wsiseq_jax.mil.trainer import BagFitSettings, BagTrainer, values_of

# Changes when models of an older version must be trained again.
_VERSION = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """What all models share.

  Attributes:
    config: the config.
    cohort: slides and labels.
    bags: their features.
    folds: rows of each split by (repeat, fold).
    trainer: compiled once for all.
  """

  config: ConfigDict
  cohort: Cohort
  bags: Bags
  folds: folds.Folds
  trainer: BagTrainer

  @property
  def workdir(self) -> pathlib.Path:
    """Where everything is written."""
    return pathlib.Path(self.config.workdir)

  @property
  def runs(self) -> list[Run]:
    """All models, those of a fold next to each other."""
    return [
      Run(repeat, fold, seed)
      for repeat, fold in sorted(self.folds)
      for seed in self.config.seeds
    ]


def mil(config: ConfigDict) -> list[dict[str, Any]]:
  """The job: trains what is missing, writes tables, pictures and maps.

  Args:
    config: the config, see `configs/mil.py`.

  Returns:
    The rows of `summary.csv`; [] on processes that are not the main one.

  Raises:
    ValueError: a bad config, table, feature folder or splits file.
  """
  settings.validate(config)
  job = prepare(config)
  runs = job.runs
  count, mine = jax.process_count(), jax.process_index()
  todo = [
    run
    for run in runs[mine::count]
    if not results.is_done(job.workdir / "models", run, inputs(job, run))
  ]
  launch.log(
    f"{len(runs)} models, {len(runs[mine::count]) - len(todo)} of them done"
    + (f", {count} processes share them" if count > 1 else "")
  )
  preemption = launch.Preemption()
  for number, run in enumerate(todo, start=1):
    result = train(job, run, preemption)
    launch.log(
      f"[{number}/{len(todo)}] repeat {run.repeat} fold {run.fold} seed "
      f"{run.seed}: best epoch {result.epoch} of {len(result.history)}, "
      f"validation loss {result.history[result.epoch - 1][1]:.4f}"
    )
  if count > 1:
    multihost_utils.sync_global_devices("mil models")
  if not launch.is_main():
    return []
  found = [results.load(job.workdir / "models", run) for run in runs]
  for result in found:
    for slide_id, reason in result.failures.items():
      if job.bags.ok(slide_id):
        job.bags.fail(slide_id, reason)
    if not result.is_chosen:
      launch.log(
        f"{result.run.name}: validation has one class only; threshold 0.5"
      )
  prediction_tables.write_errors(
    job.workdir / "errors.csv", job.bags.status, job.bags.reason
  )
  scored = config.scores
  summary = tables.write(
    job.workdir,
    job.cohort,
    job.bags.status,
    found,
    scored.resamples,
    scored.ece_bins,
    is_crossed=len({run.fold for run in runs}) > 1,
  )
  if config.maps.write:
    write_maps.write(
      job.workdir,
      job.cohort,
      job.bags,
      job.trainer,
      found,
      job.workdir / "models",
      config.maps.class_name,
    )
  first = summary[0]
  launch.log(
    f"{tables.METRIC_NAMES[first['metric']]} {first['mean']:.3f} "
    f"[{first['low']:.3f}, {first['high']:.3f}]; see "
    f"{job.workdir / 'summary.md'}"
  )
  return summary


def prepare(config: ConfigDict) -> Job:
  """Reads the table and all features, draws or reads the splits."""
  workdir = pathlib.Path(config.workdir)
  data = config.data
  with launch.main_first("mil data"):
    workdir.mkdir(parents=True, exist_ok=True)
    features, table = data.features, data.table
    if features == settings.SYNTHETIC:
      features, table = map(str, synthetic.write(workdir / "data"))
  cohort = cohorts.read(
    table, data.label, config.target_type, data.classes, data.split_column
  )
  _check_class_name(config, cohort)
  if cohort.unlabelled:
    launch.log(f"{len(cohort.unlabelled)} slides have no label: left out")
  bags = open_bags(config, features, cohort.ids, cohort.unlabelled)
  with launch.main_first("mil splits"):
    parts = folds.obtain(workdir / "splits.csv", cohort, config.folds.to_dict())
  outputs = settings.outputs_of(config.target_type, cohort.classes)
  model = settings.model_config(config, bags.width, outputs)
  trainer = BagTrainer(model, config.target_type, training_settings(config))
  devices = trainer.mesh.size
  if devices < jax.local_device_count():
    launch.log(
      f"config.data.batch_size = {data.batch_size}: {devices} of "
      f"{jax.local_device_count()} devices are used"
    )
  if launch.is_main():
    prediction_tables.write_errors(
      workdir / "errors.csv", bags.status, bags.reason
    )
    known = {"width": bags.width, "classes": list(cohort.classes)}
    saved = {"config": configs.to_dict(config), **known}
    text = json.dumps(saved, indent=2, sort_keys=True)
    atomic.write_atomic(workdir / "mil_config.json", text + "\n")
  return Job(config, cohort, bags, parts, trainer)


def open_bags(
  config: ConfigDict,
  features: str,
  ids: Sequence[str],
  more: Sequence[str] = (),
) -> Bags:
  """Reads all bags and says what became of them.

  Args:
    config: the config.
    features: the folder.
    ids: slides that are wanted.
    more: slides that may have files and are not wanted.
  """
  data = config.data
  bags = Bags(
    features,
    ids,
    data.unlisted,
    data.tile_size,
    data.cache_gb,
    data.threads,
    data.smallest_bucket,
    known=more,
  )
  launch.log(
    f"{len(ids)} slides, {sum(bags.tiles.values()):,} tiles of width "
    f"{bags.width}, the longest bag {max(bags.tiles.values()):,}"
  )
  for slide_id, reason in sorted(bags.reason.items()):
    launch.log(f"  failure: {slide_id} [{bags.status[slide_id]}] {reason}")
  return bags


def training_settings(config: ConfigDict) -> BagFitSettings:
  """How to train, from the blocks `optim` and `data`."""
  return BagFitSettings(
    **config.optim.to_dict(),
    batch_size=config.data.batch_size,
    max_tiles=config.data.max_tiles,
  )


def _check_class_name(config: ConfigDict, cohort: Cohort) -> None:
  name = config.maps.class_name
  if name and name not in cohort.classes:
    raise ValueError(
      f"config.maps.class_name = {name!r}: classes are {cohort.classes}"
    )


def inputs(job: Job, run: Run) -> dict[str, Any]:
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
  job: Job, run: Run, preemption: launch.Preemption | None = None
) -> Result:
  """Trains one model, predicts its validation and test slides, saves it.

  Slides that turn out to be unreadable are left out, from the start again.

  Raises:
    launch.Stopped: it was told to stop; the same command goes on.
    ValueError: no training or no validation slide can be used.
  """
  while True:
    try:
      return _train(job, run, preemption or launch.Preemption())
    except UnreadableBag as error:
      launch.log(f"  failure: {error}")


def _train(job: Job, run: Run, preemption: launch.Preemption) -> Result:
  cohort, bags = job.cohort, job.bags
  parts = job.folds[run.repeat, run.fold]
  usable = {}
  for split in ("train", "val"):
    rows = parts[split]
    usable[split] = rows[[bags.ok(cohort.slides[row].slide_id) for row in rows]]
    if not len(usable[split]):
      raise ValueError(
        f"{run.name}: no {split} slide has usable features; see errors.csv"
      )
  ids = {split: [cohort.ids[row] for row in usable[split]] for split in usable}
  labels = {split: cohort.labels[usable[split]] for split in usable}
  models = job.workdir / "models"
  # Slides may be missing that the inputs of the run name, if they are broken.
  state_inputs = done.digest([inputs(job, run), ids])
  folder = fit.FitFolder(
    models / run.name, state_inputs, preemption, job.config
  )
  fitted = job.trainer.fit(
    bags,
    ids["train"],
    labels["train"],
    ids["val"],
    labels["val"],
    run.seed,
    folder,
  )
  scale = fitted.scale
  params = job.trainer.put(fitted.params)
  if cohort.target_type == "survival":
    risk = job.trainer.logits(params, bags, ids["val"])
    scale = (float(risk.mean()), float(risk.std()) or 1.0)
  prior = prior_of(
    cohort, cohort.labels[parts["train"]], job.trainer.settings.class_weights
  )
  predicted = {
    split: predict(
      job.trainer,
      params,
      scale,
      prior,
      bags,
      [cohort.ids[row] for row in parts[split]],
    )
    for split in ("val", "test")
  }
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
  results.save(models, result, fitted.params, inputs(job, run))
  folder.clear()
  return result


def prior_of(
  cohort: Cohort, labels: Float[np.ndarray, "n k"], weighting: str = "none"
) -> Float[np.ndarray, " y"]:
  """What is said of a slide of which nothing is seen.

  Shares of classes or labels in training, the mean number, the mean risk (0).
  It is what a model that sees nothing would learn.

  Args:
    cohort: the slides.
    labels: of the training slides.
    weighting: of classes, one of `class_weights.NAMES`.
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


def predict(
  trainer: BagTrainer,
  params: Any,
  scale: tuple[float, float],
  prior: Float[np.ndarray, " y"],
  bags: Bags,
  ids: Sequence[str],
) -> Predicted:
  """What a model says of slides; of failures, what it knew before.

  Args:
    trainer: of the model's shape.
    params: of the model.
    scale: of numbers and risks, see `Result`.
    prior: of failures.
    bags: where the bags are.
    ids: the slides.
  """
  values = np.tile(prior, (len(ids), 1))
  while at := [i for i, slide_id in enumerate(ids) if bags.ok(slide_id)]:
    try:
      logits = trainer.logits(params, bags, [ids[i] for i in at])
    except UnreadableBag as error:
      launch.log(f"  failure: {error}")
      continue
    values[at] = values_of(trainer.head, logits, scale)
    break
  status = tuple(bags.status[slide_id] for slide_id in ids)
  return Predicted(tuple(ids), values, status)


def thresholds(
  target_type: str,
  labels: Float[np.ndarray, "n k"],
  values: Float[np.ndarray, "n y"],
) -> tuple[Float[np.ndarray, " y"], bool]:
  """Youden's threshold of each column, from validation.

  Returns:
    Thresholds, NaN where there is none; whether all could be chosen. Where
    validation has one class only it is 0.5.
  """
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
