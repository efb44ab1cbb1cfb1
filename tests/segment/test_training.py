"""Optimisers by name and learning rates of heads, against values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.segment import small_job
from wsiseq_jax import fit, optim, parallel
from wsiseq_jax.segment import job
from wsiseq_jax.segment.training import IRN_FIT, StageFit

# A loss whose gradient is 1 everywhere.
MODEL = fit.Model(
  init=lambda key, frozen, example: {
    "backbone": {"kernel": jnp.full((2, 2), 2.0)},
    "head": {"a": {"bias": jnp.full(2, 3.0)}, "b": {"bias": jnp.full(2, 3.0)}},
  },
  loss=lambda params, frozen, batch, key: sum(
    x.sum() for x in jax.tree.leaves(params)
  ),
  apply=lambda params, frozen, batch: batch["x"],
)


def steps(settings, count):
  """Parameters after each of some steps of one epoch."""

  def train(start):
    while True:
      yield {"x": jnp.zeros((1, 1))}

  def val():
    yield {"x": jnp.zeros((1, 1)), "index": jnp.zeros(1), "mask": jnp.ones(1)}

  mesh = parallel.make_mesh(1, jax.devices()[:1])
  data = fit.Data(count, train, val)
  fitted = fit.Trainer(MODEL, settings, mesh).fit(
    data, lambda x: ((0.0,), {}), 0
  )
  return jax.device_get(fitted.params)


def test_irn_sgd_by_hand():
  # lr 0.1 (1 - t/2)^0.9: 0.1, then 0.1 · 0.5^0.9; decay 0.5 is added to the
  # gradient of every parameter, there is no momentum.
  settings = StageFit(
    optimizer="irn_sgd",
    lr=0.1,
    weight_decay=0.5,
    head_lr_factor=10.0,
    clip_norm=0.0,
    epochs=1,
  ).settings()
  found = steps(settings, 2)
  rates = [0.1, 0.1 * 0.5**0.9]

  def after(x, factor):
    for rate in rates:
      x -= factor * rate * (1 + 0.5 * x)
    return x

  np.testing.assert_allclose(
    found["backbone"]["kernel"], after(2.0, 1.0), rtol=1e-5
  )
  np.testing.assert_allclose(
    found["head"]["a"]["bias"], after(3.0, 10.0), rtol=1e-5
  )


def test_sgd_has_momentum():
  # Two steps of a constant rate: 1 and 1 + 0.9 of the gradient.
  settings = fit.FitSettings(
    optimizer="sgd", lr=1.0, weight_decay=0.0, clip_norm=0.0,
    warmup_epochs=0, epochs=1,
  )  # fmt: skip
  rates = fit.learning_rates(settings, 2)
  found = steps(settings, 2)
  expected = 2.0 - rates[0] - 1.9 * rates[1]
  np.testing.assert_allclose(found["backbone"]["kernel"], expected, rtol=1e-5)


def test_parts_of_a_head_learn_at_rates_of_their_own():
  settings = StageFit(
    optimizer="irn_sgd", lr=0.1, weight_decay=0.0, clip_norm=0.0, epochs=1
  ).settings(lr_factors=(("head/a", 3.0), ("head", 2.0)))
  found = steps(settings, 1)
  np.testing.assert_allclose(found["backbone"]["kernel"], 1.9, rtol=1e-5)
  np.testing.assert_allclose(found["head"]["a"]["bias"], 2.7, rtol=1e-5)
  np.testing.assert_allclose(found["head"]["b"]["bias"], 2.8, rtol=1e-5)


def test_adamw_is_what_it_was():
  plain = fit.FitSettings(lr=0.1, warmup_epochs=0, epochs=1)
  tx = optim.make_optimizer(plain)
  params = jax.device_get(MODEL.init(None, None, None))
  state = tx.init(params)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
  rate = fit.learning_rates(plain, 2)[0]
  expected = jax.tree.map(lambda p, u: p - rate * u, params, updates)
  found = steps(plain, 2)  # of which the last has a rate of 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
  )


def test_a_factor_for_nothing_is_an_error():
  settings = fit.FitSettings(lr_factors=(("haed", 10.0),), epochs=1)
  with pytest.raises(ValueError, match=r"for \['haed'\]; .*'backbone', 'head'"):
    steps(settings, 1)


def test_an_unknown_optimizer_is_an_error():
  with pytest.raises(ValueError, match="optimizer = 'adam': must be one of"):
    steps(fit.FitSettings(optimizer="adam", epochs=1), 1)


def test_irns_settings():
  found = IRN_FIT.settings()
  assert (found.lr, found.weight_decay, found.epochs) == (0.1, 1e-4, 5)
  assert found.lr_factors == (("head", 10.0),)


def test_the_last_epoch_can_be_kept():
  settings = fit.FitSettings(
    lr=0.1, epochs=3, warmup_epochs=0, patience=0, keep="last"
  )
  mesh = parallel.make_mesh(1, jax.devices()[:1])
  scores = iter([3.0, float("nan"), 1.0])

  def train(start):
    while True:
      yield {"x": jnp.zeros((1, 1))}

  def val():
    yield {"x": jnp.zeros((1, 1)), "index": jnp.zeros(1), "mask": jnp.ones(1)}

  fitted = fit.Trainer(MODEL, settings, mesh).fit(
    fit.Data(1, train, val), lambda x: ((next(scores),), {}), 0
  )
  assert fitted.epoch == 3


def test_stains_vary_by_stage_and_step_and_not_by_where_it_goes_on(tmp_path):
  context = job.prepare(small_job.config(tmp_path))

  def batch(jitter, start, number):
    made = StageFit(stain_jitter=jitter).data(context).train(start)
    found = [jax.device_get(next(made)["pixels"]) for _ in range(number + 1)]
    made.close()
    return found[-1]

  plain, varied = batch(0.0, 1, 0), batch(0.5, 1, 0)
  assert (plain != varied).mean() > 0.3
  np.testing.assert_array_equal(varied, batch(0.5, 0, 1))
