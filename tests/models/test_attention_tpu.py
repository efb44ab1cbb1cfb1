"""The TPU's attention kernels, interpreted: the same numbers as XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hlo
from wsiseq_jax import parallel
from wsiseq_jax.models import attention, attention_tpu

# name: (b, queries, keys, heads, channels of a head)
SHAPES = {
  "two_heads_in_128_lanes": (2, 32, 32, 2, 64),
  "rows_need_padding": (1, 20, 20, 2, 64),
  "other_keys_than_queries": (2, 20, 50, 2, 16),
  "odd_heads_all_at_once": (1, 32, 32, 3, 32),
  "several_groups_of_heads": (1, 16, 16, 4, 64),
  "two_stripes_one_padded": (1, 300, 300, 1, 16),
}


def inputs(shape, dtype):
  b, n, m, heads, d = shape
  keys = jax.random.split(jax.random.key(0), 4)
  sizes = [(b, length, heads, d) for length in (n, m, m, n)]
  return [
    jax.random.normal(k, size, dtype)
    for k, size in zip(keys, sizes, strict=True)
  ]


def value_and_gradients(attend, q, k, v, grad):
  def run(q, k, v, grad):
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(grad)

  return [np.asarray(x, np.float32) for x in jax.jit(run)(q, k, v, grad)]


def fused(q, k, v):
  return attention_tpu.attend_tpu(q, k, v, interpret=True)


def separate(q, k, v):
  return attention.attend(q, k, v, "xla")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_same_as_xla_in_float32(shape):
  arrays = inputs(shape, jnp.float32)
  expected = value_and_gradients(separate, *arrays)
  found = value_and_gradients(fused, *arrays)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=3e-6, rtol=3e-5)


def test_same_as_xla_in_bfloat16():
  """To a unit in the last place of the largest values."""
  arrays = inputs((2, 160, 160, 2, 64), jnp.bfloat16)
  expected = value_and_gradients(separate, *arrays)
  found = value_and_gradients(fused, *arrays)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2**-7 * np.abs(b).max())


def test_large_scores_do_not_overflow():
  q, k, v, _ = inputs((1, 16, 16, 1, 16), jnp.float32)
  out = fused(100 * q, 100 * k, v)
  np.testing.assert_allclose(
    out, separate(100 * q, 100 * k, v), atol=1e-5, rtol=1e-5
  )


def test_each_device_keeps_its_clips():
  """Over a mesh: the same numbers, and nothing is exchanged."""
  mesh = parallel.make_mesh(fsdp=2)
  arrays = inputs((8, 16, 16, 2, 16), jnp.float32)
  expected = value_and_gradients(fused, *arrays)

  def step(*arrays):
    out, pull = jax.vjp(fused, *arrays[:3])
    return out, *pull(arrays[3])

  compiled = jax.jit(
    parallel.with_mesh(mesh, step), out_shardings=parallel.batch_sharding(mesh)
  )
  placed = jax.device_put(arrays, parallel.batch_sharding(mesh))
  for a, b in zip(compiled(*placed), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  text = compiled.lower(*placed).compile().as_text()
  assert hlo.count_collectives(text) == {}


def test_stripes_cover_the_queries():
  for n in range(1, 2100, 7):
    count, size = attention_tpu.stripes(n)
    assert count * size >= n
    assert (count - 1) * size < n
    assert size % 16 == 0
    assert size <= 256


@pytest.mark.parametrize(
  "heads,d,width",
  [(6, 64, 128), (3, 64, 192), (8, 80, 640), (16, 88, 1408), (2, 128, 128)],
)
def test_group_fills_lanes_or_takes_all_heads(heads, d, width):
  assert attention_tpu.group_width(heads, d) == width


def test_flops_of_kernels_by_hand():
  n, m, width = 10, 20, 64
  product = 2 * n * m * width
  assert attention_tpu.forward_flops(3, n, m, width) == 3 * 2 * product
  assert attention_tpu.backward_flops(3, n, m, width) == 3 * 5 * product
