"""What pairs of pixels say about boundaries and about places of instances.

Pairs closer than `radius` pixels, on the grid of the network's outputs, are of
three sets by their mined labels:

    both background          P0    no boundary between them, same displacement
    both of one class        P+    no boundary between them, one centre
    of different labels      N     a boundary between them

Pairs with a pixel whose label is ignored belong to none. With the affinity `a`,
one minus the highest boundary between the two, and `D` the displacement:

    boundary       ½ (½ mean_P0 -log a + ½ mean_P+ -log a + mean_N -log(1 - a))
    displacement   ½ mean_P+ |D(p) - D(q) - (q - p)| + ½ mean_P0 |D(p) - D(q)|

The means are over all pairs of the batch, and 0 where there is none. Offsets
are gone through one after the other, and computed again for the gradient:
memory is that of one offset's path, whatever the radius.

Reference: Ahn, Cho and Kwak, Weakly supervised learning of instance
segmentation with inter-pixel relations, CVPR 2019.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from wsiseq_jax.segment import random_walk
from wsiseq_jax.segment.decide import UNDECIDED
from wsiseq_jax.segment.random_walk import Offset

# What `pair_sums` counts of each picture.
SUMS = (
  *("background", "background_pairs", "same", "same_pairs"),
  *("different", "different_pairs", "towards_centre", "still"),
)
_EPS = 1e-5


def least_side(radius: int) -> int:
  """Pixels of the smallest square that has a pair, as sources are chosen."""
  return 2 * radius - 1


def pair_sums(
  logits: Float[Array, "b h w"],
  displacement: Float[Array, "b h w 2"],
  labels: Array,
  radius: int,
) -> Float[Array, "b 8"]:
  """Sums of the losses of all pairs of each picture, and their numbers.

  The first pixel of a pair has room for all offsets, as in the original: it
  lies at least `radius - 1` pixels from the left, right and lower border.

  Args:
    logits: of the boundary.
    displacement: vertical, horizontal, in pixels.
    labels: [b, h, w], 0 background, classes, 255 to be ignored.
    radius: pairs are closer than that.

  Returns:
    `SUMS`, by column; those of the displacement are over both components.
  """
  reach = radius - 1
  b, h, w = logits.shape
  # Pictures that are too small are no error: they have few pairs, or none.
  spare = (max(radius - h, 0), max(least_side(radius) - w, 0))
  room = ((0, 0), (0, spare[0]), (0, spare[1]))
  edge = jnp.pad(jax.nn.sigmoid(logits), room)
  labels = jnp.pad(labels.astype(jnp.int32), room, constant_values=UNDECIDED)
  places = jnp.pad(displacement.transpose(3, 0, 1, 2), ((0, 0), *room))
  rows, columns = h + spare[0] - reach, w + spare[1] - 2 * reach

  def seen(maps, point):
    """Maps at an offset from the first pixels of pairs."""
    y, x = point
    where = (*(0,) * (maps.ndim - 2), y, reach + x)
    return lax.dynamic_slice(maps, where, (*maps.shape[:-2], rows, columns))

  def one_offset(edge, places, offset, points):
    def higher(highest, point):
      return jnp.maximum(highest, seen(edge, point)), None

    highest, _ = lax.scan(higher, seen(edge, points[0]), points[1:])
    affinity = 1.0 - highest
    here, there = seen(labels, (0, 0)), seen(labels, offset)
    known = (here != UNDECIDED) & (there != UNDECIDED)
    is_same = known & (here == there)
    sets = (is_same & (here == 0), is_same & (here > 0), known & ~is_same)
    joined = -jnp.log(affinity + _EPS)
    parted = -jnp.log(1.0 + _EPS - affinity)
    change = seen(places, (0, 0)) - seen(places, offset)
    away = change - offset.astype(jnp.float32).reshape(2, 1, 1, 1)
    still, towards = (jnp.abs(d).sum(axis=0) for d in (change, away))

    def total(values, members):
      return jnp.where(members, values, 0.0).sum(axis=(1, 2))

    background, same, different = sets
    count = [members.sum(axis=(1, 2)) * 1.0 for members in sets]
    return jnp.stack(
      [
        *(total(joined, background), count[0], total(joined, same), count[1]),
        *(total(parted, different), count[2]),
        *(total(towards, same), total(still, background)),
      ],
      axis=1,
    )

  def add(sums, pair):
    # Otherwise maps of every step of every path would be kept.
    return sums + jax.checkpoint(one_offset)(edge, places, *pair), None

  sums = jnp.zeros((b, len(SUMS)))
  # Paths of one length at a time: none is filled up.
  groups: dict[int, list[tuple[Offset, tuple[Offset, ...]]]] = {}
  for offset in random_walk.half_disc(radius):
    path = random_walk.path(*offset)
    groups.setdefault(len(path), []).append((offset, path))
  for group in groups.values():
    offsets, paths = map(np.array, zip(*group, strict=True))
    sums, _ = lax.scan(add, sums, (offsets, paths))
  return sums


def losses(sums: Float[Array, "b 8"]) -> dict[str, Float[Array, ""]]:
  """Losses of the boundary and of the displacement, over a whole batch."""
  total = dict(zip(SUMS, sums.sum(axis=0), strict=True))

  def mean(value, pairs, components=1):
    return total[value] / (components * total[pairs] + _EPS)

  joined = mean("background", "background_pairs") + mean("same", "same_pairs")
  towards = mean("towards_centre", "same_pairs", 2)
  still = mean("still", "background_pairs", 2)
  return {
    "boundary": 0.5 * (0.5 * joined + mean("different", "different_pairs")),
    "displacement": 0.5 * (towards + still),
  }
