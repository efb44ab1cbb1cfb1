"""ResNet with bottlenecks: an encoder of tiles, and maps of features.

    pixels [b,h,w,3] --7x7/2, ReLU, max 3x3/2--> stage 1 .. 4 --mean--> [b,d]

Each stage starts with a block that halves the picture (but the first) and
projects the shortcut. As in torchvision the stride lies in the 3x3 convolution
("v1.5"), not in the first 1x1 as in the paper.

There is no batch-norm here: with fixed statistics it is one factor and one
shift for each channel, which `fold` multiplies into the convolution before it.
Convolutions may have group-norm in its place, to be trained (`models.conv`).

`resnet50_trunc` ends after stage 3, with 1024 features: what CLAM and much that
was built on it calls ResNet-50.

References: He et al., Deep residual learning for image recognition, CVPR 2016.
Lu et al., Data-efficient and weakly supervised computational pathology (CLAM),
2021.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from wsiseq_jax.models import conv

# Channels out of a block over channels within it.
EXPANSION = 4
# PyTorch's batch-norm adds this to the variance.
_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
  """Shape and numerics of a ResNet.

  Example:
    >>> PRESETS["resnet50"].width, PRESETS["resnet50_trunc"].width
    (2048, 1024)
  """

  # Blocks of each stage; as many stages as numbers.
  blocks: tuple[int, ...] = (3, 4, 6, 3)
  stem_width: int = 64  # channels after the first convolution
  # Channels within the blocks of stage 1; twice as many in each further stage.
  bottleneck_width: int = 64
  dtype: str = "float32"  # compute dtype, 'float32' or 'bfloat16'

  @property
  def width(self) -> int:
    """Features of a tile."""
    return EXPANSION * self.bottleneck_width * 2 ** (len(self.blocks) - 1)

  @property
  def least_px(self) -> int:
    """Smallest tile of which the last stage has a whole pixel."""
    return 2 ** (1 + len(self.blocks))


PRESETS = {
  "resnet50": ResNetSpec(),
  "resnet50_trunc": ResNetSpec(blocks=(3, 4, 6)),
}


def kernel_shapes(spec: ResNetSpec) -> dict[str, tuple[int, int, int, int]]:
  """Shape `[height, width, in, out]` of every kernel, by path.

  Paths follow torchvision: `layer1/0/conv2` is the second convolution of the
  first block of stage 1; `project` is the shortcut's.

  Example:
    >>> shapes = kernel_shapes(ResNetSpec(blocks=(1,)))
    >>> shapes["layer1/0/conv2"], len(shapes)
    ((3, 3, 64, 64), 5)
  """
  shapes = {"conv1": (7, 7, 3, spec.stem_width)}
  inner = spec.stem_width
  for stage, blocks in enumerate(spec.blocks):
    width = spec.bottleneck_width * 2**stage
    outer = EXPANSION * width
    for block in range(blocks):
      name = f"layer{stage + 1}/{block}"
      shapes[f"{name}/conv1"] = (1, 1, inner, width)
      shapes[f"{name}/conv2"] = (3, 3, width, width)
      shapes[f"{name}/conv3"] = (1, 1, width, outer)
      if block == 0:
        shapes[f"{name}/project"] = (1, 1, inner, outer)
      inner = outer
  return shapes


def init_params(
  spec: ResNetSpec, key: Key[Array, ""], norm: bool = False
) -> dict[str, Any]:
  """Random parameters, {path: {'kernel', 'bias'}}.

  Kernels are He-normal. The last one of each block is divided by the root of
  the number of blocks, so that without normalisation features keep their size.

  Args:
    spec: the network.
    key: of the draw.
    norm: with group-norm, 'scale' and 'offset' in place of 'bias'.
  """
  shapes = kernel_shapes(spec)
  keys = jax.random.split(key, len(shapes))
  params = {}
  for (path, shape), one in zip(shapes.items(), keys, strict=True):
    params[path] = conv.init(one, shape, bias=not norm, norm=norm)
    if path.endswith("/conv3"):
      params[path]["kernel"] /= sum(spec.blocks) ** 0.5
  return params


def fold(
  kernel: Float[np.ndarray, "h w i o"],
  scale: Float[np.ndarray, " o"],
  bias: Float[np.ndarray, " o"],
  mean: Float[np.ndarray, " o"],
  var: Float[np.ndarray, " o"],
) -> dict[str, np.ndarray]:
  """Multiplies batch-norm with running statistics into a convolution.

    norm(x) = (x - mean) scale / sqrt(var + 1e-5) + bias

  Worked out in float64.

  Returns:
    'kernel' and 'bias' of the convolution that does both, float32.

  Example:
    >>> one = np.ones(1)
    >>> folded = fold(np.ones((1, 1, 1, 1)), 6 * one, one, one, 4 * one - 1e-5)
    >>> folded["kernel"].item(), folded["bias"].item()
    (3.0, -2.0)
  """
  factor = scale.astype(np.float64) / np.sqrt(
    var.astype(np.float64) + _NORM_EPS
  )
  return {
    "kernel": (kernel * factor[None, None, None]).astype(np.float32),
    "bias": (bias - mean * factor).astype(np.float32),
  }


def apply(
  params: dict[str, Any], spec: ResNetSpec, pixels: Float[Array, "b h w 3"]
) -> Float[Array, "b d"]:
  """Encodes tiles.

  Returns:
    Features, float32: the mean over the last stage's pixels.

  Raises:
    ValueError: Tiles are too small.
  """
  if min(pixels.shape[1:3]) < spec.least_px:
    raise ValueError(
      f"config.encoder.tile_px = {min(pixels.shape[1:3])}: a ResNet of "
      f"{len(spec.blocks)} stages needs {spec.least_px} or more"
    )

  *_, x = maps(params, spec, pixels)
  return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def maps(
  params: dict[str, Any],
  spec: ResNetSpec,
  pixels: Float[Array, "b h w 3"],
  strides: tuple[int, ...] = (1, 2, 2, 2),
) -> tuple[Float[Array, "b h2 w2 c"], ...]:
  """Features after the stem, of stride 4, and after each stage.

  Args:
    params: of `init_params`, or of a file.
    spec: the network.
    pixels: normalised.
    strides: of each stage; weights fit any.
  """

  def convolve(path: str, x: Array, stride: int = 1) -> Array:
    return conv.apply(params[path], x, stride)

  x = jax.nn.relu(convolve("conv1", pixels.astype(spec.dtype), stride=2))
  found = [x := conv.max_pool(x)]
  for stage, blocks in enumerate(spec.blocks):
    for block in range(blocks):
      name = f"layer{stage + 1}/{block}"
      stride = strides[stage] if block == 0 else 1
      shortcut = convolve(f"{name}/project", x, stride) if block == 0 else x
      x = jax.nn.relu(convolve(f"{name}/conv1", x))
      x = jax.nn.relu(convolve(f"{name}/conv2", x, stride))
      x = jax.nn.relu(convolve(f"{name}/conv3", x) + shortcut)
    found.append(x)
  return tuple(found)
