"""Weights of rare classes, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.mil import class_weights, one_fold, trainer
from wsiseq_jax.mil.cohort import Cohort

LOG2, LOG3 = np.log(2.0), np.log(3.0)


def column(*labels):
  return np.array(labels, np.float64)[:, None]


def test_balanced():
  # 4 / (2 · 3) and 4 / (2 · 1).
  found = class_weights.balanced(column(0, 1, 0, 0), "binary")
  np.testing.assert_allclose(found, [[2 / 3, 2]])
  # 6 / (3 · 4), 6 / (3 · 1); nobody is of class 1, which does not count.
  found = class_weights.balanced(column(0, 0, 0, 0, 2, 3), "multiclass")
  np.testing.assert_allclose(found, [[0.5, 1, 2, 2]])
  # Each label by itself, where it is known: 3 / (2 · 2), 3 / (2 · 1); the
  # second has one value only.
  labels = np.array([[1, 1], [0, 1], [0, np.nan], [np.nan, 1]])
  found = class_weights.balanced(labels, "multilabel")
  np.testing.assert_allclose(found, [[0.75, 1.5], [1, 1]])
  np.testing.assert_allclose(
    class_weights.of_labels(found, labels),
    [[1.5, 1], [0.75, 1], [0.75, 1], [1, 1]],
  )
  with pytest.raises(ValueError, match="'regression': has no classes"):
    class_weights.balanced(column(1, 2), "regression")


def test_all_classes_weigh_the_same():
  labels = column(*[0] * 5, *[1] * 3, *[2] * 2)
  each = class_weights.of_labels(
    class_weights.balanced(labels, "multiclass"), labels
  )
  assert each.mean() == pytest.approx(1)
  for number in range(3):
    assert each[labels == number].sum() == pytest.approx(10 / 3)


def test_loss_of_two_classes():
  logits, labels = column(0, LOG3), column(1, 0)
  weights = column(2, 2 / 3)

  def loss(rows, weight=None):
    return trainer.bag_loss(
      "binary", logits[rows], labels[rows], weight, weights[rows]
    )

  # p = 1/2 of what is true, and 1/4: log 2 and log 4.
  both = (2 * LOG2 + 2 / 3 * 2 * LOG2) / 2
  assert float(loss([0, 1])) == pytest.approx(both)
  # Of one slide, too, and of a batch that is filled up.
  assert float(loss([0])) == pytest.approx(2 * LOG2)
  one = loss([0, 1], jnp.array([1.0, 0.0]))
  assert float(one) == pytest.approx(2 * LOG2)


def test_loss_of_several_classes_and_labels():
  logits = np.zeros((2, 3))
  found = trainer.bag_loss(
    "multiclass", logits, column(0, 2), None, column(0.5, 2)
  )
  assert float(found) == pytest.approx(1.25 * LOG3)
  labels = np.array([[1, np.nan], [0, 1]])
  weights = np.array([[1.5, 9], [0.75, 1]])
  found = trainer.bag_loss("multilabel", logits[:, :2], labels, None, weights)
  # A slide's loss is the mean over its known labels.
  assert float(found) == pytest.approx((1.5 + (0.75 + 1) / 2) / 2 * LOG2)


def test_prior_of_failures():
  def prior(labels, head, names, weighting):
    cohort = Cohort((), labels, head, names)
    return one_fold.prior_of(cohort, labels, weighting).tolist()

  labels = column(0, 0, 0, 1)
  assert prior(labels, "binary", ("a", "b"), "none") == [0.75, 0.25]
  found = prior(labels, "binary", ("a", "b"), "balanced")
  assert found == pytest.approx([0.5, 0.5])
  # Nobody in training is of class b.
  found = prior(column(0, 0, 0, 2), "multiclass", ("a", "b", "c"), "balanced")
  assert found == pytest.approx([0.5, 0, 0.5])
  labels = np.array([[1, 1, np.nan], [0, np.nan, np.nan], [0, 1, np.nan]])
  names = ("a", "b", "c")
  found = prior(labels, "multilabel", names, "none")
  assert found == pytest.approx([1 / 3, 1, 0.5])
  found = prior(labels, "multilabel", names, "balanced")
  assert found == pytest.approx([0.5, 1, 0.5])
  assert prior(column(1, 2, 6), "regression", ("n",), "none") == [3]
