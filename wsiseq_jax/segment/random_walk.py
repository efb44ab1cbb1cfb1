"""Random walk over a picture: scores spread where no boundary is in the way.

A pixel exchanges scores with all pixels closer than `radius`. The affinity of a
pair is one minus the highest boundary on the path between them, raised to
`beta`; each column of the transition matrix is divided by its sum. So every
result is a weighted mean of scores, and never above their maximum.

The matrix, pixels × pixels, is never made. Its 256th power is applied to scores
as 256 steps, each a sum of shifted pictures, over the offsets `o` of half a
disc, since affinities are symmetric:

    y[q] = x[q] + Σ_o (a_o[q] (x[q+o] - x[q]) + a_o[q-o] (x[q-o] - x[q])) / s[q]

where `s[q]` is one plus the affinities of q. Adding differences, not products,
keeps a constant a constant, whatever the rounding; otherwise the errors of 256
divisions by `s` add up. Rows lie one after the other with `radius - 1` empty
columns between them: an offset is then one shift of a flat array, without cases
at the border.

Reference: Ahn, Cho and Kwak, Weakly supervised learning of instance
segmentation with inter-pixel relations, CVPR 2019.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Offset = tuple[int, int]


@functools.cache
def half_disc(radius: int) -> tuple[Offset, ...]:
  """Offsets (dy, dx) of half a disc, so that each pair occurs once.

  Args:
    radius: in pixels; pairs are closer than that.

  Raises:
    ValueError: no offset is that short.

  Example:
    >>> half_disc(2)
    ((0, 1), (1, -1), (1, 0), (1, 1))
    >>> [len(half_disc(r)) for r in (3, 5, 8, 10)]
    [12, 34, 96, 152]
  """
  if radius < 2:
    raise ValueError(f"radius = {radius}: must be 2 or more pixels")
  side = range(1 - radius, radius)
  below = [(y, x) for y in range(1, radius) for x in side]
  return (
    *((0, x) for x in range(1, radius)),
    *((y, x) for y, x in below if y * y + x * x < radius**2),
  )


@functools.cache
def path(dy: int, dx: int) -> tuple[Offset, ...]:
  """Pixels between (0, 0) and (dy, dx), both among them.

  Those of the rectangle that the two span which are closer than one pixel to
  the line through them.

  Example:
    >>> path(1, -1)
    ((0, -1), (0, 0), (1, -1), (1, 0))
    >>> len(path(3, 4)), len(path(0, 4))
    (10, 5)
  """
  length = dy * dy + dx * dx
  return tuple(
    (y, x)
    for y in range(min(dy, 0), max(dy, 0) + 1)
    for x in range(min(dx, 0), max(dx, 0) + 1)
    if (dy * x - dx * y) ** 2 < length
  )


def affinities(
  boundary: Float[Array, "h w"], radius: int
) -> Float[Array, "o h w"]:
  """Affinity of every pixel and the one at each offset of `half_disc`.

  Args:
    boundary: 0 to 1.
    radius: in pixels.

  Returns:
    One minus the highest boundary on the path; 0 for pairs that leave the
    picture.
  """
  h, w = boundary.shape
  reach = radius - 1
  # A wall around the picture; nothing is above, as no offset is upwards.
  walled = jnp.pad(boundary, ((0, reach), (reach, reach)), constant_values=1.0)

  def highest(offset: Offset) -> Array:
    found = None
    for y, x in path(*offset):
      there = walled[y : y + h, reach + x : reach + x + w]
      found = there if found is None else jnp.maximum(found, there)
    return found

  return 1.0 - jnp.stack([highest(o) for o in half_disc(radius)])


@functools.partial(jax.jit, static_argnames=("radius", "steps"))
def walk(
  scores: Float[Array, "k h w"],
  boundary: Float[Array, "h w"],
  radius: int = 5,
  beta: float | Float[Array, ""] = 10.0,
  steps: int = 256,
) -> Float[Array, "k h w"]:
  """Spreads scores by a random walk that boundaries stop.

  Args:
    scores: k maps, of classes or of instances.
    boundary: 0 to 1; set 1 where there is no picture.
    radius: of a step, in pixels of these maps; pairs are closer than that.
    beta: exponent of affinities; the higher, the less leaks through.
    steps: of the walk; the original's eight squarings are 256.

  Returns:
    Maps of the same shape, float32.

  Raises:
    ValueError: the radius is below 2.
  """
  (_, h, w), gap = scores.shape, radius - 1
  offsets = half_disc(radius)
  width = w + gap  # of a row with the empty columns behind it
  shifts = [dy * width + dx for dy, dx in offsets]
  length, margin = h * width, gap * width + gap

  def flat(maps: Array) -> Array:
    rows = jnp.pad(maps, ((0, 0), (0, 0), (0, gap)))
    return rows.reshape(-1, length)

  weights = flat(affinities(boundary.astype(jnp.float32), radius) ** beta)
  # What lies before a pixel is read from its partner's place: so half of the
  # weights suffice, and the walk is bound by reading them.
  weights = jnp.pad(weights, ((0, 0), (margin, 0)))

  def neighbours(x: Array) -> Iterator[tuple[Array, Array]]:
    """Affinities of all pixels and what they are of, offset by offset."""
    padded = jnp.pad(x, margin)
    for weight, shift in zip(weights, shifts, strict=True):
      ahead, behind = margin + shift, margin - shift
      yield weight[margin:], padded[ahead : ahead + length]
      yield weight[behind : behind + length], padded[behind : behind + length]

  total = 1.0 + sum(a for a, _ in neighbours(jnp.zeros(length)))
  inverse = 1.0 / total

  def step(_, x: Array) -> Array:
    return x + inverse * sum(a * (there - x) for a, there in neighbours(x))

  def one(x: Array) -> Array:
    return lax.fori_loop(0, steps, step, x)

  found = jax.vmap(one)(flat(scores.astype(jnp.float32)))
  return found.reshape(-1, h, width)[:, :, :w]
