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
