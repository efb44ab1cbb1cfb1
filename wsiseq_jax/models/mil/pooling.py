r"""Bag models without attention: mean, max, instance, and min–max (Chowder).

The first three embed and classify each tile, l = logits of a tile `[m y]`:

    mean       mean of l
    max        max of l, each output by itself
    instance   mean of the k highest l of each output

With good features such a model is a strong baseline, and its tile logits are
trained for what they are shown for. A slide with a single tumour tile of 10,000
has a high mean of its top tiles, whatever the others are.

Reference: Is instance-based MIL enough?, arXiv 2505.01109, 2025.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from wsiseq_jax.models.mil import bag as mil_bag
from wsiseq_jax.models.mil.attention import (
  Embedding,
  uniform_attention,
  weighted_sum,
)
from wsiseq_jax.models.mil.bag import Bag, MilOutput, linear
from wsiseq_jax.models.mil.config import Count, MilConfig, Rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingConfig(MilConfig):
  """`mean` and `max`."""

  hidden: Count = 512  # channels of embedded tiles
  dropout: Rate = 0.25  # of embedded tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceConfig(PoolingConfig):
  """`instance`."""

  top_tiles: Count = 10  # k: tiles whose logits are averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChowderConfig(MilConfig):
  """`chowder`."""

  extremes: Count = 5  # R: that many smallest and largest scores
  # Channels of the two hidden layers after them.
  mlp_hidden: tuple[Count, Count] = (200, 100)
  dropout: Rate = 0.25  # of these layers


class TilePooling(mil_bag.MilModel):
  """`mean`, `max` and `instance`.

  Args:
    config: Shape.
    rngs: Source of the initial parameters, stream `params`.
    top: Tiles of highest logits that are averaged; 0 averages all, None takes
      `config.top_tiles`.
  """

  def __init__(
    self, config: PoolingConfig, rngs: nnx.Rngs, *, top: int | None = None
  ):
    self.tile = Embedding(config, config.outputs, rngs)
    self.top = config.top_tiles if top is None else top
    self.config = config

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag."""
    logits = self.tile.logits_of(bag, key, self.config)
    if not self.top:
      return weighted_sum(uniform_attention(bag.mask), logits)
    return weighted_sum(mean_of_highest(logits, bag.mask, self.top), logits)


def mean_of_highest(
  logits: Float[Array, "m y"], mask: Array, count: int
) -> Float[Array, "m y"]:
  """Weights by which the mean of the highest logits is a sum.

  Example:
    >>> mask = jnp.array([True, True, True, False])
    >>> logits = jnp.array([[1.0], [3.0], [2.0], [9.0]])
    >>> mean_of_highest(logits, mask, 2)[:, 0].tolist()
    [0.0, 0.5, 0.5, 0.0]
  """
  chosen = mil_bag.top_k_indices(lax.stop_gradient(logits), mask, count)
  real = jnp.take(mask, chosen).astype(jnp.float32)
  weight = real / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1.0)
  zero = jnp.zeros(logits.shape[0])
  return jax.vmap(lambda index, w: zero.at[index].set(w))(chosen, weight).T


class Chowder(mil_bag.MilModel):
  """Min–max pooling: the R smallest and R largest scores, then an MLP.

      s = w·x + b                   one score a tile
      MLP of (R smallest, R largest), sorted: 2R – 200 – 100 – y, sigmoid,
      dropout after each hidden layer

  A bag of fewer than R tiles repeats its last one, so that R ranks always have
  a value. The sign of the score is arbitrary, and its map would be too;
  `instance_logits` is what the whole model makes of a bag of one tile, with the
  sign of the slide's logit. Attention is 1/(2R) for each rank.

  Reference: Courtiol et al., Classification and disease localization in
  histopathology using only global labels, arXiv 1802.02212, 2018.
  """

  def __init__(self, config: ChowderConfig, rngs: nnx.Rngs):
    first, second = config.mlp_hidden
    self.score = linear(config.width, 1, config, rngs)
    self.first = linear(2 * config.extremes, first, config, rngs)
    self.second = linear(first, second, config, rngs)
    self.last = linear(second, config.outputs, config, rngs)
    self.config = config

  def classify(
    self, extremes: Float[Array, "m r"], key: Key[Array, ""] | None
  ) -> Float[Array, "m y"]:
    """Logits of bags, from their sorted extreme scores."""
    keys, rate = mil_bag.split_key(key, 2), self.config.dropout
    x = mil_bag.dropout(jax.nn.sigmoid(self.first(extremes)), rate, keys[0])
    x = mil_bag.dropout(jax.nn.sigmoid(self.second(x)), rate, keys[1])
    return self.last(x).astype(jnp.float32)

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag."""
    config, count = self.config, self.config.extremes
    # One product and nothing else: there is no intermediate to save.
    scores = self.score(bag.features).astype(jnp.float32)
    tiles = jnp.sum(bag.mask)
    rank = jnp.minimum(jnp.arange(count), jnp.maximum(tiles - 1, 0))
    constant = lax.stop_gradient(scores)
    low = mil_bag.top_k_indices(-constant, bag.mask, count)[0]
    high = mil_bag.top_k_indices(constant, bag.mask, count)[0]
    chosen = jnp.concatenate([low[rank], high[rank][::-1]])
    logits = self.classify(jnp.take(scores[:, 0], chosen)[None], key)[0]

    def alone(score, key):
      return self.classify(jnp.tile(score, (1, 2 * count)), None)

    single = mil_bag.in_chunks(
      alone, scores, None, config.chunk_tiles, config.remat
    )
    single = mil_bag.zero_padding(single, bag.mask)
    attention = jnp.zeros_like(constant).at[chosen].add(1 / (2 * count))
    attention = mil_bag.zero_padding(attention, bag.mask)
    # In an empty bag padded tiles hold the ranks.
    logits = jnp.where(tiles > 0, logits, 0.0)
    return MilOutput(logits, attention, attention * single, single, {})
