"""What counts as a lesion: the evaluation mask of the Camelyon16 challenge.

1. The drawn tumour at level 5 (pixels of 0.243 · 2⁵ = 7.776 um) grows by half
   of 75 um: what is nearer than 37.5 um belongs to it. Holes are filled.
   Connected pieces, corners included, are the lesions.
2. A lesion whose major axis is shorter than 275 um is *isolated tumour cells*:
   it is not counted, and hitting it is not punished.

`froc` scores detections against them.

Reference: Ehteshami Bejnordi et al., JAMA 2017,
https://doi.org/10.1001/jama.2017.14585, and the evaluation script of the
challenge.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

# The official numbers; the masks of the challenge have no other scale.
LEVEL0_MPP = 0.243
DOWNSAMPLE = 2**5
REACH_UM = 75.0 / 2
ISOLATED_UM = 275.0
Number = int | float | np.integer | np.floating


@dataclasses.dataclass(frozen=True, eq=False)
class Lesions:
  """The lesions of one slide."""

  # 0 outside, i inside lesion i, at the scale of the evaluation.
  labels: Int[np.ndarray, "h w"]
  # Whether lesion i + 1 is isolated tumour cells.
  isolated: Bool[np.ndarray, " l"]
  downsample: float  # level-0 pixels per pixel of `labels`


def find_lesions(
  tumour: Bool[np.ndarray, "h w"],
  *,
  level0_mpp: Number = LEVEL0_MPP,
  downsample: Number = DOWNSAMPLE,
) -> Lesions:
  """Makes the evaluation mask of a slide from its drawn tumour.

  Args:
    tumour: True in tumour (`data_prep.wsi.annotations.draw`); all False for a
      normal slide.
    level0_mpp: um per level-0 pixel; the challenge takes 0.243 for all slides.
    downsample: level-0 pixels per pixel of the mask.

  Raises:
    ValueError: a scale that is not positive.

  Example:
    >>> tumour = np.zeros((60, 60), bool)
    >>> tumour[10:50, 10:14] = True  # 311 um long, more with its rim
    >>> tumour[30, 40] = True
    >>> find_lesions(tumour).isolated.tolist()
    [False, True]
  """
  pixel_um = level0_mpp * downsample
  if not pixel_um > 0:
    raise ValueError(
      f"level0_mpp={level0_mpp}, downsample={downsample}: must be positive"
    )
  labels = np.zeros(tumour.shape, np.int32)
  rows, columns = np.flatnonzero(tumour.any(1)), np.flatnonzero(tumour.any(0))
  if not len(rows):
    return Lesions(labels, np.zeros(0, bool), float(downsample))
  # Nothing happens beyond the reach of the tumour: a window is enough.
  rim = int(np.ceil(REACH_UM / pixel_um)) + 2
  window = tuple(
    slice(max(0, found[0] - rim), found[-1] + rim + 1)
    for found in (rows, columns)
  )
  distance = ndimage.distance_transform_edt(~tumour[window])
  filled = ndimage.binary_fill_holes(distance < REACH_UM / pixel_um)
  found, count = ndimage.label(filled, structure=np.ones((3, 3), int))
  labels[window] = found
  isolated = [
    major_axis_px(found[box] == number) < ISOLATED_UM / pixel_um
    for number, box in enumerate(ndimage.find_objects(found, count), 1)
  ]
  return Lesions(labels, np.array(isolated, bool), float(downsample))


def major_axis_px(piece: Bool[np.ndarray, "h w"]) -> float:
  """Length of the major axis of the ellipse with a piece's second moments, px.

  `4 √λ`, where λ is the larger eigenvalue of the covariance of its pixel
  centres: 2 a of a filled ellipse with half axes a ≥ b. A pixel is a point, as
  in scikit-image's `axis_major_length`; one pixel has length 0.

  Example:
    >>> round(major_axis_px(np.ones((1, 5), bool)) ** 2, 9)  # variance is 2
    32.0
  """
  points = np.argwhere(piece).astype(np.float64)
  covariance = np.cov(points, rowvar=False, bias=True)
  return float(4 * np.sqrt(max(np.linalg.eigvalsh(covariance)[-1], 0.0)))
