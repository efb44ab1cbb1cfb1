"""Model FLOPs, against products counted in what XLA compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import hlo_costs
from configs import contrastive
from wsiseq_jax.data import views
from wsiseq_jax.models import flops, videomae, vit
from wsiseq_jax.tasks import contrastive as contrastive_task
from wsiseq_jax.tasks.contrastive import setup as contrastive_setup
from wsiseq_jax.tpu import aot

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


@pytest.mark.parametrize("method", contrastive.METHODS)
def test_contrastive_step_is_what_xla_multiplies(method):
  """But for the comparison in the batch, and outputs that nobody looks at."""
  config = contrastive.get_config(f"{method},smoke")
  config.model.attention_kernel = "xla"
  config.model.update({"size": "demo", "temporal_depth": 2})
  config.model.temporal_width = 24
  setup = contrastive_setup.make_setup(config, aot.ReferenceRecords().spec)
  b, v, t = 2, 2, setup.model.frames
  seen = views.Views(
    pixels=jax.ShapeDtypeStruct((b, v, t, 32, 32, 3), jnp.float32),
    time=jax.ShapeDtypeStruct((b, v, t), jnp.float32),
    frames=jax.ShapeDtypeStruct((b, v, t), jnp.int32),
    frame_mask=jax.ShapeDtypeStruct((b, v, t), jnp.float32),
    is_distinct=jax.ShapeDtypeStruct((b,), jnp.bool),
  )

  def loss(params, seen):
    keys = jax.random.split(jax.random.key(0), b)
    mask = jnp.ones(b)
    metrics, prediction = contrastive_task.objective_terms(
      setup, params, seen, mask, keys, 0.0
    )
    return contrastive_task.losses.total_loss(
      metrics, prediction, jnp.array(0.5)
    )

  params = jax.eval_shape(
    lambda: contrastive_task.clip_encoder.init_params(
      setup.model, jax.random.key(0)
    )
  )
  text = jax.jit(jax.grad(loss)).lower(params, seen).compile().as_text()
  expected = b * v * flops.contrastive_step_flops(setup.model)
  found = hlo_costs.costs(text).matrix_flops
  np.testing.assert_allclose(found, expected, rtol=2e-3)
