import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from wsiseq_jax.data import augment


def drift_batch(b=2, stored=24, window=40, step=3, seed=0):
  """Strips of smooth noise with one box a frame, as the loader hands over."""
  rng = np.random.default_rng(seed)
  width = window + step * (stored - 1)
  panels = rng.integers(0, 256, (b, 1, window, width, 3), dtype=np.uint8)
  for panel in panels[:, 0]:
    panel[:] = cv2.GaussianBlur(panel, (0, 0), 1.5)
  box = np.zeros((b, stored, 4), np.float32)
  box[..., 0] = step * np.arange(stored)
  box[..., 2:] = window
  return {
    "panels": panels,
    "frame_panel": np.zeros((b, stored), np.int32),
    "frame_box": box,
    "time": np.tile(np.arange(stored, dtype=np.float32), (b, 1)),
    "frame_level0_xy": np.random.default_rng(1)
    .random((b, stored, 2))
    .astype(np.float32),
    "frame_mask": np.ones((b, stored), np.float32),
  }


def on_device(batch):
  return jax.tree.map(jnp.asarray, batch)


def spec(**changes):
  fields = dict(
    frames=4,
    frame_step=2,
    image_px=(32, 32),
    frame_px=(40, 40),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
  )
  return augment.ClipSpec(**{**fields, **changes})


def test_resize_equals_pillows_antialiased_bilinear():
  batch = drift_batch(b=1)
  clips = augment.centre_clips(on_device(batch), spec(image_px=(18, 18)))
  for t, frame in enumerate(np.asarray(clips.frames[0])):
    x = 3 * frame
    image = Image.fromarray(batch["panels"][0, 0][:, x : x + 40])
    want = np.asarray(image.resize((18, 18), Image.Resampling.BILINEAR))
    got = np.asarray(clips.pixels[0, t]) * 255
    # Inside: at the border Pillow cuts the filter at the frame's edge, while
    # ours sees the panel beyond it.
    difference = np.abs(got - want)[:, 2:-2]
    assert difference.max() <= 1.0


def test_same_size_crop_is_an_exact_copy():
  batch = drift_batch(b=2)
  clips = augment.centre_clips(on_device(batch), spec(image_px=(40, 40)))
  for b in range(2):
    for t, frame in enumerate(np.asarray(clips.frames[b])):
      x = 3 * frame
      got = np.asarray(augment.to_uint8(clips.pixels[b, t], spec()))
      assert np.array_equal(got, batch["panels"][b, 0][:, x : x + 40])


def test_centre_clip_takes_the_middle_frames():
  # 24 stored frames, a clip spans 3 * 2 + 1 = 7: it starts at (24 - 7) // 2.
  clips = augment.centre_clips(on_device(drift_batch()), spec())
  assert clips.frames.tolist() == [[8, 10, 12, 14]] * 2
  assert clips.time.tolist() == [[8.0, 10.0, 12.0, 14.0]] * 2
  # 3 px a stored frame, 40 px shown on 32: x = 24 * 0.8, 30 * 0.8, …
  np.testing.assert_allclose(
    clips.shift_px[0, :, 0], [19.2, 24.0, 28.8, 33.6], rtol=1e-6
  )
  assert np.all(np.asarray(clips.shift_px[..., 1]) == 0)


def test_starts_cover_all_that_fit_and_copies_differ():
  batch = drift_batch(b=1)
  sampled = spec(repeats=256)
  clips = jax.jit(augment.sample_clips, static_argnums=2)(
    on_device(batch), jax.random.key(0), sampled
  )
  assert clips.pixels.shape == (256, 4, 32, 32, 3)
  assert set(clips.frames[:, 0].tolist()) == set(range(24 - 7 + 1))
  assert np.all(np.diff(clips.frames, axis=1) == 2)
  # Crops 40, 35, 30 and 26 px wide; 35 and 30 snap to the 32 px of the output.
  step = np.diff(np.asarray(clips.shift_px[..., 0]), axis=1)
  assert set(np.round(6 * 32 / step, 2).ravel()) == {26.0, 32.0, 40.0}


def test_tissue_coordinates_point_at_the_pixels():
  # The colour of a smooth panel encodes its x coordinate; reading it back must
  # agree with shift_px for any crop.
  batch = drift_batch(b=1)
  width = batch["panels"].shape[3]
  ramp = np.linspace(0, 255, width)[None, :, None]
  batch["panels"][0, 0] = np.broadcast_to(ramp, (40, width, 3)).round()
  clips = augment.sample_clips(
    on_device(batch), jax.random.key(2), spec(repeats=32)
  )
  middle = np.asarray(clips.pixels)[:, :, 16, 16, 0] * (width - 1)
  shift = np.asarray(clips.shift_px)[..., 0]
  scale = 6.0 / np.diff(shift, axis=1).mean(axis=1)  # panel px an output px
  x = (shift + 16.5) * scale[:, None] - 0.5
  assert np.abs(middle - x).max() < 0.5


def test_short_sequences_repeat_their_last_frame():
  clips = augment.centre_clips(on_device(drift_batch(stored=5)), spec())
  assert clips.frames.tolist() == [[0, 2, 4, 4]] * 2
  assert clips.frame_mask.tolist() == [[1, 1, 1, 0]] * 2


def test_padding_is_never_shown():
  # 24 stored frames, of which 9 are real in the second record: its clips of
  # span 7 start at 0, 1 or 2, and its middle clip at 1.
  batch = drift_batch()
  batch["frame_mask"][1, 9:] = 0
  clips = augment.centre_clips(on_device(batch), spec())
  assert clips.frames.tolist() == [[8, 10, 12, 14], [1, 3, 5, 7]]
  many = augment.sample_clips(
    on_device(batch), jax.random.key(0), spec(repeats=64)
  )
  starts = np.asarray(many.frames[:, 0]).reshape(2, 64)
  assert set(starts[1].tolist()) == {0, 1, 2} and starts[0].max() > 2
  assert np.all(np.asarray(many.frame_mask) == 1)


def test_flips_mirror_whole_clips():
  batch = on_device(drift_batch(b=1))
  crops = dict(crop_scales=(1.0,), frames=12, frame_step=2)
  plain = augment.sample_clips(batch, jax.random.key(0), spec(**crops))
  both = augment.sample_clips(
    batch, jax.random.key(0), spec(flips=(1.0, 1.0), **crops)
  )
  np.testing.assert_array_equal(both.frames, plain.frames)
  np.testing.assert_allclose(
    both.pixels[:, :, ::-1, ::-1], plain.pixels, atol=1e-6
  )
  some = augment.sample_clips(
    batch, jax.random.key(0), spec(flips=(0.5, 0.0), repeats=64, **crops)
  )
  is_plain = np.asarray(
    jnp.all(jnp.abs(some.pixels - plain.pixels) < 1e-5, axis=(1, 2, 3, 4))
  )
  # 64 draws of 1/2: 12 is five deviations of 4 below 32.
  assert 12 < is_plain.sum() < 52


def test_frames_come_from_the_panel_they_name():
  stored = 8
  panels = np.zeros((1, stored, 40, 40, 3), np.uint8)
  panels[0] += (10 * np.arange(stored, dtype=np.uint8))[:, None, None, None]
  batch = {
    "panels": panels,
    "frame_panel": np.arange(stored, dtype=np.int32)[None],
    "frame_box": np.tile(np.float32([0, 0, 40, 40]), (1, stored, 1)),
    "time": np.zeros((1, stored), np.float32),
    "frame_level0_xy": np.zeros((1, stored, 2), np.float32),
    "frame_mask": np.ones((1, stored), np.float32),
  }
  clips = augment.centre_clips(on_device(batch), spec())
  grey = np.asarray(clips.pixels)[0, :, 5, 5, 0] * 255
  assert grey.round().tolist() == [0, 20, 40, 60]
  assert clips.panel.tolist() == [[0, 2, 4, 6]]


def test_rectangular_output_keeps_the_aspect_ratio():
  clips_spec = spec(image_px=(16, 32))
  sizes = augment.crop_sizes(
    dataclasses.replace(clips_spec, crop_scales=(1.0,))
  )
  # 40 px wide, hence 20 px high.
  assert [(s[0] * 40, s[1] * 40) for s in sizes] == [(20.0, 40.0)]
  clips = augment.centre_clips(on_device(drift_batch()), clips_spec)
  assert clips.pixels.shape == (2, 4, 16, 32, 3)
  assert np.all(np.asarray(clips.shift_px[..., 1]) == 8.0)


def test_clips_do_not_depend_on_the_number_of_devices():
  batch = drift_batch(b=8)
  mesh = jax.make_mesh(
    (8, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2
  )
  sharding = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
  function = jax.jit(
    lambda batch, key: augment.sample_clips(
      on_device(batch), key, spec(repeats=2)
    ),
    in_shardings=(sharding, None),
    out_shardings=sharding,
  )
  key = jax.random.key(0)
  sharded = function(batch, key)
  alone = augment.sample_clips(on_device(batch), key, spec(repeats=2))
  assert np.array_equal(sharded.frames, alone.frames)
  np.testing.assert_allclose(sharded.pixels, alone.pixels, atol=2e-6)
  text = function.lower(batch, key).compile().as_text()
  for name in ("all-gather", "all-reduce", "all-to-all", "permute("):
    assert f" {name}" not in text, name


def test_normalisation_round_trip():
  batch = drift_batch()
  plain = augment.centre_clips(on_device(batch), spec())
  usual = spec(mean=augment.IMAGENET_MEAN, std=augment.IMAGENET_STD)
  clips = augment.centre_clips(on_device(batch), usual)
  want = np.round(np.asarray(plain.pixels) * 255)
  got = np.asarray(augment.to_uint8(clips.pixels, usual)).astype(float)
  assert np.abs(got - want).max() <= 1
  first = np.asarray(plain.pixels)[0, 0, 0, 0]
  np.testing.assert_allclose(
    np.asarray(clips.pixels)[0, 0, 0, 0],
    (first - np.asarray(augment.IMAGENET_MEAN)) / augment.IMAGENET_STD,
    rtol=1e-4,
    atol=1e-5,
  )


def test_batch_arrays_reach_the_step_as_they_are():
  batch = {k: jnp.asarray(v) for k, v in drift_batch().items()}
  batch["targets"] = jnp.zeros((2, 3))
  clips = augment.centre_clips(on_device(batch), spec())
  assert clips.pixels.shape[0] == 2
