"""Every model through a step of training."""

import dataclasses
from typing import Annotated

import jax
import numpy as np
import pytest

from configs import mil as mil_configs
from data_prep.files.schema import Range
from tests.mil.small_job import QUICK, make
from wsiseq_jax.data import bags
from wsiseq_jax.mil import job, one_fold
from wsiseq_jax.mil.trainer import bag_model
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil.attention import Embedding, weighted_sum
from wsiseq_jax.models.mil.bag import (
  MilModel,
  in_chunks,
  masked_softmax,
  zero_padding,
)
from wsiseq_jax.models.mil.pooling import PoolingConfig


@pytest.fixture(scope="module")
def few(data):
  return bags.Bags(str(data[0]), ["slide01", "slide02", "slide03"], "ignore")


@pytest.mark.parametrize(
  "name, target_type",
  [
    *((name, "binary") for name in mil.MODELS if name != "additive"),
    *((name, "multiclass") for name in mil.MODELS),
  ],
)
def test_every_model_goes_through_a_step(name, target_type, few):
  """Traced, not compiled: that takes up to ten seconds each."""
  config = mil_configs.get_config(f"{name},smoke")
  config.data.update(QUICK)
  outputs = 1 + 2 * (target_type != "binary")
  model = mil.configure(**config.model, width=few.width, outputs=outputs)
  trained = bag_model(model, target_type)
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
@pytest.mark.parametrize("name", sorted(set(mil.MODELS) - {"gated"}))
def test_every_model_trains(name, data, tmp_path):
  result = trained_once(name, data, tmp_path)
  assert np.isfinite(result.predicted["test"].values).all()
  assert np.isfinite(result.history).all()


def trained_once(name, data, tmp_path):
  config = make(
    tmp_path, f"{name},smoke", data, seeds=(0,), optim={"epochs": 1}
  )
  prepared = job.prepare(config)
  return one_fold.train(prepared, prepared.runs[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerConfig(PoolingConfig):
  """Power of the mean."""

  power: Annotated[float, Range(above=0)] = 3.0


class PowerMean(MilModel):
  """Attention by a power of what each tile says: a new pooling, all of it."""

  def __init__(self, config, rngs):
    self.tile = Embedding(config, config.outputs, rngs)
    self.config = config

  def __call__(self, bag, key):
    """Reads a bag."""

    def of_tiles(features, key):
      return self.tile.classify(self.tile(features, key), None)

    logits = in_chunks(
      of_tiles, bag.features, key, self.config.chunk_tiles, self.config.remat
    )
    logits = zero_padding(logits, bag.mask)
    scores = self.config.power * jax.nn.log_sigmoid(logits)
    return weighted_sum(masked_softmax(scores, bag.mask), logits)


def test_a_new_pooling_is_a_module_and_a_line(data, tmp_path, monkeypatch):
  monkeypatch.setitem(mil.MODELS, "power", (PowerMean, PowerConfig))
  config = make(tmp_path, "power,smoke", data, seeds=(0,), model={"power": 5.0})
  summary = job.run(config)
  of = {(r["of"], r["metric"]): r["mean"] for r in summary}
  assert of["model", "auroc"] > 0.9
  config = make(tmp_path, "power,smoke", data, model={"power": -1.0})
  with pytest.raises(ValueError, match=r"config.model.power = -1.0.*above 0"):
    job.run(config)
