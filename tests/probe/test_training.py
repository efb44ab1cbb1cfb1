"""Probes that are trained step by step, on features made up here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax import parallel
from wsiseq_jax.probe import tokens as token_probe
from wsiseq_jax.probe import training
from wsiseq_jax.probe.samples import Samples, Target

NUMBER = Target("age", 0, ())
CLASS = Target("grade", 0, ("low", "high"))
SETTINGS = training.Settings(
  lr_per_256=0.05, batch_size=256, epochs=12, warmup_epochs=1, patience=0
)


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


def attentive(settings=SETTINGS, target=CLASS):
  return training.Trainer(
    token_probe.attentive_model(8, target.outputs),
    {},
    bool(target.classes),
    settings,
    mesh(),
  )


def data_of(sets, batch_size=256):
  return token_probe.token_data(*sets, batch_size, mesh())


def test_the_attentive_probe_learns_from_real_tokens():
  outcome = attentive().fit(data_of(SETS), CLASS, seed=0)
  assert outcome.validation > 0.95
  np.testing.assert_allclose(outcome.prediction.sum(axis=1), 1, rtol=1e-5)
  # The 50 test samples in their order, the filling of batches left out.
  right = (outcome.prediction.argmax(axis=1) == SETS[2].labels).mean()
  assert len(outcome.prediction) == 50 and right > 0.9


def test_padding_changes_nothing():
  model = token_probe.attentive_model(8, 2)
  batch = {k: jnp.asarray(v[:6]) for k, v in SETS[0].tokens.items()}
  batch["mask"] = jnp.ones(6)
  params = model.init(jax.random.key(0), {}, batch)
  params = jax.tree.map(lambda x: x + 0.1, params)
  assert (batch["token_mask"] == 0).any()
  out = model.apply(params, {}, batch, None)
  hole = batch["token_mask"][..., None] == 0
  other = batch | {"tokens": jnp.where(hole, -999.0, batch["tokens"])}
  np.testing.assert_allclose(
    model.apply(params, {}, other, None), out, atol=1e-5
  )
  # A real token does.
  moved = batch | {"tokens": batch["tokens"].at[:, 0].multiply(-1.0)}
  assert not np.allclose(model.apply(params, {}, moved, None), out, atol=1e-2)
  # Cut off altogether, the padding of a row gives the same.
  length = int(batch["token_mask"][0].sum())
  short = {k: batch[k][:1, :length] for k in SETS[0].tokens}
  np.testing.assert_allclose(
    model.apply(params, {}, short, None), out[:1], atol=1e-5
  )


def test_pooling_trains_nothing_but_token_and_head():
  def pool(frozen, tokens, mask, time, cls_token):
    weight = mask * frozen["scale"]
    mean = (tokens * weight[..., None]).sum(1) / weight.sum(1)[:, None]
    return mean + cls_token[None]

  model = token_probe.pooling_model(pool, 8, 2)
  frozen = {"scale": jnp.asarray(1.0)}
  trainer = training.Trainer(model, frozen, True, SETTINGS, mesh())
  outcome = trainer.fit(data_of(SETS), CLASS, seed=0)
  assert outcome.validation > 0.95 and float(frozen["scale"]) == 1.0
  batch = next(data_of(SETS).train(0, 1))
  params, slots = trainer._start(jax.random.key(0), frozen, batch)
  after = params
  for _ in range(2):  # the head starts at zero, and lets no slope through
    after, slots = trainer._step(
      after, slots, frozen, batch, np.array([0.0, 1.0]), 0.1, jax.random.key(0)
    )
  same = jax.tree.map(lambda a, b: bool((a == b).all()), params, after)
  assert same == {
    "cls_token": False,
    "standard": {"mean": True, "deviation": True},
    "head": {"kernel": False, "bias": False},
  }


def test_a_common_part_and_other_scales_change_nothing():
  def pool(frozen, tokens, mask, time, cls_token):
    first = frozen["common"] + frozen["scale"] * tokens[:, 0]
    return first + 0 * cls_token[None]

  def predicted(common, scale):
    frozen = {"common": jnp.asarray(common), "scale": jnp.asarray(scale)}
    model = token_probe.pooling_model(pool, 8, 2)
    settings = dataclasses.replace(SETTINGS, epochs=2)
    trainer = training.Trainer(model, frozen, True, settings, mesh())
    return trainer.fit(data_of(SETS), CLASS, seed=0).prediction

  scales = np.geomspace(0.3, 30, 8, dtype=np.float32)[None]
  found = predicted(300.0 * scales, scales)
  np.testing.assert_allclose(found, predicted(0.0, 1.0), atol=2e-3)


def test_the_best_epoch_is_tested_and_not_the_last():
  """A parameter that grows by one each update; validation likes it at 20."""
  total = 10 * 6  # of six epochs, ten steps each

  def init(key, frozen, batch):
    return {"kernel": jnp.zeros((1, 1))}

  def apply(params, frozen, batch, key):
    # Training: a slope of one whatever the place. Otherwise: the place.
    rows = jnp.ones((batch["label"].shape[0], 1))
    return params["kernel"] * rows

  labels = np.linspace(18, 22, 40).astype(np.float32)
  settings = training.Settings(
    lr_per_256=1.0, weight_decay=0.0, epochs=6, warmup_epochs=0, patience=0
  )
  trainer = training.Trainer(
    training.Model(init, apply), {}, False, settings, mesh()
  )
  # One update adds the rate to the parameter, since Adam's step is the sign of
  # the slope: towards labels that are far away.
  places = []

  def step(params, slots, frozen, batch, scale, rate, key):
    params = {"kernel": params["kernel"] + 1.0}
    places.append(float(params["kernel"][0, 0]))
    return params, slots

  trainer._step = step
  # A number is predicted in the training labels' units: mean 0, deviation 1.
  known = make(40, 0)
  train = dataclasses.replace(
    known, labels=np.tile([-1.0, 1.0], 20).astype(np.float32)
  )
  validation = dataclasses.replace(known, labels=labels)
  outcome = trainer.fit(data_of([train, validation, known]), NUMBER, seed=0)
  assert places[-1] == total
  assert outcome.chosen["epoch"] == 2.0
  np.testing.assert_allclose(outcome.prediction, 20.0)


def test_patience_ends_training():
  calls = []
  trainer = attentive(dataclasses.replace(SETTINGS, epochs=50, patience=2))
  step = trainer._step
  trainer._step = lambda *a: calls.append(1) or step(*a)
  outcome = trainer.fit(data_of(SETS), CLASS, seed=0)
  assert len(calls) == 10 * (outcome.chosen["epoch"] + 2) < 500


def test_five_seeds_differ_and_one_seed_does_not():
  trainer = attentive(dataclasses.replace(SETTINGS, epochs=1))
  found = [
    trainer.fit(data_of(SETS), CLASS, seed=s) for s in (0, 1, 2, 3, 4, 0)
  ]
  for i in range(5):
    for j in range(i):
      assert not np.allclose(found[i].prediction, found[j].prediction)
  np.testing.assert_array_equal(found[0].prediction, found[5].prediction)


def test_numbers_come_back_in_their_unit():
  def numbers(s):
    return dataclasses.replace(s, labels=(60 + 8 * s.labels).astype(np.float32))

  trainer = attentive(target=NUMBER)
  outcome = trainer.fit(data_of([numbers(s) for s in SETS]), NUMBER, seed=0)
  assert outcome.validation > 0.8
  assert abs(outcome.prediction.mean() - 64) < 2


def test_the_same_program_serves_all_targets_of_a_kind():
  trainer = attentive(dataclasses.replace(SETTINGS, epochs=1))
  other = Target("organ", 3, ("a", "b"))
  for target in (CLASS, other):
    trainer.fit(data_of(SETS), target, seed=0)
  assert trainer._step._cache_size() == 1
  assert trainer._predict._cache_size() == 1


@pytest.mark.parametrize("batch, rows", [(256, 88), (32, 32), (3, 8)])
def test_batches_are_no_larger_than_the_samples(batch, rows):
  data = data_of(SETS, batch)
  assert data.batch_size == rows
  seen = [next(iter(data.train(0, 1)))["label"].shape[0]]
  assert seen == [rows]
  count = sum(float(b["mask"].sum()) for b in data.validation())
  assert count == 40
