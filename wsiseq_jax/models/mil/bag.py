"""What all bag models share: bags, outputs, softmax under a mask, chunks.

Padded tiles change nothing: no output, no gradient, and not which channels
dropout takes from the real tiles (random bits are drawn by chunk and row).

What is done to each tile by itself is done in chunks (`in_chunks`), so that a
bag of 100,000 tiles costs its features and a few arrays of `[m, hidden]`.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from wsiseq_jax.models.mil.config import MilConfig


@flax.struct.dataclass
class Bag:
  """The tiles of a slide, padded.

  The same class holds one bag or, with a leading axis, a batch of them for
  `vmap`, hence the loose types.
  """

  features: Any  # one vector a tile, f32 `[m d]`
  mask: Any  # which tiles are real, bool `[m]`
  # Column and row in units of a tile's side, f32 `[m 2]`. Only transmil looks
  # at it.
  grid_xy: Any


@flax.struct.dataclass
class MilOutput:
  """What a model says about a bag."""

  logits: Any  # `[y]`
  # `[m y]` or, where outputs share it, `[m 1]`: how much each tile counts. Not
  # negative, sums to 1 over the tiles, 0 where padded.
  attention: Any
  # `[m y]`, signed. Sums over tiles to the logits, but in chowder, transmil and
  # instance by log-sum-exp, where it is attention · instance logit.
  contribution: Any
  # `[m y]`, what a tile says by itself, whatever else is in the bag: the logits
  # of a bag of this tile alone (but dsmil's: those of its instance stream).
  # Comparable between slides. 0 where padded.
  instance_logits: Any
  aux: dict[str, Any]  # what the auxiliary loss needs


class MilModel(nnx.Module):
  """A bag model: `model(bag, key) -> MilOutput`."""

  def auxiliary(
    self, output: MilOutput, onehot: Float[Array, " y"]
  ) -> Float[Array, ""]:
    """The auxiliary loss of a bag; 0 where the model has none."""
    return jnp.zeros(())


def pad(bag: Bag, size: int) -> Bag:
  """A bag with padded tiles after its own.

  Raises:
    ValueError: It has more tiles than that.

  Example:
    >>> bag = Bag(jnp.ones((2, 3)), jnp.ones(2, bool), jnp.zeros((2, 2)))
    >>> pad(bag, 4).mask.tolist()
    [True, True, False, False]
  """
  more = size - bag.mask.shape[0]
  if more < 0:
    raise ValueError(f"a bag of {bag.mask.shape[0]} tiles cannot have {size}")
  return jax.tree.map(
    lambda x: jnp.pad(x, ((0, more), *(((0, 0),) * (x.ndim - 1)))), bag
  )


def linear(
  inner: int, outer: int, config: MilConfig, rngs: nnx.Rngs
) -> nnx.Linear:
  """A linear layer, Glorot uniform, with bias 0."""
  return nnx.Linear(
    inner,
    outer,
    kernel_init=nnx.initializers.xavier_uniform(),
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def split_key(key: Key[Array, ""] | None, count: int) -> Any:
  """Keys; None for each where there is no dropout."""
  return [None] * count if key is None else jax.random.split(key, count)


def dropout(
  x: Float[Array, "*m d"], rate: float, key: Key[Array, ""] | None
) -> Float[Array, "*m d"]:
  """Sets values to 0 at random and scales the others up.

  Deviation: one random byte decides about a value, so that the rate is a
  multiple of 1/256. Four bytes, as usual, would take a tenth of the time of a
  training step on a CPU.

  No key drops nothing.
  """
  dropped = round(256 * rate)
  if key is None or not dropped:
    return x
  *rows, width = x.shape
  words = jax.random.bits(key, (*rows, -(-width // 4)), jnp.uint32)
  each = lax.bitcast_convert_type(words, jnp.uint8).reshape(*rows, -1)
  return jnp.where(each[..., :width] >= dropped, x / (1 - dropped / 256), 0)


def masked_softmax(
  scores: Float[Array, "m a"], mask: Bool[Array, " m"]
) -> Float[Array, "m a"]:
  """Softmax over the real tiles, in f32; 0 for the others.

  A bag without tiles has 0 everywhere, and a finite gradient.

  Example:
    >>> scores = jnp.array([[0.0], [0.0], [9.0]])
    >>> masked_softmax(scores, jnp.array([True, True, False])).tolist()
    [[0.5], [0.5], [0.0]]
  """
  mask = mask[:, None]
  scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
  top = lax.stop_gradient(jnp.max(scores, axis=0, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  each = jnp.where(mask, jnp.exp(scores - top), 0.0)
  total = jnp.sum(each, axis=0, keepdims=True)
  return each / jnp.where(total > 0, total, 1.0)


def zero_padding(x: Float[Array, "m a"], mask: Bool[Array, " m"]) -> Array:
  """Values in f32, 0 where padded."""
  return jnp.where(mask[:, None], x.astype(jnp.float32), 0.0)


def top_k_indices(
  values: Float[Array, "m a"], mask: Bool[Array, " m"], count: int
) -> Array:
  """Indices `[a k]` of the highest values of real tiles, highest first.

  k is `count`, or all tiles if there are fewer; padded tiles come last.
  """
  values = jnp.where(mask[:, None], values.astype(jnp.float32), -jnp.inf)
  return lax.top_k(values.T, min(count, values.shape[0]))[1]


def remat_as(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
  """A function whose backward pass recomputes, see `MilConfig.remat`."""
  if kind == "none":
    return function
  policies = jax.checkpoint_policies
  return jax.checkpoint(
    function,
    policy=policies.dots_saveable if kind == "dots" else None,
    prevent_cse=False,
  )


def in_chunks(
  function: Callable[..., Any],
  arrays: Any,
  key: Key[Array, ""] | None,
  size: int,
  remat: str,
  reach: int = 0,
) -> Any:
  """Calls a function on a few tiles at a time and joins what it returns.

  Rows are cut out of the arrays within the loop: nothing is copied.

  Example:
    >>> double = lambda x, key: 2 * x
    >>> in_chunks(double, jnp.arange(5.0), None, 2, "none").tolist()
    [0.0, 2.0, 4.0, 6.0, 8.0]
  """
  count = jax.tree.leaves(arrays)[0].shape[0] - 2 * reach
  full, rest = divmod(count, size)

  def of_chunk(index, length):
    rows = arrays
    if length < count:
      rows = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, index * size, length + 2 * reach),
        arrays,
      )
    of_its_own = None if key is None else jax.random.fold_in(key, index)
    return function(rows, of_its_own)

  if count <= size:
    return of_chunk(0, count)

  def body(carry, index):
    return carry, of_chunk(index, size)

  _, found = lax.scan(remat_as(body, remat), None, jnp.arange(full))
  found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
  if not rest:
    return found
  last = remat_as(lambda: of_chunk(full, rest), remat)()
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, last)
