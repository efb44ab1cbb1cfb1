"""What networks on pictures share: convolution, group-norm, resizing.

Parameters of a convolution are `kernel` [height, width, in, out] and, where it
has them, `bias` [out], `scale` and `offset` [out]; the last two make it a
convolution with group-norm. Pictures have their channels last.

Reference: Wu and He, Group normalization, ECCV 2018.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

GROUPS = 32  # at most; fewer where channels do not divide
_NORM_EPS = 1e-5


def init(
  key: Key[Array, ""],
  shape: tuple[int, int, int, int],
  bias: bool = False,
  norm: bool = False,
) -> dict[str, Array]:
  """Parameters of a convolution: He-normal kernel, norm that does nothing."""
  variance = 2.0 / (shape[0] * shape[1] * shape[2])
  params = {"kernel": variance**0.5 * jax.random.normal(key, shape)}
  if bias:
    params["bias"] = jnp.zeros(shape[-1])
  if norm:
    params |= {"scale": jnp.ones(shape[-1]), "offset": jnp.zeros(shape[-1])}
  return params


def apply(
  params: Mapping[str, Array],
  x: Float[Array, "b h w i"],
  stride: int = 1,
  groups: int = GROUPS,
) -> Float[Array, "b h2 w2 o"]:
  """Convolves, padded by zeros so that a stride of 1 keeps the size."""
  kernel = params["kernel"].astype(x.dtype)
  pad = kernel.shape[0] // 2
  x = lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((pad, pad), (pad, pad)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  if "bias" in params:
    x = x + params["bias"].astype(x.dtype).reshape(1, 1, 1, -1)
  if "scale" in params:
    x = group_norm(x, params["scale"], params["offset"], groups)
  return x


def group_norm(
  x: Float[Array, "b h w c"],
  scale: Float[Array, " c"],
  offset: Float[Array, " c"],
  groups: int = GROUPS,
) -> Float[Array, "b h w c"]:
  """Normalises groups of neighbouring channels of each picture.

  Args:
    x: pictures.
    scale: factor of each channel, afterwards.
    offset: added to each channel, afterwards.
    groups: at most so many; the greatest that divides both is taken.
  """
  b, h, w, c = x.shape
  parts = x.astype(jnp.float32).reshape(b, h * w, math.gcd(groups, c), -1)
  mean = parts.mean(axis=(1, 3), keepdims=True)
  var = jnp.square(parts - mean).mean(axis=(1, 3), keepdims=True)
  parts = (parts - mean) * lax.rsqrt(var + _NORM_EPS)
  out = parts.reshape(b, h, w, c) * scale.reshape(1, 1, 1, c)
  return (out + offset.reshape(1, 1, 1, c)).astype(x.dtype)


def resize(
  x: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
  """Bilinear, with pixel centres at halves, not smoothed where it shrinks."""
  if x.shape[1:3] == tuple(size):
    return x
  shape = (x.shape[0], *size, x.shape[3])
  return jax.image.resize(x, shape, "bilinear", antialias=False)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
  """The largest of 3x3, at every second pixel."""
  return lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    (1, 3, 3, 1),
    (1, 2, 2, 1),
    ((0, 0), (1, 1), (1, 1), (0, 0)),
  )
