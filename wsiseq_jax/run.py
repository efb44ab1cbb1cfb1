"""What a training run is made of, before and beside its loop.

Everything static is built and checked here, against data and devices, before a
program is compiled; and a run that goes on is compared with its checkpoint.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from wsiseq_jax import checkpoint, evaluate, launch, optim, parallel, tasks
from wsiseq_jax import config as configs
from wsiseq_jax import state as states
from wsiseq_jax.data import loader, sources
from wsiseq_jax.data.source import Records
from wsiseq_jax.state import TrainState
from wsiseq_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Run:
  """What a training run is made of, before its state exists."""

  config: ConfigDict  # the experiment
  source: Records  # the training records
  # the evaluation records, None if they are never used
  eval_source: Records | None
  task: base.Task  # the task
  mesh: jax.sharding.Mesh  # the devices
  total_steps: int  # updates in all
  schedule: optax.Schedule  # learning rate by step
  tx: optax.GradientTransformation  # the optimiser
  abstract: TrainState  # shapes of the state, with their shardings
  shardings: TrainState  # the shardings alone


def prepare(config: ConfigDict) -> Run:
  """Checks the config against data and devices, and builds everything static.

  Raises:
    ValueError: something does not fit; the message names the config key.
  """
  module = tasks.get(config.task)
  configs.validate(config, module.Config)
  config = module.resolve(config)
  data = config.data
  frames = module.clip(config).stored
  source = sources.open(data.path, data.train_split, frames=frames)
  eval_source = None
  if config.eval_every_steps:
    eval_source = sources.open(
      data.path, data.eval_split, "data.eval_split", frames
    )
  return build(config, source, eval_source, jax.devices())


def build(
  config: ConfigDict,
  source: Records,
  eval_source: Records | None,
  devices: Sequence[jax.Device],
) -> Run:
  """The static parts for given data and devices; touches neither.

  Compiling for machines that are not there (`aot`) starts here as well.

  Args:
    config: the experiment, resolved.
    source: the training records; their description and number are used.
    eval_source: the evaluation records.
    devices: the devices of all processes.

  Raises:
    ValueError: something does not fit; the message names the config key.
  """
  module, data = tasks.get(config.task), config.data
  mesh = parallel.make_mesh(config.mesh.fsdp, devices)
  parts = config.optim.accumulate_steps
  parallel.check_batch_size(data.batch_size, mesh, parts)
  task = base.with_ema(
    module.make_task(config, source.spec), config.optim.ema_decay
  )
  if parts > 1 and task.compares_batch:
    raise ValueError(
      f"config.optim.accumulate_steps = {parts}: must be 1: the loss of task "
      f"{config.task!r} compares the records of a whole batch"
    )
  sizes = (len(source), data.batch_size)
  total = configs.duration_steps(config.optim, "total", *sizes)
  warmup = configs.duration_steps(config.optim, "warmup", *sizes)
  schedule = optim.make_schedule(config.optim, data.batch_size, warmup, total)
  tx = optim.make_optimizer(config.optim, schedule)
  abstract = states.abstract_state(task.init, tx, task.init_extra)
  shardings = states.state_shardings(abstract, mesh, config.mesh.sharding_rules)
  return Run(
    config=config,
    source=source,
    eval_source=eval_source,
    task=task,
    mesh=mesh,
    total_steps=total,
    schedule=schedule,
    tx=tx,
    abstract=states.with_shardings(abstract, shardings),
    shardings=shardings,
  )


def describe_run(run: Run) -> dict[str, Any]:
  """What a checkpoint says of itself (`meta`)."""
  return {
    "config": configs.to_dict(run.config),
    "fingerprint": run.source.spec.fingerprint,
    "identity": run.source.identity,
    "records": len(run.source),
    "order": loader.ORDER_VERSION,
    "total_steps": run.total_steps,
    "revision": launch.git_revision(),
    "jax": jax.__version__,
  }


def check_resume(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
  """Refuses to go on with another experiment than the checkpoint's."""
  lines = [
    f"config.{key}: {was!r} in the checkpoint, now {now!r}"
    for key, was, now in configs.differences(
      tasks.get(new["config"]["task"]).Config, old["config"], new["config"]
    )
  ]
  for key in ("fingerprint", "records", "identity"):
    # Older checkpoints do not know the identity of their data.
    if key in old and old[key] != new[key]:
      lines.append(
        f"config.data.path: {key} of the shards was {old[key]!r}, now "
        f"{new[key]!r}"
      )
  if lines:
    raise ValueError(
      "this is not the run in the checkpoint:\n  "
      + "\n  ".join(lines)
      + "\nUse another config.workdir, or the old settings."
    )
  if old.get("order", 1) != new["order"]:
    launch.log(
      f"note: the checkpoint was made with order {old.get('order', 1)} of the "
      f"data, from here on it is order {new['order']}: some records of this "
      "epoch come twice, and some not at all"
    )


def first_state(run: Run) -> TrainState:
  """State at step 0: fresh, or with weights from `model.init_from`."""
  key = jax.random.key(run.config.seed)
  state = states.init_state(
    run.task.init,
    run.tx,
    base.stream(key, "init"),
    run.shardings,
    run.task.init_extra,
  )
  if not run.config.model.init_from:
    return state
  params = _initial_params(run)
  launch.log(f"weights from {run.config.model.init_from}")
  return states.replace_params(
    state, params, run.shardings, run.task.init_extra
  )


def _initial_params(run: Run) -> Any:
  """Parameters of a run of ours, or of a file of weights of others.

  Of a run they are those that it is evaluated with, such as averaged ones.
  """
  config, path = run.config, run.config.model.init_from
  if checkpoint.is_run(path):
    with checkpoint.Checkpoints(path, read_only=True) as found:
      saved = found.meta()["config"]
      saved = configs.complete(tasks.get(saved["task"]).Config, saved)
      task = base.with_ema(
        tasks.get(config.task).make_task(config, run.source.spec),
        saved.optim.ema_decay,
      )
      rules = config.mesh.sharding_rules
      return task.inference_params(
        **evaluate.restore(found, task, run.mesh, rules)
      )
  if run.task.load_params is None:
    raise ValueError(
      f"config.model.init_from = {path!r}: must be the folder of a run; task "
      f"{run.config.task!r} reads no weights of others"
    )
  return run.task.load_params(path)
