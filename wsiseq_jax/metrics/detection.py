"""Scores of points: centres that were found against those that are there.

A found centre is a hit if a true one, not taken yet, lies within a distance of
it; the surest centre takes the nearest first. Counts add up over pictures, so
that patients are resampled as weights.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import spatial

from wsiseq_jax.metrics import bootstrap
from wsiseq_jax.metrics.classification import ratio

COLUMNS = ("metric", "value", "low", "high", "pictures", "patients")


def counts(
  found: Float[np.ndarray, "n 3"],
  true: Float[np.ndarray, "m 2"],
  radius: float,
) -> Int[np.ndarray, "3"]:
  """Hits, found centres, true centres of a picture.

  Args:
    found: x, y, and how sure it is.
    true: x, y.
    radius: the largest distance of a hit.

  Example:
    >>> found = np.array([[0.0, 0, 0.9], [1.0, 0, 0.8], [9.0, 0, 0.7]])
    >>> counts(found, np.array([[0.5, 0.0]]), 2.0).tolist()
    [1, 3, 1]
  """
  hits = 0
  if len(found) and len(true):
    free = np.ones(len(true), bool)
    tree = spatial.cKDTree(true)
    for number in np.argsort(-found[:, 2], kind="stable"):
      near = np.array(tree.query_ball_point(found[number, :2], radius), int)
      near = near[free[near]]
      if len(near):
        apart = np.hypot(*(true[near] - found[number, :2]).T)
        free[near[apart.argmin()]] = False
        hits += 1
  return np.array([hits, len(found), len(true)])


def scores(
  weighted: Float[np.ndarray, "r 3"],
) -> Mapping[str, Float[np.ndarray, " r"]]:
  """Precision, recall and F1 of sums of `counts`; NaN where unknown.

  Example:
    >>> found = scores(np.array([[3.0, 4.0, 6.0]]))
    >>> {name: value.round(2).tolist() for name, value in found.items()}
    {'precision': [0.75], 'recall': [0.5], 'f1': [0.6]}
  """
  hits, found, true = weighted.T
  return {
    "precision": ratio(hits, found),
    "recall": ratio(hits, true),
    "f1": ratio(2 * hits, found + true),
  }


def table(
  of_pictures: Int[np.ndarray, "n 3"],
  patients: np.ndarray,
  resamples: int = 1000,
) -> list[dict[str, Any]]:
  """Rows of `COLUMNS`: all pictures together, intervals over patients."""

  def weighted(weights):
    return scores(weights @ of_pictures)

  values = weighted(np.ones((1, len(of_pictures))))
  ends = bootstrap.intervals(weighted, patients, resamples)
  return [
    {
      "metric": name,
      "value": float(value[0]),
      "low": ends[name][0],
      "high": ends[name][1],
      "pictures": len(of_pictures),
      "patients": len(set(patients.tolist())),
    }
    for name, value in values.items()
  ]
