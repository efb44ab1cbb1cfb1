"""Random shifts: one pattern moves as a whole, clusters and all.

Exact in any window. Places w_0 … w_s are drawn in a disc as wide as the
longest shift, and the pattern is looked at as moved by w_i - w_0: i = 0 is the
pattern as it is. Only points count that no place of the disc moves out of the
window. A pattern that is alike everywhere, and has nothing to do with what
stays, looks the same from each w_i: the curves can change places, and p is
uniform. What stays may be of any kind.

Counting all points, with an edge correction for those a shift moves out, makes
shifted curves noisier than the observed one, which rejects too seldom. The
price of being exact is points near the border.

Reference: Mrkvička et al., "Revisiting the random shift approach for testing in
spatial statistics", Spatial Statistics 2021, discusses corrections for windows.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
import scipy.fft
from jaxtyping import Bool, Float

from wsiseq_jax.spatial import envelopes, ripley, windows

# Longer side of the raster on which pairs are counted, in pixels.
_RASTER = 4096
# Share of the window that must be left away from its border.
_LEAST = 0.05
# Pixels of the inner window in half the longest shift, at most.
_FINEST = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Inner:
  """What of a window is farther than some distance from its border."""

  mask: Bool[np.ndarray, "h w"]
  corner: tuple[float, float]  # x, y, µm
  pixel: float  # µm

  @property
  def area(self) -> float:
    """In µm²."""
    return float(self.mask.sum()) * self.pixel**2

  def has(self, xy: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Which places are in it."""
    at = np.floor((xy - self.corner) / self.pixel).astype(int)
    good = ((at >= 0) & (at < self.mask.shape[::-1])).all(axis=1)
    at[~good] = 0
    return good & self.mask[at[:, 1], at[:, 0]]


@dataclasses.dataclass(frozen=True, eq=False)
class Shifts:
  """Places that a pattern is moved to; the first is where it is."""

  points: Float[np.ndarray, "n 2"]  # those that count, less the first place
  places: Float[np.ndarray, "s1 2"]  # µm, to be added to `points`
  inner: Inner  # where `points` could be


def draw(
  points: Float[np.ndarray, "n 2"],
  window: windows.Window,
  *,
  reach: windows.Number | None,
  simulations: int,
  rng: np.random.Generator,
  pixel: float | None = None,
) -> Shifts:
  """Draws shifts, and the points that stay in the window under all of them.

  Args:
    points: of the pattern that moves, [n, 2] in µm.
    window: where points could be, µm.
    reach: longest shift, µm.
    simulations: number of shifts.
    rng: of the shifts.
    pixel: places are multiples of this, µm; None = any place.

  Returns:
    Points and places: `points + places[0]` are points as they were given.

  Raises:
    ValueError: reach is missing or not positive; too little of the window, or
      no point, is half of it away from the border.
  """
  if reach is None or not reach > 0:
    raise ValueError(f"reach is {reach}, a shift needs one above 0 µm")
  half = reach / 2
  inner = _inner(window, half)
  share = inner.area / window.area
  if share < _LEAST:
    raise ValueError(
      f"reach is {reach} µm: {share:.1%} of the window is farther than half of "
      f"it from its border, allowed: at least {_LEAST:.0%}"
    )
  angle = rng.uniform(0, 2 * np.pi, simulations + 1)
  length = half * np.sqrt(rng.uniform(0, 1, simulations + 1))
  places = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)
  if pixel is not None:
    places = np.round(places / pixel) * pixel
  moved = points - places[0]
  moved = moved[inner.has(moved)]
  if not len(moved):
    raise ValueError(
      f"reach is {reach} µm: none of {len(points)} points is farther than half "
      "of it from the window's border"
    )
  return Shifts(moved, places, inner)


# Every pair of types asks for the same, and outlines of slides are long.
@functools.lru_cache(maxsize=4)
def _inner(window: windows.Window, margin: float) -> Inner:
  """What of a window is farther than this from its border, to a pixel."""
  x0, y0, x1, y1 = window.bounds
  pixel = max(max(x1 - x0, y1 - y0) / _RASTER, margin / _FINEST)
  # Glass on all sides, from which distance is counted.
  corner = (x0 - pixel, y0 - pixel)
  size = [math.ceil((hi - lo) / pixel) + 2 for lo, hi in ((y0, y1), (x0, x1))]
  mask = windows.draw(window, corner, pixel, size).astype(np.uint8)
  far = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  return Inner(far * pixel > margin + pixel, corner, pixel)


def cross_k(
  points: Float[np.ndarray, "n 2"],
  others: Float[np.ndarray, "m 2"],
  window: windows.Window,
  radii: Float[np.ndarray, " r"],
  *,
  reach: windows.Number,
  simulations: int,
  rng: np.random.Generator,
  alpha: windows.Number = 0.05,
  alternative: str = "two-sided",
) -> envelopes.Envelope:
  """Does one type depend on the other, whatever the clusters of both?

  All shifts come from one cross-correlation on a raster, so that a million
  cells take seconds; distances are exact to about its pixel. Discs are counted
  over their part in the window.

  Args:
    points: of the type that moves, [n, 2] in µm: the one that is more alike
      everywhere.
    others: of the type that stays, [m, 2] in µm.
    window: where cells could be, µm.
    radii: distances, µm; differences no smaller than two pixels, which are
      1/4096 of the window's longer side.
    reach: longest shift, µm. Well above the size of clusters, below that of
      the window.
    simulations: number of shifts.
    rng: of the shifts.
    alpha: as in `envelopes.global_envelope`.
    alternative: as in `envelopes.global_envelope`.

  Returns:
    The test of the cross-K, µm², of points that `draw` lets count.

  Raises:
    ValueError: radii finer than the raster, a reach that is not above the
      largest radius; as `draw`, `ripley.k` and `envelopes.global_envelope`.
  """
  radii = ripley.check_radii(radii)
  window = windows.check_window(window)
  points = windows.check_points(points, window)
  others = windows.check_points(others, window, name="others")
  if not reach > radii[-1]:
    raise ValueError(
      f"reach is {reach}, allowed: above the largest radius, {radii[-1]} µm"
    )
  x0, y0, x1, y1 = window.bounds
  finest = np.diff(radii, prepend=0)
  finest = finest[finest > 0].min()
  pixel = max(max(x1 - x0, y1 - y0) / _RASTER, finest / 8)
  if finest < 2 * pixel:
    raise ValueError(
      f"radii differ by {finest:.3g} µm, allowed: from {2 * pixel:.3g} µm, two "
      "pixels of the raster of this window"
    )
  shifts = draw(
    points, window,
    reach=reach, simulations=simulations, rng=rng, pixel=pixel,
  )  # fmt: skip
  found, room = _correlograms(
    shifts.points, others, window, pixel, reach / 2 + radii[-1] + 2 * pixel
  )
  # The disc around a place, as offsets with the ring that each belongs to.
  half = math.ceil(radii[-1] / pixel)
  line = np.arange(-half, half + 1)
  dy, dx = np.meshgrid(line, line, indexing="ij")
  ring = np.searchsorted(radii, np.hypot(dx, dy) * pixel).ravel()
  middle = found.shape[0] // 2

  def rings(plane: np.ndarray, column: int, row: int) -> np.ndarray:
    disc = plane[row - half : row + half + 1, column - half : column + half + 1]
    return np.bincount(ring, disc.ravel(), len(radii) + 1)[:-1].cumsum()

  at = np.round(shifts.places / pixel).astype(int) + middle
  count = np.array([rings(found, *place) for place in at.tolist()])
  pixels = np.array([rings(room, *place) for place in at.tolist()])
  density = np.divide(
    count,
    pixels * pixel**2,
    where=pixels > 0,
    out=np.full(count.shape, np.nan),
  )
  curves = np.pi * radii**2 * density * window.area / len(others)
  return envelopes.global_envelope(
    curves[0], curves[1:], alpha=alpha, alternative=alternative
  )


def _correlograms(points, others, window, pixel, longest):
  """Pairs, and pixels of the window, per lag from the points, to `longest`."""
  x0, y0, x1, y1 = window.bounds
  size = [math.ceil((hi - lo) / pixel) for lo, hi in ((y0, y1), (x0, x1))]
  lags = math.ceil(longest / pixel)
  shape = [scipy.fft.next_fast_len(s + lags + 1, real=True) for s in size]
  shape = [max(s, 2 * lags + 1) for s in shape]

  def spectrum(image: np.ndarray) -> np.ndarray:
    return scipy.fft.rfft2(image.astype(np.float32), s=shape, workers=-1)

  def counts(xy: np.ndarray) -> np.ndarray:
    at = ((xy - (x0, y0)) / pixel).astype(int)
    at = np.minimum(at, (size[1] - 1, size[0] - 1))
    flat = at @ (1, size[1])
    return np.bincount(flat, minlength=size[0] * size[1]).reshape(size)

  def lag_plane(image: np.ndarray) -> np.ndarray:
    plane = scipy.fft.irfft2(start * spectrum(image), s=shape, workers=-1)
    take = np.arange(-lags, lags + 1)
    return np.rint(plane[np.ix_(take % shape[0], take % shape[1])])

  start = spectrum(counts(points)).conj()
  room = lag_plane(windows.draw(window, (x0, y0), pixel, size))
  return lag_plane(counts(others)), room
