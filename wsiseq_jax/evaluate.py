"""A trained model from its checkpoint (`load`), and the job `evaluate`.

The model is rebuilt by the training code from the config inside the checkpoint.
From the command line's config it takes only where things are and how to run
(`config.RUNTIME`), so a config that has changed since cannot spoil it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_prep.files import done
from wsiseq_jax import checkpoint, launch, parallel, tasks
from wsiseq_jax import config as configs
from wsiseq_jax import state as states
from wsiseq_jax.data import loader, sources
from wsiseq_jax.data.source import DataSpec, Records
from wsiseq_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model, ready to be used."""

  task: base.Task  # the task, rebuilt from the checkpoint
  params: Any  # the parameters to use, on the mesh (`Task.inference_params`)
  extra: Any  # the task's own state
  step: int  # the checkpoint's step
  # the config of the training, with the runtime keys of this run
  config: ConfigDict
  spec: DataSpec  # what the data set says of itself
  mesh: Mesh  # the devices
  meta: Mapping[str, Any]  # the checkpoint's own description
  identity: str  # tells the checkpoint from any other


def checkpoint_folder(config: ConfigDict) -> epath.Path:
  """Where checkpoints lie: `checkpoint.path`, or in the workdir."""
  if config.checkpoint.path:
    return epath.Path(config.checkpoint.path)
  return epath.Path(config.workdir) / "checkpoints"


def load(
  config: ConfigDict,
  step: int | None = None,
  spec: DataSpec | None = None,
) -> Loaded:
  """Rebuilds a trained model from its checkpoint.

  Args:
    config: the run's config; see `config.RUNTIME` for what is used of it.
    step: which checkpoint; the newest by default.
    spec: what the records are like; that of `data.path` by default.

  Raises:
    FileNotFoundError: there is no complete checkpoint.
    ValueError: no data, or data that the model was not made for.
  """
  with checkpoint.Checkpoints(checkpoint_folder(config), read_only=True) as ck:
    step = ck.latest if step is None else step
    meta = ck.meta(step)
    merged = configs.complete(
      tasks.get(meta["config"]["task"]).Config, meta["config"], config
    )
    if spec is None:
      spec = find_data(merged).spec
    if spec.fingerprint != meta["fingerprint"]:
      launch.log(
        f"note: {config.data.path or 'the data'} was prepared otherwise than "
        "the data of training (fingerprints differ)"
      )
    task = base.with_ema(
      tasks.get(merged.task).make_task(merged, spec), merged.optim.ema_decay
    )
    mesh = parallel.make_mesh(merged.mesh.fsdp)
    parallel.check_batch_size(merged.data.batch_size, mesh)
    loaded = restore(ck, task, mesh, merged.mesh.sharding_rules, step)
    identity = ck.identity(step)
  return Loaded(
    task=task,
    params=task.inference_params(**loaded),
    extra=loaded["extra"],
    step=step,
    config=merged,
    spec=spec,
    mesh=mesh,
    meta=meta,
    identity=identity,
  )


def restore(
  checkpoints: checkpoint.Checkpoints,
  task: base.Task,
  mesh: Mesh,
  rules: parallel.Rules,
  step: int | None = None,
) -> dict[str, Any]:
  """Loads `params` and `extra` of a task, on the mesh."""
  abstract = states.abstract_state(task.init, optax.identity(), task.init_extra)
  abstract = states.with_shardings(
    abstract, states.state_shardings(abstract, mesh, rules)
  )
  wanted = {"params": abstract.params, "extra": abstract.extra}
  return checkpoints.restore_parts(wanted, step)


def find_data(config: ConfigDict) -> sources.DataSet:
  """The data of a config, with records as long as its task needs them."""
  frames = tasks.get(config.task).clip(config).stored
  return sources.find(config.data.path, frames)


def make_eval_step(evaluate, mesh: Mesh):
  """Compiles `Task.evaluate`; metrics come back replicated."""
  return jax.jit(
    parallel.with_mesh(mesh, evaluate), out_shardings=parallel.replicated(mesh)
  )


def evaluate_split(
  eval_step,
  params: Any,
  extra: Any,
  source: Records,
  config: ConfigDict,
  mesh: Mesh,
  prefix: str,
  preemption: launch.Preemption | None = None,
) -> dict[str, float] | None:
  """Means over all records of a split."""
  batches = loader.eval_batches(
    source,
    batch_size=config.data.batch_size,
    rows=parallel.local_rows(mesh, config.data.batch_size),
    threads=config.data.threads,
    worker_processes=config.data.worker_processes,
  )
  totals = []
  with loader.closing(batches):
    for batch in parallel.prefetch(batches, mesh):
      if preemption is not None and preemption.tick():
        return None
      with jax.transfer_guard("disallow"):
        totals.append(eval_step(params, extra, batch))
  return base.mean_metrics(jax.device_get(totals), prefix)


def run(config: ConfigDict) -> dict[str, Any]:
  """The job `evaluate`: what the task measures, on the evaluation split.

  Writes `<workdir>/evaluation.json`: checkpoint, step, split, records, what the
  task says of its measures, and {metric: {name of the measure: mean}}. For
  VideoMAE these are the losses at each ratio of `report.mask_ratios` (and that
  of the training), beside those of painting the mean colour.

  Returns:
    What was written.
  """
  loaded = load(config)
  source = find_data(loaded.config).open(
    config.data.eval_split, "data.eval_split"
  )
  plan = loaded.task.evaluations(loaded.config)
  facts = {
    "checkpoint": os.fspath(checkpoint_folder(config)),
    "identity": loaded.identity,
    "step": loaded.step,
    "data": loaded.spec.fingerprint,
    "split": source.split,
    "records": len(source),
    **plan.facts,
  }
  path = pathlib.Path(config.workdir) / "evaluation.json"
  stage = done.Done(path, {**facts, "data": source.identity})
  found = stage.read()
  if launch.agree(found is not None):
    launch.log(f"evaluation of step {loaded.step} is done: {path}")
    return found or {}
  launch.log(f"checkpoint of step {loaded.step}, {len(source)} records")
  measures: dict[str, dict[str, float]] = {}
  for name, function in plan.functions.items():
    step = make_eval_step(function, loaded.mesh)
    means = evaluate_split(
      step,
      loaded.params,
      loaded.extra,
      source,
      loaded.config,
      loaded.mesh,
      "",
    )
    for metric, value in means.items():
      measures.setdefault(metric, {})[name] = value
    text = ", ".join(f"{metric} {value:.4f}" for metric, value in means.items())
    launch.log(f"  {name}: {text}")
  result = {**facts, **measures}
  if launch.is_main():
    stage.write(result)
    launch.log(f"wrote {path}")
  return result
