"""Scores against scikit-learn, with and without weights, and by hand."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from wsiseq_jax.metrics import classification, regression


def sample(classes, count=60, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count)])
  # Rounded, so that many scores are equal.
  score = np.round(rng.random((len(labels), classes)) * 4) / 4 + 0.01
  score[np.arange(len(labels)), labels] += 0.2
  return labels, score / score.sum(axis=1, keepdims=True)


def reference(labels, probability, weights):
  """What scikit-learn makes of one class against the rest."""
  classes = probability.shape[1]
  names = [1] if classes == 2 else range(classes)
  of = {
    "auroc": metrics.roc_auc_score,
    "auprc": metrics.average_precision_score,
  }
  found = {}
  for name, score in of.items():
    each = [
      score(labels == c, probability[:, c], sample_weight=weights)
      for c in names
      if 0 < weights[labels == c].sum() < weights.sum()
    ]
    found[name] = np.mean(each)
  guess = probability.argmax(axis=1)
  found["accuracy"] = metrics.accuracy_score(
    labels, guess, sample_weight=weights
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    found["balanced_accuracy"] = metrics.balanced_accuracy_score(
      labels, guess, sample_weight=weights
    )
  return found


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classes_as_scikit_learn_has_them(classes):
  labels, probability = sample(classes)
  rng = np.random.default_rng(1)
  weights = rng.integers(0, 4, (6, len(labels))).astype(float)
  found = classification.scores(labels, probability, weights)
  for row in range(len(weights)):
    wanted = reference(labels, probability, weights[row])
    for name in classification.NAMES:
      assert found[name][row] == pytest.approx(wanted[name], abs=1e-12), name
  plain = classification.scores(labels, probability)
  wanted = reference(labels, probability, np.ones(len(labels)))
  assert {k: v[0] for k, v in plain.items()} == pytest.approx(wanted, abs=1e-12)


def test_classes_by_hand():
  # Positive scores 0.9, 0.4; negative 0.6, 0.4, 0.1. Pairs won: 3 + 1 + 0.5.
  score = np.array([0.9, 0.4, 0.6, 0.4, 0.1])
  labels = np.array([1, 1, 0, 0, 0])
  found = classification.scores(labels, np.stack([1 - score, score], axis=1))
  assert found["auroc"][0] == pytest.approx(4.5 / 6)
  # Thresholds 0.9: recall 1/2 at precision 1; 0.4: recall 1 at precision 2/4.
  assert found["auprc"][0] == pytest.approx(0.5 * 1 + 0.5 * 0.5)
  assert found["accuracy"][0] == pytest.approx(3 / 5)
  assert found["balanced_accuracy"][0] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_one_class_alone_has_no_auroc():
  found = classification.scores(np.zeros(3, int), np.full((3, 2), 0.5))
  assert np.isnan(found["auroc"][0]) and np.isnan(found["auprc"][0])
  assert found["accuracy"][0] == 1.0
  # Everybody is of the class: no threshold can be wrong, nothing was asked.
  found = classification.scores(np.ones(3, int), np.full((3, 2), 0.5))
  assert np.isnan(found["auprc"][0])


def test_a_class_that_nobody_has_is_left_out():
  labels, probability = sample(3)
  two = labels != 2
  found = classification.scores(labels[two], probability[two])
  wanted = [
    metrics.roc_auc_score(labels[two] == c, probability[two, c]) for c in (0, 1)
  ]
  assert found["auroc"][0] == pytest.approx(np.mean(wanted))


def test_numbers_as_scikit_learn_has_them():
  rng = np.random.default_rng(2)
  labels = 1e4 + rng.normal(size=40)
  guess = labels + rng.normal(size=40)
  weights = rng.integers(0, 3, (5, 40)).astype(float)
  found = regression.scores(labels, guess, weights)
  for row, w in enumerate(weights):
    r2 = metrics.r2_score(labels, guess, sample_weight=w)
    mae = metrics.mean_absolute_error(labels, guess, sample_weight=w)
    assert found["r2"][row] == pytest.approx(r2, abs=1e-6)
    assert found["mae"][row] == pytest.approx(mae)


def test_r2_of_equal_labels_is_unknown():
  weights = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
  found = regression.scores(np.array([2.0, 3.0, 4.0]), np.zeros(3), weights)
  assert np.isnan(found["r2"][0]) and np.isfinite(found["r2"][1])
  assert found["mae"].tolist() == [2.0, 2.5]
