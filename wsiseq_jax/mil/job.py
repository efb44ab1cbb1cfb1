"""The job `mil`: cross-validation times seeds, tables, maps of tiles.

One model is one (repeat, fold, seed). Models are independent; each leaves its
parameters and predictions in `models/`, and is done if it was made from these
features, labels, splits and settings. Scores, intervals, tables, pictures and
maps are made from these files, so they can be made again without training.

Several processes share out the models, and the maps, by number.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data_prep.files import atomic
from wsiseq_jax import config as configs
from wsiseq_jax import launch
from wsiseq_jax.data.bags import Bags
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil import (
  folds,
  one_fold,
  results,
  settings,
  synthetic,
  tables,
  write_maps,
)
from wsiseq_jax.mil import summary as summaries
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.one_fold import Job
from wsiseq_jax.mil.results import Result
from wsiseq_jax.mil.settings import MilData
from wsiseq_jax.mil.trainer import BagTrainer


def run(config: ConfigDict) -> list[dict[str, Any]]:
  """The job: trains what is missing, writes tables, pictures and maps.

  Args:
    config: the config, see `configs/mil.py`.

  Returns:
    The rows of `summary.csv`; [] on processes that are not the main one.

  Raises:
    ValueError: a bad config, table, feature folder or splits file.
    launch.Stopped: it was told to stop; the same command goes on.
  """
  asked = settings.read(config)
  job = prepare(config)
  models, runs = job.workdir / "models", job.runs
  count = jax.process_count()
  mine = runs[jax.process_index() :: count]
  todo = [
    one
    for one in mine
    if not results.is_done(models, one, one_fold.inputs(job, one))
  ]
  launch.log(
    f"{len(runs)} models, {len(mine) - len(todo)} of them done"
    + (f", {count} processes share them" if count > 1 else "")
  )
  preemption = launch.Preemption()
  for number, one in enumerate(todo, start=1):
    result = one_fold.train(job, one, preemption)
    launch.log(
      f"[{number}/{len(todo)}] repeat {one.repeat} fold {one.fold} seed "
      f"{one.seed}: best epoch {result.epoch} of {len(result.history)}, "
      f"validation loss {result.history[result.epoch - 1][1]:.4f}"
    )
  meet("mil models")
  found = [results.load(models, one) for one in runs]
  note_failures(job.bags, found)
  summary = []
  if launch.is_main():
    for result in found:
      if not result.is_chosen:
        launch.log(
          f"{result.run.name}: validation has one class only; threshold 0.5"
        )
    tables.write_errors(job.workdir / "errors.csv", job.cohort, job.bags)
    summary = tables.write(
      job.workdir,
      job.cohort,
      job.bags.status,
      found,
      asked.scores.resamples,
      asked.scores.ece_bins,
      is_crossed=len({one.fold for one in runs}) > 1,
    )
  if asked.maps.write:
    write_maps.write(
      job.workdir,
      job.cohort,
      job.bags,
      job.trainer,
      found,
      models,
      asked.maps.class_name,
    )
  meet("mil maps")
  if summary:
    first = summary[0]
    launch.log(
      f"{summaries.METRIC_NAMES[first['metric']]} {first['mean']:.3f} "
      f"[{first['low']:.3f}, {first['high']:.3f}]; see "
      f"{job.workdir / 'summary.md'}"
    )
  return summary


def meet(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def note_failures(bags: Bags, found: Iterable[Result]) -> None:
  """Notes the slides that were found unreadable when models were made."""
  for result in found:
    for slide_id, reason in result.failures.items():
      if bags.ok(slide_id):
        bags.fail(slide_id, reason)


def prepare(config: ConfigDict) -> Job:
  """Reads the table and headers of features, draws or reads the splits."""
  asked = settings.read(config)
  workdir, data = pathlib.Path(asked.workdir), asked.data
  with launch.main_first("mil data"):
    workdir.mkdir(parents=True, exist_ok=True)
    features, table = data.features, data.table
    if features == settings.SYNTHETIC:
      features, table = map(str, synthetic.write(workdir / "data"))
  cohort = cohorts.read(
    table, data.label, asked.target_type, data.classes, data.split_column
  )
  check_class_name(asked.maps.class_name, cohort)
  if cohort.unlabelled:
    launch.log(f"{len(cohort.unlabelled)} slides have no label: left out")
  bags = open_bags(data, features, cohort.ids, cohort.unlabelled)
  with launch.main_first("mil splits"):
    parts = folds.obtain(workdir / "splits.csv", cohort, vars(asked.folds))
  outputs = settings.outputs_of(asked.target_type, cohort.classes)
  model = asked.model_config(bags.width, outputs)
  trainer = BagTrainer(model, asked.target_type, asked.fit_settings)
  if trainer.mesh.size < jax.local_device_count():
    launch.log(
      f"config.data.batch_size = {data.batch_size}: {trainer.mesh.size} of "
      f"{jax.local_device_count()} devices are used"
    )
  if launch.is_main():
    tables.write_errors(workdir / "errors.csv", cohort, bags)
    known = {"width": bags.width, "classes": list(cohort.classes)}
    saved = {"config": configs.to_dict(config), **known}
    text = json.dumps(saved, indent=2, sort_keys=True)
    atomic.write_atomic(workdir / "mil_config.json", text + "\n")
  return Job(config, cohort, bags, parts, trainer)


def open_bags(
  data: MilData, features: str, ids: Sequence[str], more: Sequence[str] = ()
) -> Bags:
  """Opens all bags and says what became of them."""
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


def check_class_name(name: str, cohort: Cohort) -> None:
  """Raises if maps are asked for of a class that there is not."""
  if name and name not in cohort.classes:
    raise ValueError(
      f"config.maps.class_name = {name!r}: classes are {cohort.classes}"
    )
