"""Density of cells from place to place, for the inhomogeneous statistics."""

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


def kernel_intensity(
  points: Float[np.ndarray, "n 2"],
  window: windows.Window,
  sigma: windows.Number,
) -> Float[np.ndarray, " n"]:
  """Density of the other points around each point, by a Gaussian kernel.

  The point itself is left out, or K would be biased downwards, and the kernel's
  mass outside the window is divided out. Bandwidth and range of interaction
  cannot be told apart: keep sigma well above the distances of K, and report
  more than one.

  Args:
    points: [n, 2] in µm.
    window: where points could be, µm.
    sigma: standard deviation of the kernel, µm.

  Returns:
    Points per µm² at each point, on a raster of `sigma` / 16, or of 1/4096 of
    the window's longer side if that is coarser.

  Raises:
    ValueError: sigma not positive, or finer than the raster allows; points
      without another within four sigma; as `windows.check_points`.
  """
  window = windows.check_window(window)
  points = windows.check_points(points, window, least=2)
  if not sigma > 0:
    raise ValueError(f"sigma is {sigma}, allowed: above 0 µm")
  x0, y0, x1, y1 = window.bounds
  pixel = max(sigma / _PER_SIGMA, max(x1 - x0, y1 - y0) / _RASTER)
  if sigma < 4 * pixel:
    raise ValueError(
      f"sigma is {sigma} µm, allowed: from {4 * pixel:.3g} µm, four pixels of "
      "the raster of this window"
    )
  size = [math.ceil((hi - lo) / pixel) + 1 for lo, hi in ((y0, y1), (x0, x1))]
  column, row = ((points - (x0, y0)) / pixel).astype(int).T
  counts = np.bincount(row * size[1] + column, minlength=size[0] * size[1])

  def smooth(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(
      image.astype(np.float64), sigma / pixel, mode="constant", truncate=_ENDS
    )

  impulse = np.zeros(2 * math.ceil(_ENDS * sigma / pixel) + 3)
  impulse[len(impulse) // 2] = 1
  own = ndimage.gaussian_filter1d(impulse, sigma / pixel, truncate=_ENDS).max()
  inside = smooth(windows.draw(window, (x0, y0), pixel, size))[row, column]
  mass = smooth(counts.reshape(size))[row, column] - own**2
  alone = int((mass <= 1e-9 * own**2).sum())
  if alone:
    raise ValueError(
      f"sigma is {sigma} µm: {alone} of {len(points)} points have no other "
      "within four of it; take a larger one"
    )
  return mass / np.maximum(inside, own**2) / pixel**2
