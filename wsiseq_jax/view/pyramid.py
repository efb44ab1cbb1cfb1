"""A slide as tiles for a screen.

The levels are those of the slide, tile for tile, so that a stored JPEG can be
sent as it is. Where two levels are far apart, and above the coarsest, levels
are added, each half as large as the one before.
"""

import contextlib
import dataclasses
import threading

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from data_prep.wsi.slides import Slide

TILE_PX = 256
# Stored tiles of other sides are cut anew: a screen would need too many, or
# more than it shows.
_STORED_PX = (128, 1024)
# Above a level larger than this, levels are cut from one small picture.
_OVERVIEW_PX = 4096
_QUALITY = 90
Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class ViewLevel:
  """One level as the page sees it."""

  size_px: tuple[int, int]  # width, height
  tile_px: tuple[int, int]  # width, height of its tiles but the last
  downsample: float  # level-0 pixels per pixel
  native: int | None = None  # the level of the slide that has these pixels
  is_stored: bool = False  # whether its tiles are JPEG files of the slide

  @property
  def grid(self) -> tuple[int, int]:
    """Columns and rows of tiles."""
    return tuple(
      -(-side // tile)
      for side, tile in zip(self.size_px, self.tile_px, strict=True)
    )


def plan(slide: Slide) -> tuple[ViewLevel, ...]:
  """The levels of a slide for the screen, finest first."""
  levels = []
  for number, level in enumerate(slide.levels):
    stored = slide.jpeg_tile_px(number)
    low, high = _STORED_PX
    fits = stored is not None and low <= min(stored) and max(stored) <= high
    tile = stored if fits else (TILE_PX, TILE_PX)
    levels.append(
      ViewLevel(level.size_px, tile, level.downsample, number, fits)
    )
  levels.sort(key=lambda level: level.downsample)
  found = []
  for level, after in zip(levels, [*levels[1:], None], strict=True):
    found.append(level)
    factor = level.downsample * 2
    while (
      factor * 1.5 <= after.downsample
      if after
      else max(found[-1].size_px) > TILE_PX
    ):
      size = tuple(max(1, int(-(-v // factor))) for v in slide.level0_px)
      found.append(ViewLevel(size, (TILE_PX, TILE_PX), factor))
      factor *= 2
  return tuple(found)


class Pyramid:
  """An open slide whose tiles threads may ask for; closes it in the end.

  Args:
    slide: the slide.
    has_scale: whether somebody says how large a pixel of the slide is.
    encoding: 'jpeg' or 'png', of tiles that are not sent as stored.
  """

  def __init__(
    self, slide: Slide, has_scale: bool = True, encoding: str = "jpeg"
  ):
    self.slide, self.levels = slide, plan(slide)
    self.has_scale = has_scale
    self._encoding = encoding
    # After a damaged tile an OpenSlide handle is replaced: one reader at once.
    is_shared = slide.reader == "tiled"
    self.reading = contextlib.nullcontext() if is_shared else threading.Lock()
    self._overview: Picture | None = None
    self._drawing = threading.Lock()

  def close(self) -> None:
    """Closes the slide."""
    self.slide.close()

  def stored(self, level: int, column: int, row: int) -> bytes | None:
    """A tile as the slide stores it; None if it has to be made.

    Raises:
      SlideError: the tile is damaged.
    """
    at = self.levels[level]
    if not at.is_stored:
      return None
    return self.slide.stored_jpeg(at.native, column, row)

  def made(self, level: int, column: int, row: int) -> bytes:
    """A tile that is cut and encoded.

    Raises:
      SlideError: a tile of the slide in there is damaged.
    """
    pixels = self.pixels(level, column, row)
    return encode(pixels, self._encoding)

  def pixels(self, level: int, column: int, row: int) -> Picture:
    """The pixels of a tile, cut off at the edge of the level."""
    at = self.levels[level]
    left, top = column * at.tile_px[0], row * at.tile_px[1]
    width = min(at.tile_px[0], at.size_px[0] - left)
    height = min(at.tile_px[1], at.size_px[1] - top)
    if at.native is not None:
      with self.reading:
        return self.slide.read_level(at.native, (left, top), (width, height))
    coarsest = max(self.slide.levels, key=lambda v: v.downsample)
    is_small = max(at.size_px) <= _OVERVIEW_PX
    if is_small and max(coarsest.size_px) > _OVERVIEW_PX:
      picture = cv2.resize(
        self.overview(), at.size_px, interpolation=cv2.INTER_AREA
      )
      return np.ascontiguousarray(
        picture[top : top + height, left : left + width]
      )
    centre = (
      (left + width / 2) * at.downsample,
      (top + height / 2) * at.downsample,
    )
    with self.reading:
      return self.slide.read_region(
        centre, (width, height), self.slide.mpp * at.downsample
      )

  def overview(self) -> Picture:
    """The whole slide in one small picture."""
    with self._drawing:
      if self._overview is None:
        self._overview = self.thumbnail(_OVERVIEW_PX)[0]
      return self._overview

  def thumbnail(self, max_px: int) -> tuple[Picture, float]:
    """See `Slide.thumbnail`; damaged tiles are white."""
    with self.reading:
      return self.slide.thumbnail(max_px, lost=[])

  def region(
    self, x0: float, y0: float, width: float, height: float, longest_px: int
  ) -> tuple[Picture, float]:
    """A part of the slide, in level-0 pixels, as a small picture.

    Returns:
      The pixels, and level-0 pixels per pixel of the picture.

    Raises:
      SlideError: a tile in there is damaged.
    """
    downsample = max(1.0, max(width, height) / longest_px)
    size = tuple(max(1, round(v / downsample)) for v in (width, height))
    with self.reading:
      picture = self.slide.read_region(
        (x0 + width / 2, y0 + height / 2), size, self.slide.mpp * downsample
      )
    return picture, downsample


def encode(pixels: Picture, encoding: str = "jpeg") -> bytes:
  """A picture as a file; JPEG keeps the colours of every pixel."""
  if encoding == "png":
    done, data = cv2.imencode(
      ".png",
      cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
      (cv2.IMWRITE_PNG_COMPRESSION, 1),
    )
    return data.tobytes()
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(pixels), quality=_QUALITY, colorsubsampling="444"
  )


def media_type(data: bytes) -> str:
  """The media type of what `encode` or a slide gave."""
  return "image/png" if data[:4] == b"\x89PNG" else "image/jpeg"
