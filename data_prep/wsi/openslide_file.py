"""A slide as OpenSlide reads it, usable after damage.

A damaged tile spoils an OpenSlide handle for good, so the handle is reopened.
This is the only module that imports OpenSlide.
"""

import pathlib

import cv2
import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import oddities
from data_prep.wsi.tiled import TileError

# JPEG 2000, WebP, JPEG XL, ...
_FOREIGN = (34712, 34892, 50001, 50002, 52546)
_BLOCK_PX = 256  # side of what a damaged tile costs, where it is not stated
_BOUNDS = (
  openslide.PROPERTY_NAME_BOUNDS_X,
  openslide.PROPERTY_NAME_BOUNDS_Y,
  openslide.PROPERTY_NAME_BOUNDS_WIDTH,
  openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
)


class OpenSlideFile:
  """An open file.

  Attributes:
    properties: what the file says of itself.
    vendor: OpenSlide's name of the format.
    power: magnification of the objective as the file states it, '' without.
    sizes: width, height of each level.
    downsamples: OpenSlide's factor of each level.
  """

  def __init__(self, path: pathlib.Path, name: str):
    self._path, self._name = path, name
    self._handle = handle = self._open()
    self.properties = dict(handle.properties)
    self.vendor = self._property(openslide.PROPERTY_NAME_VENDOR, "unknown")
    self.power = self._property(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    self.sizes = [tuple(size) for size in handle.level_dimensions]
    self.downsamples = list(handle.level_downsamples)

  @property
  def bounds(self) -> tuple[int, int, int, int]:
    """x, y, width, height of the scanned part in level-0 pixels."""
    if all(key in self.properties for key in _BOUNDS):
      return tuple(int(self.properties[key]) for key in _BOUNDS)
    return (0, 0, *self.sizes[0])

  def _property(self, key: str, default: str = "") -> str:
    return self.properties.get(key, default)

  def block_px(self, level: int) -> tuple[int, int]:
    """Width, height of what a damaged tile of a level costs."""
    key = f"openslide.level[{level}].tile-"
    sides = (self._property(key + word) for word in ("width", "height"))
    width, height = (int(side or _BLOCK_PX) for side in sides)
    return width, height

  def close(self) -> None:
    """Closes the file; a second call does nothing."""
    if self._handle is not None:
      self._handle.close()
      self._handle = None

  def _open(self) -> openslide.OpenSlide:
    # OpenSlide's own words for these two are the same and help nobody.
    path = self._path
    if not path.is_file():
      raise self._error("missing_file", f"no such file: {path}")
    if path.stat().st_size == 0:
      raise self._error("empty_file", f"the file is empty: {path}")
    try:
      return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
      text = f"no slide format known to OpenSlide: {path}{cause(path)}"
      raise self._error("unsupported_format", text) from error
    except (openslide.OpenSlideError, OSError) as error:
      text = f"cannot open {path}: {error}{cause(path, False)}"
      raise self._error("unreadable", text) from error

  def _error(self, code: str, message: str) -> SlideError:
    return SlideError(message, error=code, slide=self._name)

  def read(
    self,
    level: int,
    corner: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"],
    is_ycbcr: bool = False,
  ) -> None:
    """Fills `out` with a region of a level; white where nothing was scanned.

    Args:
      level: pyramid level.
      corner: x, y of the region's top-left pixel, in pixels of that level.
      out: array to fill.
      is_ycbcr: OpenSlide takes YCbCr for RGB.

    Raises:
      TileError: something in the region is damaged.
      SlideError: the file is gone.
    """
    # OpenSlide takes the corner in whole level-0 pixels and divides it by its
    # own downsample, so that is the factor to multiply by. Where that is no
    # integer it interpolates, up to half a level-0 pixel off.
    location = tuple(round(v * self.downsamples[level]) for v in corner)
    try:
      image = self._handle.read_region(location, level, out.shape[1::-1])
    except openslide.OpenSlideError as error:
      # Every later read of this handle would fail: take a new one.
      self.close()
      self._handle = self._open()
      raise TileError(level, corner, str(error)) from error
    rgba = np.asarray(image)
    alpha = rgba[..., 3]
    out[:] = rgba[..., :3]
    if is_ycbcr:
      ycrcb = np.ascontiguousarray(out[..., [0, 2, 1]])
      out[:] = cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)
    if not (alpha == 255).all():
      # Transparent = never scanned. Glass is white, so lay it on white.
      weight = alpha[..., None].astype(np.float32) / 255
      out[:] = np.rint(out * weight + 255 * (1 - weight)).astype(np.uint8)


def cause(path: pathlib.Path, is_intact: bool = True) -> str:
  """Says what a file lacks, or what a TIFF is and how to make a slide of it.

  Args:
    path: the file.
    is_intact: whether to say that its kind is unknown where nothing else is.
  """
  if path.suffix.lower() == ".mrxs":
    needed = path.with_suffix("") / "Slidedat.ini"
    return "" if needed.is_file() else f": {needed} is missing. Copy it too"
  try:
    with tifffile.TiffFile(path) as tiff:
      page = tiff.pages[0]
      size, is_big_endian = tiff.filehandle.size, tiff.byteorder == ">"
      ends = (
        start + length
        for p in tiff.pages
        for start, length in zip(p.dataoffsets, p.databytecounts, strict=False)
      )
      if max(ends, default=0) > size:
        return f": it is cut short, at {size:,} bytes. Copy it again"
      samples, tiled = page.samplesperpixel, page.is_tiled
      bits, how = page.bitspersample, page.compression
      areas = [p.imagewidth * p.imagelength for p in tiff.pages]
  except Exception:  # no TIFF, or a damaged one
    return ""
  found = []
  largest = areas.index(max(areas))
  if largest:
    found.append("its first picture is not its largest")
  if not tiled:
    found.append("it is stored in strips, not in tiles")
  if is_big_endian:
    found.append("its byte order is that of big-endian machines")
  if samples < 3:
    found.append("it is grey or has a palette, and stains need colours")
  if bits != 8:
    found.append(f"it has {bits} bits a sample, not 8")
  if how in _FOREIGN:
    found.append(f"its compression is {how.name}")
  if not found and not is_intact:  # it is cut, or damaged
    return ""
  found = found or ["OpenSlide does not know this kind of TIFF"]
  remedy = oddities.export(largest, samples >= 3 and bits == 8)
  return f": {'; '.join(found)}. Convert it: {remedy}"
