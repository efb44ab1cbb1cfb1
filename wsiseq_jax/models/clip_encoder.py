r"""Clips as frames in time: a ViT for each frame, a transformer over frames.

    pixels [b,t,h,w,c] --frame by frame--> conv stem --> [b*t, n, d]
      --CLS, + position--> ViT, LayerNorm --> CLS: frame features [b,t,d]
      --+ position, + time--> CLS, temporal blocks --> clip feature [b,e]
                                                  \--> frame outputs [b,t,e]

Frame features depend neither on other frames nor on time: they can be cached,
and a probe may pool them anew (`TemporalEncoder` takes another class token).
Padded frames are keys that nobody sees.

Deviations from the reference: GroupNorm with one group in place of batch-norm,
which would tie the views of a batch together and behave otherwise in
evaluation (projections are standardised where they are compared,
`losses.info_nce`); no dropout, so that the target of frame prediction does not
move; query and value have biases; predictions start from frame features.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsiseq_jax import parallel
from wsiseq_jax.models import vit
from wsiseq_jax.models.rngs import Rngs
from wsiseq_jax.models.time_embedding import TimeEmbedding

OBJECTIVES = ("contrastive", "navigation", "masked_frames", "next_frame")


SIZES: dict[str, dict[str, int]] = {
  name: dict(zip(("width", "depth", "heads"), size, strict=True))
  for name, size in {
    "smoke": (16, 1, 2),
    "demo": (64, 2, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
  }.items()
}


@dataclasses.dataclass(frozen=True)
class ClipEncoderConfig:
  """Shape of a clip encoder and its heads.

  Raises:
    ValueError: At construction, naming the config key that cannot be.

  Example:
    >>> ClipEncoderConfig(image_px=(64, 96)).grid
    (4, 6)
  """

  frames: int = 8  # frames of a clip
  # Height and width of a frame in pixels.
  image_px: tuple[int, int] = (128, 128)
  patch: int = 16  # stride of the conv stem in pixels, a power of two
  channels: int = 3  # image channels
  # width, depth, heads: Blocks of the frame encoder.
  width: int = 384
  depth: int = 12
  heads: int = 6
  # temporal_width, temporal_depth, temporal_heads: Those over frames.
  temporal_width: int = 384
  temporal_depth: int = 3
  temporal_heads: int = 6
  projector_width: int = 2048  # hidden channels of all heads
  projection: int = 128  # channels in which views are compared
  # Which heads there are: 'contrastive' has the projector alone, 'navigation'
  # also shifts by time (LTN), 'masked_frames' (TVRL) and 'next_frame' also
  # predict frame features.
  objective: str = "contrastive"
  # Whether the temporal encoder is told the time of its frames.
  uses_time: bool = False
  learns_time: bool = True  # whether the time embedding has linear layers
  # Whether time counts from the clip's first frame, rather than from the
  # record's.
  relative_time: bool = True
  # time_shortest, time_longest: See `time_embedding.sinusoid`.
  time_shortest: float = 1.0
  time_longest: float = 100.0
  directions: int = 64  # directions of LTN's shift
  norm_eps: float = 1e-5  # LayerNorm epsilon
  # dtype, remat, attention_kernel: See `vit.BlockSpec`.
  dtype: str = "float32"
  remat: str = "none"
  attention_kernel: str = "auto"

  def __post_init__(self):
    stages = self.patch.bit_length() - 1
    for axis, side in zip("hw", self.image_px, strict=True):
      if side % self.patch:
        raise ValueError(
          f"config.data.image_px = {self.image_px}: {axis} must be a multiple "
          f"of config.model.patch = {self.patch}"
        )
    for prefix in ("", "temporal_"):
      width, heads = (getattr(self, prefix + n) for n in ("width", "heads"))
      if width % heads:
        raise ValueError(
          f"config.model.{prefix}heads = {heads} does not divide the width "
          f"{width}"
        )
    if self.width % 2 ** (stages - 1):
      raise ValueError(
        f"the width {self.width} of config.model.size cannot be halved "
        f"{stages - 1} times, as config.model.patch = {self.patch} needs"
      )
    if self.directions > self.temporal_width:
      raise ValueError(
        f"config.objective.directions = {self.directions}: there are only "
        f"{self.temporal_width} orthogonal ones"
      )

  @property
  def grid(self) -> tuple[int, int]:
    """Tokens of a frame along (h, w)."""
    return self.image_px[0] // self.patch, self.image_px[1] // self.patch

  @property
  def stem_widths(self) -> tuple[int, ...]:
    """Channels after each convolution of the stem."""
    stages = self.patch.bit_length() - 1
    return tuple(self.width // 2 ** (stages - 1 - i) for i in range(stages))

  @property
  def frame_spec(self) -> vit.BlockSpec:
    """Blocks of the frame encoder."""
    return self._spec(self.width, self.depth, self.heads)

  @property
  def temporal_spec(self) -> vit.BlockSpec:
    """Blocks of the temporal encoder."""
    return self._spec(
      self.temporal_width, self.temporal_depth, self.temporal_heads
    )

  def _spec(self, width: int, depth: int, heads: int) -> vit.BlockSpec:
    numerics = self.norm_eps, self.dtype, self.remat, self.attention_kernel
    return vit.BlockSpec(width, depth, heads, 4 * width, *numerics)


def _linear(inner: int, outer: int, rngs: nnx.Rngs, dtype: str = "float32"):
  return nnx.Linear(
    inner,
    outer,
    kernel_init=nnx.initializers.xavier_uniform(),
    dtype=jnp.dtype(dtype),
    rngs=rngs,
  )


def _token(width: int, rngs: nnx.Rngs) -> nnx.Param:
  return nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))


class ConvStem(nnx.Module):
  """Convolutions of stride two, then a linear layer (Xiao et al., 2021)."""

  def __init__(self, config: ClipEncoderConfig, rngs: nnx.Rngs):
    conv = functools.partial(
      nnx.Conv,
      padding=1,
      strides=2,
      kernel_size=(3, 3),
      use_bias=False,
      kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
      dtype=jnp.dtype(config.dtype),
      rngs=rngs,
    )
    widths = (config.channels, *config.stem_widths)
    self.convs = nnx.List(
      [conv(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    )
    norm = functools.partial(
      nnx.GroupNorm, num_groups=1, dtype=jnp.dtype(config.dtype), rngs=rngs
    )
    self.norms = nnx.List([norm(width) for width in config.stem_widths])
    self.out = _linear(config.width, config.width, rngs, config.dtype)

  def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    """Turns frames into tokens, by row and column."""
    x = pixels
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = jax.nn.relu(norm(conv(x)))
    return self.out(x.reshape(x.shape[0], -1, x.shape[-1]))


class FrameEncoder(nnx.Module):
  """A ViT; one feature vector a frame."""

  def __init__(self, config: ClipEncoderConfig, rngs: nnx.Rngs):
    self.stem = ConvStem(config, rngs)
    self.cls_token = _token(config.width, rngs)
    tokens = 1 + math.prod(config.grid)
    self.pos_embed = nnx.Param(jnp.zeros((tokens, config.width)))
    self.blocks = vit.make_blocks(config.frame_spec, rngs)
    self.norm = vit.make_norm(config.width, config.norm_eps, "float32", rngs)
    self.config = config

  def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    """Encodes frames, each by itself; float32."""
    x = self.stem(parallel.constrain_batch(pixels))
    cls = self.cls_token[...].astype(x.dtype)
    cls = jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([cls, x], axis=1)
    x = x + self.pos_embed[...].astype(x.dtype)[None]
    x = vit.run_blocks(self.blocks, x, self.config.remat)
    return self.norm(x[:, 0]).astype(jnp.float32)


class TemporalEncoder(nnx.Module):
  """Transformer over a class token and the frames of a clip; no final norm."""

  def __init__(self, config: ClipEncoderConfig, rngs: nnx.Rngs):
    width = config.temporal_width
    if config.width != width:
      self.project = _linear(config.width, width, rngs)
    self.pos_embed = nnx.Param(jnp.zeros((config.frames, width)))
    self.cls_token = _token(width, rngs)
    if config.uses_time:
      periods = config.time_shortest, config.time_longest
      self.time = TimeEmbedding(width, *periods, config.learns_time, rngs)
    self.blocks = vit.make_blocks(config.temporal_spec, rngs)
    self.config = config

  def __call__(
    self,
    frames: Float[Array, "b t d"],
    time: Float[Array, "b t"],
    visible: Bool[Array, "b t"],
    is_causal: bool = False,
    cls_token: Float[Array, " e"] | None = None,
  ) -> tuple[Float[Array, "b e"], Float[Array, "b t e"]]:
    """Encodes clips."""
    config = self.config
    x = (
      self.project(frames) if config.width != config.temporal_width else frames
    )
    x = x + self.pos_embed[...][None]
    if config.uses_time:
      if config.relative_time:
        time = time - time[:, :1]
      x = x + self.time(time)
    token = self.cls_token[...] if cls_token is None else cls_token
    token = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([token, x], axis=1).astype(jnp.dtype(config.dtype))
    mask = attention_mask(visible, is_causal)
    x = vit.run_blocks(self.blocks, x, config.remat, mask)
    x = x.astype(jnp.float32)
    return x[:, 0], x[:, 1:]


def attention_mask(
  visible: Bool[Array, "b t"], is_causal: bool
) -> Bool[Array, "b n n"]:
  """Who sees whom among a class token and t frames.

  All see the class token and visible frames. If causal, frames see themselves
  and earlier ones only: through the class token the next layer would see the
  future.
  """
  b, t = visible.shape
  keys = jnp.concatenate([jnp.ones((b, 1), bool), visible], axis=1)
  mask = jnp.broadcast_to(keys[:, None, :], (b, t + 1, t + 1))
  if not is_causal:
    return mask
  past = jnp.tril(jnp.ones((t + 1, t + 1), bool))
  past = past.at[0].set(True).at[1:, 0].set(False)
  # A frame that is padding sees at least itself: softmax needs one key.
  itself = jnp.eye(t + 1, dtype=bool)
  return (mask & past[None]) | itself[None]


class Head(nnx.Module):
  """Two linear layers with ReLU between, after a LayerNorm if asked for."""

  def __init__(
    self, inner: int, hidden: int, outer: int, norm: bool, rngs: nnx.Rngs
  ):
    self.norm = vit.make_norm(inner, 1e-5, "float32", rngs) if norm else None
    self.first = _linear(inner, hidden, rngs)
    self.second = _linear(hidden, outer, rngs)

  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    """Maps features."""
    x = self.norm(x) if self.norm is not None else x
    return self.second(jax.nn.relu(self.first(x)))


class Navigation(nnx.Module):
  """LTN: moves a clip's feature by the time between two clips.

    h + Q a(h, e(dt)),  Q orthonormal [d, k]

  All that depends on time lies in k directions.

  Deviation: dt has a sign; the reference takes its absolute value.

  Reference: Yang et al., Self-supervised video representation learning via
  latent time navigation, AAAI 2023.
  """

  def __init__(self, config: ClipEncoderConfig, rngs: nnx.Rngs):
    width, count = config.temporal_width, config.directions
    self.directions = nnx.Param(
      jax.random.normal(rngs.params(), (count, width))
    )
    periods = config.time_shortest, config.time_longest
    self.time = TimeEmbedding(width, *periods, True, rngs)
    self.amount = Head(2 * width, config.projector_width, count, False, rngs)

  def basis(self) -> Float[Array, "d k"]:
    """The orthonormal directions."""
    return jnp.linalg.qr(self.directions[...].T)[0]

  def __call__(
    self, clips: Float[Array, "b d"], interval: Float[Array, " b"]
  ) -> Float[Array, "b d"]:
    """Moves features by times, in the unit of the data."""
    told = jnp.concatenate([clips, self.time(interval)], axis=-1)
    return clips + self.amount(told) @ self.basis().T


class ClipEncoder(nnx.Module):
  """Frame encoder, temporal encoder and the heads of an objective."""

  def __init__(self, config: ClipEncoderConfig, rngs: nnx.Rngs):
    self.frame = FrameEncoder(config, rngs)
    self.temporal = TemporalEncoder(config, rngs)
    width, hidden = config.temporal_width, config.projector_width
    self.projector = Head(width, hidden, config.projection, False, rngs)
    if config.objective in ("masked_frames", "next_frame"):
      self.predictor = Head(width, hidden, config.width, True, rngs)
    if config.objective == "masked_frames":
      self.mask_token = nnx.Param(jnp.zeros(config.width))
    if config.objective == "navigation":
      self.navigation = Navigation(config, rngs)
    self.config = config

  def encode_frames(
    self, pixels: Float[Array, "b t h w c"]
  ) -> Float[Array, "b t d"]:
    """Features of frames of normalised clips, each by itself."""
    wanted = (*self.config.image_px, self.config.channels)
    if pixels.shape[2:] != wanted:
      raise ValueError(
        f"frames of (h, w, c) = {pixels.shape[2:]} given to a model of "
        f"{wanted} (config key data.image_px)"
      )
    b, t = pixels.shape[:2]
    return self.frame(pixels.reshape(b * t, *wanted)).reshape(b, t, -1)


def init_params(config: ClipEncoderConfig, key: Any) -> Any:
  """Fresh parameters, a nested dictionary."""
  model = ClipEncoder(config, Rngs(key))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
