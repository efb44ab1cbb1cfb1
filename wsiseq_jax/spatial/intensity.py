"""Density of cells from place to place, for the inhomogeneous statistics."""

import functools
import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from wsiseq_jax.spatial import windows

# Pixels a standard deviation of the kernel has, if the window is not too large.
_PER_SIGMA = 16
# Longer side of the raster at most, in pixels.
_RASTER = 4096
# Where the kernel ends, in standard deviations.
_ENDS = 4.0


class Kernel:
  """Density of points by a Gaussian kernel, corrected for the window's edge.

  Bandwidth and range of interaction cannot be told apart: keep sigma well above
  the distances of K, and look at more than one.
  """

  def __init__(self, window: windows.Window, sigma: windows.Number):
    """Draws the window on a raster of `sigma` / 16, at least 1/4096 of it.

    Args:
      window: where points could be, µm.
      sigma: standard deviation of the kernel, µm.

    Raises:
      ValueError: sigma not positive, or finer than the raster allows.
    """
    self._window = windows.check_window(window)
    if not sigma > 0:
      raise ValueError(f"sigma is {sigma}, allowed: above 0 µm")
    x0, y0, x1, y1 = window.bounds
    pixel = max(sigma / _PER_SIGMA, max(x1 - x0, y1 - y0) / _RASTER)
    if sigma < 4 * pixel:
      raise ValueError(
        f"sigma is {sigma} µm, allowed: from {4 * pixel:.3g} µm, four pixels "
        "of the raster of this window"
      )
    self._sigma, self._pixel, self._corner = sigma, pixel, (x0, y0)
    self._size = [
      math.ceil((hi - lo) / pixel) + 1 for lo, hi in ((y0, y1), (x0, x1))
    ]
    # Of a point alone, at its own place.
    width = math.ceil(_ENDS * sigma / pixel)
    impulse = np.zeros(2 * width + 3)
    impulse[width + 1] = 1
    own = ndimage.gaussian_filter1d(impulse, sigma / pixel, truncate=_ENDS)
    self._own = float(own.max()) ** 2
    # Share of the kernel's mass inside the window.
    self._inside = self._smooth(
      windows.draw(window, (x0, y0), pixel, self._size)
    )

  def _smooth(self, image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(
      image.astype(np.float64),
      self._sigma / self._pixel,
      mode="constant",
      truncate=_ENDS,
    )

  def _pixels(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each point."""
    column, row = ((points - self._corner) / self._pixel).astype(int).T
    return row, column

  def density(
    self, points: Float[np.ndarray, "n 2"]
  ) -> Float[np.ndarray, " n"]:
    """Density of the other points around each point, per µm².

    The point itself is left out, or K would be biased downwards.

    Raises:
      ValueError: points without another within four sigma; as
        `windows.check_points`.
    """
    points = windows.check_points(points, self._window, least=2)
    row, column = at = self._pixels(points)
    flat = row * self._size[1] + column
    counts = np.bincount(flat, minlength=self._size[0] * self._size[1])
    mass = self._smooth(counts.reshape(self._size))[at] - self._own
    alone = int((mass <= 1e-9 * self._own).sum())
    if alone:
      raise ValueError(
        f"sigma is {self._sigma} µm: {alone} of {len(points)} points have no "
        "other within four of it; take a larger one"
      )
    return mass / np.maximum(self._inside[at], self._own) / self._pixel**2

  def draw(
    self, points: Float[np.ndarray, "n 2"], rng: np.random.Generator
  ) -> Float[np.ndarray, "n 2"]:
    """As many points, each by itself, with the density of the given ones."""
    found, have = [], 0
    # A kernel of which the window keeps half is drawn from twice as often.
    least = float(self._inside[self._pixels(points)].min())
    while have < len(points):
      near = points[rng.integers(0, len(points), 2 * len(points))]
      xy = near + rng.normal(0, self._sigma, near.shape)
      xy = xy[windows.inside(self._window, xy)]
      share = np.maximum(self._inside[self._pixels(xy)], least)
      found.append(xy[rng.uniform(0, share) < least])
      have += len(found[-1])
    return np.concatenate(found)[: len(points)]


@functools.lru_cache(maxsize=4)
def kernel(window: windows.Window, sigma: windows.Number) -> Kernel:
  """The kernel of a window; every pair of types asks for the same."""
  return Kernel(window, sigma)
