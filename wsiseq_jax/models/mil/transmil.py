r"""TransMIL with the true positions of tiles.

    relu(W x + b) --in the order of a Z-curve--> [class token, tiles]
      + Nyström attention      LayerNorm first; there is no MLP in a block
      PPEG                     over the tiles' grid (`grid.py`)
      + Nyström attention
      LayerNorm --> class token --> linear --> logits

Deviations: PPEG sees the tissue's geometry, where the original fills a square
in the order of the file, with first tiles a second time at its end. The
sequence follows a Z-curve over the grid, so that landmarks are means of compact
pieces of tissue; hence the order of the file does not matter (but for tiles
that share a cell). See also `nystrom.py`.

Attention is what the class token's last output is made of: Nyström weights,
mean over heads, below 0 set to 0, summing to 1. What a tile says by itself is
the output for a bag of that tile alone: after two layers the tokens of tiles
know the whole slide, and in a slide with tumour all would tell of it. It takes
as long as all the rest; leave `instance_logits` out of what a jitted training
step returns and it is not computed.

Reference: Shao et al., TransMIL: transformer based correlated multiple instance
learning for whole slide image classification, NeurIPS 2021.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from wsiseq_jax.models import vit
from wsiseq_jax.models.mil import bag as mil_bag
from wsiseq_jax.models.mil import grid
from wsiseq_jax.models.mil.bag import Bag, MilOutput, linear
from wsiseq_jax.models.mil.nystrom import NystromAttention, NystromConfig


class TransMil(mil_bag.MilModel):
  """`transmil`."""

  def __init__(self, config: NystromConfig, rngs: nnx.Rngs):
    width = config.hidden
    self.embed = linear(config.width, width, config, rngs)
    self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (width,)))
    self.first = NystromAttention(config, rngs)
    self.position = grid.Ppeg(width, rngs)
    self.second = NystromAttention(config, rngs)
    self.norm = vit.make_norm(width, 1e-5, "float32", rngs)
    self.classifier = linear(width, config.outputs, config, rngs)
    self.config = config

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag."""
    config = self.config

    def embed(features, key):
      return jax.nn.relu(self.embed(features)).astype(jnp.float32)

    embedded = mil_bag.in_chunks(
      embed, bag.features, None, config.chunk_tiles, config.remat
    )
    cell = grid.cells(bag.grid_xy, bag.mask)
    places = grid.z_order(cell[:, 0], cell[:, 1])
    places = jnp.where(bag.mask, places, grid.NOWHERE)
    order = jnp.argsort(places)
    mask, places = bag.mask[order], places[order]
    tiles = mil_bag.zero_padding(jnp.take(embedded, order, axis=0), mask)

    keys = mil_bag.split_key(key, 2)
    x = jnp.concatenate([self.cls_token[...][None], tiles])
    valid = jnp.concatenate([jnp.ones(1, bool), mask])
    x = x + self.first(x, valid, keys[0])
    tiles = self.position(mil_bag.zero_padding(x[1:], mask), places)
    x = jnp.concatenate([x[:1], tiles])
    more, weights = self.second.first_token(x, valid, keys[1])

    # A trace everywhere, in case that no weight is positive.
    weights = jnp.maximum(weights[1:], 1e-12) * mask
    total = jnp.sum(weights)
    weights = weights / jnp.where(total > 0, total, 1.0)
    attention = jnp.zeros_like(weights).at[order].set(weights)[:, None]
    single = mil_bag.in_chunks(
      lambda tiles, key: jax.vmap(self.alone)(tiles),
      embedded,
      None,
      max(1, config.chunk_tiles // 8),
      config.remat,
    )
    single = mil_bag.zero_padding(single, bag.mask)
    return MilOutput(
      logits=self._classify(x[:1] + more),
      attention=attention,
      contribution=attention * single,
      instance_logits=single,
      aux={},
    )

  def _classify(self, token: Float[Array, "1 e"]) -> Float[Array, " y"]:
    return self.classifier(self.norm(token)).astype(jnp.float32)[0]

  def alone(self, tile: Float[Array, " e"]) -> Float[Array, " y"]:
    """Logits of a bag of one embedded tile."""
    x = jnp.stack([self.cls_token[...], tile])
    valid = jnp.ones(2, bool)
    x = x + self.first(x, valid, None)
    x = jnp.concatenate([x[:1], self.position.alone(x[1:])])
    more, _ = self.second.first_token(x, valid, None)
    return self._classify(x[:1] + more)
