"""Annotations that are pictures: a mask of the whole slide, of any scale."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from data_prep.wsi import pictures, scale, tissue_masks
from data_prep.wsi.annotations import mask_shape

Number = int | float | np.integer | np.floating


def read_mask(
  path: str | os.PathLike,
  level0_size: tuple[int, int],
  downsample: Number,
  values: Sequence[int] | None = None,
) -> Bool[np.ndarray, "h w"]:
  """Reads a mask picture of a whole slide at a given scale.

  Args:
    path: a picture, or a TIFF with or without a pyramid.
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
  picture = pictures.numbers(path, level0_size[0] / downsample)
  if (picture != picture[..., :1]).any():
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
