"""Which single cells have more neighbours of a type than chance gives them.

Random labelling, cell by cell: a cell with m neighbours within a radius draws
them from all other cells, so that the number of one type among them is
hypergeometric. Where p is small for many cells, Benjamini and Hochberg say how
many to believe.

References: Getis and Franklin 1987, "Second-order neighborhood analysis of
mapped point patterns" (counts around single points). Anselin 1995, "Local
indicators of spatial association" (conditional permutation). Benjamini and
Hochberg 1995.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy import spatial, stats


@dataclasses.dataclass(frozen=True, eq=False)
class Surroundings:
  """Around each cell of one type."""

  cell: Int[np.ndarray, " n"]  # its number among all cells
  count: Int[np.ndarray, " n"]  # neighbours of the other type
  all: Int[np.ndarray, " n"]  # neighbours of any type
  p: Float[np.ndarray, " n"]  # of so many or more
  q: Float[np.ndarray, " n"]  # p, corrected for the number of cells


def neighbours(
  points: Float[np.ndarray, "n 2"],
  types: Int[np.ndarray, " n"],
  pair: tuple[int, int],
  radius: float,
) -> Surroundings:
  """Neighbours of one type around each cell of another.

  Args:
    points: all cells, [n, 2] in µm.
    types: of each cell.
    pair: the types (around, counted); both may be the same.
    radius: of the neighbourhood, µm, itself included.

  Returns:
    One row for each cell of the first type, in the order of `points`.

  Raises:
    ValueError: no cell of one of the types, or a radius that is not positive.
  """
  if not radius > 0:
    raise ValueError(f"radius is {radius}, allowed: above 0 µm")
  cell = np.flatnonzero(types == pair[0])
  others = points[types == pair[1]]
  if not len(cell) or not len(others):
    raise ValueError(f"types: no cell of type {pair[0]} or {pair[1]}")
  itself = int(pair[0] == pair[1])

  def within(tree_of: np.ndarray) -> np.ndarray:
    tree = spatial.cKDTree(tree_of)
    return tree.query_ball_point(
      points[cell], radius, return_length=True, workers=-1
    )

  count, around = within(others) - itself, within(points) - 1
  # Few pairs of numbers are different.
  both, where = np.unique(
    np.stack([count, around], axis=1), axis=0, return_inverse=True
  )
  p = stats.hypergeom.sf(
    both[:, 0] - 1, len(points) - 1, len(others) - itself, both[:, 1]
  )[where.ravel()]
  p = np.clip(p, 0, 1)
  return Surroundings(cell, count, around, p, stats.false_discovery_control(p))
