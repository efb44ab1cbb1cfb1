"""Frames are predicted from those that are seen, and from nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.synthetic import smoke
from tests.clip_run import params_of, setup_of
from wsiseq_jax.tasks import contrastive
from wsiseq_jax.tasks.contrastive import losses


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return smoke.make_shards(tmp_path_factory.mktemp("prediction"))


def prediction_of(setup, frames, hidden):
  t = frames.shape[1]
  params = params_of(setup)
  time = jnp.tile(jnp.arange(t, dtype=jnp.float32), (len(frames), 1))
  real = jnp.ones(frames.shape[:2], bool)
  return contrastive.predict_frames(
    setup.merge(params), setup.objective, frames, time, real, hidden
  )


FRAMES = jax.random.normal(jax.random.key(1), (2, 4, 16))
HIDDEN = jnp.array([[True, False, False, True], [False, True, False, False]])


def test_the_target_is_what_the_frame_encoder_said(data):
  """The reference overwrites it by mask token, position and time."""
  setup = setup_of(data)
  _, target, weight = prediction_of(setup, FRAMES, HIDDEN)
  np.testing.assert_array_equal(target, FRAMES)
  np.testing.assert_array_equal(weight, HIDDEN.astype(jnp.float32))


def test_hidden_frames_are_predicted_from_the_others_alone(data):
  setup = setup_of(data)
  prediction, _, _ = prediction_of(setup, FRAMES, HIDDEN)
  other = jnp.where(HIDDEN[..., None], 9.0, FRAMES)
  unchanged, target, _ = prediction_of(setup, other, HIDDEN)
  np.testing.assert_array_equal(unchanged, prediction)
  np.testing.assert_array_equal(target, other)
  seen = FRAMES.at[0, 1].multiply(-1.0)
  changed, _, _ = prediction_of(setup, seen, HIDDEN)
  assert float(jnp.abs(changed[0, 0] - prediction[0, 0]).max()) > 1e-4


def test_hidden_frames_at_other_times_are_predicted_otherwise(data):
  setup = setup_of(data)
  network = setup.merge(params_of(setup))
  time = jnp.tile(jnp.arange(4.0), (2, 1))
  real = jnp.ones((2, 4), bool)
  found = [
    contrastive.predict_frames(
      network, setup.objective, FRAMES, t, real, HIDDEN
    )[0]
    for t in (time, time.at[0, 3].set(3.6))
  ]
  assert float(jnp.abs(found[0][0, 3] - found[1][0, 3]).max()) > 1e-4


def test_the_target_gets_no_gradient(data):
  setup = setup_of(data)

  def loss(frames):
    return losses.mean_of(
      losses.cosine_loss(*prediction_of(setup, frames, HIDDEN))
    )

  size = jnp.abs(jax.jit(jax.grad(loss))(FRAMES)).max(axis=2)
  assert bool((size > 1e-7).any(where=~HIDDEN))
  assert float(jnp.where(HIDDEN, size, 0).max()) == 0


def test_next_frames_are_predicted_from_earlier_ones(data):
  setup = setup_of(data, "clm")
  prediction, target, weight = prediction_of(setup, FRAMES, HIDDEN)
  np.testing.assert_array_equal(target, FRAMES[:, 1:])
  assert weight.tolist() == [[1, 1, 1]] * 2
  changed, _, _ = prediction_of(setup, FRAMES.at[:, 2].multiply(-1), HIDDEN)
  np.testing.assert_allclose(changed[:, :2], prediction[:, :2], atol=1e-5)
  assert float(jnp.abs(changed[:, 2] - prediction[:, 2]).max()) > 1e-4
