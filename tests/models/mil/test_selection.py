"""Rules that select instances: by hand, and against sorting in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.mil.tiny_bags import bag_of, config, params_of, with_garbage
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil import selection

SCORES = [0.1, 0.9, 0.5, 0.2, 0.7, 99.0]  # the last is padding
REAL = [True] * 5 + [False]
NAN = float("nan")


@pytest.mark.parametrize(
  "rule, label, chosen, targets",
  [
    ("max_max", 1, [1], [1]),
    ("max_max", 0, [1], [0]),
    ("max_min", 1, [1], [1]),
    ("max_min", 0, [0], [0]),
    # Two of five are 0.4; 0.3 of five is one.
    ("quantile", 1, [0, 1, 4], [0, 1, 1]),
    ("quantile", 0, [0, 1, 2, 3, 4], [0] * 5),
    *((rule, NAN, [], []) for rule in selection.RULES),
  ],
)
def test_what_is_selected(rule, label, chosen, targets):
  scores = jnp.array(SCORES)[:, None]
  labels, weights = selection.select(
    scores, jnp.array([float(label)]), jnp.array(REAL), rule, 0.4, 0.3
  )
  assert np.flatnonzero(weights[:, 0]).tolist() == chosen
  assert labels[jnp.array(chosen, int), 0].tolist() == targets


def test_each_class_selects_for_itself():
  scores = jnp.array([[3.0, 0.0], [1.0, 5.0], [2.0, 4.0]])
  labels, weights = selection.select(
    scores, jnp.array([1.0, 0.0]), jnp.ones(3, bool), "max_max"
  )
  assert weights.tolist() == [[1, 0], [0, 1], [0, 0]]
  assert labels.tolist() == [[1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("tiles", [0, 1, 2])
def test_small_bags_are_never_labelled_twice(tiles):
  real = jnp.arange(3) < tiles
  labels, weights = selection.select(
    jnp.zeros((3, 1)), jnp.ones(1), real, "quantile", 0.2, 0.2
  )
  assert float(weights.sum()) == tiles
  assert float(labels[real].sum()) == min(tiles, 1)


def test_loss_by_hand():
  logits = jnp.array([[2.0, 0.0], [-1.0, 0.0], [7.0, 3.0]])
  labels = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
  weights = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  first = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
  want = (first + np.log1p(np.exp(3))) / 2
  found = selection.selected_loss(logits, labels, weights)
  assert float(found) == pytest.approx(want, rel=1e-6)
  # Nothing is selected: nothing is learned.
  assert float(selection.selected_loss(logits, labels, 0 * weights)) == 0


@pytest.mark.parametrize("rule", selection.RULES)
def test_the_model_against_numpy(rule):
  cfg = config("selection", rule=rule, top=0.3, bottom=0.2, outputs=2)
  params, bag = params_of(cfg), with_garbage(bag_of(), 32)
  onehot = jnp.array([1.0, 0.0])

  @jax.jit
  def run(bag):
    output = mil.apply(params, cfg, bag)
    return output, mil.auxiliary_loss(params, cfg, output, onehot)

  output, loss = run(bag)
  p = jax.tree.map(np.asarray, params)["tile"]
  x = np.asarray(bag.features)[:21]
  x = np.maximum(x @ p["embed"]["kernel"] + p["embed"]["bias"], 0)
  logits = x @ p["classifier"]["kernel"] + p["classifier"]["bias"]
  high = np.sort(logits, axis=0)[::-1]
  count = 6 if rule == "quantile" else 1  # 0.3 of 21 is 6.3
  np.testing.assert_allclose(output.logits, high[:count].mean(0), atol=1e-4)

  def cross(values, label):
    return np.mean(np.log1p(np.exp(values)) - label * values)

  positive, negative = high[:, 0], high[:, 1]
  has = {
    "quantile": (cross(positive[:6], 1) * 6 + cross(positive[-4:], 0) * 4) / 10,
  }.get(rule, cross(positive[0], 1))
  lacks = {
    "quantile": cross(negative, 0),
    "max_max": cross(negative[0], 0),
    "max_min": cross(negative[-1], 0),
  }[rule]
  assert float(loss) == pytest.approx((has + lacks) / 2, rel=1e-4)


def test_gradient_reaches_the_selected_alone():
  logits = jnp.array([[2.0], [-1.0], [0.5]])

  @jax.grad
  def slope(logits):
    labels, weights = selection.select(
      logits, jnp.ones(1), jnp.ones(3, bool), "max_min"
    )
    return selection.selected_loss(logits, labels, weights)

  found = np.asarray(slope(logits))[:, 0]
  np.testing.assert_allclose(found, [1 / (1 + np.exp(-2)) - 1, 0, 0], atol=1e-6)
