import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wsiseq_jax.models import posemb, videomae
from wsiseq_jax.tasks.videomae import losses

TINY = videomae.VideoMAEConfig(
  **videomae.SIZES["tiny"], frames=4, image_px=(32, 48)
)


@functools.cache
def initialise(config):
  model = nnx.eval_shape(lambda: videomae.VideoMAE(config, nnx.Rngs(0)))

  @jax.jit
  def make():
    model = videomae.VideoMAE(config, nnx.Rngs(0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))

  return nnx.split(model, nnx.Param)[0], make()


def make_params(config):
  graphdef, params = initialise(config)
  # A copy of the dicts, for tests that change an entry.
  return graphdef, jax.tree.map(lambda leaf: leaf, params)


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, clip, visible, decode):
  return nnx.merge(graphdef, params)(clip, visible, decode)


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef, params, clip):
  return nnx.merge(graphdef, params).encode(clip)


def random_clip(config, batch=2, seed=0):
  shape = (batch, config.frames, *config.image_px, config.channels)
  return jax.random.normal(jax.random.key(seed), shape)


def test_patchify_order_by_hand():
  # Every pixel holds its own coordinates as 1000 t + 100 h + 10 w + c.
  t, h, w, c = np.ogrid[0:4, 0:4, 0:6, 0:2]
  clip = jnp.asarray((1000 * t + 100 * h + 10 * w + c)[None].astype(np.float32))
  patches = videomae.patchify(clip, (2, 2, 3))
  assert patches.shape == (1, 8, 24)
  # Token 0 starts at the origin; 1 is to its right, 2 below, 4 later.
  np.testing.assert_array_equal(
    patches[0, :, 0], [0, 30, 200, 230, 2000, 2030, 2200, 2230]
  )
  # Within a patch: channels, then columns, then rows, then frames.
  np.testing.assert_array_equal(
    patches[0, 0, :8], [0, 1, 10, 11, 20, 21, 100, 101]
  )
  assert patches[0, 0, 12] == 1000
  back = videomae.unpatchify(patches, (2, 2, 3), (2, 2, 2))
  np.testing.assert_array_equal(back, clip)


@pytest.mark.parametrize("frames, image_px", [(2, (16, 64)), (6, (48, 32))])
def test_any_frame_count_and_rectangle(frames, image_px):
  config = videomae.VideoMAEConfig(
    **videomae.SIZES["tiny"], frames=frames, image_px=image_px
  )
  graphdef, params = make_params(config)
  clip = random_clip(config)
  visible = jnp.array([[0, 2], [1, 3]])
  decode = jnp.array([[1, 3, 0], [0, 2, 3]])
  prediction, out = run(graphdef, params, clip, visible, decode)
  assert prediction.shape == (2, 3, 1536)
  assert prediction.dtype == jnp.float32
  assert set(out) == {"encoder/embedded", "encoder/tokens", "decoder/tokens"}
  tokens, _ = encode(graphdef, params, clip)
  assert tokens.shape == (2, config.tokens, 32)
  assert videomae.pool_features(tokens).shape == (2, 32)


def test_clips_of_another_shape_are_refused():
  graphdef, params = make_params(TINY)
  clip = jnp.zeros((1, 4, 48, 32, 3))
  with pytest.raises(ValueError, match="data.image_px=\\(32, 48\\)"):
    encode(graphdef, params, clip)


def test_hidden_pixels_do_not_reach_the_prediction():
  graphdef, params = make_params(TINY)
  clip = random_clip(TINY)
  visible = jnp.array([[0, 3, 7], [2, 4, 11]])
  decode = jnp.array([[1, 2, 4], [0, 1, 3]])
  patches = np.array(videomae.patchify(clip, TINY.patch))
  for i in range(2):
    hidden = np.setdiff1d(np.arange(TINY.tokens), visible[i])
    patches[i, hidden] = 99.0
  spoilt = videomae.unpatchify(jnp.asarray(patches), TINY.patch, TINY.grid)
  prediction, _ = run(graphdef, params, clip, visible, decode)
  same, _ = run(graphdef, params, spoilt, visible, decode)
  np.testing.assert_array_equal(prediction, same)
  patches[:, 0] += 1.0
  spoilt = videomae.unpatchify(jnp.asarray(patches), TINY.patch, TINY.grid)
  other, _ = run(graphdef, params, spoilt, visible, decode)
  # Token 0 is visible in the first clip only.
  assert float(jnp.abs(other - prediction)[0].max()) > 1e-4
  np.testing.assert_array_equal(other[1], prediction[1])


def test_tokens_depend_on_their_place_not_on_their_order():
  graphdef, params = make_params(TINY)
  clip = random_clip(TINY, batch=1)
  decode = jnp.array([[1, 2, 5]])
  first, _ = run(graphdef, params, clip, jnp.array([[0, 3, 7]]), decode)
  shuffled, _ = run(graphdef, params, clip, jnp.array([[7, 0, 3]]), decode)
  np.testing.assert_allclose(first, shuffled, atol=1e-5)
  turned, _ = run(
    graphdef, params, clip, jnp.array([[0, 3, 7]]), decode[:, ::-1]
  )
  np.testing.assert_allclose(first, turned[:, ::-1], atol=1e-5)
  # Two decoded positions differ by nothing but their position vector.
  assert float(jnp.abs(first[0, 0] - first[0, 1]).max()) > 1e-3


def test_dual_masking_may_decode_visible_positions():
  """V2: a kept position that is visible gets a mask token like any other."""
  graphdef, params = make_params(TINY)
  clip = random_clip(TINY, batch=1)
  visible = jnp.array([[0, 3, 7]])
  prediction, out = run(
    graphdef, params, clip, visible, jnp.array([[0, 1, 3, 5]])
  )
  assert prediction.shape == (1, 4, 1536)
  assert out["decoder/tokens"].shape == (1, 4, 16)
  # Its content is not copied through: the decoder reads 3 + 4 tokens, of which
  # only the first three carry pixels.
  params["decoder"]["blocks"] = jax.tree.map(
    jnp.zeros_like, params["decoder"]["blocks"]
  )
  _, out = run(graphdef, params, clip, visible, jnp.array([[0, 1, 3, 5]]))
  table = posemb.position_table(TINY.grid, 16)
  want = params["decoder"]["mask_token"][None] + table[np.array([0, 1, 3, 5])]
  np.testing.assert_allclose(out["decoder/tokens"][0], want, atol=1e-6)


def test_embedding_is_the_strided_convolution_plus_position():
  graphdef, params = make_params(TINY)
  clip = random_clip(TINY, batch=1)
  _, out = encode(graphdef, params, clip)
  patch = params["encoder"]["patch"]
  kernel = patch["kernel"].reshape(2, 16, 16, 3, 32)
  want = jax.lax.conv_general_dilated(
    clip,
    kernel,
    window_strides=(2, 16, 16),
    padding="VALID",
    dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
  ).reshape(1, TINY.tokens, 32)
  want += patch["bias"][None, None]
  want += posemb.position_table(TINY.grid, 32)[None]
  np.testing.assert_allclose(out["encoder/embedded"], want, atol=1e-4)


def test_final_norm_leaves_tokens_centred_with_unit_variance():
  graphdef, params = make_params(TINY)
  tokens, _ = encode(graphdef, params, random_clip(TINY))
  np.testing.assert_allclose(tokens.mean(-1), 0.0, atol=1e-5)
  np.testing.assert_allclose(tokens.var(-1), 1.0, atol=1e-3)


def test_a_head_for_plain_pixels_starts_at_a_bright_grey():
  config = videomae.VideoMAEConfig(
    **videomae.SIZES["tiny"],
    frames=4,
    image_px=(32, 48),
    normalise_target=False,
  )
  graphdef, params = make_params(config)
  visible, decode = jnp.array([[0, 1]]), jnp.array([[2, 3]])
  model = nnx.merge(graphdef, params)
  prediction, _ = model(random_clip(config)[:1], visible, decode)
  assert abs(float(prediction.mean()) - 0.7) < 0.05
  assert float(prediction.std()) < 0.25


def test_initialisation_follows_the_recipe():
  _, params = make_params(
    videomae.VideoMAEConfig(
      **videomae.SIZES["demo"], frames=4, image_px=(32, 48)
    )
  )
  encoder, decoder = params["encoder"], params["decoder"]
  for leaf, bound in (
    (encoder["patch"]["kernel"], 1536**-0.5),
    (encoder["patch"]["bias"], 1536**-0.5),
    (decoder["project"]["kernel"], 128**-0.5),
    (decoder["head"]["kernel"], (6 / (64 + 1536)) ** 0.5),
    (decoder["mask_token"], 0.02),
  ):
    largest = float(jnp.abs(leaf).max())
    assert 0.9 * bound < largest <= bound * 1.000001
  assert "bias" not in decoder["project"]
  assert not decoder["head"]["bias"].any()
  # A normal cut at one deviation has 0.54 of its deviation left.
  np.testing.assert_allclose(
    decoder["mask_token"].std(), 0.54 * 0.02, rtol=0.15
  )


def test_other_grid_than_trained_uses_resampled_positions():
  config = videomae.VideoMAEConfig(
    **videomae.SIZES["tiny"],
    frames=8,
    image_px=(32, 48),
    trained_grid=(2, 2, 3),
  )
  graphdef, params = make_params(config)
  # Same parameters, and along time each trained slot is now two slots.
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, make_params(TINY)[1]
  )
  params["encoder"]["patch"] = jax.tree.map(
    jnp.zeros_like, params["encoder"]["patch"]
  )
  _, out = encode(graphdef, params, random_clip(config, batch=1))
  table = posemb.sinusoid_1d(12, 32)
  np.testing.assert_allclose(
    out["encoder/embedded"][0, :6], table[:6], atol=1e-6
  )
  np.testing.assert_allclose(
    out["encoder/embedded"][0, 6:12],
    0.75 * table[:6] + 0.25 * table[6:],
    atol=1e-6,
  )


def step_function(config, graphdef):
  def loss(params, clip, visible, decode):
    prediction, _ = nnx.merge(graphdef, params)(clip, visible, decode)
    patches = videomae.patchify(clip, config.patch)
    target = losses.normalised_patch_target(patches)
    target = videomae.take_tokens(target, decode)
    total, weight = losses.masked_mse(
      prediction, target, jnp.ones(decode.shape)
    )
    return total / weight

  return jax.value_and_grad(loss)


def random_indices(config, batch, seed=0):
  order = np.random.default_rng(seed).permuted(
    np.tile(np.arange(config.tokens), (batch, 1)), axis=1
  )
  return (
    jnp.asarray(np.sort(order[:, :4], 1)),
    jnp.asarray(np.sort(order[:, 4:], 1)),
  )


def test_sharded_batch_needs_no_collective_but_sums():
  """Forward and backward on 8 devices: gradients are summed, nothing else."""
  config = videomae.VideoMAEConfig(
    **(videomae.SIZES["tiny"] | {"depth": 1}),
    frames=4,
    image_px=(32, 48),
  )
  mesh = jax.make_mesh(
    (4, 2), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2
  )
  split = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  whole = jax.NamedSharding(mesh, jax.P())
  graphdef, params = make_params(config)
  inputs = (random_clip(config, batch=8), *random_indices(config, 8))
  step = step_function(config, graphdef)
  sharded = (
    jax.jit(
      step, in_shardings=(whole, split, split, split), out_shardings=whole
    )
    .lower(params, *inputs)
    .compile()
  )
  text = sharded.as_text()
  assert re.search(r" all-reduce(-start)?\(", text)
  for kind in (
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
  ):
    assert not re.findall(rf" {kind}(-start)?\(", text), kind
  # Every sum is over gradients or scalars; none has a batch axis.
  gradient_shapes = {leaf.shape for leaf in jax.tree.leaves(params)} | {()}
  for line in text.splitlines():
    if re.search(r" all-reduce(-start)?\(", line):
      shapes = re.findall(r"f32\[([\d,]*)\]", line.split(" all-reduce")[0])
      for shape in shapes:
        shape = tuple(int(n) for n in shape.split(",") if n)
        trimmed = tuple(n for n in shape if n != 1)
        assert any(
          trimmed == tuple(n for n in known if n != 1)
          or trimmed == tuple(n for n in known[1:] if n != 1)
          or trimmed == tuple(n for n in reversed(known) if n != 1)
          for known in gradient_shapes
        ), line
  # And the result is the same as on one device.
  value, gradients = sharded(
    jax.device_put(params, whole), *jax.device_put(inputs, split)
  )
  want_value, want_gradients = jax.jit(step)(params, *inputs)
  np.testing.assert_allclose(value, want_value, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
    gradients,
    want_gradients,
  )


def test_every_parameter_gets_a_gradient():
  graphdef, params = make_params(TINY)
  step = step_function(TINY, graphdef)
  _, gradients = jax.jit(step)(
    params, random_clip(TINY), *random_indices(TINY, 2)
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert float(jnp.abs(leaf).max()) > 1e-8, jax.tree_util.keystr(path)


def test_bfloat16_prediction_is_float32_and_close():
  graphdef, params = make_params(TINY)
  inputs = (random_clip(TINY), *random_indices(TINY, 2))
  want, _ = run(graphdef, params, *inputs)
  config = videomae.VideoMAEConfig(
    **videomae.SIZES["tiny"],
    frames=4,
    image_px=(32, 48),
    dtype="bfloat16",
    remat="dots",
  )
  graphdef, _ = make_params(config)
  got, out = run(graphdef, params, *inputs)
  assert got.dtype == jnp.float32
  assert out["encoder/tokens"].dtype == jnp.float32
  assert out["decoder/tokens"].dtype == jnp.bfloat16
  np.testing.assert_allclose(got, want, atol=0.1)
  assert float(jnp.abs(got - want).max()) > 0


def test_a_clip_can_be_learnt():
  """Sixty steps of Adam on one clip more than halve the loss."""
  graphdef, params = make_params(TINY)
  optimiser = optax.adam(3e-3)
  step = step_function(TINY, graphdef)

  @jax.jit
  def update(params, state, *inputs):
    value, gradients = step(params, *inputs)
    updates, state = optimiser.update(gradients, state)
    return optax.apply_updates(params, updates), state, value

  inputs = (random_clip(TINY, batch=1), *random_indices(TINY, 1))
  state = optimiser.init(params)
  values = []
  for _ in range(60):
    params, state, value = update(params, state, *inputs)
    values.append(float(value))
  assert values[-1] < 0.5 * values[0]
