"""What trained probes share: a linear head, its loss, its batches, its fit.

Numbers are learned standardised by the training labels. An epoch has at least
ten steps: at 1 % of the labels all samples fit in one batch, and a hundred
steps leave a head that starts at zero close to zero.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wsiseq_jax import fit
from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import ProbeOutcome, ProbeTarget, Samples
from wsiseq_jax.probe.settings import ProbeFit

_LEAST_STEPS = 10  # of an epoch


class Feed(abc.ABC):
  """Makes batches of samples; each has `index` [b] and `mask` [b]."""

  @abc.abstractmethod
  def train(
    self, train: Samples, rows: int, seed: int, start: int, stop: int
  ) -> Iterator[fit.Batch]:
    """Batches of steps `start` to `stop` − 1, with their `label` [b]."""

  @abc.abstractmethod
  def in_order(self, of: Samples, rows: int) -> Iterator[fit.Batch]:
    """Batches of all samples, in order."""

  def example(self, train: Samples, rows: int, seed: int) -> fit.Batch | None:
    """A training batch, if first parameters depend on one."""
    del train, rows, seed
    return None


def head_model(
  init: Callable[[Array, Any, fit.Batch | None], dict[str, Any]],
  features: Callable[[Any, Any, fit.Batch, Array | None], Array],
  width: int,
  target: ProbeTarget,
) -> fit.Model:
  """A linear head on features, which starts at zero."""
  outputs, is_class = target.outputs, bool(target.classes)

  def init_all(key, frozen, example):
    head = {"kernel": jnp.zeros((width, outputs)), "bias": jnp.zeros(outputs)}
    return {**init(key, frozen, example), "head": head}

  def apply(params, frozen, batch, key=None) -> Float[Array, "b y"]:
    x, head = features(params, frozen, batch, key), params["head"]
    return x @ head["kernel"] + head["bias"][None]

  def loss(params, frozen, batch, key):
    out, label = apply(params, frozen, batch, key), batch["label"]
    if is_class:
      each = optax.softmax_cross_entropy_with_integer_labels(
        out, label.astype(jnp.int32)
      )
    else:
      each = jnp.square(out[:, 0] - label)
    return (each * batch["mask"]).sum() / batch["mask"].sum()

  return fit.Model(init_all, loss, apply)


def fitting_batch(count: int, batch_size: int, devices: int) -> int:
  """Rows of a training batch: no more than samples, a multiple of devices.

  Example:
    >>> fitting_batch(1000, 256, 8), fitting_batch(20, 256, 8)
    (256, 16)
    >>> fitting_batch(3, 256, 8)  # the three are repeated
    8
  """
  rows = min(count, batch_size)
  return max(rows // devices, 1) * devices


def run(
  model: fit.Model,
  sets: tuple[Samples, Samples, Samples],
  target: ProbeTarget,
  how: ProbeFit,
  feed: Feed,
  seed: int,
  mesh: Mesh,
  frozen: Any = (),
  folder: fit.FitFolder | None = None,
) -> ProbeOutcome:
  """Trains, keeps the epoch that validates best, predicts the test samples.

  Args:
    model: from `head_model`.
    sets: training, validation and test samples.
    target: what is predicted.
    how: how it is trained.
    feed: makes batches of the samples.
    seed: of the first parameters, the order of samples and augmentation.
    mesh: see `fit.Trainer`.
    frozen: see `fit.Trainer`.
    folder: see `fit.Trainer.fit`.

  Returns:
    The outcome; `chosen` has the `epoch` and the learning rate `lr`.
  """
  train, validation, test = sets
  mean, std = 0.0, 1.0
  if not target.classes:
    mean, std = fit.standardisation(train.labels)
    labels = ((train.labels - mean) / std).astype(np.float32)
    train = dataclasses.replace(train, labels=labels)
  settings = how.of_target(target.name)
  rows = fitting_batch(len(train), how.batch_size, mesh.size)
  rows_in_order = fitting_batch(how.batch_size, how.batch_size, mesh.size)
  per_epoch = max(math.ceil(len(train) / rows), _LEAST_STEPS)
  data = fit.Data(
    per_epoch,
    lambda start: feed.train(
      train, rows, seed, start, per_epoch * settings.epochs
    ),
    lambda: feed.in_order(validation, rows_in_order),
    feed.example(train, rows, seed),
  )

  def prediction(outputs):
    if target.classes:
      return scipy.special.softmax(outputs, axis=1)
    return outputs[:, 0] * std + mean

  def validate(outputs):
    score = samples.quality(target, validation.labels, prediction(outputs))
    return score, {f"val/{target.metric}": score[0]}

  trainer = fit.Trainer(model, settings, mesh, frozen)
  fitted = trainer.fit(data, validate, seed, folder)
  outputs = trainer.predict(fitted.params, feed.in_order(test, rows_in_order))
  chosen = {"epoch": float(fitted.epoch), "lr": settings.lr}
  return ProbeOutcome(prediction(outputs), fitted.score[0], chosen)
