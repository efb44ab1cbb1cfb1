"""Windows: where points could have been seen. Shapely polygons, in µm.

A window is tissue, or an annotation's tissue, with its holes. Everything that
an estimator needs of it is here: is a point inside, how far is the border, draw
points uniformly, how much of the window stays when it is shifted.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft
import shapely
from jaxtyping import Bool, Float
from scipy import ndimage
from shapely import affinity

Window = shapely.Polygon | shapely.MultiPolygon
Number = int | float | np.integer | np.floating
# Side of the raster on which the set covariance is computed, in pixels.
_RASTER = 2048
# Lags of the covariance's table from 0 to the largest, on each axis.
_LAGS = 256


def union(polygons: Sequence[Window]) -> Window:
  """One window of polygons that may overlap.

  Args:
    polygons: shapely polygons or multipolygons, µm; drawn ones that cross
      themselves are mended as GEOS does it.

  Returns:
    Their union, with the outlines counterclockwise and the holes clockwise.

  Raises:
    ValueError: no area is left, or a coordinate is not finite.
  """
  whole = shapely.union_all(shapely.make_valid(list(polygons)))
  parts = [
    part
    for piece in shapely.get_parts(whole)
    for part in shapely.get_parts(piece)
    if part.geom_type == "Polygon"
  ]
  return check_window(shapely.union_all(parts) if parts else shapely.Polygon())


def check_window(window: Any) -> Window:
  """The window, oriented, or what is wrong with it.

  Raises:
    ValueError: it is no polygon, crosses itself, or has no area.
  """
  if getattr(window, "geom_type", "") not in ("Polygon", "MultiPolygon"):
    kind = getattr(window, "geom_type", type(window).__name__)
    raise ValueError(f"A window is a Polygon or MultiPolygon, not {kind}")
  if not window.is_valid:
    raise ValueError(f"The window: {shapely.is_valid_reason(window)}")
  if not window.area > 0 or not math.isfinite(window.area):
    raise ValueError(f"The window has no area ({window.area} µm²)")
  return shapely.orient_polygons(window)


def check_points(
  points: Any, window: Window, least: int = 1, name: str = "points"
) -> Float[np.ndarray, "n 2"]:
  """Points as float64 [n, 2], all inside the window.

  Raises:
    ValueError: another shape, values that are not finite, fewer than `least`,
      or points outside the window; says how many.
  """
  points = np.asarray(points, np.float64)
  if points.ndim != 2 or points.shape[1] != 2:
    raise ValueError(f"{name}: shape {points.shape} is not [n, 2]")
  if len(points) < least:
    raise ValueError(
      f"{name}: there are {len(points)}, this needs at least {least}"
    )
  if not np.isfinite(points).all():
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    raise ValueError(f"{name}: {bad} of {len(points)} are not finite")
  outside = int((~inside(window, points)).sum())
  if outside:
    raise ValueError(
      f"{name}: {outside} of {len(points)} lie outside the window, whose "
      f"bounds are {tuple(round(b, 1) for b in window.bounds)} µm; are points "
      "and window in the same unit?"
    )
  return points


def inside(
  window: Window, points: Float[np.ndarray, "n 2"]
) -> Bool[np.ndarray, " n"]:
  """Which points lie in the window or on its border."""
  shapely.prepare(window)
  return shapely.intersects_xy(window, points[:, 0], points[:, 1])


def segments(
  window: Window,
) -> tuple[Float[np.ndarray, "e 2"], Float[np.ndarray, "e 2"]]:
  """Ends of the border's segments; the window lies to the left of each."""
  rings = _rings(shapely.orient_polygons(window))
  xy, ring = shapely.get_coordinates(rings, return_index=True)
  same = ring[1:] == ring[:-1]
  return xy[:-1][same], xy[1:][same]


def _rings(window: Window) -> np.ndarray:
  """Outlines and holes of all parts."""
  return shapely.get_rings(shapely.get_parts(window))


@functools.lru_cache(maxsize=8)
def _segment_tree(window: Window) -> shapely.STRtree:
  """The border's segments, to find near ones."""
  start, end = segments(window)
  return shapely.STRtree(shapely.linestrings(np.stack([start, end], axis=1)))


def border_distance(
  window: Window, points: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
  """Distance to the nearest border, that of holes too, in µm; exact."""
  if not len(points):
    return np.zeros(0)
  found, distance = _segment_tree(window).query_nearest(
    shapely.points(points), return_distance=True, all_matches=False
  )
  near = np.empty(len(points))
  near[found[0]] = distance
  return near


def signed_distance(
  region: Window, points: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
  """Distance to a region's border, µm: negative inside, positive outside."""
  distance = border_distance(region, points)
  return np.where(inside(region, points), -distance, distance)


def sample(
  window: Window, n: int, rng: np.random.Generator
) -> Float[np.ndarray, "n 2"]:
  """Points drawn uniformly in the window: complete spatial randomness."""
  x0, y0, x1, y1 = window.bounds
  share = window.area / ((x1 - x0) * (y1 - y0))
  found, have = [], 0
  while have < n:
    draws = int((n - have) / share * 1.1) + 16
    xy = rng.uniform((x0, y0), (x1, y1), (min(draws, 1_000_000), 2))
    found.append(xy[inside(window, xy)])
    have += len(found[-1])
  return np.concatenate([*found, np.zeros((0, 2))])[:n]


def set_covariance(
  window: Window, lags: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, " n"]:
  """Area of the window that a shift by each lag leaves in it, µm²; exact."""
  moved = [affinity.translate(window, *lag) for lag in lags]
  shapely.prepare(window)
  return shapely.area(shapely.intersection(window, np.array(moved, object)))


class Covariance:
  """Set covariance at any lag up to a largest, from a raster.

  The window is drawn with 2,048 pixels on its longer side, its autocorrelation
  is taken by FFT and laid on a grid of 256 lags an axis; a lag takes the value
  of the nearest. The error is about 1e-3 of the area at most, and averages out
  over pairs.
  """

  def __init__(self, window: Window, longest: Number):
    """Draws the window; lags go up to `longest` µm."""
    x0, y0, x1, y1 = window.bounds
    pixel = max(x1 - x0, y1 - y0) / _RASTER
    size = [math.ceil((hi - lo) / pixel) for lo, hi in ((y0, y1), (x0, x1))]
    # Values beyond the raster are 0: a lag needs that much room to wrap into.
    room = [min(math.ceil(longest / pixel) + 2, s) for s in size]
    shape = [scipy.fft.next_fast_len(s) for s in np.add(size, room).tolist()]
    mask = draw(window, (x0, y0), pixel, shape).astype(np.float32)
    spectrum = scipy.fft.rfft2(mask, workers=-1)
    power = scipy.fft.irfft2(np.abs(spectrum) ** 2, s=shape, workers=-1)
    step = longest / _LAGS
    lags = np.arange(-_LAGS, _LAGS + 1) * step / pixel
    rows, columns = np.meshgrid(lags, lags, indexing="ij")
    table = ndimage.map_coordinates(
      power, [rows % shape[0], columns % shape[1]], order=1, mode="grid-wrap"
    )
    for lag, most in ((rows, size[0]), (columns, size[1])):
      table[np.abs(lag) >= most] = 0
    self._table = (table * (window.area / power[0, 0])).ravel()
    self._per_um = 1 / step

  def __call__(
    self, dx: Float[np.ndarray, " n"], dy: Float[np.ndarray, " n"]
  ) -> Float[np.ndarray, " n"]:
    """The area that stays, µm², at lags (dx, dy) in µm."""
    column = (dx * self._per_um + (_LAGS + 0.5)).astype(np.int32)
    row = (dy * self._per_um + (_LAGS + 0.5)).astype(np.int32)
    row *= 2 * _LAGS + 1
    row += column
    return self._table.take(row)


@functools.lru_cache(maxsize=4)
def covariance(window: Window, longest: Number) -> Covariance:
  """The covariance of a window; simulations ask for the same again."""
  return Covariance(window, longest)


def draw(
  window: Window,
  origin: tuple[float, float],
  pixel: Number,
  shape: tuple[int, int] | list[int],
) -> Bool[np.ndarray, "h w"]:
  """The window as a mask: pixels whose centre is inside.

  Args:
    window: in µm.
    origin: (x, y) of the raster's corner, µm.
    pixel: side of a pixel, µm.
    shape: rows, columns.

  Returns:
    The mask; a centre on an outline may go to either side.
  """
  start, end = ((ends - origin) / pixel - 0.5 for ends in segments(window))
  # Each segment is crossed by the rows from `first` to before `stop`. Going up
  # a row, the number of turns around a pixel changes where it is crossed.
  first, stop = np.sort(np.ceil([start[:, 1], end[:, 1]]).astype(int), axis=0)
  first, stop = np.clip([first, stop], 0, shape[0])
  count = stop - first
  segment = np.repeat(np.arange(len(start)), count)
  row = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
  row += first[segment]
  (x, y), (along, rise) = start[segment].T, (end - start)[segment].T
  column = np.ceil(x + (row - y) * along / rise).astype(int)
  turn = np.where(rise > 0, -1, 1).astype(np.int32)
  wide = shape[1] + 1
  turns = np.bincount(
    row * wide + np.clip(column, 0, shape[1]), turn, shape[0] * wide
  ).reshape(shape[0], wide)
  return turns.cumsum(axis=1)[:, :-1] > 0.5
