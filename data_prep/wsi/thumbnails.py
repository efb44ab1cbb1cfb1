"""A small picture of a whole slide, from the smallest level that has it."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import level_check, oddities, openslide_file


@runtime_checkable
class Leveled(Protocol):
  """What is needed of a slide; `slides.Slide` is one."""

  path: pathlib.Path
  name: str
  level0_px: tuple[int, int]
  levels: Sequence[Any]  # of `slides.Level`
  notes: list[SlideError]
  read_level: Any


def make(
  slide: Leveled, max_px: int, lost: list[SlideError] | None = None
) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
  """Returns a small picture of the whole slide, from level-0 (0, 0) on.

  Made by area averaging from the smallest level that is large enough; where
  that is damaged, from the next one, and where all are, from the one that
  lost least, with its damaged tiles white.

  Args:
    slide: what is read.
    max_px: longest side at most; a smaller slide is not enlarged.
    lost: takes `notes`, and an error for each damaged tile that was met.

  Returns:
    RGB pixels, and level-0 pixels per thumbnail pixel.

  Raises:
    SlideError: nothing of the slide can be read, its colours are not what the
      file says, or its levels show different things.
  """
  downsample = max(1.0, max(slide.level0_px) / max_px)
  numbers = [
    i for i, v in enumerate(slide.levels) if v.downsample <= downsample
  ]
  numbers.sort(key=lambda i: -slide.levels[i].downsample)
  best, least, damage = None, math.inf, []
  for number in numbers:
    bad: list[SlideError] = []
    picture = _from_level(slide, number, downsample, bad)
    damage += bad
    area = len(bad) * slide.levels[number].downsample ** 2
    if area < least:
      best, least = picture, area
    if not bad:
      break
  for error in damage:
    error.stage = "thumbnail"
  if least and (best == 255).all():
    if why := openslide_file.cause(slide.path, False):
      text = f"nothing of {slide.path} can be read{why}"
      raise SlideError(text, "thumbnail", "unsupported_format", slide.name)
    raise damage[0]
  oddities.refuse_colours(best, slide.name)
  level_check.refuse_others(slide, best, downsample)
  if lost is not None:
    lost += [*slide.notes, *damage]
  return best, downsample


def _from_level(
  slide: Leveled, number: int, downsample: float, lost: list[SlideError]
) -> UInt8[np.ndarray, "h w 3"]:
  width, height = (max(1, round(side / downsample)) for side in slide.level0_px)
  level = slide.levels[number]
  # Whole-number averaging band by band, which needs little memory where there
  # is no pyramid, then one resize of the small rest.
  whole = max(1, int(downsample / level.downsample))
  rows = whole * max(1, 512 // whole)
  bands, bad = [], {}
  for y in range(0, level.size_px[1], rows):
    size = -(-level.size_px[0] // whole) * whole, rows
    met: list[SlideError] = []
    band = slide.read_level(number, (0, y), size, lost=met)
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
