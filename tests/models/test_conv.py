"""Convolutions with and without norm, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.models import conv


def test_group_norm_is_that_of_a_loop():
  rng = np.random.default_rng(0)
  x = rng.normal(2, 3, (2, 3, 5, 12)).astype(np.float32)
  scale, offset = rng.normal(size=(2, 12)).astype(np.float32)
  expected = np.zeros_like(x)
  for b in range(2):
    for first in range(0, 12, 3):  # four groups
      part = x[b, :, :, first : first + 3]
      part = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
      expected[b, :, :, first : first + 3] = part
  got = conv.group_norm(*map(jnp.asarray, (x, scale, offset)), groups=4)
  np.testing.assert_allclose(got, expected * scale + offset, atol=1e-4)


def test_groups_divide_the_channels():
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 6))
  ones, zeros = jnp.ones(6), jnp.zeros(6)
  # At most 4, of 6 channels: 2.
  np.testing.assert_array_equal(
    conv.group_norm(x, ones, zeros, groups=4),
    conv.group_norm(x, ones, zeros, groups=2),
  )


def test_parameters_say_what_is_done():
  key = jax.random.key(0)
  x = jax.random.normal(key, (1, 7, 9, 3))
  plain = conv.init(key, (3, 3, 3, 4), bias=True)
  assert set(plain) == {"kernel", "bias"}
  assert conv.apply(plain, x).shape == (1, 7, 9, 4)
  assert conv.apply(plain, x, 2).shape == (1, 4, 5, 4)
  shifted = {**plain, "bias": plain["bias"] + 2}
  np.testing.assert_allclose(
    conv.apply(shifted, x), conv.apply(plain, x) + 2, rtol=1e-5
  )
  normed = conv.init(key, (3, 3, 3, 4), norm=True)
  assert set(normed) == {"kernel", "scale", "offset"}
  assert float(conv.apply(normed, x).mean()) == pytest.approx(0, abs=1e-5)


def test_bilinear_resizing_has_pixel_centres_at_halves():
  x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
  got = conv.resize(x, (1, 4))[0, 0, :, 0]
  np.testing.assert_allclose(got, [0, 0.25, 0.75, 1])
  # Not smoothed: every second pixel's two neighbours, no more.
  wide = jnp.arange(8.0).reshape(1, 1, 8, 1)
  np.testing.assert_allclose(conv.resize(wide, (1, 2))[0, 0, :, 0], [1.5, 5.5])
