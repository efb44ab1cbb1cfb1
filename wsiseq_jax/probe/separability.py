"""Linear separability of classes on groups that were not fitted on.

One logistic regression at one penalty, no choice on validation: a quick measure
of features, for comparing models. The probe proper is `linear`.
"""

import numpy as np
from jaxtyping import Float, Int
from sklearn import linear_model, model_selection, pipeline, preprocessing

_FOLDS = 5  # at most; fewer where there are fewer groups


def recalls(
  features: Float[np.ndarray, "n d"],
  labels: Int[np.ndarray, " n"],
  groups: np.ndarray,
) -> dict[int, float]:
  """Recall per class of a logistic regression, tested on unseen groups.

  Features are standardised, classes weighted alike. Answers are pooled over the
  folds before they are scored, because a fold may lack a class.

  Args:
    features: one row a sequence.
    labels: the class of each.
    groups: what a fold holds out whole, the patient say.

  Returns:
    {class: part of its sequences that were recognised}; their mean is the
    balanced accuracy.

  Raises:
    ValueError: fewer than two groups.
  """
  features = np.asarray(features, np.float64)
  folds = min(_FOLDS, len(np.unique(groups)))
  if folds < 2:
    raise ValueError(
      f"groups: {folds} in all; separability on unseen groups needs two"
    )
  answers = np.empty_like(labels)
  split = model_selection.GroupKFold(folds)
  for train, test in split.split(features, labels, groups):
    answers[test] = _fit(features[train], labels[train])(features[test])
  return recall(answers, labels)


def recalls_between(
  features: Float[np.ndarray, "n d"],
  labels: Int[np.ndarray, " n"],
  is_test: np.ndarray,
) -> dict[int, float]:
  """As `recalls`, fitted on some rows and tested on the others, `is_test`."""
  features = np.asarray(features, np.float64)
  answers = _fit(features[~is_test], labels[~is_test])(features[is_test])
  return recall(answers, labels[is_test])


def recall(
  answers: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> dict[int, float]:
  """Recall of each class that has members.

  Example:
    >>> recall(np.array([0, 0, 1]), np.array([0, 1, 1]))
    {0: 1.0, 1: 0.5}
  """
  return {
    int(c): float((answers[labels == c] == c).mean()) for c in np.unique(labels)
  }


def _fit(x, y):
  """(features) → classes, fitted on x and y; one class answers itself."""
  present = np.unique(y)
  if len(present) == 1:
    return lambda rows: np.full(len(rows), present[0])
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(max_iter=2000, class_weight="balanced"),
  )
  return model.fit(x, y).predict
