"""A small residual network that learns from scratch on two cores.

    pixels [b,h,w,3] --3x3/2, 3x3/2--> x1 --> x2 --/2--> x3 --/2--> x4 --> x5

Strides 4, 4, 8, 16, 16, as those of a ResNet-50 whose last stage is not
strided. Each arrow is a residual block of two 3x3 convolutions with group-norm.
A shallow network with a fine grid gains more on histology than a deep one of a
coarse grid (Chan et al., A comprehensive analysis of weakly-supervised semantic
segmentation in different image domains, IJCV 2021).
"""

from typing import Any

import jax
from jaxtyping import Array, Float, Key

from wsiseq_jax.models import conv

# Stride of each block, after the stem of stride 4.
_STRIDES = (1, 2, 2, 1)
# Of group-norm. A channel normalised alone would have the same mean in every
# picture: how much there is of what it sees would be lost.
_GROUPS = 4


def init_params(widths: tuple[int, ...], key: Key[Array, ""]) -> dict[str, Any]:
  """Random parameters.

  Args:
    widths: channels of x1 .. x5.
    key: of the draw.
  """
  keys = iter(jax.random.split(key, 2 + 3 * len(_STRIDES)))
  first = widths[0]
  params = {
    "stem": {
      "conv1": conv.init(next(keys), (3, 3, 3, first), norm=True),
      "conv2": conv.init(next(keys), (3, 3, first, first), norm=True),
    }
  }
  for number, (inner, outer) in enumerate(
    zip(widths[:-1], widths[1:], strict=True), start=2
  ):
    params[f"block{number}"] = {
      "conv1": conv.init(next(keys), (3, 3, inner, outer), norm=True),
      "conv2": conv.init(next(keys), (3, 3, outer, outer), norm=True),
      "project": conv.init(next(keys), (1, 1, inner, outer), norm=True),
    }
  return params


def apply(
  params: dict[str, Any], pixels: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b h2 w2 c"], ...]:
  """Features x1 .. x5 of normalised pixels."""

  def convolve(part: dict[str, Array], x: Array, stride: int = 1) -> Array:
    return conv.apply(part, x, stride, _GROUPS)

  x = jax.nn.relu(convolve(params["stem"]["conv1"], pixels, 2))
  x = jax.nn.relu(convolve(params["stem"]["conv2"], x, 2))
  found = [x]
  for number, stride in enumerate(_STRIDES, start=2):
    block = params[f"block{number}"]
    y = jax.nn.relu(convolve(block["conv1"], x, stride))
    y = convolve(block["conv2"], y)
    x = jax.nn.relu(y + convolve(block["project"], x, stride))
    found.append(x)
  return tuple(found)
