"""Brightness, contrast, blur and stain of clips and pictures.

Those of a clip are the same for all its frames. Its pixels are in [0, 1] and
stay there. Every frame is changed by itself with the
numbers of its clip, so that frames of padding change no other frame.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

# Luma of Rec. 601; for grey pictures stored as RGB, the grey.
_LUMA = (0.299, 0.587, 0.114)


def _mix(a: Array, b: Array, factor: Array) -> Array:
  return jnp.clip(factor * a + (1.0 - factor) * b, 0.0, 1.0)


def adjust_brightness(
  pixels: Float[Array, "t h w c"], factor: Float[Array, ""]
) -> Float[Array, "t h w c"]:
  """Multiplies pixels, and clips them to [0, 1]."""
  return _mix(pixels, jnp.zeros_like(pixels), factor)


def adjust_contrast(
  pixels: Float[Array, "t h w c"], factor: Float[Array, ""]
) -> Float[Array, "t h w c"]:
  """Stretches the distance of pixels to the mean grey of their frame."""
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
  """
  rows, columns = (_blur_weights(n, sigma_px) for n in pixels.shape[1:3])
  # As products, and not as sums of shifted pictures: the compiler would work
  # out anew for each shift whatever the pictures came from.
  return jnp.einsum(
    "ih,thwc,jw->tijc", rows, pixels, columns, precision=jax.lax.Precision.HIGH
  )


def _blur_weights(size: int, sigma_px: Float[Array, ""]) -> Float[Array, "i i"]:
  """Matrix that mixes each of `size` pixels with its two neighbours."""
  side = jnp.exp(-0.5 / jnp.maximum(sigma_px, 1e-3) ** 2)
  place = jnp.arange(size)
  before = jnp.abs(place - 1)
  after = size - 1 - jnp.abs(size - 2 - place)
  itself = jnp.eye(size)
  neighbours = jnp.take(itself, before, axis=0) + jnp.take(
    itself, after, axis=0
  )
  return (itself + side * neighbours) / (1.0 + 2.0 * side)


def jitter_stain(
  pixels: UInt8[Array, "b h w 3"],
  key: Key[Array, ""],
  strength: float | Float[Array, ""],
) -> UInt8[Array, "b h w 3"]:
  """Mixes the optical densities of each picture's channels at random.

  A stain is a direction in the space of densities, -log of light: a matrix near
  the identity turns and scales them all. Glass, of density 0, stays white.

  Args:
    pixels: pictures.
    key: of the draw.
    strength: deviation of the matrix's entries from the identity's.
  """
  density = -jnp.log((pixels.astype(jnp.float32) + 1.0) / 256.0)
  noise = jax.random.normal(key, (len(pixels), 3, 3))
  mix = jnp.eye(3)[None] + strength * noise
  density = jnp.maximum(jnp.einsum("bhwi,bij->bhwj", density, mix), 0.0)
  return (
    jnp.round(256.0 * jnp.exp(-density) - 1.0).clip(0, 255).astype(jnp.uint8)
  )
