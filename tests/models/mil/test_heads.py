"""Heads of bag models against values worked by hand and scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from wsiseq_jax.models.mil import heads
from wsiseq_jax.models.mil.heads import Survival

NAN = np.nan


def test_binary():
  head = heads.Binary()
  logits = jnp.array([[0.0], [2.0], [-1.0]])
  each = [np.log(2), np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))]
  for labels in ([0.0, 1.0, 0.0], [[0.0], [1.0], [0.0]]):
    np.testing.assert_allclose(
      head.loss(logits, jnp.array(labels)), np.mean(each), rtol=1e-6
    )
  found = head.loss(logits, jnp.array([NAN, 1.0, 0.0]))
  np.testing.assert_allclose(found, np.mean(each[1:]), rtol=1e-6)
  weights = jnp.array([1.0, 3.0, 0.0])
  found = head.loss(logits, jnp.array([0.0, 1.0, 0.0]), weights)
  np.testing.assert_allclose(found, (each[0] + 3 * each[1]) / 4, rtol=1e-6)
  np.testing.assert_array_equal(
    head.onehot([0.0, NAN]), np.array([[0.0], [NAN]])
  )
  p = 1 / (1 + np.exp([0.0, -2.0, 1.0]))
  assert metrics.log_loss([0, 1, 0], p) == pytest.approx(np.mean(each))


def test_multiclass():
  head = heads.Multiclass(3)
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
  labels = np.array([1.0, 2.0])
  want = -np.log([0.25, 0.8])
  np.testing.assert_allclose(head.losses(logits, labels), want, rtol=1e-5)
  np.testing.assert_allclose(
    head.loss(logits, labels[:, None]), want.mean(), rtol=1e-5
  )
  found = head.loss(logits, np.array([NAN, 2.0]))
  np.testing.assert_allclose(found, want[1], rtol=1e-5)
  np.testing.assert_array_equal(
    head.onehot([2.0, NAN]), [[0, 0, 1], [NAN, NAN, NAN]]
  )


def test_multilabel_leaves_out_what_is_not_known():
  head = heads.Multilabel(3)
  logits = jnp.array([[0.0, 3.0, -2.0], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
  labels = np.array([[1.0, NAN, 0.0], [NAN, 0.0, NAN], [NAN, NAN, NAN]])
  first = (np.log(2) + np.log1p(np.exp(-2.0))) / 2
  second = np.log1p(np.exp(1.0))
  np.testing.assert_allclose(
    head.losses(logits, labels), [first, second, 0.0], rtol=1e-6
  )
  np.testing.assert_allclose(
    head.loss(logits, labels), (first + second) / 2, rtol=1e-6
  )
  slope = jax.jit(jax.grad(head.loss))(logits, jnp.asarray(labels))
  assert np.all((slope != 0) == ~np.isnan(labels))
  assert float(head.loss(logits, np.full((3, 3), NAN))) == 0.0


def test_regression():
  head = heads.Regression()
  logits = jnp.array([[1.0], [0.0], [5.0]])
  labels = np.array([3.0, -1.0, NAN])
  np.testing.assert_allclose(head.losses(logits, labels), [4.0, 1.0, 0.0])
  assert float(head.loss(logits, labels)) == pytest.approx(2.5)
  assert np.isnan(head.onehot(labels)).all()


def test_cox_by_hand_with_ties():
  """Two of four have the event at time 2; one is censored there."""
  hazard = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
  labels = np.array([[2, 1], [2, 1], [1, 1], [2, 0], [3, 0]], np.float32)
  logits = jnp.log(jnp.asarray(hazard, jnp.float32))[:, None]
  # At time 1 all five are at risk; at time 2 all but the third, and half of the
  # two events is still there for the second of them.
  first = np.log(15.0) - np.log(3.0)
  both = -np.log(1.0) - np.log(2.0)
  efron = np.log(12.0) + np.log(12.0 - 1.5)
  found = jax.jit(Survival().loss)(logits, labels)
  np.testing.assert_allclose(found, (first + efron + both) / 3, rtol=1e-5)


def test_cox_leaves_out_and_does_not_overflow():
  labels = np.array([[1, 1], [2, 1], [3, 0]], np.float32)
  logits = jnp.array([[0.5], [-0.5], [1.0]])
  loss = jax.jit(Survival().loss)
  want = loss(logits, labels)
  # Slides by which a batch is padded, and one that is lost to follow-up.
  more = np.concatenate([labels, [[0.5, 1.0], [9.0, NAN], [NAN, NAN]]])
  padded = jnp.concatenate([logits, jnp.array([[50.0], [3.0], [7.0]])])
  weights = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
  step = jax.jit(jax.value_and_grad(Survival().loss))
  found, slope = step(padded, jnp.asarray(more, jnp.float32), weights)
  np.testing.assert_allclose(found, want, rtol=1e-6)
  assert np.all(np.isfinite(slope)) and np.all(slope[3:] == 0)
  # Only differences of risks count, however large the risks.
  for shift in (300.0, -300.0):
    found = loss(logits + shift, labels)
    np.testing.assert_allclose(found, want, rtol=1e-4)
  # Nobody has an event: nothing is learned.
  more[:, 1] = 0.0
  found, slope = step(padded, jnp.asarray(more, jnp.float32), weights)
  assert float(found) == 0.0 and not np.any(slope)


def test_cox_is_lowest_where_the_order_is_right():
  labels = np.array([[1, 1], [2, 1], [3, 1]], np.float32)
  logits = jnp.array([[2.0], [0.0], [-2.0]])
  loss = jax.jit(Survival().loss)
  assert float(loss(logits, labels)) < float(loss(-logits, labels))


def test_bad_labels_are_refused():
  with pytest.raises(ValueError, match=r"labels of shape \(2, 2\).*\(b, 1\)"):
    heads.Binary().loss(jnp.zeros((2, 1)), np.zeros((2, 2)))
  with pytest.raises(ValueError, match=r"labels of shape \(2, 3\).*\(b, 1\)"):
    heads.Multiclass(3).loss(jnp.zeros((2, 3)), np.zeros((2, 3)))
  with pytest.raises(ValueError, match="one logit, not 2"):
    Survival(outputs=2)
