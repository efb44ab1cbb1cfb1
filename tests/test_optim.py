import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import videomae as videomae_config
from wsiseq_jax import optim
from wsiseq_jax.tasks import videomae


def settings(**more):
  values = {
    "lr_per_256": 0.8,
    "min_lr_per_256": 0.08,
    "weight_decay": 0.1,
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "clip_norm": 0.0,
  }
  return ConfigDict(values | more)


def test_schedule_by_hand():
  # Batch 64: a quarter of the rates, peak 0.2 and floor 0.02.
  schedule = optim.make_schedule(settings(), 64, 4, 8)
  values = [float(schedule(step)) for step in range(9)]
  # Warm-up 0, 1/4, 2/4, 3/4 of 0.2; then 0.02 + 0.18 · (1 + cos(π p)) / 2 with
  # p = 0, 1/4, 1/2, 3/4, 1: cosines 1, 0.70711, 0, −0.70711, −1.
  expected = [
    0.0, 0.05, 0.10, 0.15, 0.2, 0.17364, 0.11, 0.04636, 0.02,
  ]  # fmt: skip
  np.testing.assert_allclose(values, expected, atol=1e-5)


def test_schedule_ends_at_the_floor_and_stays():
  schedule = optim.make_schedule(settings(), 256, 0, 10)
  assert float(schedule(0)) == pytest.approx(0.8)
  assert float(schedule(10)) == pytest.approx(0.08)
  assert float(schedule(50)) == pytest.approx(0.08)


def test_warmup_longer_than_the_run_is_an_error():
  with pytest.raises(ValueError, match="10 steps must be shorter than.*10"):
    optim.make_schedule(settings(), 8, 10, 10)


def test_only_matrices_decay():
  config = videomae_config.get_config("smoke")
  model = videomae.model_config(config)
  shapes = jax.eval_shape(
    lambda: videomae.init_params(model, jax.random.key(0))
  )
  mask = optim.decay_mask(shapes)
  for path, is_decayed in jax.tree.leaves_with_path(mask):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    assert is_decayed == name.endswith("/kernel"), name
  # A stacked bias has two axes, [layers, d], and must not decay.
  flat = {
    jax.tree_util.keystr(p, simple=True, separator="/"): leaf
    for p, leaf in jax.tree.leaves_with_path(shapes)
  }
  stacked = [n for n in flat if "blocks" in n and n.endswith("bias")]
  assert stacked and all(len(flat[n].shape) == 2 for n in stacked)


def test_first_adamw_update_by_hand():
  # The first step of Adam has size lr (bias-corrected mean over root of
  # bias-corrected square is the sign), plus lr · decay · weight.
  tx = optim.make_optimizer(settings(), lambda step: 0.5)
  params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
  grads = jax.tree.map(lambda x: jnp.full_like(x, -7.0), params)
  updates, _ = tx.update(grads, tx.init(params), params)
  # 0.5 · (1 − 0.1 · 3) = 0.35; without decay 0.5.
  np.testing.assert_allclose(updates["kernel"], 0.35, rtol=1e-5)
  np.testing.assert_allclose(updates["bias"], 0.5, rtol=1e-5)


def test_clipping_comes_before_adam():
  params = {"kernel": jnp.zeros((2, 2))}
  grads = {"kernel": jnp.full((2, 2), 5.0)}  # norm 10
  tx = optim.make_optimizer(settings(clip_norm=1.0), lambda step: 1.0)
  _, slots = tx.update(grads, tx.init(params), params)
  # Mean after one step: 0.1 · clipped gradient, 0.1 · 0.5.
  mu = slots[1].mu["kernel"]
  np.testing.assert_allclose(mu, 0.05, rtol=1e-5)
