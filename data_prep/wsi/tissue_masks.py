"""Tissue masks: from a picture, to polygons, their area."""

import os

import cv2
import numpy as np
from jaxtyping import Bool

from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import pictures

Mask = Bool[np.ndarray, "h w"]
Number = int | float | np.integer | np.floating


def load_mask(path: str | os.PathLike, shape: tuple[int, int]) -> Mask:
  """Reads a tissue mask drawn by a person or another program.

  Args:
    path: a picture of the whole slide; above half of its brightest value is
      tissue (0/1, 0/255 and JPEG masks all work).
    shape: height, width of the thumbnail it has to fit.

  Returns:
    True where there is tissue.

  Raises:
    SlideError: no readable picture, or not the shape of the slide.
  """
  try:
    picture = pictures.grey(pictures.read(path, background=0.0))
  except Exception as error:  # decoders raise whatever they like
    problem = as_slide_error(error, "", "tissue")
    problem.error = "unreadable_mask"
    problem.message = f"cannot read the tissue mask {path}: {problem.message}"
    raise problem from error
  height, width = picture.shape
  # Compare where the far corner would land: rounding moves it by a pixel.
  slack = 1 + 0.01 * max(shape)
  if abs(width * shape[0] / height - shape[1]) > slack:
    raise SlideError(
      f"the tissue mask {path} is {width}x{height} px, which is not the shape "
      f"of the slide ({shape[1]}x{shape[0]} as a thumbnail)",
      stage="tissue",
      error="mask_shape",
    )
  if not picture.any():
    return np.zeros(shape, bool)
  tissue = (picture > picture.max() / 2).astype(np.float32)
  shrink = width >= shape[1]
  kernel = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
  return cv2.resize(tissue, shape[::-1], interpolation=kernel) >= 0.5


def tissue_mm2(mask: Mask, mpp: Number) -> float:
  """Returns the area of the tissue in square millimetres.

  Args:
    mask: True where there is tissue.
    mpp: um per mask pixel.

  Returns:
    The area.

  Example:
    >>> tissue_mm2(np.ones((20, 10), bool), 1000.0)
    200.0
  """
  return float(mask.sum()) * (mpp / 1000) ** 2


def mask_polygons(mask: Mask, downsample: Number) -> list[list[list[float]]]:
  """Outlines a mask as closed rings in level-0 pixels.

  Holes are rings of their own, of the opposite sense: filling all rings by the
  even-odd rule (or by the non-zero rule) gives the mask back.

  Args:
    mask: True where there is tissue.
    downsample: level-0 pixels per mask pixel.

  Returns:
    Rings of [x, y], the last point equal to the first; outer rings have
    positive area `sum(x_i * y_(i+1) - x_(i+1) * y_i) / 2`, holes negative.

  Example:
    >>> mask = np.zeros((20, 20), bool); mask[5:15, 5:15] = True
    >>> len(mask_polygons(mask, 4.0))
    1
  """
  # Contours run through pixel centres; on a finer grid less is lost at edges.
  fine = 4
  big = np.kron(mask.astype(np.uint8), np.ones((fine, fine), np.uint8))
  contours, tree = cv2.findContours(big, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
  rings = []
  for contour, links in zip(contours, tree[0] if contours else (), strict=True):
    ring = cv2.approxPolyDP(contour, 0.5 * fine, True)[:, 0].astype(float)
    if len(ring) < 3:
      continue
    ring = (ring + 0.5) / fine * downsample
    nxt = np.roll(ring, -1, axis=0)
    area = (ring[:, 0] * nxt[:, 1] - nxt[:, 0] * ring[:, 1]).sum() / 2
    is_hole = links[3] >= 0
    if (area > 0) == is_hole:
      ring = ring[::-1]
    rings.append(np.round(np.vstack([ring, ring[:1]]), 1).tolist())
  return rings
