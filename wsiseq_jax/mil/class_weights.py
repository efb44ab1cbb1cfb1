"""Weights of classes in the slide loss, for cohorts where a class is rare.

    balanced   w_c = n / (C n_c)

with n training slides, C classes among them and n_c slides of class c, so that
all classes weigh the same and the mean weight is 1. Labels that do not exclude
each other are weighted one by one, each as two classes, over the slides where
it is known. Only training labels are used.

A weighted loss is divided by the number of slides, not by the sum of their
weights: in a batch of one slide the weight would cancel. Probabilities, and the
prior of failures, are then those of a cohort of equally frequent classes.
"""

import numpy as np
from jaxtyping import Float, Shaped

NAMES = ("none", "balanced")
# Those that have classes.
TARGET_TYPES = ("binary", "multiclass", "multilabel")


def balanced(
  labels: Shaped[np.ndarray, "n k"], target_type: str
) -> Float[np.ndarray, "k c"]:
  """Weights by column of the labels and class.

  Example:
    >>> balanced(np.array([[0.0], [0.0], [0.0], [1.0]]), "binary").round(3)
    array([[0.667, 2.   ]])
  """
  if target_type not in TARGET_TYPES:
    raise ValueError(
      "config.optim.class_weights = 'balanced', config.target_type = "
      f"{target_type!r}: has no classes; of use for {TARGET_TYPES}"
    )
  count = int(np.nanmax(labels, initial=1)) + 1
  weights = np.ones((labels.shape[1], count))
  for column, row in zip(labels.T, weights, strict=True):
    number = np.bincount(
      column[np.isfinite(column)].astype(int), minlength=count
    )
    there = number > 0
    row[there] = number.sum() / (there.sum() * number[there])
  return weights


def of_labels(
  weights: Float[np.ndarray, "k c"] | None, labels: Shaped[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
  """The weight of each label.

  Example:
    >>> of_labels(np.array([[0.5, 2.0]]), np.array([[1.0], [0.0], [np.nan]]))
    array([[2. ],
           [0.5],
           [1. ]])
  """
  found = np.ones(labels.shape)
  if weights is None:
    return found
  known = np.isfinite(labels) & (labels < weights.shape[1])
  column = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
  found[known] = weights[column[known], labels[known].astype(int)]
  return found
