"""Resampling: exact in place and scale, against formulas."""

import cv2
import numpy as np
import pytest

from data_prep.wsi import resample


def _wave(xy: np.ndarray) -> np.ndarray:
  """A picture known at every point: 40 px and 57 px waves."""
  x, y = xy[..., 0], xy[..., 1]
  values = np.stack(
    [
      128 + 100 * np.sin(2 * np.pi * x / 40),
      128 + 100 * np.cos(2 * np.pi * y / 57),
      128 + 50 * np.sin(2 * np.pi * (x + y) / 60),
    ],
    -1,
  )
  return np.rint(values).astype(np.uint8)


def _grid(corner, size, step=1.0):
  """Middles of pixels that begin at a corner."""
  x = corner[0] + (np.arange(size[0]) + 0.5) * step
  y = corner[1] + (np.arange(size[1]) + 0.5) * step
  return np.stack(np.meshgrid(x, y), -1)


@pytest.mark.parametrize(
  "factor", [0.5, 0.8, 0.25 / 0.2528, 1.0, 1.01, 1.25, 1.7, 2.0, 3.8, 4.0]
)
@pytest.mark.parametrize("corner", [(0.0, 0.0), (13.37, -4.81), (7.5, 3.25)])
def test_resampling_is_exact_in_place_and_scale(factor, corner):
  """Compares with the picture's formula, 300 result pixels away included."""

  def read(start, out):
    out[:] = _wave(_grid(start, out.shape[1::-1]))

  size = (300, 200)
  out = resample.read_scaled(read, corner, size, factor)
  assert out.shape == (200, 300, 3)
  expected = _wave(_grid(corner, size, factor)).astype(float)
  # The mean over an area lowers a wave by sinc(factor / period).
  for channel, period in enumerate((40, 57)):
    expected[..., channel] -= 128
    expected[..., channel] *= np.sinc(max(factor, 0) / period)
    expected[..., channel] += 128
  error = np.abs(out[..., :2] - expected[..., :2])
  # The steepest slope is 15.7 grey levels a pixel: 1/64 px is 0.25, rounding
  # of source and result 1, the kernel's own ripple the rest.
  assert error.mean() < 1.0
  assert error.max() < 3.5
  # A shift of a tenth of a pixel would show.
  shifted = _wave(_grid((corner[0] + 0.1, corner[1]), size, factor))
  moved = np.abs(out[..., 0] - shifted[..., 0].astype(float)).mean()
  assert moved > error[..., 0].mean()


def _cubic(source, grid):
  """Keys' cubic between pixels, by OpenCV's slowest function."""
  x, y = np.moveaxis(grid.astype(np.float32) - 0.5, -1, 0)
  return cv2.remap(source, x, y, cv2.INTER_CUBIC)


def _area_means(source, grid, factor):
  """Means over squares, from a table of sums that is linear between pixels."""
  table = np.zeros((source.shape[0] + 1, source.shape[1] + 1, 3))
  table[1:, 1:] = source.cumsum(axis=0, dtype=float).cumsum(axis=1)

  def at(values, places):
    whole = places.astype(int)
    rest = (places - whole)[:, None, None]
    return values[whole] * (1 - rest) + values[whole + 1] * rest

  x, y = (
    np.append(middle, middle[-1] + factor) - factor / 2
    for middle in (grid[0, :, 0], grid[:, 0, 1])
  )
  sums = at(at(table, y).swapaxes(0, 1), x).swapaxes(0, 1)
  return np.diff(np.diff(sums, axis=0), axis=1) / factor**2


# The second of each kernel lies where no whole pixel can be begun with.
@pytest.mark.parametrize(
  "factor, corner",
  [
    (0.9889, (10.3, 20.7)),
    (0.5, (10.2, 4.6)),
    (1.6, (10.2, 4.6)),
    (2.0, (10.2, 4.6)),
  ],
)
def test_noise_is_resampled_as_by_a_slow_reference(factor, corner):
  rng = np.random.default_rng(0)
  source = rng.integers(0, 256, (600, 600, 3), np.uint8)

  def read(start, out):
    x, y = start[0] + 100, start[1] + 100
    out[:] = source[y : y + out.shape[0], x : x + out.shape[1]]

  found = resample.read_scaled(read, corner, (80, 60), factor)
  grid = _grid(corner, (80, 60), factor) + 100
  wanted = (
    _cubic(source, grid) if factor < 1 else _area_means(source, grid, factor)
  )
  difference = np.abs(found - wanted.astype(float))
  # White noise is the worst case: 1/64 px is up to 4 grey levels.
  assert difference.mean() < 1.5 and difference.max() <= 8


def test_shrinking_does_not_alias():
  def stripes(start, out):
    x = (start[0] + np.arange(out.shape[1])) % 2
    out[:] = (255 * x)[None, :, None]

  out = resample.read_scaled(stripes, (3.0, 3.0), (64, 64), 3.7)
  assert np.ptp(out[8:-8, 8:-8].astype(int)) <= 80  # stripes are gone
  assert abs(out.mean() - 127.5) < 3
  out = resample.read_scaled(stripes, (3.0, 3.0), (64, 64), 2.0)
  assert np.ptp(out) <= 1
