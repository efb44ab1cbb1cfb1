"""Model FLOPs, against products counted in what XLA compiles."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from wsiseq_jax import flops, hlo_costs
from wsiseq_jax.models import videomae, vit

SPEC = vit.BlockSpec(width=8, depth=3, heads=2, mlp_width=24)


def test_stack_by_hand():
  n, d, f = 5, 8, 24
  projections = 4 * 2 * n * d * d
  scores_and_mix = 2 * 2 * n * n * d
  mlp = 2 * 2 * n * d * f
  expected = 3 * (projections + scores_and_mix + mlp)
  assert flops.stack_flops(SPEC, n) == expected


@pytest.mark.parametrize("depth", [1, 3])
def test_step_is_what_xla_multiplies(depth):
  """Forward and backward of a small network, attention not fused."""
  config = videomae.VideoMAEConfig(
    frames=4,
    image_px=(32, 32),
    patch=(2, 8, 8),
    width=32,
    depth=depth,
    heads=2,
    mlp_width=96,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
    decoder_mlp_width=48,
    attention_kernel="xla",
  )
  b, k, m = 2, 10, 22
  model = nnx.eval_shape(lambda: videomae.VideoMAE(config, nnx.Rngs(0)))
  graphdef, params = nnx.split(model, nnx.Param)

  def loss(params, pixels, visible, decode):
    prediction, _ = nnx.merge(graphdef, params)(pixels, visible, decode)
    return jnp.sum(prediction**2)

  text = (
    jax.jit(jax.grad(loss))
    .lower(
      nnx.to_pure_dict(params),
      jax.ShapeDtypeStruct((b, 4, 32, 32, 3), jnp.float32),
      jax.ShapeDtypeStruct((b, k), jnp.int32),
      jax.ShapeDtypeStruct((b, m), jnp.int32),
    )
    .compile()
    .as_text()
  )
  # The gradient of the sum needs no forward pass of the head's last product,
  # but its value: both are computed.
  expected = b * flops.videomae_step_flops(config, k, m)
  assert hlo_costs.costs(text).matrix_flops == expected


def test_backward_is_twice_the_forward_but_for_pixels():
  config = videomae.VideoMAEConfig(**videomae.SIZES["small"])
  forward = flops.videomae_forward_flops(config, 160, 1408)
  embed = 2 * 160 * 1536 * 384
  assert flops.videomae_step_flops(config, 160, 1408) == 3 * forward - embed
