"""The job `probe`: what frozen features, or fine-tuned encoders, know.

One row is one (target, probe, fraction of labels, seed). Rows are independent;
each leaves a file of test predictions in `runs/` and, written last, a mark of
everything it depends on (checkpoint, data, settings). A row with the right mark
is done. Scores, intervals, tables and the picture are made from these files, so
they can be made again without training anything.

The order of use is fixed: training labels fit, validation chooses, the test
split is predicted once by what was chosen. See `configs/probe.py` for how to
run it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_prep.files import atomic, done
from wsiseq_jax import config as configs
from wsiseq_jax import evaluate, fit, launch
from wsiseq_jax.probe import (
  fine_tune,
  knn,
  linear,
  samples,
  settings,
  tables,
  tokens,
  trained,
)
from wsiseq_jax.probe.samples import SPLITS, ProbeOutcome, ProbeTarget, Samples
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
class ProbeRow:
  """One result: which target, probe, part of the labels, and seed."""

  target: ProbeTarget
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


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeJob:
  """What all rows share, and what several of them need, computed once."""

  config: ConfigDict  # the config, and the same as `settings`
  settings: settings.ProbeConfig  # see there
  run: evaluate.Loaded  # the model
  splits: Mapping[str, Any]  # source of each split, by role (`SPLITS`)
  # Targets f32 [n, k] and patients [n] of each split, by role.
  labels: samples.Labels
  targets: tuple[ProbeTarget, ...]  # what is predicted

  @property
  def workdir(self) -> pathlib.Path:
    """Where everything is written."""
    return pathlib.Path(self.settings.workdir)

  @functools.lru_cache(maxsize=4)  # noqa: B019
  def known(self, target: ProbeTarget, kind: str) -> tuple[Samples, ...]:
    """All samples of the splits whose label is known, as a probe needs them."""
    found = []
    for role in SPLITS:
      values, patients = self.labels[role]
      labels = values[:, target.column]
      arrays = {} if kind in ON_PIXELS else self.frozen(role)
      of_tokens = {}
      if kind in ON_TOKENS:
        names = ("tokens", "token_mask", "token_time")
        of_tokens = {name: arrays[name] for name in names}
      everything = Samples(
        labels,
        patients,
        np.arange(len(labels)),
        arrays.get("features"),
        of_tokens,
        self.splits[role],
      )
      found.append(everything.take(np.flatnonzero(np.isfinite(labels))))
    return tuple(found)

  def sets(self, row: ProbeRow) -> tuple[Samples, Samples, Samples]:
    """Training, validation and test samples of a row."""
    train, validation, test = self.known(row.target, row.kind)
    chosen = samples.choose_fraction(
      train.labels,
      train.patients,
      len(row.target.classes),
      row.fraction,
      row.seed,
    )
    return train.take(chosen), validation, test

  @functools.cache  # noqa: B019
  def frozen(self, role: str) -> dict[str, np.ndarray]:
    """Frozen features of a split."""
    needs_tokens = any(k in ON_TOKENS for k in self.settings.probe.kinds)
    return samples.frozen_features(
      self.run, self.splits[role], self.workdir, needs_tokens
    )

  @functools.cache  # noqa: B019
  def model(self, kind: str, outputs: int, is_class: bool) -> fit.Model:
    """The same one for targets of as many outputs, so it stays compiled."""
    alike = ProbeTarget(
      "", 0, tuple(map(str, range(outputs))) if is_class else ()
    )
    run = self.run
    if kind in ON_PIXELS:
      width = fine_tune.feature_width(run.task, self.splits["train"], run.mesh)
      return fine_tune.encoder_model(
        run.task, kind == "supervised", width, alike
      )
    arrays = self.frozen("train")
    if kind == "attentive":
      return tokens.attentive_model(arrays["tokens"].shape[-1], alike)
    # A pooled vector is as wide as the features, tokens need not be.
    width = arrays["features"].shape[-1]
    return tokens.pooling_model(run.task.pool, width, alike)

  @functools.cache  # noqa: B019
  def labels_digest(self, column: int) -> str:
    """Tells the labels of a target from any others."""
    return done.digest([self.labels[role][0][:, column] for role in SPLITS])

  def path(self, row: ProbeRow) -> pathlib.Path:
    """The test predictions of a row."""
    return self.workdir / "runs" / f"{row.name}.npz"

  def mark(self, row: ProbeRow) -> done.Done:
    """Whether a row is done, from all that it depends on."""
    how = {}
    if row.kind not in DETERMINISTIC:
      block = self.settings.fit_of(row.kind)
      # Of the learning rates, only this target's concerns the row.
      how = {
        "fit": dataclasses.replace(block, lr_of=()),
        "lr": block.of_target(row.target.name).lr,
      }
    inputs = {
      "checkpoint": self.run.identity,
      "data": [(self.splits[r].identity, self.splits[r].split) for r in SPLITS],
      # Labels are no part of a data set's identity: they may be corrected.
      "labels": self.labels_digest(row.target.column),
      "row": row,
      "version": VERSIONS[row.kind],
      **how,
    }
    return done.Done(self.path(row).with_suffix(".json"), inputs)


def run(config: ConfigDict) -> list[dict[str, Any]]:
  """The job: computes what is missing, writes tables and the picture.

  Args:
    config: the config, see `configs/probe.py`.

  Returns:
    The rows of `probe_summary.csv`.

  Raises:
    ValueError: a bad config, a target that cannot be learned, or a probe that
      the checkpoint's task does not have.
    launch.Stopped: it was told to stop; the same command goes on.
  """
  job = prepare(config)
  rows = list(all_rows(job))
  todo = [row for row in rows if not launch.agree(bool(job.mark(row).read()))]
  launch.log(f"{len(rows)} rows, {len(rows) - len(todo)} of them done")
  preemption = launch.Preemption()
  for number, row in enumerate(todo, start=1):
    if preemption.tick():
      raise launch.Stopped(f"stopped after {number - 1} of {len(todo)} rows")
    outcome = compute(job, row, preemption)
    launch.log(
      f"[{number}/{len(todo)}] {row.target.name} {row.kind} "
      f"{row.fraction:.0%} seed {row.seed}: validation "
      f"{row.target.metric} {outcome.validation:.3f}"
    )
  if not launch.is_main():
    return []
  results = [_load(job, row) for row in rows]
  return tables.write(job.workdir, results, job.settings.probe.resamples)


def prepare(config: ConfigDict) -> ProbeJob:
  """Checks the config, opens data and checkpoint, checks that they agree."""
  checked = settings.validate(config)
  data = checked.data
  run = evaluate.load(config)
  found = evaluate.find_data(run.config)
  if "pooling" in checked.probe.kinds and run.task.pool is None:
    raise ValueError(
      f"config.probe.kinds = {checked.probe.kinds}: 'pooling' needs a temporal "
      f"encoder, task {run.config.task!r} does not have one; choose 'attentive'"
    )
  splits = {
    role: found.open(getattr(data, f"{role}_split"), f"data.{role}_split")
    for role in SPLITS
  }
  labels = {role: samples.read_labels(split) for role, split in splits.items()}
  samples.check_patients(labels)
  wanted = checked.probe.targets
  targets = samples.choose_targets(run.spec, wanted)
  workdir = pathlib.Path(checked.workdir)
  if launch.is_main():
    workdir.mkdir(parents=True, exist_ok=True)
    text = configs.to_json(config)
    atomic.write_atomic(workdir / "probe_config.json", text)
    samples.write_counts(workdir / "labels.csv", targets, labels)
  targets = samples.usable(targets, labels, bool(wanted))
  return ProbeJob(config, checked, run, splits, labels, targets)


def all_rows(job: ProbeJob) -> Iterator[ProbeRow]:
  """All rows, those that share a compiled program next to each other."""
  probe = job.settings.probe
  for target in job.targets:
    for kind in probe.kinds:
      for fraction in sorted(probe.fractions):
        is_random = kind not in DETERMINISTIC or fraction < 1
        for seed in probe.seeds if is_random else probe.seeds[:1]:
          yield ProbeRow(target, kind, fraction, seed)


def compute(
  job: ProbeJob, row: ProbeRow, preemption: launch.Preemption
) -> ProbeOutcome:
  """Runs the probe of a row, writes its test predictions and its mark."""
  sets = job.sets(row)
  folder = None
  if row.kind in DETERMINISTIC:
    probe = {"linear": linear, "knn": knn}[row.kind]
    outcome = probe.run(*sets, row.target)
  else:
    mesh = job.run.mesh
    feed = tokens.TokenFeed(mesh)
    if row.kind in ON_PIXELS:
      data = job.settings.data
      feed = fine_tune.PixelFeed(mesh, data.threads, data.worker_processes)
    folder = fit.FitFolder(
      job.path(row).with_suffix(""),
      job.mark(row).inputs,
      preemption,
      job.config,
    )
    target = row.target
    outcome = trained.run(
      job.model(row.kind, target.outputs, bool(target.classes)),
      sets,
      target,
      job.settings.fit_of(row.kind),
      feed,
      row.seed,
      mesh,
      job.run.params,
      folder,
    )
  if launch.is_main():
    _save(job, row, outcome, sets)
    if folder is not None:
      folder.clear()
  return outcome


def _save(job, row, outcome: ProbeOutcome, sets) -> None:
  train, _, test = sets
  path = job.path(row)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(path) as draft, draft.open("wb") as file:
    np.savez(
      file,
      prediction=outcome.prediction,
      labels=test.labels,
      patients=test.patients,
      index=test.index,
    )
  notes = {
    f"validation_{row.target.metric}": outcome.validation,
    **{f"chosen_{name}": value for name, value in outcome.chosen.items()},
    "train_sequences": len(train),
    "train_patients": len(np.unique(train.patients)),
  }
  job.mark(row).write(notes, [path])


def _load(job: ProbeJob, row: ProbeRow) -> tables.ProbeResult:
  with np.load(job.path(row)) as file:
    return tables.ProbeResult(
      row.target,
      row.kind,
      row.fraction,
      row.seed,
      file["prediction"],
      file["labels"],
      file["patients"],
      job.mark(row).read(),
    )
