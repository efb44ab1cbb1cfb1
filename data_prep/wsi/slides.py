"""Whole-slide images: open one, read any region at an exact mpp.

What a newcomer must know:

- *mpp* is micrometres per pixel. "40x" is not a scale (0.2265 to 0.263 in
  practice), so nothing here knows magnifications; `mpp = 10 / magnification`.
- Level-0 coordinates are pixels of the full resolution, x right, y down,
  continuous: pixel i covers [i, i + 1], the middle of a 100 px slide is 50.0.
- OpenSlide is the reference and opens every slide. Tiled JPEG pyramids are then
  decoded by `data_prep.wsi.tiled` (same pixels, several times as fast);
  `reader` and `reader_reason` say which of the two reads this slide and why.
- Whatever is wrong with a file becomes a `SlideError`, which carries what a row
  of `errors.csv` needs. A slide stays usable after one.
"""

import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
import tifffile
from jaxtyping import UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import (
  damage,
  dicom_series,
  folders,
  oddities,
  resample,
  thumbnails,
  tiled,
)
from data_prep.wsi.openslide_file import OpenSlideFile
from data_prep.wsi.scale import (
  MPP_RANGE,
  MPP_TOLERANCE,
  choose_mpp,
  level_downsample,
)

Number = int | float | np.integer | np.floating
_CORNER_PX = 2048  # of the smallest level, for a look at its colours


@dataclasses.dataclass(frozen=True)
class Level:
  """One pyramid level."""

  size_px: tuple[int, int]  # width, height
  downsample: float  # level-0 pixels per pixel of this level


class Slide:
  """One open slide; use `Slide.open`, and close it or use `with`.

  Attributes:
    path: the file.
    name: slide id used in messages.
    level0_px: width, height at full resolution.
    mpp: um per level-0 pixel.
    mpp_origin: 'override', 'vendor', 'ome', 'tiff' or 'default'.
    vendor: OpenSlide's name of the format.
    bounds: x, y, width, height of the scanned part in level-0 pixels.
    levels: the pyramid.
    reader: 'tiled' or 'openslide'.
    reader_reason: why not 'tiled'; '' where it is.
    colours_fixed: the file says RGB and holds YCbCr, which is converted.
    notes: what is odd about it, for errors.csv.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    mpp_override: Number | None = None,
    default_mpp: Number | None = None,
    name: str = "",
    reader: str = "auto",
    cache_bytes: int = tiled.CACHE_BYTES,
  ):
    self._cache_bytes = cache_bytes
    if reader not in ("auto", "openslide"):
      raise ValueError(f"reader={reader!r}: choose 'auto' or 'openslide'")
    self.path = pathlib.Path(path)
    self.name = name or self.path.name
    self._was = self._state()
    self._file = OpenSlideFile(self.path, self.name)
    self._pyramid = None
    self._rescue_lock = threading.Lock()  # threads share a tiled slide
    try:
      self.vendor, self.bounds = self._file.vendor, self._file.bounds
      self.level0_px = self._file.sizes[0]
      self._find_levels()
      self.colours_fixed = False
      if self.vendor == "dicom":
        self.colours_fixed = dicom_series.is_mislabelled_ycbcr(
          self.path, self._small
        )
      self.mpp, self.mpp_origin = choose_mpp(
        self._file.properties,
        self.vendor,
        mpp_override,
        default_mpp,
        self.name,
      )
      self.reader, self.reader_reason = "openslide", "asked for"
      if reader == "auto":
        self._choose_reader()
      self.notes = oddities.doubtful_scale(
        self.mpp,
        self.mpp_origin,
        self.level0_px,
        self._file.power,
        self.name,
      )
      if self.vendor == "generic-tiff":
        self.notes += oddities.other_pictures(
          self.path, self.level0_px, self.mpp_origin, self.name
        )
    except BaseException:
      self.close()
      raise

  @classmethod
  def open(
    cls,
    path: str | os.PathLike,
    mpp_override: Number | None = None,
    default_mpp: Number | None = None,
    name: str = "",
    reader: str = "auto",
    cache_bytes: int = tiled.CACHE_BYTES,
  ) -> "Slide":
    """Opens a slide.

    Args:
      path: the file; for DICOM any VOLUME instance of the series.
      mpp_override: um/px that replaces what the file says.
      default_mpp: um/px where the file says nothing.
      name: slide id for messages; the file name where empty.
      reader: 'auto', or 'openslide' to read everything through OpenSlide.
      cache_bytes: how much the reader 'tiled' keeps of what it decoded.

    Returns:
      The open slide, a context manager.

    Raises:
      SlideError: the file is no readable slide, or its mpp is not usable.
      ValueError: an unknown reader.
    """
    return cls(path, mpp_override, default_mpp, name, reader, cache_bytes)

  def __enter__(self) -> "Slide":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Closes the files; a second call does nothing."""
    self._file.close()
    if self._pyramid is not None:
      self._pyramid.close()
      self._pyramid = None

  def _state(self) -> list[tuple[int, int]]:
    """Size and time of each of its files."""
    found = []
    for path in (self.path, *folders.parts_of(self.path)):
      with contextlib.suppress(OSError):
        stat = os.stat(path)
        found.append((stat.st_size, stat.st_mtime_ns))
    return found

  def check_unchanged(self) -> None:
    """Refuses a file that was written to since it was opened.

    Raises:
      SlideError: what was read may be of two files, or of half a one.
    """
    if self._state() != self._was:
      raise SlideError(
        f"{self.path} changed while it was read, as if it was still being "
        "copied: start again when it is whole",
        "read",
        "file_changed",
        self.name,
      )

  def _find_levels(self) -> None:
    factors = [
      level_downsample(self.level0_px, size, reported)
      for size, reported in zip(
        self._file.sizes, self._file.downsamples, strict=True
      )
    ]
    # A level that is padded or squeezed would put everything elsewhere.
    self._numbers = [i for i, factor in enumerate(factors) if factor]
    self.levels = tuple(
      Level(self._file.sizes[i], factors[i]) for i in self._numbers
    )

  def _choose_reader(self) -> None:
    """Decodes the tiles ourselves where we can."""
    try:
      hidden = []
      if self.vendor == "generic-tiff" and len(self.levels) == 1:
        hidden = tiled.hidden_sizes(self.path)
      more = [
        Level(size, factor)
        for size in hidden
        if (factor := self._factor_of_hidden(size))
      ]
      levels, self.reader_reason = tiled.pyramid_levels(
        self.path,
        self.vendor,
        [level.size_px for level in (*self.levels, *more)],
        any_compression=bool(more),
      )
    except (tifffile.TiffFileError, ValueError) as error:
      raise SlideError(
        f"the TIFF directory of {self.path} is damaged: {error}; "
        "reader='openslide' may still read it",
        slide=self.name,
      ) from error
    if levels:
      self.levels += tuple(more)
      self._pyramid = tiled.TiledPyramid(
        self.path, levels, self._rescue, self._cache_bytes
      )
      self.reader = "tiled"

  def _factor_of_hidden(self, size: tuple[int, int]) -> float | None:
    ratios = [a / b for a, b in zip(self.level0_px, size, strict=True)]
    return level_downsample(self.level0_px, size, sum(ratios) / 2)

  def _rescue(
    self, level: int, corner: tuple[int, int], size_px: tuple[int, int]
  ) -> UInt8[np.ndarray, "h w 3"] | None:
    """Reads a tile that our decoder refuses; None if OpenSlide does too."""
    if level >= len(self._numbers):
      return None
    out = np.empty((size_px[1], size_px[0], 3), np.uint8)
    with self._rescue_lock:
      try:
        self._read_openslide(level, corner, out)
      except SlideError:
        return None
    return out

  def _small(self) -> UInt8[np.ndarray, "h w 3"]:
    """A corner of the smallest level, as OpenSlide reads it."""
    sides = [min(side, _CORNER_PX) for side in self.levels[-1].size_px]
    out = np.empty((sides[1], sides[0], 3), np.uint8)
    self._read_openslide(len(self.levels) - 1, (0, 0), out)
    return out

  def check_target_mpp(
    self,
    target: Number,
    tolerance: Number = MPP_TOLERANCE,
    allow_upsampling: bool = False,
  ) -> None:
    """Refuses a target finer than the scan: its detail does not exist.

    Args:
      target: um/px asked for.
      tolerance: share by which the target may be finer than the scan.
      allow_upsampling: accept any target (pixels are then interpolated).

    Raises:
      SlideError: the target is finer than the tolerance allows.
      ValueError: the target is not a scale at all.
    """
    low, high = MPP_RANGE
    if not low <= target <= high:
      raise ValueError(f"mpp={target}: choose {low} to {high} um/px")
    if not allow_upsampling and target < self.mpp * (1 - tolerance):
      raise SlideError(
        f"target mpp {target:g} is finer than the scan ({self.mpp:g}, "
        f"{self.mpp_origin}) by more than {tolerance:.0%}: choose a coarser "
        "target, or allow upsampling by name",
        stage="mpp",
        error="target_finer_than_scan",
        slide=self.name,
      )

  def level_for(self, mpp: Number) -> int:
    """Returns the coarsest level that still has the detail of a target mpp.

    A level up to 2 % coarser than the target counts: 1.0112 um/px serves 1.0
    as well as four times the pixels of the next finer level do.
    """
    good = [
      i
      for i, level in enumerate(self.levels)
      if self.mpp * level.downsample <= mpp * (1 + MPP_TOLERANCE)
    ]
    return max(good, key=lambda i: self.levels[i].downsample, default=0)

  def read_level(
    self,
    level: int,
    corner: tuple[int, int],
    size_px: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"] | None = None,
    lost: list[SlideError] | None = None,
  ) -> UInt8[np.ndarray, "h w 3"]:
    """Reads pixels of one pyramid level as they are stored."""
    if out is None:
      out = np.empty((size_px[1], size_px[0], 3), np.uint8)
    if self._pyramid is not None:
      try:
        bad = None if lost is None else []
        self._pyramid.read(level, corner, out, bad)
      except tiled.TileError as error:
        raise self._damaged(level, error.corner, error.reason) from error
      for error in bad or ():
        lost.append(self._damaged(level, error.corner, error.reason))
      return out
    try:
      self._read_openslide(level, corner, out)
    except SlideError:
      met: list[SlideError] = []
      self._read_blocks(level, corner, out, met)
      if met and lost is None:
        raise met[0] from None
      if lost is not None:
        lost += met
    return out

  def jpeg_tile_px(self, level: int) -> tuple[int, int] | None:
    """Width, height of the JPEG tiles a level is stored in; None without."""
    if self._pyramid is None or self._pyramid.levels[level].decode is not None:
      return None
    return self._pyramid.levels[level].tile_px

  def stored_jpeg(self, level: int, column: int, row: int) -> bytes | None:
    """Returns a tile of `jpeg_tile_px` as it is stored; see `tiled.stored`.

    Raises:
      SlideError: the tile is damaged.
    """
    try:
      return self._pyramid.stored(level, column, row)
    except tiled.TileError as error:
      raise self._damaged(level, error.corner, error.reason) from error

  def _read_blocks(
    self,
    level: int,
    corner: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"],
    lost: list[SlideError],
  ) -> None:
    """Reads a damaged region through OpenSlide, tile by tile."""
    side_x, side_y = self._file.block_px(self._numbers[level])
    (x, y), (height, width) = corner, out.shape[:2]
    for top in range(y - y % side_y, y + height, side_y):
      for left in range(x - x % side_x, x + width, side_x):
        x0, y0 = max(left, x), max(top, y)
        block = out[
          y0 - y : top + side_y - y,
          x0 - x : left + side_x - x,
        ]
        try:
          self._file.read(
            self._numbers[level], (x0, y0), block, self.colours_fixed
          )
        except tiled.TileError as error:
          block[:] = 255
          lost.append(self._damaged(level, (left, top), error.reason))

  def _damaged(
    self, level: int, corner: tuple[int, int], reason: str
  ) -> SlideError:
    x, y = (round(v * self.levels[level].downsample) for v in corner)
    return SlideError(
      f"damaged tile of level {level} at level-0 pixel ({x}, {y}): {reason}",
      stage="read",
      error=damage.CODE,
      slide=self.name,
      tile=(level, x, y),
    )

  def _read_openslide(
    self,
    level: int,
    corner: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"],
  ) -> None:
    try:
      self._file.read(self._numbers[level], corner, out, self.colours_fixed)
    except tiled.TileError as error:
      raise self._damaged(level, corner, error.reason) from error

  def read_region(
    self,
    centre_xy: Sequence[Number] | np.ndarray,
    size_px: tuple[int, int],
    mpp: Number,
  ) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a region around a point, resampled to exactly the asked scale.

    The coarsest level that has the detail is read and resampled once
    (`data_prep.wsi.resample`: the place is exact to 1/64 of a level pixel, the
    scale is exact). At a scale of one and a whole-pixel corner the pixels are
    the slide's own.

    Args:
      centre_xy: x, y in level-0 pixels (continuous coordinates).
      size_px: width, height of the result.
      mpp: um/px of the result.

    Returns:
      RGB pixels, uint8 [h, w, 3]; white outside the slide.

    Raises:
      SlideError: a tile in there is damaged.
      ValueError: the arguments make no region.
    """
    width, height = size_px
    if not (width > 0 and height > 0 and mpp > 0):
      raise ValueError(f"size_px={size_px}, mpp={mpp}: must be positive")
    if not np.isfinite(centre_xy).all():
      raise ValueError(f"centre_xy={centre_xy}: must be finite")
    number = self.level_for(mpp)
    downsample = self.levels[number].downsample
    scale = mpp / (self.mpp * downsample)
    # 0.2528 * 4 / 1.0112 is 1 but for the last bit of a double.
    scale = 1.0 if abs(scale - 1) < 1e-9 else scale
    left = float(centre_xy[0]) / downsample - scale * width / 2
    top = float(centre_xy[1]) / downsample - scale * height / 2
    return resample.read_scaled(
      lambda corner, out: self.read_level(
        number, corner, out.shape[1::-1], out
      ),
      (left, top),
      (width, height),
      scale,
    )

  def thumbnail(
    self, max_px: int = 1024, lost: list[SlideError] | None = None
  ) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """Returns a small picture of the whole slide; see `thumbnails.make`."""
    return thumbnails.make(self, max_px, lost)
