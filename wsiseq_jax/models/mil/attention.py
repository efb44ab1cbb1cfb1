r"""Attention pooling: plain, gated (the default), and additive.

    h = dropout(relu(W x + b))                            [m hidden]
    s = w · (tanh(V h) ⊙ σ(U h)) + c                      gated; plain has no σ
    a = softmax over tiles of s
    l = what the classifier says about h, tile by tile    [m y]
    logit = Σ a · l

Sum and linear classifier commute: Σ a (w·h + b) = w·(Σ a h) + b, as Σ a = 1.
So classifying each tile and then summing is ABMIL with its linear classifier,
and it is how all three are computed: the sum `Σ a h` is never needed, each tile
leaves two numbers behind, and contributions a · l sum to the logit.

`additive` has one attention map for each output, and can have a classifier of
tiles with a hidden layer, `tile_hidden`. With one output and without that layer
it is the same function as `gated`, and refused.

Deviations from ABMIL: dropout, which it has none of (CLAM's: on h and on both
branches); losses from logits, which need no clamp of p to [1e-5, 1 − 1e-5].
Deviation of `additive` from Javed et al.: a · f(h), not f(a · h), which for a
bag of many tiles says f(0) about each.

Reference: Ilse, Tomczak, Welling, Attention-based deep multiple instance
learning, ICML 2018; Javed et al., Additive MIL, NeurIPS 2022.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from data_prep.files.schema import Range
from wsiseq_jax.models.mil import bag as mil_bag
from wsiseq_jax.models.mil.bag import Bag, MilOutput, linear
from wsiseq_jax.models.mil.config import Count, MilConfig, Rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig(MilConfig):
  """`attention` and `gated`."""

  hidden: Count = 512  # channels of embedded tiles
  attention_width: Count = 256  # channels in which attention is computed
  dropout: Rate = 0.25  # of embedded tiles and attention branches


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveConfig(AttentionConfig):
  """`additive`."""

  # Hidden channels of the classifier of tiles; 0 makes it linear.
  tile_hidden: Annotated[int, Range(0)] = 0

  def __post_init__(self):
    if self.outputs == 1 and not self.tile_hidden:
      raise ValueError(
        "config.model.name = 'additive': with one output and "
        "config.model.tile_hidden = 0 it is the same function as 'gated'; take "
        "--config=configs/mil.py:gated"
      )


class Embedding(nnx.Module):
  """Linear layer, ReLU, dropout; and a classifier of what comes out."""

  def __init__(
    self, config: Any, outputs: int, rngs: nnx.Rngs, tile_hidden: int = 0
  ):
    self.embed = linear(config.width, config.hidden, config, rngs)
    inner = config.hidden
    self.is_deep = tile_hidden > 0
    if self.is_deep:
      self.classifier_hidden = linear(inner, tile_hidden, config, rngs)
      inner = tile_hidden
    self.classifier = linear(inner, outputs, config, rngs)
    self.rate = config.dropout

  def __call__(
    self, features: Float[Array, "*m d"], key: Key[Array, ""] | None
  ) -> Float[Array, "*m e"]:
    """Embeds tiles."""
    return mil_bag.dropout(jax.nn.relu(self.embed(features)), self.rate, key)

  def classify(
    self, embedded: Float[Array, "m e"], key: Key[Array, ""] | None
  ) -> Float[Array, "m y"]:
    """Logits of embedded tiles, f32."""
    if self.is_deep:
      embedded = jax.nn.relu(self.classifier_hidden(embedded))
      embedded = mil_bag.dropout(embedded, self.rate, key)
    return self.classifier(embedded).astype(jnp.float32)

  def logits_of(
    self, bag: Bag, key: Key[Array, ""] | None, config: Any
  ) -> Float[Array, "m y"]:
    """Logits of each tile of a bag by itself, 0 for padding."""

    def of_tiles(features, key):
      return self.classify(self(features, key), None)

    logits = mil_bag.in_chunks(
      of_tiles, bag.features, key, config.chunk_tiles, config.remat
    )
    return mil_bag.zero_padding(logits, bag.mask)


class AttentionMil(mil_bag.MilModel):
  """`gated`, and what the other models with such attention are made of."""

  def __init__(
    self,
    config: AttentionConfig,
    rngs: nnx.Rngs,
    *,
    is_gated: bool = True,
    maps: int = 1,
    outputs: int | None = None,
    tile_hidden: int = 0,
  ):
    outputs = config.outputs if outputs is None else outputs
    self.tile = Embedding(config, outputs, rngs, tile_hidden)
    inner, width = config.hidden, config.attention_width
    self.value = linear(inner, width, config, rngs)
    self.is_gated = is_gated
    if is_gated:
      self.gate = linear(inner, width, config, rngs)
    self.score = linear(width, maps, config, rngs)
    self.config = config

  def scores(
    self, embedded: Float[Array, "m e"], key: Key[Array, ""] | None
  ) -> Float[Array, "m a"]:
    """Attention before the softmax, f32."""
    rate = self.config.dropout
    keys = mil_bag.split_key(key, 2)
    x = mil_bag.dropout(jnp.tanh(self.value(embedded)), rate, keys[0])
    if self.is_gated:
      gate = jax.nn.sigmoid(self.gate(embedded))
      x = x * mil_bag.dropout(gate, rate, keys[1])
    return self.score(x).astype(jnp.float32)

  def read(
    self, bag: Bag, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, "m a"], Float[Array, "m y"]]:
    """Attention `[m a]` and instance logits `[m y]`."""

    def of_tiles(features, key):
      keys = mil_bag.split_key(key, 3)
      embedded = self.tile(features, keys[0])
      return (
        self.scores(embedded, keys[1]),
        self.tile.classify(embedded, keys[2]),
      )

    config = self.config
    scores, logits = mil_bag.in_chunks(
      of_tiles, bag.features, key, config.chunk_tiles, config.remat
    )
    attention = mil_bag.masked_softmax(scores, bag.mask)
    return attention, mil_bag.zero_padding(logits, bag.mask)

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag."""
    return weighted_sum(*self.read(bag, key))


class AdditiveMil(AttentionMil):
  """`additive`: an attention map for each output."""

  def __init__(self, config: AdditiveConfig, rngs: nnx.Rngs):
    super().__init__(
      config, rngs, maps=config.outputs, tile_hidden=config.tile_hidden
    )


def weighted_sum(
  attention: Float[Array, "m a"], logits: Float[Array, "m y"]
) -> MilOutput:
  """The output of a model whose logit is Σ attention · instance logit."""
  contribution = attention * logits
  return MilOutput(
    logits=jnp.sum(contribution, axis=0),
    attention=attention,
    contribution=contribution,
    instance_logits=logits,
    aux={},
  )


def uniform_attention(mask: Bool[Array, " m"]) -> Float[Array, "m 1"]:
  """Equal attention for all real tiles."""
  return mil_bag.masked_softmax(jnp.zeros((mask.shape[0], 1)), mask)
