"""What a geometry is: where the frames of a sequence lie, and how to cut them.

Directions follow the reference recipe: counter-clockwise, 0 to the right, 90
up. In image coordinates (y down) heading `a` travels along
`u = (cos a, -sin a)` and the frame's own y axis is `v = (sin a, cos a)`.
Pixel i covers [i, i + 1), so a centre is a real number. Windows have even
sizes: headings 0, 90, 180 and -90 are then exact flips of the slide's pixels,
and only diagonals are interpolated.
"""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from data_prep import shards

Panels = list[UInt8[np.ndarray, "h w 3"]]


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
  """A region centre and the paths that start there."""

  xy: tuple[int, int]  # level-0 pixels
  # Indices into `Geometry.paths`, that is the headings to cut.
  paths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Geometry(abc.ABC):
  """Frames around a centre, in pixels at the target resolution."""

  # What a reader of a report is told; with {width} and {height} of a frame in
  # um.
  sentence: ClassVar[str]
  mpp: float  # micrometres per pixel of the (finest) frames
  window_px: tuple[int, int]  # (h, w) of a frame, both even
  frames: int  # frames in a sequence

  @classmethod
  @abc.abstractmethod
  def from_config(
    cls,
    sequence: Mapping[str, Any],
    mpp: float,
    window_px: tuple[int, int],
  ) -> "Geometry":
    """Reads `config.sequence`; ValueError names keys that do not fit."""

  @property
  @abc.abstractmethod
  def spacing_px(self) -> float:
    """Distance of centres at which neighbouring regions hardly overlap."""

  @abc.abstractmethod
  def paths(self) -> Float[np.ndarray, "a t 2"]:
    """Returns frame centres relative to the region centre, for each path."""

  @abc.abstractmethod
  def cut(
    self, slide: Readable, centre: Centre
  ) -> Iterator[tuple[int, Panels]]:
    """Reads around a centre; yields path number and panels."""

  def heading(self, path: int) -> float:
    """Direction of travel of a path in degrees; NaN where there is none."""
    del path
    return math.nan

  def layout(self) -> shards.Layout:
    """Returns the shapes of a data set: here, one panel a frame."""
    return shards.Layout(self.frames, self.frames, self.window_px)

  def frame_panel(self) -> Int[np.ndarray, " t"]:
    """Returns the panel of each frame."""
    return np.arange(self.frames, dtype=np.int32)

  def frame_box(self) -> Float[np.ndarray, "t 4"]:
    """Returns x, y, w, h of each frame in its panel, in pixels."""
    height, width = self.window_px
    return np.tile(
      np.array([0, 0, width, height], np.float32), (self.frames, 1)
    )

  def time(self) -> Float[np.ndarray, " t"]:
    """Returns micrometres travelled since the first frame."""
    steps = np.linalg.norm(np.diff(self.paths()[0], axis=0), axis=1)
    um = np.concatenate([[0.0], np.cumsum(steps)]) * self.mpp
    return um.astype(np.float32)

  def extent(self) -> Float[np.ndarray, "a 4"]:
    """Returns x0, y0, x1, y1 around all windows of each path, in pixels."""
    half_h, half_w = (side / 2 for side in self.window_px)
    boxes = []
    for number, path in enumerate(self.paths()):
      heading = self.heading(number)
      u, v = axes(0.0 if math.isnan(heading) else heading)
      corners = [
        a * half_w * u + b * half_h * v for a in (-1, 1) for b in (-1, 1)
      ]
      points = path[:, None] + np.stack(corners)[None]
      boxes.append(np.concatenate([points.min((0, 1)), points.max((0, 1))]))
    return np.stack(boxes)


def axes(
  heading_deg: float | int,
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
  """Returns the unit vectors (x, y) of travel and of the frame's y axis.

  Example:
    >>> u, v = axes(90)
    >>> u.tolist(), v.tolist()
    ([0.0, -1.0], [1.0, 0.0])
  """
  # Exact zeros and ones for right angles, where cos() leaves 6e-17.
  quarter = {0: (1.0, 0.0), 90: (0.0, 1.0), 180: (-1.0, 0.0), 270: (0.0, -1.0)}
  angle = math.radians(heading_deg)
  cos, sin = quarter.get(heading_deg % 360, (math.cos(angle), math.sin(angle)))
  return np.array([cos, 0.0 - sin]), np.array([sin, cos])


def headings_from(sequence: Mapping[str, Any]) -> tuple[float, ...]:
  """Reads `config.sequence.headings_deg`."""
  headings = tuple(float(a) for a in sequence["headings_deg"])
  if not headings:
    raise ValueError("config.sequence.headings_deg = (): must not be empty")
  return headings


def straight(
  headings_deg: tuple[float, ...], frames: int, step_px: float
) -> Float[np.ndarray, "a t 2"]:
  """Frame centres along each heading, the first at the region centre."""
  along = np.arange(frames) * step_px
  return np.stack([along[:, None] * axes(a)[0] for a in headings_deg])


def read_box(
  slide: Readable,
  centre_xy: tuple[int, int],
  box: tuple[float, float, float, float],
  mpp: float,
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
  """Reads a box around a centre, one pixel wider for interpolation.

  Returns the pixels and where the centre lies in them.
  """
  x0, y0 = math.floor(box[0]) - 1, math.floor(box[1]) - 1
  x1, y1 = math.ceil(box[2]) + 1, math.ceil(box[3]) + 1
  scale = mpp / slide.mpp
  middle = (
    centre_xy[0] + (x0 + x1) / 2 * scale,
    centre_xy[1] + (y0 + y1) / 2 * scale,
  )
  return slide.read_region(middle, (x1 - x0, y1 - y0), mpp), (-x0, -y0)


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
  u, v = axes(heading_deg)
  # OpenCV counts from the middle of pixel (0, 0), we from its corner.
  corner = np.array([x, y]) + (0.5 - before) * u + (0.5 - side) * v - 0.5
  matrix = np.stack([u, v, corner], axis=1)
  return cv2.warpAffine(
    region,
    matrix,
    (length_px, height),
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
  )
