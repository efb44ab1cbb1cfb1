"""Thresholds and scores by hand."""

import numpy as np
import pytest

from wsiseq_jax.mil import one_fold, scores


def test_youden():
  labels = np.array([0, 0, 1, 0, 1, 1.0])
  p = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
  # 3/3 + 2/3 at 0.25, as 2/3 + 3/3 at 0.45, which is nearer to a half.
  assert scores.youden(labels, p) == pytest.approx(0.45)
  assert scores.youden(labels, 1 - p) == pytest.approx(0.4)
  assert np.isnan(scores.youden(np.ones(3), p[:3]))
  with_unknown = np.append(labels, np.nan), np.append(p, 0.0)
  assert scores.youden(*with_unknown) == pytest.approx(0.45)


def test_thresholds_of_one_class():
  labels, p = np.zeros((3, 1)), np.full((3, 2), 0.5)
  found, is_chosen = one_fold.thresholds("binary", labels, p)
  assert found.tolist() == [0.5, 0.5] and not is_chosen
  found, is_chosen = one_fold.thresholds("multiclass", labels, p)
  assert np.isnan(found).all() and is_chosen


def test_decisions_by_own_thresholds():
  labels = np.array([[1.0], [1.0], [0.0], [0.0]])
  p = np.array([0.6, 0.6, 0.3, 0.3])
  values = np.stack([1 - p, p], axis=1)
  threshold = np.array([0.5, 0.7, 0.2, 0.4])[:, None].repeat(2, axis=1)
  found = scores.scores("binary", labels, values, threshold)
  wanted = {"sensitivity": 0.5, "specificity": 0.5, "auroc": 1.0, "ece": 0.35}
  for name, value in wanted.items():
    assert found[name][0] == pytest.approx(value), name
  # Twice the first slide, and nothing of the third.
  weights = np.array([[2.0, 1.0, 0.0, 1.0]])
  found = scores.scores("binary", labels, values, threshold, weights)
  assert found["sensitivity"][0] == pytest.approx(2 / 3)
  assert found["specificity"][0] == 1


def test_labels_that_nobody_knows_are_left_out():
  labels = np.array([[1.0, np.nan], [0.0, np.nan], [np.nan, 1.0]])
  values = np.array([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4]])
  half = np.full((3, 2), 0.5)
  found = scores.by_class("multilabel", labels, values, half)
  assert found[0]["auroc"][0] == 1 and found[0]["accuracy"][0] == 1
  assert np.isnan(found[1]["auroc"][0]) and found[1]["accuracy"][0] == 0
  # The mean over labels that have a value.
  assert scores.scores("multilabel", labels, values, half)["auroc"][0] == 1
