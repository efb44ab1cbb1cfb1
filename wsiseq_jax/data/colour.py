"""Brightness, contrast and blur of clips, the same for all frames of a clip.

Pixels are in [0, 1] and stay there. Every frame is changed by itself with the
numbers of its clip, so that frames of padding change no other frame.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Luma of Rec. 601; for grey pictures stored as RGB, the grey.
_LUMA = (0.299, 0.587, 0.114)


def _mix(a: Array, b: Array, factor: Array) -> Array:
  return jnp.clip(factor * a + (1.0 - factor) * b, 0.0, 1.0)


def adjust_brightness(
  pixels: Float[Array, "t h w c"], factor: Float[Array, ""]
) -> Float[Array, "t h w c"]:
  """Multiplies pixels, and clips them to [0, 1].

  Example:
    >>> adjust_brightness(jnp.full((1, 1, 1, 1), 0.25), jnp.array(2.0)).item()
    0.5
  """
  return _mix(pixels, jnp.zeros_like(pixels), factor)


def adjust_contrast(
  pixels: Float[Array, "t h w c"], factor: Float[Array, ""]
) -> Float[Array, "t h w c"]:
  """Stretches the distance of pixels to the mean grey of their frame.

  Args:
    pixels: One clip.
    factor: 0 paints the mean grey, 1 changes nothing.

  Example:
    >>> frame = jnp.array([0.25, 0.75]).reshape(1, 1, 2, 1)
    >>> adjust_contrast(frame, jnp.array(0.5)).ravel().tolist()
    [0.375, 0.625]
  """
  grey = pixels
  if pixels.shape[-1] == 3:
    grey = jnp.einsum("thwc,c->thw", pixels, jnp.asarray(_LUMA))[..., None]
  mean = jnp.mean(grey, axis=(1, 2, 3), keepdims=True)
  return _mix(pixels, jnp.broadcast_to(mean, pixels.shape), factor)


def blur(
  pixels: Float[Array, "t h w c"], sigma_px: Float[Array, ""]
) -> Float[Array, "t h w c"]:
  """Gaussian blur by a kernel of 3 x 3 pixels; edges are mirrored.

  Args:
    pixels: One clip; frames of two pixels a side or more.
    sigma_px: Deviation of the Gaussian in pixels; 0 changes nothing.

  Example:
    >>> frame = jnp.eye(3)[None, :, :, None]
    >>> sharp = blur(frame, jnp.array(0.0))
    >>> bool((sharp == frame).all())
    True
  """
  side = jnp.exp(-0.5 / jnp.maximum(sigma_px, 1e-3) ** 2)
  middle = 1.0 / (1.0 + 2.0 * side)

  def along(x: Array, axis: int) -> Array:
    size = x.shape[axis]

    def part(start, stop):
      return jax.lax.slice_in_dim(x, start, stop, axis=axis)

    before = jnp.concatenate([part(1, 2), part(0, size - 1)], axis)
    after = jnp.concatenate([part(1, size), part(size - 2, size - 1)], axis)
    return middle * x + middle * side * (before + after)

  return along(along(pixels, 1), 2)
