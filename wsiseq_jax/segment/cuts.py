"""Crops of a picture's arrays, and padding: pure functions of NumPy arrays."""

import dataclasses
from typing import Annotated

import cv2
import numpy as np
from jaxtyping import Float

from data_prep.files.schema import AtLeast1, Range, Rule
from data_prep.pictures import records

Row = dict[str, np.ndarray]  # the arrays of one picture, see `pictures`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
  """How training batches are cut: the block `config.data.crops`."""

  batch_size: AtLeast1 = 16  # crops of all devices together
  crop_px: Annotated[int, Range(16)] = 512
  mirror: bool = True
  quarter_turns: bool = True  # tissue has no top
  # A picture is enlarged by a factor drawn from here, evenly in its logarithm.
  scale: Annotated[
    tuple[float, float],
    Range(0.1, 10),
    Rule(lambda s: s[0] <= s[1], "(low, high)"),
  ] = (1.0, 1.0)


# What lies beside the picture, by array.
_PADDING = {
  "pixels": 0,
  "truth": records.NOT_KNOWN,
  "tissue": 0,
  "target": records.NOT_KNOWN,
  "weight": 0.0,
}


def padded(arrays: Row, shape: tuple[int, int]) -> Row:
  """Fills a picture up to (h, w), at right and bottom."""
  return {
    name: _window(array, 0, 0, *shape, _PADDING[name])
    if name in _PADDING
    else array
    for name, array in arrays.items()
  }


def _window(array, top, left, height, width, fill) -> np.ndarray:
  """Cuts a window that may reach beyond the array."""
  h, w = array.shape[:2]
  out = np.full((height, width, *array.shape[2:]), fill, array.dtype)
  y0, y1 = max(top, 0), min(top + height, h)
  x0, x1 = max(left, 0), min(left + width, w)
  if y0 < y1 and x0 < x1:
    out[y0 - top : y1 - top, x0 - left : x1 - left] = array[y0:y1, x0:x1]
  return out


def uniform(seed: int, position: int) -> Float[np.ndarray, " 8"]:
  """Eight numbers in [0, 1): the same for good, as raw bits are."""
  bits = np.random.Philox(np.random.SeedSequence([seed, position]))
  return (bits.random_raw(8) >> np.uint64(11)) * 2.0**-53


def crop(arrays: Row, settings: Crops, u: Float[np.ndarray, " 8"]) -> Row:
  """A square of a picture, or the picture somewhere in the square.

  Args:
    arrays: of a picture.
    settings: how crops are cut.
    u: numbers in [0, 1) that decide where.
  """
  px = settings.crop_px
  low, high = np.log(settings.scale)
  side = max(1, round(px / np.exp(low + u[0] * (high - low))))
  h, w = arrays["truth"].shape
  top, left = (_offset(n, side, v) for n, v in ((h, u[1]), (w, u[2])))
  turns = int(u[3] * 4) if settings.quarter_turns else 0
  is_mirrored = settings.mirror and u[4] < 0.5

  def moved(name):
    out = _window(arrays[name], top, left, side, side, _PADDING[name])
    if side != px:
      how = cv2.INTER_NEAREST
      if name in ("pixels", "weight"):
        how = cv2.INTER_AREA if side > px else cv2.INTER_LINEAR
      out = cv2.resize(out, (px, px), interpolation=how)
    out = np.rot90(out, turns)
    return np.ascontiguousarray(out[:, ::-1] if is_mirrored else out)

  row = {
    name: moved(name) if name in _PADDING else array
    for name, array in arrays.items()
  }
  row["size"] = np.array([px, px], np.int32)
  points = arrays["points"].copy()
  points[:, :2] = (points[:, :2] - (left, top) + 0.5) * (px / side) - 0.5
  for _ in range(turns):  # anticlockwise, as `np.rot90`
    points[:, :2] = np.stack([points[:, 1], px - 1 - points[:, 0]], 1)
  if is_mirrored:
    points[:, 0] = px - 1 - points[:, 0]
  row["points"] = points[records.inside(points, (px, px))]
  return row


def _offset(length: int, side: int, u: float) -> int:
  """Where a window starts; negative where it is larger than the picture."""
  free = abs(length - side)
  place = min(int(u * (free + 1)), free)
  return place if length >= side else -place
