"""Small slides of MIRAX: the least that OpenSlide opens."""

import pathlib
import struct

import cv2
import numpy as np
import simplejpeg

_ID = "A" * 32
_LEVELS = 2


def write(
  path: pathlib.Path, pixels: np.ndarray, tile: int = 128
) -> pathlib.Path:
  """Writes two levels of whole tiles, a data file each, at 1 um/px."""
  folder = path.with_suffix("")
  folder.mkdir(parents=True)
  path.write_bytes(_jpeg(pixels[:64, :64]))
  columns, rows = (side // tile for side in pixels.shape[1::-1])
  lines = [
    *("[GENERAL]", "SLIDE_VERSION = 01.02", f"SLIDE_ID = {_ID}"),
    *(f"IMAGENUMBER_X = {columns}", f"IMAGENUMBER_Y = {rows}"),
    *("OBJECTIVE_MAGNIFICATION = 10", "CameraImageDivisionsPerSide = 1"),
    *("[HIERARCHICAL]", "HIER_COUNT = 1", "NONHIER_COUNT = 0"),
    *("INDEXFILE = Index.dat", "HIER_0_NAME = Slide zoom level"),
    f"HIER_0_COUNT = {_LEVELS}",
  ]
  for level in range(_LEVELS):
    lines += [
      f"HIER_0_VAL_{level} = ZoomLevel_{level}",
      f"HIER_0_VAL_{level}_SECTION = LAYER_{level}",
    ]
  lines += ["[DATAFILE]", f"FILE_COUNT = {_LEVELS}"]
  lines += [f"FILE_{level} = Data{level:04d}.dat" for level in range(_LEVELS)]
  for level in range(_LEVELS):
    lines += [
      *(f"[LAYER_{level}]", "OVERLAP_X = 0", "OVERLAP_Y = 0"),
      f"MICROMETER_PER_PIXEL_X = {1 << level}",
      f"MICROMETER_PER_PIXEL_Y = {1 << level}",
      *("IMAGE_FORMAT = JPEG", "IMAGE_FILL_COLOR_BGR = 16777215"),
      *(f"DIGITIZER_WIDTH = {tile}", f"DIGITIZER_HEIGHT = {tile}"),
      f"IMAGE_CONCAT_FACTOR = {int(level > 0)}",
    ]
  text = "\ufeff" + "\r\n".join(lines)
  (folder / "Slidedat.ini").write_text(text, encoding="utf-8", newline="")
  index = bytearray(b"01.02" + _ID.encode() + bytes(8))
  root = len(index) - 8
  table = len(index)
  index += bytes(4 * _LEVELS)
  struct.pack_into("<i", index, root, table)
  for level in range(_LEVELS):
    entries = _write_level(folder, pixels, level, tile, columns)
    # A page without entries, which leads to one with all of them.
    struct.pack_into("<i", index, table + 4 * level, len(index))
    index += struct.pack("<iiii", 0, len(index) + 8, len(entries), 0)
    for entry in entries:
      index += struct.pack("<iiii", *entry)
  struct.pack_into("<i", index, root + 4, len(index))
  (folder / "Index.dat").write_bytes(bytes(index) + bytes(16))
  return path


def _write_level(folder, pixels, level, tile, columns) -> list[tuple[int, ...]]:
  """Writes a data file; returns place, offset, length and file of tiles."""
  size = [side >> level for side in pixels.shape[1::-1]]
  small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  data, entries = b"head", []
  for y in range(0, size[1], tile):
    for x in range(0, size[0], tile):
      jpeg = _jpeg(small[y : y + tile, x : x + tile])
      place = (y // tile << level) * columns + (x // tile << level)
      entries.append((place, len(data), len(jpeg), level))
      data += jpeg
  (folder / f"Data{level:04d}.dat").write_bytes(data)
  return entries


def _jpeg(pixels: np.ndarray) -> bytes:
  return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=92)
