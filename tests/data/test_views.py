"""Views of records whose pixels say which frame they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.data import augment, clip_sampling, views

STORED, SIDE, RECORDS = 12, 16, 24
# Time of the stored frames: irregular, no whole numbers, the first not 0.
TIMES = 2.5 + np.cumsum(np.linspace(0.13, 1.9, STORED))


def plain(clips, **settings):
  """No change but the choice of frames."""
  return views.ViewSpec(
    clip_sampling.parse_clip_name(clips),
    (SIDE, SIDE),
    (SIDE, SIDE),
    mean=(0.0,) * 3,
    std=(1 / 255,) * 3,
    **settings,
  )


CHANGED = {
  "rotate_deg": 15.0,
  "crop_areas": (0.4, 1.0),
  "flips": (0.5, 0.5),
  "jitter_probability": 0.8,
  "brightness": 0.8,
  "contrast": 0.8,
  "blur_probability": 0.5,
}


def batch(lengths=(STORED,) * RECORDS, panels=None):
  """Frame t of every record is a picture of its own, all of grey 10 (t + 1)."""
  count = len(lengths)
  if panels is None:
    grey = 10 * (1 + np.arange(STORED, dtype=np.uint8))
    panels = np.broadcast_to(grey[:, None, None, None], (STORED, SIDE, SIDE, 3))
  place = np.arange(STORED)
  lengths = np.asarray(lengths)[:, None]
  # Padding repeats the last real frame, as data_prep writes it.
  shown = np.minimum(place[None], lengths - 1)
  return {
    "panels": jnp.asarray(np.broadcast_to(panels, (count, *panels.shape))),
    "frame_panel": jnp.asarray(shown, jnp.int32),
    "frame_box": jnp.tile(
      jnp.array([0.0, 0.0, SIDE, SIDE]), (count, STORED, 1)
    ),
    "time": jnp.asarray(TIMES[shown], jnp.float32),
    "frame_level0_xy": jnp.zeros((count, STORED, 2)),
    "frame_mask": jnp.asarray(place[None] < lengths, jnp.float32),
  }


def draw(spec, data=None, seed=0):
  data = batch() if data is None else data
  keys = jax.random.split(jax.random.key(seed), len(data["time"]))
  return jax.jit(lambda d, k: views.sample_views(d, k, spec))(data, keys)


def shown(seen):
  """Frame numbers read off the pixels."""
  grey = np.asarray(seen.pixels).mean(axis=(3, 4, 5))
  return np.round(grey / 10 - 1).astype(int)


def test_pixels_times_and_numbers_are_of_the_same_frames():
  seen = draw(plain("2c4f2s"))
  np.testing.assert_array_equal(shown(seen), seen.frames)
  np.testing.assert_allclose(
    seen.time, TIMES[np.asarray(seen.frames)] - TIMES[0], rtol=1e-6
  )
  assert seen.time.dtype == jnp.float32
  step = np.diff(np.asarray(seen.frames), axis=2)
  assert (step == 2).all()


def test_two_clips_are_truly_different():
  """The reference's two clips share their frames, as it is shipped."""
  seen = draw(plain("2c4f1s"))
  frames = shown(seen)
  assert (frames[:, 0] != frames[:, 1]).all()
  assert (
    np.asarray(seen.time)[:, 0, 0] != np.asarray(seen.time)[:, 1, 0]
  ).all()
  assert bool(seen.is_distinct.all())


def test_one_clip_is_seen_twice_and_changed_twice():
  spec = plain("1c4f1s")
  seen = draw(spec)
  np.testing.assert_array_equal(seen.frames[:, 0], seen.frames[:, 1])
  np.testing.assert_array_equal(seen.pixels[:, 0], seen.pixels[:, 1])
  seen = draw(dataclasses.replace(spec, **CHANGED))
  np.testing.assert_array_equal(seen.frames[:, 0], seen.frames[:, 1])
  change = np.abs(np.asarray(seen.pixels[:, 0] - seen.pixels[:, 1]))
  assert (change.max(axis=(1, 2, 3, 4)) > 1).mean() > 0.9


def test_a_view_is_changed_alike_in_all_its_frames():
  panel = jax.random.randint(jax.random.key(4), (1, SIDE, SIDE, 3), 0, 255)
  panels = np.repeat(np.asarray(panel, np.uint8), STORED, axis=0)
  seen = draw(
    dataclasses.replace(plain("2c4f1s"), **CHANGED), batch(panels=panels)
  )
  first = seen.pixels[:, :, :1]
  np.testing.assert_allclose(
    seen.pixels, jnp.broadcast_to(first, seen.pixels.shape), atol=1e-3
  )
  # And otherwise in another view, and in another record.
  assert float(jnp.abs(first[:, 0] - first[:, 1]).max()) > 1
  assert float(jnp.abs(first[0] - first[1]).max()) > 1


def test_draws_follow_the_key():
  spec = dataclasses.replace(plain("2c4f1s"), **CHANGED)
  one, same, other = draw(spec), draw(spec), draw(spec, seed=1)
  np.testing.assert_array_equal(one.pixels, same.pixels)
  assert not np.array_equal(one.frames, other.frames)


def test_padding_is_shown_only_where_a_record_is_too_short():
  lengths = (3, 5, 12) * 8
  seen = draw(plain("1c4f1s"), batch(lengths))
  frames, mask = np.asarray(seen.frames), np.asarray(seen.frame_mask)
  assert (frames < np.array(lengths)[:, None, None]).all()
  np.testing.assert_array_equal(
    mask.sum(axis=2), np.minimum(np.array(lengths), 4)[:, None].repeat(2, 1)
  )
  # With mask 0 the last real frame is repeated.
  assert (frames[0, :, 3] == 2).all() and (mask[0, :, 3] == 0).all()


def test_what_lies_in_padding_is_never_looked_at():
  data = batch((5,) * 6)
  spec = dataclasses.replace(plain("2c4f1s"), **CHANGED)
  other = {**data, "panels": data["panels"].at[:, 5:].set(255)}
  other["time"] = data["time"].at[:, 5:].set(1e5)
  for one, two in zip(draw(spec, data), draw(spec, other), strict=True):
    np.testing.assert_array_equal(one, two)


def test_records_with_room_for_one_clip_are_marked():
  seen = draw(plain("2c4f1s"), batch((4, 5, 3, 12)))
  assert seen.is_distinct.tolist() == [False, True, False, True]


def test_strict_halves_hold_both_views_in_one_half():
  seen = draw(plain("2c4f1s", strict_half=True))
  frames = np.asarray(seen.frames).reshape(RECORDS, -1)
  first, last = (frames < 6).all(axis=1), (frames >= 6).all(axis=1)
  assert (first | last).all() and first.any() and last.any()


def test_rotation_of_a_slope_is_a_slope():
  """v = 3 x + 5 y about the centre, turned by a: known at every pixel."""
  y, x = np.mgrid[:40, :40] - 19.5
  clip = jnp.asarray((3 * x + 5 * y)[None, :, :, None], jnp.float32)
  angle = np.radians(20)
  found = views.rotate(clip, jnp.array(20.0), (24, 20))[0, :, :, 0]
  y, x = np.mgrid[:24, :20] - np.array([11.5, 9.5])[:, None, None]
  source_x = np.cos(angle) * x - np.sin(angle) * y
  source_y = np.sin(angle) * x + np.cos(angle) * y
  np.testing.assert_allclose(found, 3 * source_x + 5 * source_y, atol=1e-3)


def test_a_rotated_view_has_no_empty_corners():
  spec = dataclasses.replace(plain("1c4f1s"), rotate_deg=45.0)
  seen = draw(spec)
  grey = 10.0 * (1 + np.asarray(seen.frames))
  np.testing.assert_allclose(
    seen.pixels,
    np.broadcast_to(grey[..., None, None, None], seen.pixels.shape),
    atol=1e-2,
  )


def test_flips_and_crops():
  slope = np.broadcast_to(
    10 * np.arange(SIDE, dtype=np.uint8)[None, :, None], (SIDE, SIDE, 3)
  )
  data = batch(panels=np.repeat(slope[None], STORED, axis=0))
  seen = draw(plain("1c1f1s", flips=(0.5, 0.0)), data)
  left, right = seen.pixels[..., 0, 0, 0], seen.pixels[..., 0, -1, 0]
  is_mirrored = np.asarray(left > right)
  assert 0.3 < is_mirrored.mean() < 0.7
  seen = draw(plain("1c1f1s", crop_areas=(0.25, 0.25)), data)
  row = np.asarray(seen.pixels)[:, :, 0, 0, :, 0]
  # Half of the side: a slope half as steep, at any place.
  np.testing.assert_allclose(np.diff(row[..., 1:-1], axis=-1), 5, atol=0.7)
  starts = row[..., 0]
  assert starts.min() < 15 and starts.max() > 55


def test_without_a_key_frames_are_shown_as_they_are():
  data = batch()
  chosen = jnp.tile(jnp.array([[0, 7, 3]]), (RECORDS, 1))
  pixels, time = views.whole_frames(data, chosen, plain("1c4f1s", **CHANGED))
  np.testing.assert_allclose(pixels.mean(axis=(2, 3, 4))[0], [10, 80, 40])
  np.testing.assert_allclose(time[0], TIMES[[0, 7, 3]] - TIMES[0], rtol=1e-6)


def test_the_middle_clip():
  frames, mask = views.centre_frames(batch((12, 6, 3)), plain("1c4f1s"))
  assert frames.tolist() == [[4, 5, 6, 7], [1, 2, 3, 4], [0, 1, 2, 2]]
  assert mask.tolist() == [[1] * 4, [1] * 4, [1, 1, 1, 0]]


def test_dense_windows_count_where_they_fit():
  frames, mask, weight = views.dense_frames(
    batch((12, 6, 3)), plain("1c4f1s"), 2
  )
  assert frames.shape == (3, 5, 4)
  assert weight.tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
  assert frames[0, 4].tolist() == [8, 9, 10, 11]
  assert mask[2, 0].tolist() == [1, 1, 1, 0]


def test_mild_changes_are_those_of_the_reference():
  spec = plain("2c4f1s", strict_half=True, **CHANGED).mild()
  assert (spec.crop_areas, spec.flips) == ((0.9, 1.0), (0.3, 0.0))
  assert (spec.rotate_deg, spec.blur_probability) == (0, 0)
  assert (spec.jitter_probability, spec.brightness, spec.contrast) == (
    1.0, 0.2, 0.2,
  )  # fmt: skip
  assert not spec.strict_half
  keys = jax.random.split(jax.random.key(0), RECORDS)
  seen = views.sample_clip(batch(), keys, spec)
  assert seen.pixels.shape == (RECORDS, 1, 4, SIDE, SIDE, 3)


@pytest.mark.parametrize(
  ("image_px", "frame_px", "wanted"),
  [((32, 32), (48, 64), (1.0, 0.75)), ((32, 64), (48, 48), (0.5, 1.0))],
)
def test_the_largest_crop_keeps_the_shape(image_px, frame_px, wanted):
  name = clip_sampling.parse_clip_name("1c4f")
  spec = views.ViewSpec(name, image_px, frame_px)
  assert spec.whole_crop == pytest.approx(wanted)
  assert spec.mean == augment.IMAGENET_MEAN
