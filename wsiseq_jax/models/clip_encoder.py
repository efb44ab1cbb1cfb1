r"""Clips as frames in time: a ViT for each frame, a transformer over frames.

    pixels [b,t,h,w,c] --frame by frame--> conv stem --> [b*t, n, d]
      --CLS, + position--> ViT, LayerNorm --> CLS: frame features [b,t,d]
      --+ position, + time--> CLS, temporal blocks --> clip feature [b,e]
                                                  \--> frame outputs [b,t,e]

Frame features do not depend on the other frames, nor on time: they can be
computed once and cached, and a probe may pool them anew (`TemporalEncoder`
takes another class token). Only the temporal blocks see when frames were taken.

Padded frames are keys that nobody sees: their content changes nothing.

No layer has statistics of the batch. Batch-norm would need its mean over all
devices, would tie the views of a batch together, and behaves otherwise in
evaluation; GroupNorm with one group takes its place in the stem. The heads have
none; projections are standardised where they are compared, over the global
batch (`contrastive_losses.info_nce`).

Deviations from the reference (besides): no dropout (two passes over a frame
give one feature, so that the target of frame prediction is no moving one);
query and value have biases; predictions start from frame features as they are.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsiseq_jax import parallel
from wsiseq_jax.models import vit
from wsiseq_jax.models.clip_config import ClipConfig
from wsiseq_jax.models.time_embedding import TimeEmbedding


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
  """Convolutions of stride two, each halving the picture, then one to tokens.

  Reference: Xiao et al., Early convolutions help transformers see better, 2021.
  """

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
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
    self.norms = nnx.List(
      [
        nnx.GroupNorm(
          width, num_groups=1, dtype=jnp.dtype(config.dtype), rngs=rngs
        )
        for width in config.stem_widths
      ]
    )
    self.out = _linear(config.width, config.width, rngs, config.dtype)

  def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    """Turns frames into tokens, by row and column."""
    x = pixels
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = jax.nn.relu(norm(conv(x)))
    return self.out(x.reshape(x.shape[0], -1, x.shape[-1]))


class FrameEncoder(nnx.Module):
  """A ViT; one feature vector a frame."""

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
    self.stem = ConvStem(config, rngs)
    self.cls_token = _token(config.width, rngs)
    tokens = 1 + math.prod(config.grid)
    self.pos_embed = nnx.Param(jnp.zeros((tokens, config.width)))
    self.blocks = vit.make_blocks(config.frame_spec, rngs)
    self.norm = vit.make_norm(config.width, config.norm_eps, "float32", rngs)
    self.config = config

  def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
    """Encodes frames, each by itself; float32."""
    x = self.stem(parallel.by_rows(pixels))
    cls = jnp.broadcast_to(
      self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2])
    )
    x = jnp.concatenate([cls, x], axis=1)
    x = x + self.pos_embed[...].astype(x.dtype)[None]
    x = vit.run_blocks(self.blocks, x, self.config.remat)
    return self.norm(x[:, 0]).astype(jnp.float32)


class TemporalEncoder(nnx.Module):
  """Transformer over the frames of a clip and a class token.

  There is no norm at its end.
  """

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
    width = config.temporal_width
    if config.width != width:
      self.project = _linear(config.width, width, rngs)
    self.pos_embed = nnx.Param(jnp.zeros((config.frames, width)))
    self.cls_token = _token(width, rngs)
    if config.uses_time:
      self.time = TimeEmbedding(
        width,
        config.time_shortest,
        config.time_longest,
        config.learns_time,
        rngs,
      )
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
    """Encodes clips.

    Args:
      frames: Frame features.
      time: Of the frames, since the record's first one.
      visible: Frames that may be looked at, by others and by the class token.
      is_causal: Whether a frame sees only itself and earlier frames, and not
        the class token, which sees all of them.
      cls_token: Takes the place of the trained class token.

    Returns:
      Output of the class token and of the frames, float32.
    """
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

  The class token sees itself and all visible frames. Frames see the class token
  and all visible frames; if causal, only themselves and earlier ones: through
  the class token the next layer would see the future.

  Args:
    visible: Frames that may be looked at.
    is_causal: See above.

  Returns:
    `mask[i, q, k]`, whether token q of sample i sees token k; token 0 is the
    class token.

  Example:
    >>> mask = attention_mask(jnp.array([[True, True]]), True)
    >>> mask[0].astype(int).tolist()
    [[1, 1, 1], [0, 1, 0], [0, 1, 1]]
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

  so that all that depends on time lies in k directions, and the rest of the
  feature is the same at all times.

  Deviation: dt has a sign; the reference takes its absolute value, and with it
  a clip before and one after the first are the same.

  Reference: Yang et al., Self-supervised video representation learning via
  latent time navigation, AAAI 2023.
  """

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
    width, count = config.temporal_width, config.directions
    self.directions = nnx.Param(
      jax.random.normal(rngs.params(), (count, width))
    )
    self.time = TimeEmbedding(
      width, config.time_shortest, config.time_longest, True, rngs
    )
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


class ClipModel(nnx.Module):
  """Frame encoder, temporal encoder and the heads of an objective.

  Args:
    config: Shape and numerics.
    rngs: Source of the initial parameters, stream `params`.

  Example:
    >>> config = ClipConfig(frames=2, image_px=(32, 32), width=16, depth=1,
    ...   heads=2, temporal_width=16, temporal_depth=1, temporal_heads=2,
    ...   projector_width=8, projection=4, directions=4)
    >>> model = ClipModel(config, nnx.Rngs(0))
    >>> frames = model.encode_frames(jnp.zeros((3, 2, 32, 32, 3)))
    >>> clip, _ = model.temporal(
    ...   frames, jnp.zeros((3, 2)), jnp.ones((3, 2), bool))
    >>> frames.shape, model.projector(clip).shape
    ((3, 2, 16), (3, 4))
  """

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
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
    """Features of frames, each by itself.

    Args:
      pixels: Normalised clips.

    Raises:
      ValueError: Frames are not those of the configuration.
    """
    wanted = (*self.config.image_px, self.config.channels)
    if pixels.shape[2:] != wanted:
      raise ValueError(
        f"frames of (h, w, c) = {pixels.shape[2:]} given to a model of "
        f"{wanted} (config key data.image_px)"
      )
    b, t = pixels.shape[:2]
    return self.frame(pixels.reshape(b * t, *wanted)).reshape(b, t, -1)


def init_params(config: ClipConfig, key: Any) -> Any:
  """Fresh parameters, a nested dictionary."""
  model = ClipModel(config, nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
