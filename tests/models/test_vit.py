import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsiseq_jax.models import vit

SPEC = vit.BlockSpec(width=24, depth=3, heads=3, mlp_width=40)


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
  got = vit.attend(query, key, value, kernel)
  np.testing.assert_allclose(
    got, softmax_attention(query, key, value), atol=2e-5
  )


def test_attention_of_other_keys_than_queries():
  query = random_tokens(2, 5, 2, 8)
  key, value = random_tokens(2, 2, 9, 2, 8, seed=1)
  np.testing.assert_allclose(
    vit.attend(query, key, value, "chunked"),
    softmax_attention(query, key, value),
    atol=1e-5,
  )


def test_gradients_of_the_chunked_kernel_equal_the_plain_ones():
  inputs = tuple(random_tokens(3, 2, 520, 2, 8))
  cotangent = random_tokens(2, 520, 2, 8, seed=1)

  def gradients(kernel):
    def loss(*x):
      return jnp.sum(vit.attend(*x, kernel) * cotangent)

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
  got = vit.attend(query, query, value, kernel)
  assert got.dtype == jnp.bfloat16
  want = jnp.broadcast_to(
    value.astype(jnp.float32).mean(1, keepdims=True), value.shape
  )
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)


def test_unknown_kernel_and_remat_are_refused():
  x = jnp.zeros((1, 2, 1, 4))
  with pytest.raises(ValueError, match="attention_kernel='flash'"):
    vit.attend(x, x, x, "flash")
  blocks = vit.make_blocks(SPEC, nnx.Rngs(0))
  with pytest.raises(ValueError, match="model.remat='some'"):
    vit.run_blocks(blocks, jnp.zeros((1, 2, 24)), "some")


def test_block_by_hand():
  """Attention of one token is its value; the MLP follows with exact GELU."""
  spec = vit.BlockSpec(width=2, depth=1, heads=1, mlp_width=2)
  block = vit.Block(spec, nnx.Rngs(0))
  eye, zero = jnp.eye(2), jnp.zeros(2)
  for layer in (block.attention.value, block.attention.out):
    layer.kernel[...], layer.bias[...] = eye, zero
  block.mlp.up.kernel[...], block.mlp.up.bias[...] = eye, zero
  block.mlp.down.kernel[...] = 2 * eye
  got = block(jnp.array([[[3.0, 5.0]]]))
  # norm(3, 5) = (-1, 1); x becomes (2, 6); norm again (-1, 1); exact GELU of
  # -1 and 1 is -0.158655 and 0.841345 (the tanh form gives -0.158808).
  np.testing.assert_allclose(
    got, [[[2 - 2 * 0.158655, 6 + 2 * 0.841345]]], atol=1e-5
  )


def test_parameters_have_readable_names_and_no_key_bias():
  params = nnx.to_pure_dict(
    nnx.state(vit.make_blocks(SPEC, nnx.Rngs(0)), nnx.Param)
  )
  shapes = jax.tree.map(lambda x: x.shape, params)
  norm = {"scale": (3, 24), "bias": (3, 24)}
  with_bias = {"kernel": (3, 24, 24), "bias": (3, 24)}
  assert shapes == {
    "attention_norm": norm,
    "attention": {
      "query": with_bias,
      "key": {"kernel": (3, 24, 24)},
      "value": with_bias,
      "out": with_bias,
    },
    "mlp_norm": norm,
    "mlp": {
      "up": {"kernel": (3, 24, 40), "bias": (3, 40)},
      "down": {"kernel": (3, 40, 24), "bias": (3, 24)},
    },
  }


def test_initialisation_follows_the_recipe():
  spec = vit.BlockSpec(width=96, depth=2, heads=3, mlp_width=384)
  params = nnx.to_pure_dict(
    nnx.state(vit.make_blocks(spec, nnx.Rngs(0)), nnx.Param)
  )

  def check_uniform(kernel, bound):
    assert float(jnp.abs(kernel).max()) <= bound
    assert float(jnp.abs(kernel).max()) > 0.99 * bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.03)

  attention, mlp = params["attention"], params["mlp"]
  for name in ("query", "key", "value"):
    # One fused [96, 3 * 96] projection in the reference code.
    check_uniform(attention[name]["kernel"], np.sqrt(6 / (96 + 3 * 96)))
  check_uniform(attention["out"]["kernel"], np.sqrt(6 / (96 + 96)))
  check_uniform(mlp["up"]["kernel"], np.sqrt(6 / (96 + 384)))
  check_uniform(mlp["down"]["kernel"], np.sqrt(6 / (96 + 384)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key == "bias":
      assert not leaf.any(), path
    if path[-1].key == "scale":
      assert (leaf == 1).all(), path
  first, second = attention["query"]["kernel"]
  assert not np.allclose(first, second)
  assert not np.allclose(first, attention["key"]["kernel"][0])


def test_stack_runs_its_layers_in_order():
  blocks = vit.make_blocks(SPEC, nnx.Rngs(0))
  graphdef, params = nnx.split(blocks, nnx.Param)
  x = random_tokens(2, 5, 24)
  want = x
  for i in range(SPEC.depth):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params)
    want = nnx.merge(graphdef, layer)(want)
  np.testing.assert_allclose(vit.run_blocks(blocks, x, "none"), want, atol=1e-5)


def test_remat_changes_no_gradient_and_saves_memory():
  spec = dataclasses.replace(SPEC, depth=4)
  graphdef, params = nnx.split(vit.make_blocks(spec, nnx.Rngs(0)), nnx.Param)
  x = random_tokens(2, 64, 24)

  def gradient_and_bytes(remat):
    def loss(params):
      blocks = nnx.merge(graphdef, params)
      return jnp.sum(jnp.square(vit.run_blocks(blocks, x, remat)))

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  plain, plain_bytes = gradient_and_bytes("none")
  dots, dots_bytes = gradient_and_bytes("dots")
  full, full_bytes = gradient_and_bytes("full")
  assert full_bytes < dots_bytes < plain_bytes
  for other in (dots, full):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      other,
      plain,
    )


def test_bfloat16_keeps_float32_parameters_and_is_close():
  spec = dataclasses.replace(SPEC, dtype="bfloat16")
  blocks = vit.make_blocks(spec, nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(blocks, nnx.Param))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }
  x = random_tokens(2, 5, 24)
  got = vit.run_blocks(blocks, x.astype(jnp.bfloat16), "none")
  want = vit.run_blocks(vit.make_blocks(SPEC, nnx.Rngs(0)), x, "none")
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.1)
