"""Trains one bag model and predicts with it.

AdamW with a linear warm-up and a cosine over `epochs`; after every epoch the
mean loss of all validation bags, by the class weights of training; the
parameters of the epoch with the lowest are kept, and training stops `patience`
epochs after it. Nothing else decides, and test bags are not looked at.

The Cox loss compares bags with each other: the batch is the risk set, hence
batches are drawn across bag lengths there, and 8 bags are few; validation
compares all its bags at once.

Numbers are learned standardised by the training labels.

One program is compiled for each bag length in use (`steps.py`); all folds and
seeds run through the same ones.

Deviation from the papers of CLAM, TransMIL, DSMIL, Chowder: AdamW (decay apart
from the gradient, and of matrices alone) in place of Adam with L2 or Lookahead;
batches of several bags.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from wsiseq_jax import optim, parallel
from wsiseq_jax.data.background import Background
from wsiseq_jax.data.bags import Bags, Batch
from wsiseq_jax.mil import class_weights, steps
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil.config import MilConfig

NUMERIC = ("regression",)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to train; see `configs/mil.py`, `optim` and `data`.

  Attributes:
    lr: peak learning rate of a step.
    weight_decay: of matrices.
    b1: of Adam.
    b2: of Adam.
    eps: of Adam.
    clip_norm: of the whole gradient; 0 = never.
    warmup_epochs: of rising rate.
    epochs: at most.
    patience: epochs without a lower validation loss after which it stops; 0 =
      never.
    class_weights: one of `class_weights.NAMES`.
    batch_size: bags in a step.
    max_tiles: random tiles of a training bag; 0 = all.
  """

  lr: float = 3e-4
  weight_decay: float = 1e-3
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip_norm: float = 5.0
  warmup_epochs: int = 1
  epochs: int = 100
  patience: int = 15
  class_weights: str = "none"
  batch_size: int = 8
  max_tiles: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
  """A trained model.

  Attributes:
    params: nested dict of f32 arrays, of the best epoch.
    scale: (mean, deviation) of training labels where a number is learned, else
      (0, 1).
    epoch: the best one, counted from 1.
    history: (training loss, validation loss) of each epoch.
  """

  params: Any
  scale: tuple[float, float]
  epoch: int
  history: list[tuple[float, float]]


def local_mesh(batch_size: int) -> Mesh:
  """As many devices of this process as divide a batch."""
  devices = jax.local_devices()
  return parallel.make_mesh(1, devices[: math.gcd(batch_size, len(devices))])


def check_model(model: MilConfig, head: str) -> None:
  """Raises if the model's auxiliary loss makes no sense for the head."""
  if model.loss_weights[1] and head not in class_weights.HEADS:
    raise ValueError(
      f"config.model.name = {model.name!r}, config.head = {head!r}: its "
      "auxiliary loss needs classes; set config.model.auxiliary_weight = 0.0, "
      "or take another model"
    )


class Trainer:
  """Fits models of one shape.

  Args:
    model: the shape.
    head: one of `cohort.HEADS`.
    settings: how to train.
    mesh: the devices; by default `local_mesh`.

  Raises:
    ValueError: model and head do not go together.
  """

  def __init__(
    self,
    model: MilConfig,
    head: str,
    settings: Settings,
    mesh: Mesh | None = None,
  ):
    check_model(model, head)
    self.model, self.head, self.settings = model, head, settings
    self.mesh = local_mesh(settings.batch_size) if mesh is None else mesh
    adam = steps.Adam(
      settings.weight_decay,
      settings.b1,
      settings.b2,
      settings.eps,
      settings.clip_norm,
    )
    self._programs = steps.programs(model, head, adam, self.mesh)

  def fit(
    self,
    bags: Bags,
    train: Sequence[str],
    train_labels: Float[np.ndarray, "n k"],
    val: Sequence[str],
    val_labels: Float[np.ndarray, "v k"],
    seed: int,
    on_epoch: Callable[[int, float, float], None] | None = None,
  ) -> Fitted:
    """Trains and keeps the epoch with the lowest validation loss.

    Args:
      bags: where the bags are.
      train: slides to learn from, all `ok`.
      train_labels: theirs, as in `cohort.Cohort`.
      val: slides to choose the epoch by, all `ok`.
      val_labels: theirs.
      seed: of the first parameters, the order of bags, and dropout.
      on_epoch: told (epoch, training loss, validation loss).

    Raises:
      ValueError: no epoch had a finite validation loss.
    """
    settings = self.settings
    mean, std = 0.0, 1.0
    if self.head in NUMERIC:
      mean = float(train_labels.mean())
      std = float(train_labels.std()) or 1.0
      train_labels = (train_labels - mean) / std
      val_labels = (val_labels - mean) / std
    of_classes = None
    if settings.class_weights == "balanced":
      of_classes = class_weights.balanced(train_labels, self.head)
    train_weights, val_weights = (
      class_weights.of_labels(of_classes, labels).astype(np.float32)
      for labels in (train_labels, val_labels)
    )
    train_labels = train_labels.astype(np.float32)
    is_mixed = self.head == "survival"
    per_epoch = math.ceil(len(train) / settings.batch_size)
    rates = _rates(settings, per_epoch)
    key = jax.random.key(seed)
    params, slots = self._programs.start(jax.random.fold_in(key, 0))
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    best, history, number = None, [], 0
    for epoch in range(1, settings.epochs + 1):
      total = []
      batches = bags.batches(
        train, settings.batch_size, rng, settings.max_tiles, is_mixed
      )
      with _ahead(batches) as batches:
        for batch in batches:
          labels = train_labels[batch.rows], train_weights[batch.rows]
          params, slots, loss = self._programs.step(
            params,
            slots,
            *self._put(batch, *labels),
            np.float32(rates[number]),
            jax.random.fold_in(key, number + 1),
          )
          total.append(loss)
          number += 1
      train_loss = float(np.mean(jax.device_get(total)))
      val_loss = self.loss(
        self.logits(params, bags, val), val_labels, val_weights
      )
      history.append((train_loss, val_loss))
      if on_epoch is not None:
        on_epoch(epoch, train_loss, val_loss)
      if math.isfinite(val_loss) and (best is None or val_loss < best[0]):
        # Copied: the step gives its parameters away.
        best = (val_loss, epoch, parallel.fetch(params))
      since = epoch - (best[1] if best else 0)
      if settings.patience and since >= settings.patience:
        break
    if best is None:
      raise ValueError(
        f"seed {seed}: no validation loss is finite, {history[:3]}; lower "
        "config.optim.lr"
      )
    return Fitted(best[2], (mean, std), best[1], history)

  def logits(
    self, params: Any, bags: Bags, ids: Sequence[str]
  ) -> Float[np.ndarray, "n y"]:
    """Logits of slides that are all `ok`, in their order."""
    found = np.zeros((len(ids), self.model.outputs), np.float64)
    batches = bags.batches(ids, self.settings.batch_size)
    with _ahead(batches) as batches:
      for batch in batches:
        bag = self._put(batch)[0]
        count = int(batch.weight.sum())
        out = np.asarray(self._programs.logits(params, bag))
        found[batch.rows[:count]] = out[:count]
    return found

  def loss(
    self,
    logits: Float[np.ndarray, "n y"],
    labels: Float[np.ndarray, "n k"],
    label_weights: Float[np.ndarray, "n k"] | None = None,
  ) -> float:
    """Mean loss of all these slides; labels standardised if numbers."""
    logits, labels = logits.astype(np.float32), labels.astype(np.float32)
    return float(steps.bag_loss(self.head, logits, labels, None, label_weights))

  def explain(self, params: Any, bags: Bags, slide_id: str) -> mil.MilOutput:
    """What a model says of the tiles of a slide that is `ok`.

    Returns:
      NumPy arrays of the real tiles, in the order of the file.
    """
    batch = next(bags.batches([slide_id], 1))
    count = bags.tiles[slide_id]
    bag = mil.Bag(batch.features[0], batch.mask[0], batch.grid_xy[0])
    output = self._programs.explain(params, bag)
    return mil.MilOutput(
      logits=np.asarray(output.logits),
      attention=np.asarray(output.attention)[:count],
      contribution=np.asarray(output.contribution)[:count],
      instance_logits=np.asarray(output.instance_logits)[:count],
      aux={},
    )

  def put(self, params: Any) -> Any:
    """Parameters on all devices, for several uses."""
    return jax.device_put(params, parallel.replicated(self.mesh))

  def _put(
    self,
    batch: Batch,
    labels: np.ndarray | None = None,
    label_weights: np.ndarray | None = None,
  ):
    """The bag, labels and weights on the devices, cut over them."""
    sharding = parallel.batch_sharding(self.mesh)
    bag = mil.Bag(batch.features, batch.mask, batch.grid_xy)
    if labels is None:
      return jax.device_put((bag,), sharding)
    return jax.device_put((bag, labels, label_weights, batch.weight), sharding)


def _ahead(batches: Iterator[Batch]) -> contextlib.closing:
  """The same batches, the next one being read while one is worked upon."""
  return contextlib.closing(Background(batches, ahead=1))


def _rates(settings: Settings, per_epoch: int) -> np.ndarray:
  """Learning rate of each step."""
  total = per_epoch * settings.epochs
  warmup = min(per_epoch * settings.warmup_epochs, total - 1)
  schedule = jax.vmap(
    lambda s: optim.warmup_cosine(s, settings.lr, 0.0, warmup, total)
  )
  return np.asarray(schedule(jnp.arange(1, total + 1)))


def values_of(
  head: str,
  logits: Float[np.ndarray, "n y"],
  scale: tuple[float, float] = (0.0, 1.0),
) -> Float[np.ndarray, "n c"]:
  """What logits say: probabilities of all classes or labels, or a number.

  Args:
    head: one of `cohort.HEADS`.
    logits: of slides, or of tiles.
    scale: mean and deviation of the labels of a regression; of the validation
      slides' log risk for survival, which models give on scales of their own.

  Returns:
    Two columns for one logit of a binary head.

  Example:
    >>> values_of("binary", np.array([[0.0]])).tolist()
    [[0.5, 0.5]]
    >>> values_of("regression", np.array([[1.0]]), (5.0, 2.0)).tolist()
    [[7.0]]
    >>> values_of("survival", np.array([[3.0]]), (1.0, 2.0)).tolist()
    [[1.0]]
  """
  logits = np.asarray(logits, np.float64)
  if head == "regression":
    return logits * scale[1] + scale[0]
  if head == "survival":
    return (logits - scale[0]) / scale[1]
  if head == "multiclass":
    each = np.exp(logits - logits.max(axis=1, keepdims=True))
    return each / each.sum(axis=1, keepdims=True)
  # tanh does not overflow.
  each = 0.5 * (1 + np.tanh(logits / 2))
  return np.concatenate([1 - each, each], axis=1) if head == "binary" else each
