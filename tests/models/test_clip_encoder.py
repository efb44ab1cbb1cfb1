"""Frames by themselves, clips in time, and who sees what."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.models import clip_encoder

B, T, D = 3, 4, 16


def config(**changes):
  return dataclasses.replace(
    clip_encoder.ClipEncoderConfig(
      frames=T,
      image_px=(32, 32),
      width=D,
      depth=1,
      heads=2,
      temporal_width=D,
      temporal_depth=2,
      temporal_heads=2,
      projector_width=8,
      projection=4,
      directions=4,
    ),
    **changes,
  )


def model_of(**changes):
  network = clip_encoder.ClipEncoder(config(**changes), nnx.Rngs(0))
  # Position tables start at zero, where a place makes no difference.
  table = network.temporal.pos_embed
  table[...] = jax.random.normal(jax.random.key(9), table[...].shape)
  return network


def frames_of(seed=0):
  return jax.random.normal(jax.random.key(seed), (B, T, D))


def run(network, frames, time=None, visible=None, **more):
  time = jnp.zeros((B, T)) if time is None else time
  visible = jnp.ones((B, T), bool) if visible is None else visible
  return network.temporal(frames, time, visible, **more)


def test_a_frame_is_encoded_by_itself():
  """A ViT for each frame: others of the clip and the batch do not matter."""
  network = model_of()
  pixels = jax.random.normal(jax.random.key(0), (B, T, 32, 32, 3))
  features = network.encode_frames(pixels)
  assert features.shape == (B, T, D) and features.dtype == jnp.float32
  other = pixels.at[0, 1:].set(0).at[1:].set(1)
  np.testing.assert_allclose(
    network.encode_frames(other)[0, 0], features[0, 0], atol=1e-5
  )
  turned = network.encode_frames(pixels[:, ::-1])
  np.testing.assert_allclose(turned[:, ::-1], features, atol=1e-5)
  assert float(jnp.abs(features[0, 0] - features[0, 1]).max()) > 1e-3
  # The final LayerNorm, and no dropout: twice the same.
  np.testing.assert_allclose(features.mean(axis=2), 0, atol=1e-5)
  np.testing.assert_array_equal(network.encode_frames(pixels), features)


def test_frames_of_another_size_are_refused():
  with pytest.raises(ValueError, match=r"\(32, 40, 3\).*data\.image_px"):
    model_of().encode_frames(jnp.zeros((1, 2, 32, 40, 3)))


def test_padded_frames_change_nothing():
  network = model_of(uses_time=True)
  frames, time = frames_of(), jnp.cumsum(jnp.ones((B, T)), axis=1)
  visible = jnp.array([[True, True, True, False]] * B)
  clips, out = run(network, frames, time, visible)
  other_frames = frames.at[:, 3].set(1e3)
  other_time = time.at[:, 3].set(1e5)
  other = run(network, other_frames, other_time, visible)
  np.testing.assert_array_equal(other[0], clips)
  np.testing.assert_array_equal(other[1][:, :3], out[:, :3])
  assert float(jnp.abs(run(network, frames, time)[0] - clips).max()) > 1e-3


def test_a_clip_without_visible_frames_is_a_number():
  clips, out = run(model_of(), frames_of(), visible=jnp.zeros((B, T), bool))
  assert np.isfinite(np.asarray(clips)).all()
  assert np.isfinite(np.asarray(out)).all()
  np.testing.assert_allclose(
    clips, jnp.broadcast_to(clips[:1], clips.shape), atol=1e-6
  )


def test_only_models_that_are_told_the_time_know_it():
  frames = frames_of()
  slow = jnp.tile(jnp.arange(T, dtype=jnp.float32)[None], (B, 1))
  for uses_time in (False, True):
    network = model_of(uses_time=uses_time)
    change = run(network, frames, slow)[0] - run(network, frames, 3 * slow)[0]
    assert (float(jnp.abs(change).max()) > 1e-3) == uses_time


def test_time_is_not_cut_to_whole_numbers():
  network, frames = model_of(uses_time=True), frames_of()
  one = jnp.tile(jnp.array([[0.0, 1.0, 2.0, 3.0]]), (B, 1))
  clips = [run(network, frames, t)[0] for t in (one, one + 0.4 * (one > 0))]
  assert float(jnp.abs(clips[0] - clips[1]).max()) > 1e-3


def test_relative_time_counts_from_the_clip():
  frames = frames_of()
  time = jnp.cumsum(jnp.ones((B, T)), axis=1)
  for relative in (True, False):
    network = model_of(uses_time=True, relative_time=relative)
    change = run(network, frames, time)[0] - run(network, frames, time + 7)[0]
    assert (float(jnp.abs(change).max()) < 1e-4) == relative


def test_causal_frames_see_no_future():
  """Not in two layers either, where a class token would carry it back."""
  network, frames = model_of(), frames_of()
  clips, out = run(network, frames, is_causal=True)
  for t in range(T):
    other = frames.at[:, t].multiply(-1.0)
    other_clips, other_out = run(network, other, is_causal=True)
    np.testing.assert_allclose(other_out[:, :t], out[:, :t], atol=1e-5)
    for later in range(t, T):
      assert float(jnp.abs(other_out[:, later] - out[:, later]).max()) > 1e-3
    assert float(jnp.abs(other_clips - clips).max()) > 1e-3


def test_another_class_token_takes_the_place_of_the_trained_one():
  network, frames = model_of(), frames_of()
  own = run(network, frames)[0]
  token = network.temporal.cls_token[...]
  np.testing.assert_array_equal(run(network, frames, cls_token=token)[0], own)
  other = run(network, frames, cls_token=token + 1.0)[0]
  assert float(jnp.abs(other - own).max()) > 1e-3


def test_navigation_moves_within_its_directions():
  network = model_of(objective="navigation").navigation
  basis = network.basis()
  np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)
  clips = frames_of()[:, 0]
  moved = network(clips, jnp.array([0.5, 4.0, -4.0]))
  shift = moved - clips
  assert float(jnp.abs(shift).max()) > 1e-2
  # What is left after the projection onto the directions is unchanged.
  rest = shift - shift @ basis @ basis.T
  np.testing.assert_allclose(rest, 0, atol=1e-5)
  # Forward and backward in time are not the same.
  there, back = (network(clips[:1], jnp.array([t]))[0] for t in (4.0, -4.0))
  assert float(jnp.abs(there - back).max()) > 1e-3


def test_the_default_has_the_size_of_the_reference():
  """21.28 M in the frame blocks and 5.32 M in the temporal ones, by the sheet.

  By hand a block has 12 x 384^2 weights and 10 x 384 others; ours have biases
  on query and value as well, 2 x 384.
  """
  shapes = jax.eval_shape(
    lambda: clip_encoder.init_params(
      clip_encoder.ClipEncoderConfig(), jax.random.key(0)
    )
  )
  count = {
    part: sum(x.size for x in jax.tree.leaves(shapes[part]["blocks"]))
    for part in ("frame", "temporal")
  }
  block = 12 * 384**2 + 10 * 384
  assert (
    round(12 * block / 1e6, 2) == 21.28 and round(3 * block / 1e6, 2) == 5.32
  )
  assert count == {"frame": 12 * (block + 768), "temporal": 3 * (block + 768)}
  stem = sum(x.size for x in jax.tree.leaves(shapes["frame"]["stem"]))
  assert round(stem / 1e6, 2) in (1.02, 1.03)


@pytest.mark.parametrize(
  ("changes", "text"),
  [
    ({"patch": 12}, r"config\.model\.patch = 12"),
    ({"image_px": (32, 40)}, r"data\.image_px = \(32, 40\): w must"),
    ({"heads": 3}, r"model\.heads = 3"),
    ({"temporal_heads": 5}, r"model\.temporal_heads = 5"),
    ({"directions": 17}, r"objective\.directions = 17: .*16"),
  ],
)
def test_what_cannot_be_is_named(changes, text):
  with pytest.raises(ValueError, match=text):
    config(**changes)
