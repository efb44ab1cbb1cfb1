r"""Tiles on their grid: an order in which neighbours stay together, and PPEG.

TransMIL fills a square with tiles in the order of the file and convolves that:
what it calls neighbours lie on one scan line at best. Here neighbours are those
of the tissue.

    cell of a tile   (column, row) = ⌊grid_xy⌋
    order            along a Z-curve over cells: pieces of the sequence are
                     compact pieces of tissue
    PPEG             x + conv7(x) + conv5(x) + conv3(x), each channel by itself,
                     zeros where there is no tile

The three convolutions and the identity are one kernel of 7 × 7. It is not run
over a canvas, most of which is glass: for each of its 49 places the neighbour
of every tile is looked up among the sorted cells and gathered. Time and memory
are linear in tiles, however far apart they lie. The backward pass gathers too,
from the opposite neighbour.

Tiles in one cell (overlapping ones, or of two grids) are averaged before the
convolution, and get the same from it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

KERNELS = (7, 5, 3)
_SIDE = KERNELS[0]
# (row, column) steps of the 49 places, row-major.
_STEPS = np.stack(
  np.meshgrid(*[np.arange(_SIDE) - _SIDE // 2] * 2, indexing="ij"), axis=-1
).reshape(-1, 2)
# Comes after every cell: 65,535 columns or rows are the most.
NOWHERE = np.uint32(0xFFFFFFFF)
_LAST = 0xFFFE


def _spread(x: UInt32[Array, "*m"]) -> UInt32[Array, "*m"]:
  """Puts a zero between the 16 bits of a number."""
  for shift, mask in (
    (8, 0x00FF00FF),
    (4, 0x0F0F0F0F),
    (2, 0x33333333),
    (1, 0x55555555),
  ):
    x = (x | (x << shift)) & np.uint32(mask)
  return x


def z_order(
  column: Int[Array, "*m"], row: Int[Array, "*m"]
) -> UInt32[Array, "*m"]:
  """Places of cells along a Z-curve: bits of column and row take turns.

  Example:
    >>> column, row = jnp.array([0, 1, 0, 1, -1]), jnp.array([0, 0, 1, 1, 0])
    >>> z_order(column, row).tolist()
    [0, 1, 2, 3, 4294967295]
  """
  inside = (column >= 0) & (row >= 0) & (column <= _LAST) & (row <= _LAST)
  column, row = (
    _spread(jnp.where(inside, x, 0).astype(jnp.uint32)) for x in (column, row)
  )
  return jnp.where(inside, column | (row << 1), NOWHERE)


def cells(
  grid_xy: Float[Array, "m 2"], mask: Bool[Array, " m"]
) -> Int[Array, "m 2"]:
  """Columns and rows of tiles, counted from the least of the bag.

  A hundredth of a tile is added first, so that a tile at 2.9999 is in 3.
  """
  cell = jnp.floor(grid_xy.astype(jnp.float32) + 0.01).astype(jnp.int32)
  first = jnp.min(
    jnp.where(mask[:, None], cell, jnp.iinfo(jnp.int32).max), axis=0
  )
  return jnp.clip(cell - first[None], 0, _LAST)


def _decode(place: UInt32[Array, " m"]) -> tuple[Array, Array]:
  """Column and row of a place on the Z-curve."""

  def gather_bits(x):
    x = x & np.uint32(0x55555555)
    for shift, mask in (
      (1, 0x33333333),
      (2, 0x0F0F0F0F),
      (4, 0x00FF00FF),
      (8, 0x0000FFFF),
    ):
      x = (x | (x >> shift)) & np.uint32(mask)
    return x.astype(jnp.int32)

  return gather_bits(place), gather_bits(place >> 1)


def neighbours(places: UInt32[Array, " m"]) -> Int[Array, "k m"]:
  """Where the 49 neighbours of each cell are.

  Returns:
    Index of the neighbour at each step, or m where there is none.
  """
  count = places.shape[0]
  column, row = _decode(places)
  is_cell = places != NOWHERE

  def look_up(step):
    wanted = z_order(column + step[1], row + step[0])
    index = jnp.searchsorted(places, wanted)
    index = jnp.minimum(index, count - 1)
    is_there = (places[index] == wanted) & (wanted != NOWHERE) & is_cell
    return jnp.where(is_there, index, count)

  return lax.map(look_up, jnp.asarray(_STEPS))


def _gather(x: Float[Array, "m e"], index: Int[Array, " m"]) -> Array:
  return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def convolve(
  x: Float[Array, "m e"], kernel: Float[Array, "k e"], table: Int[Array, "k m"]
) -> Float[Array, "m e"]:
  """Σ over places of kernel · neighbour, each channel by itself."""

  def body(total, place):
    index, weight = place
    return total + weight[None] * _gather(x, index), None

  return lax.scan(body, jnp.zeros_like(x), (table, kernel))[0]


def _convolve_forward(x, kernel, table):
  return convolve(x, kernel, table), (x, kernel, table)


def _convolve_backward(saved, slope):
  x, kernel, table = saved

  def body(total, place):
    index, opposite, weight = place
    total = total + weight[None] * _gather(slope, opposite)
    return total, jnp.sum(slope * _gather(x, index), axis=0)

  of_x, of_kernel = lax.scan(
    body, jnp.zeros_like(x), (table, table[::-1], kernel)
  )
  return of_x, of_kernel, None


convolve.defvjp(_convolve_forward, _convolve_backward)


class Ppeg(nnx.Module):
  """Adds to each tile what its neighbours say, by three convolutions."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    for side in KERNELS:
      # As torch's Conv2d: uniform within 1/√(values that go into an output).
      bound = 1 / side
      draw = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
      kernel = nnx.Param(draw(rngs.params(), (side, side, width)))
      setattr(self, f"kernel{side}", kernel)
      setattr(self, f"bias{side}", nnx.Param(draw(rngs.params(), (width,))))

  def kernel(self) -> Float[Array, "k e"]:
    """The three kernels, without the identity, as one of 7 × 7."""
    total = 0.0
    for side in KERNELS:
      margin = (_SIDE - side) // 2
      edges = ((margin, margin), (margin, margin), (0, 0))
      total = total + jnp.pad(getattr(self, f"kernel{side}")[...], edges)
    return total.reshape(_SIDE**2, -1)

  def bias(self) -> Float[Array, "1 e"]:
    """The three biases, summed."""
    biases = [getattr(self, f"bias{side}")[...] for side in KERNELS]
    return jnp.sum(jnp.stack(biases), axis=0, keepdims=True)

  def __call__(
    self, x: Float[Array, "m e"], places: UInt32[Array, " m"]
  ) -> Float[Array, "m e"]:
    """Convolves."""
    count = x.shape[0]
    is_first = jnp.concatenate([jnp.ones(1, bool), places[1:] != places[:-1]])
    cell = jnp.cumsum(is_first) - 1
    sums = functools.partial(
      jax.ops.segment_sum,
      segment_ids=cell,
      num_segments=count,
      indices_are_sorted=True,
    )
    tiles = jnp.maximum(sums(jnp.ones(count)), 1.0)
    of_cells = sums(x) / tiles[:, None]
    at = jnp.full(count, NOWHERE).at[cell].set(places)
    spread = convolve(of_cells, self.kernel(), neighbours(at))
    return x + jnp.take(spread, cell, axis=0) + self.bias()

  def alone(self, x: Float[Array, "m e"]) -> Float[Array, "m e"]:
    """The same for tiles that have no neighbours."""
    return x + x * self.kernel()[_SIDE**2 // 2][None] + self.bias()
