"""The job `probe`: what frozen features, or fine-tuned encoders, know.

One row is one (target, probe, fraction of labels, seed). Rows are independent;
each leaves a file of test predictions in `runs/`, which carries a hash of
everything it depends on (checkpoint, data, settings). A row whose file has the
right hash is done. Scores, intervals, tables and the picture are made from
these files, so they can be made again without training anything.

The order of use is fixed: training labels fit, validation chooses, the test
split is predicted once by what was chosen. See `configs/probe.py` for how to
run it, `evals/` for the probes themselves.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_prep.files import atomic, done
from wsiseq_jax import config as configs
from wsiseq_jax import evaluate, launch, tasks
from wsiseq_jax.data import source as sources
from wsiseq_jax.probe import (
  features,
  fine_tune,
  fractions,
  knn,
  label_table,
  linear,
  tables,
  training,
)
from wsiseq_jax.probe import settings as probe_config
from wsiseq_jax.probe import tokens as token_probe
from wsiseq_jax.probe.label_table import SPLITS
from wsiseq_jax.probe.samples import Outcome, Samples, Target
from wsiseq_jax.probe.settings import DETERMINISTIC, ON_PIXELS, ON_TOKENS

# Raised when a probe computes something else than before, so that finished rows
# are computed again.
VERSIONS = {
  "linear": 1,
  "knn": 1,
  "attentive": 2,
  "pooling": 2,
  "fine_tune": 1,
  "supervised": 1,
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One result: which target, probe, part of the labels, and seed."""

  target: Target
  kind: str
  fraction: float
  seed: int

  @property
  def name(self) -> str:
    """Also a file name."""
    safe = "".join(c if c.isalnum() else "_" for c in self.target.name)
    # Two targets may differ in a character that files cannot have.
    number = self.target.column
    return f"{number}_{safe}-{self.kind}-{self.fraction:g}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Job:
  """What all rows share.

  Attributes:
    config: the probe's config.
    run: the model.
    splits: source of each split, by role (`SPLITS`).
    labels: targets f32 [n, k] and patients [n] of each split, by role.
    targets: what is predicted.
  """

  config: ConfigDict
  run: evaluate.Loaded
  splits: Mapping[str, Any]
  labels: Mapping[str, tuple[np.ndarray, np.ndarray]]
  targets: tuple[Target, ...]

  @property
  def workdir(self) -> pathlib.Path:
    """Where everything is written."""
    return pathlib.Path(self.config.workdir)


def probe(config: ConfigDict) -> list[dict[str, Any]]:
  """The job: computes what is missing, writes tables and the picture.

  Args:
    config: the config, see `configs/probe.py`.

  Returns:
    The rows of `probe_summary.csv`.

  Raises:
    ValueError: a bad config, a target that cannot be learned, or a probe that
      the checkpoint's task has not.
  """
  probe_config.validate(config)
  job = prepare(config)
  runner = _Runner(job)
  rows = list(all_rows(job))
  todo = [row for row in rows if not launch.agree(_is_done(job, row))]
  launch.log(f"{len(rows)} rows, {len(rows) - len(todo)} of them done")
  for number, row in enumerate(todo, start=1):
    outcome = runner.compute(row)
    if launch.is_main():
      _save(job, row, outcome, runner.test(row.target), runner.counts(row))
    launch.log(
      f"[{number}/{len(todo)}] {row.target.name} {row.kind} "
      f"{row.fraction:.0%} seed {row.seed}: validation "
      f"{row.target.metric} {outcome.validation:.3f}"
    )
  if not launch.is_main():
    return []
  results = [_load(job, row) for row in rows]
  return tables.write(job.workdir, results, config.probe.resamples)


def prepare(config: ConfigDict) -> Job:
  """Opens data and checkpoint, and checks that they fit together."""
  data = config.data
  if data.tfds:
    from wsiseq_jax.data import tfds_images

    def read_spec(merged):
      frames = tasks.get(merged.task).clip(merged).stored
      return tfds_images.read_spec(data.tfds, data.tfds_dir, frames)

    run = evaluate.load(config, read_spec=read_spec)
    source = functools.partial(
      tfds_images.ImageSource,
      data.tfds,
      data.tfds_dir,
      frames=run.spec.frames,
    )
  else:
    run = evaluate.load(config)
    source = functools.partial(sources.RecordSource, data.path)
  if "pooling" in config.probe.kinds and run.task.pool is None:
    raise ValueError(
      f"config.probe.kinds = {tuple(config.probe.kinds)}: 'pooling' needs a "
      f"temporal encoder, which task {run.config.task!r} has not; "
      "choose 'attentive'"
    )
  splits = {
    role: source(split=data[f"{role}_split"], key=f"data.{role}_split")
    for role in SPLITS
  }
  labels = {
    role: label_table.read_labels(source) for role, source in splits.items()
  }
  label_table.check_patients(labels)
  targets = label_table.choose_targets(run.spec, config.probe.targets)
  workdir = pathlib.Path(config.workdir)
  if launch.is_main():
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "probe_config.json").write_text(configs.to_json(config))
    label_table.write_counts(workdir / "labels.csv", targets, labels)
  targets = label_table.usable(targets, labels, bool(config.probe.targets))
  return Job(config, run, splits, labels, targets)


def all_rows(job: Job) -> Iterator[Row]:
  """All rows, those that share a compiled program next to each other."""
  settings = job.config.probe
  for target in job.targets:
    for kind in settings.kinds:
      for fraction in sorted(settings.fractions):
        is_random = kind not in DETERMINISTIC or fraction < 1
        for seed in settings.seeds if is_random else settings.seeds[:1]:
          yield Row(target, kind, float(fraction), seed)


def _stamp(job: Job, row: Row) -> str:
  """A hash of all that a row depends on."""
  config = configs.to_dict(job.config)
  data = config["data"]
  used = {
    "checkpoint": job.run.identity,
    "data": [job.splits[role].identity for role in SPLITS],
    # Labels are no part of a data set's identity: they may be corrected.
    "labels": done.digest(
      [job.labels[role][0][:, row.target.column] for role in SPLITS]
    ),
    "splits": [data[f"{role}_split"] for role in SPLITS],
    "target": dataclasses.asdict(row.target),
    "row": [row.kind, row.fraction, row.seed],
    "version": VERSIONS[row.kind],
  }
  if row.kind in ON_TOKENS:
    used["head"] = config["head"]
  if row.kind in ON_PIXELS:
    used["fine_tune"] = config["fine_tune"]
  for block in ("head", "fine_tune"):
    if block in used:
      # Of the rates, only this target's concerns the row.
      rates = probe_config.parse_rates(used[block]["lr_of"])
      used[block]["lr_of"] = rates.get(row.target.name)
  text = json.dumps(used, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _file(job: Job, row: Row) -> pathlib.Path:
  return job.workdir / "runs" / f"{row.name}.npz"


def _is_done(job: Job, row: Row) -> bool:
  path = _file(job, row)
  if not path.exists():
    return False
  with np.load(path) as file:
    return str(file["stamp"]) == _stamp(job, row)


def _save(
  job: Job, row: Row, outcome: Outcome, test: Samples, counts: dict[str, int]
) -> None:
  path = _file(job, row)
  path.parent.mkdir(parents=True, exist_ok=True)
  notes = {
    f"validation_{row.target.metric}": outcome.validation,
    **{f"chosen_{name}": value for name, value in outcome.chosen.items()},
    **counts,
  }
  with atomic.replacing(path) as draft, draft.open("wb") as file:
    np.savez(
      file,
      prediction=outcome.prediction,
      labels=test.labels,
      patients=test.patients,
      index=test.index,
      stamp=np.array(_stamp(job, row)),
      notes=np.array(json.dumps(notes)),
    )


def _load(job: Job, row: Row) -> tables.Result:
  with np.load(_file(job, row)) as file:
    return tables.Result(
      row.target,
      row.kind,
      row.fraction,
      row.seed,
      file["prediction"],
      file["labels"],
      file["patients"],
      json.loads(str(file["notes"])),
    )


class _Runner:
  """Computes rows; keeps what several of them need."""

  def __init__(self, job: Job):
    self._job = job
    self._trainers: dict[tuple[str, int], training.Trainer] = {}
    self._samples = functools.lru_cache(maxsize=4)(self._read_samples)
    self._arrays: dict[str, dict[str, np.ndarray]] = {}

  def compute(self, row: Row) -> Outcome:
    """Runs the probe of a row."""
    train, validation, test = self._of(row)
    if row.kind == "linear":
      return linear.run(train, validation, test, row.target)
    if row.kind == "knn":
      return knn.run(train, validation, test, row.target)
    settings = self._settings(row.kind)
    run = self._job.run
    if row.kind in ON_TOKENS:
      data = token_probe.token_data(
        train, validation, test, settings.batch_size, run.mesh
      )
    else:
      data = fine_tune.pixel_data(
        *(
          (self._job.splits[role], part)
          for role, part in zip(SPLITS, (train, validation, test), strict=True)
        ),
        settings.batch_size,
        self._job.config,
        run.mesh,
      )
    trainer = self._trainer(row.kind, row.target, settings)
    return trainer.fit(data, row.target, row.seed)

  def test(self, target: Target) -> Samples:
    """The test samples of a target."""
    return self._samples(target, "pixels")[2]

  def counts(self, row: Row) -> dict[str, int]:
    """Labels that a row was given."""
    train = self._of(row)[0]
    patients = len(np.unique(train.patients))
    return {"train_sequences": len(train), "train_patients": patients}

  def _of(self, row: Row) -> tuple[Samples, Samples, Samples]:
    need = "features"
    if row.kind in ON_TOKENS:
      need = "tokens"
    if row.kind in ON_PIXELS:
      need = "pixels"
    train, validation, test = self._samples(row.target, need)
    chosen = fractions.choose(
      train.labels,
      train.patients,
      len(row.target.classes),
      row.fraction,
      row.seed,
    )
    return train.take(chosen), validation, test

  def _read_samples(self, target: Target, need: str) -> tuple[Samples, ...]:
    """All samples of the splits whose label is known."""
    found = []
    for role in SPLITS:
      values, patients = self._job.labels[role]
      labels = values[:, target.column]
      rows = np.flatnonzero(np.isfinite(labels))
      arrays = {} if need == "pixels" else self._frozen(role)
      tokens = {}
      if need == "tokens":
        names = ("tokens", "token_mask", "token_time")
        tokens = {name: arrays[name] for name in names}
      everything = Samples(
        labels, patients, np.arange(len(labels)), arrays.get("features"), tokens
      )
      found.append(everything.take(rows))
    return tuple(found)

  def _frozen(self, role: str) -> dict[str, np.ndarray]:
    if role not in self._arrays:
      job = self._job
      needs_tokens = any(k in ON_TOKENS for k in job.config.probe.kinds)
      self._arrays[role] = features.frozen(
        job.run, job.splits[role], job.workdir, needs_tokens
      )
    return self._arrays[role]

  def _settings(self, kind: str) -> training.Settings:
    block = self._job.config["head" if kind in ON_TOKENS else "fine_tune"]
    values = block.to_dict()
    values["lr_of"] = tuple(
      sorted(probe_config.parse_rates(values["lr_of"]).items())
    )
    return training.Settings(**values)

  def _trainer(
    self, kind: str, target: Target, settings: training.Settings
  ) -> training.Trainer:
    """The same one for targets of as many outputs, so it stays compiled."""
    name = (kind, target.outputs)
    if name not in self._trainers:
      run = self._job.run
      model = self._model(*name)
      self._trainers[name] = training.Trainer(
        model, run.params, bool(target.classes), settings, run.mesh
      )
    return self._trainers[name]

  def _model(self, kind: str, outputs: int) -> training.Model:
    run = self._job.run
    if kind in ON_PIXELS:
      width = fine_tune.feature_width(
        run.task, self._job.splits["train"], run.mesh
      )
      return fine_tune.encoder_model(
        run.task, kind == "supervised", width, outputs
      )
    arrays = self._frozen("train")
    if kind == "attentive":
      width = arrays["tokens"].shape[-1]
      return token_probe.attentive_model(width, outputs)
    # A pooled vector is as wide as the features, tokens need not be.
    width = arrays["features"].shape[-1]
    return token_probe.pooling_model(run.task.pool, width, outputs)
