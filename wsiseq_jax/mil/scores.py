"""Scores of predictions, for many weightings of the slides at once.

What is positive is decided by each model's own threshold, which validation
chose; AUROC, AUPRC and concordance know no threshold. Failures (no tissue, no
features) are scored with everything else, by the prior they were given.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from wsiseq_jax.metrics import (
  calibration,
  classification,
  concordance,
  regression,
)

_DECIDED = (
  "auroc",
  "auprc",
  "accuracy",
  "balanced_accuracy",
  "sensitivity",
  "specificity",
  "ece",
)
NAMES: Mapping[str, tuple[str, ...]] = {
  "binary": _DECIDED,
  "multiclass": (*classification.NAMES, "ece"),
  "multilabel": _DECIDED,
  "regression": regression.NAMES,
  "survival": ("concordance",),
}


def youden(
  labels: Float[np.ndarray, " n"], probability: Float[np.ndarray, " n"]
) -> float:
  """The threshold with the highest sensitivity + specificity − 1.

  That is Youden's J, and the same threshold has the highest balanced accuracy,
  (J + 1) / 2. Thresholds lie midway between neighbouring probabilities; of
  equally good ones the nearest to 1/2 is taken. Positive is p ≥ threshold.

  Example:
    >>> youden(np.array([0, 0, 1, 1.]), np.array([0.1, 0.4, 0.3, 0.9]))
    0.65
  """
  known = np.isfinite(labels)
  labels, probability = labels[known], np.asarray(probability[known], float)
  if len(np.unique(labels)) < 2:
    return float("nan")
  values = np.unique(probability)
  cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
  positive = probability[:, None] >= cuts
  sensitivity = positive[labels == 1].mean(axis=0)
  specificity = 1 - positive[labels == 0].mean(axis=0)
  quality = np.round(sensitivity + specificity, 12)
  best = np.flatnonzero(quality == quality.max())
  return float(cuts[best[np.abs(cuts[best] - 0.5).argmin()]])


def scores(
  target_type: str,
  labels: Float[np.ndarray, "n k"],
  prediction: Float[np.ndarray, "n y"],
  threshold: Float[np.ndarray, "n y"],
  weights: Float[np.ndarray, "r n"] | None = None,
  bins: int = 10,
) -> dict[str, Float[np.ndarray, " r"]]:
  """All scores of a target type."""
  if weights is None:
    weights = np.ones((1, len(labels)))
  if target_type == "binary":
    return _decided(
      labels[:, 0], prediction[:, -1], threshold[:, -1], weights, bins
    )
  if target_type == "multiclass":
    number = labels[:, 0].astype(int)
    found = classification.scores(number, prediction, weights)
    right, sure = calibration.top_label(number, prediction)
    return {**found, "ece": calibration.ece(right, sure, bins, weights=weights)}
  if target_type == "multilabel":
    each = [
      _decided(labels[:, j], prediction[:, j], threshold[:, j], weights, bins)
      for j in range(labels.shape[1])
    ]
    return {
      name: classification.mean_of_known([one[name] for one in each])
      for name in _DECIDED
    }
  if target_type == "regression":
    return regression.scores(labels[:, 0], prediction[:, 0], weights)
  risk = prediction[:, 0]
  time, event = labels.T
  return {"concordance": concordance.concordance(time, event, risk, weights)}


def by_class(
  target_type: str,
  labels: Float[np.ndarray, "n k"],
  prediction: Float[np.ndarray, "n y"],
  threshold: Float[np.ndarray, "n y"],
  weights: Float[np.ndarray, "r n"] | None = None,
  bins: int = 10,
) -> dict[int, dict[str, Float[np.ndarray, " r"]]]:
  """Scores of single classes or labels, by number; {} where there is one.

  Of several classes: AUROC and AUPRC of each against the rest. Of several
  labels: everything.
  """
  if weights is None:
    weights = np.ones((1, len(labels)))
  if target_type == "multilabel":
    return {
      j: _decided(
        labels[:, j], prediction[:, j], threshold[:, j], weights, bins
      )
      for j in range(labels.shape[1])
    }
  if target_type != "multiclass":
    return {}
  found = {}
  for j in range(prediction.shape[1]):
    score = prediction[:, j]
    mine = classification.scores(
      (labels[:, 0] == j).astype(int),
      np.stack([1 - score, score], axis=1),
      weights,
    )
    found[j] = {name: mine[name] for name in ("auroc", "auprc")}
  return found


def _decided(labels, probability, threshold, weights, bins):
  """Scores of one question with two answers."""
  known = np.isfinite(labels)
  labels, weights = labels[known].astype(int), weights[:, known]
  probability, threshold = probability[known], threshold[known]
  found = classification.scores(
    labels, np.stack([1 - probability, probability], axis=1), weights
  )
  right = ((probability >= threshold) == labels).astype(np.float64)
  sensitivity = classification.ratio(
    weights @ (right * labels), weights @ labels
  )
  specificity = classification.ratio(
    weights @ (right * (1 - labels)), weights @ (1 - labels)
  )
  return {
    "auroc": found["auroc"],
    "auprc": found["auprc"],
    "accuracy": classification.ratio(weights @ right, weights.sum(axis=1)),
    "balanced_accuracy": (sensitivity + specificity) / 2,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "ece": calibration.ece(labels, probability, bins, weights=weights),
  }
