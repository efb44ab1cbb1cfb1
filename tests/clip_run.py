"""A small contrastive run, shared by the tests of the task and its programs."""

import functools
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import contrastive as contrastive_config
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import clip_encoder
from wsiseq_jax.tasks import contrastive


def small_config(
  method: str, workdir: pathlib.Path, data: pathlib.Path
) -> ConfigDict:
  """`<method>,smoke` on given shards."""
  config = contrastive_config.get_config(f"{method},smoke")
  config.workdir = str(workdir)
  config.data.path = str(data)
  return config


def first_records(
  data: pathlib.Path, count: int, split: str = "train"
) -> dict[str, jax.Array]:
  """Records 0, 1, ... as a batch on the device."""
  source = sources.RecordSource(data, split)
  batch = loader.stack([loader.load(source, i) for i in range(count)])
  return {name: jnp.asarray(array) for name, array in batch.items()}


def setup_of(data, method="tvrl", **changes):
  """The task on given shards; `model__width=3` sets `config.model.width`."""
  config = small_config(method, data / "none", data)
  with config.unlocked():
    for key, value in changes.items():
      *parents, name = key.split("__")
      block = functools.reduce(getattr, parents, config)
      block[name] = value
  return contrastive.make_setup(config, sources.read_spec(data))


def params_of(setup, seed=0):
  """Fresh parameters."""
  return clip_encoder.init_params(setup.model, jax.random.key(seed))
