"""Separability of classes on groups that were not fitted on."""

import numpy as np
import pytest

from wsiseq_jax.probe import separability


def test_classes_that_lie_apart_in_every_group_are_told():
  labels = np.tile([0, 1], 6)
  groups = np.repeat(["a", "b", "c"], 4)
  features = labels[:, None] * 4.0 + np.linspace(0, 1, 12)[:, None]
  found = separability.recalls(features, labels, groups)
  assert found == {0: 1.0, 1: 1.0}


def test_a_rule_that_holds_within_groups_alone_does_not_count():
  # In group a class 1 is the larger value, in b the smaller one.
  labels = np.array([0, 1] * 4 + [0, 1] * 4)
  groups = np.repeat(["a", "b"], 8)
  features = np.where(groups == "a", labels, 1 - labels)[:, None] * 1.0
  assert separability.recalls(features, labels, groups) == {0: 0.0, 1: 0.0}


def test_a_fold_without_a_class_still_counts_its_answers():
  # c is of class 1 alone; a and b have both.
  labels = np.array([0, 1, 0, 1, 1, 1])
  groups = np.array(["a", "a", "b", "b", "c", "c"])
  features = np.array([[0.0], [9], [1], [8], [9], [0]])
  found = separability.recalls(features, labels, groups)
  assert found == {0: 1.0, 1: 0.75}


def test_fit_on_some_test_on_others():
  labels = np.array([0, 1, 0, 1, 0, 0])
  features = np.array([[0.0], [9], [1], [8], [0], [9]])
  is_test = np.array([False, False, False, False, True, True])
  found = separability.recalls_between(features, labels, is_test)
  assert found == {0: 0.5}


def test_one_group_is_no_test():
  with pytest.raises(ValueError, match="groups: 1"):
    separability.recalls(np.eye(2), np.array([0, 1]), np.array(["a", "a"]))
