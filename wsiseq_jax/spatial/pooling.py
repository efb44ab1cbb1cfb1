"""Fields and slides become patients, and groups of patients are compared.

Cells of one patient resemble each other: the patient is the unit. Curves and
profiles are pooled by adding up counts and what they are counted against, so
that a field with three cells does not weigh as much as one with three thousand.

References: Baddeley et al., "Analysis of a three-dimensional point pattern with
replication", Applied Statistics 1993. Hahn, "A studentized permutation test for
the comparison of spatial point patterns", JASA 2012. Holm, Scandinavian Journal
of Statistics 1979.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsiseq_jax.spatial import border, ripley

_BLOCK = 1 << 20  # values of shuffled patients held at once


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """Two groups of patients."""

  groups: tuple[str, str]
  patients: tuple[int, int]
  difference: Float[np.ndarray, " r"]  # mean of the first less of the second
  t: Float[np.ndarray, " r"]  # Welch's; NaN where a patient has no value
  critical: float  # |t| above it anywhere rejects at 5 %
  p: float  # of the largest |t|: all distances at once
  adjusted_p: float  # for all pairs of groups too, Holm


def curves(of: Sequence[ripley.Curve]) -> ripley.Curve:
  """Curves of the same radii as one.

  Raises:
    ValueError: none, or different radii.
  """
  _same([curve.radii for curve in of], "radii")
  bottom = sum(curve.denominator for curve in of)
  theory = sum(curve.theory * curve.denominator for curve in of)
  mean = np.mean([curve.theory for curve in of], axis=0)
  return ripley.Curve(
    radii=of[0].radii,
    numerator=sum(curve.numerator for curve in of),
    denominator=bottom,
    theory=np.where(bottom > 0, theory / np.where(bottom > 0, bottom, 1), mean),
  )


def profiles(of: Sequence[border.Profile]) -> border.Profile:
  """Profiles of the same zones as one.

  Raises:
    ValueError: none, or different zones.
  """
  _same([profile.edges for profile in of], "edges")
  return border.Profile(
    edges=of[0].edges,
    counts=sum(profile.counts for profile in of),
    areas=sum(profile.areas for profile in of),
    points=sum(profile.points for profile in of),
    area=sum(profile.area for profile in of),
  )


def compare(
  values: Float[np.ndarray, "n r"],
  groups: Any,
  *,
  simulations: int,
  rng: np.random.Generator,
) -> list[Comparison]:
  """Do groups of patients differ, at any distance?

  The groups' names are shuffled over patients; each two groups are tested by
  their largest t (unequal variances) over all distances.

  Args:
    values: a row a patient (`curves`, `profiles`); a single number a patient is
      one column. Columns with a missing value are left out of the test.
    groups: of each patient.
    simulations: number of shuffles.
    rng: of the shuffles.

  Returns:
    One comparison for each two groups.

  Raises:
    ValueError: one group only, a group of one patient, another number of names
      than of patients, no column in which all patients have values.
  """
  groups = np.asarray(groups)
  if groups.shape != (len(values),):
    raise ValueError(f"groups: {groups.shape} names, {len(values)} patients")
  names, count = np.unique(groups, return_counts=True)
  if len(names) < 2 or count.min() < 2:
    raise ValueError(
      "Groups to compare: two or more of two or more patients; these: "
      f"{dict(zip(names.tolist(), count.tolist(), strict=True))}"
    )
  tests = []
  for first, second in itertools.combinations(names, 2):
    use = np.isin(groups, (first, second))
    label = groups[use] == first
    known = np.isfinite(values[use]).all(axis=0)
    if not known.any():
      raise ValueError(
        f"{first} and {second}: at no distance have all patients values"
      )
    rows = values[use][:, known]
    mixed = rng.permuted(np.tile(label, (simulations, 1)), axis=1)
    step = max(1, _BLOCK // rows.size)
    largest = np.concatenate(
      [
        np.abs(_student(rows, mixed[i : i + step])[0]).max(axis=-1)
        for i in range(0, simulations, step)
      ]
    )
    t, difference = np.full((2, values.shape[1]), np.nan)
    t[known], difference[known] = _student(rows, label)
    top = np.nanmax(np.abs(t))
    p = ((largest >= top).sum() + 1) / (simulations + 1)
    tests.append(
      Comparison(
        groups=(str(first), str(second)),
        patients=(int(label.sum()), int((~label).sum())),
        difference=difference,
        t=t,
        critical=float(np.quantile(np.append(largest, top), 0.95)),
        p=float(p),
        adjusted_p=float(p),
      )
    )
  adjusted = holm([found.p for found in tests])
  return [
    dataclasses.replace(found, adjusted_p=float(p))
    for found, p in zip(tests, adjusted, strict=True)
  ]


def holm(p: Sequence[float]) -> Float[np.ndarray, " m"]:
  """P-values corrected for their number; valid whatever their dependence.

  Args:
    p: p-values; NaN stays NaN and does not count.

  Returns:
    Corrected ones, in the same order.

  Example:
    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
  """
  p = np.asarray(p, np.float64)
  known = np.flatnonzero(np.isfinite(p))
  order = known[np.argsort(p[known], kind="stable")]
  steps = p[order] * np.arange(len(order), 0, -1)
  found = np.full(len(p), np.nan)
  found[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return found


def _same(grids, name: str) -> None:
  """Refuses curves that do not stand over the same grid."""
  if not grids or not all(np.array_equal(grid, grids[0]) for grid in grids):
    raise ValueError(f"Pooling needs one or more curves with the same {name}")


def _student(rows, label):
  """Welch's t of each column, [..., r], and the difference of means.

  `label`, [..., n], has as many of the first group in each of its rows.
  """
  difference, error = 0.0, 0.0
  for sign, mine in ((1, label), (-1, ~label)):
    index = np.nonzero(mine)[-1].reshape(*mine.shape[:-1], -1)
    values = rows[index]
    difference = difference + sign * values.mean(axis=-2)
    error = error + values.var(axis=-2, ddof=1) / index.shape[-1]
  # No spread at all: no difference is 0, any other is without bounds.
  t = np.divide(
    difference,
    np.sqrt(error),
    where=error > 0,
    out=np.where(difference == 0, 0.0, np.sign(difference) * 1e300),
  )
  return t, difference
