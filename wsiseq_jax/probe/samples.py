"""What probes are given: labels, part of the labels, frozen features.

A probe sees three sets of samples of one target and returns predictions of the
third. Training samples are a fraction of the labels; validation chooses (the
regularisation, k, the epoch); the test split is looked at once, by what was
chosen.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_prep.files import atomic, done, tables
from wsiseq_jax import embed, evaluate, launch
from wsiseq_jax.data import source as sources
from wsiseq_jax.metrics import classification, regression

# Roles of the splits: labels to learn from, to choose by, to score with.
SPLITS = ("train", "val", "test")
_BINS = 5  # strata of a numeric target

# By role: targets f32 [n, k] and patients [n].
Labels = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ProbeTarget:
  """What is predicted."""

  name: str  # its name in the data set
  column: int  # its place in a record's `targets`
  classes: tuple[str, ...]  # names of its classes; () for a number

  @property
  def outputs(self) -> int:
    """Values a head gives: one a class, or one number."""
    return len(self.classes) or 1

  @property
  def metric(self) -> str:
    """What validation maximises: AUROC of classes, R² of numbers."""
    return "auroc" if self.classes else "r2"


@dataclasses.dataclass(frozen=True)
class Samples:
  """Sequences with a known label."""

  labels: Float[np.ndarray, " n"]  # class numbers or numbers, f32 [n]
  patients: np.ndarray  # patient of each, [n]
  index: Int[np.ndarray, " n"]  # record of each in its split, [n]
  # Frozen features [n, d]; None for fine-tuning.
  features: Float[np.ndarray, "n d"] | None = None
  # Frozen tokens {tokens [n, k, d], token_mask, token_time [n, k]}, for probes
  # that pool by themselves.
  tokens: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  source: Any = None  # the split, for fine-tuning

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, rows: np.ndarray) -> "Samples":
    """The samples of these rows."""
    return Samples(
      self.labels[rows],
      self.patients[rows],
      self.index[rows],
      None if self.features is None else self.features[rows],
      {name: array[rows] for name, array in self.tokens.items()},
      self.source,
    )


@dataclasses.dataclass(frozen=True)
class ProbeOutcome:
  """What a probe found."""

  # Of the test samples: class probabilities [n, y], or numbers [n].
  prediction: np.ndarray
  validation: float  # the score on validation that chose, `Target.metric`
  chosen: Mapping[str, float]  # what was chosen there, by name


def scores(
  target: ProbeTarget,
  labels: np.ndarray,
  prediction: np.ndarray,
  weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """All scores of a target's kind; see `classification` and `regression`."""
  if target.classes:
    return classification.scores(labels.astype(int), prediction, weights)
  return regression.scores(labels, prediction, weights)


def quality(
  target: ProbeTarget, labels: np.ndarray, prediction: np.ndarray
) -> tuple[float, float]:
  """What to maximise on validation: the metric, and of equals the lower loss.

  A small validation split often gives several candidates the very same AUROC.
  """
  metric = float(scores(target, labels, prediction)[target.metric][0])
  if target.classes:
    own = prediction[np.arange(len(labels)), labels.astype(int)]
    return metric, float(np.log(np.maximum(own, 1e-9)).mean())
  return metric, -float(np.square(labels - prediction).mean())


def standardise(
  train: Float[np.ndarray, "n d"], *others: np.ndarray
) -> list[Float[np.ndarray, "m d"]]:
  """Scales features by the mean and std of the training rows alone.

  Example:
    >>> train, test = np.array([[1.0], [3.0]]), np.array([[5.0]])
    >>> [x.tolist() for x in standardise(train, test)]
    [[[-1.0], [1.0]], [[3.0]]]
  """
  mean = train.mean(axis=0, dtype=np.float64)
  std = train.std(axis=0, dtype=np.float64)
  scale = np.where(std > 1e-7 * np.maximum(np.abs(mean), 1e-30), std, 1.0)
  return [(x - mean) / scale for x in (train, *others)]


def choose_targets(
  spec: sources.DataSpec, wanted: tuple[str, ...]
) -> tuple[ProbeTarget, ...]:
  """The targets that a config asks for, () for all."""
  unknown = [name for name in wanted if name not in spec.target_names]
  if unknown or not spec.target_names:
    raise ValueError(
      f"config.probe.targets = {tuple(wanted)}: the data has "
      f"{list(spec.target_names) or 'no targets'}"
    )
  return tuple(
    ProbeTarget(
      name,
      spec.target_names.index(name),
      tuple(spec.target_classes.get(name, ())),
    )
    for name in wanted or spec.target_names
  )


def read_labels(source: Any) -> tuple[np.ndarray, np.ndarray]:
  """Targets f32 [n, k] and patients [n] of all records of a split."""
  targets, patients = [], []
  for index in range(len(source)):
    # Only the labels are kept: pictures would fill the memory.
    record = source.record(index)
    targets.append(record.targets)
    patients.append(record.patient_id)
  return np.stack(targets), np.array(patients)


def check_patients(labels: Labels) -> None:
  """Raises if a patient is in two splits: test scores would mean nothing."""
  for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
    both = np.intersect1d(labels[a][1], labels[b][1])
    if len(both):
      raise ValueError(
        f"config.data.{a}_split and config.data.{b}_split share "
        f"{len(both)} patients, the first is {both[0]!r}"
      )


def usable(
  targets: Sequence[ProbeTarget], labels: Labels, must: bool
) -> tuple[ProbeTarget, ...]:
  """The targets that can be learned and scored."""
  problems = {target: _problem(target, labels) for target in targets}
  left_out = [text for text in problems.values() if text]
  if left_out and (must or len(left_out) == len(targets)):
    raise ValueError("config.probe.targets: " + "\n  ".join(left_out))
  for text in left_out:
    launch.log(f"left out: {text}")
  return tuple(target for target, text in problems.items() if not text)


def _problem(target: ProbeTarget, labels: Labels) -> str:
  """Why a target has nothing to learn or to score; '' if it has."""
  for role in SPLITS:
    values = labels[role][0][:, target.column]
    known = np.unique(values[np.isfinite(values)])
    if len(known) >= 2:
      continue
    what = "unknown everywhere"
    if len(known):
      what = f"the same everywhere, {known[0]:g}"
      if target.classes:
        what = f"the same everywhere, {target.classes[int(known[0])]!r}"
    return (
      f"{target.name!r} is {what} in the {role} split "
      f"(config.data.{role}_split); leave it out, or use another split"
    )
  return ""


def write_counts(
  path: pathlib.Path, targets: Sequence[ProbeTarget], labels: Labels
) -> None:
  """Writes how many labels of each target are known, and logs the unknown."""
  rows = []
  for target in targets:
    for role in SPLITS:
      values, patients = labels[role]
      known = np.isfinite(values[:, target.column])
      unknown = int((~known).sum())
      rows.append(
        {
          "target": target.name,
          "kind": f"{len(target.classes)} classes"
          if target.classes
          else "number",
          "split": role,
          "sequences": int(known.sum()),
          "patients": len(np.unique(patients[known])),
          "unknown": unknown,
        }
      )
      if unknown:
        launch.log(
          f"{target.name}, {role}: {unknown} of {len(known)} labels are "
          "unknown and left out"
        )
  tables.write(path, tuple(rows[0]), rows)


def choose_fraction(
  labels: np.ndarray,
  patients: np.ndarray,
  classes: int,
  fraction: float,
  seed: int,
) -> Int[np.ndarray, " k"]:
  """Part of the labels: by patient, stratified, nested, seeded.

  A fraction of the *sequences* would leave a few labelled sequences of every
  patient: far more knowledge than a fraction of the patients. Patients are
  dealt out by stratum (their class; for numbers, fifths of the range). Those of
  1 % are among those of 10 % under the same seed, so that a curve over
  fractions shows more labels and not other patients.

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> patients = np.array(list("aabcde"))
    >>> rows = choose_fraction(labels, patients, 2, fraction=0.5, seed=0)
    >>> len(set(patients[rows]) & set("abc")), set(labels[rows].tolist())
    (2, {0, 1})
  """
  if fraction == 1:
    return np.arange(len(labels))
  names, index = np.unique(patients, return_inverse=True)
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(names))
  strata = _strata(labels, index, len(names), classes)
  # The first patient of every class is always in: else a class that is nobody's
  # commonest could be missing from 10 % while it is in 1 %.
  needed = []
  for name in range(classes):
    having = np.unique(index[labels == name])
    needed += list(order[np.isin(order, having)][:1])
  kept = []
  for stratum in np.unique(strata):
    members = [p for p in order if strata[p] == stratum]
    members.sort(key=lambda p: p not in needed)  # stable: the order stays
    count = max(
      1,
      int(np.floor(fraction * len(members) + 0.5)),
      sum(p in needed for p in members),
    )
    kept += members[:count]
  return np.flatnonzero(np.isin(index, kept))


def _strata(labels, index, count, classes) -> np.ndarray:
  """Stratum of each patient: the commonest class, or the fifth of the mean."""
  if classes:
    votes = np.zeros((count, classes))
    np.add.at(votes, (index, labels.astype(int)), 1)
    return votes.argmax(axis=1)
  total = np.bincount(index, labels, count)
  mean = total / np.bincount(index, minlength=count)
  edges = np.quantile(mean, np.linspace(0, 1, _BINS + 1)[1:-1])
  return np.searchsorted(edges, mean, side="right")


def frozen_features(
  run: evaluate.Loaded, source: Any, workdir: pathlib.Path, tokens: bool
) -> dict[str, np.ndarray]:
  """Features of a split, computed once and kept in `<workdir>/features/`.

  A file belongs to one checkpoint, data set and split: its name ends in a hash
  of the three, so that several checkpoints may share a workdir.
  """
  digest = done.digest([run.identity, source.identity, source.split])[:16]
  # A split may be a slice such as `train[:80%]`.
  split = "".join(c if c.isalnum() else "_" for c in source.split)
  path = workdir / "features" / f"{split}-{digest}.npz"
  arrays = _read(path, tokens)
  if launch.agree(arrays is not None):
    if arrays is None:
      raise ValueError(f"{path} is not visible to every process")
    launch.log(f"{source.split}: features of {len(arrays['index'])} are cached")
    return arrays
  launch.log(f"{source.split}: features of {len(source)} sequences ...")
  arrays = embed.embed_split(run, source, tokens)
  bad = ~np.isfinite(arrays["features"]).all(axis=1)
  if bad.any():
    raise ValueError(
      f"checkpoint of step {run.step}: features of {int(bad.sum())} of "
      f"{len(bad)} sequences of {source.split!r} are not finite, the first is "
      f"{arrays['sequence_id'][bad.argmax()]}"
    )
  if launch.is_main():
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as draft, draft.open("wb") as file:
      np.savez(file, **arrays)
  return arrays


def _read(path: pathlib.Path, tokens: bool) -> dict[str, np.ndarray] | None:
  if not path.exists():
    return None
  try:
    with np.load(path) as file:
      if tokens and "tokens" not in file.files:
        return None
      wanted = [n for n in file.files if tokens or not n.startswith("token")]
      return {name: file[name] for name in wanted}
  except Exception as error:  # NumPy and zipfile raise whatever they like
    launch.log(f"{path} cannot be read, and is made again: {error}")
    return None
