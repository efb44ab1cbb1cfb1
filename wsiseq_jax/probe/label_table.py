"""Labels of a data set: which there are, which are known, and by whom."""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsiseq_jax import launch
from wsiseq_jax.data import source as sources
from wsiseq_jax.probe.samples import Target

# Roles of the splits: labels to learn from, to choose by, to score with.
SPLITS = ("train", "val", "test")

# By role: targets f32 [n, k] and patients [n].
Labels = Mapping[str, tuple[np.ndarray, np.ndarray]]


def choose_targets(
  spec: sources.DataSpec, wanted: tuple[str, ...]
) -> tuple[Target, ...]:
  """The targets that a config asks for.

  Args:
    spec: what the data set says of itself.
    wanted: names; () for all.

  Raises:
    ValueError: the data has no targets, or none of that name.
  """
  unknown = [name for name in wanted if name not in spec.target_names]
  if unknown or not spec.target_names:
    raise ValueError(
      f"config.probe.targets = {tuple(wanted)}: the data has "
      f"{list(spec.target_names) or 'no targets'}"
    )
  return tuple(
    Target(
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
  targets: Sequence[Target], labels: Labels, must: bool
) -> tuple[Target, ...]:
  """The targets that can be learned and scored.

  Args:
    targets: what is to be predicted.
    labels: of all splits.
    must: whether each of them was asked for by name.

  Raises:
    ValueError: one that was asked for cannot be, or none can.
  """
  problems = {target: _problem(target, labels) for target in targets}
  left_out = [text for text in problems.values() if text]
  if left_out and (must or len(left_out) == len(targets)):
    raise ValueError("config.probe.targets: " + "\n  ".join(left_out))
  for text in left_out:
    launch.log(f"left out: {text}")
  return tuple(target for target, text in problems.items() if not text)


def _problem(target: Target, labels: Labels) -> str:
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
  path: pathlib.Path, targets: Sequence[Target], labels: Labels
) -> None:
  """Writes how many labels of each target are known, and logs the unknown.

  Args:
    path: the CSV.
    targets: what is predicted.
    labels: of all splits.
  """
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      ["target", "kind", "split", "sequences", "patients", "unknown"]
    )
    for target in targets:
      for role in SPLITS:
        values, patients = labels[role]
        known = np.isfinite(values[:, target.column])
        kind = f"{len(target.classes)} classes" if target.classes else "number"
        count = (int(known.sum()), len(np.unique(patients[known])))
        writer.writerow([target.name, kind, role, *count, int((~known).sum())])
        if not known.all():
          launch.log(
            f"{target.name}, {role}: {int((~known).sum())} of {len(known)} "
            "labels are unknown and left out"
          )
