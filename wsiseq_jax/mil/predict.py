"""The job `mil_predict`: the models of a finished workdir on other slides.

All models of all folds and seeds are one ensemble. The model's shape, target
type and classes come from that workdir; of the config only `data`, `scores` and
`maps` are of use. Without a table there are predictions and no scores.

A slide that was trained or validated on, or one of the same patient, would look
better than it is: it is predicted, named in the log, and not scored.
"""

import csv
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from wsiseq_jax import config as configs
from wsiseq_jax import launch
from wsiseq_jax.data import tile_features
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil import (
  job,
  prediction_tables,
  results,
  settings,
  tables,
  trainer,
  write_maps,
)
from wsiseq_jax.mil.cohort import Cohort


def mil_predict(config: ConfigDict) -> list[dict[str, Any]]:
  """The job: predicts slides, writes tables and maps.

  Args:
    config: the config, see `configs/mil.py`.

  Returns:
    The rows of `summary.csv`; [] without labels.

  Raises:
    ValueError: a bad config, no finished models, features of another width, or
      labels that the models do not know.
  """
  settings.validate(config)
  if not launch.is_main():
    return []
  source = pathlib.Path(config.predict.models)
  trained, width, classes = _trained(source)
  runs = results.find(source / "models")
  workdir = pathlib.Path(config.workdir)
  if workdir.resolve() == source.resolve():
    raise ValueError(
      f"config.workdir = {config.workdir!r}: is the workdir of the models; "
      "name another folder"
    )
  workdir.mkdir(parents=True, exist_ok=True)
  cohort = _cohort(config, trained.target_type, classes)
  bags = job.open_bags(config, config.data.features, cohort.ids)
  if bags.width != width:
    raise ValueError(
      f"config.data.features are {bags.width} wide, the models of "
      f"config.predict.models were trained on {width}: another encoder"
    )
  outputs = settings.outputs_of(cohort.target_type, classes)
  model = settings.model_config(trained, width, outputs)
  training = job.training_settings(trained)
  fitter = trainer.BagTrainer(model, cohort.target_type, training)
  found = []
  for number, run in enumerate(runs, start=1):
    known = results.load(source / "models", run)
    params = fitter.put(results.load_params(source / "models", run))
    test = job.predict(
      fitter, params, known.scale, known.prior, bags, cohort.ids
    )
    found.append(_applied(known, test))
    launch.log(f"[{number}/{len(runs)}] {run.name}")
  prediction_tables.write_errors(
    workdir / "errors.csv", bags.status, bags.reason
  )
  cohort, notes = _without_known(cohort, source / "splits.csv")
  summary = tables.write(
    workdir, cohort, bags.status, found, config.scores.resamples,
    config.scores.ece_bins, is_crossed=False, notes=notes,
  )  # fmt: skip
  if config.maps.write:
    write_maps.write(
      workdir, cohort, bags, fitter, found, source / "models",
      config.maps.class_name,
    )  # fmt: skip
  return summary


def _trained(source: pathlib.Path) -> tuple[ConfigDict, int, tuple[str, ...]]:
  """Config, feature width and classes of a finished job."""
  path = source / "mil_config.json"
  if not path.is_file():
    raise ValueError(
      f"config.predict.models = {str(source)!r}: is not the workdir of a "
      "finished job 'mil' (no mil_config.json)"
    )
  saved = json.loads(path.read_text())
  config = configs.from_dict(saved["config"])
  return config, saved["width"], tuple(saved["classes"])


def _cohort(
  config: ConfigDict, target_type: str, classes: tuple[str, ...]
) -> Cohort:
  data = config.data
  if data.table:
    return cohorts.read(
      data.table, data.label, target_type, classes, is_training=False
    )
  try:
    files = tile_features.find(pathlib.Path(data.features).expanduser())
  except ValueError as error:
    raise ValueError(f"config.data.features: {error}") from error
  return cohorts.without_labels(list(files), target_type, classes)


def _applied(known: results.Result, test: results.Predicted) -> results.Result:
  values = {**vars(known), "predicted": {"test": test}}
  return results.Result(**values)


def _without_known(
  cohort: Cohort, path: pathlib.Path
) -> tuple[Cohort, list[str]]:
  """Takes the labels from slides of patients that a model was trained on."""
  seen = _seen(path)
  mine = [
    slide.slide_id in seen["slide_id"] or slide.patient_id in seen["patient_id"]
    for slide in cohort.slides
  ]
  if not any(mine):
    return cohort, []
  names = [
    s.slide_id for s, was in zip(cohort.slides, mine, strict=True) if was
  ]
  text = (
    f"{len(names)} slides (such as {names[0]!r}) or their patients were "
    "trained or validated on: predicted, not scored."
  )
  launch.log(text)
  labels = np.where(np.array(mine)[:, None], np.nan, cohort.labels)
  values = {**vars(cohort), "labels": labels}
  return Cohort(**values), [text]


def _seen(path: pathlib.Path) -> Mapping[str, set[str]]:
  with path.open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
  return {key: {row[key] for row in rows} for key in ("slide_id", "patient_id")}
