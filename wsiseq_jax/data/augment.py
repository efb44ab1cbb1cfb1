"""Cuts clips out of stored panels on the device, inside the jitted step.

The host sends whole uint8 panels and the boxes of all stored frames. Choosing
frames, cropping, resizing and normalising happen here, for three reasons: they
are matrix products, hence nearly free on an accelerator; they depend on
`(key, step)` alone, hence a resumed run repeats them exactly; and several
differently cropped copies of one sequence cost no second JPEG decoding.

A crop is one source rectangle a frame, in panel pixels, and one resize. Frames
of a drift sequence overlap in their panel, so a pixel of tissue has the same
panel coordinate in every frame that shows it. `Clips.shift_px` hands this
coordinate on (scaled to output pixels), and `models.masking` uses it to make
masks that follow the tissue.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from wsiseq_jax.data import clip_sampling
from wsiseq_jax.models.tokens import IMAGENET_MEAN, IMAGENET_STD

# Corners, centre, edge middles and quarter points, in quarters of the room
# that a crop leaves: (y, x). From the multi-scale crop of the VideoMAE recipe.
_ANCHORS = tuple(
  (int(at[0]), int(at[1]))
  for at in "00 04 40 44 22 20 24 42 02 11 13 31 33".split()
)


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """What clips to cut: static numbers, all known when the step is compiled."""

  frames: int = 16  # frames in a clip (t)
  frame_step: int = 4  # stored frames between two frames of the clip
  image_px: tuple[int, int] = (224, 224)  # output (height, width) in pixels
  # Largest stored frame (height, width) in panel pixels; from the data set's
  # metadata.
  frame_px: tuple[int, int] = (336, 336)
  # Crop sides as parts of the largest crop that fits.
  crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
  # Probabilities of mirroring a clip left-right and up-down.
  flips: tuple[float, float] = (0.0, 0.0)
  repeats: int = 1  # independently cropped copies of each sequence in a batch
  # Channel means subtracted after scaling to [0, 1].
  mean: tuple[float, ...] = IMAGENET_MEAN
  # Channel standard deviations divided by.
  std: tuple[float, ...] = IMAGENET_STD

  @property
  def name(self) -> clip_sampling.ClipName:
    """Frames and step."""
    return clip_sampling.ClipName(1, self.frames, self.frame_step)

  @property
  def span(self) -> int:
    """Stored frames from the first to the last frame of a clip."""
    return self.name.span


class Clips(NamedTuple):
  """A batch of clips on the device."""

  pixels: Float[Array, "b t h w c"]  # normalised by the spec's mean and std
  # [b, t, 2], x and y of the frame's upper left corner in its panel, in output
  # pixels. Equal tissue has equal `shift + position in frame` (in clips that
  # are not mirrored).
  shift_px: Float[Array, "b t 2"]
  # [b, t], the panel a frame was cut from; frames of different panels share no
  # coordinate.
  panel: Int[Array, "b t"]
  time: Float[Array, "b t"]  # in the unit of the data set
  # Centres of the stored frames in level-0 pixels.
  level0_xy: Float[Array, "b t 2"]
  frames: Int[Array, "b t"]  # indices of the chosen stored frames
  # [b, t], 1 where the frame exists, 0 where the record was too short and its
  # last frame is repeated.
  frame_mask: Float[Array, "b t"]


def resize_weights(
  start: Float[Array, ""], length: Float[Array, ""], source: int, target: int
) -> Float[Array, "target source"]:
  """Weights of an antialiased bilinear resize along one axis.

  Output pixel i looks at position `start + (i + 1/2) length / target` through
  a triangle as wide as one output pixel, at least as wide as one input pixel:
  the convention of Pillow's bilinear filter. Rows sum to one. Where an interval
  leaves the image, the image's edge goes on.

  Example:
    >>> w = resize_weights(jnp.float32(0), jnp.float32(4), 4, 2)
    >>> [[round(float(v), 3) for v in row] for row in w]
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
  """
  scale = length / target
  centre = start + (jnp.arange(target, dtype=jnp.float32) + 0.5) * scale
  centre = jnp.clip(centre, 0.5, source - 0.5)
  pixel = jnp.arange(source, dtype=jnp.float32) + 0.5
  reach = jnp.maximum(scale, 1.0)
  distance = jnp.abs(pixel[None, :] - centre[:, None])
  weight = jnp.maximum(1.0 - distance / reach, 0.0)
  return weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-6)


def crop_sizes(spec: ClipSpec) -> tuple[tuple[float, float], ...]:
  """Crop (height, width) as parts of the frame, one for each scale.

  The largest crop has the aspect ratio of the output and fits the frame. A
  crop that comes within three pixels of the output size snaps to it, so that
  it is copied rather than resampled.

  Example:
    >>> sizes = crop_sizes(ClipSpec())
    >>> [round(336 * h, 1) for h, _ in sizes]
    [336.0, 294.0, 252.0, 224.0]
  """
  fit = min(f / i for f, i in zip(spec.frame_px, spec.image_px, strict=True))

  def side(scale: float, axis: int) -> float:
    px = float(int(spec.image_px[axis] * fit * scale))
    if abs(px - spec.image_px[axis]) < 3.5:
      px = min(spec.image_px[axis], spec.frame_px[axis])
    return px / spec.frame_px[axis]

  return tuple((side(s, 0), side(s, 1)) for s in spec.crop_scales)


def cut_frames(
  panels: UInt8[Array, "p h w c"],
  frame_panel: Int[Array, " t"],
  rectangle: Float[Array, "t 4"],
  corner: Float[Array, "t 2"],
  flip: Bool[Array, "2"] | None,
  frame_px: tuple[int, int],
  image_px: tuple[int, int],
) -> Float[Array, "t i j c"]:
  """Resamples one rectangle a frame."""
  _, panel_h, panel_w, channels = panels.shape
  # The slice is as large as the largest frame, plus one pixel on each side for
  # the filter; the resize then touches no other part of the panel.
  slice_h = min(frame_px[0] + 2, panel_h)
  slice_w = min(frame_px[1] + 2, panel_w)

  def cut(panel, box, corner):
    left = jnp.clip(
      jnp.floor(corner[0]).astype(jnp.int32) - 1, 0, panel_w - slice_w
    )
    top = jnp.clip(
      jnp.floor(corner[1]).astype(jnp.int32) - 1, 0, panel_h - slice_h
    )
    patch = jax.lax.dynamic_slice(
      panels, (panel, top, left, 0), (1, slice_h, slice_w, channels)
    )[0]
    rows = resize_weights(box[1] - top, box[3], slice_h, image_px[0])
    columns = resize_weights(box[0] - left, box[2], slice_w, image_px[1])
    if flip is not None:
      columns = jnp.where(flip[0], columns[::-1], columns)
      rows = jnp.where(flip[1], rows[::-1], rows)
    # Grey levels are exact in bfloat16, the weights are not: three passes.
    return jnp.einsum(
      "ih,hwc,jw->ijc",
      rows,
      patch.astype(jnp.float32),
      columns,
      precision=jax.lax.Precision.HIGH,
    )

  return jax.vmap(cut)(frame_panel, rectangle, corner) / 255.0


def _channel_values(values: tuple[float, ...], ndim: int) -> Array:
  return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


def normalise(
  pixels: Float[Array, "*b h w c"],
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Float[Array, "*b h w c"]:
  """Subtracts the channel means, divides by the deviations.

  Example:
    >>> normalise(jnp.ones((1, 1, 1)), (0.5,), (0.25,)).item()
    2.0
  """
  ndim = pixels.ndim
  return (pixels - _channel_values(mean, ndim)) / _channel_values(std, ndim)


def _clip(
  record: Mapping[str, Array],
  start: Int[Array, ""],
  size: Float[Array, "2"],
  offset: Float[Array, "2"],
  flip: Bool[Array, "2"] | None,
  spec: ClipSpec,
) -> Clips:
  """One clip of one record; size and offset (y, x) are parts of the frame."""
  allowed = clip_sampling.real_range(record["frame_mask"])
  frames, mask = clip_sampling.clip_frames(start, allowed, spec.name)
  box = jnp.take(record["frame_box"], frames, axis=0)
  panel = jnp.take(record["frame_panel"], frames, axis=0)
  corner = box[:, :2] + offset[None, ::-1] * box[:, 2:]
  extent = size[None, ::-1] * box[:, 2:]
  rectangle = jnp.concatenate([corner, extent], axis=1)
  pixels = cut_frames(
    record["panels"],
    panel,
    rectangle,
    corner,
    flip,
    spec.frame_px,
    spec.image_px,
  )
  out_wh = jnp.asarray([spec.image_px[::-1]], jnp.float32)
  return Clips(
    pixels=normalise(pixels, spec.mean, spec.std),
    shift_px=corner * out_wh / extent,
    panel=panel,
    time=jnp.take(record["time"], frames, axis=0),
    level0_xy=jnp.take(record["frame_level0_xy"], frames, axis=0),
    frames=frames,
    frame_mask=mask,
  )


# What the device needs of a record to cut clips.
_FRAME_FIELDS = ("frame_panel", "frame_box", "frame_level0_xy", "frame_mask")
FIELDS = ("panels", "time", *_FRAME_FIELDS)


def sample_clips(
  batch: Mapping[str, Array], key: Key[Array, ""], spec: ClipSpec
) -> Clips:
  """Cuts `repeats` random clips from each sequence of a batch (training).

  The first frame is uniform over the starts that fit. All frames of a clip
  share one crop, drawn as in the VideoMAE recipe: height and width scales are
  neighbours in `crop_scales`, the corner is one of 13 anchors. No colour
  changes, and by default no flips: each region is stored with all its headings.

  Args:
    batch: The loader's arrays: panels uint8 [b, p, h, w, c], frame_panel
      [b, T], frame_box [b, T, 4], time [b, T], frame_level0_xy [b, T, 2],
      frame_mask [b, T].
    key: The key of this step; copies and sequences get their own from it.
    spec: What to cut.

  Returns:
    Clips with leading axis b · repeats, the copies of a sequence side by side.
  """
  record = {name: batch[name] for name in FIELDS}
  b = record["time"].shape[0]
  sizes = jnp.asarray(crop_sizes(spec), jnp.float32)
  anchors = jnp.asarray(_ANCHORS, jnp.float32) / 4.0
  scales = len(spec.crop_scales)
  pairs = jnp.asarray(
    [(i, j) for i in range(scales) for j in range(scales) if abs(i - j) <= 1]
  )

  def one(record, key):
    start_key, size_key, anchor_key = jax.random.split(key, 3)
    length = clip_sampling.real_range(record["frame_mask"]).length
    start = clip_sampling.one_start(start_key, length, spec.span)
    pair = jax.random.choice(size_key, pairs)
    size = jnp.stack([sizes[pair[0], 0], sizes[pair[1], 1]])
    offset = jax.random.choice(anchor_key, anchors) * (1.0 - size)
    flip = None
    if any(spec.flips):
      chance = jnp.asarray(spec.flips)
      flip = jax.random.bernoulli(jax.random.fold_in(key, 1), chance)
    return _clip(record, start, size, offset, flip, spec)

  copies = jax.vmap(one, in_axes=(None, 0))
  clips = jax.vmap(copies)(record, jax.random.split(key, (b, spec.repeats)))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), clips)


def centre_clips(batch: Mapping[str, Array], spec: ClipSpec) -> Clips:
  """Cuts the middle clip of each sequence, whole frames (evaluation).

  Args:
    batch: As for `sample_clips`.
    spec: What to cut; `repeats`, `crop_scales` and `flips` are not used.

  Returns:
    One clip a sequence; the same for the same input, whatever the batch.
  """
  record = {name: batch[name] for name in FIELDS}
  whole = dataclasses.replace(spec, crop_scales=(1.0,))
  size = jnp.asarray(crop_sizes(whole)[0], jnp.float32)

  def one(record):
    length = clip_sampling.real_range(record["frame_mask"]).length
    start = clip_sampling.centre_start(length, spec.span)
    return _clip(record, start, size, (1.0 - size) / 2.0, None, whole)

  return jax.vmap(one)(record)


def to_uint8(
  pixels: Float[Array, "*b h w c"], spec: ClipSpec
) -> UInt8[Array, "*b h w c"]:
  """Undoes the normalisation, for pictures."""
  mean = _channel_values(spec.mean, pixels.ndim)
  std = _channel_values(spec.std, pixels.ndim)
  grey = (pixels * std + mean) * 255.0
  return jnp.clip(jnp.round(grey), 0, 255).astype(jnp.uint8)
