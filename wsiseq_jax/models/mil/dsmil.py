r"""DSMIL: the top-scoring tile, and how much the others resemble it.

    instance stream   l_i = W x_i + b                                [m y]
                      critical tile of output c: m_c = argmax_i l_ic
    queries           q_i = tanh(W₂ relu(W₁ x_i + b₁) + b₂)          [m q]
    attention         A_·c = softmax over tiles of q_i · q_{m_c} / √q
    bag stream        B_c = Σ_i A_ic x_i;  logit_o = Σ_c w_oc · B_c + b_o

    loss = ½ · loss of the bag stream + ½ · cross-entropy of the highest l

The slide's logit is that of the bag stream. What a tile adds to it is exact:
Σ_c A_ic (w_oc · x_i + b_o / y) sums over tiles to the logit of o. The critical
tile is found by argmax; the first one, of equals.

Kernels start orthogonal: from other starts runs collapse to equal attention for
all tiles. There is no dropout, and values are the features themselves, as in
the original's defaults.

Reference: Li, Li, Eliceiri, Dual-stream multiple instance learning network for
whole slide image classification, CVPR 2021.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from data_prep.files.schema import Range
from wsiseq_jax.models.mil import bag as mil_bag
from wsiseq_jax.models.mil.bag import Bag, MilOutput
from wsiseq_jax.models.mil.config import Count, MilConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DsmilConfig(MilConfig):
  """`dsmil`."""

  query_width: Count = 128  # channels of the queries
  # Of the instance stream's loss; the bag stream has the rest of 1.
  auxiliary_weight: Annotated[float, Range(0, 1)] = 0.5


def _linear(inner: int, outer: int, config: DsmilConfig, rngs: nnx.Rngs):
  return nnx.Linear(
    inner,
    outer,
    kernel_init=nnx.initializers.orthogonal(),
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


class Dsmil(mil_bag.MilModel):
  """`dsmil`."""

  def __init__(self, config: DsmilConfig, rngs: nnx.Rngs):
    width, outputs = config.width, config.outputs
    self.instance = _linear(width, outputs, config, rngs)
    self.query_hidden = _linear(width, config.query_width, config, rngs)
    self.query_out = _linear(
      config.query_width, config.query_width, config, rngs
    )
    # The convolution over B: from all its values to each output.
    init = nnx.initializers.orthogonal()
    kernel = init(rngs.params(), (outputs * width, outputs))
    self.bag_kernel = nnx.Param(kernel.reshape(outputs, width, outputs))
    self.bag_bias = nnx.Param(jnp.zeros(outputs))
    self.config = config

  def query(self, features: Float[Array, "m d"]) -> Float[Array, "m q"]:
    """Queries of tiles, f32."""
    hidden = jax.nn.relu(self.query_hidden(features))
    return jnp.tanh(self.query_out(hidden).astype(jnp.float32))

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag; `aux` holds the highest instance logits."""
    config, mask = self.config, bag.mask
    single = self.instance(bag.features).astype(jnp.float32)
    single = mil_bag.zero_padding(single, mask)
    critical = mil_bag.top_k_indices(lax.stop_gradient(single), mask, 1)[:, 0]
    wanted = self.query(jnp.take(bag.features, critical, axis=0))

    def resemblance(features, key):
      return self.query(features) @ wanted.T / math.sqrt(config.query_width)

    scores = mil_bag.in_chunks(
      resemblance, bag.features, None, config.chunk_tiles, config.remat
    )
    attention = mil_bag.masked_softmax(scores, mask)
    kernel, bias = self.bag_kernel[...], self.bag_bias[...]
    bags = jnp.einsum("mc,md->cd", attention, bag.features)
    # Attention sums to 1, but in an empty bag.
    share = jnp.mean(jnp.sum(attention, axis=0))
    logits = jnp.einsum("cd,cdo->o", bags, kernel) + share * bias

    def added(tiles, key):
      features, attention = tiles
      parts = jnp.einsum("md,cdo->mco", features, kernel)
      parts = parts + bias[None, None] / config.outputs
      return jnp.einsum("mc,mco->mo", attention, parts)

    contribution = mil_bag.in_chunks(
      added, (bag.features, attention), None, config.chunk_tiles, config.remat
    )
    return MilOutput(
      logits=logits,
      attention=attention,
      contribution=mil_bag.zero_padding(contribution, mask),
      instance_logits=single,
      aux={"highest": jnp.take_along_axis(single, critical[None], axis=0)[0]},
    )

  def auxiliary(
    self, output: MilOutput, onehot: Float[Array, " y"]
  ) -> Float[Array, ""]:
    """Cross-entropy of the highest instance logits, each output by itself."""
    known = jnp.isfinite(onehot)
    each = optax.sigmoid_binary_cross_entropy(
      output.aux["highest"], jnp.where(known, onehot, 0.0)
    )
    total = jnp.sum(jnp.where(known, each, 0.0))
    return total / jnp.maximum(jnp.sum(known), 1)
