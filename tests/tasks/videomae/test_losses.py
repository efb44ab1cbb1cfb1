import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.tasks.videomae import losses


def test_target_is_per_channel_with_unbiased_deviation():
  # Two pixels of two channels, pixel-major: channel 0 is (0, 1), 1 is (5, 5).
  patches = jnp.array([[[0.0, 5.0, 1.0, 5.0]]])
  # Channel 0: mean 0.5, unbiased std sqrt(0.5). Channel 1: 0 / 1e-6 = 0.
  want = 0.5 / (np.sqrt(0.5) + 1e-6)
  got = losses.normalised_patch_target(patches, channels=2)
  np.testing.assert_allclose(got, [[[-want, 0.0, want, 0.0]]], rtol=1e-6)


def test_epsilon_is_added_to_the_deviation_not_to_the_variance():
  # Unbiased std of (0, 2e-6) is sqrt(2) * 1e-6; the deviation becomes
  # (sqrt(2) + 1) * 1e-6. On the variance, 1e-6 would leave next to nothing.
  patches = jnp.array([[[0.0, 2e-6]]])
  got = losses.normalised_patch_target(patches, channels=1)
  want = 1 / (np.sqrt(2) + 1)
  np.testing.assert_allclose(got, [[[-want, want]]], rtol=1e-5)


def test_target_equals_numpy_on_random_patches():
  rng = np.random.default_rng(0)
  patches = rng.random((2, 5, 8 * 3), np.float32)
  cube = patches.reshape(2, 5, 8, 3).astype(np.float64)
  mean = cube.mean(2, keepdims=True)
  want = (cube - mean) / (cube.std(2, ddof=1, keepdims=True) + 1e-6)
  got = losses.normalised_patch_target(jnp.asarray(patches))
  np.testing.assert_allclose(got, want.reshape(2, 5, 24), atol=2e-5)


def test_plain_pixels_are_left_alone():
  patches = jnp.arange(12.0).reshape(1, 2, 6)
  same = losses.patch_target(patches, normalise=False)
  np.testing.assert_array_equal(same, patches)
  normalised = losses.patch_target(patches, normalise=True)
  assert abs(float(normalised.mean())) < 1e-6


def test_denormalise_inverts_the_target_and_uses_true_statistics():
  rng = np.random.default_rng(1)
  patches = jnp.asarray(rng.random((2, 3, 24), np.float32))
  target = losses.normalised_patch_target(patches)
  back = losses.denormalise_patches(target, patches)
  np.testing.assert_allclose(back, patches, atol=1e-6)
  # A flat prediction shows the true mean colour of each patch.
  flat = losses.denormalise_patches(jnp.zeros_like(patches), patches)
  want = patches.reshape(2, 3, 8, 3).mean(2)
  np.testing.assert_allclose(flat.reshape(2, 3, 8, 3)[:, :, 0], want, atol=1e-6)


def test_channels_that_do_not_divide_a_patch_are_refused():
  with pytest.raises(ValueError, match="model.channels=3"):
    losses.normalised_patch_target(jnp.zeros((1, 1, 8)))


def test_masked_mse_by_hand():
  prediction = jnp.array([[[0.0, 0.0], [1.0, 3.0]], [[2.0, 2.0], [9.0, 9.0]]])
  target = jnp.zeros((2, 2, 2))
  # Per patch: 0, 5, 4, 81.
  total, weight = losses.masked_mse(prediction, target, jnp.ones((2, 2)))
  assert (float(total), float(weight)) == (90.0, 4.0)
  weight = jnp.array([[1.0, 1.0], [0.5, 0.0]])
  total, weight = losses.masked_mse(prediction, target, weight)
  assert (float(total), float(weight)) == (7.0, 2.5)


def test_patches_of_weight_zero_get_no_gradient():
  weight = jnp.array([[1.0, 0.0]])
  target = jnp.ones((1, 2, 3))
  gradient = jax.grad(lambda p: losses.masked_mse(p, target, weight)[0])(
    jnp.zeros((1, 2, 3))
  )
  np.testing.assert_allclose(gradient[0, 0], [-2 / 3] * 3, rtol=1e-6)
  np.testing.assert_array_equal(gradient[0, 1], [0.0] * 3)


def test_masked_mse_sums_in_float32():
  prediction = jnp.full((1, 1000, 2), 0.1, jnp.bfloat16)
  total, _ = losses.masked_mse(
    prediction, jnp.zeros((1, 1000, 2), jnp.bfloat16), jnp.ones((1, 1000))
  )
  assert total.dtype == jnp.float32
  want = 1000 * float(jnp.bfloat16(0.1)) ** 2
  assert abs(float(total) - want) < 1e-3
