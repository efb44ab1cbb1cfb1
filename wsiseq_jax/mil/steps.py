"""The compiled programs of training and prediction, made once for a shape.

Loss of a step: the head's loss of its bags (`models/mil_heads.py`) and the
model's auxiliary loss (the tiles of CLAM, the critical tile of DSMIL), weighted
as the model's config says. Each bag counts alike, also in an incomplete batch.

Rate, labels and weights are arguments: folds, seeds and rates differ in
nothing that is compiled. So are the weights of classes (`class_weights.py`),
which are of the head's loss alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wsiseq_jax import optim, parallel
from wsiseq_jax.models import mil
from wsiseq_jax.models.mil import heads
from wsiseq_jax.models.mil.config import MilConfig


@dataclasses.dataclass(frozen=True)
class Adam:
  """Of AdamW all but the rate; see `configs/mil.py`, `optim`."""

  weight_decay: float
  b1: float
  b2: float
  eps: float
  clip_norm: float


@dataclasses.dataclass(frozen=True)
class Programs:
  """Jitted functions; each compiles once for a length of bags.

  Attributes:
    start: key → parameters and slots of the optimiser.
    step: (parameters, slots, bags, labels [b k], weights of these [b k],
      weights of bags [b], rate, key) → parameters, slots, loss. The first two
      are given away.
    logits: (parameters, bags) → logits [b y].
    explain: (parameters, one bag) → `mil.MilOutput`.
  """

  start: Callable[..., Any]
  step: Callable[..., Any]
  logits: Callable[..., Any]
  explain: Callable[..., Any]


def bag_loss(
  head: str,
  logits: Any,
  labels: Any,
  weight: Any = None,
  label_weights: Any = None,
) -> Float[Array, ""]:
  """Mean loss of bags; numbers in deviations.

  Args:
    head: one of `cohort.HEADS`.
    logits: [b y].
    labels: [b k], as in `cohort.Cohort`.
    weight: 0 for bags that only fill the batch, [b]; all 1 by default.
    label_weights: of labels, [b k]; all 1 by default. Survival has none.

  Example:
    >>> round(float(bag_loss("binary", jnp.zeros((1, 1)), jnp.ones((1, 1)))), 3)
    0.693
  """
  kind = heads.HEADS[head](outputs=logits.shape[1])
  more = () if head == "survival" else (label_weights,)
  return kind.loss(jnp.asarray(logits), _shaped(head, labels), weight, *more)


def _shaped(head: str, labels: Any) -> Any:
  """Labels [b k] as the head wants them."""
  return labels[:, 0] if head == "multiclass" else labels


@functools.lru_cache(maxsize=32)
def programs(model: MilConfig, head: str, adam: Adam, mesh: Mesh) -> Programs:
  """The programs of a shape; the same ones whenever it is asked for again.

  Args:
    model: the shape.
    head: one of `cohort.HEADS`.
    adam: the optimiser.
    mesh: the devices, over which a batch is cut.
  """
  parts = []
  if adam.clip_norm > 0:
    parts.append(optax.clip_by_global_norm(adam.clip_norm))
  tx = optax.chain(
    *parts,
    optax.scale_by_adam(b1=adam.b1, b2=adam.b2, eps=adam.eps),
    optax.add_decayed_weights(adam.weight_decay, mask=optim.decay_mask),
  )
  weights = model.loss_weights

  def start(key):
    params = mil.init(key, model)
    return params, tx.init(params)

  def loss(params, bag, labels, label_weights, weight, key):
    keys = jax.random.split(key, len(weight))
    output = jax.vmap(lambda bag, key: mil.apply(params, model, bag, key))(
      bag, keys
    )
    total = weights[0] * bag_loss(
      head, output.logits, labels, weight, label_weights
    )
    if weights[1]:
      kind = heads.HEADS[head](outputs=model.outputs)
      each = jax.vmap(
        lambda bag, output, label: mil.auxiliary_loss(
          params, model, bag, output, label
        )
      )(bag, output, kind.onehot(_shaped(head, labels)))
      total += weights[1] * (each * weight).sum() / weight.sum()
    if head == "survival":  # a mean over events, not over bags
      return total
    return total * weight.sum() / len(weight)

  def step(params, slots, bag, labels, label_weights, weight, rate, key):
    value, grads = jax.value_and_grad(loss)(
      params, bag, labels, label_weights, weight, key
    )
    updates, slots = tx.update(grads, slots, params)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    return optax.apply_updates(params, updates), slots, value

  def explain(params, bag):
    return mil.apply(params, model, bag)

  def logits(params, bag):
    return jax.vmap(lambda one: explain(params, one).logits)(bag)

  whole = parallel.replicated(mesh)
  return Programs(
    jax.jit(start, out_shardings=whole),
    jax.jit(step, out_shardings=whole, donate_argnums=(0, 1)),
    jax.jit(logits, out_shardings=whole),
    jax.jit(explain, out_shardings=whole),
  )
