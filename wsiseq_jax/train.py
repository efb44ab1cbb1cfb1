"""THE loop: every task is trained by this file, on one device or many.

The order inside the loop is

    evaluate? → save? → next batch → step → log?

and "state at step s" always means: after s updates. So the checkpoint named s
holds that state and the position s in the data, an evaluation at s is of it,
and a log line at s is the mean over the updates that led there. Evaluation and
save also happen at the end, evaluation also at step 0.

A run that was stopped (SIGTERM: saves first; SIGKILL or power: falls back to
the last checkpoint) is resumed by the same command. Its final parameters are
bit for bit those of an undisturbed run, because everything random comes from
the seed and the step, and the data order is a function of the step.

Metrics stay on the device until they are logged or a checkpoint is due, so
that steps follow one another without waiting. Then they are checked: a loss
that is no number stops the run with the step and the records of that batch,
before it can reach a checkpoint.
"""

import dataclasses
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from ml_collections import ConfigDict

from data_prep.files import atomic
from wsiseq_jax import checkpoint, evaluate, launch, optim, parallel, writers
from wsiseq_jax import config as configs
from wsiseq_jax import run as train_setup
from wsiseq_jax.data import loader
from wsiseq_jax.run import Run
from wsiseq_jax.state import TrainState
from wsiseq_jax.tasks import base

_DRAW_SECONDS = 60.0  # between two drawings of the loss


def make_train_step(run: Run):
  """Compiles one update: (state, batch) → (state, metrics).

  The state is donated. Its shardings are given for input and output; without
  them the first output could differ from the first input, and the second call
  would compile again.
  """

  def train_step(state: TrainState, batch: base.Batch):
    key = jax.random.fold_in(jax.random.key(run.config.seed), state.step)
    progress = state.step.astype(jnp.float32) / run.total_steps
    grad = optim.value_and_grad(
      run.task.loss, run.config.optim.accumulate_steps
    )
    (_, (metrics, aux)), grads = grad(
      state.params, state.extra, batch, key, progress
    )
    updates, opt_state = run.tx.update(grads, state.opt_state, state.params)
    metrics = {
      **metrics,
      "grad_norm": (optax.tree.norm(grads), 1.0),
      "lr": (run.schedule(state.step), 1.0),
    }
    params = optax.apply_updates(state.params, updates)
    extra = run.task.update_extra(params, state.extra, aux)
    return TrainState(state.step + 1, params, opt_state, extra), metrics

  return jax.jit(
    parallel.with_mesh(run.mesh, train_step),
    in_shardings=(run.shardings, parallel.batch_sharding(run.mesh)),
    out_shardings=(run.shardings, parallel.replicated(run.mesh)),
    donate_argnums=0,
  )


@dataclasses.dataclass
class _Pending:
  """Metrics of the steps since the last log line.

  Those fetched already are kept as floats in `fetched`; a checkpoint takes them
  along, so that the line after a resume is the mean over the same steps.
  """

  first_step: int
  fetched: list[dict[str, list[float]]] = dataclasses.field(
    default_factory=list
  )
  on_device: list[base.Metrics] = dataclasses.field(default_factory=list)

  def fetch(self) -> list[dict[str, list[float]]]:
    """Waits for the device; returns the metrics of every step."""
    for row in jax.device_get(self.on_device):
      self.fetched.append(
        {name: [float(s), float(w)] for name, (s, w) in row.items()}
      )
    self.on_device = []
    return self.fetched

  def clear(self, step: int) -> None:
    self.first_step, self.fetched = step, []


def run(config: ConfigDict) -> TrainState:
  """The job `train`: trains from wherever the workdir stands to the end.

  Args:
    config: the experiment.

  Returns:
    The state at the end.

  Raises:
    launch.Stopped: it saved and stopped before the end, as it was told to.
    ValueError: bad config, or a workdir that holds another experiment.
    FloatingPointError: the loss is no longer a number.
  """
  run = train_setup.prepare(config)
  config = run.config
  workdir = pathlib.Path(config.workdir)
  meta = train_setup.describe_run(run)
  pending = _Pending(0)
  with (
    launch.Preemption() as preemption,
    checkpoint.Checkpoints(
      evaluate.checkpoint_folder(config),
      every_steps=config.checkpoint.every_steps,
      every_minutes=config.checkpoint.every_minutes,
      keep=config.checkpoint.keep,
    ) as checkpoints,
  ):
    if checkpoints.latest is None:
      state = train_setup.first_state(run)
    else:
      train_setup.check_resume(checkpoints.meta(), meta)
      if checkpoints.latest == run.total_steps:
        launch.log(
          f"training is complete: step {run.total_steps} in "
          f"{checkpoints.folder}"
        )
        return checkpoints.restore(run.abstract)[0]
      state, data = checkpoints.restore(run.abstract)
      pending = _Pending(data["first_pending_step"], data["pending"])
      launch.log(f"resuming at step {int(state.step)}")
    if launch.is_main():
      workdir.mkdir(parents=True, exist_ok=True)
      atomic.write_atomic(workdir / "config.json", configs.to_json(config))
      table = parameter_overview.get_parameter_overview(
        run.abstract.params, include_stats=False
      )
      atomic.write_atomic(workdir / "parameters.txt", table + "\n")
    _log_start(run, state)
    log = _Log(run, int(state.step)) if launch.is_main() else None
    try:
      return _loop(run, state, pending, checkpoints, preemption, log, meta)
    finally:
      if log is not None:
        log.close()


def _loop(run, state, pending, checkpoints, preemption, log, meta):
  """The loop itself; see the module's docstring for its order."""
  config, start = run.config, int(state.step)
  train_step = make_train_step(run)
  eval_step = evaluate.make_eval_step(run.task.evaluate, run.mesh)
  host_batches = loader.train_batches(
    run.source,
    seed=config.seed,
    batch_size=config.data.batch_size,
    start_step=start,
    stop_step=run.total_steps,
    rows=parallel.local_rows(run.mesh, config.data.batch_size),
    threads=config.data.threads,
    worker_processes=config.data.worker_processes,
  )
  with loader.closing(host_batches):
    batches = parallel.prefetch(host_batches, run.mesh)
    step = start
    while True:
      is_stopping = preemption.tick()
      is_last = step == run.total_steps
      every = config.eval_every_steps
      if every and (is_last or step % every == 0) and not is_stopping:
        prefix = f"{run.eval_source.split}/"
        # Only the main process knows what was written.
        is_done = log is not None and log.has_evaluation(step, prefix)
        if not launch.agree(is_done):
          means = evaluate.evaluate_split(
            eval_step,
            run.task.inference_params(state.params, state.extra),
            state.extra,
            run.eval_source,
            config,
            run.mesh,
            prefix,
            preemption,
          )
          is_stopping = means is None
          if log is not None and means is not None:
            log.evaluation(step, means)
      # Asked on all processes alike, whatever else is due.
      is_due = checkpoints.is_due(step)
      if is_due or is_last or is_stopping:
        rows = pending.fetch()
        check_finite(rows, pending.first_step, run)
        if log is not None:
          log.sync()
        position = {
          "step": step,
          "first_pending_step": pending.first_step,
          "pending": rows,
        }
        checkpoints.save(state, position, {**meta, "step": step})
      if is_last or is_stopping:
        break
      batch = next(batches)
      # An array that is not on the devices yet would be copied in each step.
      with jax.transfer_guard("disallow"):
        state, metrics = train_step(state, batch)
      pending.on_device.append(metrics)
      # Two steps under way keep the device busy. More would only delay a stop:
      # the state cannot be saved before they are through.
      if len(pending.on_device) > 2:
        jax.block_until_ready(pending.on_device[-3])
      step += 1
      if step % config.log_every_steps == 0 or step == run.total_steps:
        rows = pending.fetch()
        check_finite(rows, pending.first_step, run)
        if log is not None:
          log.training(step, base.mean_metrics(rows, "train/"))
        pending.clear(step)
  checkpoints.wait()
  where = f"at step {step}; checkpoint in {checkpoints.folder}"
  if not is_last:
    raise launch.Stopped(f"stopped {where}")
  launch.log(f"finished {where}")
  return state


def check_finite(
  rows: list[dict[str, list[float]]], first_step: int, run: Run
) -> None:
  """Raises if a loss is no number, naming the step and its records."""
  for offset, row in enumerate(rows):
    loss = row["loss"][0]
    if math.isfinite(loss) and math.isfinite(row["grad_norm"][0]):
      continue
    step = first_step + offset
    config = run.config
    indices = loader.batch_indices(
      len(run.source), config.seed, config.data.batch_size, step
    )
    names = [run.source.record(int(i)).sequence_id for i in indices]
    raise FloatingPointError(
      f"in the update from step {step} to {step + 1} the loss is {loss} and "
      f"the gradient norm {row['grad_norm'][0]}, at learning rate "
      f"{row['lr'][0]:.3g}. Records of this batch: {', '.join(names)}. Nothing "
      "after the last checkpoint is kept; a lower config.optim.lr_per_256 or a "
      "config.optim.clip_norm may help"
    )


def _log_start(run: Run, state: TrainState) -> None:
  count = sum(x.size for x in jax.tree.leaves(state.params))
  data, mesh = run.config.data, dict(run.mesh.shape)
  launch.log(
    f"{run.config.task}: {count / 1e6:.2f} M parameters, mesh {mesh}; "
    f"{len(run.source)} records ({run.source.spec.geometry}), "
    f"{data.batch_size} a step, {run.task.clips_per_record} clips of each; "
    f"{run.total_steps} steps "
    f"({run.total_steps * data.batch_size / len(run.source):.1f} epochs)"
  )


class _Log:
  """Everything the main process writes while training."""

  def __init__(self, run: Run, start: int):
    self._run = run
    self._workdir = pathlib.Path(run.config.workdir)
    sinks = ()
    if run.config.wandb.project:
      sinks = (writers.WandbSink(run.config),)
    self._writer = writers.MetricWriter(self._workdir, start, sinks)
    self._progress = writers.Progress(run.total_steps, start)
    self._step, self._time = start, time.monotonic()
    self._drawn = self._time

  def training(self, step: int, means: dict[str, float]) -> None:
    """A log line; the clock leaves out evaluation."""
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._time, 1e-9)
    clips = (
      rate * self._run.config.data.batch_size * self._run.task.clips_per_record
    )
    self._step, self._time = step, now
    self._writer.scalars(step, {**means, "train/clips_per_second": clips})
    values = {
      "loss": f"{means['train/loss']:.4f}",
      "lr": f"{means['train/lr']:.2e}",
      "clips/s": f"{clips:.1f}",
    }
    self._progress.show(step, values)

  def has_evaluation(self, step: int, prefix: str) -> bool:
    """Whether this evaluation was written before the run was resumed."""
    return self._writer.has(step, f"{prefix}loss")

  def evaluation(self, step: int, means: dict[str, float]) -> None:
    """A line of evaluation."""
    self._writer.scalars(step, means)
    text = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    self._progress.message(f"step {step}: {text}")
    self._step, self._time = step, time.monotonic()

  def sync(self) -> None:
    """Puts all lines on disk, and draws the loss once in a while."""
    self._writer.sync()
    # A drawing takes as long as some steps, and there it is waited for.
    if time.monotonic() - self._drawn > _DRAW_SECONDS:
      self._draw()

  def _draw(self) -> None:
    writers.plot_loss(self._writer.rows, self._workdir / "loss.png")
    self._drawn = time.monotonic()

  def close(self) -> None:
    """Closes the files, draws the loss."""
    self._progress.close()
    self._writer.close()
    self._draw()
