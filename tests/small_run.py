"""A training run of seconds, shared by the tests of the loop and the jobs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

import main as program
from configs import videomae as videomae_config
from data_prep.synthetic import smoke
from wsiseq_jax import launch, parallel
from wsiseq_jax import run as train_setup
from wsiseq_jax import state as states
from wsiseq_jax.data import loader
from wsiseq_jax.tasks import base


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
  return smoke.make_shards(folder)


def use_devices(monkeypatch, count: int) -> None:
  """Lets runs see only the first `count` devices."""
  make_mesh = parallel.make_mesh
  monkeypatch.setattr(
    parallel,
    "make_mesh",
    lambda fsdp=1, devices=None: make_mesh(fsdp, jax.devices()[:count]),
  )


def main(*words: str) -> None:
  """What `python main.py WORDS` does, in this process.

  Imports are a third of a small job; `test_main.py` and the scripts of examples
  start processes.
  """
  values, argv = flags.FlagValues(), ["main.py", *words]
  config = config_flags.DEFINE_config_file(
    "config", lock_config=True, flag_values=values, sys_argv=argv
  )
  values(argv)
  program.run(config.value)


class StopAt(launch.Preemption):
  """Asks to stop after so many ticks."""

  def __init__(self, ticks: int):
    super().__init__()
    self._left = ticks

  def tick(self) -> bool:
    self._left -= 1
    return self._left < 0


def loss_and_gradients(run: train_setup.Run, progress: float):
  """Of the first batch, with parameters that are the same on any devices."""
  key = jax.random.key(7)
  params = states.init_state(
    run.task.init, run.tx, key, run.shardings, run.task.init_extra
  ).params
  [batch] = loader.train_batches(
    run.source,
    seed=0,
    batch_size=run.config.data.batch_size,
    start_step=0,
    stop_step=1,
  )

  def loss(params, batch):
    step_key = base.stream(key, "step")
    return run.task.loss(params, {}, batch, step_key, jnp.float32(progress))[0]

  step = jax.jit(
    parallel.with_mesh(run.mesh, jax.value_and_grad(loss)),
    in_shardings=(run.shardings.params, parallel.batch_sharding(run.mesh)),
    out_shardings=(parallel.replicated(run.mesh), run.shardings.params),
  )
  value, grads = step(params, parallel.to_global(batch, run.mesh))
  return float(value), jax.tree.map(np.asarray, grads)
