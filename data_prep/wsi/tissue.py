"""Where the tissue is, from a small picture of the slide.

Three methods, all with parameters in micrometres, so that the same tissue gives
the same mask whatever the size of the slide or of its thumbnail:

- `guarded` (default): colourfulness against the glass, one Otsu threshold kept
  between two bounds. The lower bound keeps blank glass out when there is no
  tissue to split off; the upper bound keeps tissue in when there is no glass.
  Black ink, bubble rims, dried-out patches and blue, green or red pen are
  taken out. Pen stays where it is as pale as eosin or as brown as blood
  (`max_red`, `max_crimson` below), or yellow, which saffron is too.
- `hsd`: the hue-saturation-density clean-up of Yottixel, as used by the
  image-sequence encoder this project started from.
- `hsv_otsu`: two Otsu passes, first on saturation, then on brightness.

Or a mask drawn by a person: `load_mask`. "No tissue" is a result, an empty
mask, of which no sequence is made. `qc_picture` is for the eye that checks.

References:
  Otsu 1979, "A threshold selection method from gray-level histograms".
  Kalra et al. 2020, "Yottixel", https://doi.org/10.1016/j.media.2020.101757.
  van der Laak et al. 2000, "Hue-saturation-density (HSD) model".
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_prep.wsi.qc import qc_picture
from data_prep.wsi.tissue_masks import load_mask, mask_polygons, tissue_mm2

__all__ = [
  "METHODS",
  "PARAMETERS",
  "keep_large",
  "load_mask",
  "mask_polygons",
  "otsu_threshold",
  "qc_picture",
  "tissue_mask",
  "tissue_mm2",
  "why_empty",
]

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
Number = int | float | np.integer | np.floating
_GLASS = 245.0  # grey level of well exposed glass

# Every parameter, with its default for each method it belongs to.
_COMMON = {
  "min_area_um2": 30_000.0,  # smaller pieces are dust
  "max_hole_um2": 60_000.0,  # smaller holes are lumina, vessels, fat cells
  "erode_um": 0.0,  # keep this far from the edge
}
_DEFAULTS = {
  "guarded": {
    **_COMMON,
    "smooth_um": 12.0,  # less than a cell layer, more than noise
    "close_um": 24.0,  # radius; joins fibres and fat walls
    "open_um": 8.0,  # radius; removes specks and hairs
    "min_chroma": 8.0,  # grey levels; glass and its JPEG noise stay below
    "max_chroma": 10.0,  # grey levels; the palest stains stay above
    "dark_density": 0.5,  # optical density from which on grey is a foreign body
    "dark_chroma": 0.16,  # HSD chroma of that grey; haematoxylin has 0.2 to 0.5
    "min_dark_um2": 5_000.0,  # smaller grey spots are pigment, left in
    "max_green": 18.0,  # grey levels of green over red; pen, not H&E
    "max_red": 90.0,  # grey levels of red over green and blue; blood is below
    "red_cx": -0.75,  # HSD c_x of red pen; blood absorbs more red
    # The same of crimson pen, which is denser than eosin and bluer than blood:
    # tissue so dense and blue reached 56 on 17 slides.
    "max_crimson": 75.0,
    "crimson_density": 0.85,  # optical density
    "crimson_cy": 0.22,  # HSD c_y
    "min_red_um2": 20_000.0,  # smaller red spots are blood, left in
  },
  "hsd": {
    **_COMMON,
    "min_area_um2": 0.0,
    "max_hole_um2": float("inf"),
    "box_um": 175.0,  # 30 px of a 4000 px thumbnail
    "min_std": 5.0,  # grey levels
    "min_cy": 0.05,
    "keep_largest": 0.0,
  },
  "hsv_otsu": {
    **_COMMON,
    "min_area_um2": 0.0,
    "max_hole_um2": 0.0,
    "work_um": 25.0,  # pixel of a 1000 px thumbnail of a 25 mm slide
    "kernel_um": 175.0,  # diameter; 7 of those pixels
    "blur_um": 125.0,  # side; 5 of those pixels
    "min_value": 20.0,  # grey levels; below, saturation is noise
  },
}
METHODS = tuple(_DEFAULTS)
# `mask_values` belongs to a mask from a file, see `load_mask`.
PARAMETERS = frozenset(
  ["mask_values", *(name for each in _DEFAULTS.values() for name in each)]
)


def tissue_mask(
  thumbnail: Picture, method: str = "guarded", *, mpp: Number, **params: Number
) -> Mask:
  """Finds the tissue in a thumbnail.

  Args:
    thumbnail: RGB, at 4 to 40 um/px.
    method: 'guarded', 'hsd' or 'hsv_otsu'; see the module docstring.
    mpp: um per thumbnail pixel.
    **params: parameters of the method, in the units their names end in; those
      common to all are `min_area_um2`, `max_hole_um2`, `erode_um`.

  Returns:
    True where there is tissue; all False where there is none.

  Raises:
    ValueError: unknown method or parameter.

  Example:
    >>> glass = np.full((50, 50, 3), 240, np.uint8)
    >>> bool(tissue_mask(glass, mpp=8.0).any())
    False
    >>> glass[10:40, 10:40] = 200, 120, 180
    >>> bool(tissue_mask(glass, mpp=8.0)[25, 25])
    True
  """
  if method not in _DEFAULTS:
    raise ValueError(f"tissue method {method!r}: choose {sorted(METHODS)}")
  unknown = set(params) - set(_DEFAULTS[method])
  if unknown:
    raise ValueError(
      f"tissue parameter {sorted(unknown)} does not belong to {method!r}: "
      f"choose {sorted(_DEFAULTS[method])}"
    )
  if not mpp > 0:
    raise ValueError(f"mpp={mpp}: must be positive")
  params = {**_DEFAULTS[method], **params}
  find = {"guarded": _guarded, "hsd": _hsd, "hsv_otsu": _hsv_otsu}[method]
  mask = find(thumbnail, mpp, params)
  if params.get("keep_largest"):
    mask = _largest(mask)
  if params["erode_um"]:
    # An erosion by a disc of any radius: the distance to what is not tissue.
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    mask = distance[1:-1, 1:-1] * mpp > params["erode_um"]
  return mask


def why_empty(thumbnail: Picture) -> str:
  """Says why a mask of this thumbnail may be empty."""
  spread = thumbnail.max(-1).astype(int) - thumbnail.min(-1)
  is_blank = np.percentile(thumbnail, 1) > 200
  if is_blank or np.percentile(spread, 99) > 2:
    return "the tissue mask is empty"
  return (
    "the tissue mask is empty: the slide is grey, and tissue is found by its "
    "colour; give a mask in the table's column mask"
  )


def otsu_threshold(values: UInt8[np.ndarray, " m"]) -> float:
  """Returns Otsu's threshold of 8-bit values: above it is the upper class.

  Example:
    >>> 10 <= otsu_threshold(np.uint8([10] * 50 + [90] * 50)) < 90
    True
  """
  if not values.size:
    return 0.0
  flags = cv2.THRESH_BINARY | cv2.THRESH_OTSU
  return float(cv2.threshold(values[None], 0, 255, flags)[0])


def _fill(mask: Mask, params: dict, mpp: float) -> Mask:
  """Removes small pieces and fills small holes."""
  mask = keep_large(mask, params["min_area_um2"] / mpp**2)
  return ~keep_large(~mask, params["max_hole_um2"] / mpp**2, keep_border=True)


def _disc(radius_px: float) -> np.ndarray:
  side = 2 * max(0, round(radius_px)) + 1
  return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _morph(mask: Mask, operation: int, kernel: np.ndarray) -> Mask:
  """Opens or closes a mask as if it went on beyond its border."""
  pad = max(kernel.shape)
  wide = cv2.copyMakeBorder(
    mask.astype(np.uint8), pad, pad, pad, pad, cv2.BORDER_REPLICATE
  )
  done = cv2.morphologyEx(wide, operation, kernel)
  return done[pad:-pad, pad:-pad] > 0


def _glass(
  picture: Float[np.ndarray, "h w 3"], scanned: Mask
) -> Float[np.ndarray, "3"]:
  """Returns the colour of empty glass; a usual one where none is seen."""
  # Lamps and scanners tint the glass by up to 15 grey levels, as much as the
  # palest stain. It is the brightest of what is bright and nearly grey: the
  # middle would be pale tissue where that covers more than glass.
  low, high = picture.min(-1), picture.max(-1)
  glass = scanned & (low > 200) & (high - low < 20)
  if glass.any():
    bright = picture.mean(-1)
    glass &= bright > np.percentile(bright[glass], 99.5) - 8
  if glass.mean() < 0.003:
    return np.full(3, _GLASS, np.float32)
  return np.median(picture[glass], axis=0).astype(np.float32)


def _hsd_place(
  picture: Float[np.ndarray, "h w 3"],
) -> tuple[Float[np.ndarray, "h w"], ...]:
  """Returns mean optical density D, and HSD's c_x and c_y.

  `c_x = D_R / D - 1`, `c_y = (D_G - D_B) / (sqrt(3) D)`, whatever the thickness
  of the section; grey is the origin.
  """
  density = -np.log(np.maximum(picture, 1.0) / 255)
  mean = np.maximum(density.mean(-1), 1e-6)
  c_x = density[..., 0] / mean - 1
  c_y = (density[..., 1] - density[..., 2]) / (np.sqrt(3) * mean)
  return mean, c_x, c_y


def _red_pen(
  picture: Float[np.ndarray, "h w 3"],
  place: tuple[Float[np.ndarray, "h w"], ...],
  mpp: float,
  params: dict,
) -> Mask:
  """Red ink lets red light through; eosin is paler, blood darker in red."""
  density, c_x, c_y = place
  excess = picture[..., 0] - picture[..., 1:].max(-1)
  red = (excess > params["max_red"]) & (c_x < params["red_cx"])
  crimson = excess > params["max_crimson"]
  crimson &= density > params["crimson_density"]
  red |= crimson & (c_y > params["crimson_cy"])
  red = _morph(red, cv2.MORPH_OPEN, _disc(params["smooth_um"] / mpp))
  red = keep_large(red, params["min_red_um2"] / mpp**2)
  # The rim of a stroke is blended with the glass.
  rim = _disc(params["close_um"] / mpp)
  return cv2.dilate(red.astype(np.uint8), rim) > 0


def _guarded(thumbnail: Picture, mpp: float, params: dict) -> Mask:
  picture = thumbnail.astype(np.float32)
  sigma = params["smooth_um"] / mpp / 2
  if sigma > 0.2:
    picture = cv2.GaussianBlur(
      picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE
    )
  # Exact white fills what was never scanned; it says nothing about the glass.
  white = (thumbnail == 255).all(-1).astype(np.uint8)
  scanned = cv2.dilate(white, _disc(3 * sigma + 1)) == 0
  glass = _glass(picture, scanned)
  picture = np.minimum(picture * (_GLASS / glass), 255.0)
  # Foreign bodies: black ink, bubble rims, dried-out patches are dark and
  # grey; pens are green or blue.
  density, c_x, c_y = place = _hsd_place(picture)
  grey = np.hypot(c_x, c_y) < params["dark_chroma"]
  foreign = grey & (density > params["dark_density"])
  foreign |= picture[..., 1] - picture[..., 0] > params["max_green"]
  foreign |= _red_pen(picture, place, mpp, params)
  # Chroma, not saturation: saturation divides by brightness and is noise in
  # black ink; chroma is near zero there.
  chroma = picture.max(-1) - picture.min(-1)
  levels = np.rint(np.clip(chroma, 0, 255)).astype(np.uint8)
  threshold = otsu_threshold(levels[~foreign])
  threshold = np.clip(threshold, params["min_chroma"], params["max_chroma"])
  opening, closing = (_disc(params[k] / mpp) for k in ("open_um", "close_um"))
  mask = _morph((chroma > threshold) & ~foreign, cv2.MORPH_OPEN, opening)
  mask = _morph(mask, cv2.MORPH_CLOSE, closing)
  mask = _fill(mask, params, mpp)
  # After filling, which would take the foreign bodies in again.
  foreign = _morph(foreign, cv2.MORPH_CLOSE, closing)
  return mask & ~keep_large(foreign, params["min_dark_um2"] / mpp**2)


def _hsd(thumbnail: Picture, mpp: float, params: dict) -> Mask:
  """Yottixel's clean-up: drop grey pixels, then what is not pink or purple.

  Deviation: the box is given in um, since 30 px mean another thing on each
  slide; holes are found from outside the picture, since the reference floods
  from its first pixel, which may be tissue; erosion and largest component are
  parameters, since a fixed 672 um of erosion removes whole biopsies.
  """
  picture = thumbnail.astype(np.float32)
  grey = picture.std(-1) < params["min_std"]
  picture[grey] = 255
  _, _, c_y = _hsd_place(picture)
  side = max(1, round(params["box_um"] / mpp))
  c_y = cv2.blur(c_y, (side, side), borderType=cv2.BORDER_REFLECT)
  return _fill(~grey & (c_y >= params["min_cy"]), params, mpp)


def _hsv_otsu(thumbnail: Picture, mpp: float, params: dict) -> Mask:
  """Two Otsu passes: saturated pixels, then the bright ones among them.

  Known faults, kept because it is offered as published: blank glass is split
  like anything else, and dark lymphocytes next to pale stroma fall to the dark
  side of the second pass.

  Deviation: pixels and kernels are in um, where the original has 1000 px a
  slide; pixels near black, whose saturation is noise, have no vote in the first
  pass.
  """
  shape = thumbnail.shape[:2]
  shrink = max(1.0, params["work_um"] / mpp)
  if shrink > 1:
    size = tuple(max(1, round(side / shrink)) for side in shape[::-1])
    thumbnail = cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA)
  pixel_um = mpp * shrink
  hsv = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)
  saturation, value = hsv[..., 1], hsv[..., 2]
  lit = value > params["min_value"]
  kernel = _disc((params["kernel_um"] / pixel_um - 1) / 2)
  mask = lit & (saturation > otsu_threshold(saturation[lit]))
  for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
    mask = _morph(mask, operation, kernel)
  grey = cv2.cvtColor(thumbnail * mask[..., None], cv2.COLOR_RGB2GRAY)
  side = 2 * round((params["blur_um"] / pixel_um - 1) / 2) + 1
  if side > 1:
    grey = cv2.GaussianBlur(grey, (side, side), 0)
  mask = grey > otsu_threshold(grey.ravel())
  for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
    mask = _morph(mask, operation, kernel)
  large = cv2.resize(mask.astype(np.float32), shape[::-1])
  return _fill(large > 0.5, params, mpp)


def keep_large(mask: Mask, min_px: Number, keep_border: bool = False) -> Mask:
  """Removes the connected pieces of a mask that are too small.

  Example:
    >>> mask = np.zeros((4, 6), bool); mask[1, 1] = mask[2, 3:5] = True
    >>> int(keep_large(mask, 2).sum())
    2
  """
  connectivity = 4 if keep_border else 8  # holes and pieces are complementary
  count, labels, stats, _ = cv2.connectedComponentsWithStats(
    mask.astype(np.uint8), connectivity=connectivity
  )
  keep = stats[:, cv2.CC_STAT_AREA] >= min_px
  if keep_border:
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    keep[np.unique(edge)] = True
  keep[0] = False
  return keep[labels] if count > 1 else np.zeros_like(mask)


def _largest(mask: Mask) -> Mask:
  _, labels, stats, _ = cv2.connectedComponentsWithStats(
    mask.astype(np.uint8), connectivity=4
  )
  if len(stats) < 2:
    return mask
  return labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
