"""Positions of tokens: sinusoids, computed and never stored, and resampling.

Tokens of a clip are numbered time-major, then by row, then by column. VideoMAE
takes the flat number as the only coordinate (`sinusoid_1d`, worked out in
float64: an angle of 1568 radians in float32 is off by 1e-4). `sinusoid_3d`
encodes (t, y, x) apart, of the image or of the tissue.

A model on another grid than the one it was trained on must keep the meaning of
"top left, early": `resample` for sinusoids of clips, `resample_square` for the
trained tables of tile encoders.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

POSITIONS = ("flat", "separable", "tissue")


@functools.lru_cache(maxsize=32)
def sinusoid_1d(tokens: int, width: int) -> Float[np.ndarray, "n d"]:
  """Computes the sinusoid of a flat token index.

  Neighbouring channels share a wavelength; wavelengths grow geometrically from
  2 pi to 10000 * 2 pi:

    angle[p, j] = p / 10000 ** (2 * (j // 2) / width)
    table[p, j] = sin(angle) for even j, cos(angle) for odd j

  Reference: Vaswani et al., Attention is all you need, 2017; its use on the
  flattened index: Tong et al., VideoMAE, 2022.
  """
  channel = np.arange(width)
  wavelength = 10000.0 ** (2 * (channel // 2) / width)
  angle = np.arange(tokens)[:, None] / wavelength[None, :]
  table = np.where(channel[None, :] % 2 == 0, np.sin(angle), np.cos(angle))
  table = table.astype(np.float32)
  table.flags.writeable = False
  return table


def grid_coordinates(
  grid: tuple[int, int, int], trained_grid: tuple[int, int, int] | None = None
) -> Float[np.ndarray, "n 3"]:
  """Coordinates (t, y, x) of the tokens of a grid, in tokens.

  Example:
    >>> grid_coordinates((1, 1, 2)).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    >>> grid_coordinates((1, 1, 4), (1, 1, 2))[:, 2].tolist()
    [-0.25, 0.25, 0.75, 1.25]
  """
  axes = [
    (np.arange(new) + 0.5) * old / new - 0.5
    for new, old in zip(grid, trained_grid or grid, strict=True)
  ]
  cells = np.meshgrid(*axes, indexing="ij")
  return np.stack(cells, axis=-1).reshape(-1, 3).astype(np.float32)


def sinusoid_3d(
  coordinates: Float[Array, "*n 3"], width: int
) -> Float[Array, "*n d"]:
  """Sinusoids of each of three coordinates, side by side.

  A third of the channels belongs to each coordinate (the last gets what is
  over), half of them sines and half cosines. Wavelengths grow geometrically
  from 2 pi tokens to 10000 * 2 pi.

  Example:
    >>> sinusoid_3d(jnp.zeros((1, 3)), 6).tolist()
    [[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]

  Reference: He et al., Masked autoencoders, 2022 (two axes).
  """
  parts = []
  for axis, pairs in enumerate(np.array_split(np.arange(width // 2), 3)[::-1]):
    frequency = 10000.0 ** (-np.arange(len(pairs)) / len(pairs))
    angle = jnp.tensordot(
      coordinates[..., axis], frequency.astype(np.float32), axes=0
    )
    parts += [jnp.sin(angle), jnp.cos(angle)]
  return jnp.concatenate(parts, axis=-1)


def resample(
  table: Float[np.ndarray, "n d"],
  trained_grid: tuple[int, int, int],
  grid: tuple[int, int, int],
) -> Float[np.ndarray, "m d"]:
  """Interpolates a position table from one token grid to another.

  Linear along each axis, cell centres aligned, edges held. A longer sinusoid
  would not do: the flat index of "one row down" is the number of columns, so on
  a wider grid every position but those of the first row would change.

  Returns:
    The table of the new grid, float32; the same values if the grids are equal.

  Raises:
    ValueError: If the table does not have the rows of `trained_grid`.

  Example:
    >>> table = np.array([[0.0], [4.0]], np.float32)
    >>> resample(table, (1, 1, 2), (1, 1, 4)).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
  """
  if table.shape[0] != math.prod(trained_grid):
    raise ValueError(
      f"position table has {table.shape[0]} rows, but model.trained_grid="
      f"{trained_grid} (t, h, w) has {math.prod(trained_grid)} tokens"
    )
  if trained_grid == grid:
    return table
  values = table.astype(np.float64).reshape(*trained_grid, -1)
  for axis, (old, new) in enumerate(zip(trained_grid, grid, strict=True)):
    values = np.moveaxis(
      np.tensordot(_linear_weights(old, new), values, axes=(1, axis)), 0, axis
    )
  return values.reshape(math.prod(grid), -1).astype(np.float32)


def _linear_weights(old: int, new: int) -> np.ndarray:
  """Weights `[new, old]` of linear interpolation with cell centres aligned."""
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  centre = np.clip(centre, 0, old - 1)
  return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(old)[None]))


def resample_square(
  table: Float[np.ndarray, "n d"], old: int, new: int, antialias: bool
) -> Float[np.ndarray, "m d"]:
  """Interpolates a position table from one square grid to another.

  Bicubic along both axes with cell centres aligned, as PyTorch does it:

  - with antialias (timm, Hugging Face's Dinov2WithRegisters) the cubic has
    a = -1/2 and is widened where the grid shrinks; weights of cells outside
    are shared among those inside;
  - without (Hugging Face's ViT and Dinov2) it has a = -3/4, sees four cells,
    and the edge goes on outside.

  Deviation: the first DINOv2 release scales by (new + 0.1) / old, a remedy for
  rounding that Hugging Face's port and the models with registers do without.

  Returns:
    The new table, float32; the same values if the grids are equal.

  Raises:
    ValueError: The table does not have old² rows.

  Example:
    >>> table = np.repeat(np.arange(4.0), 4)[:, None]  # grows downwards
    >>> resampled = resample_square(table, 4, 2, antialias=True)
    >>> [round(float(x), 3) for x in resampled[:, 0]]
    [0.587, 0.587, 2.413, 2.413]
  """
  if len(table) != old**2:
    raise ValueError(f"{len(table)} positions are no grid of {old} x {old}")
  if old == new:
    return table.astype(np.float32)
  weights = _cubic_weights(old, new, antialias)
  cells = table.astype(np.float64).reshape(old, old, -1)
  cells = np.einsum("ih,jw,hwd->ijd", weights, weights, cells)
  return cells.reshape(new**2, -1).astype(np.float32)


def _cubic_weights(old: int, new: int, antialias: bool) -> np.ndarray:
  """Weights `[new, old]` of cubic interpolation along one axis."""
  a = -0.5 if antialias else -0.75
  reach = max(old / new, 1.0) if antialias else 1.0
  centre = (np.arange(new) + 0.5) * old / new
  # Cells beyond the edges are there to be folded back or left out.
  cell = np.arange(-2, old + 2)
  x = np.abs(cell[None] + 0.5 - centre[:, None]) / reach
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
  inside = weight[:, 2:-2]
  if antialias:
    return inside / inside.sum(axis=1, keepdims=True)
  inside[:, 0] += weight[:, :2].sum(axis=1)
  inside[:, -1] += weight[:, -2:].sum(axis=1)
  return inside


@functools.lru_cache(maxsize=32)
def position_table(
  grid: tuple[int, int, int],
  width: int,
  trained_grid: tuple[int, int, int] | None = None,
) -> Float[np.ndarray, "n d"]:
  """Computes the position table of a token grid, resampled if need be."""
  if trained_grid is None or trained_grid == grid:
    return sinusoid_1d(math.prod(grid), width)
  logging.info(
    "position table of width %d resampled from trained grid %s to %s (t, h, w)",
    width,
    trained_grid,
    grid,
  )
  return resample(
    sinusoid_1d(math.prod(trained_grid), width), trained_grid, grid
  )
