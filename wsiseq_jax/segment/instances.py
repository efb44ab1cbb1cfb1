"""Instances from displacements: pixels that end at one centre are one instance.

Each pixel follows the displacement, which is read between pixels as it lies,
for 300 steps. Where the displacement is short there is a centre; the connected
parts of such places are numbered, and a pixel belongs to the part that it ends
in. The scores of each class on each of these clusters are spread by a walk of
their own; the highest one, if it reaches a threshold, is the pixel's instance.
Parts of an instance that are not connected are instances of their own, and
those below 1 % of the picture get score 0.

Reference: Ahn, Cho and Kwak, CVPR 2019.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jax import lax
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

from wsiseq_jax.segment import decide

_STEPS = 300
_CENTRE = 2.5  # places; displacements shorter than this are at a centre
_LEAST_SHARE = 0.01  # of the picture
# Maps that are spread at once, so that few programs are compiled.
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
  """Instances of one picture."""

  numbers: Int[np.ndarray, "h w"]  # of each pixel from 1, 0 = none
  classes: Int[np.ndarray, " n"]  # of instance 1, 2, ..., from 1
  scores: Float[np.ndarray, " n"]  # likewise, the higher the surer


@functools.partial(jax.jit, static_argnames="steps")
def follow(
  displacement: Float[Array, "h w 2"],
  size: Int[Array, "2"],
  steps: int = _STEPS,
) -> Int[Array, "h w 2"]:
  """Where each pixel ends that follows the displacement.

  Args:
    displacement: vertical, horizontal, in pixels.
    size: (h, w) of the picture, which nothing leaves; the rest is padding.
    steps: as many.

  Returns:
    The pixel that is the nearest then: row, column.
  """
  h, w, _ = displacement.shape
  grid = jnp.mgrid[:h, :w].astype(jnp.float32)
  last = (size.astype(jnp.float32) - 1).reshape(2, 1, 1)

  def step(_, at):
    moved = [
      at[c] + map_coordinates(displacement[..., c], at, 1, mode="nearest")
      for c in range(2)
    ]
    return jnp.clip(jnp.stack(moved), 0.0, last)

  at = lax.fori_loop(0, steps, step, jnp.minimum(grid, last))
  return jnp.round(at).astype(jnp.int32).transpose(1, 2, 0)


def clusters(
  displacement: Float[np.ndarray, "h w 2"], ends: Int[np.ndarray, "h w 2"]
) -> Int[np.ndarray, "h w"]:
  """Numbers of clusters from 0, without gaps.

  Args:
    displacement: vertical, horizontal, in pixels.
    ends: of `follow`.

  Example:
    >>> displacement = np.array([[[0, 0.0], [0, -9.0], [0, 0.0]]])
    >>> ends = np.array([[[0, 0], [0, 0], [0, 2]]])
    >>> clusters(displacement, ends).tolist()
    [[0, 0, 1]]
  """
  is_centre = np.hypot(*np.moveaxis(displacement, -1, 0)) < _CENTRE
  parts, _ = scipy.ndimage.label(is_centre)
  numbers = parts[ends[..., 0], ends[..., 1]]
  return np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape)


def instances(
  scores: Float[np.ndarray, "y h w"],
  numbers: Int[np.ndarray, "h w"],
  spread: Callable[[np.ndarray], np.ndarray],
  size: tuple[int, int],
  background: float,
  most: int,
) -> Instances:
  """Instances of a picture.

  Args:
    scores: of the foreground classes.
    numbers: of `clusters`.
    spread: maps [k, h, w] → the same after the walk.
    size: (h, w) of the picture in pixels.
    background: least score, of the highest one of the picture.
    most: clusters that are spread, of a class; those with the highest sums of
      scores.
  """
  of, parts = [], []
  for number, one in enumerate(scores, start=1):
    sums = np.bincount(numbers.ravel(), one.ravel().astype(np.float64))
    for cluster in np.argsort(-sums, kind="stable")[:most]:
      if sums[cluster] > 0:
        of.append(number)
        parts.append(np.where(numbers == cluster, one, 0).astype(np.float32))
  if not parts:
    nothing = np.zeros(0, np.int64)
    return Instances(np.zeros(size, np.int32), nothing, nothing * 1.0)
  spare = -len(parts) % _AT_ONCE
  filled = np.pad(np.stack(parts), ((0, spare), (0, 0), (0, 0)))
  found = np.concatenate(
    [
      np.asarray(spread(filled[first : first + _AT_ONCE]))
      for first in range(0, len(filled), _AT_ONCE)
    ]
  )[: len(parts)]
  best, owner = np.full(size, background, np.float32), np.zeros(size, np.int32)
  highest = max(decide.enlarge(one[None], size).max() for one in found)
  for number, one in enumerate(found, start=1):
    one = decide.enlarge(one[None], size)[0] / (highest + 1e-5)
    owner[one > best] = number
    best = np.maximum(best, one)
  return _split(owner, best, np.array(of))


def _split(
  owner: Int[np.ndarray, "h w"],
  score: Float[np.ndarray, "h w"],
  classes: Int[np.ndarray, " k"],
) -> Instances:
  """Connected parts of what each owns, and their scores."""
  numbers, of, scores = np.zeros(owner.shape, np.int32), [], []
  for one in np.unique(owner[owner > 0]):
    parts, count = scipy.ndimage.label(owner == one)
    numbers = np.where(parts > 0, parts + len(of), numbers)
    area = np.bincount(parts.ravel())[1:]
    highest = scipy.ndimage.maximum(score, parts, np.arange(1, count + 1))
    is_large = area >= _LEAST_SHARE * owner.size
    scores += np.where(is_large, highest, 0.0).tolist()
    of += [int(classes[one - 1])] * count
  return Instances(
    numbers.astype(np.int32), np.array(of, np.int64), np.array(scores)
  )
