"""Shape of the clip encoder (`clip.py`), checked before anything is built."""

import dataclasses

from wsiseq_jax.models import attention, vit

DTYPES = ("float32", "bfloat16")
OBJECTIVES = ("contrastive", "navigation", "masked_frames", "next_frame")


def _size(width: int, depth: int, heads: int) -> dict[str, int]:
  return dict(width=width, depth=depth, heads=heads)


SIZES: dict[str, dict[str, int]] = {
  "smoke": _size(16, 1, 2),
  "demo": _size(64, 2, 2),
  "tiny": _size(192, 12, 3),
  "small": _size(384, 12, 6),
  "base": _size(768, 12, 12),
  "large": _size(1024, 24, 16),
}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Shape of a clip encoder and its heads.

  Attributes:
    frames: Frames of a clip.
    image_px: Height and width of a frame in pixels.
    patch: Stride of the conv stem in pixels, a power of two.
    channels: Image channels.
    width: Channels of the frame encoder.
    depth: Its blocks.
    heads: Its attention heads.
    temporal_width: Channels of the temporal encoder.
    temporal_depth: Its blocks.
    temporal_heads: Its attention heads.
    projector_width: Hidden channels of all heads.
    projection: Channels in which views are compared.
    objective: Which heads there are: 'contrastive' has the projector alone,
      'navigation' also shifts by time (LTN), 'masked_frames' (TVRL) and
      'next_frame' also predict frame features.
    uses_time: Whether the temporal encoder is told the time of its frames.
    learns_time: Whether the time embedding has linear layers.
    relative_time: Whether a clip's time counts from its own first frame,
      rather than from the record's.
    time_shortest: See `time_embedding.sinusoid`.
    time_longest: See `time_embedding.sinusoid`.
    directions: Directions of LTN's shift.
    norm_eps: LayerNorm epsilon.
    dtype: Compute dtype of matrix products, 'float32' or 'bfloat16'.
    remat: 'none', 'dots' or 'full', see `vit.BlockSpec`.
    attention_kernel: Which kernel within a frame, see `attention.attend`.

  Raises:
    ValueError: At construction, naming the config key that cannot be.

  Example:
    >>> ClipConfig(image_px=(64, 96)).grid
    (4, 6)
  """

  frames: int = 8
  image_px: tuple[int, int] = (128, 128)
  patch: int = 16
  channels: int = 3
  width: int = 384
  depth: int = 12
  heads: int = 6
  temporal_width: int = 384
  temporal_depth: int = 3
  temporal_heads: int = 6
  projector_width: int = 2048
  projection: int = 128
  objective: str = "contrastive"
  uses_time: bool = False
  learns_time: bool = True
  relative_time: bool = True
  time_shortest: float = 1.0
  time_longest: float = 100.0
  directions: int = 64
  norm_eps: float = 1e-5
  dtype: str = "float32"
  remat: str = "none"
  attention_kernel: str = "auto"

  def __post_init__(self):
    stages = int(self.patch).bit_length() - 1
    if self.patch < 2 or self.patch != 2**stages:
      raise ValueError(
        f"config.model.patch = {self.patch}: must be 2, 4, 8, 16, ..."
      )
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
    for key, allowed in (
      ("model.dtype", DTYPES),
      ("model.remat", vit.REMAT),
      ("model.attention_kernel", attention.KERNELS),
      ("objective.kind", OBJECTIVES),
    ):
      field = "objective" if key == "objective.kind" else key.split(".")[1]
      if getattr(self, field) not in allowed:
        raise ValueError(
          f"config.{key} = {getattr(self, field)!r}: must be one of {allowed}"
        )

  @property
  def grid(self) -> tuple[int, int]:
    """Tokens of a frame along (h, w)."""
    return self.image_px[0] // self.patch, self.image_px[1] // self.patch

  @property
  def stem_widths(self) -> tuple[int, ...]:
    """Channels after each convolution of the stem.

    Example:
      >>> ClipConfig().stem_widths
      (48, 96, 192, 384)
    """
    stages = self.patch.bit_length() - 1
    return tuple(self.width // 2 ** (stages - 1 - i) for i in range(stages))

  @property
  def frame_spec(self) -> vit.BlockSpec:
    """Blocks of the frame encoder."""
    return vit.BlockSpec(
      width=self.width,
      depth=self.depth,
      heads=self.heads,
      mlp_width=4 * self.width,
      norm_eps=self.norm_eps,
      dtype=self.dtype,
      remat=self.remat,
      attention_kernel=self.attention_kernel,
    )

  @property
  def temporal_spec(self) -> vit.BlockSpec:
    """Blocks of the temporal encoder."""
    return dataclasses.replace(
      self.frame_spec,
      width=self.temporal_width,
      depth=self.temporal_depth,
      heads=self.temporal_heads,
      mlp_width=4 * self.temporal_width,
    )
