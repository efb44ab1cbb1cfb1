"""Tiled JPEG pyramids (most SVS and TIFF), read one native tile at a time.

OpenSlide costs about 1.3 ms for every 256 px tile, whatever is asked of it. A
tiled JPEG pyramid is a list of small JPEG files with a directory in front, so
this module reads the directory once (tifffile), fetches the bytes of the tiles
a region touches, and decodes each of them once with libjpeg-turbo (simplejpeg,
the fastest of the bindings tried; `benchmarks/tile_reading.py` has the table).
A small least-recently-used cache keeps overlapping regions from decoding a
tile twice. The pixels are those of OpenSlide, bit for bit, because OpenSlide
uses the same decoder with the same settings.

What is read here is decided by an explicit rule, `pyramid_levels`, when the
slide is opened; everything else goes through OpenSlide.

Damage: a tile counts as damaged when its bytes lie outside the file, when it
is not a JPEG of the tile's size, or when the decoder reports *anything*,
warnings included (`strict`). That finds zeroed, cut and half-overwritten
tiles, which a lenient decoder turns into a plausible picture. What OpenSlide
still reads is read by it, unless the tile ends in zeros. None of it can find a
few changed bytes after which the Huffman code falls back into step; no reader
can without a checksum, OpenSlide included.
"""

import collections
import dataclasses
import os
import struct
import threading
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
import tifffile
from jaxtyping import UInt8

# Formats of which the level structure is known to be one plain tiled page a
# level. Others tile their levels too, but with overlaps or missing pieces.
VENDORS = ("generic-tiff", "aperio")
CACHE_BYTES = 64 << 20
_JPEG = 7  # the TIFF compression tag of (new-style) JPEG
_RGB, _YCBCR = 2, 6  # TIFF photometric interpretations
_WHITE = 255
_MAX_ZEROS = 16  # at the end of a tile, as padding; more are lost data


class TileError(Exception):
  """A tile that cannot be decoded.

  Args:
    level: pyramid level, 0 = finest.
    corner: x, y of the tile's top-left pixel, in pixels of that level.
    reason: what the decoder said.
  """

  def __init__(self, level: int, corner: tuple[int, int], reason: str):
    super().__init__(f"tile at {corner} of level {level}: {reason}")
    self.level, self.corner, self.reason = level, corner, reason

  def __reduce__(self):
    return type(self), (self.level, self.corner, self.reason)


@dataclasses.dataclass(frozen=True)
class TiledLevel:
  """Where the tiles of one pyramid level lie in the file."""

  size_px: tuple[int, int]  # width, height of the level
  tile_px: tuple[int, int]  # width, height of a tile
  offsets: tuple[int, ...]  # byte position of each tile, row by row
  # byte length of each tile; 0 marks a tile that was not stored
  lengths: tuple[int, ...]
  header: bytes  # what a stored tile needs in front of it to be a JPEG file
  rgb: bool  # the JPEG stores RGB, not YCbCr
  # tifffile's decoder of what is not JPEG, and its arguments
  decode: Callable[..., tuple] | None = None

  def index(self, column: int, row: int) -> int:
    """Which of the stored tiles lies there."""
    return row * -(-self.size_px[0] // self.tile_px[0]) + column


def _why_not(page: tifffile.TiffPage, any_compression: bool) -> str:
  """Says why a TIFF page is not a level this module decodes ('' = it is)."""
  if not page.is_tiled:
    return "not tiled"
  if page.compression != _JPEG and not any_compression:
    return f"compression is {page.compression.name}, not JPEG"
  is_raw_ycbcr = page.photometric == _YCBCR and page.compression != _JPEG
  if page.photometric not in (_RGB, _YCBCR) or is_raw_ycbcr:
    return f"photometric is {page.photometric.name}"
  if page.bitspersample != 8 or page.samplesperpixel != 3:
    return f"{page.samplesperpixel} samples of {page.bitspersample} bit"
  if page.planarconfig != 1:
    return "planes are stored apart"
  return ""


def _header(tables: bytes | None, rgb: bool) -> bytes:
  """Returns the bytes that turn a stored tile (less its SOI) into a JPEG."""
  # Tables may be shared by all tiles and live in a TIFF tag. So does the colour
  # space; the decoder would guess it, so an Adobe marker says it.
  adobe = struct.pack(
    ">HH5sHHHB", 0xFFEE, 14, b"Adobe", 100, 0, 0, 0 if rgb else 1
  )
  # Less its SOI, its EOI, and what may pad it.
  shared = b"" if not tables else tables[2 : tables.rindex(b"\xff\xd9")]
  return b"\xff\xd8" + adobe + shared


def hidden_sizes(path: str | os.PathLike) -> list[tuple[int, int]]:
  """Returns width, height of the levels in SubIFDs, which OpenSlide omits."""
  with tifffile.TiffFile(path) as tiff:
    return [(p.imagewidth, p.imagelength) for p in _hidden(tiff)]


def _hidden(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
  first = tiff.pages[0]
  return [page.aspage() for page in first.pages] if first.subifds else []


def pyramid_levels(
  path: str | os.PathLike,
  vendor: str,
  level_sizes: Sequence[tuple[int, int]],
  any_compression: bool = False,
) -> tuple[tuple[TiledLevel, ...], str]:
  """Returns the tiled levels of a slide, or why it must be read by OpenSlide.

  The rule: OpenSlide calls the format generic tiled TIFF or Aperio, and each
  of its levels is a page of the same size with 8-bit, three-channel JPEG
  tiles. One level that is not decides for the whole slide, so that a slide is
  never read by two readers.
  """
  if vendor not in VENDORS:
    return (), f"format {vendor} is read by OpenSlide"
  levels = []
  with tifffile.TiffFile(path) as tiff:
    pages = [*tiff.pages, *_hidden(tiff)]
    for number, size in enumerate(level_sizes):
      same = [p for p in pages if (p.imagewidth, p.imagelength) == tuple(size)]
      same = [p for p in same if p.is_tiled] or same
      if not same:
        return (), f"no TIFF page of the size of level {number}"
      page = same[0]
      reason = _why_not(page, any_compression)
      if reason:
        return (), f"level {number}: {reason}"
      columns = -(-page.imagewidth // page.tilewidth)
      rows = -(-page.imagelength // page.tilelength)
      listed = min(len(page.dataoffsets), len(page.databytecounts))
      if listed != columns * rows:
        return (), f"level {number}: {listed} of {columns * rows} tiles listed"
      if vendor == "aperio" and 0 in page.databytecounts:
        # Drawn from the level above, by a rule of Aperio's.
        return (), f"level {number}: tiles are missing"
      rgb = page.photometric == _RGB
      levels.append(
        TiledLevel(
          size_px=tuple(size),
          tile_px=(page.tilewidth, page.tilelength),
          offsets=tuple(page.dataoffsets),
          lengths=tuple(page.databytecounts),
          header=_header(page.jpegtables, rgb),
          rgb=rgb,
          decode=None if page.compression == _JPEG else page.decode,
        )
      )
  return tuple(levels), ""


def _body(raw: bytes, rgb: bool) -> bytes:
  """Returns a stored tile less its start marker (and less JFIF where RGB)."""
  # JFIF would overrule the Adobe marker and declare the RGB tile to be YCbCr.
  if rgb and raw[2:4] == b"\xff\xe0":
    return raw[4 + int.from_bytes(raw[4:6], "big") :]
  return raw[2:]


class TiledPyramid:
  """Reads regions of a tiled JPEG pyramid; see the module docstring.

  Threads may share one (each tile is read with `pread`, the cache is locked);
  processes should each open their own.

  Args:
    path: the slide.
    levels: from `pyramid_levels`.
    rescue: reads a tile (level, corner, size) that is refused here; None where
      it cannot be read at all.
    cache_bytes: how much to keep of what was decoded.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    levels: Sequence[TiledLevel],
    rescue: Callable[..., np.ndarray | None] = lambda *unused: None,
    cache_bytes: int = CACHE_BYTES,
  ):
    self.levels = tuple(levels)
    self._rescue = rescue
    self._refused: dict[tuple[int, int], TileError] = {}
    self._file = os.open(path, os.O_RDONLY)
    self._cache = collections.OrderedDict()
    self._cache_bytes, self._cached = cache_bytes, 0
    self._lock = threading.Lock()

  def close(self) -> None:
    """Closes the file; a second call does nothing."""
    if self._file >= 0:
      os.close(self._file)
      self._file = -1
    self.clear()

  def clear(self) -> None:
    """Forgets the tiles decoded so far."""
    with self._lock:
      self._cache.clear()
      self._cached = 0

  def tile(
    self, level: int, column: int, row: int
  ) -> UInt8[np.ndarray, "h w 3"] | None:
    """Returns one native tile, or None where none was stored.

    Scanners leave out tiles of empty glass; the TIFF directory then gives them
    no bytes.

    Args:
      level: pyramid level.
      column: tile column, 0 = left.
      row: tile row, 0 = top.

    Returns:
      RGB pixels, read-only, the whole tile even where it hangs over the edge.

    Raises:
      TileError: the tile is damaged.
    """
    at = self.levels[level]
    index = at.index(column, row)
    length = at.lengths[index]
    if not length:
      return None
    key = level, index
    with self._lock:
      if key in self._cache:
        self._cache.move_to_end(key)
        return self._cache[key]
      if key in self._refused:
        raise self._refused[key]
    corner = column * at.tile_px[0], row * at.tile_px[1]
    raw = os.pread(self._file, length, at.offsets[index])
    try:
      if len(raw) != length:
        raise TileError(
          level, corner, "its bytes lie beyond the end of the file"
        )
      pixels = self._decode(level, index, corner, raw)
    except TileError as error:
      # Zeros decode as a plausible grey, and OpenSlide seeks no end marker.
      is_zeroed = raw.endswith(bytes(_MAX_ZEROS + 1))
      pixels = None
      if not is_zeroed:
        pixels = self._rescue(level, corner, at.tile_px)
      if pixels is None:
        with self._lock:
          self._refused[key] = error
        raise
    pixels.flags.writeable = False
    with self._lock:
      if key not in self._cache:
        self._cache[key] = pixels
        self._cached += pixels.nbytes
      while self._cached > self._cache_bytes:
        self._cached -= self._cache.popitem(last=False)[1].nbytes
    return pixels

  def stored(self, level: int, column: int, row: int) -> bytes | None:
    """Returns one native tile as a JPEG file, not decoded.

    The tile may hang over the edge of its level, as in `tile`.

    Returns:
      The file; None where no tile was stored.

    Raises:
      TileError: what is stored is no JPEG of the tile's size, or cut.
    """
    at = self.levels[level]
    index = at.index(column, row)
    length = at.lengths[index]
    if not length:
      return None
    raw = os.pread(self._file, length, at.offsets[index])
    data = at.header + _body(raw, at.rgb)
    try:
      if len(raw) != length:
        raise ValueError("its bytes lie beyond the end of the file")
      if raw[:2] != b"\xff\xd8" or raw.endswith(bytes(_MAX_ZEROS + 1)):
        raise ValueError("not a whole JPEG")
      height, width = simplejpeg.decode_jpeg_header(data)[:2]
      if (width, height) != tuple(at.tile_px):
        raise ValueError(f"a JPEG of another size, {width}x{height} px")
    except ValueError as error:
      corner = column * at.tile_px[0], row * at.tile_px[1]
      raise TileError(level, corner, str(error)) from error
    return data

  def _decode(
    self, level: int, index: int, corner: tuple[int, int], raw: bytes
  ) -> UInt8[np.ndarray, "h w 3"]:
    at = self.levels[level]
    try:
      if at.decode is not None:
        pixels = at.decode(raw, index)[0]
        pixels = np.ascontiguousarray(pixels).reshape(*at.tile_px[::-1], 3)
      elif raw[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
      else:
        pixels = simplejpeg.decode_jpeg(
          at.header + _body(raw, at.rgb), strict=True
        )
    except Exception as error:  # decoders raise whatever they like
      raise TileError(level, corner, str(error)) from error
    if pixels.shape[:2] != (at.tile_px[1], at.tile_px[0]):
      found = f"{pixels.shape[1]}x{pixels.shape[0]}"
      raise TileError(level, corner, f"a JPEG of another size, {found} px")
    return pixels

  def read(
    self,
    level: int,
    corner: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"],
    lost: list[TileError] | None = None,
  ) -> None:
    """Fills `out` with a region of a level, decoding each tile once.

    Args:
      level: pyramid level.
      corner: x, y of the region's top-left pixel, in pixels of that level; may
        lie outside.
      out: array to fill, [h, w, 3]; white where there is no slide.
      lost: takes an error for each damaged tile, which is then left white.

    Raises:
      TileError: a tile of the region is damaged.
    """
    at = self.levels[level]
    (x, y), (tile_w, tile_h) = corner, at.tile_px
    height, width = out.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right = min(x + width, at.size_px[0])
    bottom = min(y + height, at.size_px[1])
    if (left, top, right, bottom) != (x, y, x + width, y + height):
      out[:] = _WHITE
    if right <= left or bottom <= top:
      return
    for row in range(top // tile_h, (bottom - 1) // tile_h + 1):
      y0, y1 = max(top, row * tile_h), min(bottom, (row + 1) * tile_h)
      for column in range(left // tile_w, (right - 1) // tile_w + 1):
        x0, x1 = max(left, column * tile_w), min(right, (column + 1) * tile_w)
        target = out[y0 - y : y1 - y, x0 - x : x1 - x]
        try:
          pixels = self.tile(level, column, row)
        except TileError as error:
          if lost is None:
            raise
          lost.append(error)
          pixels = None
        if pixels is None:
          target[:] = _WHITE
          continue
        dx, dy = column * tile_w, row * tile_h
        target[:] = pixels[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
