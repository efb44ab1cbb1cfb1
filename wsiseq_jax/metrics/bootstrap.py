"""Intervals by resampling patients.

Sequences of one patient resemble each other: resampling sequences would count
them as independent and give intervals that are far too narrow. So patients are
drawn with replacement, each with all sequences, and a resample is written as a
weight per sequence: how often its patient was drawn. Scores that take weights
(`classification`, `regression`) then score a thousand resamples at once.

Reference: Field and Welsh, "Bootstrapping clustered data", JRSS B 2007.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

# Sequences times resamples scored at once: 64 MB of weights.
BLOCK_WEIGHTS = 8_000_000

Statistics = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def patient_weights(
  patients: np.ndarray, resamples: int, seed: int
) -> Float[np.ndarray, "r n"]:
  """How often each sequence is in each resample."""
  names, index = np.unique(patients, return_inverse=True)
  share = np.full(len(names), 1 / len(names))
  drawn = np.random.default_rng(seed).multinomial(len(names), share, resamples)
  return drawn[:, index].astype(np.float64)


def intervals(
  statistics: Statistics,
  patients: np.ndarray,
  resamples: int = 1000,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """The 95 % percentile intervals of statistics of the same samples.

  Args:
    statistics: weights [r, n] → {name: values in each resample, [r]}; NaN where
      a resample has none (one class is missing), which is left out.
    patients: patient of each sequence, [n].
    resamples: number of resamples.
    seed: of the draw.

  Returns:
    {name: (low, high)}; NaN if no resample has a value, or all samples are of
    one patient: nothing is known of others then.

  Example:
    >>> y = np.array([0.0, 0.0, 1.0, 1.0])
    >>> mean = lambda w: {"mean": (w * y).sum(axis=1) / w.sum(axis=1)}
    >>> intervals(mean, np.array(["a", "a", "b", "b"]))
    {'mean': (0.0, 1.0)}
  """
  is_one = len(np.unique(patients)) < 2
  weights = patient_weights(patients, resamples, seed)
  rows = max(1, BLOCK_WEIGHTS // max(len(patients), 1))
  blocks = [
    statistics(weights[i : i + rows]) for i in range(0, resamples, rows)
  ]
  found = {}
  for name in blocks[0]:
    values = np.concatenate([block[name] for block in blocks])
    values = values[np.isfinite(values)]
    ends = (float("nan"),) * 2
    if len(values) and not is_one:
      ends = np.quantile(values, [0.025, 0.975])
    found[name] = (float(ends[0]), float(ends[1]))
  return found
