r"""Attention pooling: plain, gated, and additive gated (the default).

    h = dropout(relu(W x + b))                            [m hidden]
    s = w · (tanh(V h) ⊙ σ(U h)) + c                      gated; plain has no σ
    a = softmax over tiles of s
    l = what the classifier says about h, tile by tile    [m y]
    logit = Σ a · l

Sum and linear classifier commute: Σ a (w·h + b) = w·(Σ a h) + b, as Σ a = 1.
So classifying each tile and then summing is ABMIL with its linear classifier,
and it is how all three are computed: the sum `Σ a h` is never needed, each tile
leaves two numbers behind, and contributions a · l sum to the logit.

What `additive` has besides: one attention map for each output, so that each
class has a map of its own, and `tile_hidden`, a classifier of tiles with a
hidden layer. With one output and `tile_hidden` = 0, `gated` and `additive` are
one model.

Deviations from ABMIL: dropout, which it has none of (CLAM's: on h and on both
branches); losses from logits, which need no clamp of p to [1e-5, 1 − 1e-5].
Deviation of `additive` from Javed et al.: a · f(h), not f(a · h), which for a
bag of many tiles says f(0) about each.

Reference: Ilse, Tomczak, Welling, Attention-based deep multiple instance
learning, ICML 2018; Javed et al., Additive MIL, NeurIPS 2022.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from wsiseq_jax.models.mil import bag as mil_bag
from wsiseq_jax.models.mil.bag import Bag, MilOutput, linear
from wsiseq_jax.models.mil.config import MilConfig


class Embedding(nnx.Module):
  """Linear layer, ReLU, dropout; and a classifier of what comes out.

  Args:
    config: Shape.
    outputs: Logits of the classifier.
    rngs: Source of the initial parameters.
  """

  def __init__(self, config: MilConfig, outputs: int, rngs: nnx.Rngs):
    self.embed = linear(config.width, config.hidden, config, rngs)
    inner = config.hidden
    if config.tile_hidden:
      self.classifier_hidden = linear(inner, config.tile_hidden, config, rngs)
      inner = config.tile_hidden
    self.classifier = linear(inner, outputs, config, rngs)
    self.config = config

  def __call__(
    self, features: Float[Array, "*m d"], key: Key[Array, ""] | None
  ) -> Float[Array, "*m e"]:
    """Embeds tiles."""
    hidden = jax.nn.relu(self.embed(features))
    return mil_bag.dropout(hidden, self.config.dropout, key)

  def classify(
    self, embedded: Float[Array, "m e"], key: Key[Array, ""] | None
  ) -> Float[Array, "m y"]:
    """Logits of embedded tiles, f32."""
    if self.config.tile_hidden:
      embedded = jax.nn.relu(self.classifier_hidden(embedded))
      embedded = mil_bag.dropout(embedded, self.config.dropout, key)
    return self.classifier(embedded).astype(jnp.float32)


class AttentionMil(mil_bag.MilModel):
  """`attention`, `gated` and `additive`.

  Args:
    config: Shape.
    rngs: Source of the initial parameters, stream `params`.
  """

  def __init__(self, config: MilConfig, rngs: nnx.Rngs):
    outputs = config.classes if config.name == "clam_mb" else config.outputs
    self.tile = Embedding(config, outputs, rngs)
    inner, width = config.hidden, config.attention_width
    self.value = linear(inner, width, config, rngs)
    if config.name != "attention":
      self.gate = linear(inner, width, config, rngs)
    self.score = linear(width, config.branches, config, rngs)
    self.config = config

  def scores(
    self, embedded: Float[Array, "m e"], key: Key[Array, ""] | None
  ) -> Float[Array, "m a"]:
    """Attention before the softmax, f32."""
    rate = self.config.dropout
    keys = mil_bag.split(key, 2)
    x = mil_bag.dropout(jnp.tanh(self.value(embedded)), rate, keys[0])
    if self.config.name != "attention":
      gate = jax.nn.sigmoid(self.gate(embedded))
      x = x * mil_bag.dropout(gate, rate, keys[1])
    return self.score(x).astype(jnp.float32)

  def read(
    self, bag: Bag, key: Key[Array, ""] | None
  ) -> tuple[Float[Array, "m a"], Float[Array, "m y"]]:
    """Attention `[m a]` and instance logits `[m y]`."""

    def of_tiles(features, key):
      keys = mil_bag.split(key, 3)
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
    return attention, mil_bag.only_real(logits, bag.mask)

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag."""
    return pooled(*self.read(bag, key))


def pooled(
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


def uniform(mask: Bool[Array, " m"]) -> Float[Array, "m 1"]:
  """Equal attention for all real tiles."""
  return mil_bag.masked_softmax(jnp.zeros((mask.shape[0], 1)), mask)
