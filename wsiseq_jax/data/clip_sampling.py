"""Which frames a clip shows: numbers only, no pixels.

A name says what clips a method needs: `2c8f2s` is two clips of eight frames,
every second stored frame. Stored sequences have one length T, but a record may
have fewer real frames, L; the rest is padding. All functions here are traced
with L as a value of the device, so that one program serves all records:

    real frames   0 1 2 3 4 5 6 7 8            L = 9
    1c4f2s        . x . x . x . x .            span 7: starts 0, 1, 2
    padding       a clip that runs past L - 1 repeats frame L - 1 with mask 0

Two clips of a record never start at the same frame. Where a record is too
short for two starts, `Starts.is_distinct` is False, and losses leave it out.

`strict halves` come from short periodic movies, of a beating heart say: a clip
is drawn from the first or the last half of the frames, so that a model which
predicts frames from their neighbours never sees the same phase twice.
"""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from data_prep.files import schema


@dataclasses.dataclass(frozen=True)
class ClipName:
  """What a name like `2c8f2s` says."""

  clips: int  # clips of a record, 1 or 2
  frames: int  # frames of a clip
  frame_step: int  # stored frames from one frame of the clip to the next

  @property
  def span(self) -> int:
    """Stored frames from the first to the last frame of a clip."""
    return (self.frames - 1) * self.frame_step + 1


_NAME = re.compile(r"([12])c([1-9]\d*)f(?:([1-9]\d*)s)?")
IS_CLIP_NAME = schema.Rule(
  lambda text: _NAME.fullmatch(text) is not None,
  "'{n}c{f}f{s}s': 1 or 2 clips of f frames, every s-th stored frame, such as "
  "'1c8f2s' ('1c8f' for s = 1)",
)


def parse_clip_name(text: str) -> ClipName:
  """Reads a name like `2c8f2s`; without its last part the step is 1.

  Raises:
    ValueError: It is no such name.

  Example:
    >>> parse_clip_name("2c8f2s")
    ClipName(clips=2, frames=8, frame_step=2)
    >>> parse_clip_name("1c8f")
    ClipName(clips=1, frames=8, frame_step=1)
  """
  found = _NAME.fullmatch(text)
  if found is None:
    raise ValueError(
      f"config.data.clips = {text!r}: must be {IS_CLIP_NAME.wanted}"
    )
  clips, frames, step = found.groups()
  return ClipName(int(clips), int(frames), int(step or 1))


class Range(NamedTuple):
  """Frames that a clip may show: `first`, `first + 1`, ... (`length` many)."""

  first: Int[Array, ""]
  length: Int[Array, ""]


def real_range(frame_mask: Float[Array, " t"]) -> Range:
  """The real frames of a record; padding comes after them.

  Example:
    >>> real_range(jnp.array([1.0, 1.0, 0.0])).length.item()
    2
  """
  length = jnp.sum(frame_mask > 0).astype(jnp.int32)
  return Range(jnp.zeros((), jnp.int32), length)


def strict_half(key: Key[Array, ""], whole: Range) -> Range:
  """The first or the last half of the frames, each with probability 1/2.

  Of an odd number the middle frame belongs to neither half; a single frame is
  its own half.
  """
  length = jnp.maximum(whole.length // 2, 1)
  is_last = jax.random.bernoulli(key)
  shift = jnp.where(is_last, whole.length - length, 0)
  return Range(whole.first + shift, length)


def clip_frames(
  start: Int[Array, ""], allowed: Range, name: ClipName
) -> tuple[Int[Array, " t"], Float[Array, " t"]]:
  """Stored frames of a clip, and which of them are real."""
  place = start + jnp.arange(name.frames) * name.frame_step
  is_real = place < allowed.length
  frames = allowed.first + jnp.minimum(place, allowed.length - 1)
  return frames, is_real.astype(jnp.float32)


def start_count(length: Int[Array, ""], span: int) -> Int[Array, ""]:
  """How many starts fit: at least one, for records shorter than a clip.

  Example:
    >>> start_count(jnp.array(9), 7).item(), start_count(jnp.array(3), 7).item()
    (3, 1)
  """
  return jnp.maximum(length - span, 0) + 1


def one_start(
  key: Key[Array, ""], length: Int[Array, ""], span: int
) -> Int[Array, ""]:
  """A start, uniform over those that fit."""
  return jax.random.randint(key, (), 0, start_count(length, span))


class Starts(NamedTuple):
  """Starts of two clips of a record."""

  start: Int[Array, "2"]  # different unless the record has room for one only
  is_distinct: Bool[Array, ""]  # whether they are


def two_starts(
  key: Key[Array, ""], length: Int[Array, ""], span: int
) -> Starts:
  """Different starts of two clips, uniform over pairs."""
  starts = start_count(length, span)
  first_key, second_key, order_key = jax.random.split(key, 3)
  first = jax.random.randint(first_key, (), 0, starts)
  second = jax.random.randint(second_key, (), 0, jnp.maximum(starts - 1, 1))
  second += second >= first
  pair = jnp.stack([first, second])
  pair = jnp.where(jax.random.bernoulli(order_key), pair, pair[::-1])
  is_distinct = starts > 1
  return Starts(jnp.where(is_distinct, pair, 0), is_distinct)


def centre_start(length: Int[Array, ""], span: int) -> Int[Array, ""]:
  """The start of the middle clip.

  Example:
    >>> centre_start(jnp.array(24), 7).item()
    8
  """
  return jnp.maximum(length - span, 0) // 2


def dense_starts(stored: int, span: int, step: int) -> np.ndarray:
  """Starts of a window that slides over the stored frames (testing)."""
  return np.arange(0, max(stored - span, 0) + 1, step, dtype=np.int32)
