"""Scales: um per pixel, where it was found; level-0 pixels per level pixel.

A wrong scale is the commonest silent error with slides shared between
laboratories, so nothing is rounded and nothing is guessed: a slide without a
believable mpp is refused with the remedy in the message.
"""

import math
import xml.etree.ElementTree as ElementTree

from data_prep.files.errors import SlideError

MPP_RANGE = (0.05, 20.0)  # um/px; a 72 dpi picture claims 352.8
MPP_TOLERANCE = 0.02
# What a message quotes where nothing of it can be used.
_STATED = (
  *("aperio.MPP", "openslide.mpp-x", "openslide.mpp-y", "tiff.XResolution"),
  *("tiff.YResolution", "tiff.ResolutionUnit"),
)
_UNITS_UM = {"centimeter": 10_000.0, "inch": 25_400.0}


def _number(properties: dict[str, str], key: str) -> float | None:
  try:
    value = float(properties[key].replace(",", "."))
  except (KeyError, ValueError):
    return None
  return value if math.isfinite(value) and value > 0 else None


# Of the lengths in OME-XML; 'pixel' and 'reference frame' are none.
_OME_UM = {
  **{"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4},
  **{"m": 1e6, "pm": 1e-6, "Å": 1e-4, "in": 25_400.0},
}


def _ome_mpp(description: str) -> tuple[float, float] | None:
  """Returns mpp in x and y of the first image that OME-XML gives a size."""
  if "<OME" not in description and ":OME" not in description:
    return None
  try:
    root = ElementTree.fromstring(description.strip("\0 \r\n"))
  except (ElementTree.ParseError, ValueError):
    return None
  for element in root.iter():
    if element.tag.rpartition("}")[2] != "Pixels":
      continue
    values = {}
    for axis in "XY":
      size = _number(element.attrib, f"PhysicalSize{axis}")
      unit = element.get(f"PhysicalSize{axis}Unit", "µm")
      if size and unit in _OME_UM:
        values[axis] = size * _OME_UM[unit]
    if len(values) == 2:
      return values["X"], values["Y"]
  return None


def stored_mpp(
  properties: dict[str, str], vendor: str
) -> tuple[float, float, str] | None:
  """Returns mpp in x and y as the file states it, and who says so.

  Order: the scanner vendor's own key, OME-XML, then the TIFF resolution. For
  generic TIFF OpenSlide computes its `openslide.mpp-x` from the resolution
  tags, which is no vendor's word, so it counts as `tiff`.

  Example:
    >>> stored_mpp({'aperio.MPP': '0.499'}, 'aperio')
    (0.499, 0.499, 'vendor')
    >>> stored_mpp({'tiff.XResolution': '10000', 'tiff.YResolution': '10000',
    ...             'tiff.ResolutionUnit': 'centimeter'}, 'generic-tiff')
    (1.0, 1.0, 'tiff')
  """
  if vendor != "generic-tiff":
    x = _number(properties, "openslide.mpp-x")
    y = _number(properties, "openslide.mpp-y")
    if x and y:
      return x, y, "vendor"
    both = _number(properties, "aperio.MPP")
    if both:
      return both, both, "vendor"
  ome = _ome_mpp(properties.get("tiff.ImageDescription", ""))
  if ome:
    return *ome, "ome"
  unit = _UNITS_UM.get(properties.get("tiff.ResolutionUnit", ""))
  x = _number(properties, "tiff.XResolution")
  y = _number(properties, "tiff.YResolution")
  if unit and x and y:
    return unit / x, unit / y, "tiff"
  return None


def _check_range(mpp: float | int, origin: str, slide: str) -> float | int:
  low, high = MPP_RANGE
  if not low <= mpp <= high:
    raise SlideError(
      f"mpp {mpp:g} ({origin}) is not a microscope's: expected {low:g} to "
      f"{high:g} um/px; give the true value in the CSV column mpp",
      stage="mpp",
      error="mpp_out_of_range",
      slide=slide,
    )
  return mpp


def choose_mpp(
  properties: dict[str, str],
  vendor: str,
  override: float | int | None = None,
  default: float | int | None = None,
  slide: str = "",
) -> tuple[float | int, str]:
  """Decides the scale of a slide: override > vendor > OME > TIFF > default.

  Nothing is guessed. An absurd or lopsided stored value is refused rather than
  replaced by the default, because the default is for slides that say nothing.

  Example:
    >>> choose_mpp({'aperio.MPP': '0.25'}, 'aperio', override=0.5)
    (0.5, 'override')
  """
  if override is not None:
    return _check_range(override, "override", slide), "override"
  stored = stored_mpp(properties, vendor)
  if stored is not None:
    x, y, origin = stored
    _check_range(x, origin, slide)
    _check_range(y, origin, slide)
    if abs(x - y) > MPP_TOLERANCE * min(x, y):
      raise SlideError(
        f"mpp differs between x ({x:g}) and y ({y:g}, {origin}); square "
        "pixels are needed: give the true value in the CSV column mpp",
        stage="mpp",
        error="mpp_anisotropic",
        slide=slide,
      )
    return (x if x == y else math.sqrt(x * y)), origin
  if default is not None:
    return _check_range(default, "default", slide), "default"
  said = [f"{k}={properties[k]!r}" for k in _STATED if properties.get(k)]
  raise SlideError(
    "the file states no mpp that can be used (neither a scanner's key, "
    f"OME-XML, nor a TIFF resolution{_listed(said)}): "
    "give it in the CSV column mpp, or a default for all such slides",
    stage="mpp",
    error="no_mpp",
    slide=slide,
  )


def _listed(said: list[str]) -> str:
  return f"; it says {', '.join(said)}" if said else ""


def level_downsample(
  level0: tuple[int, int], level: tuple[int, int], reported: float
) -> float | None:
  """Returns how many level-0 pixels a pixel of a level really covers.

  Pyramids are made by averaging whole blocks of pixels and dropping (or
  padding) the last incomplete ones, so the true factor is an integer, mostly a
  power of two, that explains both sides. The ratio of the sizes is not: it is
  off by percents where a side of the level is a few pixels.

  Example:
    >>> level_downsample((120_000, 2100), (1875, 32), 64.8125)
    64.0
    >>> level_downsample((1000, 1000), (400, 400), 2.5)
    2.5
  """
  ratios = [big / small for big, small in zip(level0, level, strict=True)]
  if abs(reported * 2 / sum(ratios) - 1) > 1e-4:
    return float(reported)
  best = ratios[0] if level0[0] > level0[1] else ratios[1]
  for slack in (1, 2):
    sides = list(zip(level0, level, strict=True))
    low = max(big / (small + slack) for big, small in sides)
    high = min(
      big / (small - slack) if small > slack else math.inf
      for big, small in sides
    )
    if low >= high:
      continue
    # The side of many pixels leaves room for few integers.
    near = range(max(1, math.floor(best) - 2), math.ceil(best) + 3)
    whole = [n for n in (*near, 2 ** round(math.log2(best))) if low < n < high]
    if whole:
      return float(min(whole, key=lambda n: (n & (n - 1) > 0, abs(n - best))))
    return best
  return None
