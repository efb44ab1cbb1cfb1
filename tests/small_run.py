"""A training run of seconds, shared by the tests of the loop and the jobs."""

import pathlib

import jax
from ml_collections import ConfigDict

from configs import smoke_data
from configs import videomae as videomae_config
from wsiseq_jax import parallel


def small_config(workdir: pathlib.Path, data: pathlib.Path) -> ConfigDict:
  """`:smoke` on given shards, six steps, a batch of eight."""
  config = videomae_config.get_config("smoke")
  config.workdir = str(workdir)
  config.data.path = str(data)
  config.optim.total_steps = 6
  config.checkpoint.every_steps = 0
  config.checkpoint.every_minutes = 0.0
  config.log_every_steps = 2
  config.eval_every_steps = 0
  return config


def shards(folder: pathlib.Path) -> pathlib.Path:
  """The data of the runs: 32 training and 16 validation records."""
  return smoke_data.make_shards(folder)


def use_devices(monkeypatch, count: int) -> None:
  """Lets runs see only the first `count` devices."""
  make_mesh = parallel.make_mesh
  monkeypatch.setattr(
    parallel,
    "make_mesh",
    lambda fsdp=1, devices=None: make_mesh(fsdp, jax.devices()[:count]),
  )
