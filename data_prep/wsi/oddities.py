"""What is odd about a slide that can be read: its scale, pictures, colours.

Each is a silent error elsewhere: a scale ten times off, the label taken for the
slide, planes and scenes that nobody reads, colours of another colour space.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8

from data_prep.files import done
from data_prep.files.errors import SlideError
from data_prep.wsi.scale import level_downsample

# Objective times um per pixel is about 10. Cameras and tube lenses shift that;
# these bounds leave room for them, and none for a wrong unit.
_POWER_TIMES_MPP = (4.0, 25.0)
_LONGEST_MM = 160.0  # the largest glass slides are 152 mm long
_REDUCED = 1  # the bit of a TIFF page that is a smaller copy of another
_NEUTRAL = 128  # Cb and Cr of grey
_CLOSE, _WIDE = 8, 64  # grey levels around it: of glass, of stains
_MIN_GLASS = 0.05  # share of a picture


def doubtful_scale(
  mpp: float | int,
  origin: str,
  level0_px: tuple[int, int],
  power: str,
  slide: str,
) -> list[SlideError]:
  """Says that a scale does not go with the objective, or with any slide.

  Args:
    mpp: um per level-0 pixel.
    origin: who says so.
    level0_px: width, height of the slide.
    power: magnification of the objective as the file states it, '' without.
    slide: slide id.
  """
  wrong = ""
  mm = max(level0_px) * mpp / 1000
  if mm > _LONGEST_MM:
    wrong = f"makes the slide {mm:.0f} mm long"
  try:
    magnification = float(power or 0)
  except ValueError:
    magnification = 0.0
  low, high = _POWER_TIMES_MPP
  if magnification > 0 and not low <= mpp * magnification <= high:
    wrong = (
      f"does not go with the objective of {magnification:g}x, which gives "
      f"about {10 / magnification:.2g}"
    )
  if not wrong:
    return []
  text = (
    f"mpp {mpp:g} ({origin}) {wrong}: check it, and give the true value in the "
    "CSV column mpp"
  )
  return [SlideError(text, "mpp", "mpp_doubtful", slide)]


def other_pictures(
  path: str | os.PathLike,
  level0_px: tuple[int, int],
  mpp_origin: str,
  slide: str,
) -> list[SlideError]:
  """Says which pictures of a plain TIFF are not read beside the first.

  Args:
    path: the file.
    level0_px: width, height of what is read.
    mpp_origin: who says its scale; 'tiff' is the first picture.
    slide: slide id.

  Raises:
    SlideError: one of them is larger than what is read, or the scale is that
      of a smaller one.
  """
  try:
    with tifffile.TiffFile(path) as tiff:
      first = tiff.pages[0].imagewidth, tiff.pages[0].imagelength
      sizes = [
        (page.imagewidth, page.imagelength)
        for page in tiff.pages[1:]
        if not page.subfiletype & _REDUCED
      ]
  except (tifffile.TiffFileError, ValueError):
    return []  # a damaged directory that OpenSlide reads
  if mpp_origin == "tiff" and first != tuple(level0_px):
    text = (
      f"the file begins with a smaller level, {first[0]}x{first[1]} px, and "
      "the resolution stated there may be that of any level: give the mpp of "
      "the largest in the CSV column mpp"
    )
    raise SlideError(text, "mpp", "no_mpp", slide)
  area = level0_px[0] * level0_px[1]
  largest = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
  if largest[0] * largest[1] > area:
    text = (
      f"the first picture of the file, {level0_px[0]}x{level0_px[1]} px, is "
      f"not its largest, {largest[0]}x{largest[1]} px: it may be the label. "
      f"Write the slide alone: {export(sizes.index(largest) + 1)}"
    )
    raise SlideError(text, "open", "not_the_largest", slide)
  others = [
    size
    for size in sizes
    if size == level0_px
    or size[0] * size[1] > area / 4
    and not _is_level(level0_px, size)
  ]
  if not others:
    return []
  text = (
    f"the file has more pictures, {len(others)} of up to {others[0][0]}x"
    f"{others[0][1]} px, that are not read: planes, channels or scenes. Write "
    f"each that is a slide into a file of its own: {export(1)}"
  )
  return [SlideError(text, "open", "other_pictures", slide)]


def warn_of_copies(slides: Iterable[Any], log: Callable[[str], None]) -> None:
  """Says that patients share a file: a split between them would leak.

  Args:
    slides: of `find.SlideEntry`.
    log: is told.
  """
  by_size = collections.defaultdict(list)
  for slide in slides:
    if slide.path.lower().endswith(".mrxs"):
      continue  # that is its picture; the data are beside it
    with contextlib.suppress(OSError):
      by_size[os.stat(slide.path).st_size].append(slide)
  pairs = []
  for alike in by_size.values():
    first: dict[str, Any] = {}
    for slide in alike if len(alike) > 1 else ():
      with contextlib.suppress(OSError):
        other = first.setdefault(done.file_digest(slide.path), slide)
        if other.patient_id != slide.patient_id:
          pairs.append(f"{other.path} and {slide.path}")
  if pairs:
    more = f" (and {len(pairs) - 1} pairs more)" if len(pairs) > 1 else ""
    log(
      f"warning: {pairs[0]}{more} are one file, and of two patients: leave one"
    )


def export(page: int, is_rgb: bool = True) -> str:
  """The command that writes one picture of a TIFF as a slide."""
  into = "'OUT.tif[tile,pyramid,compression=jpeg,Q=90]'"
  if is_rgb:
    return f"vips copy 'IN.tif[page={page}]' {into}"
  return f"vips colourspace 'IN.tif[page={page}]' {into} srgb"


def _is_level(level0: tuple[int, int], size: tuple[int, int]) -> bool:
  ratios = [big / small for big, small in zip(level0, size, strict=True)]
  return level_downsample(level0, size, sum(ratios) / 2) is not None


def is_ycbcr(picture: UInt8[np.ndarray, "h w 3"]) -> bool:
  """Whether YCbCr was taken for RGB: glass is salmon, no colour is strong.

  Example:
    >>> is_ycbcr(np.full((9, 9, 3), (242, 127, 129), np.uint8))
    True
    >>> is_ycbcr(np.full((9, 9, 3), (243, 242, 240), np.uint8))
    False
  """
  scanned = picture[~(picture == 255).all(-1)].astype(int)
  if not len(scanned):
    return False
  chroma = np.abs(scanned[:, 1:] - _NEUTRAL).max(1)
  glass = (scanned[:, 0] > 200) & (chroma <= _CLOSE)
  return bool(glass.mean() > _MIN_GLASS and (chroma < _WIDE).mean() > 0.98)


def refuse_colours(
  picture: UInt8[np.ndarray, "h w 3"], slide: str = ""
) -> None:
  """Refuses colours that were taken for those of another colour space.

  Args:
    picture: the slide, small.
    slide: slide id.

  Raises:
    SlideError: glass is salmon (YCbCr called RGB) or magenta (the reverse).
  """
  red, green, blue = (picture[..., i] for i in range(3))
  magenta = (red > 250) & (blue > 250) & (abs(green.astype(int) - 128) < 24)
  if is_ycbcr(picture):
    seen, held, said, tag = "salmon", "YCbCr", "RGB", 6
  elif magenta.mean() > _MIN_GLASS:
    seen, held, said, tag = "magenta", "RGB", "YCbCr", 2
  else:
    return
  raise SlideError(
    f"its glass is {seen}, as if the file held {held} and said {said}. Correct "
    f"what it says: of a TIFF, tiffset -s 262 {tag} FILE; of a DICOM file, "
    "PhotometricInterpretation",
    "thumbnail",
    "odd_colours",
    slide,
  )
