"""Harrell's concordance, for many weightings of the patients at once."""

from typing import Any

import numpy as np
from jaxtyping import Float


def concordance(
  time: Float[np.ndarray, " n"],
  event: Any,
  risk: Float[np.ndarray, " n"],
  weights: Float[np.ndarray, "r n"] | None = None,
) -> Float[np.ndarray, " r"]:
  """Harrell's concordance index.

  The share of comparable pairs in which who has the event first has the higher
  risk; equal risks count half. A pair is comparable if the earlier time is an
  event, or if both times are equal and one of the two is an event, which then
  counts as the earlier. Two events at one time are not compared.

  Args:
    time: Of event or censoring.
    event: 1 event, 0 censored, `[n]`.
    risk: Predicted; the higher, the earlier.
    weights: Of patients, one row a resample; all 1 by default. A pair weighs
      the product of its two.

  Returns:
    One value for each row of weights; NaN where no pair can be compared.

  Reference: Harrell et al., Evaluating the yield of medical tests, JAMA 1982.
  """
  event = np.asarray(event).astype(bool)
  if weights is None:
    weights = np.ones((1, len(time)))
  won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
  for i in np.flatnonzero(event):
    later = (time > time[i]) | ((time == time[i]) & ~event)
    score = (risk[i] > risk) + 0.5 * (risk[i] == risk)
    won += weights[:, i] * (weights @ (later * score))
    pairs += weights[:, i] * (weights @ later.astype(np.float64))
  return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)
