"""From slides to patients, and from patients to groups.

Counts of a patient's slides are added up; what is compared between groups is
one curve a patient, relative to what no relation would give.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from wsiseq_jax.spatial import pooling
from wsiseq_jax.spatial.settings import Settings

GROUPS = (
  *("statistic", "from", "to", "group_a", "group_b", "patients_a"),
  *("patients_b", "at_um", "mean_a", "mean_b", "difference", "p"),
  *("adjusted_p", "q", "note"),
)
_KEY = ["statistic", "from", "to", "at_um", "to_um"]
# What has no relation to say 1 of is compared as it is.
_PLAIN = ("density", "density_in_regions")


def patients(curves: pd.DataFrame) -> pd.DataFrame:
  """Pools the curves of slides over the slides of each patient.

  Args:
    curves: of all slides, columns of `slide_numbers.CURVES`.

  Returns:
    A row for each patient, statistic, pair and distance: `numerator`,
    `denominator`, their ratio `value`, what no relation gives (`theory`),
    `relative`, the ratio of the two, and `slides`.
  """
  if not len(curves):
    return pd.DataFrame(columns=["patient_id", *_KEY])
  known = curves[curves["denominator"] > 0].copy()
  known["weighted"] = known["theory"] * known["denominator"]
  found = (
    known.groupby(["patient_id", *_KEY], dropna=False, sort=True)
    .agg(
      numerator=("numerator", "sum"),
      denominator=("denominator", "sum"),
      weighted=("weighted", lambda v: v.sum(skipna=False)),
      slides=("slide_id", "nunique"),
    )
    .reset_index()
  )
  found["value"] = found["numerator"] / found["denominator"]
  found["theory"] = found.pop("weighted") / found["denominator"]
  theory = found["theory"].where(found["theory"] > 0)
  found["relative"] = found["value"] / theory
  plain = found["statistic"].isin(_PLAIN)
  found.loc[plain, "relative"] = found.loc[plain, "value"]
  return found


def groups(
  pooled: pd.DataFrame, group_of: Mapping[str, str], settings: Settings
) -> pd.DataFrame:
  """Compares groups of patients, one test for each statistic and pair.

  The whole curve is tested at once; the distance that is given is the one at
  which the groups differ most.

  Args:
    pooled: of `patients`.
    group_of: group by patient; patients without one are left out.
    settings: of the job.

  Returns:
    Rows with the columns `GROUPS`; `q` is p corrected over the whole table
    (Benjamini and Hochberg).
  """
  rows = []
  rng = np.random.default_rng(settings.statistics.seed)
  known = pooled[pooled["patient_id"].isin(list(group_of))]
  for pair, part in known.groupby(_KEY[:3], sort=True):
    part = part.assign(at=part["at_um"])
    table = part.pivot(index="patient_id", columns="at", values="relative")
    missing = table.isna().all(axis=1)
    table = table[~missing].dropna(axis=1)
    names = [group_of[p] for p in table.index]
    if not table.shape[1]:
      continue
    try:
      tests = pooling.compare(
        table.to_numpy(np.float64),
        names,
        simulations=settings.groups.permutations,
        rng=rng,
      )
    except ValueError as error:
      rows.append(dict(zip(_KEY[:3], pair, strict=True)) | {"note": str(error)})
      continue
    for test in tests:
      rows.append(_row(pair, test, table, np.array(names)))
  found = pd.DataFrame(rows, columns=list(GROUPS))
  tested = found["p"].notna()
  if tested.any():
    p = found.loc[tested, "p"].to_numpy(np.float64)
    found.loc[tested, "q"] = stats.false_discovery_control(p)
  return found


def _row(pair, test: pooling.Comparison, table, names) -> dict[str, object]:
  at = int(np.nanargmax(np.abs(test.t)))
  values = table.iloc[:, at].to_numpy()
  means = [float(values[names == group].mean()) for group in test.groups]
  return dict(zip(_KEY[:3], pair, strict=True)) | {
    "group_a": test.groups[0],
    "group_b": test.groups[1],
    "patients_a": test.patients[0],
    "patients_b": test.patients[1],
    "at_um": float(table.columns[at]),
    "mean_a": means[0],
    "mean_b": means[1],
    "difference": means[0] - means[1],
    "p": test.p,
    "adjusted_p": test.adjusted_p,
    "note": "",
  }
