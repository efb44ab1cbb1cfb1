"""A slide of a list: opened as its row says, and its tissue.

Tissue is drawn by a person, or found by its colour.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import tissue
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Slide

Number = int | float | np.integer | np.floating


def open_entry(entry: SlideEntry, wanted: Mapping[str, Any]) -> Slide:
  """Opens a slide that has the detail that is asked for.

  Args:
    entry: the slide, with a scale of its own or none.
    wanted: reader, default_mpp, mpp, mpp_tolerance and allow_upsampling of a
      config.

  Raises:
    SlideError: it cannot be read, has no scale, or too coarse a one.
    ValueError: the target is not a scale at all.
  """
  slide = Slide.open(
    entry.path,
    mpp_override=entry.mpp,
    default_mpp=wanted["default_mpp"] or None,
    name=entry.slide_id,
    reader=wanted["reader"],
  )
  try:
    slide.check_target_mpp(
      wanted["mpp"], wanted["mpp_tolerance"], wanted["allow_upsampling"]
    )
  except BaseException:
    slide.close()
    raise
  return slide


def tissue_of(
  entry: SlideEntry,
  thumbnail: UInt8[np.ndarray, "h w 3"],
  mpp: Number,
  method: str,
  **defaults: Number,
) -> Bool[np.ndarray, "h w"]:
  """Reads the mask that the table names, or finds the tissue.

  Args:
    entry: the slide, with its mask and its own parameters.
    thumbnail: RGB, at 4 to 40 um/px.
    mpp: um per thumbnail pixel.
    method: of `tissue.METHODS`, for slides whose row names none.
    **defaults: parameters of the method, for rows that name none.

  Returns:
    True where there is tissue; all False where there is none.

  Raises:
    SlideError: a mask that cannot be read, has another shape, does not say
      what is tissue, or covers the glass and not the tissue.
    ValueError: an unknown method or parameter.
  """
  if not entry.mask_path:
    params = {"method": method, **defaults, **entry.tissue}
    return tissue.tissue_mask(thumbnail, mpp=mpp, **params)
  values = entry.tissue.get("mask_values", "")
  mask = tissue.load_mask(entry.mask_path, thumbnail.shape[:2], values)
  if not values:
    _refuse_inverted(mask, tissue.tissue_mask(thumbnail, mpp=mpp), entry)
  return mask


def _refuse_inverted(mask, found, entry: SlideEntry) -> None:
  """Refuses a mask that looks like the reverse of what was found."""
  if not found.any() or found.all():
    return
  on_tissue, on_glass = mask[found].mean(), mask[~found].mean()
  if on_tissue < 0.5 and on_glass > 0.8:
    raise SlideError(
      f"the tissue mask {entry.mask_path} covers {on_glass:.0%} of what looks "
      f"like glass and {on_tissue:.0%} of what looks like tissue: it may be "
      "inverted. Name the value that is tissue in the table's column "
      "tissue_mask_values: 0 turns the mask round, its other value takes it as "
      "it is",
      stage="tissue",
      error="mask_inverted",
      slide=entry.slide_id,
    )
