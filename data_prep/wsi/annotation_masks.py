"""Annotations that are pictures: a mask of the whole slide, of any scale."""

import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import tifffile
from jaxtyping import Bool

from data_prep.wsi import scale, tissue_masks
from data_prep.wsi.annotations import mask_shape

Number = int | float | np.integer | np.floating
_MAX_MASK_PX = 4_000_000_000


def read_mask(
  path: str | os.PathLike,
  level0_size: tuple[int, int],
  downsample: Number,
  values: Sequence[int] | None = None,
) -> Bool[np.ndarray, "h w"]:
  """Reads a mask picture of a whole slide at a given scale.

  Args:
    path: PNG, or TIFF with or without a pyramid.
    level0_size: width, height of the slide in level-0 pixels.
    downsample: level-0 pixels per pixel of the result.
    values: pixel values that count; None: the brighter of two (0/1, 0/255 and
      JPEG masks all work).

  Returns:
    A mask as `draw` makes it: each pixel is what lies at its centre.

  Raises:
    ValueError: no picture, in colour, of another shape than the slide, of
      several classes without `values`, or too large without a pyramid.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() in (".tif", ".tiff"):
    picture = _tiff_level(path, level0_size, downsample)
  else:
    picture = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
      raise ValueError(f"{path}: not a picture that can be read as a mask")
  if picture.ndim == 3:
    if (picture[..., :3] != picture[..., :1]).any():
      raise ValueError(f"{path}: a colour picture, not a mask of one channel")
    picture = picture[..., 0]
  height, width = picture.shape
  ratios = [a / b for a, b in zip(level0_size, (width, height), strict=True)]
  both = scale.level_downsample(
    tuple(level0_size), (width, height), sum(ratios) / 2
  )
  ratios = [both, both] if both else ratios
  if abs(ratios[0] / ratios[1] - 1) > 0.01 + 2 / min(width, height):
    raise ValueError(
      f"{path}: a mask of {width}x{height} px has not the shape of the slide "
      f"({level0_size[0]}x{level0_size[1]} level-0 px)"
    )
  if values is not None:
    found = np.isin(picture, np.asarray(values))
  elif (found := tissue_masks.two_values(picture)) is None:
    raise ValueError(
      f"{path}: a mask of the values {np.unique(picture)[:8].tolist()}: name "
      "those that count, such as config.data.annotation_include=('2',)"
    )
  shape = mask_shape(level0_size, downsample)
  rows, columns = (
    np.minimum((np.arange(n) + 0.5) * downsample / ratio, side - 1).astype(int)
    for n, ratio, side in zip(shape, ratios[::-1], (height, width), strict=True)
  )
  return found[rows[:, None], columns]


def _tiff_level(path, level0_size, downsample) -> np.ndarray:
  """The coarsest level of a TIFF that is at least as fine as asked for."""
  try:
    with tifffile.TiffFile(path) as file:
      levels = file.series[0].levels
      wanted = level0_size[0] / downsample
      # Wide enough, up to the pixel that rounding drops.
      fine = [v for v in levels if v.shape[1] >= wanted - 1] or levels[:1]
      level = min(fine, key=lambda v: v.shape[1])
      if level.shape[0] * level.shape[1] > _MAX_MASK_PX:
        raise ValueError(
          f"{path}: {level.shape[1]}x{level.shape[0]} px is the smallest level "
          f"for downsample={downsample}; store the mask as a pyramid"
        )
      return level.asarray()
  except (tifffile.TiffFileError, OSError, IndexError) as error:
    raise ValueError(f"{path}: not a TIFF that can be read: {error}") from error
