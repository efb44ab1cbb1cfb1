"""Every model through a step of training."""

import jax
import numpy as np
import pytest

from configs import mil as mil_configs
from tests.mil.small_job import QUICK, make
from wsiseq_jax.data import bags
from wsiseq_jax.mil import job, settings
from wsiseq_jax.mil.trainer import bag_model


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
  trained = bag_model(model, head)
  one = next(few.batches(list(few.status), 3))
  labels = np.zeros((3, 1), np.float32)
  batch = {
    "features": one.features,
    "tile_mask": one.mask,
    "grid_xy": one.grid_xy,
    "mask": one.weight,
    "label": labels,
    "label_weight": labels,
  }
  key = jax.random.key(0)
  params = jax.eval_shape(trained.init, key, (), None)
  loss, grads = jax.eval_shape(
    jax.value_and_grad(trained.loss), params, (), batch, key
  )
  assert jax.tree.map(lambda x: x.shape, grads) == jax.tree.map(
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
