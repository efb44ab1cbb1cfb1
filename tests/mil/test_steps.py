"""Every model through the compiled programs of training."""

import jax
import numpy as np
import pytest

from configs import mil as mil_configs
from tests.mil.small_job import QUICK, make
from wsiseq_jax.data import bags
from wsiseq_jax.mil import fit, job, settings


@pytest.fixture(scope="module")
def few(data):
  return bags.Bags(str(data[0]), ["slide01", "slide02", "slide03"], "ignore")


@pytest.mark.parametrize("name", mil_configs.MODELS)
@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_every_model_goes_through_a_step(name, head, few):
  """Traced, not compiled: that takes up to ten seconds each."""
  config = mil_configs.get_config(f"{name},smoke")
  config.data.update(QUICK)
  model = settings.model_config(config, few.width, 1 + 2 * (head != "binary"))
  trainer = fit.Trainer(model, head, job.training_settings(config))
  batch = next(few.batches(list(few.status), 3))
  put = trainer._put(batch, *np.zeros((2, 3, 1), np.float32))
  key = jax.random.key(0)
  params, slots = jax.eval_shape(trainer._programs.start, key)
  new, _, loss = jax.eval_shape(
    trainer._programs.step, params, slots, *put, np.float32(1), key
  )
  assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(
    lambda x: x.shape, params
  )
  assert loss.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(mil_configs.MODELS) - {"additive"}))
def test_every_model_trains(name, data, tmp_path):
  config = make(
    tmp_path, f"{name},smoke", data, seeds=(0,), optim={"epochs": 1}
  )
  prepared = job.prepare(config)
  result = job.train(prepared, prepared.runs[0])
  assert np.isfinite(result.predicted["test"].values).all()
  assert np.isfinite(result.history).all()
