"""Cuts sequences of frames out of a slide: drift, walk and zoom.

All three are stated in micrometres at a target resolution, so that one config
means the same tissue on every scanner.

- `drift`: a window slides from a region centre along a heading in small steps.
  The frames overlap almost entirely, so the sequence is stored as ONE strip
  with one box a frame. The strip is turned so that travel is along +x: in every
  sequence the tissue drifts to the left, whatever the heading.
- `walk`: neighbouring windows without overlap, along a heading or in a
  serpentine through a block. No frame shows a pixel of another, so nothing can
  be copied. One panel a frame.
- `zoom`: one centre at a growing field of view: context in place of time. One
  panel a frame, all of the same size in pixels.

`geometry.py` says where the frames lie and which way is up.

Deviation: the reference samples centres without a seed, falls back to the whole
grid, blank glass included, when few centres are valid, and erodes the mask by a
number of thumbnail pixels, that is by an amount of tissue that depends on the
size of the slide. Here a centre counts only if every frame of its path holds
tissue, and a slide with few such centres gives few sequences.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, Float, Int, UInt8

from data_prep import records
from data_prep.sequences import geometry


@runtime_checkable
class Readable(Protocol):
  """What is needed of a slide; `slides.Slide` is one."""

  mpp: float
  level0_px: tuple[int, int]

  def read_region(
    self, centre_xy: tuple[float, float], size_px: tuple[int, int], mpp: float
  ) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels around a level-0 centre at exactly `mpp`."""


@dataclasses.dataclass(frozen=True)
class Centre:
  """A region centre and the paths that start there.

  Attributes:
    xy: level-0 pixels.
    paths: indices into `Spec.paths_px`, that is the headings to cut.
  """

  xy: tuple[int, int]
  paths: tuple[int, ...]


def slide_rng(seed: int, slide_id: str) -> np.random.Generator:
  """Returns the random generator of one slide.

  It depends on nothing but the arguments, so a slide gives the same sequences
  alone, among others, in any order and after a restart.

  Args:
    seed: `config.seed`.
    slide_id: the slide.

  Returns:
    A generator.

  Example:
    >>> a, b = slide_rng(0, "s1"), slide_rng(0, "s1")
    >>> int(a.integers(1000)) == int(b.integers(1000))
    True
  """
  digest = hashlib.sha256(f"{seed}/{slide_id}".encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def choose_centres(
  mask: Bool[np.ndarray, "h w"],
  downsample: float,
  slide: Readable,
  spec: geometry.Spec,
  *,
  spacing_um: float,
  max_centres: int,
  min_tissue: float,
  all_headings: bool,
  rng: np.random.Generator,
) -> list[Centre]:
  """Picks region centres on a square grid over the tissue.

  A path counts if every one of its frames lies on the slide and at least
  `min_tissue` of each frame's window is tissue; for `zoom` this is asked of the
  finest frame only, since the point of the others is what is around.

  Args:
    mask: tissue on the thumbnail.
    downsample: level-0 pixels per mask pixel.
    slide: the slide.
    spec: the geometry.
    spacing_um: distance of the grid's points; 0 = the length of a strip, so
      that neighbouring regions hardly overlap (the reference's choice).
    max_centres: sampled without replacement if more are valid; 0 = all.
    min_tissue: smallest share of tissue in any frame, above 0 and up to 1.
    all_headings: drop a centre unless all its paths count.
    rng: the slide's generator.

  Returns:
    The centres in reading order; empty if none is valid.
  """
  if not mask.any():
    return []
  scale = spec.mpp / slide.mpp
  spacing = spacing_um / slide.mpp or spec.strip_px[1] * scale
  xy = _grid(mask, downsample, spacing)
  paths = spec.paths_px()
  share = _tissue_share(mask, spec, scale / downsample)

  def on_tissue(offsets: Float[np.ndarray, "a t 2"]) -> Bool[np.ndarray, "m a"]:
    points = xy[:, None, None] + offsets[None] * scale
    index = np.floor(points / downsample).astype(int)
    index = np.clip(index, 0, np.array(mask.shape[::-1]) - 1)
    return (share[index[..., 1], index[..., 0]] >= min_tissue).all(axis=2)

  # The first frame alone rules most of the grid out, at little memory.
  xy = xy[on_tissue(paths[:, :1]).any(axis=1)]
  valid = on_tissue(paths)
  box = geometry.extent(spec)
  low = xy[:, None] + box[None, :, :2] * scale
  high = xy[:, None] + box[None, :, 2:] * scale
  # A thousandth of a pixel: a slide exactly as large as a window is enough.
  valid &= (low >= -1e-3).all(axis=2)
  valid &= (high <= np.array(slide.level0_px) + 1e-3).all(axis=2)
  if all_headings:
    valid &= valid.all(axis=1, keepdims=True)
  good = np.flatnonzero(valid.any(axis=1))
  if max_centres and len(good) > max_centres:
    good = np.sort(rng.choice(good, max_centres, replace=False))
  return [
    Centre(
      (int(xy[i, 0]), int(xy[i, 1])), tuple(np.flatnonzero(valid[i]).tolist())
    )
    for i in good
  ]


def _grid(
  mask: Bool[np.ndarray, "h w"], downsample: float, spacing: float
) -> Int[np.ndarray, "m 2"]:
  """Whole level-0 points `spacing` apart, centred on the tissue's box."""
  axes = []
  for axis in (0, 1):
    along = np.flatnonzero(mask.any(axis=axis))
    low, high = along[0] * downsample, (along[-1] + 1) * downsample
    count = int((high - low) / spacing) + 1
    offsets = (np.arange(count) - (count - 1) / 2) * spacing
    axes.append(np.floor((low + high) / 2 + offsets).astype(int))
  x, y = np.meshgrid(*axes)
  return np.stack([x.ravel(), y.ravel()], axis=1)


def _tissue_share(
  mask: Bool[np.ndarray, "h w"], spec: geometry.Spec, mask_px: float
) -> Float[np.ndarray, "h w"]:
  """Share of tissue in a window around every mask pixel.

  The window is taken as an upright square of the same area: a thumbnail is too
  coarse for its rotation to matter.
  """
  side = max(1, round(math.sqrt(math.prod(spec.window_px)) * mask_px))
  return cv2.blur(
    mask.astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT
  )


def cut_strip(
  region: UInt8[np.ndarray, "H W 3"],
  start_xy: tuple[int, int],
  heading_deg: float,
  window_px: tuple[int, int],
  length_px: int,
) -> UInt8[np.ndarray, "h l 3"]:
  """Cuts the strip that starts at a point and runs along a heading.

  Right angles are exact copies. Other headings are one bilinear warp of the
  whole strip, where a warp for every frame would resample each pixel about
  `window / step` times over.

  Args:
    region: pixels around the start; must hold the whole strip, with one pixel
      to spare for headings that are not right angles.
    start_xy: centre of the first window, a pixel corner of the region.
    heading_deg: direction of travel, counter-clockwise, 0 = right.
    window_px: (h, w) of a frame, both even.
    length_px: length of the strip along the heading.

  Returns:
    The strip, turned so that travel is along +x.
  """
  height, width = window_px
  x, y = start_xy
  before, side = width // 2, height // 2
  after = length_px - before
  quarter = heading_deg % 360
  if quarter == 0:
    strip = region[y - side : y + side, x - before : x + after]
    return np.ascontiguousarray(strip)
  if quarter == 180:
    strip = region[y - side : y + side, x - after : x + before]
    return cv2.rotate(np.ascontiguousarray(strip), cv2.ROTATE_180)
  if quarter == 90:
    strip = region[y - after : y + before, x - side : x + side]
    return cv2.rotate(np.ascontiguousarray(strip), cv2.ROTATE_90_CLOCKWISE)
  if quarter == 270:
    strip = region[y - before : y + after, x - side : x + side]
    return cv2.rotate(
      np.ascontiguousarray(strip), cv2.ROTATE_90_COUNTERCLOCKWISE
    )
  u, v = geometry.axes(heading_deg)
  # OpenCV counts from the middle of pixel (0, 0), we from its corner.
  corner = np.array([x, y]) + (0.5 - before) * u + (0.5 - side) * v - 0.5
  matrix = np.stack([u, v, corner], axis=1)
  return cv2.warpAffine(
    region,
    matrix,
    (length_px, height),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
  )


def cut_sequences(
  slide: Readable,
  centre: Centre,
  spec: geometry.Spec,
  *,
  slide_id: str,
  patient_id: str,
  targets: Sequence[float],
) -> Iterator[records.SequenceRecord]:
  """Reads around one centre and yields the sequences that start there.

  For `drift` the region is read once for all headings.

  Args:
    slide: the slide.
    centre: the region centre and the paths to cut.
    spec: the geometry.
    slide_id: the slide's name.
    patient_id: the patient's name.
    targets: the slide's labels.

  Yields:
    One record for each path of the centre.
  """
  scale = spec.mpp / slide.mpp
  paths = spec.paths_px()
  for number, panels in _panels(slide, centre, spec):
    heading = spec.headings_deg[number] if spec.headings_deg else math.nan
    level0_xy = np.array(centre.xy) + paths[number] * scale
    name = f"h{heading:g}" if spec.headings_deg else spec.geometry
    yield records.SequenceRecord(
      sequence_id=f"{slide_id}/x{centre.xy[0]}_y{centre.xy[1]}_{name}",
      slide_id=slide_id,
      patient_id=patient_id,
      panels=tuple(
        simplejpeg.encode_jpeg(
          panel, quality=spec.quality, colorsubsampling=spec.subsampling
        )
        for panel in panels
      ),
      frame_panel=geometry.frame_panel(spec),
      frame_box=geometry.frame_box(spec),
      frame_level0_xy=level0_xy.astype(np.float32),
      time=geometry.frame_time(spec),
      frame_mask=np.ones(spec.frames, np.float32),
      mpp=spec.mpp,
      heading_deg=heading,
      targets=np.asarray(targets, np.float32),
    )


def _panels(
  slide: Readable, centre: Centre, spec: geometry.Spec
) -> Iterator[tuple[int, list[UInt8[np.ndarray, "h w 3"]]]]:
  """Yields (path index, panels) for the paths of a centre."""
  if spec.geometry == "zoom":
    size = (spec.window_px[1], spec.window_px[0])
    # White beyond the slide's edge: a region at the border keeps its context.
    yield (
      0,
      [
        slide.read_region(centre.xy, size, mpp)
        for mpp in geometry.zoom_mpp(spec)
      ],
    )
    return
  height, width = spec.window_px
  extent = geometry.extent(spec)
  # Drift headings share most of their pixels, walks hardly any.
  if spec.geometry == "drift":
    extent[:] = np.concatenate([extent[:, :2].min(0), extent[:, 2:].max(0)])
  last, region, start = None, None, (0, 0)
  for number in centre.paths:
    box = tuple(extent[number].tolist())
    if box != last:
      region, start = _read_box(slide, centre.xy, box, spec.mpp)
      last = box
    if spec.columns:
      strips = [
        _window(region, start, offset, spec.window_px)
        for offset in spec.paths_px()[number]
      ]
    else:
      strip = cut_strip(
        region,
        start,
        spec.headings_deg[number],
        spec.window_px,
        spec.strip_px[1],
      )
      strips = [strip]
      if spec.geometry == "walk":
        edges = np.round(np.arange(spec.frames) * spec.step_px).astype(int)
        strips = [np.ascontiguousarray(strip[:, x : x + width]) for x in edges]
    yield number, strips


def _read_box(
  slide: Readable,
  centre_xy: tuple[int, int],
  box: tuple[float, float, float, float],
  mpp: float,
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
  """Reads a box around a centre, one pixel wider for interpolation."""
  x0, y0 = math.floor(box[0]) - 1, math.floor(box[1]) - 1
  x1, y1 = math.ceil(box[2]) + 1, math.ceil(box[3]) + 1
  scale = mpp / slide.mpp
  middle = (
    centre_xy[0] + (x0 + x1) / 2 * scale,
    centre_xy[1] + (y0 + y1) / 2 * scale,
  )
  return slide.read_region(middle, (x1 - x0, y1 - y0), mpp), (-x0, -y0)


def _window(
  region: UInt8[np.ndarray, "H W 3"],
  start: tuple[int, int],
  offset: Float[np.ndarray, "2"],
  window_px: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
  """Cuts the upright window whose centre is `offset` from the start."""
  height, width = window_px
  x = start[0] + round(offset[0] - width / 2)
  y = start[1] + round(offset[1] - height / 2)
  return np.ascontiguousarray(region[y : y + height, x : x + width])
