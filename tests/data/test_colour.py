"""Brightness, contrast and blur, against OpenCV and by hand."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.data import colour


@pytest.fixture(scope="module")
def clip():
  return jax.random.uniform(jax.random.key(0), (3, 9, 7, 3))


def test_brightness_multiplies_and_stays_in_range(clip):
  found = colour.adjust_brightness(clip, jnp.array(1.6))
  np.testing.assert_allclose(found, np.clip(1.6 * clip, 0, 1), atol=1e-6)


def test_contrast_is_about_the_grey_of_each_frame(clip):
  found = colour.adjust_contrast(clip, jnp.array(0.4))
  grey = np.asarray(clip) @ np.array([0.299, 0.587, 0.114])
  mean = grey.mean(axis=(1, 2))[:, None, None, None]
  np.testing.assert_allclose(
    found, 0.4 * np.asarray(clip) + 0.6 * mean, atol=1e-5
  )


def test_one_factor_changes_nothing(clip):
  for change in (colour.adjust_brightness, colour.adjust_contrast):
    np.testing.assert_allclose(change(clip, jnp.array(1.0)), clip, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_that_of_opencv(clip, sigma):
  found = colour.blur(clip, jnp.array(sigma))
  for frame, wanted in zip(found, np.asarray(clip), strict=True):
    wanted = cv2.GaussianBlur(
      wanted, (3, 3), sigma, borderType=cv2.BORDER_REFLECT_101
    )
    np.testing.assert_allclose(frame, wanted, atol=1e-5)


def test_frames_do_not_change_each_other(clip):
  other = clip.at[2].set(0.5)
  for change in (colour.adjust_brightness, colour.adjust_contrast, colour.blur):
    factor = jnp.array(0.8)
    np.testing.assert_array_equal(
      change(clip, factor)[:2], change(other, factor)[:2]
    )


def test_stain_jitter_leaves_glass_white_and_no_strength_changes_nothing():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 6, 6, 3), np.uint8)
  pixels[:, 0] = 255
  pixels = jnp.asarray(pixels)
  key = jax.random.key(0)
  same = colour.jitter_stain(pixels, key, 0.0)
  np.testing.assert_allclose(same, pixels, atol=1)
  jittered = np.asarray(colour.jitter_stain(pixels, key, 0.1))
  assert (jittered[:, 0] == 255).all()
  assert np.abs(jittered[:, 1:].astype(int) - pixels[:, 1:]).mean() > 3


def test_stain_jitter_mixes_densities_by_hand():
  # Density of each channel: ln 2, 0, ln 4.
  pixels = jnp.array([[[[127, 255, 63]]]], jnp.uint8)
  key = jax.random.key(3)
  mix = np.eye(3) + 0.2 * np.asarray(jax.random.normal(key, (1, 3, 3)))[0]
  density = np.maximum(np.log([2.0, 1.0, 4.0]) @ mix, 0)
  expected = np.round(256 * np.exp(-density) - 1).clip(0, 255)
  got = colour.jitter_stain(pixels, key, 0.2)
  np.testing.assert_allclose(np.asarray(got)[0, 0, 0], expected, atol=1)
