"""The student's loss against values by hand, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wsiseq_jax.segment import student
from wsiseq_jax.segment.backbone import Backbone

# Probability of class 1: 0.8, 0.5, 0.2, 0.2.
LOGITS = jnp.asarray(
  np.log([[[[0.2, 0.8], [0.5, 0.5], [0.8, 0.2], [0.8, 0.2]]]]), jnp.float32
)
ONES = jnp.ones((1, 1, 4))


def target(*values):
  return jnp.array([[values]], jnp.uint8)


def loss(target, confidence=False, balanced=False, weight=ONES):
  return float(student.pixel_loss(LOGITS, target, weight, confidence, balanced))


def test_cross_entropy_of_labelled_pixels():
  got = loss(target(1, 0, 1, 255))
  assert got == pytest.approx(-np.log([0.8, 0.5, 0.2]).mean(), rel=1e-5)
  heavy = jnp.array([[[2.0, 1.0, 0.0, 1.0]]])
  got = loss(target(1, 0, 1, 0), weight=heavy)
  expected = -(2 * np.log(0.8) + np.log(0.5) + np.log(0.8)) / 4
  assert got == pytest.approx(expected, rel=1e-5)


def test_classes_count_alike_whatever_was_labelled():
  got = loss(target(1, 0, 1, 255), balanced=True)
  expected = -(np.log([0.8, 0.2]).mean() + np.log(0.5)) / 2
  assert got == pytest.approx(expected, rel=1e-5)
  # A class that is not there is not counted.
  got = loss(target(1, 255, 1, 255), balanced=True)
  assert got == pytest.approx(-np.log([0.8, 0.2]).mean(), rel=1e-5)


def test_sure_pixels_weigh_more_among_those_of_their_label():
  # Of class 1 p is 0.8 and 0.2, of mean 0.5; of class 0 it is 0.5 and 0.8, of
  # mean 0.65.
  one = -np.log([0.8, 0.2]) * [0.8 / 0.5, 0.2 / 0.5]
  zero = -np.log([0.5, 0.8]) * [0.5 / 0.65, 0.8 / 0.65]
  labels = target(1, 0, 1, 0)
  expected = (one.sum() + zero.sum()) / 4
  assert loss(labels, confidence=True) == pytest.approx(expected, rel=1e-5)
  # Weights of pixels count twice: in the mean, and in the mean of sureness.
  heavy = jnp.array([[[3.0, 1.0, 1.0, 1.0]]])
  mean = (3 * 0.8 + 0.2) / 4
  one = -np.log([0.8, 0.2]) * [0.8 / mean, 0.2 / mean]
  expected = ((3 * one[0] + one[1]) / 4 + zero.mean()) / 2
  got = loss(labels, confidence=True, balanced=True, weight=heavy)
  assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("confidence", [True, False])
@pytest.mark.parametrize("balanced", [True, False])
def test_nothing_labelled_is_no_loss(confidence, balanced):
  nothing = target(255, 255, 255, 255)
  assert loss(nothing, confidence, balanced) == 0
  grad = jax.grad(
    lambda x: student.pixel_loss(x, nothing, ONES, confidence, balanced)
  )(LOGITS)
  assert not np.asarray(grad).any()


def test_gradients():
  labels = target(1, 0, 1, 255)
  for balanced in (True, False):
    check_grads(
      lambda x, b=balanced: student.pixel_loss(
        jnp.asarray(x), labels, ONES, False, b
      ),
      (LOGITS,),
      1,
    )
  # Weights are no way to lower the loss: the gradient of a pixel is that of
  # its cross-entropy, times its weight.
  grad = jax.grad(lambda x: student.pixel_loss(x, labels, ONES, True, False))(
    LOGITS
  )
  # Probability of class 1, less 1 where it is the label.
  of_class1 = np.array([0.8 - 1, 0.5 - 0, 0.2 - 1]) * [1.6, 1.0, 0.4] / 3
  np.testing.assert_allclose(grad[0, 0, :3, 1], of_class1, rtol=1e-4)
  assert not np.asarray(grad[0, 0, 3]).any()


def test_counts_of_a_picture_are_its_confusion():
  backbone = Backbone(channels=(4, 4, 4, 4, 4))
  model = student.network(backbone, 1, 4, False, False)
  frozen = backbone.start(0)
  params = model.init(jax.random.key(0), frozen, None)
  # The last layer starts at zero: let it say class 1 everywhere.
  params["head"]["out"]["bias"] = jnp.array([0.0, 1.0])
  truth = np.full((1, 32, 32), 255, np.uint8)
  truth[0, :4], truth[0, 4:6] = 1, 0
  tissue = np.ones((1, 32, 32), np.uint8)
  tissue[0, 0] = 0
  counts = jax.jit(model.apply)(
    params,
    frozen,
    {
      "pixels": jnp.zeros((1, 32, 32, 3), jnp.uint8),
      "truth": jnp.asarray(truth),
      "tissue": jnp.asarray(tissue),
    },
  )
  # Rows: true background 64 px, all found; true class 128, of which glass 32.
  assert counts[0].tolist() == [0, 64, 32, 96]
  score, rows = student.validate(np.asarray(counts, np.float64))
  assert rows["val/miou"] == score[0] == pytest.approx(96 / 192 / 2)
