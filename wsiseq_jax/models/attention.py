"""One attention function, which picks its kernel by platform."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from wsiseq_jax.models.attention_tpu import attend_tpu

KERNELS = ("auto", "xla", "cudnn", "tpu", "chunked")

# Queries handled at once by the chunked kernel. On a CPU 64 to 400 measured
# alike for 1568 tokens; all at once is half as fast.
_QUERY_CHUNK = 256
# cuDNN's fused kernel needs an Ampere GPU or a later one.
_CUDNN_CAPABILITY = 8.0


def attend(
  query: Float[Array, "b n heads d"],
  key: Float[Array, "b m heads d"],
  value: Float[Array, "b m heads d"],
  kernel: str = "auto",
) -> Float[Array, "b n heads d"]:
  """Computes softmax attention with the fastest kernel of the platform.

  The result is the same for every kernel up to rounding:

    out = softmax(query key^T / sqrt(d)) value

  Args:
    query: Queries.
    key: Keys.
    value: Values.
    kernel: 'cudnn' is the fused GPU kernel (16-bit inputs only), 'tpu' the one
      for TPU (`attention_tpu`); neither writes the n x m matrix. 'xla' holds
      the whole n x m matrix; 'chunked' holds it for 256 queries at a time and
      recomputes it in the backward pass (three times faster than 'xla' on a
      CPU at 1568 tokens, forward and backward). 'auto' is decided by the
      platform compiled for: CPU 'chunked', TPU 'tpu', GPU 'cudnn' where inputs
      and GPU allow it, else 'xla'.

  Returns:
    Weighted values, in the dtype of `query`.

  Raises:
    ValueError: `kernel` is unknown.
  """
  if kernel not in KERNELS:
    raise ValueError(
      f"config.model.attention_kernel = {kernel!r}: must be one of {KERNELS}"
    )
  by_name = {
    "tpu": attend_tpu,
    "chunked": _attend_chunked,
    **{
      name: functools.partial(jax.nn.dot_product_attention, implementation=name)
      for name in ("xla", "cudnn")
    },
  }
  if kernel != "auto":
    return by_name[kernel](query, key, value)
  gpu = "cudnn" if _has_cudnn_kernel(query.dtype) else "xla"
  return lax.platform_dependent(
    query,
    key,
    value,
    cpu=by_name["chunked"],
    tpu=by_name["tpu"],
    default=by_name[gpu],
  )


def _has_cudnn_kernel(dtype: jnp.dtype) -> bool:
  """Whether the GPUs of this machine attend to inputs of a type with cuDNN."""
  if jax.default_backend() != "gpu" or jnp.dtype(dtype).itemsize != 2:
    return False
  # AMD's say gfx90a and the like.
  found = [str(d.compute_capability) for d in jax.local_devices()]
  return all(c[0].isdigit() and float(c) >= _CUDNN_CAPABILITY for c in found)


def _attend_chunked(query: Array, key: Array, value: Array) -> Array:
  """Attends with at most 256 queries at a time, in head-major layout."""
  query = query * query.shape[-1] ** -0.5
  heads_first = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
  return _chunked(*heads_first).transpose(0, 2, 1, 3)


def _split(x: Array) -> Array:
  """Cuts `[b, h, n, d]` into chunks of queries `[chunks, b, h, size, d]`.

  The loop runs over queries, not over samples or heads, so that a sharded batch
  stays sharded. Rows of padding change nothing: they are cut off again, and
  their gradients are zero.
  """
  b, heads, n, d = x.shape
  chunks = math.ceil(n / _QUERY_CHUNK)
  size = math.ceil(n / chunks)
  x = jnp.pad(x, ((0, 0), (0, 0), (0, chunks * size - n), (0, 0)))
  return x.reshape(b, heads, chunks, size, d).transpose(2, 0, 1, 3, 4)


def _join(x: Array, n: int) -> Array:
  """Undoes `_split` of `n` queries."""
  chunks, b, heads, size, d = x.shape
  x = x.transpose(1, 2, 0, 3, 4).reshape(b, heads, chunks * size, d)
  return x[:, :, :n]


def _product(spec: str, x: Array, y: Array) -> Array:
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _chunked(query: Array, key: Array, value: Array) -> Array:
  """Attention of scaled queries, all arrays `[b, h, n, d]`.

  The backward pass keeps the result and the logarithm of each row's sum, and
  computes the weights again from them (Dao et al., FlashAttention, 2022). It is
  written by hand for that, and so that the only arrays ever transposed are
  those of width d: left to itself the compiler transposes the scores.
  """
  return _chunked_forward(query, key, value)[0]


def _chunked_forward(query, key, value):
  def attend_chunk(query):
    score = _product("bhqd,bhkd->bhqk", query, key)
    peak = jnp.max(score, axis=-1, keepdims=True)
    weight = jnp.exp(score - peak)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    # Dividing here rather than above spares a pass over the weights.
    mixed = _product("bhqk,bhkd->bhqd", weight.astype(value.dtype), value)
    return (mixed / total).astype(query.dtype), peak + jnp.log(total)

  mixed, log_total = lax.map(attend_chunk, _split(query))
  mixed = _join(mixed, query.shape[2])
  return mixed, (query, key, value, mixed, log_total)


def _chunked_backward(saved, grad):
  query, key, value, mixed, log_total = saved
  inner = _product("bhqd,bhqd->bhq", mixed, grad)[..., None]

  def add_chunk(grads, chunk):
    query, grad, inner, log_total = chunk
    weight = jnp.exp(_product("bhqd,bhkd->bhqk", query, key) - log_total)
    slope = weight * (_product("bhqd,bhkd->bhqk", grad, value) - inner)
    slope, weight = slope.astype(key.dtype), weight.astype(value.dtype)
    query, grad = query.swapaxes(2, 3), grad.swapaxes(2, 3)
    grad_key, grad_value = grads
    grad_key += _product("bhdq,bhqk->bhdk", query, slope)
    grad_value += _product("bhdq,bhqk->bhdk", grad, weight)
    grad_query = _product("bhqk,bhkd->bhqd", slope, key)
    return (grad_key, grad_value), grad_query.astype(query.dtype)

  grads = tuple(
    jnp.zeros_like(x.swapaxes(2, 3), jnp.float32) for x in (key, value)
  )
  chunks = (_split(query), _split(grad), _split(inner), log_total)
  grads, grad_query = lax.scan(add_chunk, grads, chunks)
  grad_key, grad_value = (x.swapaxes(2, 3).astype(key.dtype) for x in grads)
  return _join(grad_query, query.shape[2]), grad_key, grad_value


_chunked.defvjp(_chunked_forward, _chunked_backward)
