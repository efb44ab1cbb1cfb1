"""Resampling by an exact factor at an exact place, with OpenCV's fast kernels.

`cv2.resize` is three to eight times as fast as `cv2.warpAffine`, but starts
every picture on a whole source pixel. The trick here: a picture of scale `s`
(source pixels per result pixel) that begins at a fraction of a pixel is the
inside of a larger one that begins on a whole pixel, if `skip * s` makes up for
the fraction. `align` looks for such a `skip`; where none exists (a scale like
1/2 with an odd fraction) the slower `warpAffine` does the same.

Kernels, one per range of the scale:

- 1: none; a copy when the place is whole.
- up to 1.25: Keys' cubic with a = -0.75 (OpenCV's). A slide scanned at 0.2528
  and read at 0.25 keeps its sharpness; a linear kernel would blur it in bands.
- above: the mean over the area of each result pixel, which removes what the
  result cannot show (no aliasing).

Accuracy: the scale is exact to the last bit of a double; the place to 1/64 of
a source pixel; values are rounded once (twice in the rare shifted-area case).
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

PLACE_TOLERANCE = 1 / 64
CUBIC_UP_TO = 1.25
_MARGIN = 4  # result pixels around the picture that a cubic kernel may touch
_SKIP_UP_TO = 128

ReadInto = Callable[[tuple[int, int], np.ndarray], object]


def align(start: float, scale: float) -> tuple[int, int] | None:
  """Finds a whole-pixel start whose grid runs through a fractional one.

  Example:
    >>> align(10.5, 1.5)  # 3 + 5 * 1.5 = 10.5
    (3, 5)
    >>> align(10.25, 0.5) is None
    True
  """
  for skip in range(_MARGIN, _SKIP_UP_TO):
    rest = start - skip * scale
    if abs(rest - round(rest)) <= PLACE_TOLERANCE:
      return round(rest), skip
  return None


def read_scaled(
  read: ReadInto,
  corner: tuple[float, float],
  size_px: tuple[int, int],
  scale: float,
) -> UInt8[np.ndarray, "h w 3"]:
  """Reads a window that begins anywhere and resamples it once."""
  width, height = size_px
  whole = tuple(round(v) for v in corner)
  at_whole = all(
    abs(v - w) <= PLACE_TOLERANCE for v, w in zip(corner, whole, strict=True)
  )
  if scale == 1 and at_whole:
    out = np.empty((height, width, 3), np.uint8)
    read(whole, out)
    return out
  plans = [align(v, scale) for v in corner]
  if all(plans):
    return _by_resize(read, plans, size_px, scale)
  return _by_warp(read, corner, size_px, scale)


def _kernel(scale: float) -> int:
  return cv2.INTER_CUBIC if scale <= CUBIC_UP_TO else cv2.INTER_AREA


def _by_resize(
  read: ReadInto,
  plans: list[tuple[int, int]],
  size_px: tuple[int, int],
  scale: float,
) -> UInt8[np.ndarray, "h w 3"]:
  (x, skip_x), (y, skip_y) = plans
  width, height = size_px
  sides = [
    math.ceil((skip + side + _MARGIN) * scale) + 1
    for skip, side in ((skip_x, width), (skip_y, height))
  ]
  source = np.empty((sides[1], sides[0], 3), np.uint8)
  # What is skipped need not be read, except under the kernel's margin.
  dx = int((skip_x - _MARGIN) * scale)
  dy = int((skip_y - _MARGIN) * scale)
  read((x + dx, y + dy), source[dy:, dx:])
  # Given factors are used as they are; given sizes would round the factor.
  result = cv2.resize(
    source, None, fx=1 / scale, fy=1 / scale, interpolation=_kernel(scale)
  )
  return np.ascontiguousarray(
    result[skip_y : skip_y + height, skip_x : skip_x + width]
  )


def _by_warp(
  read: ReadInto,
  corner: tuple[float, float],
  size_px: tuple[int, int],
  scale: float,
) -> UInt8[np.ndarray, "h w 3"]:
  width, height = size_px
  pad = math.ceil(_MARGIN * max(scale, 1))
  x, y = (math.floor(v) - pad for v in corner)
  sides = [math.ceil(side * scale) + 2 * pad + 1 for side in size_px]
  source = np.empty((sides[1], sides[0], 3), np.uint8)
  read((x, y), source)
  shift = corner[0] - x, corner[1] - y
  if _kernel(scale) == cv2.INTER_CUBIC:
    return _warp(source, shift, size_px, scale, cv2.INTER_CUBIC)
  # A mean over an area of whole-pixel side that begins at a fraction equals a
  # linear shift by the fraction followed by the mean; for other sides nearly.
  area = tuple(math.ceil(side * scale) + 1 for side in size_px)
  moved = _warp(source, shift, area, 1.0, cv2.INTER_LINEAR)
  result = cv2.resize(
    moved, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA
  )
  return np.ascontiguousarray(result[:height, :width])


def _warp(
  source: UInt8[np.ndarray, "h w 3"],
  start: tuple[float, float],
  size_px: tuple[int, int],
  scale: float,
  kernel: int,
) -> UInt8[np.ndarray, "h2 w2 3"]:
  # warpAffine counts from pixel centres, we count from corners.
  matrix = np.array(
    [
      [scale, 0, start[0] + (scale - 1) / 2],
      [0, scale, start[1] + (scale - 1) / 2],
    ]
  )
  return cv2.warpAffine(
    source,
    matrix,
    size_px,
    flags=kernel | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )
