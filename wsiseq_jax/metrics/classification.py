"""Scores of class probabilities, for many weightings of the sequences at once.

The numbers are scikit-learn's (tests compare), but a bootstrap asks for each of
them a thousand times. Sorting once and adding up weights in that order gives
all resamples together.

Several classes: AUROC and AUPRC are the mean of one class against the rest,
over the classes that have both members and others. A class that nobody in the
split has tells nothing and is left out.
"""

import numpy as np
from jaxtyping import Float, Int

NAMES = ("auroc", "auprc", "accuracy", "balanced_accuracy")


def scores(
  labels: Int[np.ndarray, " n"],
  probability: Float[np.ndarray, "n y"],
  weights: Float[np.ndarray, "r n"] | None = None,
) -> dict[str, Float[np.ndarray, " r"]]:
  """AUROC, AUPRC, accuracy and balanced accuracy.

  Returns:
    {name: one value for each row of weights}; NaN where it has none. Balanced
    accuracy is the mean recall over the classes present.

  Example:
    >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    >>> {k: v.tolist() for k, v in scores(np.array([0, 0, 1]), p).items()}
    {'auroc': [1.0], 'auprc': [1.0], 'accuracy': [0.6666666666666666], \
'balanced_accuracy': [0.75]}
  """
  labels, probability = np.asarray(labels), np.asarray(probability, np.float64)
  if weights is None:
    weights = np.ones((1, len(labels)))
  classes = probability.shape[1]
  areas, precisions = [], []
  # With two classes the second against the first says all.
  for name in [1] if classes == 2 else range(classes):
    area, precision = _ranking(labels == name, probability[:, name], weights)
    areas.append(area)
    precisions.append(precision)
  right = (probability.argmax(axis=1) == labels).astype(np.float64)
  present = (labels[:, None] == np.arange(classes)).astype(np.float64)
  return {
    "auroc": mean_of_known(areas),
    "auprc": mean_of_known(precisions),
    "accuracy": ratio(weights @ right, weights.sum(axis=1)),
    "balanced_accuracy": mean_of_known(
      list(ratio(weights @ (present * right[:, None]), weights @ present).T)
    ),
  }


def _ranking(positive, score, weights) -> tuple[np.ndarray, np.ndarray]:
  """Weighted AUROC and average precision of one class against the rest.

  With scores sorted downwards and equal scores taken together,

      AUROC = Σ_k Δfp_k (tp_{k-1} + tp_k) / 2 / (P N)
      AP    = Σ_k (tp_k − tp_{k-1}) / P · tp_k / (tp_k + fp_k)
  """
  order = np.argsort(-score, kind="stable")
  last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
  weights = weights[:, order]
  hits = np.where(positive[order], weights, 0.0)
  tp = np.cumsum(hits, axis=1)[:, last]
  fp = np.cumsum(weights - hits, axis=1)[:, last]
  zero = np.zeros((len(weights), 1))
  tp_step, fp_step = np.diff(tp, prepend=zero), np.diff(fp, prepend=zero)
  total, others = tp[:, -1], fp[:, -1]
  area = (fp_step * (tp - tp_step / 2)).sum(axis=1)
  precision = (tp_step * ratio(tp, tp + fp, 0.0)).sum(axis=1)
  area = ratio(area, total * others)
  # Without others every threshold is right: no question was asked.
  precision = np.where(others > 0, ratio(precision, total), np.nan)
  return area, precision


def ratio(a, b, where_zero: float = np.nan) -> np.ndarray:
  """A / b, another value where b is 0."""
  return np.where(b > 0, a / np.where(b > 0, b, 1.0), where_zero)


def mean_of_known(values: list[np.ndarray]) -> np.ndarray:
  """Mean over a list, leaving out NaN; NaN where nothing is known."""
  stacked = np.stack(values)
  known = np.isfinite(stacked)
  total = np.where(known, stacked, 0.0).sum(axis=0)
  return ratio(total, known.sum(axis=0))
