"""Trains a small head, or a whole encoder with one, on labelled samples.

What the attentive probe, the probe with a trained pooling token and full
fine-tuning share: AdamW with warm-up and cosine, a look at validation after
every epoch, and the test split predicted once, by the parameters of the best
epoch. Numbers are learned standardised by the training labels. An epoch has at
least ten steps: at 1 % of the labels all samples fit in one batch, and a
hundred steps leave a head that starts at zero close to zero.

The rate of a target is computed from the settings alone each time
(`learning_rate`), so that a list of targets cannot compound a change.

A `Trainer` is compiled once for a model and its number of outputs; samples,
rates and labels are arguments.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wsiseq_jax import optim, parallel
from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import Outcome, Target

Batch = Mapping[str, Array]

_LEAST_STEPS = 10  # of an epoch


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to train.

  Attributes:
    lr_per_256: learning rate for 256 samples a step.
    lr_of: rates of single targets instead, (name, lr_per_256) pairs.
    weight_decay: of matrices.
    batch_size: samples a step; the rate follows it.
    epochs: passes over the training samples at most, of ten steps or more.
    warmup_epochs: of rising rate.
    patience: epochs without a better validation after which it stops; 0 =
      never.
  """

  lr_per_256: float = 1e-3
  lr_of: tuple[tuple[str, float], ...] = ()
  weight_decay: float = 0.05
  batch_size: int = 256
  epochs: int = 100
  warmup_epochs: int = 10
  patience: int = 15


def learning_rate(settings: Settings, target: str) -> float:
  """The peak rate of a target.

  Args:
    settings: how to train.
    target: its name.

  Example:
    >>> settings = Settings(1e-3, lr_of=(("ef", 4e-3),), batch_size=128)
    >>> [learning_rate(settings, t) for t in ("ef", "af", "ef", "af")]
    [0.002, 0.0005, 0.002, 0.0005]
  """
  rate = dict(settings.lr_of).get(target, settings.lr_per_256)
  return optim.scaled_lr(rate, settings.batch_size)


@dataclasses.dataclass(frozen=True)
class Model:
  """What is trained.

  Attributes:
    init: (key, frozen parameters, first batch) → parameters to train.
    apply: (parameters, frozen parameters, batch, key or None) → outputs [b, y];
      a key means training.
  """

  init: Callable[[Array, Any, Batch], Any]
  apply: Callable[[Any, Any, Batch, Array | None], Array]


@dataclasses.dataclass(frozen=True)
class Data:
  """Where batches come from; each has `label` [b] and `mask` [b] beside inputs.

  Attributes:
    count: training samples.
    labels: of the training samples, [count].
    validation_labels: of the validation samples.
    batch_size: rows of a batch, no more than there are samples.
    train: (seed, steps) → batches in a random order.
    validation: () → batches of all validation samples, in order.
    test: () → batches of all test samples, in order.
  """

  count: int
  labels: np.ndarray
  validation_labels: np.ndarray
  batch_size: int
  train: Callable[[int, int], Iterator[Batch]]
  validation: Callable[[], Iterator[Batch]]
  test: Callable[[], Iterator[Batch]]


class Trainer:
  """Fits a model to one target after another.

  Args:
    model: what is trained.
    frozen: parameters it uses and does not change.
    is_class: whether its outputs are classes, or a number.
    settings: how to train.
    mesh: the devices.
  """

  def __init__(
    self,
    model: Model,
    frozen: Any,
    is_class: bool,
    settings: Settings,
    mesh: Mesh,
  ):
    self._frozen = frozen
    self._is_class = is_class
    self._settings = settings
    # AdamW without the rate, which is an argument of the step.
    tx = optax.chain(
      optax.scale_by_adam(),
      optax.add_decayed_weights(settings.weight_decay, mask=optim.decay_mask),
    )

    def placed(params, slots):
      # Otherwise the second step would compile again: its parameters would lie
      # otherwise than the first's.
      shardings = parallel.param_shardings(params, mesh)
      places = parallel.shardings_like(slots, params, shardings, mesh)
      return jax.lax.with_sharding_constraint(
        (params, slots), (shardings, places)
      )

    def start(key, frozen, batch):
      params = model.init(key, frozen, batch)
      return placed(params, tx.init(params))

    def loss(params, frozen, batch, scale, key):
      out = model.apply(params, frozen, batch, key)
      if is_class:
        label = batch["label"].astype(jnp.int32)
        each = optax.softmax_cross_entropy_with_integer_labels(out, label)
      else:
        each = jnp.square(out[:, 0] - (batch["label"] - scale[0]) / scale[1])
      return (each * batch["mask"]).sum() / batch["mask"].sum()

    def step(params, slots, frozen, batch, scale, lr, key):
      grads = jax.grad(loss)(params, frozen, batch, scale, key)
      updates, slots = tx.update(grads, slots, params)
      updates = jax.tree.map(lambda u: -lr * u, updates)
      return placed(optax.apply_updates(params, updates), slots)

    def predict(params, frozen, batch):
      out = model.apply(params, frozen, batch, None)
      return jax.nn.softmax(out) if is_class else out

    self._start = jax.jit(parallel.within(mesh, start))
    self._step = jax.jit(parallel.within(mesh, step))
    self._predict = jax.jit(parallel.within(mesh, predict))

  def fit(self, data: Data, target: Target, seed: int) -> Outcome:
    """Trains, keeps the epoch that validates best, predicts the test samples.

    Args:
      data: batches.
      target: what is predicted.
      seed: of the first parameters, the order of samples and augmentation.

    Returns:
      The outcome; `chosen` has the `epoch` and the learning rate `lr`.
    """
    settings, mean, std = self._settings, 0.0, 1.0
    if not self._is_class:
      mean = float(data.labels.mean())
      std = float(data.labels.std()) or 1.0
    scale = np.asarray([mean, std], np.float32)
    per_epoch = max(math.ceil(data.count / data.batch_size), _LEAST_STEPS)
    total = per_epoch * settings.epochs
    peak = learning_rate(settings, target.name)
    rates = _rates(settings, peak, per_epoch, total)
    key = jax.random.key(seed)
    batches = data.train(seed, total)
    first = next(batches)
    params, slots = self._start(jax.random.fold_in(key, 0), self._frozen, first)

    def predicted(batches):
      rows = []
      for batch in batches:
        out = parallel.fetch(self._predict(params, self._frozen, batch))
        rows.append(out[parallel.fetch(batch["mask"]) > 0])
      out = np.concatenate(rows).astype(np.float64)
      return out if self._is_class else out[:, 0] * std + mean

    best, worse = None, 0
    for number, batch in enumerate(itertools.chain([first], batches)):
      step_key = jax.random.fold_in(key, number + 1)
      params, slots = self._step(
        params, slots, self._frozen, batch, scale, rates[number], step_key
      )
      if (number + 1) % per_epoch:
        continue
      quality = samples.quality(
        target, data.validation_labels, predicted(data.validation())
      )
      worse += 1
      if best is None or quality > best[0]:
        best, worse = (quality, (number + 1) // per_epoch, params), 0
      if settings.patience and worse >= settings.patience:
        break
    batches.close()
    quality, epoch, params = best
    chosen = {"epoch": float(epoch), "lr": peak}
    return Outcome(predicted(data.test()), quality[0], chosen)


def _rates(
  settings: Settings, peak: float, per_epoch: int, total: int
) -> np.ndarray:
  """Learning rate of each update."""
  warmup = min(per_epoch * settings.warmup_epochs, total - 1)
  schedule = jax.vmap(
    lambda s: optim.warmup_cosine(s, peak, 0.0, warmup, total)
  )
  return np.asarray(schedule(jnp.arange(1, total + 1)))


def head_init(width: int, outputs: int) -> dict[str, Array]:
  """A linear head that starts at zero: all classes alike, the mean number."""
  return {"kernel": jnp.zeros((width, outputs)), "bias": jnp.zeros(outputs)}


def head_apply(
  head: Mapping[str, Array], x: Float[Array, "b d"]
) -> Float[Array, "b y"]:
  """Applies a linear head."""
  return x @ head["kernel"] + head["bias"][None]
