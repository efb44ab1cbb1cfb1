import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.models.attention import attend


def random_tokens(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def softmax_attention(query, key, value):
  """Reference in NumPy float64, one sample and head at a time."""
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  out = np.zeros((*query.shape[:3], value.shape[3]))
  for b in range(query.shape[0]):
    for h in range(query.shape[2]):
      score = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[3])
      weight = np.exp(score - score.max(1, keepdims=True))
      weight /= weight.sum(1, keepdims=True)
      out[b, :, h] = weight @ value[b, :, h]
  return out


# 300 tokens make two chunks of 150, 601 three chunks with two padded queries.
@pytest.mark.parametrize("tokens", [1, 7, 300, 601])
@pytest.mark.parametrize("kernel", ["xla", "chunked", "auto"])
def test_attention_kernels_equal_numpy(kernel, tokens):
  query, key, value = random_tokens(3, 2, tokens, 2, 8) * 2.0
  got = attend(query, key, value, kernel)
  np.testing.assert_allclose(
    got, softmax_attention(query, key, value), atol=2e-5
  )


@pytest.mark.parametrize(
  ("capabilities", "dtype", "wanted"),
  [
    (["9.0", "8.0"], jnp.bfloat16, "cudnn"),
    (["9.0"], jnp.float32, "xla"),
    (["8.0", "7.0"], jnp.bfloat16, "xla"),  # V100
    (["gfx90a"], jnp.bfloat16, "xla"),
  ],
)
def test_cudnn_only_where_the_gpu_can(monkeypatch, capabilities, dtype, wanted):
  asked = []

  def attention(query, key, value, implementation):
    asked.append(implementation)
    return query

  gpus = [types.SimpleNamespace(compute_capability=c) for c in capabilities]
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "local_devices", lambda: gpus)
  monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
  tokens = jnp.zeros((2, 5, 2, 8), dtype)
  # A function of its own: traces are kept.
  jax.jit(lambda *x: attend(*x)).trace(tokens, tokens, tokens)
  assert asked == [wanted]


def test_the_platform_compiled_for_decides():
  tokens = jax.ShapeDtypeStruct((2, 300, 2, 64), jnp.bfloat16)
  traced = jax.jit(attend).trace(tokens, tokens, tokens)
  texts = {
    platform: traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in ("cpu", "tpu", "cuda")
  }
  assert "tpu_custom_call" in texts["tpu"]
  assert "tpu_custom_call" not in texts["cpu"] + texts["cuda"]
  # Only the kernel of a CPU goes through the queries in a loop.
  assert "while" in texts["cpu"] and "while" not in texts["cuda"]


def test_attention_of_other_keys_than_queries():
  query = random_tokens(2, 5, 2, 8)
  key, value = random_tokens(2, 2, 9, 2, 8, seed=1)
  np.testing.assert_allclose(
    attend(query, key, value, "chunked"),
    softmax_attention(query, key, value),
    atol=1e-5,
  )


def test_gradients_of_the_chunked_kernel_equal_the_plain_ones():
  inputs = tuple(random_tokens(3, 2, 520, 2, 8))
  cotangent = random_tokens(2, 520, 2, 8, seed=1)

  def gradients(kernel):
    def loss(*x):
      return jnp.sum(attend(*x, kernel) * cotangent)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)

  for plain, chunked in zip(
    gradients("xla"), gradients("chunked"), strict=True
  ):
    assert float(jnp.abs(plain).max()) > 0.1
    np.testing.assert_allclose(chunked, plain, atol=2e-5)


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_attention_survives_huge_scores_and_keeps_the_dtype(kernel):
  query = jnp.full((1, 3, 1, 4), 100.0, jnp.bfloat16)
  value = random_tokens(1, 3, 1, 4).astype(jnp.bfloat16)
  got = attend(query, query, value, kernel)
  assert got.dtype == jnp.bfloat16
  want = jnp.broadcast_to(
    value.astype(jnp.float32).mean(1, keepdims=True), value.shape
  )
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)


def test_unknown_kernel_is_refused():
  x = jnp.zeros((1, 2, 1, 4))
  with pytest.raises(ValueError, match="attention_kernel = 'flash'"):
    attend(x, x, x, "flash")
