"""All pairs of points nearer than a radius, in blocks of bounded memory.

Points are sorted into square cells. The points of one cell are held against
those of the nine cells around in one dense block, so that NumPy works inside
the processor's cache and time grows with the number of points, not its square.
"""

import concurrent.futures
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Pairs held in one block: a few arrays of 256 kB stay in the cache.
_BLOCK = 32_768
# Points a cell has at least, on average, so that blocks pay for their call.
_PER_CELL = 64


class PairBlock:
  """Some close pairs; what is not asked for is not computed."""

  def __init__(self, dx, dy, d2, keep, mine, others):
    """Dense [a, b] arrays and which of them count."""
    self._dx, self._dy, self._keep = dx, dy, keep
    self._mine, self._others = mine, others
    self.d2: Float[np.ndarray, " p"] = d2[keep]  # squared distance, µm²

  @functools.cached_property
  def dx(self) -> Float[np.ndarray, " p"]:
    """From the first point to the second along x, µm."""
    return self._dx[self._keep]

  @functools.cached_property
  def dy(self) -> Float[np.ndarray, " p"]:
    """From the first point to the second along y, µm."""
    return self._dy[self._keep]

  @functools.cached_property
  def _where(self) -> tuple[np.ndarray, np.ndarray]:
    return np.nonzero(self._keep)

  @functools.cached_property
  def i(self) -> Int[np.ndarray, " p"]:
    """Index of the first point."""
    return self._mine[self._where[0]]

  @functools.cached_property
  def j(self) -> Int[np.ndarray, " p"]:
    """Index of the second point."""
    return self._others[self._where[1]]


def sum_pairs(
  function: Callable[[PairBlock], np.ndarray],
  first: Float[np.ndarray, "n 2"],
  second: Float[np.ndarray, "m 2"] | None,
  radius: int | float | np.integer | np.floating,
) -> Any:
  """The sum of a function over all blocks of close pairs.

  Args:
    function: of a block, returns what can be added; called from threads.
    first: points, µm.
    second: points; None pairs `first` with itself, in both orders, without
      pairs of a point and itself.
    radius: largest distance of a pair, µm, itself included.

  Returns:
    The sum, added up in an order that only the points decide; 0 without pairs.
  """

  def one_span(cells: range) -> Any:
    return sum(map(function, grid.blocks(cells)))

  grid = _Grid(first, second, radius)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return sum(pool.map(one_span, grid.spans()))


def iterate(
  first: Float[np.ndarray, "n 2"],
  second: Float[np.ndarray, "m 2"] | None,
  radius: int | float | np.integer | np.floating,
) -> Iterator[PairBlock]:
  """The blocks of close pairs that `sum_pairs` adds up, one after another."""
  grid = _Grid(first, second, radius)
  for cells in grid.spans():
    yield from grid.blocks(cells)


class _Grid:
  """Both sets of points, sorted into cells no smaller than the radius."""

  def __init__(self, first, second, radius):
    others = first if second is None else second
    self.first, self.radius, self.same = first, radius, second is None
    self.cell = np.zeros(0, np.int64)
    if not len(first) or not len(others):
      return
    low = others.min(axis=0) - radius
    extent = others.max(axis=0) + radius - low
    side = max(radius, math.sqrt(extent.prod() * _PER_CELL / len(others)))
    side *= 1 + 1e-9  # rounding must not put a neighbour two cells away
    self.columns, self.rows = (int(e // side) + 1 for e in extent)
    theirs = ((others - low) // side).astype(np.int64) @ (1, self.columns)
    self.by_cell = np.argsort(theirs, kind="stable")
    cells = np.arange(self.rows * self.columns + 1)
    self.start = np.searchsorted(theirs[self.by_cell], cells)
    self.x, self.y = others[self.by_cell].T.copy()
    # A first point beyond the grid is farther than the radius from any other.
    mine = (first - low) // side
    inside = (mine >= 0) & (mine < (self.columns, self.rows))
    reach = np.flatnonzero(inside.all(axis=1))
    key = mine[reach].astype(np.int64) @ (1, self.columns)
    self.mine = reach[np.argsort(key, kind="stable")]
    self.cell, self.begin = np.unique(np.sort(key), return_index=True)
    self.end = np.append(self.begin[1:], len(key))

  def spans(self) -> list[range]:
    """Stretches of cells, one a task."""
    step = max(1, len(self.cell) // 256)
    return [
      range(i, min(i + step, len(self.cell)))
      for i in range(0, len(self.cell), step)
    ]

  def blocks(self, cells: range) -> Iterator[PairBlock]:
    """The close pairs whose first point is in one of these cells."""
    for index in cells:
      row, column = divmod(int(self.cell[index]), self.columns)
      left, right = max(column - 1, 0), min(column + 1, self.columns - 1)
      rows = range(max(row - 1, 0), min(row + 1, self.rows - 1) + 1)
      near = [
        np.arange(
          self.start[r * self.columns + left],
          self.start[r * self.columns + right + 1],
        )
        for r in rows
      ]
      ours = self.mine[self.begin[index] : self.end[index]]
      yield from self._dense(ours, np.concatenate(near))

  def _dense(self, ours, near) -> Iterator[PairBlock]:
    """Points of one cell against those around it, cut to size."""
    wide = min(max(len(near), 1), _BLOCK // 8)
    tall = _BLOCK // wide
    for b in range(0, len(near), wide):
      part = near[b : b + wide]
      others, x, y = self.by_cell[part], self.x[part], self.y[part]
      for a in range(0, len(ours), tall):
        mine = ours[a : a + tall]
        dx = x - self.first[mine, 0, None]
        dy = y - self.first[mine, 1, None]
        d2 = dx * dx
        d2 += dy * dy
        keep = d2 <= self.radius * self.radius
        if self.same:
          keep &= others != mine[:, None]
        if keep.any():
          yield PairBlock(dx, dy, d2, keep, mine, others)
