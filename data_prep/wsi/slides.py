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
  of `errors.csv` needs. A slide stays usable after one: a damaged tile spoils
  an OpenSlide handle for good, so the handle is reopened.

This is the only module that imports OpenSlide.
"""

import dataclasses
import math
import os
import pathlib
import threading
from collections.abc import Sequence

import cv2
import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import dicom_series, resample, tiled
from data_prep.wsi.scale import (
  MPP_RANGE,
  MPP_TOLERANCE,
  choose_mpp,
  level_downsample,
)

Number = int | float | np.integer | np.floating
_BLOCK_PX = 256  # side of what a damaged tile costs, where it is not stated


@dataclasses.dataclass(frozen=True)
class Level:
  """One pyramid level."""

  size_px: tuple[int, int]  # width, height
  downsample: float  # level-0 pixels per pixel of this level


_CONVERT = "vips copy IN.tif 'OUT.tif[tile,pyramid,compression=jpeg,Q=90]'"
_TO_RGB = (
  "vips colourspace IN.tif 'OUT.tif[tile,pyramid,compression=jpeg,Q=90]' srgb"
)


_FOREIGN = (34712, 34892, 50001, 50002, 52546)  # JPEG 2000, WebP, JPEG XL, ...


def _cause(path: pathlib.Path, is_intact: bool = True) -> str:
  """Says what a TIFF is that is no slide, and how to make one of it."""
  try:
    with tifffile.TiffFile(path) as tiff:
      page = tiff.pages[0]
      samples, tiled_ = page.samplesperpixel, page.is_tiled
      bits, how = page.bitspersample, page.compression
  except Exception:  # no TIFF, or a damaged one
    return ""
  causes = []
  if not tiled_:
    causes.append("it is stored in strips, not in tiles")
  if samples < 3:
    causes.append("it is grey or has a palette, and stains need colours")
  if bits != 8:
    causes.append(f"it has {bits} bits a sample, not 8")
  if how in _FOREIGN:
    causes.append(f"its compression is {how.name}")
  if not causes and not is_intact:  # it is cut, or damaged
    return ""
  causes = causes or ["OpenSlide does not know this kind of TIFF"]
  remedy = _CONVERT if samples >= 3 and bits == 8 else _TO_RGB
  return f": {'; '.join(causes)}. Convert it: {remedy}"


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
  """

  def __init__(
    self,
    path: str | os.PathLike,
    mpp_override: Number | None = None,
    default_mpp: Number | None = None,
    name: str = "",
    reader: str = "auto",
  ):
    if reader not in ("auto", "openslide"):
      raise ValueError(f"reader={reader!r}: choose 'auto' or 'openslide'")
    self.path = pathlib.Path(path)
    self.name = name or self.path.name
    self._handle = self._open_handle()
    self._pyramid = None
    self._rescue_lock = threading.Lock()  # threads share a tiled slide
    try:
      properties = dict(self._handle.properties)
      self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
      self.level0_px = tuple(self._handle.dimensions)
      self._find_levels()
      self.bounds = self._find_bounds(properties)
      self.colours_fixed = (
        self.vendor == "dicom" and dicom_series.is_mislabelled_ycbcr(self.path)
      )
      self.mpp, self.mpp_origin = choose_mpp(
        properties, self.vendor, mpp_override, default_mpp, self.name
      )
      self.reader, self.reader_reason = "openslide", "asked for"
      if reader == "auto":
        self._choose_reader()
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
  ) -> "Slide":
    """Opens a slide.

    Args:
      path: the file; for DICOM any VOLUME instance of the series.
      mpp_override: um/px that replaces what the file says.
      default_mpp: um/px where the file says nothing.
      name: slide id for messages; the file name where empty.
      reader: 'auto', or 'openslide' to read everything through OpenSlide.

    Returns:
      The open slide, a context manager.

    Raises:
      SlideError: the file is no readable slide, or its mpp is not usable.
      ValueError: an unknown reader.
    """
    return cls(path, mpp_override, default_mpp, name, reader)

  def __enter__(self) -> "Slide":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Closes the files; a second call does nothing."""
    if self._handle is not None:
      self._handle.close()
      self._handle = None
    if self._pyramid is not None:
      self._pyramid.close()
      self._pyramid = None

  def _open_handle(self) -> openslide.OpenSlide:
    # OpenSlide's own words for these two are the same and help nobody.
    if not self.path.is_file():
      raise SlideError(
        f"no such file: {self.path}", error="missing_file", slide=self.name
      )
    if self.path.stat().st_size == 0:
      raise SlideError(
        f"the file is empty: {self.path}", error="empty_file", slide=self.name
      )
    try:
      return openslide.OpenSlide(self.path)
    except openslide.OpenSlideUnsupportedFormatError as error:
      raise SlideError(
        f"no slide format known to OpenSlide: {self.path}" + _cause(self.path),
        error="unsupported_format",
        slide=self.name,
      ) from error
    except (openslide.OpenSlideError, OSError) as error:
      raise SlideError(
        f"cannot open {self.path}: {error}{_cause(self.path, False)}",
        error="unreadable",
        slide=self.name,
      ) from error

  def _find_levels(self) -> None:
    factors = [
      level_downsample(self.level0_px, size, reported)
      for size, reported in zip(
        self._handle.level_dimensions,
        self._handle.level_downsamples,
        strict=True,
      )
    ]
    # A level that is padded or squeezed would put everything elsewhere.
    self._numbers = [i for i, factor in enumerate(factors) if factor]
    self.levels = tuple(
      Level(tuple(self._handle.level_dimensions[i]), factors[i])
      for i in self._numbers
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
      self._pyramid = tiled.TiledPyramid(self.path, levels, self._rescue)
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

  def _find_bounds(
    self, properties: dict[str, str]
  ) -> tuple[int, int, int, int]:
    keys = (
      openslide.PROPERTY_NAME_BOUNDS_X,
      openslide.PROPERTY_NAME_BOUNDS_Y,
      openslide.PROPERTY_NAME_BOUNDS_WIDTH,
      openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    if all(key in properties for key in keys):
      return tuple(int(properties[key]) for key in keys)
    return (0, 0, *self.level0_px)

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
      if lost is None:
        raise
      self._read_blocks(level, corner, out, lost)
    return out

  def _read_blocks(
    self,
    level: int,
    corner: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"],
    lost: list[SlideError],
  ) -> None:
    """Reads a damaged region through OpenSlide, tile by tile."""
    key = f"openslide.level[{self._numbers[level]}].tile-"
    side_x, side_y = (
      int(self._handle.properties.get(key + word, _BLOCK_PX))
      for word in ("width", "height")
    )
    (x, y), (height, width) = corner, out.shape[:2]
    for top in range(y - y % side_y, y + height, side_y):
      for left in range(x - x % side_x, x + width, side_x):
        x0, y0 = max(left, x), max(top, y)
        block = out[
          y0 - y : top + side_y - y,
          x0 - x : left + side_x - x,
        ]
        try:
          self._read_openslide(level, (x0, y0), block)
        except SlideError as error:
          block[:] = 255
          lost.append(error)

  def _damaged(
    self, level: int, corner: tuple[int, int], reason: str
  ) -> SlideError:
    x, y = (round(v * self.levels[level].downsample) for v in corner)
    return SlideError(
      f"damaged tile of level {level} at level-0 pixel ({x}, {y}): {reason}",
      stage="read",
      error="damaged_tile",
      slide=self.name,
      tile=(level, x, y),
    )

  def _read_openslide(
    self,
    level: int,
    corner: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"],
  ) -> None:
    # OpenSlide takes the corner in whole level-0 pixels and divides it by its
    # own downsample, so that is the factor to multiply by. Where that is no
    # integer it interpolates, up to half a level-0 pixel off.
    number = self._numbers[level]
    factor = self._handle.level_downsamples[number]
    location = tuple(round(v * factor) for v in corner)
    try:
      image = self._handle.read_region(location, number, out.shape[1::-1])
    except openslide.OpenSlideError as error:
      # Every later read of this handle would fail: take a new one.
      self._handle.close()
      self._handle = self._open_handle()
      raise self._damaged(level, corner, str(error)) from error
    rgba = np.asarray(image)
    alpha = rgba[..., 3]
    out[:] = rgba[..., :3]
    if self.colours_fixed:
      ycrcb = np.ascontiguousarray(out[..., [0, 2, 1]])
      out[:] = cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)
    if not (alpha == 255).all():
      # Transparent = never scanned. Glass is white, so lay it on white.
      weight = alpha[..., None].astype(np.float32) / 255
      out[:] = np.rint(out * weight + 255 * (1 - weight)).astype(np.uint8)

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
    """Returns a small picture of the whole slide, from level-0 (0, 0) on.

    Made by area averaging from the smallest level that is large enough; where
    that is damaged, from the next one, and where all are, from the one that
    lost least, with its damaged tiles white.

    Args:
      max_px: longest side at most; a smaller slide is not enlarged.
      lost: takes an error for each damaged tile that was met.

    Returns:
      RGB pixels, and level-0 pixels per thumbnail pixel.

    Raises:
      SlideError: nothing of the slide can be read.
    """
    downsample = max(1.0, max(self.level0_px) / max_px)
    numbers = [
      i for i, v in enumerate(self.levels) if v.downsample <= downsample
    ]
    numbers.sort(key=lambda i: -self.levels[i].downsample)
    best, least, damage = None, math.inf, []
    for number in numbers:
      bad: list[SlideError] = []
      picture = self._thumbnail(number, downsample, bad)
      damage += bad
      area = len(bad) * self.levels[number].downsample ** 2
      if area < least:
        best, least = picture, area
      if not bad:
        break
    for error in damage:
      error.stage = "thumbnail"
    if least and (best == 255).all():
      raise damage[0]
    if lost is not None:
      lost += damage
    return best, downsample

  def _thumbnail(
    self, number: int, downsample: float, lost: list[SlideError]
  ) -> UInt8[np.ndarray, "h w 3"]:
    width, height = (
      max(1, round(side / downsample)) for side in self.level0_px
    )
    level = self.levels[number]
    # Whole-number averaging band by band, which needs little memory where there
    # is no pyramid, then one resize of the small rest.
    whole = max(1, int(downsample / level.downsample))
    rows = whole * max(1, 512 // whole)
    bands, bad = [], {}
    for y in range(0, level.size_px[1], rows):
      size = -(-level.size_px[0] // whole) * whole, rows
      met: list[SlideError] = []
      band = self.read_level(number, (0, y), size, lost=met)
      bad |= {error.tile: error for error in met}  # a tile lies in two bands
      if whole > 1:
        band = cv2.resize(
          band,
          (size[0] // whole, rows // whole),
          interpolation=cv2.INTER_AREA,
        )
      bands.append(band)
    lost += bad.values()
    picture = np.concatenate(bands)
    factor = downsample / (level.downsample * whole)
    # White below and to the right, so that the rest divides.
    need = [math.ceil(side * factor) + 1 for side in (height, width)]
    pad = [
      (0, max(0, n - have))
      for n, have in zip(need, picture.shape[:2], strict=True)
    ]
    picture = np.pad(picture, (*pad, (0, 0)), constant_values=255)
    if factor > 1:
      picture = cv2.resize(
        picture,
        None,
        fx=1 / factor,
        fy=1 / factor,
        interpolation=cv2.INTER_AREA,
      )
    return np.ascontiguousarray(picture[:height, :width])
