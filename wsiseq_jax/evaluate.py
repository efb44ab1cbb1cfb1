"""Jobs that start from a checkpoint: `evaluate` and `embed`.

Both need a folder of checkpoints and a data set, nothing else: the model is
rebuilt by the training code from the config inside the checkpoint. From the
command line's config they take only where things are and how to run
(`config.RUNTIME`), so a config that has changed since cannot spoil them.

`evaluate_split` is also what the training loop calls: there is no second
evaluation.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_prep.files import atomic, tables
from data_prep.files.done import Done
from wsiseq_jax import checkpoint, launch, parallel, tasks
from wsiseq_jax import config as configs
from wsiseq_jax import state as states
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model, ready to be used.

  Attributes:
    task: the task, rebuilt from the checkpoint.
    params: the parameters to use, on the mesh (`Task.inference_params`).
    extra: the task's own state.
    step: the checkpoint's step.
    config: the config of the training, with the runtime keys of this run.
    spec: what the data set says of itself.
    mesh: the devices.
    meta: the checkpoint's own description.
    identity: tells the checkpoint from any other.
  """

  task: base.Task
  params: Any
  extra: Any
  step: int
  config: ConfigDict
  spec: sources.DataSpec
  mesh: Mesh
  meta: Mapping[str, Any]
  identity: str


def checkpoint_folder(config: ConfigDict) -> epath.Path:
  """Where checkpoints lie: `checkpoint.path`, or in the workdir."""
  if config.checkpoint.path:
    return epath.Path(config.checkpoint.path)
  return epath.Path(config.workdir) / "checkpoints"


def load(
  config: ConfigDict,
  step: int | None = None,
  read_spec: Callable[[ConfigDict], sources.DataSpec] | None = None,
) -> Loaded:
  """Rebuilds a trained model from its checkpoint.

  Args:
    config: the run's config; see `config.RUNTIME` for what is used of it.
    step: which checkpoint; the newest by default.
    read_spec: config → description of the data, for data other than shards.

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
    if read_spec is None:
      spec = sources.read_spec(config.data.path)
    else:
      spec = read_spec(merged)
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
    abstract = states.abstract_state(
      task.init, optax.identity(), task.init_extra
    )
    abstract = states.with_shardings(
      abstract,
      states.state_shardings(abstract, mesh, merged.mesh.sharding_rules),
    )
    loaded = ck.restore_parts(
      {"params": abstract.params, "extra": abstract.extra}, step
    )
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


def make_eval_step(evaluate, mesh: Mesh):
  """Compiles `Task.evaluate`; metrics come back replicated."""
  return jax.jit(
    parallel.within(mesh, evaluate), out_shardings=parallel.replicated(mesh)
  )


def evaluate_split(
  eval_step,
  params: Any,
  extra: Any,
  source: sources.RecordSource,
  config: ConfigDict,
  mesh: Mesh,
  prefix: str,
  preemption: launch.Preemption | None = None,
) -> dict[str, float] | None:
  """Means over all records of a split.

  Args:
    eval_step: what `make_eval_step` returned.
    params: parameters, see `Task.inference_params`.
    extra: the task's own state.
    source: the split.
    config: for batch size, threads and worker processes.
    mesh: the devices.
    prefix: put before the names of the metrics.
    preemption: asked before every batch, if given.

  Returns:
    {prefix + name: mean}, or None if it was told to stop.
  """
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
      totals.append(eval_step(params, extra, batch))
  return base.mean_metrics(jax.device_get(totals), prefix)


def run_evaluate(config: ConfigDict) -> dict[str, Any]:
  """The job `evaluate`: what the task measures, on the evaluation split.

  Writes `<workdir>/evaluation.json`: checkpoint, step, split, records, what the
  task says of its measures, and {metric: {name of the measure: mean}}. For
  VideoMAE these are the losses at each ratio of `report.mask_ratios` (and that
  of the training), beside those of painting the mean colour.

  Returns:
    What was written.
  """
  run = load(config)
  source = sources.RecordSource(
    config.data.path, config.data.eval_split, "data.eval_split"
  )
  plan = run.task.evaluations(run.config)
  result = {
    "checkpoint": os.fspath(checkpoint_folder(config)),
    "identity": run.identity,
    "step": run.step,
    "data": run.spec.fingerprint,
    "split": source.split,
    "records": len(source),
    **plan.facts,
  }
  path = pathlib.Path(config.workdir) / "evaluation.json"
  stage = Done(path, [result, source.identity, list(plan.functions)])
  done = stage.read()
  # The main process writes, so it knows; the others may see another disk.
  if launch.agree(done is not None):
    launch.log(f"evaluation of step {run.step} is done: {path}")
    return done or {}
  launch.log(f"checkpoint of step {run.step}, {len(source)} records")
  for name, function in plan.functions.items():
    step = make_eval_step(function, run.mesh)
    means = evaluate_split(
      step, run.params, run.extra, source, run.config, run.mesh, ""
    )
    for metric, value in means.items():
      result.setdefault(metric, {})[name] = value
    text = ", ".join(f"{metric} {value:.4f}" for metric, value in means.items())
    launch.log(f"  {name}: {text}")
  if launch.is_main():
    stage.write(result)
    launch.log(f"wrote {path}")
  return result


@functools.lru_cache(maxsize=4)
def _compile_embed(embed, mesh: Mesh):
  """Compiles `Task.embed`, once for all splits."""
  return jax.jit(
    parallel.within(mesh, embed), out_shardings=parallel.batch_sharding(mesh)
  )


def embed_split(
  run: Loaded, source: sources.Records, tokens: bool = False
) -> dict[str, Any]:
  """Features of all records of a split, in their order.

  Args:
    run: the model.
    source: the split.
    tokens: also what the features were averaged from: tokens f32 [N, n, d],
      token_mask and token_time f32 [N, n].

  Returns:
    Arrays with a leading axis of records: features f32 [N, d]; sequence_id,
    slide_id, patient_id; frame_level0_xy f32 [N, t, 2], time f32 [N, t] and
    frames int32 [N, t] of the frames that were looked at; level0_xy f32 [N, 2],
    their mean; mpp, heading_deg, targets, index. Without an axis:
    checkpoint_step, checkpoint (its identity) and data (its fingerprint).
  """
  embed = _compile_embed(run.task.embed, run.mesh)
  batches = loader.eval_batches(
    source,
    batch_size=run.config.data.batch_size,
    rows=parallel.local_rows(run.mesh, run.config.data.batch_size),
    threads=run.config.data.threads,
    worker_processes=run.config.data.worker_processes,
  )
  kept = ("mpp", "heading_deg", "targets", "index")
  parts = []
  with loader.closing(batches):
    for batch in parallel.prefetch(batches, run.mesh):
      out = embed(run.params, batch) | {name: batch[name] for name in kept}
      if not tokens:
        out = {k: v for k, v in out.items() if not k.startswith("token")}
      is_real = parallel.fetch(batch["mask"]) > 0
      out = parallel.fetch(out)
      parts.append({name: array[is_real] for name, array in out.items()})
  arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  ids = [source.record(int(index)) for index in arrays["index"]]
  for name in ("sequence_id", "slide_id", "patient_id"):
    arrays[name] = np.array([getattr(record, name) for record in ids])
  arrays["level0_xy"] = arrays["frame_level0_xy"].mean(axis=1)
  arrays["checkpoint_step"] = np.int64(run.step)
  arrays["checkpoint"] = np.array(run.identity)
  arrays["data"] = np.array(run.spec.fingerprint)
  return arrays


def run_embed(config: ConfigDict) -> list[pathlib.Path]:
  """The job `embed`: features of every split, in `<workdir>/embeddings/`.

  Writes `<split>.npz` (see `embed_split`) and `<split>.csv`, the same without
  the features, for other programs. `config.embed.tokens` adds the tokens that
  features were averaged from, many times their size.

  Returns:
    The npz files.
  """
  run = load(config)
  folder = pathlib.Path(config.workdir) / "embeddings"
  written = []
  for split in sources.split_names(config.data.path):
    source = sources.RecordSource(config.data.path, split)
    path = folder / f"{split}.npz"
    written.append(path)
    table = path.with_suffix(".csv")
    made_from = [run.identity, source.identity, bool(config.embed.tokens)]
    stage = Done(path.with_suffix(".json"), made_from)
    if launch.agree(stage.read() is not None):
      launch.log(f"{split}: embeddings of step {run.step} are done: {path}")
      continue
    arrays = embed_split(run, source, config.embed.tokens)
    if launch.is_main():
      folder.mkdir(parents=True, exist_ok=True)
      stage.clear()
      with atomic.replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
      _write_table(table, arrays)
      stage.write({}, [path, table])
    width = arrays["features"].shape[1]
    launch.log(f"{split}: {len(source)} records × {width} → {path}")
  return written


def _write_table(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  names = ("sequence_id", "slide_id", "patient_id", "mpp", "heading_deg")
  columns = {name: arrays[name].tolist() for name in names}
  for name, values in zip("xy", arrays["level0_xy"].T, strict=True):
    columns[f"level0_{name}"] = [f"{value:.10g}" for value in values]
  rows = zip(*columns.values(), strict=True)
  named = (dict(zip(columns, row, strict=True)) for row in rows)
  tables.write(path, list(columns), named)
