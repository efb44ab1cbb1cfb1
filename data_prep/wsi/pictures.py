"""Pictures as viewers show them: upright, right colours, square pixels.

Files hold pixels as a camera or scanner had them and say in their header how to
show them. Every reader of pictures and videos makes a `Showing` of that header.
"""

import dataclasses
import io
import os
import pathlib
import struct
from collections.abc import Sequence

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from jaxtyping import Shaped
from PIL import Image, UnidentifiedImageError

# A mask of a slide is larger than what Pillow takes for an attack. What is read
# here is measured before it is decoded; a header is all that `size` reads.
Image.MAX_IMAGE_PIXELS = None
# Of a picture, and of a mask of a slide.
_MOST_PX, _MOST_MASK_PX = 500_000_000, 2_000_000_000
_RESIZABLE = ("uint8", "uint16", "int16", "float32", "float64")  # by OpenCV
_MAX_PX = 4_000_000_000
_UNKNOWN_COLOURS = (
  tifffile.PHOTOMETRIC.CIELAB,
  tifffile.PHOTOMETRIC.ICCLAB,
  tifffile.PHOTOMETRIC.ITULAB,
)
_AS_RGB = (6, 7, 33007, 34892)  # JPEG, whose decoder makes RGB of YCbCr
_ORIENTATION = 0x0112  # the tag of EXIF and TIFF
# EXIF's numbers: quarter turns counter-clockwise, then mirrored left to right.
_TURNS = {
  1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True),
  5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False),
}  # fmt: skip
# The signs of a, b, c, d in a display matrix: x' = a x + c y, y' = b x + d y.
_MATRICES = {
  (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
  (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Showing:
  """How stored pixels become what a viewer shows."""

  orientation: int = 1  # of EXIF, 1 to 8; 1 = as stored
  aspect: float = 1.0  # width of a stored pixel over its height
  # colours [n, c] that the pixels are numbers of
  palette: Shaped[np.ndarray, "n c"] | None = None
  # whether the smallest value is white; pixels are unsigned
  is_inverted: bool = False
  has_alpha: bool = False  # whether the last channel is opacity
  background: float = 1.0  # what shows through, from 0, black, to 1, white

  def size(self, stored: tuple[int, int]) -> tuple[int, int]:
    """Returns (h, w) of what is shown; no pixel is lost to `aspect`."""
    height, width = stored
    if self.aspect > 1:
      width = round(width * self.aspect)
    elif self.aspect < 1:
      height = round(height / self.aspect)
    is_on_side = _TURNS[self.orientation][0] % 2
    return (width, height) if is_on_side else (height, width)

  def apply(self, pixels: np.ndarray) -> Shaped[np.ndarray, "h w c"]:
    """Returns what is shown of stored pixels, [h, w] or [h, w, c]."""
    if self.palette is not None:
      pixels = self.palette[pixels]
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if self.is_inverted:
      top = True if pixels.dtype == bool else np.iinfo(pixels.dtype).max
      pixels = np.bitwise_xor(pixels, top)
    if self.has_alpha:
      pixels = _laid_on(pixels, self.background)
    if self.aspect != 1:
      height, width = dataclasses.replace(self, orientation=1).size(
        pixels.shape[:2]
      )
      channels = pixels.shape[2]
      if pixels.dtype.name not in _RESIZABLE:
        pixels = pixels.astype(np.float32)
      pixels = cv2.resize(pixels, (width, height))
      pixels = pixels.reshape(height, width, channels)
    turns, is_mirrored = _TURNS[self.orientation]
    pixels = np.rot90(pixels, turns)
    return np.ascontiguousarray(pixels[:, ::-1] if is_mirrored else pixels)


def _laid_on(
  pixels: Shaped[np.ndarray, "h w c"], background: float
) -> Shaped[np.ndarray, "h w c2"]:
  top = np.iinfo(pixels.dtype).max
  colour, alpha = pixels[..., :-1], pixels[..., -1:].astype(np.float64) / top
  if (alpha == 1).all():
    return colour
  shown = colour * alpha + background * top * (1 - alpha)
  return np.rint(shown).astype(pixels.dtype)


def orientation_of(matrix: bytes | None) -> int:
  """Returns EXIF's number for the display matrix of a video frame."""
  if matrix is None:
    return 1
  a, b, _, c, d = struct.unpack("=5i", matrix[:20])
  return _MATRICES.get(tuple(int(np.sign(v)) for v in (a, b, c, d)), 1)


def tiff_page(page: tifffile.TiffPage) -> Showing:
  """Reads how a page of a TIFF is shown."""
  tag = page.tags.get(_ORIENTATION)
  kind = page.photometric
  palette = None
  if kind == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
    palette = (page.colormap.T >> 8).astype(np.uint8)
  return Showing(
    orientation=_known(tag.value if tag else 1),
    palette=palette,
    is_inverted=kind == tifffile.PHOTOMETRIC.MINISWHITE,
    has_alpha=any(sample in (1, 2) for sample in page.extrasamples),
  )


def read_page(
  page: tifffile.TiffPage | tifffile.TiffFrame,
  background: float = 1.0,
  has_numbers: bool = False,
) -> Shaped[np.ndarray, "h w c"]:
  """Reads a page of a TIFF as it is shown; see `numbers` for `has_numbers`.

  Raises:
    ValueError: its colours are not known here.
  """
  page = page.aspage()
  kind, pixels = page.photometric, page.asarray()
  if kind in _UNKNOWN_COLOURS:
    raise ValueError(f"its colours are {kind.name}: save it as RGB")
  if page.axes.find("S") == 0:  # channels first
    pixels = np.moveaxis(pixels, 0, -1)
  if kind == tifffile.PHOTOMETRIC.YCBCR and page.compression not in _AS_RGB:
    if pixels.dtype != np.uint8 or pixels.shape[-1] != 3:
      raise ValueError("its colours are YCbCr: save it as RGB")
    ycrcb = np.ascontiguousarray(pixels[..., [0, 2, 1]])
    pixels = cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB)
  showing = dataclasses.replace(tiff_page(page), background=background)
  if has_numbers and not _is_grey(showing.palette, pixels):
    showing = dataclasses.replace(showing, palette=None)
  if kind == tifffile.PHOTOMETRIC.SEPARATED:
    top = np.iinfo(pixels.dtype).max
    ink = 1 - pixels[..., :4].astype(np.float64) / top  # CMYK
    rgb = np.rint(ink[..., :3] * ink[..., 3:] * top).astype(pixels.dtype)
    pixels = np.concatenate([rgb, pixels[..., 4:]], axis=-1)
  return showing.apply(pixels)


def _is_grey(
  palette: Shaped[np.ndarray, "n c"] | None, pixels: np.ndarray
) -> bool:
  """Whether the colours that pixels use of a palette are greys."""
  if palette is None:
    return True
  used = palette[np.unique(pixels)]
  return bool((used == used[:, :1]).all())


def numbers(
  path: str | os.PathLike, least_width: float | int = np.inf
) -> Shaped[np.ndarray, "h w c"]:
  """Reads a picture whose pixels are numbers: a mask, or labels of objects.

  Its pixels lie as a viewer shows them, what is transparent is 0. Colours of a
  palette stand for their place in it, unless they are greys.

  Args:
    path: of any kind that `read` knows; of a TIFF its first picture.
    least_width: px; of a pyramid the smallest level that is as wide is taken.

  Raises:
    ValueError: no picture, several in one file, or whatever its decoder says.
  """
  try:
    if _is_tiff(path):
      return _tiff_numbers(path, least_width)
    with Image.open(path) as picture:
      if picture.mode == "P":
        _refuse_huge(picture.height, picture.width, _MOST_MASK_PX)
        showing, pixels = still(picture), np.asarray(picture)
        palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        if not _is_grey(palette, pixels):
          return showing.apply(pixels)
    return read(path, background=0.0, most_px=_MOST_MASK_PX)
  except Exception as error:  # decoders raise whatever they like
    raise ValueError(f"{path}: not a picture that is read: {error}") from error


def _is_tiff(path: str | os.PathLike) -> bool:
  """By its content: names are wrong at times."""
  with open(path, "rb") as file:
    return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _tiff_numbers(
  path: str | os.PathLike, least_width: float | int
) -> Shaped[np.ndarray, "h w c"]:
  with tifffile.TiffFile(path) as file:
    levels = []
    for level in file.series[0].levels:
      page = level.keyframe
      sides = tiff_page(page).size((page.imagelength, page.imagewidth))
      levels.append((sides, level))
    # Wide enough, up to the pixel that rounding drops.
    fine = [v for v in levels if v[0][1] >= least_width - 1] or levels[:1]
    (height, width), level = min(fine, key=lambda v: v[0][1])
    if len(level.pages) > 1:
      raise ValueError(f"it has {len(level.pages)} pictures, and one is wanted")
    if height * width > _MAX_PX:
      raise ValueError(f"{width}x{height} px are too many: store a pyramid")
    return read_page(level.keyframe, 0.0, has_numbers=True)


def size(
  path: str | os.PathLike | io.BytesIO, formats: Sequence[str] | None = None
) -> tuple[int, int]:
  """Returns (h, w) as shown of a picture; its header alone is read."""
  is_file = not isinstance(path, io.BytesIO)
  if is_file and formats is None and _is_tiff(path):
    with tifffile.TiffFile(path) as file:
      page = file.pages[0]
      return tiff_page(page).size((page.imagelength, page.imagewidth))
  try:
    with Image.open(path, formats=formats) as picture:
      return still(picture).size((picture.height, picture.width))
  except UnidentifiedImageError as error:
    raise _unknown(path if is_file else "") from error


def count(path: str | os.PathLike) -> int:
  """Returns how many pictures a PNG, JPEG or BMP has: some are animated."""
  with Image.open(path) as picture:
    return getattr(picture, "n_frames", 1)


def _unknown(path: str | os.PathLike) -> UnidentifiedImageError:
  return UnidentifiedImageError(
    f"{path}: no picture that is known: save it as PNG, JPEG or TIFF"
  )


def _refuse_huge(height: int, width: int, most: int) -> None:
  """A small file may hold zeros for any number of pixels."""
  if height * width > most:
    raise ValueError(
      f"{width} x {height} px, more than {most:,}: cut it, or make a slide or "
      "a pyramid of it"
    )


def read(
  path: str | os.PathLike, background: float = 1.0, most_px: int = _MOST_PX
) -> Shaped[np.ndarray, "h w c"]:
  """Reads a picture as it is shown, with the depth it is stored in.

  Args:
    path: PNG, JPEG, BMP, TIFF (its first page), or what else Pillow reads.
    background: what shows through transparent pixels, 0 black to 1 white.
    most_px: larger ones are refused before they are decoded.

  Returns:
    The pixels, one to three channels; more where a TIFF has more.

  Raises:
    Exception: whatever its decoder raises for a damaged file.
  """
  if _is_tiff(path):
    with tifffile.TiffFile(path) as file:
      page = file.pages[0]
      _refuse_huge(page.imagelength, page.imagewidth, most_px)
      return read_page(page, background)
  try:
    return decode(pathlib.Path(path).read_bytes(), background, most_px=most_px)
  except UnidentifiedImageError as error:
    raise _unknown(path) from error


def decode(
  data: bytes,
  background: float = 1.0,
  formats: Sequence[str] | None = None,
  most_px: int = _MOST_PX,
) -> Shaped[np.ndarray, "h w c"]:
  """Decodes a picture as `read` does; `formats` are Pillow's names allowed."""
  with Image.open(io.BytesIO(data), formats=formats) as picture:
    _refuse_huge(picture.height, picture.width, most_px)
    showing = still(picture)
    if picture.format not in ("PNG", "BMP", "JPEG"):
      has_alpha = picture.has_transparency_data
      if has_alpha or picture.mode not in ("1", "L", "I;16", "I", "F"):
        picture = picture.convert("RGBA" if has_alpha else "RGB")
      return dataclasses.replace(
        showing, has_alpha=has_alpha, background=background
      ).apply(np.asarray(picture))
    kind = picture.format
  if kind == "JPEG":
    is_grey = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
    # simplejpeg refuses a cut file; others would fill it up with grey.
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if is_grey else "RGB")
  else:
    decode = imagecodecs.png_decode if kind == "PNG" else imagecodecs.bmp_decode
    pixels = decode(data)  # palettes are looked up
  has_alpha = pixels.ndim == 3 and pixels.shape[-1] in (2, 4)
  showing = dataclasses.replace(
    showing, has_alpha=has_alpha, background=background
  )
  return showing.apply(pixels)


def grey(
  pixels: Shaped[np.ndarray, "h w c"],
) -> Shaped[np.ndarray, "h w"]:
  """Returns brightness, of the type the pixels have."""
  if pixels.shape[2] == 1:
    return pixels[..., 0]
  weights = np.array([0.299, 0.587, 0.114])
  return np.rint(pixels[..., :3] @ weights).astype(pixels.dtype)


def still(picture: Image.Image) -> Showing:
  """Reads how a picture that Pillow opened is shown, less its colours."""
  # Not `getexif`, which would decode a whole PNG.
  exif = Image.Exif()
  exif.load(picture.info.get("exif", b""))
  return Showing(_known(exif.get(_ORIENTATION, 1)))


def _known(orientation: int) -> int:
  """Cameras write 0 where they do not know."""
  return orientation if orientation in _TURNS else 1
