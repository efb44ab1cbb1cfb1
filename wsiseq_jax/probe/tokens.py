"""Probes that pool frozen tokens themselves: what averaging may throw away.

- `attentive`: one learned query looks at all tokens by cross-attention, then a
  linear head. Tokens carry no time of their own (a contrastive task's are the
  frame features *before* its temporal encoder), so this asks what frames hold.
- `pooling`: the task's own frozen temporal encoder with one new class token,
  trained together with a linear head. This is the protocol of the reference
  work on time series, which calls it linear probing. Deviations: the rest of
  the network is in evaluation mode, not frozen by gradient alone, and the head
  sees standardised features.

Frozen features have a large common part and channels of very different scale:
a head trained by small steps on them as they are says after forty epochs how
far it got and not what they hold. Both heads therefore see features
standardised by the first training batch, before anything was learned.

References: Bardes et al., "Revisiting feature prediction for learning visual
representations from video" (V-JEPA), 2024, for attentive probing.
"""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wsiseq_jax import parallel
from wsiseq_jax.data import loader
from wsiseq_jax.probe import training
from wsiseq_jax.probe.samples import Samples

_HEADS = 4


def attentive_model(width: int, outputs: int) -> training.Model:
  """The attentive probe of tokens of a width.

  Tokens are normalised one by one; then, for each of the heads,

      a = softmax_n(q · W_k x_n / √(d/heads)),   out = Σ_n a_n W_v x_n

  Args:
    width: channels of a token (d).
    outputs: values of the head.
  """
  heads = math.gcd(_HEADS, width)

  def start(key):
    keys = jax.random.split(key, 3)
    draw = jax.nn.initializers.xavier_uniform()
    return {
      "query": 0.02 * jax.random.normal(keys[0], (width,)),
      "key": {"kernel": draw(keys[1], (width, width))},
      "value": {"kernel": draw(keys[2], (width, width))},
    }

  def pool(params, frozen, batch):
    del frozen
    tokens, mask = batch["tokens"], batch["token_mask"]
    x = _normalised(tokens)
    b, n, d = x.shape
    keys = (x @ params["key"]["kernel"]).reshape(b, n, heads, d // heads)
    values = (x @ params["value"]["kernel"]).reshape(b, n, heads, d // heads)
    query = params["query"].reshape(heads, d // heads)
    match = jnp.einsum("bnhe,he->bhn", keys, query) / math.sqrt(d // heads)
    match = jnp.where(mask[:, None, :] > 0, match, -1e9)
    share = jax.nn.softmax(match, axis=-1)
    return jnp.einsum("bhn,bnhe->bhe", share, values).reshape(b, d)

  return _probe(start, pool, width, outputs)


def _normalised(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
  centred = x - x.mean(axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(
    jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6
  )


def pooling_model(pool: Callable, width: int, outputs: int) -> training.Model:
  """The probe with a trained class token.

  Args:
    pool: `Task.pool`; the frozen parameters are the model's.
    width: channels of the class token, and of what `pool` returns.
    outputs: values of the head.
  """

  def start(key):
    return {"cls_token": jax.random.normal(key, (width,)) / math.sqrt(width)}

  def pooled(params, frozen, batch):
    names = ("tokens", "token_mask", "token_time")
    inputs = [batch[name] for name in names]
    return pool(frozen, *inputs, params["cls_token"])

  return _probe(start, pooled, width, outputs)


def _probe(
  start: Callable, pool: Callable, width: int, outputs: int
) -> training.Model:
  """A linear head on pooled tokens, standardised.

  Args:
    start: key → parameters of pooling.
    pool: (these, frozen parameters, batch) → features [b, d].
    width: channels of a feature (d).
    outputs: values of the head.
  """

  def init(key, frozen, batch):
    params = start(key)
    scale = _mean_and_deviation(pool(params, frozen, batch), batch["mask"])
    return {
      **params,
      "standard": scale,
      "head": training.head_init(width, outputs),
    }

  def apply(params, frozen, batch, key):
    del key
    scale = jax.lax.stop_gradient(params["standard"])
    x = pool(params, frozen, batch)
    x = (x - scale["mean"][None]) / scale["deviation"][None]
    return training.head_apply(params["head"], x)

  return training.Model(init, apply)


def _mean_and_deviation(x: Float[Array, "b d"], mask: Float[Array, " b"]):
  """Of each channel over the real rows; a constant one has deviation 1."""
  share = (mask / mask.sum())[:, None]
  mean = (share * x).sum(axis=0)
  deviation = jnp.sqrt((share * jnp.square(x - mean[None])).sum(axis=0))
  varies = deviation > 1e-5 * jnp.maximum(jnp.abs(mean), 1e-30)
  return {"mean": mean, "deviation": jnp.where(varies, deviation, 1.0)}


def token_data(
  train: Samples,
  validation: Samples,
  test: Samples,
  batch_size: int,
  mesh: Mesh,
) -> training.Data:
  """Batches of cached tokens.

  Args:
    train: training samples, with tokens.
    validation: validation samples.
    test: test samples.
    batch_size: rows of a batch; fewer if there are not as many samples.
    mesh: the devices.
  """
  rows = fitting_batch(len(train), batch_size, mesh.size)

  def training_batches(seed: int, steps: int) -> Iterator[training.Batch]:
    for step in range(steps):
      index = loader.batch_indices(len(train), seed, rows, step)
      yield parallel.to_global(_batch(train, index, rows), mesh)

  def in_order(samples: Samples):
    def batches():
      size = fitting_batch(batch_size, batch_size, mesh.size)
      for start in range(0, len(samples), size):
        index = np.arange(start, min(start + size, len(samples)))
        yield parallel.to_global(_batch(samples, index, size), mesh)

    return batches

  return training.Data(
    count=len(train),
    labels=train.labels,
    validation_labels=validation.labels,
    batch_size=rows,
    train=training_batches,
    validation=in_order(validation),
    test=in_order(test),
  )


def _batch(samples: Samples, index: np.ndarray, size: int):
  """Rows as a batch of `size`, filled up with rows of mask 0."""
  mask = np.arange(size) < len(index)
  index = np.resize(index, size)
  return {
    **{name: array[index] for name, array in samples.tokens.items()},
    "label": samples.labels[index].astype(np.float32),
    "mask": mask.astype(np.float32),
  }


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
