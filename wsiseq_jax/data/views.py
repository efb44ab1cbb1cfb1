"""Two views of each sequence for contrastive learning, cut on the device.

A method asks for clips by name (`clip_sampling`): `2c...` are two clips of
different times, `1c...` is one clip of which both views show the same frames.
Each view is then changed at random by numbers of its own, which are the same
for all its frames, in this order:

    crop and resize, mirror, brightness, contrast, rotate, blur, normalise

Crop, resize and mirror are one resampling of the stored panel, rotation is
another: the crop is rendered larger by what the rotated frame needs, and
rotated about its centre. Corners show what lies beside the crop; beyond the
frame its edge goes on.

Everything follows from `(key, step)`, as in `augment`.

Deviation: the reference rotates first, which fills corners in black, and draws
the order of brightness and contrast.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from data_prep.files.schema import Range, Share
from wsiseq_jax.data import augment, clip_sampling, colour
from wsiseq_jax.models import tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """How views are changed: the block `data.augment` of a config."""

  # Rotation is uniform in plus or minus so many degrees.
  rotate_deg: Annotated[float, Range(0, 180)] = 0.0
  # Smallest and largest area of the crop, as parts of the largest crop of the
  # output's shape.
  crop_areas: Annotated[tuple[float, float], Range(0.01, 1)] = (1.0, 1.0)
  # Probabilities of mirroring left-right and up-down.
  flips: Annotated[tuple[float, float], Range(0, 1)] = (0.0, 0.0)
  jitter_probability: Share = 0.0  # how often brightness and contrast change
  brightness: Share = 0.0  # factors are uniform in [1 - x, 1 + x]
  contrast: Share = 0.0  # the same
  blur_probability: Share = 0.0  # how often the clip is blurred
  # Least and largest standard deviation of the blur.
  blur_sigma_px: Annotated[tuple[float, float], Range(0.01, 10)] = (0.1, 2.0)

  def __post_init__(self):
    for key in ("crop_areas", "blur_sigma_px"):
      low, high = getattr(self, key)
      if low > high:
        raise ValueError(
          f"config.data.augment.{key} = {(low, high)}: the first must not "
          "exceed the second"
        )


@dataclasses.dataclass(frozen=True)
class ViewSpec(Augment):
  """What views to cut: static numbers, all known when the step is compiled."""

  clips: clip_sampling.ClipName  # clips of a record, their frames and step
  image_px: tuple[int, int]  # output (height, width) in pixels
  # Largest stored frame (height, width) in panel pixels.
  frame_px: tuple[int, int]
  strict_half: bool = False  # whether clips come from one half of the record
  # Channel means subtracted after scaling to [0, 1].
  mean: tuple[float, ...] = tokens.IMAGENET_MEAN
  # Channel standard deviations divided by.
  std: tuple[float, ...] = tokens.IMAGENET_STD

  @property
  def whole_crop(self) -> tuple[float, float]:
    """Largest crop of the output's shape, (h, w) as parts of the frame.

    Example:
      >>> name = clip_sampling.ClipName(1, 8, 1)
      >>> ViewSpec(name, (32, 64), (48, 48)).whole_crop
      (0.5, 1.0)
    """
    (h, w), (frame_h, frame_w) = self.image_px, self.frame_px
    fit = min(frame_h / h, frame_w / w)
    return fit * h / frame_h, fit * w / frame_w

  @property
  def rendered_px(self) -> tuple[int, int]:
    """Pixels rendered for a rotation by the largest angle."""
    (h, w), angle = self.image_px, math.radians(self.rotate_deg)
    c, s = math.cos(angle), math.sin(angle)
    return math.ceil(h * c + w * s - 1e-9), math.ceil(w * c + h * s - 1e-9)

  def mild(self) -> "ViewSpec":
    """Light changes, for fine-tuning: those of the reference."""
    return dataclasses.replace(
      self,
      strict_half=False,
      rotate_deg=0.0,
      crop_areas=(0.9, 1.0),
      flips=(0.3, 0.0),
      jitter_probability=1.0,
      brightness=0.2,
      contrast=0.2,
      blur_probability=0.0,
    )


class Views(NamedTuple):
  """Views of a batch of records; v views of each, side by side."""

  pixels: Float[Array, "b v t h w c"]  # normalised by the spec's mean and std
  # Since the record's first frame, in the data's unit.
  time: Float[Array, "b v t"]
  frames: Int[Array, "b v t"]  # stored frames shown
  frame_mask: Float[Array, "b v t"]  # 1 for frames that exist, 0 for padding
  # [b], whether the views show clips of different times; True where they are
  # meant to show the same one.
  is_distinct: Bool[Array, " b"]


def rotate(
  pixels: Float[Array, "t i j c"],
  degrees: Float[Array, ""],
  image_px: tuple[int, int],
) -> Float[Array, "t h w c"]:
  """Rotates a clip counter-clockwise about its centre, cuts the middle out.

  Bilinear; beyond the image its edge goes on. All frames and channels of a
  pixel are fetched together.

  Example:
    >>> clip = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> turned = rotate(clip, jnp.array(90.0), (2, 2)).ravel().tolist()
    >>> [round(value) for value in turned]
    [1, 3, 0, 2]
  """
  t, rows, columns, c = pixels.shape
  angle = jnp.radians(degrees)
  y = jnp.arange(image_px[0])[:, None] + 0.5 - image_px[0] / 2
  x = jnp.arange(image_px[1])[None, :] + 0.5 - image_px[1] / 2
  source_x = jnp.cos(angle) * x - jnp.sin(angle) * y + columns / 2 - 0.5
  source_y = jnp.sin(angle) * x + jnp.cos(angle) * y + rows / 2 - 0.5
  source_x = jnp.clip(source_x, 0.0, columns - 1.0)
  source_y = jnp.clip(source_y, 0.0, rows - 1.0)
  left = jnp.clip(jnp.floor(source_x), 0, max(columns - 2, 0)).astype(jnp.int32)
  top = jnp.clip(jnp.floor(source_y), 0, max(rows - 2, 0)).astype(jnp.int32)
  table = pixels.transpose(1, 2, 0, 3).reshape(rows * columns, t * c)
  part_x = (source_x - left)[..., None]
  part_y = (source_y - top)[..., None]

  def fetch(down, right):
    row = jnp.minimum(top + down, rows - 1)
    column = jnp.minimum(left + right, columns - 1)
    return jnp.take(table, row * columns + column, axis=0)

  upper = fetch(0, 0) * (1 - part_x) + fetch(0, 1) * part_x
  lower = fetch(1, 0) * (1 - part_x) + fetch(1, 1) * part_x
  out = upper * (1 - part_y) + lower * part_y
  return out.reshape(*image_px, t, c).transpose(2, 0, 1, 3)


def _show(
  record: Mapping[str, Array],
  frames: Int[Array, " t"],
  spec: ViewSpec,
  key: Key[Array, ""] | None,
) -> Float[Array, "t h w c"]:
  """Pixels of chosen frames; without a key the whole frame, unchanged."""
  size = jnp.asarray(spec.whole_crop, jnp.float32)
  offset, flip, degrees = 0.5 * (1.0 - size), None, None
  if key is not None:
    names = ("area", "place", "flip", "angle", "light", "blur")
    keys = dict(zip(names, jax.random.split(key, 6), strict=True))
    low, high = spec.crop_areas
    area = jax.random.uniform(keys["area"], (), minval=low, maxval=high)
    size *= jnp.sqrt(area)
    offset = jax.random.uniform(keys["place"], (2,)) * (1.0 - size)
    if any(spec.flips):
      flip = jax.random.bernoulli(keys["flip"], jnp.asarray(spec.flips))
    if spec.rotate_deg:
      degrees = spec.rotate_deg * jax.random.uniform(
        keys["angle"], (), minval=-1.0, maxval=1.0
      )
  box = jnp.take(record["frame_box"], frames, axis=0)
  panel = jnp.take(record["frame_panel"], frames, axis=0)
  extent = size[None, ::-1] * box[:, 2:]
  corner = box[:, :2] + offset[None, ::-1] * box[:, 2:]
  rendered = spec.image_px
  if degrees is not None:
    rendered = spec.rendered_px
    # As much larger as there are more pixels, about the same centre.
    more = jnp.asarray(
      [[a / b for a, b in zip(rendered, spec.image_px, strict=True)]]
    )[:, ::-1]
    corner -= 0.5 * (more - 1.0) * extent
    extent *= more
  pixels = augment.cut_frames(
    record["panels"],
    panel,
    jnp.concatenate([corner, extent], axis=1),
    box[:, :2],
    flip,
    spec.frame_px,
    rendered,
  )
  if key is not None:
    # Before the rotation, whose look-ups the compiler would otherwise repeat
    # for each use of a pixel: six times as slow on a CPU.
    pixels = _relight(pixels, spec, keys["light"])
  if degrees is not None:
    pixels = rotate(pixels, degrees, spec.image_px)
  if key is not None and spec.blur_probability:
    pixels = _blur(pixels, spec, keys["blur"])
  return augment.normalise(pixels, spec.mean, spec.std)


def _relight(pixels: Array, spec: ViewSpec, key: Key[Array, ""]) -> Array:
  names = ("is_changed", "brightness", "contrast")
  keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

  def factor(name: str, reach: float):
    drawn = jax.random.uniform(
      keys[name], (), minval=max(1.0 - reach, 0.0), maxval=1.0 + reach
    )
    chosen = jax.random.bernoulli(keys["is_changed"], spec.jitter_probability)
    return jnp.where(chosen, drawn, 1.0)

  if spec.jitter_probability and spec.brightness:
    pixels = colour.adjust_brightness(
      pixels, factor("brightness", spec.brightness)
    )
  if spec.jitter_probability and spec.contrast:
    pixels = colour.adjust_contrast(pixels, factor("contrast", spec.contrast))
  return pixels


def _blur(pixels: Array, spec: ViewSpec, key: Key[Array, ""]) -> Array:
  sigma_key, chosen_key = jax.random.split(key)
  low, high = spec.blur_sigma_px
  sigma = jax.random.uniform(sigma_key, (), minval=low, maxval=high)
  chosen = jax.random.bernoulli(chosen_key, spec.blur_probability)
  return colour.blur(pixels, jnp.where(chosen, sigma, 0.0))


def _fields(batch: Mapping[str, Array]) -> dict[str, Array]:
  fields = {name: batch[name] for name in augment.FIELDS}
  fields["time"] = fields["time"] - fields["time"][:, :1]
  return fields


def choose_frames(
  key: Key[Array, ""], frame_mask: Float[Array, " T"], spec: ViewSpec
) -> tuple[Int[Array, "v t"], Float[Array, "v t"], Bool[Array, ""]]:
  """Draws the frames of the two views of a record."""
  half_key, start_key = jax.random.split(key)
  allowed = clip_sampling.real_range(frame_mask)
  if spec.strict_half:
    allowed = clip_sampling.strict_half(half_key, allowed)
  name = spec.clips
  if name.clips == 1:
    start = clip_sampling.one_start(start_key, allowed.length, name.span)
    starts = clip_sampling.Starts(jnp.stack([start, start]), jnp.array(True))
  else:
    starts = clip_sampling.two_starts(start_key, allowed.length, name.span)
  frames, mask = jax.vmap(
    lambda start: clip_sampling.clip_frames(start, allowed, name)
  )(starts.start)
  return frames, mask, starts.is_distinct


def sample_views(
  batch: Mapping[str, Array], keys: Key[Array, " b"], spec: ViewSpec
) -> Views:
  """Two random views of each record."""

  def one(record, key):
    frames_key, look_key = jax.random.split(key)
    frames, mask, distinct = choose_frames(
      frames_key, record["frame_mask"], spec
    )
    pixels = jax.vmap(lambda chosen, key: _show(record, chosen, spec, key))(
      frames, jax.random.split(look_key)
    )
    time = jnp.take(record["time"], frames, axis=0)
    return Views(pixels, time, frames, mask, distinct)

  return jax.vmap(one)(_fields(batch), keys)


def sample_clip(
  batch: Mapping[str, Array], keys: Key[Array, " b"], spec: ViewSpec
) -> Views:
  """One random clip of each record, v = 1 (fine-tuning)."""
  one_clip = dataclasses.replace(spec.clips, clips=1)

  def one(record, key):
    frames_key, look_key = jax.random.split(key)
    frames, mask, distinct = choose_frames(
      frames_key,
      record["frame_mask"],
      dataclasses.replace(spec, clips=one_clip),
    )
    pixels = _show(record, frames[0], spec, look_key)
    time = jnp.take(record["time"], frames[:1], axis=0)
    return Views(pixels[None], time, frames[:1], mask[:1], distinct)

  return jax.vmap(one)(_fields(batch), keys)


def whole_frames(
  batch: Mapping[str, Array], frames: Int[Array, "b t"], spec: ViewSpec
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b t"]]:
  """Chosen frames of each record, unchanged (testing).

  Returns:
    Normalised pixels, and time since the record's first frame.
  """

  def one(record, frames):
    time = jnp.take(record["time"], frames)
    return _show(record, frames, spec, None), time

  return jax.vmap(one)(_fields(batch), frames)


def centre_frames(
  batch: Mapping[str, Array], spec: ViewSpec
) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
  """Stored frames of the middle clip of each record, and their mask."""

  def one(frame_mask):
    allowed = clip_sampling.real_range(frame_mask)
    start = clip_sampling.centre_start(allowed.length, spec.clips.span)
    return clip_sampling.clip_frames(start, allowed, spec.clips)

  return jax.vmap(one)(batch["frame_mask"])


def dense_frames(
  batch: Mapping[str, Array], spec: ViewSpec, step: int
) -> tuple[Int[Array, "b n t"], Float[Array, "b n t"], Float[Array, "b n"]]:
  """Stored frames of a window that slides over each record (testing).

  Returns:
    Frames and their mask, and 1 for windows that count: those that fit the
    record's real frames, and the first one in any case.
  """
  stored = batch["frame_mask"].shape[1]
  starts = jnp.asarray(
    clip_sampling.dense_starts(stored, spec.clips.span, step)
  )

  def one(frame_mask):
    allowed = clip_sampling.real_range(frame_mask)
    frames, mask = jax.vmap(
      lambda start: clip_sampling.clip_frames(start, allowed, spec.clips)
    )(starts)
    fits = starts < clip_sampling.start_count(allowed.length, spec.clips.span)
    return frames, mask, fits.astype(jnp.float32)

  return jax.vmap(one)(batch["frame_mask"])
