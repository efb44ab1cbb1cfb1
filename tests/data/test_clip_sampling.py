"""Which frames clips show: by hand, and counted over many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.data import clip_sampling as sampling

DRAWS = 4000


def keys(count=DRAWS):
  return jax.random.split(jax.random.key(3), count)


def record(length):
  return sampling.Range(jnp.int32(0), jnp.int32(length))


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("2c8f2s", (2, 8, 2)),
    ("1c16f10s", (1, 16, 10)),
    ("1c8f", (1, 8, 1)),
    ("2c1f3s", (2, 1, 3)),
  ],
)
def test_names(text, wanted):
  name = sampling.parse_clip_name(text)
  assert (name.clips, name.frames, name.frame_step) == wanted


@pytest.mark.parametrize(
  "text",
  ["", "3c8f", "0c8f", "1c0f", "1c8f0s", "8f2s", "1c8f2", "1C8F", "x1c8f"],
)
def test_what_is_no_name_says_what_one_is(text):
  with pytest.raises(ValueError, match=r"config\.data\.clips = .*1c8f2s"):
    sampling.parse_clip_name(text)


def test_span_is_from_first_to_last_frame():
  spans = [
    sampling.parse_clip_name(t).span for t in ("1c8f2s", "1c8f", "1c1f9s")
  ]
  assert spans == [15, 8, 1]


def test_starts_are_uniform_and_the_last_one_is_reached():
  found = jax.vmap(lambda k: sampling.one_start(k, jnp.int32(9), 7))(keys())
  counts = np.bincount(np.asarray(found), minlength=3)
  assert len(counts) == 3
  assert np.abs(counts / DRAWS - 1 / 3).max() < 0.03


def test_a_short_record_is_shown_whole_and_padded():
  name = sampling.parse_clip_name("1c4f2s")
  start = sampling.one_start(jax.random.key(0), jnp.int32(5), name.span)
  frames, mask = sampling.clip_frames(start, record(5), name)
  assert frames.tolist() == [0, 2, 4, 4]
  assert mask.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
  ("length", "halves"), [(8, ((0, 4), (4, 8))), (9, ((0, 4), (5, 9)))]
)
def test_strict_halves(length, halves):
  found = jax.vmap(lambda k: sampling.strict_half(k, record(length)))(keys())
  pairs = np.stack([found.first, found.first + found.length], axis=1)
  found, counts = np.unique(pairs, axis=0, return_counts=True)
  assert [tuple(row) for row in found.tolist()] == list(halves)
  assert abs(counts[0] / DRAWS - 0.5) < 0.03


def test_a_clip_of_a_half_stays_in_it():
  name = sampling.parse_clip_name("1c3f1s")
  half = sampling.Range(jnp.int32(5), jnp.int32(4))

  def draw(key):
    start = sampling.one_start(key, half.length, name.span)
    return sampling.clip_frames(start, half, name)

  frames, mask = jax.vmap(draw)(keys(200))
  assert (int(frames.min()), int(frames.max())) == (5, 8)
  assert float(mask.min()) == 1


def test_two_clips_never_start_at_the_same_frame():
  found = jax.vmap(lambda k: sampling.two_starts(k, jnp.int32(12), 7))(keys())
  start = np.asarray(found.start)
  assert (start[:, 0] != start[:, 1]).all() and bool(found.is_distinct.all())
  assert start.min() == 0 and start.max() == 5
  # Either may be the earlier one.
  assert abs((start[:, 0] < start[:, 1]).mean() - 0.5) < 0.03


def test_independent_starts_are_uniform_over_pairs():
  found = jax.vmap(lambda k: sampling.two_starts(k, jnp.int32(9), 7))(keys())
  pairs, counts = np.unique(np.asarray(found.start), axis=0, return_counts=True)
  assert len(pairs) == 6
  assert np.abs(counts / DRAWS - 1 / 6).max() < 0.025


def test_a_record_with_room_for_one_start_says_so():
  found = sampling.two_starts(jax.random.key(0), jnp.int32(7), 7)
  assert not bool(found.is_distinct)
  assert found.start.tolist() == [0, 0]


def test_dense_starts_are_those_of_the_reference():
  # 50 frames, 8 of every second: windows of 16 with the frame after the last.
  assert len(sampling.dense_starts(50, 16, 1)) == 35
  assert sampling.dense_starts(10, 7, 2).tolist() == [0, 2]
  assert sampling.dense_starts(5, 7, 1).tolist() == [0]
