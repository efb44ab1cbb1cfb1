"""Small tiled pyramids written with tifffile, and ways to damage them."""

import pathlib

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile

TILE = 128


def picture(width: int = 700, height: int = 500, seed: int = 0) -> np.ndarray:
  """A smooth random RGB picture, so that JPEG changes it little."""
  noise = np.random.default_rng(seed).integers(
    0, 256, (height, width, 3), np.uint8
  )
  return cv2.normalize(
    cv2.GaussianBlur(noise, (0, 0), 6), None, 60, 230, cv2.NORM_MINMAX
  )


def write(
  path: pathlib.Path,
  pixels: np.ndarray,
  mpp: float | tuple[float, float] | None = 0.5,
  levels: int = 2,
  compression: str = "jpeg",
  unit: str = "CENTIMETER",
  **options,
) -> pathlib.Path:
  """Writes a tiled pyramid with factor 4 between the levels."""
  x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
  common = {
    "tile": (TILE, TILE),
    "compression": compression,
    "photometric": "rgb",
    **options,
  }
  if mpp is not None:
    common["resolution"] = (10_000 / x, 10_000 / y)
    common["resolutionunit"] = unit
  with tifffile.TiffWriter(path) as file:
    for level in range(levels):
      if level:
        # Floor, as slide scanners do.
        height, width = (side // 4 for side in pixels.shape[:2])
        pixels = cv2.resize(
          pixels[: 4 * height, : 4 * width],
          (width, height),
          interpolation=cv2.INTER_AREA,
        )
      file.write(pixels, subfiletype=int(level > 0), **common)
  return path


def watch_decoding(monkeypatch) -> list[int]:
  """Takes an entry for each JPEG tile that is decoded from now on."""
  decode, seen = simplejpeg.decode_jpeg, []

  def watched(data, **options):
    seen.append(len(data))
    return decode(data, **options)

  monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
  return seen


def tile_at(path: pathlib.Path, level: int, column: int, row: int):
  """Returns (offset, length) of a stored tile."""
  with tifffile.TiffFile(path) as file:
    page = file.pages[level]
    index = row * -(-page.imagewidth // page.tilewidth) + column
    return page.dataoffsets[index], page.databytecounts[index]


def overwrite(path: pathlib.Path, offset: int, data: bytes) -> None:
  """Replaces bytes inside a file."""
  with open(path, "r+b") as file:
    file.seek(offset)
    file.write(data)


def damage(path, kind: str, level: int = 0, column: int = 1, row: int = 1):
  """Damages one tile in one of the ways files really get damaged."""
  offset, length = tile_at(path, level, column, row)
  half = length // 2
  other, _ = tile_at(path, level, 0, 0)
  stored = path.read_bytes()
  new = {
    "zeroed": (offset, bytes(length)),
    "half zeroed": (offset + half, bytes(length - half)),
    "half random": (
      offset + half,
      np.random.default_rng(0).bytes(length - half),
    ),
    # The end marker survives, only the picture between does not.
    "middle random": (
      offset + half,
      np.random.default_rng(0).bytes(length - half - 2),
    ),
    "half of another": (
      offset + half,
      stored[other + half : other + half + length - half - 2],
    ),
    "first half zeroed": (offset, bytes(half)),
  }[kind]
  overwrite(path, *new)


def unlist_tile(path, level: int, column: int, row: int) -> None:
  """Makes a tile one that was never stored (no bytes in the directory)."""
  with tifffile.TiffFile(path) as file:
    page = file.pages[level]
    index = row * -(-page.imagewidth // page.tilewidth) + column
    places = []
    for name in ("TileOffsets", "TileByteCounts"):
      tag = page.tags[name]
      size = {3: 2, 4: 4, 16: 8}[tag.dtype]
      places.append((tag.valueoffset + index * size, size))
  for offset, size in places:
    overwrite(path, offset, bytes(size))


def write_svs(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
  """Writes an Aperio slide: level 0, a thumbnail in strips, a level of 1/4."""
  head = "Aperio Image Library v11.2.1 \r\n"
  height, width = pixels.shape[:2]
  small = cv2.resize(
    pixels, (width // 4, height // 4), interpolation=cv2.INTER_AREA
  )
  options = {"photometric": "rgb", "metadata": None}
  tiled = {"tile": (TILE, TILE), "compression": "jpeg", **options}
  what = f"{head}{width}x{height} (128x128) JPEG/RGB|AppMag = 20|MPP = 0.5"
  with tifffile.TiffWriter(path) as file:
    file.write(pixels, description=what, **tiled)
    file.write(small[::4, ::4], description=head, rowsperstrip=16, **options)
    file.write(small, description=head, **tiled)
  return path


def write_ome(
  path: pathlib.Path, pixels: np.ndarray, compression: str, mpp: float = 0.5
) -> pathlib.Path:
  """Writes OME-TIFF: the scale in XML, levels of 1/2 and 1/4 in SubIFDs."""
  options = {
    "tile": (TILE, TILE),
    "photometric": "rgb",
    "compression": compression,
  }
  sizes = {
    f"PhysicalSize{axis}{end}": value
    for axis in "XY"
    for end, value in (("", mpp * 1000), ("Unit", "nm"))
  }
  with tifffile.TiffWriter(path, ome=True) as file:
    file.write(pixels, subifds=2, metadata={"axes": "YXS", **sizes}, **options)
    for factor in (2, 4):
      height, width = (side // factor for side in pixels.shape[:2])
      small = cv2.resize(
        pixels[: height * factor, : width * factor],
        (width, height),
        interpolation=cv2.INTER_AREA,
      )
      file.write(small, subfiletype=1, **options)
  return path


def write_rgb_tiles(
  path: pathlib.Path, pixels: np.ndarray, **options
) -> pathlib.Path:
  """Writes JPEG tiles of RGB that do not say so: the TIFF tag alone does."""

  def tiles():
    for y in range(0, pixels.shape[0], TILE):
      for x in range(0, pixels.shape[1], TILE):
        jpeg = imagecodecs.jpeg8_encode(
          np.ascontiguousarray(pixels[y : y + TILE, x : x + TILE]),
          level=95,
          colorspace="rgb",
          outcolorspace="rgb",
        )
        yield _without_colour_space(jpeg)

  with tifffile.TiffWriter(path) as file:
    file.write(
      tiles(),
      shape=pixels.shape,
      dtype=np.uint8,
      tile=(TILE, TILE),
      compression="jpeg",
      photometric="rgb",
      compressionargs={"outcolorspace": "rgb"},
      **options,
    )
  return path


def _without_colour_space(jpeg: bytes) -> bytes:
  """Drops the Adobe marker and the component names R, G, B."""
  at = jpeg.index(b"\xff\xee")
  jpeg = jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]
  jpeg = bytearray(jpeg)
  frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
  for i in range(3):
    jpeg[frame + 10 + 3 * i] = jpeg[scan + 5 + 2 * i] = i + 1
  return bytes(jpeg)
