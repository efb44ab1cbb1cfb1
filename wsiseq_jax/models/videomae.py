"""VideoMAE: an encoder of visible tokens, a light decoder of the hidden ones.

    pixels [b,t,h,w,c] --patchify--> patches [b,n,p]     n = all tokens
      --gather visible--> [b,k,p] --linear + position--> encoder [b,k,d]
      --linear, + position--> [b,k,e] | mask token + position [b,m,e]
      --decoder--> its last m outputs --linear--> prediction [b,m,p]

The encoder never sees a hidden pixel and costs only k tokens. `visible` lists
the k tokens the encoder sees; `decode` lists the m positions the decoder is
asked for. In VideoMAE (V1) these are all other tokens. In V2's dual masking
they are a cell pattern that may overlap `visible`; such a position gets a mask
token like any other, and the loss leaves it out by its weight.

Tokens are numbered time-major, then row, then column. Every list is an index
array used with `take_along_axis`: masks as booleans, or `x[rows, index]`, would
make the compiler gather the batch from all devices.

References: Tong et al., VideoMAE, NeurIPS 2022. Wang et al., VideoMAE V2, CVPR
2023. He et al., Masked autoencoders are scalable vision learners, CVPR 2022.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from wsiseq_jax.models import posemb, vit
from wsiseq_jax.models.tokens import (
  patchify,
  pool_features,
  take_tokens,
  unpatchify,
)

__all__ = [
  "SIZES",
  "VideoMAE",
  "VideoMAEConfig",
  "patchify",
  "pool_features",
  "take_tokens",
  "unpatchify",
]

# Where predictions of plain pixels in [0, 1] start.
_TISSUE_GREY = 0.7


def _size(width, depth, heads, decoder_width, decoder_heads, **more):
  """One row of `SIZES`; the MLPs are four times as wide unless said."""
  row = dict(
    width=width,
    depth=depth,
    heads=heads,
    mlp_width=4 * width,
    decoder_width=decoder_width,
    decoder_depth=4,
    decoder_heads=decoder_heads,
    decoder_mlp_width=4 * decoder_width,
  )
  return row | more


# Widths are VideoMAE V1's; V2 differs in the decoder of huge (512 wide). V1
# used 12 decoder blocks for large and huge, V2 uses 4 for every size, and so do
# we: set model.decoder_depth=12 for V1's. Deviation: V2 applies giant's MLP
# ratio of 48/11 to the decoder as well (2234 channels, no multiple of eight);
# here the decoder's is 4.
SIZES: dict[str, dict[str, Any]] = {
  "tiny": _size(32, 2, 2, 16, 1, decoder_depth=1),
  "demo": _size(128, 4, 4, 64, 2, decoder_depth=2),
  "small": _size(384, 12, 6, 192, 3),
  "base": _size(768, 12, 12, 384, 6),
  "large": _size(1024, 24, 16, 512, 8),
  "huge": _size(1280, 32, 16, 640, 8),
  # Made for model.patch=(2, 14, 14).
  "giant": _size(1408, 40, 16, 512, 8, mlp_width=6144),
}


@dataclasses.dataclass(frozen=True)
class VideoMAEConfig:
  """Shape of a VideoMAE; fields are keys of `config.model` or `config.data`.

  Raises:
    ValueError: At construction, naming the config key that cannot be.
  """

  frames: int = 16  # frames of a clip
  image_px: Sequence[int] = (224, 224)  # height and width of a frame in pixels
  # Frames, height and width of a cube, in frames and pixels.
  patch: Sequence[int] = (2, 16, 16)
  channels: int = 3  # image channels
  width: int = 384  # MaeEncoder channels
  depth: int = 12  # MaeEncoder blocks
  heads: int = 6  # MaeEncoder attention heads
  mlp_width: int = 1536  # hidden channels of the encoder MLP
  decoder_width: int = 192  # MaeDecoder channels
  decoder_depth: int = 4  # MaeDecoder blocks
  decoder_heads: int = 3  # MaeDecoder attention heads
  decoder_mlp_width: int = 768  # hidden channels of the decoder MLP
  # Whether predictions are in units of each patch's mean and deviation
  # (`losses.normalised_patch_target`) or plain pixels.
  normalise_target: bool = True
  latent: bool = False  # whether features are predicted, not pixels
  # Of tokens, one of `posemb.POSITIONS`: of the flat index (what VideoMAE's
  # weights need), of (t, y, x) apart, or of the place in the tissue. Panels of
  # a walk or a series share no tissue: there `tissue` is `separable`.
  positions: str = "flat"
  # Tokens (t, h, w) the weights were trained with, if they differ from `grid`:
  # position tables are resampled from it. None means `grid`.
  trained_grid: Sequence[int] | None = None
  norm_eps: float = 1e-6  # LayerNorm epsilon
  # Epsilon of the decoder's last LayerNorm, which Hugging Face keeps apart.
  decoder_norm_eps: float = 1e-6
  # Compute dtype of matrix products, 'float32' or 'bfloat16'.
  dtype: str = "float32"
  remat: str = "none"  # 'none', 'dots' or 'full', see `vit.BlockSpec`
  attention_kernel: str = "auto"  # which kernel, see `attention.attend`

  def __post_init__(self):
    for name in ("image_px", "patch", "trained_grid"):
      # Lists come from config files; hashing needs tuples.
      value = getattr(self, name)
      if value is not None:
        object.__setattr__(self, name, tuple(int(v) for v in value))
    _check(self)

  @property
  def grid(self) -> tuple[int, int, int]:
    """Tokens along (t, h, w)."""
    return (
      self.frames // self.patch[0],
      self.image_px[0] // self.patch[1],
      self.image_px[1] // self.patch[2],
    )

  @property
  def tokens(self) -> int:
    """Tokens of a whole clip."""
    return math.prod(self.grid)

  @property
  def patch_values(self) -> int:
    """Values of one cube: its pixels times its channels."""
    return math.prod(self.patch) * self.channels

  @property
  def predicted_values(self) -> int:
    """Values the decoder predicts of a token."""
    return self.width if self.latent else self.patch_values

  @property
  def encoder_spec(self) -> vit.BlockSpec:
    """The encoder's blocks."""
    return vit.BlockSpec(
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      mlp_width=self.mlp_width,
      norm_eps=self.norm_eps,
      dtype=self.dtype,
      remat=self.remat,
      attention_kernel=self.attention_kernel,
    )

  @property
  def decoder_spec(self) -> vit.BlockSpec:
    """The decoder's blocks."""
    return dataclasses.replace(
      self.encoder_spec,
      width=self.decoder_width,
      depth=self.decoder_depth,
      heads=self.decoder_heads,
      mlp_width=self.decoder_mlp_width,
    )


def _check(config: VideoMAEConfig) -> None:
  """Rules between keys; the task's `Config` checks each key alone."""
  for axis, key, size, cell in (
    ("t", "frames", config.frames, config.patch[0]),
    ("h", "image_px", config.image_px[0], config.patch[1]),
    ("w", "image_px", config.image_px[1], config.patch[2]),
  ):
    if size % cell:
      raise ValueError(
        f"config.model.patch = {config.patch} does not divide the clip along "
        f"{axis}: config.data.{key} gives {size}, which is no multiple of "
        f"{cell}"
      )
  for prefix in ("", "decoder_"):
    width, heads = (getattr(config, prefix + n) for n in ("width", "heads"))
    if width % heads:
      raise ValueError(
        f"config.model.{prefix}width = {width} is not divisible by "
        f"config.model.{prefix}heads = {heads}"
      )


def _uniform_by_fan_in(fan_in: int):
  """Uniform on +-1/sqrt(fan_in): the framework default the recipe keeps."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _positions(config, width, index, dtype, shift_px) -> Float[Array, "b k d"]:
  """Position vectors of the listed tokens; of all tokens if `index` is None."""
  if config.positions == "flat":
    table = posemb.position_table(config.grid, width, config.trained_grid)
    table = jnp.asarray(table, dtype)
    return table[None] if index is None else jnp.take(table, index, axis=0)
  found = posemb.grid_coordinates(config.grid, config.trained_grid)[None]
  if config.positions == "tissue":
    if shift_px is None:
      raise ValueError("model.positions = 'tissue' needs the clips' shift_px")
    found = found + _tissue_shift(config, shift_px)
  found = jnp.asarray(found)
  if index is not None:
    found = jnp.broadcast_to(found, (len(index), *found.shape[1:]))
    found = take_tokens(found, index)
  return posemb.sinusoid_3d(found, width).astype(dtype)


def _tissue_shift(
  config, shift_px: Float[Array, "b t 2"]
) -> Float[Array, "b n 3"]:
  """How far tissue moved (t, y, x) since the first frame, in tokens."""
  t, h, w = config.grid
  shift = (shift_px - shift_px[:, :1]).reshape(-1, t, config.patch[0], 2)
  x, y = jnp.moveaxis(shift.mean(axis=2), -1, 0)
  y, x = y / config.patch[1], x / config.patch[2]
  return jnp.repeat(jnp.stack([0 * x, y, x], axis=-1), h * w, axis=1)


class MaeEncoder(nnx.Module):
  """Patch embedding, blocks, final LayerNorm."""

  def __init__(self, config: VideoMAEConfig, rngs: nnx.Rngs):
    init = _uniform_by_fan_in(config.patch_values)
    self.patch = nnx.Linear(
      config.patch_values,
      config.width,
      kernel_init=init,
      bias_init=init,
      dtype=jnp.dtype(config.dtype),
      rngs=rngs,
    )
    self.blocks = vit.make_blocks(config.encoder_spec, rngs)
    self.norm = vit.make_norm(config.width, config.norm_eps, "float32", rngs)
    self.config = config

  def __call__(
    self,
    patches: Float[Array, "b n p"],
    visible: Int[Array, "b k"] | None,
    shift_px: Float[Array, "b t 2"] | None,
  ) -> tuple[Float[Array, "b k d"], dict[str, Array]]:
    """Encodes the visible patches; see `VideoMAE.encode`."""
    config = self.config
    if visible is not None:
      patches = take_tokens(patches, visible)
    x = self.patch(patches)
    embedded = x + _positions(config, config.width, visible, x.dtype, shift_px)
    x = vit.run_blocks(self.blocks, embedded, config.remat)
    x = self.norm(x).astype(jnp.float32)
    return x, {"encoder/embedded": embedded, "encoder/tokens": x}


class MaeDecoder(nnx.Module):
  """Projection from the encoder, mask token, blocks, head."""

  def __init__(self, config: VideoMAEConfig, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    width = config.decoder_width
    self.project = nnx.Linear(
      config.width,
      width,
      use_bias=False,
      kernel_init=_uniform_by_fan_in(config.width),
      dtype=dtype,
      rngs=rngs,
    )
    # Normal of deviation 0.02, cut at one deviation.
    self.mask_token = nnx.Param(
      0.02 * jax.random.truncated_normal(rngs.params(), -1.0, 1.0, (width,))
    )
    self.blocks = vit.make_blocks(config.decoder_spec, rngs)
    self.norm = vit.make_norm(
      width, config.decoder_norm_eps, config.dtype, rngs
    )
    kernel_init = nnx.initializers.xavier_uniform()
    bias_init = nnx.initializers.zeros_init()
    if not config.normalise_target:
      # Pixels of tissue scatter little around a bright colour. A head made for
      # targets of mean 0 and deviation 1 would take hundreds of steps to find
      # that out: start there.
      kernel_init = nnx.initializers.variance_scaling(
        0.01, "fan_avg", "uniform"
      )
      bias_init = nnx.initializers.constant(_TISSUE_GREY)
    self.head = nnx.Linear(
      width,
      config.predicted_values,
      kernel_init=kernel_init,
      bias_init=bias_init,
      dtype=dtype,
      preferred_element_type=jnp.float32,
      rngs=rngs,
    )
    self.config = config

  def __call__(
    self,
    tokens: Float[Array, "b k d"],
    visible: Int[Array, "b k"],
    decode: Int[Array, "b m"],
    shift_px: Float[Array, "b t 2"] | None,
  ) -> tuple[Float[Array, "b m p"], dict[str, Array]]:
    """Predicts the patches at `decode`; see `VideoMAE.__call__`."""
    width = self.config.decoder_width
    seen = self.project(tokens)
    seen += _positions(self.config, width, visible, seen.dtype, shift_px)
    hidden = self.mask_token[...].astype(seen.dtype)[None, None]
    hidden += _positions(self.config, width, decode, seen.dtype, shift_px)
    x = jnp.concatenate([seen, hidden], axis=1)
    x = vit.run_blocks(self.blocks, x, self.config.remat)
    x = x[:, -decode.shape[1] :]

    def predict_rows(x):
      return self.head(vit.as_rows(x)).reshape(*decode.shape, -1)

    # Only a CPU gains from rows here; a TPU would move a quarter more bytes.
    prediction = lax.platform_dependent(
      self.norm(x), cpu=predict_rows, default=self.head
    )
    return prediction, {"decoder/tokens": x}


class VideoMAE(nnx.Module):
  """Masked autoencoder of clips."""

  def __init__(self, config: VideoMAEConfig, rngs: nnx.Rngs):
    self.encoder = MaeEncoder(config, rngs)
    self.decoder = MaeDecoder(config, rngs)
    self.config = config

  def encode(
    self,
    pixels: Float[Array, "b t h w c"],
    visible: Int[Array, "b k"] | None = None,
    shift_px: Float[Array, "b t 2"] | None = None,
  ) -> tuple[Float[Array, "b k d"], dict[str, Array]]:
    """Encodes visible tokens, or all of them.

    Args:
      pixels: Normalised clips.
      visible: Token numbers the encoder sees, ascending; None means all.
      shift_px: `Clips.shift_px`, which positions in the tissue need.

    Returns:
      Tokens after the final LayerNorm (if the model has one), float32, and the
      named intermediates.

    Raises:
      ValueError: If the clips are not those of the configuration.
    """
    config = self.config
    expected = (config.frames, *config.image_px, config.channels)
    if pixels.shape[1:] != expected:
      raise ValueError(
        f"clips of shape (t, h, w, c)={pixels.shape[1:]} given to a model of "
        f"data.frames={config.frames}, data.image_px={config.image_px}, "
        f"model.channels={config.channels}"
      )
    return self.encoder(patchify(pixels, config.patch), visible, shift_px)

  def __call__(
    self,
    pixels: Float[Array, "b t h w c"],
    visible: Int[Array, "b k"],
    decode: Int[Array, "b m"],
    shift_px: Float[Array, "b t 2"] | None = None,
  ) -> tuple[Float[Array, "b m p"], dict[str, Array]]:
    """Predicts the patches at `decode` from the patches at `visible`."""
    tokens, encoded = self.encode(pixels, visible, shift_px)
    prediction, decoded = self.decoder(tokens, visible, decode, shift_px)
    return prediction, encoded | decoded
