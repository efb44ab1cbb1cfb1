"""Pre-norm transformer blocks, stacked and scanned.

- A *stack* is one `Block` whose parameters carry a leading layer axis
  (`encoder/blocks/attention/query/kernel` is `[layers, d, d]`), run by
  `lax.scan`: compile time does not grow with depth. Tell weights from biases
  by their name (`kernel`), never by their rank.
- Parameters, LayerNorm statistics and softmax are float32; matrix products and
  the residual stream use the compute dtype of the `BlockSpec`. (Deviation: the
  reference keeps a float32 stream under float16 autocast.)
- Query and value have a bias, key has none, there is no LayerScale and no
  dropout: the VideoMAE block, which is BEiT's.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from wsiseq_jax import parallel
from wsiseq_jax.models import attention_tpu
from wsiseq_jax.models.attention import attend
from wsiseq_jax.models.rngs import Rngs

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """Shape and numerics of a stack of transformer blocks."""

  width: int  # channels `d` of the residual stream
  depth: int  # number of blocks
  heads: int  # attention heads; must divide `width`
  mlp_width: int  # hidden channels of the MLP
  norm_eps: float = 1e-6  # added to the variance in LayerNorm
  dtype: str = "float32"  # compute dtype, 'float32' or 'bfloat16'
  # What the backward pass recomputes: 'none' stores all activations, 'dots'
  # stores only results of matrix products with weights (and of the TPU's
  # attention kernel), 'full' stores only the input of each block.
  remat: str = "none"
  attention_kernel: str = "auto"  # see `attention.attend`


# Xavier-uniform of the fused [d, 3 d] projection of the reference code; on
# three separate [d, d] matrices it would be a factor sqrt(2) wider.
_QKV_INIT = nnx.initializers.variance_scaling(0.5, "fan_in", "uniform")
_XAVIER = nnx.initializers.xavier_uniform()


def make_norm(
  width: int, eps: float, dtype: str, rngs: nnx.Rngs
) -> nnx.LayerNorm:
  """Makes a LayerNorm with float32 statistics (two-pass variance)."""
  return nnx.LayerNorm(
    width,
    epsilon=eps,
    dtype=jnp.dtype(dtype),
    use_fast_variance=False,
    rngs=rngs,
  )


def as_rows(x: Float[Array, "b n d"]) -> Float[Array, "b*n d"]:
  """Tokens of all samples as one matrix."""
  # The gradient of a matrix product over two axes at once is compiled for CPUs
  # with transposed copies of the activations: the MLP takes twice the time.
  return x.reshape(-1, x.shape[-1])


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Exact GELU, x Φ(x), of which only x is kept for the backward pass.

  Written with erf, as in PyTorch: JAX's own has erfc, which costs a CPU more.
  The sum is in float32, where it loses nothing for negative x.

  Example:
    >>> [round(float(y), 4) for y in gelu(jnp.array([-1.0, 0.0, 1.0]))]
    [-0.1587, 0.0, 0.8413]

  Reference: Hendrycks & Gimpel, Gaussian error linear units, 2016.
  """
  wide = x.astype(jnp.float32)
  return (0.5 * wide * (1.0 + lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class Attention(nnx.Module):
  """Multi-head self-attention; bias on query and value, none on key."""

  def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
    linear = functools.partial(
      nnx.Linear, spec.width, spec.width, dtype=jnp.dtype(spec.dtype), rngs=rngs
    )
    self.query = linear(kernel_init=_QKV_INIT)
    self.key = linear(kernel_init=_QKV_INIT, use_bias=False)
    self.value = linear(kernel_init=_QKV_INIT)
    self.out = linear(kernel_init=_XAVIER)
    self.heads = spec.heads
    self.kernel = spec.attention_kernel

  def __call__(
    self, x: Float[Array, "b n d"], mask: Bool[Array, "b n n"] | None = None
  ) -> Float[Array, "b n d"]:
    """Mixes tokens; see `run_blocks` for the mask."""
    rows = as_rows(x)
    query, key, value = (
      project(rows).reshape(*x.shape[:2], self.heads, -1)
      for project in (self.query, self.key, self.value)
    )
    if mask is None:
      mixed = attend(query, key, value, self.kernel)
    else:
      # For short sequences: the fused kernels know no masks.
      mixed = jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], implementation="xla"
      )
    return self.out(mixed.reshape(rows.shape)).reshape(x.shape)


class Mlp(nnx.Module):
  """Two linear layers with the exact (erf) GELU between them."""

  def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
    linear = functools.partial(
      nnx.Linear, kernel_init=_XAVIER, dtype=jnp.dtype(spec.dtype), rngs=rngs
    )
    self.up = linear(spec.width, spec.mlp_width)
    self.down = linear(spec.mlp_width, spec.width)

  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Transforms each token by itself."""
    return self.down(gelu(self.up(as_rows(x)))).reshape(x.shape)


class Block(nnx.Module):
  """Pre-norm transformer block.

    x = x + attention(norm(x))
    x = x + mlp(norm(x))

  Reference: Dosovitskiy et al., ViT, 2021; biases as in Bao et al., BEiT, 2022.
  """

  def __init__(self, spec: BlockSpec, rngs: nnx.Rngs):
    self.attention_norm = make_norm(spec.width, spec.norm_eps, spec.dtype, rngs)
    self.attention = Attention(spec, rngs)
    self.mlp_norm = make_norm(spec.width, spec.norm_eps, spec.dtype, rngs)
    self.mlp = Mlp(spec, rngs)

  def __call__(
    self, x: Float[Array, "b n d"], mask: Bool[Array, "b n n"] | None = None
  ) -> Float[Array, "b n d"]:
    """Runs the two residual branches."""
    x = x + self.attention(self.attention_norm(x), mask)
    return x + self.mlp(self.mlp_norm(x))


def make_blocks(
  spec: Any, rngs: nnx.Rngs, block: type[nnx.Module] = Block
) -> nnx.Module:
  """Makes a stack: one block whose parameters have a leading layer axis."""
  keys = jax.random.split(rngs.params(), spec.depth)

  def make_params(key):
    return nnx.state(block(spec, Rngs(key)), nnx.Param)

  return nnx.merge(_graphdef(spec, block), jax.vmap(make_params)(keys))


@functools.lru_cache(maxsize=64)
def _graphdef(spec: Any, block: type[nnx.Module]) -> Any:
  """The graph definition of a block, which does not depend on the key."""
  return nnx.graphdef(nnx.eval_shape(lambda: block(spec, Rngs(0))))


def _cast_kernels(params, dtype):
  """Casts matrices to the compute dtype, once for all layers and the step."""

  # Layers would cast their own, with the same values. Done here, devices that
  # keep parts of the weights exchange 16-bit numbers, and the loop collects
  # gradients in 16 bits, which is what the products give.
  def cast(path, leaf):
    is_kernel = "kernel" in jax.tree_util.keystr(path, simple=True)
    return leaf.astype(dtype) if is_kernel else leaf

  return jax.tree_util.tree_map_with_path(cast, params)


def run_blocks(
  blocks: Block,
  x: Float[Array, "b n d"],
  remat: str,
  mask: Bool[Array, "b n n"] | None = None,
) -> Float[Array, "b n d"]:
  """Runs a stack of blocks, one after the other, in a single scan."""
  graphdef, params = nnx.split(blocks, nnx.Param)
  params = _cast_kernels(params, x.dtype)

  def run_block(x, layer_params):
    x = parallel.constrain_batch(x)
    return parallel.constrain_batch(
      nnx.merge(graphdef, layer_params)(x, mask)
    ), None

  if remat not in REMAT:
    raise ValueError(f"model.remat={remat!r} is not one of {REMAT}")
  if remat == "dots":
    run_block = jax.checkpoint(
      run_block,
      policy=jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(attention_tpu.SAVED),
      ),
      prevent_cse=False,
    )
  elif remat == "full":
    run_block = jax.checkpoint(run_block, prevent_cse=False)
  x, _ = lax.scan(run_block, x, params)
  return x
