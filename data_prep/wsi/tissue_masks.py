"""Tissue masks: from a picture, to polygons, their area."""

import os

import cv2
import numpy as np
from jaxtyping import Bool, Shaped

from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import pictures

Mask = Bool[np.ndarray, "h w"]
_SOFT_PX = 9  # a soft border is thinner than this
Number = int | float | np.integer | np.floating


def load_mask(
  path: str | os.PathLike,
  shape: tuple[int, int],
  values: str | Number = "",
) -> Mask:
  """Reads a tissue mask drawn by a person or another program.

  Args:
    path: a picture of the whole slide of two values, of which 0 is no tissue.
      Their border may be soft (JPEG, made smaller): then tissue is what is
      above half of the brighter one.
    shape: height, width of the thumbnail it has to fit.
    values: the values that are tissue in a mask of several classes, such as
      "1" or "1 2"; empty for a mask of two values.

  Returns:
    True where there is tissue.

  Raises:
    SlideError: no readable picture, not the shape of the slide, or values that
      do not say what is tissue.
  """
  try:
    picture = pictures.grey(pictures.numbers(path))
  except Exception as error:  # decoders raise whatever they like
    problem = as_slide_error(error, "", "tissue")
    problem.error = "unreadable_mask"
    problem.message = f"cannot read the tissue mask {path}: {problem.message}"
    raise problem from error
  sides = picture.shape
  # One factor for both sides; the shorter may be rounded by a pixel of either.
  longer = int(np.argmax(shape))
  factor = sides[longer] / shape[longer]
  for have, want in zip(sides, shape, strict=True):
    if abs(have - want * factor) > 1 + factor / 2 + 0.01 * have:
      raise SlideError(
        f"the tissue mask {path} is {sides[1]}x{sides[0]} px, which is not the "
        f"shape of the slide ({shape[1]}x{shape[0]} as a thumbnail)",
        stage="tissue",
        error="mask_shape",
      )
  tissue = _tissue_of(picture, str(values), path).astype(np.float32)
  size = [max(1, round(side / factor)) for side in sides[::-1]]
  kernel = cv2.INTER_AREA if factor >= 1 else cv2.INTER_LINEAR
  mask = cv2.resize(tissue, size, interpolation=kernel) >= 0.5
  more = [(0, max(0, a - b)) for a, b in zip(shape, mask.shape, strict=True)]
  return np.pad(mask, more, mode="edge")[: shape[0], : shape[1]]


def _tissue_of(
  picture: Shaped[np.ndarray, "h w"], values: str, path: str | os.PathLike
) -> Mask:
  """Says which pixels of a mask are tissue, or refuses it."""
  found = np.unique(picture)
  if values:
    try:
      wanted = [float(word) for word in values.replace(";", " ").split()]
    except ValueError:
      wanted = []
    if not wanted:
      raise _bad_values(path, found, f"tissue_mask_values={values!r}")
    if wanted == [0] and (mask := two_values(picture)) is not None:
      return ~mask  # soft borders too
    return np.isin(picture, wanted)
  mask = two_values(picture)
  if mask is None:
    raise _bad_values(path, found, "nothing says which are tissue")
  return mask


def two_values(picture: Shaped[np.ndarray, "h w"]) -> Mask | None:
  """The brighter of two values, whose border may be soft; None if more."""
  found = np.unique(picture)
  if len(found) == 1 and found[0] in (0, 1, _top(picture)):
    return picture > 0
  if len(found) == 2 and found[0] == 0:
    return picture > 0
  # Soft borders: what is neither dark nor bright is thin.
  top = _top(picture)
  if len(found) > 2 and found[0] < 0.1 * top and found[-1] > 0.9 * top:
    between = (picture > 0.1 * top) & (picture < 0.9 * top)
    kernel = np.ones((_SOFT_PX, _SOFT_PX), np.uint8)
    if not cv2.erode(between.astype(np.uint8), kernel).any():
      return picture > top / 2
  return None


def _top(picture: Shaped[np.ndarray, "h w"]) -> Number:
  if picture.dtype.kind in "ui":
    return np.iinfo(picture.dtype).max
  return 1


def _bad_values(
  path: str | os.PathLike, found: np.ndarray, problem: str
) -> SlideError:
  some = ", ".join(f"{value:g}" for value in found[:8].astype(float))
  more = f", ... ({len(found)} values)" if len(found) > 8 else ""
  return SlideError(
    f"the tissue mask {path} has the values {some}{more}, and {problem}: name "
    "those that are tissue in the table's column tissue_mask_values, such as "
    "'1' or '1 2', or give a mask of 0 and 255",
    stage="tissue",
    error="mask_values",
  )


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
