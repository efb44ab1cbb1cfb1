"""Clips as tokens: cut into patches and back, pick some, average them.

Nothing here has parameters. Token order is fixed for the whole repository:
time-major, then row, then column; within a patch frame, row, column, channel.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# What channels of pixels in [0, 1] are normalised by.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def patchify(
  pixels: Float[Array, "b t h w c"], patch: tuple[int, int, int]
) -> Float[Array, "b n p"]:
  """Cuts a clip into cubes, each flattened pixel by pixel, channels last.

  Returns:
    Patches in token order (time-major, row, column); `p` runs over frame, row,
    column and channel within the cube.
  """
  # Chosen by the platform compiled for, which need not be this machine's.
  return lax.platform_dependent(
    pixels,
    tpu=functools.partial(patchify_in_lanes, patch=patch),
    default=functools.partial(_patchify_at_once, patch=patch),
  )


def _patchify_at_once(pixels: Array, patch: tuple[int, int, int]) -> Array:
  b, t, h, w, c = pixels.shape
  pt, ph, pw = patch
  x = pixels.reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, c)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(b, (t // pt) * (h // ph) * (w // pw), pt * ph * pw * c)


def patchify_in_lanes(
  pixels: Float[Array, "b t h w c"], patch: tuple[int, int, int]
) -> Float[Array, "b n p"]:
  """`patchify` in three moves, each cheap where the last axis has 128 lanes."""
  # In one move the compiler pads 16 pixels or 3 channels to 128 lanes: 5.7 GB
  # of traffic for eight clips of 16 x 224 x 224, against 1.3 GB like this.
  # Frames of all clips take the lanes while pixels are sorted into patches; the
  # barriers keep the moves apart.
  b, t, h, w, c = pixels.shape
  pt, ph, pw = patch
  x = pixels.reshape(b * t, h, w, c).transpose(1, 2, 3, 0)
  x = lax.optimization_barrier(x)
  x = x.reshape(h // ph, ph, w // pw, pw, c, b * t).transpose(0, 2, 1, 3, 4, 5)
  x = x.reshape(h // ph, w // pw, ph * pw * c, b * t)
  x = lax.optimization_barrier(x).transpose(3, 0, 1, 2)
  x = x.reshape(b, t // pt, pt, h // ph, w // pw, ph * pw * c)
  x = x.transpose(0, 1, 3, 4, 2, 5)
  return x.reshape(b, -1, pt * ph * pw * c)


def unpatchify(
  patches: Float[Array, "b n p"],
  patch: tuple[int, int, int],
  grid: tuple[int, int, int],
) -> Float[Array, "b t h w c"]:
  """Puts cubes back into a clip: the inverse of `patchify`."""
  b = patches.shape[0]
  (gt, gh, gw), (pt, ph, pw) = grid, patch
  x = patches.reshape(b, gt, gh, gw, pt, ph, pw, -1)
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(b, gt * pt, gh * ph, gw * pw, -1)


def take_tokens(
  x: Float[Array, "b n d"], index: Int[Array, "b k"]
) -> Float[Array, "b k d"]:
  """Picks tokens of each sample without any traffic between devices.

  Returns:
    `x[i, index[i]]` for each sample i.
  """
  return jnp.take_along_axis(x, index[..., None], axis=1)


def pool_features(
  tokens: Float[Array, "b n d"], mask: Float[Array, "b n"] | None = None
) -> Float[Array, "b d"]:
  """Averages the encoder's tokens into one feature vector a clip.

  Deviation: fine-tuning code averages first and normalises the mean. Here each
  token is normalised, as in pretraining.

  Args:
    tokens: What `VideoMAE.encode` returned.
    mask: Weight of each token, 0 for padding; all alike by default.

  Returns:
    The mean over tokens; zeros where all are padding.

  Example:
    >>> pool_features(jnp.array([[[1.0], [3.0]]])).tolist()
    [[2.0]]
    >>> pool_features(jnp.array([[[1.0], [3.0]]]), jnp.eye(2)[:1]).tolist()
    [[1.0]]
  """
  if mask is None:
    return jnp.mean(tokens, axis=1)
  weight = jnp.maximum(mask.sum(axis=1), 1.0)
  return (tokens * mask[:, :, None]).sum(axis=1) / weight[:, None]
