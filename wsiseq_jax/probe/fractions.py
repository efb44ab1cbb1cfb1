"""Part of the labels: by patient, stratified, nested, seeded.

A fraction of the *sequences* would leave a few labelled sequences of every
patient: far more knowledge than a fraction of the patients. So patients are
drawn. They are dealt out by stratum (their class; for numbers, fifths of the
range), so that a small fraction resembles the whole. The patients of 1 % are
among those of 10 % under the same seed, so that a curve over fractions shows
more labels and not other patients. Every class keeps at least one patient.
"""

import numpy as np
from jaxtyping import Int

_BINS = 5


def choose(
  labels: np.ndarray,
  patients: np.ndarray,
  classes: int,
  fraction: float,
  seed: int,
) -> Int[np.ndarray, " k"]:
  """Rows of the patients that a fraction keeps.

  Args:
    labels: class numbers or numbers, [n].
    patients: patient of each row, [n].
    classes: how many classes; 0 for numbers.
    fraction: of each stratum's patients, rounded, at least one.
    seed: of the draw.

  Returns:
    Rows, ascending: all sequences of the patients kept.

  Raises:
    ValueError: the fraction is not in (0, 1].

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> patients = np.array(list("aabcde"))
    >>> rows = choose(labels, patients, 2, fraction=0.5, seed=0)
    >>> len(set(patients[rows]) & set("abc")), set(labels[rows].tolist())
    (2, {0, 1})
  """
  if not 0 < fraction <= 1:
    raise ValueError(
      f"config.probe.fractions: {fraction} must be above 0 and at most 1"
    )
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
