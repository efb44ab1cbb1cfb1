"""Fits bag models (`wsiseq_jax/fit.py`) and predicts slides with them.

The score of an epoch is the mean loss of all validation bags, by the class
weights of training; the lowest is the best. The loss of a step is that of its
bags, by target type (`models/mil/heads.py`), and the model's auxiliary loss
(the tiles of CLAM, the critical tile of DSMIL), weighted by the model's config.
Class weights are of that loss alone. Each bag counts alike, also in an
incomplete batch.

The Cox loss compares bags with each other: the batch is the risk set, hence
batches are drawn across bag lengths there, and 8 bags are few; validation
compares all its bags at once.

Numbers are learned standardised by the training labels. One program is compiled
for each bag length in use.

Deviation from the papers of CLAM, TransMIL, DSMIL, Chowder: AdamW (decay apart
from the gradient, and of matrices alone) in place of Adam with L2 or Lookahead;
batches of several bags.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wsiseq_jax import parallel
from wsiseq_jax.data.background import Background
from wsiseq_jax.data.bags import Bags, Batch
from wsiseq_jax.data.tile_features import TileFeatures
from wsiseq_jax.fit import Batch as DeviceBatch
from wsiseq_jax.fit import (
  Data,
  FitFolder,
  FitSettings,
  Model,
  Trainer,
  standardisation,
)
from wsiseq_jax.mil import class_weights
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil import heads
from wsiseq_jax.models.mil.config import MilConfig

NUMERIC = ("regression",)


@dataclasses.dataclass(frozen=True)
class BagFitSettings(FitSettings):
  """How to train; see `configs/mil.py`, `optim` and `data`."""

  class_weights: str = "none"  # one of `class_weights.NAMES`
  batch_size: int = 8  # bags in a step
  max_tiles: int = 0  # random tiles of a training bag; 0 = all


@dataclasses.dataclass(frozen=True, eq=False)
class FittedBags:
  """A trained model."""

  params: Any  # nested dict of f32 arrays, of the best epoch
  # (mean, std) of training labels where a number is learned, else (0, 1).
  scale: tuple[float, float]
  epoch: int  # the best one, counted from 1
  # (training loss, validation loss) of each epoch.
  history: list[tuple[float, float]]


def local_mesh(batch_size: int) -> Mesh:
  """As many devices of this process as divide a batch."""
  devices = jax.local_devices()
  return parallel.make_mesh(1, devices[: math.gcd(batch_size, len(devices))])


def check_model(model: MilConfig, target_type: str) -> None:
  """Raises if the model's auxiliary loss needs classes and there are none."""
  if model.loss_weights[1] and target_type not in class_weights.TARGET_TYPES:
    raise ValueError(
      f"config.model.name = {model.name!r}, config.target_type = "
      f"{target_type!r}: its auxiliary loss needs classes; set "
      "config.model.auxiliary_weight = 0.0, or take another model"
    )


def bag_loss(
  target_type: str,
  logits: Any,
  labels: Any,
  weight: Any = None,
  label_weights: Any = None,
) -> Float[Array, ""]:
  """Mean loss of bags; numbers standardised.

  Example:
    >>> round(float(bag_loss("binary", np.zeros((1, 1)), np.ones((1, 1)))), 3)
    0.693
  """
  kind = heads.HEADS[target_type](outputs=logits.shape[1])
  more = () if target_type == "survival" else (label_weights,)
  logits = jax.numpy.asarray(logits)
  return kind.loss(logits, _shaped(target_type, labels), weight, *more)


def _shaped(target_type: str, labels: Any) -> Any:
  """Labels [b k] as the loss wants them."""
  return labels[:, 0] if target_type == "multiclass" else labels


@functools.lru_cache(maxsize=32)
def bag_model(config: MilConfig, target_type: str) -> Model:
  """A shape as the trainer wants it, the same one whenever asked for."""
  weights = config.loss_weights

  def init(key, frozen, example):
    del frozen, example
    return mil.init(key, config)

  def loss(params, frozen, batch, key):
    del frozen
    bags, weight, labels = _bags(batch), batch["mask"], batch["label"]
    keys = jax.random.split(key, len(weight))
    output = jax.vmap(lambda bag, key: mil.apply(params, config, bag, key))(
      bags, keys
    )
    total = weights[0] * bag_loss(
      target_type, output.logits, labels, weight, batch["label_weight"]
    )
    if weights[1]:
      kind = heads.HEADS[target_type](outputs=config.outputs)
      each = jax.vmap(
        lambda output, label: mil.auxiliary_loss(params, config, output, label)
      )(output, kind.onehot(_shaped(target_type, labels)))
      total += weights[1] * (each * weight).sum() / weight.sum()
    if target_type == "survival":  # a mean over events, not over bags
      return total
    return total * weight.sum() / len(weight)

  def apply(params, frozen, batch):
    del frozen
    return jax.vmap(lambda bag: mil.apply(params, config, bag).logits)(
      _bags(batch)
    )

  return Model(init, loss, apply)


def _bags(batch: DeviceBatch) -> mil.Bag:
  return mil.Bag(batch["features"], batch["tile_mask"], batch["grid_xy"])


@functools.lru_cache(maxsize=32)
def _explain(config: MilConfig) -> Callable[..., mil.MilOutput]:
  return jax.jit(lambda params, bag: mil.apply(params, config, bag))


class BagTrainer:
  """Fits models of one shape.

  Raises:
    ValueError: the model's auxiliary loss needs classes.
  """

  def __init__(
    self,
    model: MilConfig,
    target_type: str,
    settings: BagFitSettings,
    mesh: Mesh | None = None,
  ):
    check_model(model, target_type)
    self.model, self.target_type, self.settings = model, target_type, settings
    self.mesh = local_mesh(settings.batch_size) if mesh is None else mesh
    self._trainer = Trainer(bag_model(model, target_type), settings, self.mesh)

  def fit(
    self,
    bags: Bags,
    train: Sequence[str],
    train_labels: Float[np.ndarray, "n k"],
    val: Sequence[str],
    val_labels: Float[np.ndarray, "v k"],
    seed: int,
    folder: FitFolder | None = None,
  ) -> FittedBags:
    """Trains and keeps the epoch with the lowest validation loss."""
    settings, scale = self.settings, (0.0, 1.0)
    if self.target_type in NUMERIC:
      scale = standardisation(train_labels)
      train_labels = (train_labels - scale[0]) / scale[1]
      val_labels = (val_labels - scale[0]) / scale[1]
    of_classes = None
    if settings.class_weights == "balanced":
      of_classes = class_weights.balanced(train_labels, self.target_type)
    train_weights, val_weights = (
      class_weights.of_labels(of_classes, labels).astype(np.float32)
      for labels in (train_labels, val_labels)
    )
    train_labels = train_labels.astype(np.float32)
    per_epoch = math.ceil(len(train) / settings.batch_size)

    def host_batches(step: int) -> Iterator[Batch]:
      for epoch in itertools.count(step // per_epoch):
        batches = bags.batches(
          train,
          settings.batch_size,
          np.random.default_rng([seed, 1, epoch]),
          settings.max_tiles,
          mixed=self.target_type == "survival",
        )
        # In the middle of an epoch only the first time.
        first = max(step - epoch * per_epoch, 0)
        yield from itertools.islice(batches, first, None)

    def train_batches(step: int) -> Iterator[DeviceBatch]:
      with _ahead(host_batches(step)) as batches:
        for batch in batches:
          yield self._put(
            batch,
            label=train_labels[batch.rows],
            label_weight=train_weights[batch.rows],
          )

    def validate(logits):
      loss = self.loss(logits, val_labels, val_weights)
      return (-loss,), {"val/loss": loss}

    data = Data(per_epoch, train_batches, lambda: self._in_order(bags, val))
    found = self._trainer.fit(data, validate, seed, folder)
    history = [(row["train/loss"], row["val/loss"]) for row in found.history]
    return FittedBags(parallel.fetch(found.params), scale, found.epoch, history)

  def logits(
    self, params: Any, bags: Bags, ids: Sequence[str]
  ) -> Float[np.ndarray, "n y"]:
    """Logits of slides that are all `ok`, in their order."""
    return self._trainer.predict(params, self._in_order(bags, ids))

  def loss(
    self,
    logits: Float[np.ndarray, "n y"],
    labels: Float[np.ndarray, "n k"],
    label_weights: Float[np.ndarray, "n k"] | None = None,
  ) -> float:
    """Mean loss of all these slides; labels standardised if numbers."""
    logits, labels = logits.astype(np.float32), labels.astype(np.float32)
    return float(
      bag_loss(self.target_type, logits, labels, None, label_weights)
    )

  def logits_of_all(
    self, members: Sequence[Any], bags: Bags, ids: Sequence[str]
  ) -> Float[np.ndarray, "s n y"]:
    """Logits by many parameters; each slide is read once."""
    found = np.zeros((len(members), len(ids), self.model.outputs))
    with contextlib.closing(self._in_order(bags, ids)) as batches:
      for batch in batches:
        rows = np.sort(
          np.asarray(batch["index"])[np.asarray(batch["mask"]) > 0]
        )
        for number, params in enumerate(members):
          one = (b for b in (batch,))
          found[number, rows] = self._trainer.predict(params, one)
    return found

  def explain(
    self, members: Sequence[Any], bags: Bags, tiles: TileFeatures
  ) -> list[mil.MilOutput]:
    """What each of many parameters says of the tiles of a slide."""
    batch, count = bags.alone(tiles), len(tiles.features)
    bag = mil.Bag(batch.features[0], batch.mask[0], batch.grid_xy[0])
    outputs = [_explain(self.model)(params, bag) for params in members]
    return [
      mil.MilOutput(
        logits=np.asarray(output.logits),
        attention=np.asarray(output.attention)[:count],
        contribution=np.asarray(output.contribution)[:count],
        instance_logits=np.asarray(output.instance_logits)[:count],
        aux={},
      )
      for output in outputs
    ]

  def put(self, params: Any) -> Any:
    """Parameters on all devices, for several uses."""
    return jax.device_put(params, parallel.replicated(self.mesh))

  def _in_order(self, bags: Bags, ids: Sequence[str]) -> Iterator[DeviceBatch]:
    with _ahead(bags.batches(ids, self.settings.batch_size)) as batches:
      for batch in batches:
        yield self._put(batch)

  def _put(self, batch: Batch, **labels: np.ndarray) -> DeviceBatch:
    """A batch on the devices, its bags shared out among them."""
    arrays = {
      "features": batch.features,
      "tile_mask": batch.mask,
      "grid_xy": batch.grid_xy,
      "mask": batch.weight,
      "index": batch.rows,
      **labels,
    }
    return jax.device_put(arrays, parallel.batch_sharding(self.mesh))


def _ahead(batches: Iterator[Batch]) -> contextlib.closing:
  """The same batches, the next one being read while one is worked upon."""
  return contextlib.closing(Background(batches, ahead=1))


def values_of(
  target_type: str,
  logits: Float[np.ndarray, "n y"],
  scale: tuple[float, float] = (0.0, 1.0),
) -> Float[np.ndarray, "n c"]:
  """What logits say: probabilities of all classes or labels, or a number.

  Example:
    >>> values_of("binary", np.array([[0.0]])).tolist()
    [[0.5, 0.5]]
    >>> values_of("regression", np.array([[1.0]]), (5.0, 2.0)).tolist()
    [[7.0]]
    >>> values_of("survival", np.array([[3.0]]), (1.0, 2.0)).tolist()
    [[1.0]]
  """
  logits = np.asarray(logits, np.float64)
  if target_type == "regression":
    return logits * scale[1] + scale[0]
  if target_type == "survival":
    return (logits - scale[0]) / scale[1]
  if target_type == "multiclass":
    return scipy.special.softmax(logits, axis=1)
  each = scipy.special.expit(logits)
  return (
    np.concatenate([1 - each, each], axis=1)
    if target_type == "binary"
    else each
  )
