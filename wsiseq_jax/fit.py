"""THE trainer of models on labelled features: MIL models, probes, fine-tuning.

AdamW with a linear warm-up and a cosine over `epochs`, step by step, or another
optimiser by name (`optim.named`). After every epoch the validation samples are
predicted and scored; the parameters of the epoch with the highest score are
kept, and training stops `patience` epochs after it. Nothing else decides, and
test samples are not looked at.

What `train.py` guarantees holds here. A fit that was stopped (SIGTERM: saves
first) or killed (falls back to the last save) goes on where it was, bit for bit
as an undisturbed one, and leaves rows of the same kind in `metrics.jsonl`,
TensorBoard and Weights & Biases. Only a fit that lasts is saved: most take
seconds, and then training again is cheaper than writing.

Programs are compiled once for a model and a shape of batch; learning rate,
labels and weights are arguments. So targets, folds and seeds share them.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from data_prep.files import atomic
from wsiseq_jax import launch, optim, parallel, writers

Batch = Mapping[str, Array]

# A fit is saved at the first end of an epoch this long after its start, or
# after it was saved before.
SAVE_EVERY_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """How to train."""

  lr: float = 3e-4  # peak learning rate of a step
  weight_decay: float = 1e-3  # of matrices
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip_norm: float = 5.0  # largest norm of the whole gradient; 0 = any
  warmup_epochs: int = 1  # of rising learning rate
  epochs: int = 100  # at most
  # Epochs without a higher score after which training stops; 0 = never.
  patience: int = 15
  # One of `optim.NAMES`; 'irn_sgd' falls by a power of 0.9, without a warm-up.
  optimizer: str = "adamw"
  # (beginning of parameters' paths, factor of their learning rate) pairs.
  lr_factors: tuple[tuple[str, float], ...] = ()
  # Which epoch is kept: the best by validation, or the last, whatever that
  # says.
  keep: Literal["best", "last"] = "best"


@dataclasses.dataclass(frozen=True)
class Model:
  """What is trained. Two models are the same if their functions are."""

  # (key, frozen parameters, `Data.example`) → parameters to train.
  init: Callable[[Array, Any, Batch | None], Any]
  # (parameters, frozen parameters, batch, key) → mean loss of a batch.
  loss: Callable[[Any, Any, Batch, Array], Float[Array, ""]]
  # (parameters, frozen parameters, batch) → outputs [b, y].
  apply: Callable[[Any, Any, Batch], Float[Array, "b y"]]


@dataclasses.dataclass(frozen=True)
class Data:
  """Batches on the devices.

  Those of validation have `index` [b], the number of each sample, and `mask`
  [b], 0 for rows that only fill the batch.
  """

  steps_per_epoch: int  # batches of an epoch
  # First step → batches of that step and all later ones.
  train: Callable[[int], Iterator[Batch]]
  val: Callable[[], Iterator[Batch]]  # () → batches of all validation samples
  # A batch, for models whose first parameters depend on one.
  example: Batch | None = None


# Outputs of the validation samples → their score, a tuple of which the highest
# is the best, and what to write down, by name.
Validate = Callable[
  [Float[np.ndarray, "v y"]], tuple[tuple[float, ...], dict[str, float]]
]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
  """A trained model."""

  params: Any  # of the best epoch, on the devices
  epoch: int  # the best one, counted from 1
  score: tuple[float, ...]  # its validation score
  # What was written down after each epoch, by name.
  history: list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class FitFolder:
  """Where a fit leaves its metrics and, while it lasts, its state."""

  # Gets `metrics.jsonl`, `tensorboard/` and, for a time, `state.npz`.
  path: pathlib.Path
  # Hash of all that the fit depends on; the state of another is not resumed.
  inputs: str
  preemption: launch.Preemption  # asked before every step whether to stop
  # Has a block `wandb`; None = no Weights & Biases.
  config: ConfigDict | None = None

  @property
  def state_file(self) -> pathlib.Path:
    """Where the state lies."""
    return self.path / "state.npz"

  def writer(self, step: int) -> writers.MetricWriter:
    """Opens the metrics, without rows after `step`."""
    sinks = ()
    if self.config is not None and self.config.wandb.project:
      self.path.mkdir(parents=True, exist_ok=True)
      sinks = (writers.WandbSink(self.config, self.path),)
    return writers.MetricWriter(self.path, step, sinks)

  def clear(self) -> None:
    """Forgets the state, once the result is saved."""
    self.state_file.unlink(missing_ok=True)


@dataclasses.dataclass
class _State:
  """A fit after `step` updates, and the best epoch so far."""

  params: Any
  opt_state: Any
  best: Any
  step: int = 0
  losses: list[Any] = dataclasses.field(default_factory=list)  # of this epoch
  history: list[dict[str, float]] = dataclasses.field(default_factory=list)
  epoch: int = 0
  score: tuple[float, ...] | None = None

  @property
  def arrays(self) -> tuple[Any, Any, Any]:
    return self.params, self.opt_state, self.best

  def save(self, path: pathlib.Path, inputs: str, is_writer: bool) -> None:
    """Writes the state; every process of the mesh has to call it."""
    arrays = parallel.fetch(jax.tree.leaves(self.arrays))
    facts = {
      "inputs": inputs,
      "step": self.step,
      "losses": [float(x) for x in self.losses],
      "history": self.history,
      "epoch": self.epoch,
      "score": self.score,
    }
    if is_writer:
      path.parent.mkdir(parents=True, exist_ok=True)
      with atomic.replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, *arrays, facts=np.array(json.dumps(facts)))

  def restored(self, path: pathlib.Path) -> "_State":
    """The state in a file, with the shapes and shardings of this one."""
    with np.load(path) as file:
      facts = json.loads(str(file["facts"]))
      arrays = [
        jax.make_array_from_callback(
          leaf.shape, leaf.sharding, file[f"arr_{i}"].__getitem__
        )
        for i, leaf in enumerate(jax.tree.leaves(self.arrays))
      ]
    del facts["inputs"]
    score = facts.pop("score")
    trees = jax.tree.unflatten(jax.tree.structure(self.arrays), arrays)
    return _State(*trees, score=score and tuple(score), **facts)


def _is_resumable(path: pathlib.Path, inputs: str) -> bool:
  if not path.is_file():
    return False
  with np.load(path) as file:
    return json.loads(str(file["facts"]))["inputs"] == inputs


# What is compiled of the settings; see `optim.named`.
_Update = collections.namedtuple(
  "_Update", "weight_decay b1 b2 eps clip_norm optimizer lr_factors"
)
_Programs = collections.namedtuple("_Programs", "start step apply")


@functools.lru_cache(maxsize=32)
def _programs(model: Model, how: _Update, mesh: Mesh) -> _Programs:
  """The compiled functions of a model, the same ones whenever asked for."""
  tx = optim.named(how)

  def placed(params, opt_state):
    # Otherwise the second step would compile again: its parameters could be
    # sharded otherwise than the first's.
    shardings = parallel.param_shardings(params, mesh)
    places = parallel.shardings_like(opt_state, params, shardings, mesh)
    return jax.lax.with_sharding_constraint(
      (params, opt_state), (shardings, places)
    )

  def start(key, frozen, example):
    params = model.init(key, frozen, example)
    return placed(params, tx.init(params))

  def step(params, opt_state, frozen, batch, lr, key):
    loss, grads = jax.value_and_grad(model.loss)(params, frozen, batch, key)
    updates, opt_state = tx.update(grads, opt_state, params)
    factors = optim.lr_factors(params, how.lr_factors)
    updates = jax.tree.map(lambda u, f: -(f * lr) * u, updates, factors)
    return *placed(optax.apply_updates(params, updates), opt_state), loss

  return _Programs(
    jax.jit(parallel.with_mesh(mesh, start)),
    jax.jit(parallel.with_mesh(mesh, step), donate_argnums=(0, 1)),
    jax.jit(parallel.with_mesh(mesh, model.apply)),
  )


class Trainer:
  """Fits a model, again and again.

  Args:
    model: what is trained.
    settings: how.
    mesh: the devices; of this process alone, or of all.
    frozen: parameters that the model uses and does not change.
  """

  def __init__(
    self, model: Model, settings: FitSettings, mesh: Mesh, frozen: Any = ()
  ):
    self.settings, self.mesh, self.frozen = settings, mesh, frozen
    how = _Update(*(getattr(settings, name) for name in _Update._fields))
    self._programs = _programs(model, how, mesh)
    owners = {device.process_index for device in mesh.devices.flat}
    self._is_writer = min(owners) == jax.process_index()
    # What only one process can know is then decided by the main one.
    self._agree = launch.agree if len(owners) > 1 else bool

  def fit(
    self,
    data: Data,
    validate: Validate,
    seed: int,
    folder: FitFolder | None = None,
  ) -> Fitted:
    """Trains, and keeps the epoch with the highest validation score.

    Args:
      data: batches.
      validate: scores outputs of the validation samples.
      seed: of the first parameters and of what is random in the loss.
      folder: for metrics and state; None writes nothing.

    Raises:
      ValueError: no epoch had a finite score.
      launch.Stopped: it was told to stop; the state is saved.
    """
    key = jax.random.key(seed)
    first = jax.random.fold_in(key, 0)
    params, opt_state = self._programs.start(first, self.frozen, data.example)
    state = _State(params, opt_state, jax.tree.map(jnp.copy, params))
    if folder is not None:
      path = folder.state_file
      if self._agree(_is_resumable(path, folder.inputs)):
        state = state.restored(path)
        launch.log(f"{folder.path.name}: resuming at step {state.step}")
    with contextlib.ExitStack() as stack:
      writer = None
      if folder is not None:
        stack.enter_context(folder.preemption)
        if self._is_writer:
          writer = folder.writer(state.step)
          stack.callback(writer.close)
      batches = data.train(state.step)
      stack.callback(batches.close)
      self._loop(state, data, batches, validate, key, folder, writer)
    if state.score is None:
      raise ValueError(
        f"seed {seed}: no validation score is finite, {state.history[:3]}; "
        "lower the learning rate"
      )
    return Fitted(state.best, state.epoch, state.score, state.history)

  def _loop(self, state, data, batches, validate, key, folder, writer):
    """Trains from wherever the state stands to the end."""
    settings, per_epoch = self.settings, data.steps_per_epoch
    rates = learning_rates(settings, per_epoch)
    saved_at = time.monotonic()
    while state.step < len(rates):
      if folder is not None and folder.preemption.tick():
        self._save(state, folder, writer)
        raise launch.Stopped(
          f"{folder.path.name}: stopped at step {state.step}; the same command "
          "goes on"
        )
      state.params, state.opt_state, loss = self._programs.step(
        state.params,
        state.opt_state,
        self.frozen,
        next(batches),
        rates[state.step],
        jax.random.fold_in(key, state.step + 1),
      )
      state.step += 1
      state.losses.append(loss)
      if len(state.losses) > 2:  # more under way would only delay a stop
        jax.block_until_ready(state.losses[-3])
      if state.step % per_epoch:
        continue
      epoch = state.step // per_epoch
      score, metrics = validate(self.predict(state.params, data.val()))
      row = {
        "train/loss": float(np.mean([float(x) for x in state.losses])),
        "train/lr": float(rates[state.step - 1]),
        **metrics,
      }
      state.history.append(row)
      state.losses = []
      if writer is not None:
        writer.scalars(state.step, row)
      is_better = state.score is None or score > state.score
      if settings.keep == "last" or math.isfinite(score[0]) and is_better:
        # Copied: the step gives its parameters away.
        state.best = jax.tree.map(jnp.copy, state.params)
        state.score, state.epoch = score, epoch
      if settings.patience and epoch - state.epoch >= settings.patience:
        break
      is_due = time.monotonic() - saved_at >= SAVE_EVERY_SECONDS
      if folder is not None and self._agree(is_due):
        self._save(state, folder, writer)
        saved_at = time.monotonic()

  def _save(self, state, folder, writer) -> None:
    if writer is not None:
      writer.sync()
    state.save(folder.state_file, folder.inputs, writer is not None)

  def predict(
    self, params: Any, batches: Iterator[Batch]
  ) -> Float[np.ndarray, "n y"]:
    """Outputs of all samples of some batches, in the order of their `index`."""
    outputs, index = [], []
    with contextlib.closing(batches):
      for batch in batches:
        out = self._programs.apply(params, self.frozen, batch)
        is_real = parallel.fetch(batch["mask"]) > 0
        outputs.append(parallel.fetch(out)[is_real])
        index.append(parallel.fetch(batch["index"])[is_real])
    order = np.argsort(np.concatenate(index), kind="stable")
    return np.concatenate(outputs).astype(np.float64)[order]


def learning_rates(
  settings: FitSettings, steps_per_epoch: int
) -> Float[np.ndarray, " s"]:
  """Learning rate of each step."""
  total = steps_per_epoch * settings.epochs
  if settings.optimizer == "irn_sgd":
    return np.asarray(
      jax.vmap(lambda s: optim.poly(s, settings.lr, total))(jnp.arange(total))
    )
  warmup = min(steps_per_epoch * settings.warmup_epochs, total - 1)
  schedule = jax.vmap(
    lambda s: optim.warmup_cosine(s, settings.lr, 0.0, warmup, total)
  )
  return np.asarray(schedule(jnp.arange(1, total + 1)))


def standardisation(labels: np.ndarray) -> tuple[float, float]:
  """Mean and std that numeric targets are learned with; std 1 if all equal."""
  return float(labels.mean()), float(labels.std()) or 1.0
