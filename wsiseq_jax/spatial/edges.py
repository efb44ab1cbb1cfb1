"""Edge corrections: what a pair counts for, because a window ends somewhere.

Each is a class made from the window and the first points; `weights` of a block
of pairs are its factors. The border method has none, it leaves points out and
is part of the estimator (`ripley.py`).

Reference: Baddeley, Rubak, Turner, Spatial Point Patterns, 2015, chapter 7.
"""

import numpy as np
import shapely
from jaxtyping import Float, Int

from wsiseq_jax.spatial import windows
from wsiseq_jax.spatial.pairs import PairBlock

# A pair counts at most this often, as in spatstat: beyond, it is noise.
LARGEST = 100.0
# Pairs of a circle and a segment that are looked at in one go.
_AT_ONCE = 1_000_000


class Uncorrected:
  """Each pair once: biased near borders, towards 0."""

  def weights(self, block: PairBlock) -> float:
    """1."""
    return 1.0


class Translation:
  """Ohser's: area over the area that a shift by the pair's lag leaves."""

  def __init__(self, window: windows.Window, radius: float, exact: bool):
    self._window, self._exact = window, exact
    self._table = None if exact else windows.covariance(window, radius)

  def weights(self, block: PairBlock) -> Float[np.ndarray, " p"]:
    """|W| / |W ∩ (W + lag)|, at most `LARGEST`."""
    if self._exact:
      lags = np.stack([block.dx, block.dy], axis=1)
      left = windows.set_covariance(self._window, lags)
    else:
      left = self._table(block.dx, block.dy)
    area = self._window.area
    return area / np.maximum(left, area / LARGEST)


class Isotropic:
  """Ripley's: 1 / the share of the circle through the second point inside."""

  def __init__(
    self,
    window: windows.Window,
    points: Float[np.ndarray, "n 2"],
    radius: float,
  ):
    self._points = points
    self._border = windows.border_distance(window, points)
    self._from, self._to = windows.segments(window)
    lines = shapely.linestrings(np.stack([self._from, self._to], axis=1))
    near = np.flatnonzero(self._border < radius)
    found = shapely.STRtree(lines).query(
      shapely.points(points[near]), predicate="dwithin", distance=radius
    )
    # Segments of point i: self._segment[self._start[i]:self._start[i + 1]].
    order = np.argsort(found[0], kind="stable")
    self._segment = found[1][order]
    count = np.zeros(len(points), np.int64)
    count[near] = np.bincount(found[0], minlength=len(near))
    self._start = np.concatenate([[0], np.cumsum(count)])

  def weights(self, block: PairBlock) -> Float[np.ndarray, " p"]:
    """1 for circles inside the window, at most `LARGEST`."""
    d = np.sqrt(block.d2)
    weights = np.ones(len(d))
    cut = np.flatnonzero(d > self._border[block.i])
    i = block.i[cut]
    pairs = np.cumsum(self._start[i + 1] - self._start[i])
    stop = np.searchsorted(
      pairs, np.arange(_AT_ONCE, pairs[-1] + 1 if len(cut) else 0, _AT_ONCE)
    )
    for part in np.split(np.arange(len(cut)), stop):
      share = self._share(i[part], d[cut[part]])
      weights[cut[part]] = 1 / np.maximum(share, 1 / LARGEST)
    return weights

  def _share(
    self, i: Int[np.ndarray, " p"], d: Float[np.ndarray, " p"]
  ) -> Float[np.ndarray, " p"]:
    """Share of the circle of radius d around point i inside the window.

    Going along a border segment the window is to the left. Where the segment
    leaves the disc, an arc inside begins (counterclockwise); where it enters,
    one ends. So the arcs' length is the sum of the angles of entries less that
    of exits, up to whole turns.
    """
    count = self._start[i + 1] - self._start[i]
    circle = np.repeat(np.arange(len(i)), count)
    within = np.arange(len(circle)) - np.repeat(np.cumsum(count) - count, count)
    segment = self._segment[self._start[i][circle] + within]
    start = self._from[segment] - self._points[i][circle]
    along = self._to[segment] - self._from[segment]
    a = (along**2).sum(axis=1)
    b = (along * start).sum(axis=1)
    c = (start**2).sum(axis=1) - d[circle] ** 2
    root = b * b - a * c
    hit = root > 0
    root = np.sqrt(root, where=hit, out=np.zeros(len(root)))
    total, crossings = np.zeros(len(i)), np.zeros(len(i), np.int64)
    for sign in (-1, 1):  # -1 enters the disc, 1 leaves it
      t = (-b + sign * root) / a
      here = np.flatnonzero(hit & (t >= 0) & (t < 1))
      x, y = (start[here] + t[here, None] * along[here]).T
      angle = np.arctan2(y, x)
      total -= sign * np.bincount(circle[here], angle, minlength=len(i))
      crossings += np.bincount(circle[here], minlength=len(i))
    share = np.mod(total / (2 * np.pi), 1.0)
    # No crossing: the whole circle, for its second point is in the window.
    return np.where((crossings == 0) | (share < 1e-12), 1.0, share)


def make(
  correction: str,
  window: windows.Window,
  points: Float[np.ndarray, "n 2"],
  radius: float,
  exact: bool = False,
) -> Uncorrected | Translation | Isotropic:
  """The weights of a correction by name, for pairs up to a radius in µm."""
  if correction == "translation":
    return Translation(window, radius, exact)
  if correction == "isotropic":
    return Isotropic(window, points, radius)
  return Uncorrected()
