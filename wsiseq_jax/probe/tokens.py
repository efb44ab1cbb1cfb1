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

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wsiseq_jax import fit, parallel
from wsiseq_jax.data import loader
from wsiseq_jax.probe import trained
from wsiseq_jax.probe.samples import ProbeTarget, Samples

_HEADS = 4


def attentive_model(width: int, target: ProbeTarget) -> fit.Model:
  """The attentive probe of tokens of a width.

  Tokens are normalised one by one; then, for each of the heads,

      a = softmax_n(q · W_k x_n / √(d/heads)),   out = Σ_n a_n W_v x_n
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

  return _probe(start, pool, width, target)


def _normalised(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
  centred = x - x.mean(axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(
    jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6
  )


def pooling_model(pool: Callable, width: int, target: ProbeTarget) -> fit.Model:
  """A trained class token of a width, and `Task.pool`, which is frozen."""

  def start(key):
    return {"cls_token": jax.random.normal(key, (width,)) / math.sqrt(width)}

  def pooled(params, frozen, batch):
    names = ("tokens", "token_mask", "token_time")
    inputs = [batch[name] for name in names]
    return pool(frozen, *inputs, params["cls_token"])

  return _probe(start, pooled, width, target)


def _probe(
  start: Callable, pool: Callable, width: int, target: ProbeTarget
) -> fit.Model:
  """A linear head on pooled tokens, standardised by the example."""

  def init(key, frozen, example):
    params = start(key)
    scale = _mean_and_std(pool(params, frozen, example), example["mask"])
    return {**params, "standard": scale}

  def features(params, frozen, batch, key):
    del key
    scale = jax.lax.stop_gradient(params["standard"])
    x = pool(params, frozen, batch)
    return (x - scale["mean"][None]) / scale["std"][None]

  return trained.head_model(init, features, width, target)


def _mean_and_std(x: Float[Array, "b d"], mask: Float[Array, " b"]):
  """Of each channel over the real rows; a constant one has std 1."""
  share = (mask / mask.sum())[:, None]
  mean = (share * x).sum(axis=0)
  std = jnp.sqrt((share * jnp.square(x - mean[None])).sum(axis=0))
  varies = std > 1e-5 * jnp.maximum(jnp.abs(mean), 1e-30)
  return {"mean": mean, "std": jnp.where(varies, std, 1.0)}


@dataclasses.dataclass(frozen=True)
class TokenFeed(trained.Feed):
  """Batches of cached tokens; see `trained.Feed`."""

  mesh: Mesh

  def train(
    self, train: Samples, rows: int, seed: int, start: int, stop: int
  ) -> Iterator[fit.Batch]:
    """Random rows with labels."""
    for step in range(start, stop):
      index = loader.batch_indices(len(train), seed, rows, step)
      yield self._batch(train, index, rows, label=train.labels[index])

  def in_order(self, of: Samples, rows: int) -> Iterator[fit.Batch]:
    """All rows; the last batch is filled up with rows of mask 0."""
    for start in range(0, len(of), rows):
      yield self._batch(of, np.arange(start, min(start + rows, len(of))), rows)

  def example(self, train: Samples, rows: int, seed: int) -> fit.Batch:
    """The first training batch, by which features are standardised."""
    return next(self.train(train, rows, seed, 0, 1))

  def _batch(self, of: Samples, index: np.ndarray, rows: int, **more):
    filled = np.resize(index, rows)
    batch = {
      **{name: array[filled] for name, array in of.tokens.items()},
      "index": filled,
      "mask": (np.arange(rows) < len(index)).astype(np.float32),
      **more,
    }
    here = np.array(parallel.local_rows(self.mesh, rows))
    return parallel.to_global(
      {name: array[here] for name, array in batch.items()}, self.mesh
    )
