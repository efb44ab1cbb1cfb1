"""Scores of predicted numbers, for many weightings of the sequences at once."""

import numpy as np
from jaxtyping import Float

NAMES = ("r2", "mae")


def scores(
  labels: Float[np.ndarray, " n"],
  prediction: Float[np.ndarray, " n"],
  weights: Float[np.ndarray, "r n"] | None = None,
) -> dict[str, Float[np.ndarray, " r"]]:
  """Mean absolute error, in the label's unit, and coefficient of determination.

      R² = 1 − Σ w (y − ŷ)² / Σ w (y − ȳ_w)²

  Returns:
    {name: one value for each row of weights}; R² is NaN where all labels of a
    resample are equal.

  Example:
    >>> y, found = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 5.0])
    >>> {k: round(float(v[0]), 3) for k, v in scores(y, found).items()}
    {'r2': -1.0, 'mae': 0.667}
  """
  labels = np.asarray(labels, np.float64)
  prediction = np.asarray(prediction, np.float64)
  if weights is None:
    weights = np.ones((1, len(labels)))
  total = weights.sum(axis=1)
  # Centred first: two large sums of squares would cancel.
  centred = labels - labels.mean()
  mean = weights @ centred / total
  spread = weights @ centred**2 - total * mean**2
  error = weights @ (labels - prediction) ** 2
  is_known = spread > 1e-12 * max(float((centred**2).sum()), 1e-300)
  ratio = error / np.where(is_known, spread, 1.0)
  return {
    "r2": np.where(is_known, 1.0 - ratio, np.nan),
    "mae": weights @ np.abs(labels - prediction) / total,
  }
