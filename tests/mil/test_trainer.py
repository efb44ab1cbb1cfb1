"""Training of one model on bags whose answer is known."""

import dataclasses

import jax
import numpy as np
import pytest

from wsiseq_jax.data.bags import Bags
from wsiseq_jax.mil import cohort, synthetic
from wsiseq_jax.mil.trainer import (
  BagFitSettings,
  BagTrainer,
  check_model,
  local_mesh,
)
from wsiseq_jax.models import mil

SMALL = {"width": synthetic.WIDTH, "hidden": 8, "dropout": 0.0}
MODEL = mil.configure("gated", attention_width=4, **SMALL)
# Compiles fastest.
MEAN = mil.configure("mean", **SMALL)
# Of eight devices one divides three bags.
SETTINGS = BagFitSettings(
  lr=3e-2, warmup_epochs=0, epochs=30, patience=5, batch_size=3
)

# Of tests that share compiled programs; on several devices, or on one.
PLAIN = dataclasses.replace(SETTINGS, batch_size=4, clip_norm=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Bags, and ids and labels of those that are `ok`."""
  features, table = synthetic.write(tmp_path_factory.mktemp("bags"), cases=12)
  found = cohort.read(str(table), "label", "binary")
  bags = Bags(str(features), found.ids)
  fine = [i for i, slide_id in enumerate(found.ids) if bags.ok(slide_id)]
  return bags, [found.ids[i] for i in fine], found.labels[fine]


@pytest.fixture(scope="module")
def trainer():
  return BagTrainer(MODEL, "binary", SETTINGS)


@pytest.fixture(scope="module")
def fitted(data, trainer):
  bags, ids, labels = data
  return trainer.fit(bags, ids[:13], labels[:13], ids[13:], labels[13:], seed=0)


def test_it_learns_and_keeps_the_best_epoch(data, trainer, fitted):
  bags, ids, labels = data
  losses = [val for _, val in fitted.history]
  assert fitted.epoch == int(np.argmin(losses)) + 1
  # It stops five epochs after the best one, unless there are no more.
  assert len(losses) == min(fitted.epoch + 5, 30)
  logits = trainer.logits(fitted.params, bags, ids[13:])
  # The parameters are those of that epoch, and logits in the order asked for.
  assert trainer.loss(logits, labels[13:]) == pytest.approx(min(losses))
  assert min(losses) < 0.3
  backwards = trainer.logits(fitted.params, bags, ids[:12:-1])
  np.testing.assert_allclose(backwards[::-1], logits, atol=1e-5)


def test_a_seed_says_all(data, trainer, fitted):
  bags, ids, labels = data
  parts = (bags, ids[:13], labels[:13], ids[13:], labels[13:])
  again, other = (trainer.fit(*parts, seed=seed) for seed in (0, 1))
  assert again.history == fitted.history
  assert other.history[0] != fitted.history[0]
  for a, b in zip(
    jax.tree.leaves(again.params), jax.tree.leaves(fitted.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_tiles_of_one_slide(data, trainer, fitted):
  bags, ids, _ = data
  (output,) = trainer.explain([fitted.params], bags, bags.read(ids[0]))
  tiles = bags.tiles[ids[0]]
  assert output.attention.shape[0] == output.instance_logits.shape[0] == tiles
  assert output.attention.sum() == pytest.approx(1, abs=1e-5)
  logit = trainer.logits(fitted.params, bags, ids[:1])
  # Contributions of a gated model are the logit.
  assert output.contribution.sum() == pytest.approx(logit[0, 0], abs=1e-4)


def test_bags_that_fill_a_batch_teach_nothing(data, trainer):
  """Adam's first step does not see the scale of a gradient."""
  bags, ids, labels = data
  two = (bags, ids[:2], labels[:2], ids[13:], labels[13:])
  small = dataclasses.replace(PLAIN, epochs=1, lr=1e-3)
  found = []
  for size in (2, 4):
    settings = dataclasses.replace(small, batch_size=size)
    # No mesh of two: 2 of 8 devices would divide it.
    mesh = trainer.mesh
    found.append(BagTrainer(MEAN, "binary", settings, mesh).fit(*two, seed=0))
  for a, b in zip(*(jax.tree.leaves(one.params) for one in found), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  # The mean over a batch of 4, two of weight 0.
  losses = [one.history[0][0] for one in found]
  assert losses[1] == pytest.approx(losses[0] / 2, rel=1e-5)


def test_class_weights_are_those_of_training(data, trainer):
  """Nothing is learned: both losses are those of the first parameters."""
  bags, ids, labels = data
  of = {c: [i for i, y in enumerate(labels[:, 0]) if y == c] for c in (0, 1)}
  train = of[0][:6] + of[1][:2]
  val = of[0][6:7] + of[1][2:5]
  settings = dataclasses.replace(
    PLAIN, epochs=1, lr=0.0, class_weights="balanced"
  )
  one = BagTrainer(MEAN, "binary", settings, trainer.mesh)
  split = [([ids[i] for i in rows], labels[rows]) for rows in (train, val)]
  fitted = one.fit(bags, *split[0], *split[1], seed=0)
  # 8 / (2 · 6) and 8 / (2 · 2), of the validation slides too.
  for (names, truth), loss in zip(split, fitted.history[0], strict=True):
    x = one.logits(fitted.params, bags, names)[:, 0]
    each = np.logaddexp(0, np.where(truth[:, 0] == 1, -x, x))
    weight = np.where(truth[:, 0] == 1, 2, 2 / 3)
    assert loss == pytest.approx((weight * each).mean(), rel=1e-4)
    assert abs(loss - each.mean()) > 1e-3


def test_several_devices_change_nothing(data):
  bags, ids, labels = data
  settings = dataclasses.replace(PLAIN, epochs=2)
  parts = (bags, ids[:13], labels[:13], ids[13:], labels[13:])
  assert local_mesh(4).size == 4 and local_mesh(3).size == 1
  found = [
    BagTrainer(MEAN, "binary", settings, mesh).fit(*parts, seed=0)
    for mesh in (local_mesh(4), local_mesh(1))
  ]
  a, b = (np.array(one.history) for one in found)
  np.testing.assert_allclose(a, b, rtol=1e-4)


def test_what_does_not_go_together():
  clam = mil.configure("clam_sb", **SMALL)
  with pytest.raises(ValueError, match="'clam_sb'.*'regression'.*auxiliary_we"):
    BagTrainer(clam, "regression", SETTINGS)
  check_model(dataclasses.replace(clam, auxiliary_weight=0.0), "survival")


def test_divergence_is_said(data, trainer):
  bags, ids, labels = data
  nowhere = labels[13:] * np.nan
  settings = dataclasses.replace(SETTINGS, epochs=1)
  wild = BagTrainer(MODEL, "binary", settings, trainer.mesh)
  wild.loss = lambda *_: float("nan")
  with pytest.raises(ValueError, match="no validation score is finite"):
    wild.fit(bags, ids[:13], labels[:13], ids[13:], nowhere, seed=0)
