"""The job `mil_predict`: the models of a finished workdir on other slides.

All models of all folds and seeds are one ensemble. The model's shape, target
type and classes come from that workdir; of the config only `data`, `scores` and
`maps` are of use. Without a table there are predictions and no scores.

A slide is read once for all models. Slides are predicted in chunks, each a file
of `chunks/`: what is there is not predicted again. Several processes share out
the chunks, and the maps.

A slide that was trained or validated on, or one of the same patient, would look
better than it is: it is predicted, named in the log, and not scored.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from data_prep.files import done, schema
from data_prep.files import names as slide_names
from data_prep.files import tables as csv_tables
from wsiseq_jax import launch
from wsiseq_jax.data import tile_features
from wsiseq_jax.data.bags import Bags
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil import (
  job,
  one_fold,
  results,
  settings,
  tables,
  write_maps,
)
from wsiseq_jax.mil.cohort import Cohort
from wsiseq_jax.mil.settings import MilSettings
from wsiseq_jax.mil.trainer import BagTrainer

# Slides in a chunk: few enough to lose little when killed.
CHUNK_SLIDES = 64


def run(config: ConfigDict) -> list[dict[str, Any]]:
  """The job: predicts slides, writes tables and maps.

  Args:
    config: the config, see `configs/mil.py`.

  Returns:
    The rows of `summary.csv`; [] without labels, and on processes that are not
    the main one.

  Raises:
    ValueError: a bad config, no finished models, features of another width, or
      labels that the models do not know.
  """
  asked = settings.read(config)
  source = pathlib.Path(asked.predict.models)
  trained, width, classes = _trained(source)
  models = source / "models"
  runs = results.find(models)
  workdir = pathlib.Path(asked.workdir)
  if workdir.resolve() == source.resolve():
    raise ValueError(
      f"config.workdir = {asked.workdir!r}: is the workdir of the models; "
      "name another folder"
    )
  workdir.mkdir(parents=True, exist_ok=True)
  cohort = _cohort(asked, trained.target_type, classes)
  job.check_class_name(asked.maps.class_name, cohort)
  bags = job.open_bags(asked.data, asked.data.features, cohort.ids)
  if bags.width != width:
    raise ValueError(
      f"config.data.features are {bags.width} wide, the models of "
      f"config.predict.models were trained on {width}: another encoder"
    )
  outputs = settings.outputs_of(cohort.target_type, classes)
  model = trained.model_config(width, outputs)
  trainer = BagTrainer(model, cohort.target_type, trained.fit_settings)
  logits = _logits(workdir / "chunks", models, runs, trainer, bags, cohort.ids)
  found = []
  for known, values in zip(
    (results.load(models, one) for one in runs), logits, strict=True
  ):
    test = one_fold.to_predicted(
      cohort.target_type, values, known.scale, known.prior, bags, cohort.ids
    )
    found.append(dataclasses.replace(known, predicted={"test": test}))
  cohort, notes = _without_known(cohort, source / "splits.csv")
  summary = []
  if launch.is_main():
    tables.write_errors(workdir / "errors.csv", cohort, bags)
    summary = tables.write(
      workdir,
      cohort,
      bags.status,
      found,
      asked.scores.resamples,
      asked.scores.ece_bins,
      is_crossed=False,
      notes=notes,
    )
  if asked.maps.write:
    write_maps.write(
      workdir, cohort, bags, trainer, found, models, asked.maps.class_name
    )
  job.meet("mil_predict maps")
  return summary


def _logits(
  folder: pathlib.Path,
  models: pathlib.Path,
  runs: list[results.FoldRun],
  trainer: BagTrainer,
  bags: Bags,
  ids: list[str],
) -> Float[np.ndarray, "s n y"]:
  """Logits of all slides by all models; NaN, and noted, for failures."""
  # Bags of about one length together: few programs, little padding.
  order = sorted(range(len(ids)), key=lambda i: (bags.tiles[ids[i]], ids[i]))
  chunks = [
    order[i : i + CHUNK_SLIDES] for i in range(0, len(order), CHUNK_SLIDES)
  ]
  made_from = [results.inputs_of(models, one) for one in runs]
  marks = [
    done.Done(
      folder / f"{number:05d}.json",
      [made_from, [(ids[i], bags.digest[ids[i]]) for i in chunk]],
    )
    for number, chunk in enumerate(chunks)
  ]
  members = []
  for number in range(jax.process_index(), len(chunks), jax.process_count()):
    if marks[number].read() is not None:
      continue
    members = members or [
      trainer.put(results.load_params(models, one)) for one in runs
    ]
    names = [ids[i] for i in chunks[number]]
    values = one_fold.readable_logits(trainer, members, bags, names)
    failures = {i: bags.reason[i] for i in names if not bags.ok(i)}
    # JSON has no NaN; failures say where it was.
    marks[number].write(
      {"logits": np.nan_to_num(values).tolist(), "failures": failures}
    )
    launch.log(f"[{number + 1}/{len(chunks)}] {len(names)} slides")
  job.meet("mil_predict chunks")
  found = np.full((len(runs), len(ids), trainer.model.outputs), np.nan)
  for chunk, mark in zip(chunks, marks, strict=True):
    facts = mark.read()
    found[:, chunk] = facts["logits"]
    for slide_id, reason in facts["failures"].items():
      if bags.ok(slide_id):
        bags.fail(slide_id, reason)
  return found


def _trained(source: pathlib.Path) -> tuple[MilSettings, int, tuple[str, ...]]:
  """Settings, feature width and classes of a finished job."""
  path = source / "mil_config.json"
  if not path.is_file():
    raise ValueError(
      f"config.predict.models = {str(source)!r}: is not the workdir of a "
      "finished job 'mil' (no mil_config.json)"
    )
  saved = json.loads(path.read_text())
  found = schema.build(MilSettings, saved["config"], str(path))
  return found, saved["width"], tuple(saved["classes"])


def _cohort(
  asked: MilSettings, target_type: str, classes: tuple[str, ...]
) -> Cohort:
  data = asked.data
  if data.table:
    return cohorts.read(
      data.table, data.label, target_type, classes, is_training=False
    )
  try:
    doubled: dict[str, str] = {}
    place = pathlib.Path(data.features).expanduser()
    files = {**tile_features.find(place, doubled), **doubled}
  except ValueError as error:
    raise ValueError(f"config.data.features: {error}") from error
  return cohorts.without_labels(list(files), target_type, classes)


def _without_known(
  cohort: Cohort, path: pathlib.Path
) -> tuple[Cohort, list[str]]:
  """Takes the labels from slides of patients that a model was trained on."""
  seen = _seen(path)
  mine = [
    slide_names.folded(slide.slide_id) in seen["slide_id"]
    or slide_names.folded(slide.patient_id) in seen["patient_id"]
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
  return dataclasses.replace(cohort, labels=labels), [text]


def _seen(path: pathlib.Path) -> Mapping[str, set[str]]:
  rows = [row for row in csv_tables.rows_of(path) if row["split"] != "test"]
  return {
    key: {slide_names.folded(row.get(key, "")) for row in rows}
    for key in ("slide_id", "patient_id")
  }
