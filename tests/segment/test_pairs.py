"""Pair losses against all pairs, one by one, and against values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.segment import dense_walk
from wsiseq_jax import parallel
from wsiseq_jax.segment import pairs

COLUMN = {name: i for i, name in enumerate(pairs.SUMS)}


def one_by_one(logits, displacement, labels, radius):
  """`pair_sums` of one picture."""
  h, w = labels.shape
  edge = 1 / (1 + np.exp(-logits.astype(np.float64)))
  found = np.zeros(len(COLUMN))
  offsets = [
    (dy, dx)
    for dy in range(radius)
    for dx in range(1 - radius, radius)
    if dy * dy + dx * dx < radius**2 and (dy > 0 or dx > 0)
  ]
  for y in range(h - radius + 1):
    for x in range(radius - 1, w - radius + 1):
      for dy, dx in offsets:
        p, q = (y, x), (y + dy, x + dx)
        if 255 in (labels[p], labels[q]):
          continue
        a = dense_walk.affinity(edge, p, q)
        d = displacement[p] - displacement[q]
        if labels[p] != labels[q]:
          names = {"different": -np.log(1 + 1e-5 - a), "different_pairs": 1}
        elif labels[p] > 0:
          away = np.abs(d - [dy, dx]).sum()
          names = {"same": -np.log(a + 1e-5), "same_pairs": 1}
          names["towards_centre"] = away
        else:
          names = {"background": -np.log(a + 1e-5), "background_pairs": 1}
          names["still"] = np.abs(d).sum()
        for name, value in names.items():
          found[COLUMN[name]] += value
  return found


def batch_of(b=2, h=9, w=11, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.choice([0, 1, 2, 255], (b, h, w), p=[0.4, 0.3, 0.2, 0.1])
  arrays = rng.normal(size=(b, h, w)), rng.normal(size=(b, h, w, 2))
  logits, displacement = (jnp.asarray(a, jnp.float32) for a in arrays)
  return logits, displacement, jnp.asarray(labels, jnp.uint8)


@pytest.mark.parametrize("radius", [3, 5])
def test_sums_are_those_of_all_pairs(radius):
  arrays = batch_of()
  found = jax.jit(pairs.pair_sums, static_argnums=3)(*arrays, radius)
  expected = [one_by_one(*map(np.asarray, row), radius) for row in zip(*arrays)]  # noqa: B905
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_losses_by_hand():
  # One source, (0, 1); (0, 2) is background with it, (1, 0) another class,
  # (1, 1) ignored, (1, 2) background. Every edge is 0.5.
  labels = jnp.array([[[1, 0, 0], [2, 255, 0]]], jnp.uint8)
  displacement = jnp.zeros((1, 2, 3, 2)).at[0, 0, 2].set(jnp.array([3.0, 1.0]))
  sums = pairs.pair_sums(jnp.zeros((1, 2, 3)), displacement, labels, 2)
  log2 = np.log(2)
  np.testing.assert_allclose(
    sums[0], [2 * log2, 2, 0, 0, log2, 1, 0, 4], rtol=1e-4
  )
  found = pairs.losses(sums)
  # ½ (½ log 2 + log 2) and ½ · 4 / (2 · 2).
  np.testing.assert_allclose(found["boundary"], 0.75 * log2, rtol=1e-4)
  np.testing.assert_allclose(found["displacement"], 0.5, rtol=1e-4)


def test_the_place_of_a_centre_costs_nothing():
  # All pixels of an instance point to one place.
  grid = np.stack(np.mgrid[:8, :9], axis=-1).astype(np.float32)
  centre = np.array([3.5, 4.0], np.float32).reshape(1, 1, 2)
  labels = jnp.ones((1, 8, 9), jnp.uint8)
  sums = pairs.pair_sums(
    jnp.zeros((1, 8, 9)), jnp.asarray(centre - grid)[None], labels, 4
  )
  assert float(sums[0, COLUMN["towards_centre"]]) == 0
  assert float(sums[0, COLUMN["same_pairs"]]) == 5 * 3 * 22


@pytest.mark.parametrize("label", [0, 1, 255])
def test_sets_without_a_pair_cost_nothing(label):
  logits, displacement, labels = batch_of()
  labels = jnp.full_like(labels, label)

  def loss(logits, displacement):
    sums = pairs.pair_sums(logits, displacement, labels, 3)
    return sum(pairs.losses(sums).values())

  value, grads = jax.value_and_grad(loss, (0, 1))(logits, displacement)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
  assert (value == 0) == (label == 255)


def test_a_picture_smaller_than_the_radius_is_no_error():
  arrays = batch_of(b=1, h=4, w=9)
  found = pairs.pair_sums(*arrays, 6)
  logits, displacement, labels = (np.asarray(a[0]) for a in arrays)
  room = ((0, 2), (0, 2))
  expected = one_by_one(
    np.pad(logits, room),
    np.pad(displacement, (*room, (0, 0))),
    np.pad(labels, room, constant_values=255),
    6,
  )
  np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_gradients():
  logits, displacement, labels = batch_of(b=1, h=5, w=6)

  def loss(logits, displacement):
    return pairs.losses(pairs.pair_sums(logits, displacement, labels, 3))

  check_grads(
    jax.jit(loss),
    (logits, displacement),
    1,
    ["rev"],
    atol=0.02,
    rtol=0.02,
    eps=1e-3,
  )


def test_eight_devices_have_the_means_of_the_whole_batch():
  # Pictures differ in their numbers of pairs: a mean of means would differ.
  logits, displacement, labels = batch_of(b=8)
  labels = labels.at[::2, 2:].set(255)

  def loss(logits, displacement, labels):
    sums = pairs.pair_sums(logits, displacement, labels, 3)
    return sum(pairs.losses(sums).values())

  found = []
  for devices in (jax.devices()[:1], jax.devices()):
    mesh = parallel.make_mesh(1, devices)
    arrays = jax.device_put(
      (logits, displacement, labels), parallel.batch_sharding(mesh)
    )
    step = jax.jit(parallel.with_mesh(mesh, jax.value_and_grad(loss, (0, 1))))
    found.append(jax.device_get(step(*arrays)))
  for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-7)
