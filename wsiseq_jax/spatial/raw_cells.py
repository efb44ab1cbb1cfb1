"""Cells as a file has them, before anything is known of the slide."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

PIXEL, MICROMETRE = "px", "um"
QUPATH, LABELS = "QuPath", "label image"


@dataclasses.dataclass(frozen=True, eq=False)
class RawCells:
  """The cells of a file, as it has them."""

  kind: str  # which program wrote it
  xy: Float[np.ndarray, "n 2"]  # centres x, y in `unit`
  type: Shaped[np.ndarray, " n"]  # names; '' = not typed
  score: Float[np.ndarray, " n"]  # NaN = unknown
  unit: str = ""  # 'px', 'um'; '' = the file does not say
  mpp: float | None = None  # µm per pixel of the slide, as the file has it
  magnification: float | None = None  # at which its pixels are counted
  # width, height of the picture its pixels are counted in; None = unknown
  size_px: tuple[int, int] | None = None
  skipped: tuple[str, ...] = ()  # one sentence for each thing that is no cell


def make(kind: str, xy, types=None, score=None, **more: Any) -> RawCells:
  """Cells from lists; types and scores that are not given are unknown."""
  xy = np.asarray(xy, np.float64).reshape(-1, 2)
  types = np.full(len(xy), "") if types is None else np.asarray(types, str)
  if score is None:
    score = np.full(len(xy), np.nan)
  return RawCells(kind, xy, types, np.asarray(score, np.float64), **more)


def centroid(ring: Any) -> Float[np.ndarray, "2"]:
  """The centre of the area of a ring; of a line, the middle of its points.

  Example:
    >>> centroid([[0, 0], [4, 0], [4, 2], [0, 2]]).tolist()
    [2.0, 1.0]
  """
  ring = np.asarray([point[:2] for point in ring], np.float64)
  origin = ring[0]
  x, y = (ring - origin).T
  nx, ny = np.roll(x, -1), np.roll(y, -1)
  cross = x * ny - nx * y
  if abs(cross.sum()) < 1e-9:
    return ring.mean(axis=0)
  weights = cross / (3 * cross.sum())
  return origin + [((x + nx) * weights).sum(), ((y + ny) * weights).sum()]
