"""Do the levels of a slide show the same? Masks come from one, pixels of all.

Pyramids that were put together by hand, or by a program with a mistake, have
levels of another slide, turned, shifted or blank. Sizes do not tell.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import oddities

_SPOTS = 6  # by contrast, and as many of a grid: one level may be blank
_SIDE = 16  # px of the coarser level
_MOST_PX = 512  # of the finer level
_LEAST_PX = 96  # shortest side of a level that is looked at
_STRUCTURE = 5.0  # std in grey levels; below it is noise of glass
_ALIKE = 0.3  # correlation; levels of one slide have 0.8 and more
_GREY = np.array([0.299, 0.587, 0.114])


def refuse_others(
  slide: Any, picture: UInt8[np.ndarray, "h w 3"], downsample: float
) -> None:
  """Refuses a slide of which two levels show different things.

  Args:
    slide: a `thumbnails.Leveled`.
    picture: the whole of it, small.
    downsample: level-0 pixels a pixel of the picture.

  Raises:
    SlideError: two levels do not correlate at a dozen small places.
  """
  numbers = [
    i for i, v in enumerate(slide.levels) if min(v.size_px) >= _LEAST_PX
  ]
  numbers.sort(key=lambda i: slide.levels[i].downsample)
  spots = list(_spots(picture, downsample)) if len(numbers) > 1 else []
  for fine, coarse in itertools.pairwise(numbers):
    pairs = [_pair(slide, fine, coarse, spot) for spot in spots]
    a, b = (
      np.concatenate([one[i] for one in pairs if one is not None] or [[]])
      for i in (0, 1)
    )
    own, other = (np.sqrt((v**2).mean()) if len(v) else 0.0 for v in (a, b))
    if max(own, other) < _STRUCTURE:
      continue
    if (a * b).mean() < _ALIKE * own * other or min(own, other) < 1:
      raise SlideError(
        f"levels {fine} and {coarse} do not show the same, as if one was of "
        "another slide, turned or empty. Make the pyramid anew: "
        f"{oddities.export(0)}",
        "thumbnail",
        "levels_differ",
        slide.name,
      )


def _spots(picture, downsample: float) -> Iterator[tuple[float, float]]:
  """Places of contrast and of a grid, x, y in level-0 pixels."""
  height, width = (side // _SIDE for side in picture.shape[:2])
  rows, columns = np.mgrid[1:4:2, 1:6:2]
  grid = zip((rows.ravel() / 4).tolist(), columns.ravel() / 6, strict=True)
  for y, x in grid:
    yield (
      x * picture.shape[1] * downsample,
      y * picture.shape[0] * downsample,
    )
  if not (height and width):
    return
  grey = picture[: height * _SIDE, : width * _SIDE] @ _GREY
  blocks = grey.reshape(height, _SIDE, width, _SIDE)
  spread = blocks.std(axis=(1, 3)).ravel()
  for block in np.argsort(-spread, kind="stable")[:_SPOTS].tolist():
    row, column = divmod(block, width)
    yield (
      (column + 0.5) * _SIDE * downsample,
      (row + 0.5) * _SIDE * downsample,
    )


def _pair(
  slide, fine: int, coarse: int, spot: tuple[float, float]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None:
  """A place in both levels, brightness less its mean; None where damaged."""
  large, small = slide.levels[fine], slide.levels[coarse]
  ratio = small.downsample / large.downsample
  side = max(4, min(_SIDE, int(_MOST_PX / ratio)))
  corner = tuple(
    int(np.clip(v / small.downsample - side / 2, 0, max(0, n - side)))
    for v, n in zip(spot, small.size_px, strict=True)
  )
  lost: list[SlideError] = []
  low = slide.read_level(coarse, corner, (side, side), lost=lost)
  size = round(side * ratio)
  corner = tuple(round(v * ratio) for v in corner)
  high = slide.read_level(fine, corner, (size, size), lost=lost)
  if lost:
    return None
  high = cv2.resize(high, (side, side), interpolation=cv2.INTER_AREA)
  a, b = ((v @ _GREY).ravel() for v in (high, low))
  return a - a.mean(), b - b.mean()
