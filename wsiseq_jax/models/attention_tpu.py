"""Fused softmax attention for TPU, a Pallas kernel.

Attention over 1568 tokens writes an 1568 x 1568 matrix for every head if it is
done in separate operations, and that traffic, not arithmetic, is what limits a
VideoMAE step on TPU. The kernels here hold a stripe of the matrix in vector
memory and never write it out.

    forward    reads q, k, v                   writes out
    backward   reads q, k, v, grad of out      writes grads of q, k, v

Sequences are short here, so a head's keys and values fit into vector memory
whole. That makes everything simpler than in kernels for long sequences: the
softmax of a stripe is complete at once, and the backward pass computes it anew
rather than reading statistics that the forward pass stored.

Heads stay where the projections put them, side by side in the last axis. A grid
step takes as many neighbouring heads as fill whole lanes (two of 64). Splitting
heads off into an axis of their own, as the kernels that come with JAX expect
it, would pad 64 channels to 128 and copy every operand on the way in and out.

The compiler cannot split a kernel over devices by itself. Each device is given
its part of the batch here, over the mesh of `parallel.with_mesh`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from wsiseq_jax import parallel

# Under this name a rematerialised block keeps the result: the backward kernel
# does not need it, but the layers behind it do.
SAVED = "attention"
_LANES = 128
# Queries of a stripe. With 1568 keys, a stripe of 256 takes 1.6 MB of the
# 16 MB of vector memory that a kernel gets by default; five are alive at once.
_STRIPE = 256
# What a kernel may use of the vector memory, 128 MiB on v5e and v6e.
_VMEM_BYTES = 64 * 2**20
# Rows come in tiles of 16 for 16-bit types (8 for float32).
_ROWS = 16


def attend_tpu(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
  interpret: bool = False,
) -> Float[Array, "b n heads d"]:
  """Computes softmax attention without writing the score matrix.

    out = softmax(query key^T / sqrt(d)) value

  Reference: Dao et al., FlashAttention, 2022 (not storing scores).
  """
  b, n, heads, d = query.shape
  flat = (x.reshape(b, x.shape[1], heads * d) for x in (query, key, value))
  out = _attend(*flat, d, interpret)
  return checkpoint_name(out, SAVED).reshape(query.shape)


def stripes(n: int) -> tuple[int, int]:
  """How many stripes queries are cut into, and the queries of each.

  Example:
    >>> stripes(1568), stripes(160), stripes(1000)
    ((7, 224), (1, 160), (4, 256))
  """
  count = math.ceil(n / _STRIPE)
  return count, _round_up(math.ceil(n / count))


def group_width(heads: int, d: int) -> int:
  """Channels of the heads that a grid step takes: whole lanes, or all.

  Example:
    >>> group_width(12, 64), group_width(3, 64), group_width(16, 80)
    (128, 192, 640)
  """
  for count in range(1, heads + 1):
    if heads % count == 0 and count * d % _LANES == 0:
      return count * d
  return heads * d


def kernel_hbm_bytes(b: int, n: int, width: int, item_bytes: int) -> tuple:
  """Bytes that the two kernels read and write, for n queries and n keys.

  Keys and values are fetched once for each group of heads and stay for all its
  stripes, so that every operand and result passes once.

  Example:
    >>> kernel_hbm_bytes(b=1, n=160, width=768, item_bytes=2)
    (983040, 1720320)
  """
  count, size = stripes(n)
  one = b * count * size * width * item_bytes
  return 4 * one, 7 * one


def forward_flops(b: int, n: int, m: int, width: int) -> int:
  """FLOPs of the forward kernel: two products of n x m x width a clip.

  Example:
    >>> forward_flops(b=1, n=2, m=3, width=4)
    96
  """
  return 4 * b * n * m * width


def backward_flops(b: int, n: int, m: int, width: int) -> int:
  """FLOPs of the backward kernel: five products, one the scores once more."""
  return 10 * b * n * m * width


# By the names that the kernels carry in a compiled program.
KERNEL_FLOPS = {
  "attention_forward": forward_flops,
  "attention_backward": backward_flops,
}


def _round_up(n: int) -> int:
  return math.ceil(n / _ROWS) * _ROWS


def _pad(x: Array, n: int) -> Array:
  """Adds rows of zeros: queries that are cut off, keys that are masked."""
  if x.shape[1] == n:
    return x
  return jnp.pad(x, ((0, 0), (0, n - x.shape[1]), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(query, key, value, d, interpret):
  forward = functools.partial(_forward, d=d, interpret=interpret)
  return _per_device(forward)(query, key, value)


def _attend_fwd(query, key, value, d, interpret):
  return _attend(query, key, value, d, interpret), (query, key, value)


def _attend_bwd(d, interpret, saved, grad):
  backward = functools.partial(_backward, d=d, interpret=interpret)
  return _per_device(backward)(*saved, grad)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _per_device(function):
  """The function on each device's rows of the batch; as it is with no mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function
  rows = PartitionSpec(parallel.BATCH_AXES)
  return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
  """A matrix product with float32 sums, exact for float32 operands.

  For narrower ones the compiler knows nothing but its default: what
  `jax_default_matmul_precision` asks for, it refuses.
  """
  is_f32 = a.dtype == jnp.float32
  return lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    preferred_element_type=jnp.float32,
    precision=lax.Precision.HIGHEST if is_f32 else lax.Precision.DEFAULT,
  )


def _softmax(q: Array, k: Array, keys: int) -> tuple[Array, Array]:
  """Weights [stripe, m] before division by their sums, and the sums."""
  score = _dot(q, k, (1, 1)) * q.shape[1] ** -0.5
  if keys < k.shape[0]:
    column = lax.broadcasted_iota(jnp.int32, score.shape, 1)
    score = jnp.where(column < keys, score, -jnp.inf)
  weight = jnp.exp(score - jnp.max(score, axis=1, keepdims=True))
  return weight, jnp.sum(weight, axis=1, keepdims=True)


def _heads(width: int, d: int) -> list[slice]:
  return [slice(start, start + d) for start in range(0, width, d)]


def _forward_kernel(q_ref, k_ref, v_ref, o_ref, *, d, keys):
  q, k, v = q_ref[0], k_ref[0], v_ref[0]
  for head in _heads(q.shape[1], d):
    weight, total = _softmax(q[:, head], k[:, head], keys)
    mixed = _dot(weight.astype(v.dtype), v[:, head], (1, 0))
    o_ref[0, :, head] = (mixed / total).astype(o_ref.dtype)


def _backward_kernel(*refs, d, keys):
  """Gradients of a stripe, from the softmax p of its scores.

  dv = pᵀ do                      dq = ds k / sqrt(d)
  ds = p (dp − Σ p dp), dp = do vᵀ      dk = dsᵀ q / sqrt(d)
  """
  q_ref, k_ref, v_ref, do_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs

  @pl.when(pl.program_id(2) == 0)
  def _():
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  q, k, v, do = q_ref[0], k_ref[0], v_ref[0], do_ref[0]
  for head in _heads(q.shape[1], d):
    weight, total = _softmax(q[:, head], k[:, head], keys)
    p = weight / total
    dv_sum[:, head] += _dot(p.astype(v.dtype), do[:, head], (0, 0))
    dp = _dot(do[:, head], v[:, head], (1, 1))
    ds = p * (dp - jnp.sum(p * dp, axis=1, keepdims=True)) * d**-0.5
    ds = ds.astype(q.dtype)
    dq_ref[0, :, head] = _dot(ds, k[:, head], (1, 0)).astype(dq_ref.dtype)
    dk_sum[:, head] += _dot(ds, q[:, head], (0, 0))

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
    dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)


def _specs(n, m, width, group):
  """Block of queries, block of keys: clip, group of heads, stripe."""
  count, size = stripes(n)
  by_query = pl.BlockSpec((1, size, group), lambda b, g, i: (b, i, g))
  by_key = pl.BlockSpec((1, _round_up(m), group), lambda b, g, i: (b, 0, g))
  return (width // group, count), by_query, by_key


def _forward(query, key, value, d, interpret):
  (b, n, width), m = query.shape, key.shape[1]
  grid, by_query, by_key = _specs(n, m, width, group_width(width // d, d))
  padded = grid[1] * by_query.block_shape[1]
  moved, _ = kernel_hbm_bytes(b, n, width, query.dtype.itemsize)
  out = pl.pallas_call(
    functools.partial(_forward_kernel, d=d, keys=m),
    grid=(b, *grid),
    in_specs=[by_query, by_key, by_key],
    out_specs=by_query,
    out_shape=jax.ShapeDtypeStruct((b, padded, width), query.dtype),
    compiler_params=_params(("parallel", "parallel", "parallel")),
    cost_estimate=pl.CostEstimate(
      flops=forward_flops(b, n, m, width),
      bytes_accessed=moved,
      transcendentals=b * n * m * width // d,
    ),
    interpret=interpret,
    name="attention_forward",
  )(_pad(query, padded), _pad(key, _round_up(m)), _pad(value, _round_up(m)))
  return out[:, :n]


def _backward(query, key, value, grad, d, interpret):
  (b, n, width), m = query.shape, key.shape[1]
  group = group_width(width // d, d)
  grid, by_query, by_key = _specs(n, m, width, group)
  padded, rows = grid[1] * by_query.block_shape[1], _round_up(m)
  inputs = _pad(query, padded), _pad(key, rows), _pad(value, rows)
  _, moved = kernel_hbm_bytes(b, n, width, query.dtype.itemsize)
  dq, dk, dv = pl.pallas_call(
    functools.partial(_backward_kernel, d=d, keys=m),
    grid=(b, *grid),
    in_specs=[by_query, by_key, by_key, by_query],
    out_specs=[by_query, by_key, by_key],
    out_shape=[
      jax.ShapeDtypeStruct((b, padded, width), query.dtype),
      jax.ShapeDtypeStruct((b, rows, width), key.dtype),
      jax.ShapeDtypeStruct((b, rows, width), value.dtype),
    ],
    scratch_shapes=[pltpu.VMEM((rows, group), jnp.float32)] * 2,
    # Stripes add to the same sums, hence follow one another.
    compiler_params=_params(("parallel", "parallel", "arbitrary")),
    cost_estimate=pl.CostEstimate(
      flops=backward_flops(b, n, m, width),
      bytes_accessed=moved,
      transcendentals=b * n * m * width // d,
    ),
    interpret=interpret,
    name="attention_backward",
  )(*inputs, _pad(grad, padded))
  return dq[:, :n], dk[:, :m], dv[:, :m]


def _params(semantics: tuple[str, ...]) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(
    dimension_semantics=semantics, vmem_limit_bytes=_VMEM_BYTES
  )
