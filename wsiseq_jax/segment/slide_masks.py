"""The mask of one slide: blended tiles on disk, and the files it becomes.

Scores of overlapping tiles are added up on disk, each tile weighted by a ramp
that rises over the overlap, and divided by the weights. Memory holds a band of
rows, whatever the slide's size. Pixel (0, 0) of a mask is the corner of
level-0 pixel (0, 0).
"""

import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import tifffile
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from data_prep.files import atomic
from data_prep.wsi import qc
from wsiseq_jax.maps import geojson, regions
from wsiseq_jax.spatial.slide_files import COLOURS

_BAND = 512  # rows that are in memory
_TILE_PX = 512  # of a TIFF
# Outlines are made of at most so many pixels at once.
_OUTLINE_PX = 32_000_000
_FADE = 0.45  # strength of colours on a picture


@dataclasses.dataclass(frozen=True)
class MaskPlace:
  """A slide's mask: its pixels on the slide."""

  slide_id: str
  size: tuple[int, int]  # (h, w) of the mask
  um_per_px: float  # of the mask
  downsample: float  # level-0 pixels per pixel of the mask
  bounds_xy: tuple[int, int]  # corner that QuPath counts from, level-0 pixels

  @classmethod
  def of(
    cls,
    slide_id: str,
    level0_px: Sequence[int],
    mpp: float,
    um_per_px: float,
    bounds_xy: Sequence[int] = (0, 0),
  ) -> "MaskPlace":
    """The mask of a slide of so many (width, height) level-0 pixels."""
    downsample = um_per_px / mpp
    width, height = (math.ceil(side / downsample - 1e-6) for side in level0_px)
    corner = (int(bounds_xy[0]), int(bounds_xy[1]))
    return cls(slide_id, (height, width), um_per_px, downsample, corner)


def ramp(side: int, overlap: int) -> Float[np.ndarray, "n n"]:
  """Weights of a tile: 1 in the middle, rising from its borders.

  The ramps of two neighbours add up to 1 over their overlap.

  Example:
    >>> ramp(4, 2)[1].round(3).tolist()
    [0.188, 0.562, 0.562, 0.188]
  """
  at = np.arange(side) + 0.5
  line = np.minimum(1.0, np.minimum(at, side - at) / max(overlap, 1e-9))
  return line[:, None] * line[None, :]


class Blended:
  """Scores of a slide's tiles, added up on disk.

  Args:
    folder: of its own; removed by `remove`.
    size: (h, w) of the mask.
    classes: of the foreground.
  """

  def __init__(self, folder: pathlib.Path, size: tuple[int, int], classes: int):
    self._folder = folder
    self.remove()
    folder.mkdir(parents=True)
    self.size, self.classes = size, classes
    # Untouched parts take no room on disk.
    self._sums = np.lib.format.open_memmap(
      folder / "sums.npy", "w+", np.float32, (*size, classes + 1)
    )

  def add(
    self,
    scores: Float[np.ndarray, "n n y"],
    top: int,
    left: int,
    weights: Float[np.ndarray, "n n"],
  ) -> None:
    """Adds a tile, the part of it that lies on the slide."""
    (height, width), side = self.size, len(scores)
    y0, y1 = max(top, 0), min(top + side, height)
    x0, x1 = max(left, 0), min(left + side, width)
    if y0 >= y1 or x0 >= x1:
      return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    weight = weights[part][..., None]
    self._sums[y0:y1, x0:x1, :-1] += scores[part] * weight
    self._sums[y0:y1, x0:x1, -1:] += weight

  def bands(self) -> Iterator[tuple[slice, Float[np.ndarray, "h w y"]]]:
    """Blended scores, some rows at a time; 0 where no tile was."""
    for start in range(0, self.size[0], _BAND):
      rows = slice(start, min(start + _BAND, self.size[0]))
      sums = np.asarray(self._sums[rows])
      yield rows, sums[..., :-1] / np.maximum(sums[..., -1:], 1e-6)

  def mask(
    self, threshold: float, tissue: Bool[np.ndarray, "h2 w2"], ratio: float
  ) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel, on disk as well.

    Args:
      threshold: of the highest score; below it is background.
      tissue: what is not tissue is background.
      ratio: pixels of `tissue` per pixel of the mask.
    """
    found = np.lib.format.open_memmap(
      self._folder / "mask.npy", "w+", np.uint8, self.size
    )
    rows, columns = (
      np.minimum((np.arange(n) + 0.5) * ratio, side - 1).astype(int)
      for n, side in zip(self.size, tissue.shape, strict=True)
    )
    for band, scores in self.bands():
      is_class = (scores.max(axis=-1) >= threshold) & tissue[rows[band]][
        :, columns
      ]
      found[band] = np.where(is_class, scores.argmax(axis=-1) + 1, 0)
    return found

  def remove(self) -> None:
    """Takes it off the disk."""
    shutil.rmtree(self._folder, ignore_errors=True)


def areas(
  mask: UInt8[np.ndarray, "h w"], classes: int, um_per_px: float
) -> list[float]:
  """Mm² of each class of the foreground.

  Example:
    >>> areas(np.array([[0, 1, 1], [2, 1, 0]], np.uint8), 3, 1000.0)
    [3.0, 1.0, 0.0]
  """
  count = np.zeros(256, np.int64)
  for start in range(0, len(mask), _BAND):
    count += np.bincount(mask[start : start + _BAND].ravel(), minlength=256)
  return [float(n) * (um_per_px / 1000) ** 2 for n in count[1 : classes + 1]]


def colour(number: int) -> tuple[int, int, int]:
  """RGB of a class, counted from 1."""
  return COLOURS[number % len(COLOURS)]


def write_tiff(
  path: str | os.PathLike, mask: UInt8[np.ndarray, "h w"], um_per_px: float
) -> None:
  """Writes a tiled pyramid: class numbers, which viewers show in colours.

  Each level halves the one before by taking every other pixel, so that there
  are no numbers between two classes.
  """
  palette = np.zeros((3, 256), np.uint16)
  palette[:, 0] = 65535  # background is white
  for number in range(1, 256):
    palette[:, number] = np.array(colour(number), np.uint16) * 257
  steps = [1]
  while max(mask.shape) / steps[-1] > _TILE_PX:
    steps.append(2 * steps[-1])
  with (
    atomic.replacing(path) as draft,
    # Four bytes of address end at 4 GB.
    tifffile.TiffWriter(draft, bigtiff=mask.size > 2**31) as file,
  ):
    for step in steps:
      level = mask[step // 2 :: step, step // 2 :: step]
      file.write(
        _tiles(level),
        shape=level.shape,
        dtype=np.uint8,
        tile=(_TILE_PX, _TILE_PX),
        photometric="palette",
        colormap=palette,
        compression="zlib",
        resolution=(1e4 / (um_per_px * step),) * 2,
        resolutionunit="CENTIMETER",
        subifds=len(steps) - 1 if step == 1 else 0,
        subfiletype=0 if step == 1 else 1,
        metadata=None,
        software="wsiseq_jax",
      )


def _tiles(level: np.ndarray) -> Iterator[np.ndarray]:
  for top in range(0, level.shape[0], _TILE_PX):
    for left in range(0, level.shape[1], _TILE_PX):
      tile = level[top : top + _TILE_PX, left : left + _TILE_PX]
      pad = [(0, _TILE_PX - side) for side in tile.shape]
      yield np.pad(tile, pad)


def small(
  mask: UInt8[np.ndarray, "h w"], longest: int
) -> tuple[UInt8[np.ndarray, "h2 w2"], int]:
  """The mask with every n-th pixel, at most so long; and n."""
  step = max(1, math.ceil(max(mask.shape) / longest))
  return np.ascontiguousarray(mask[step // 2 :: step, step // 2 :: step]), step


def write_png(
  path: pathlib.Path, mask: UInt8[np.ndarray, "h w"], longest: int
) -> None:
  """Writes class numbers as a grey picture, made smaller if need be."""
  data = cv2.imencode(".png", small(mask, longest)[0])[1].tobytes()
  atomic.write_atomic(path, data)


def write_overlay(
  path: pathlib.Path,
  mask: UInt8[np.ndarray, "h w"],
  thumbnail: UInt8[np.ndarray, "h2 w2 3"],
) -> None:
  """Writes the slide's picture with the mask in colours, for the eye."""
  size = thumbnail.shape[1::-1]
  part = small(mask, 4 * max(size))[0]
  part = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST)
  paint = np.zeros((256, 3), np.float32)
  for number in range(1, 256):
    paint[number] = colour(number)
  share = np.where(part > 0, _FADE, 0.0)[..., None]
  picture = thumbnail * (1 - share) + paint[part] * share
  atomic.write_atomic(path, qc.jpeg(np.rint(picture).astype(np.uint8)))


def features(
  mask: UInt8[np.ndarray, "h w"],
  place: MaskPlace,
  classes: Sequence[str],
  *,
  outline_um: float,
  min_area_um2: float,
  max_hole_um2: float,
  kind: str = "annotation",
) -> list[dict[str, Any]]:
  """Outlines of the mask as GeoJSON, the largest of each class first.

  Args:
    mask: class numbers.
    place: its pixels on the slide.
    classes: names of the foreground.
    outline_um: pixels that outlines are drawn in; coarser where the slide is
      too large.
    min_area_um2: smaller pieces are left out.
    max_hole_um2: smaller holes are filled.
    kind: of QuPath's objects.
  """
  step = max(
    1,
    round(outline_um / place.um_per_px),
    math.ceil(math.sqrt(mask.size / _OUTLINE_PX)),
  )
  coarse = mask[step // 2 :: step, step // 2 :: step]
  um_per_px, scale = place.um_per_px * step, place.downsample * step
  found = []
  for number, name in enumerate(classes, 1):
    cleaned = regions.clean(
      coarse == number,
      min_area_px=min_area_um2 / um_per_px**2,
      max_hole_px=max_hole_um2 / um_per_px**2,
    )
    labels, _ = ndimage.label(cleaned)
    pieces = []
    for piece, box in enumerate(ndimage.find_objects(labels), 1):
      rings = regions.outline(labels[box] == piece)
      corner = np.array([box[1].start, box[0].start], np.float64)
      area = sum(regions.signed_area(ring) for ring in rings)
      pieces.append((area, [(ring + corner) * scale for ring in rings]))
    pieces.sort(key=lambda one: -one[0])
    found += [
      geojson.area_feature(
        place.slide_id,
        name,
        index,
        rings,
        colour(number),
        {"Area mm^2": area * (um_per_px / 1000) ** 2},
        place.bounds_xy,
        kind,
      )
      for index, (area, rings) in enumerate(pieces, 1)
    ]
  return found
