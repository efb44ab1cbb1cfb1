import logging

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsiseq_jax.models import posemb, videomae


def test_sinusoid_by_hand():
  table = posemb.sinusoid_1d(3, 4)
  for p in range(3):
    # Channels 0 and 1 have wavelength 1, channels 2 and 3 have 10000^(2/4).
    want = [np.sin(p), np.cos(p), np.sin(p / 100), np.cos(p / 100)]
    np.testing.assert_allclose(table[p], want, atol=1e-7)
  assert table.dtype == np.float32


def test_sinusoid_is_exact_at_the_far_end():
  table = posemb.sinusoid_1d(1568, 768)
  assert table[1567, 0] == np.float32(np.sin(1567.0))
  assert table[1567, 767] == np.float32(np.cos(1567.0 / 10000 ** (766 / 768)))


def test_sinusoid_of_odd_width_ends_in_a_sine():
  table = posemb.sinusoid_1d(5, 3)
  np.testing.assert_allclose(
    table[4], [np.sin(4), np.cos(4), np.sin(4 / 10000 ** (2 / 3))], atol=1e-7
  )


def test_table_is_shared_and_therefore_read_only():
  with pytest.raises(ValueError, match="read-only"):
    posemb.sinusoid_1d(4, 4)[0, 0] = 7


def test_resample_to_the_same_grid_changes_nothing():
  table = posemb.sinusoid_1d(24, 6)
  np.testing.assert_array_equal(
    posemb.resample(table, (2, 3, 4), (2, 3, 4)), table
  )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resample_is_linear_along_each_axis(axis):
  # A table that holds its own coordinate along one axis.
  ramp = np.zeros((4, 4, 4))
  ramp += np.arange(4).reshape([-1 if a == axis else 1 for a in range(3)])
  table = ramp.reshape(64, 1).astype(np.float32)
  grid = [4, 4, 4]
  grid[axis] = 8
  new = posemb.resample(table, (4, 4, 4), tuple(grid)).reshape(grid)
  line = np.moveaxis(new, axis, 0)[:, 1, 2]
  # Half-pixel centres of 8 cells in units of 4, held at both edges.
  want = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
  np.testing.assert_allclose(line, want, atol=1e-6)
  np.testing.assert_allclose(np.moveaxis(new, axis, 0).std(axis=(1, 2)), 0)


def test_resample_down_and_several_axes_at_once():
  table = np.arange(16, dtype=np.float32).reshape(16, 1)
  new = posemb.resample(table, (1, 4, 4), (2, 2, 2)).reshape(2, 2, 2)
  # Means of 2 x 2 cells, repeated over time.
  np.testing.assert_allclose(new[0], [[2.5, 4.5], [10.5, 12.5]])
  np.testing.assert_array_equal(new[0], new[1])


def test_resample_refuses_a_table_of_another_grid():
  with pytest.raises(ValueError, match=r"24 rows.*trained_grid=\(2, 3, 5\)"):
    posemb.resample(posemb.sinusoid_1d(24, 4), (2, 3, 5), (4, 3, 5))


def test_position_table_says_that_it_resamples(caplog):
  with caplog.at_level(logging.INFO, logger="absl"):
    table = posemb.position_table((4, 2, 3), 6, (2, 2, 3))
  assert "resampled from trained grid (2, 2, 3) to (4, 2, 3)" in caplog.text
  np.testing.assert_allclose(
    table, posemb.resample(posemb.sinusoid_1d(12, 6), (2, 2, 3), (4, 2, 3))
  )
  caplog.clear()
  plain = posemb.position_table((4, 2, 3), 6)
  assert not caplog.text
  np.testing.assert_array_equal(plain, posemb.sinusoid_1d(24, 6))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("new", [3, 6, 11])
def test_resampling_keeps_constants_and_centres(antialias, new):
  rows, columns = np.meshgrid(np.arange(6.0), np.arange(6.0), indexing="ij")
  table = np.stack([np.ones((6, 6)), rows, columns], -1).reshape(36, 3)
  out = posemb.resample_square(table, 6, new, antialias)
  np.testing.assert_allclose(out[:, 0], 1.0, atol=1e-6)
  np.testing.assert_allclose(out[:, 1:].mean(axis=0), 2.5, atol=1e-6)
  out = out.reshape(new, new, 3)
  np.testing.assert_allclose(out[:, 0, 1], out[0, :, 2], atol=1e-6)
  assert (np.diff(out[:, 0, 1]) > 0).all() and np.ptp(
    out[..., 1], 1
  ).max() < 1e-5
  if new == 6:
    np.testing.assert_array_equal(out.reshape(36, 3), table)


def test_tables_that_are_no_grid_are_refused():
  with pytest.raises(ValueError, match="35 positions are no grid of 6 x 6"):
    posemb.resample_square(np.zeros((35, 2)), 6, 3, True)


def test_tissue_keeps_its_position_while_the_window_drifts():
  config = videomae.VideoMAEConfig(
    **videomae.SIZES["tiny"],
    frames=4,
    image_px=(32, 48),
    patch=(1, 16, 16),
    positions="tissue",
  )
  # One token to the right and half a token down in each frame.
  step = jnp.arange(4.0)[:, None] * jnp.array([[16.0, 8.0]])
  clips = jnp.zeros((1, 4, 32, 48, 3))
  model = videomae.VideoMAE(config, nnx.Rngs(0))

  def embedded(shift_px):
    out = model.encode(clips, shift_px=shift_px[None])[1]["encoder/embedded"]
    found = np.asarray(out) - np.asarray(model.encoder.patch.bias[...])
    return found.reshape(4, 2, 3, 32)

  moved, at_rest = embedded(step), embedded(jnp.zeros((4, 2)))
  time, place = moved[..., :10], moved[..., 10:]
  np.testing.assert_allclose(time, at_rest[..., :10], atol=1e-6)
  # Two frames later, the same tissue lies two columns left and a row up.
  np.testing.assert_allclose(place[2, 0, 0], place[0, 1, 2], atol=1e-6)
  assert np.abs(place[2, 0, 0] - place[0, 0, 0]).max() > 0.5
  # Where it started does not matter.
  np.testing.assert_allclose(embedded(step + 77.0), moved, atol=1e-4)


@pytest.mark.parametrize("positions", ["separable", "tissue"])
def test_positions_on_another_grid_are_in_tokens_of_the_trained_one(positions):
  sizes = dict(videomae.SIZES["tiny"], frames=4, image_px=(32, 32))
  config = videomae.VideoMAEConfig(
    **sizes, patch=(2, 8, 8), positions=positions, trained_grid=(2, 2, 2)
  )
  model = videomae.VideoMAE(config, nnx.Rngs(0))
  out = model.encode(
    jnp.zeros((1, 4, 32, 32, 3)), shift_px=jnp.zeros((1, 4, 2))
  )[1]["encoder/embedded"]
  found = np.asarray(out)[0] - np.asarray(model.encoder.patch.bias[...])
  want = posemb.sinusoid_3d(
    jnp.array([[0.0, y, -0.25] for y in (-0.25, 0.25)]), 32
  )
  np.testing.assert_allclose(found[[0, 4]], want, atol=1e-5)


def test_tissue_positions_need_to_know_where_frames_lie():
  config = videomae.VideoMAEConfig(
    **videomae.SIZES["tiny"], frames=4, image_px=(32, 32), positions="tissue"
  )
  model = videomae.VideoMAE(config, nnx.Rngs(0))
  with pytest.raises(ValueError, match="positions"):
    model.encode(jnp.zeros((1, 4, 32, 32, 3)))
