"""Probes that are trained step by step, on features made up here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax import fit, parallel
from wsiseq_jax.probe import tokens, trained
from wsiseq_jax.probe.samples import ProbeTarget, Samples
from wsiseq_jax.probe.settings import ProbeFit

NUMBER = ProbeTarget("age", 0, ())
CLASS = ProbeTarget("grade", 0, ("low", "high"))
HOW = ProbeFit(lr_per_256=0.05, epochs=12, warmup_epochs=1, patience=0)


@functools.cache
def mesh():
  return parallel.make_mesh()


def make(count, seed, width=8, tokens=5):
  """Series of which only the real tokens tell the label, by their mean."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, tokens, width)).astype(np.float32)
  mask = (np.arange(tokens) < rng.integers(2, tokens + 1, (count, 1))) * 1.0
  label = (rng.random(count) < 0.5).astype(np.float32)
  x[..., 0] = np.where(label[:, None] > 0, 1.5, -1.5)
  x[mask == 0] = 50 * rng.normal(size=(int((mask == 0).sum()), width))
  return Samples(
    label,
    np.arange(count),
    np.arange(count),
    None,
    {
      "tokens": x,
      "token_mask": mask.astype(np.float32),
      "token_time": np.zeros((count, tokens), np.float32),
    },
  )


SETS = [make(n, s) for n, s in ((90, 0), (40, 1), (50, 2))]


@functools.cache
def attentive(target=CLASS):
  return tokens.attentive_model(8, target)


def run(model, sets=SETS, target=CLASS, seed=0, how=HOW, frozen=()):
  feed = tokens.TokenFeed(mesh())
  return trained.run(
    model, tuple(sets), target, how, feed, seed, mesh(), frozen
  )


def test_the_attentive_probe_learns_from_real_tokens():
  outcome = run(attentive())
  assert outcome.validation > 0.95
  np.testing.assert_allclose(outcome.prediction.sum(axis=1), 1, rtol=1e-5)
  # The 50 test samples in their order, the filling of batches left out.
  right = (outcome.prediction.argmax(axis=1) == SETS[2].labels).mean()
  assert len(outcome.prediction) == 50 and right > 0.9


def test_padding_changes_nothing():
  model = attentive()
  batch = {k: jnp.asarray(v[:6]) for k, v in SETS[0].tokens.items()}
  batch["mask"] = jnp.ones(6)
  params = model.init(jax.random.key(0), {}, batch)
  params = jax.tree.map(lambda x: x + 0.1, params)
  assert (batch["token_mask"] == 0).any()
  out = model.apply(params, {}, batch)
  hole = batch["token_mask"][..., None] == 0
  other = batch | {"tokens": jnp.where(hole, -999.0, batch["tokens"])}
  np.testing.assert_allclose(model.apply(params, {}, other), out, atol=1e-5)
  # A real token does.
  moved = batch | {"tokens": batch["tokens"].at[:, 0].multiply(-1.0)}
  assert not np.allclose(model.apply(params, {}, moved), out, atol=1e-2)
  # Cut off altogether, the padding of a row gives the same.
  length = int(batch["token_mask"][0].sum())
  short = {k: batch[k][:1, :length] for k in SETS[0].tokens}
  np.testing.assert_allclose(model.apply(params, {}, short), out[:1], atol=1e-5)


def mean_pool(frozen, tokens, mask, time, cls_token):
  weight = mask * frozen["scale"]
  mean = (tokens * weight[..., None]).sum(1) / weight.sum(1)[:, None]
  return mean + cls_token[None]


def test_pooling_trains_nothing_but_token_and_head():
  model = tokens.pooling_model(mean_pool, 8, CLASS)
  frozen = {"scale": jnp.asarray(1.0)}
  outcome = run(model, frozen=frozen)
  assert outcome.validation > 0.95 and float(frozen["scale"]) == 1.0
  batch = next(tokens.TokenFeed(mesh()).train(SETS[0], 88, 0, 0, 1))
  params = model.init(jax.random.key(0), frozen, batch)
  head = jax.tree.map(lambda x: x.at[..., 0].add(0.1), params["head"])
  grads = jax.grad(model.loss)(
    {**params, "head": head}, frozen, batch, jax.random.key(0)
  )
  still = jax.tree.map(lambda g: bool((g == 0).all()), grads)
  assert still == {
    "cls_token": False,
    "standard": {"mean": True, "std": True},
    "head": {"kernel": False, "bias": False},
  }


def test_a_common_part_and_other_scales_change_nothing():
  def pool(frozen, tokens, mask, time, cls_token):
    first = frozen["common"] + frozen["scale"] * tokens[:, 0]
    return first + 0 * cls_token[None]

  model = tokens.pooling_model(pool, 8, CLASS)
  how = dataclasses.replace(HOW, epochs=2)

  def predicted(common, scale):
    frozen = {
      "common": jnp.broadcast_to(jnp.float32(common), (1, 8)),
      "scale": jnp.broadcast_to(jnp.float32(scale), (1, 8)),
    }
    return run(model, how=how, frozen=frozen).prediction

  scales = np.geomspace(0.3, 30, 8, dtype=np.float32)[None]
  found = predicted(300.0 * scales, scales)
  np.testing.assert_allclose(found, predicted(0.0, 1.0), atol=2e-3)


def test_the_best_epoch_is_tested_and_not_the_last():
  """A parameter that grows by one each step; validation likes it at 20."""

  def loss(params, frozen, batch, key):  # a slope of -1 whatever the place
    return -params["place"].sum()

  def apply(params, frozen, batch):
    return params["place"] * jnp.ones((batch["mask"].shape[0], 1))

  model = fit.Model(
    lambda key, frozen, example: {"place": jnp.zeros((1, 1))}, loss, apply
  )
  # Adam's step is the sign of the slope: one, at a learning rate of one. Half a
  # cosine over six epochs of ten steps is at 20 after two to three epochs.
  how = ProbeFit(
    lr_per_256=1.0, weight_decay=0.0, epochs=6, warmup_epochs=0, patience=0
  )
  places = np.cumsum(fit.learning_rates(how.of_target("age"), 10))[9::10]
  best = int(np.argmin(np.abs(places - 20)))
  assert 0 < best < 5
  known = make(40, 0)
  # A number is predicted in the training labels' unit: mean 0, std 1.
  train = dataclasses.replace(
    known, labels=np.tile([-1.0, 1.0], 20).astype(np.float32)
  )
  labels = np.linspace(18, 22, 40).astype(np.float32)
  validation = dataclasses.replace(known, labels=labels)
  outcome = run(model, (train, validation, known), NUMBER, how=how)
  assert outcome.chosen["epoch"] == best + 1
  np.testing.assert_allclose(outcome.prediction, places[best], rtol=1e-4)


def test_five_seeds_differ_and_one_seed_does_not():
  how = dataclasses.replace(HOW, epochs=1)
  found = [run(attentive(), seed=s, how=how) for s in (0, 1, 2, 3, 4, 0)]
  for i in range(5):
    for j in range(i):
      assert not np.allclose(found[i].prediction, found[j].prediction)
  np.testing.assert_array_equal(found[0].prediction, found[5].prediction)


def test_numbers_come_back_in_their_unit():
  def numbers(s):
    return dataclasses.replace(s, labels=(60 + 8 * s.labels).astype(np.float32))

  outcome = run(attentive(NUMBER), [numbers(s) for s in SETS], NUMBER)
  assert outcome.validation > 0.8
  assert abs(outcome.prediction.mean() - 64) < 2


@pytest.mark.parametrize("batch, rows", [(256, 88), (32, 32), (3, 8)])
def test_batches_are_no_larger_than_the_samples(batch, rows):
  assert trained.fitting_batch(len(SETS[0]), batch, mesh().size) == rows
  feed = tokens.TokenFeed(mesh())
  assert next(feed.train(SETS[0], rows, 0, 0, 1))["label"].shape == (rows,)
  batches = list(feed.in_order(SETS[1], rows))
  assert sum(float(b["mask"].sum()) for b in batches) == 40
