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


def test_unknown_remat_is_refused():
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
