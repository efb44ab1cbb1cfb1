"""From a file's numbers to µm on the slide, and whether that can be right.

Nothing in most files says whether x is a pixel, a pixel of another level, or a
µm. So the range is held against the slide: cells that lie outside it, or that
fit its tissue only when stretched, refuse the slide, and the message says which
factor would fit.
"""

import dataclasses
import math

import numpy as np
import shapely
from jaxtyping import Float

from data_prep.files.errors import SlideError
from data_prep.wsi.scale import MPP_TOLERANCE
from wsiseq_jax.spatial import windows
from wsiseq_jax.spatial.points import Points
from wsiseq_jax.spatial.raw_cells import (
  LABELS,
  MICROMETRE,
  PIXEL,
  QUPATH,
  RawCells,
)
from wsiseq_jax.spatial.windows import Window

FILE, UNITS = "file", ("file", PIXEL, MICROMETRE)
# Share of cells that may lie outside the slide, and outside tissue, before the
# coordinates are in doubt.
_OUTSIDE, _MISFIT, _FIT = 0.01, 0.5, 0.8
# How well the ends of the cells meet those of the tissue, in its size.
_SAME_BOX = 0.05
_MAGNIFICATIONS = (5.0, 10.0, 20.0, 40.0, 80.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
  """What is known of a slide."""

  slide_id: str  # the slide
  patient_id: str  # its patient
  mpp: float  # µm per level-0 pixel
  size_px: tuple[int, int] | None  # width, height at level 0; None = unknown
  bounds_xy: tuple[int, int]  # corner that QuPath counts from, level-0 pixels
  levels: tuple[float, ...]  # level-0 pixels per pixel of each level
  window: Window | None  # where cells can be, µm; None = unknown

  @property
  def size_um(self) -> Float[np.ndarray, "2"]:
    """Width and height."""
    return np.array(self.size_px) * self.mpp


def place(
  raw: RawCells, where: Place, unit: str = FILE, mpp: float = 0.0
) -> tuple[Points, list[SlideError]]:
  """Puts cells on a slide.

  Args:
    raw: what a file says.
    where: the slide.
    unit: 'file' (as the file says, else level-0 pixels), 'px' or 'um'.
    mpp: µm per pixel of the file; 0 = level-0 pixels.

  Returns:
    The cells, none twice and all on the slide, and a row for each thing that
    was left out.

  Raises:
    SlideError: no cells, or they cannot lie there.
  """
  notes = [_note(text, "not_a_cell") for text in raw.skipped]
  finite = np.isfinite(raw.xy).all(axis=1)
  if not finite.all():
    notes.append(
      _note(
        f"{(~finite).sum()} of {len(finite)} cells have no number as x or y "
        "and are left out",
        "no_place",
      )
    )
  if not finite.any():
    raise _error(f"there is no cell in the file ({raw.kind})", "no_cells")
  is_given = unit != FILE
  xy, said = _in_um(raw, where, unit, mpp)
  xy, types, score = xy[finite], raw.type[finite], raw.score[finite]
  if where.size_px is not None:
    _check(xy, where, said, is_given or bool(mpp))
    on_slide = _on_slide(xy, where)
    if not on_slide.all():
      notes.append(
        _note(
          f"{(~on_slide).sum()} of {len(xy)} cells lie outside the slide and "
          "are left out",
          "points_outside",
        )
      )
      xy, types, score = xy[on_slide], types[on_slide], score[on_slide]
  _, first = np.unique(xy, axis=0, return_index=True)
  if len(first) < len(xy):
    notes.append(
      _note(
        f"{len(xy) - len(first)} of {len(xy)} cells lie exactly on another and "
        "are counted once",
        "duplicated_points",
      )
    )
    first.sort()
    xy, types, score = xy[first], types[first], score[first]
  points = Points.of(where.slide_id, where.patient_id, xy, types, score)
  return points, notes


def within(
  points: Points, window: Window, warn_share: float = 0.2
) -> tuple[Points, list[SlideError]]:
  """The cells in a window, and a row if many are not."""
  inside = windows.inside(window, points.xy_um)
  lost, notes = int((~inside).sum()), []
  if lost > warn_share * len(points):
    notes.append(
      _note(
        f"{lost} of {len(points)} cells lie outside the window (the tissue, or "
        "what is annotated of it) and are left out: look at the picture",
        "outside_window",
      )
    )
  return points.kept(inside), notes


def _note(message: str, code: str) -> SlideError:
  return SlideError(message, "cells", code)


_error = _note


def _in_um(
  raw: RawCells, where: Place, unit: str, mpp: float
) -> tuple[np.ndarray, str]:
  """µm from level-0 (0, 0), and how the numbers were taken."""
  found = raw.unit if unit == FILE else unit
  corner = np.zeros(2)
  if raw.kind == QUPATH and where.size_px is not None:
    corner = np.array(where.bounds_xy, np.float64)
  if found == MICROMETRE:
    # Without a slide nothing has a corner, nor a scale.
    return raw.xy + (corner * where.mpp if corner.any() else 0.0), "µm"
  if not mpp and not math.isfinite(where.mpp):
    raise _error(
      "the cells are in pixels, and there is no slide that says how large "
      "these are: config.cells.mpp, or config.cells.unit = 'um'",
      "no_mpp",
    )
  if raw.mpp and not mpp and abs(raw.mpp / where.mpp - 1) > MPP_TOLERANCE:
    raise _error(
      f"the file of cells has {raw.mpp:g} µm/px, the slide {where.mpp:g}: say "
      "which is right, as mpp in the table of slides, or as config.cells.mpp "
      "for the pixels of the cells",
      "mixed_mpp",
    )
  if mpp:
    return raw.xy * mpp, f"pixels of {mpp:g} µm"
  if raw.kind == LABELS and where.size_px is not None:
    return _of_labels(raw, where)
  factor = 1.0
  if raw.magnification:
    own = min(_MAGNIFICATIONS, key=lambda m: abs(math.log(m * where.mpp / 10)))
    factor = own / raw.magnification
  said = "level-0 pixels"
  if factor != 1:
    said = f"pixels at {raw.magnification:g}x"
  return (raw.xy * factor + corner) * where.mpp, said


def _of_labels(raw: RawCells, where: Place) -> tuple[np.ndarray, str]:
  """A picture of the whole slide says its scale by its size."""
  ratios = np.array(where.size_px) / raw.size_px
  if abs(ratios[0] / ratios[1] - 1) > 0.01 + 2 / min(raw.size_px):
    raise _error(
      f"a label image of {raw.size_px[0]}x{raw.size_px[1]} px has not the "
      f"shape of the slide ({where.size_px[0]}x{where.size_px[1]} level-0 px)",
      "mask_shape",
    )
  return raw.xy * ratios * where.mpp, f"pixels of {ratios[0]:.4g} level-0 px"


def _on_slide(xy: np.ndarray, where: Place) -> np.ndarray:
  """A pixel beyond the edge is still on it: centres may be rounded."""
  slack = where.mpp
  return ((xy >= -slack) & (xy <= where.size_um + slack)).all(axis=1)


def _check(xy: np.ndarray, where: Place, said: str, is_given: bool) -> None:
  """Refuses cells that cannot lie there."""
  outside = 1 - _on_slide(xy, where).mean()
  width, height = where.size_um
  span = (
    f"taken as {said}, the cells go from x {xy[:, 0].min():.0f} to "
    f"{xy[:, 0].max():.0f}, y {xy[:, 1].min():.0f} to {xy[:, 1].max():.0f} µm, "
    f"and the slide has {width:.0f} x {height:.0f} µm"
  )
  hint = _hint(xy, where)
  if outside > _OUTSIDE:
    raise _error(
      f"{outside:.0%} of the cells lie outside the slide: {span}{hint}",
      "coordinates",
    )
  if is_given or where.window is None:
    return
  share = _in_window(xy, where)
  is_off = share < _MISFIT or not _same_box(xy, where)
  if hint and is_off:
    raise _error(
      f"{1 - share:.0%} of the cells lie outside the tissue: {span}{hint}; if "
      "they are right as they are, say so: config.cells.unit = 'px' or 'um'",
      "coordinates",
    )


def _hint(xy: np.ndarray, where: Place) -> str:
  """Which factor would fit; '' if none does better."""
  if where.window is None:
    return ""
  factors = {
    1 / where.mpp: "they seem to be µm: config.cells.unit = 'um'",
    where.mpp: "they seem to be level-0 pixels: config.cells.unit = 'px'",
  }
  for level in where.levels[1:]:
    at = where.mpp * level
    factors.setdefault(
      level,
      f"they seem to be pixels of the level of {at:.4g} µm: config.cells.mpp = "
      f"{at:.4g}",
    )
  for factor, text in factors.items():
    if abs(factor - 1) < 0.05:
      continue
    moved = xy * factor
    fits = _on_slide(moved, where).mean() > 1 - _OUTSIDE
    # Few cells, or a corner of a slide, prove nothing: both must agree.
    if fits and _in_window(moved, where) > _FIT and _same_box(moved, where):
      return f"; {text} (times {factor:.4g} they fit the tissue)"
  return ""


def _in_window(xy: np.ndarray, where: Place) -> float:
  return float(windows.inside(where.window, xy).mean())


def _same_box(xy: np.ndarray, where: Place) -> bool:
  """Whether the cells reach to the ends of the tissue, on all four sides."""
  box = np.array(shapely.bounds(where.window)).reshape(2, 2)
  # A few cells at the ends may be debris, or missing.
  ends = np.quantile(xy, [0.005, 0.995], axis=0)
  return bool((np.abs(ends - box) <= _SAME_BOX * (box[1] - box[0])).all())
