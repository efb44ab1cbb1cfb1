"""Intensity, size, channels and choice of frames."""

import numpy as np
import pytest
import simplejpeg

from data_prep.files.errors import SlideError
from data_prep.series import images
from tests.data_prep.series import tiny_series


def test_uint8_stays_as_it_is():
  frames = list(tiny_series.frames(2)[..., None] // 4)
  for window in ((), (0.0, 10.0)):
    got = images.to_uint8(frames, window, (0, 100))
    assert all(a is b for a, b in zip(got, frames, strict=True))


def test_one_window_for_all_frames_of_a_sequence():
  """A window for each frame would show both of these alike."""
  dark = np.linspace(0, 100, 50).reshape(5, 10, 1)
  got = images.to_uint8([dark, dark + 900], (), (0, 100))
  assert (got[0].min(), got[0].max()) == (0, 26)  # 100 of 1000, of 255
  assert (got[1].min(), got[1].max()) == (230, 255)
  fixed = images.to_uint8([dark.astype(np.int16)], (50, 60), (0, 100))[0]
  assert fixed.ravel()[[0, -1]].tolist() == [0, 255]
  flags = images.to_uint8([dark > 50], (), (0, 100))[0]
  assert sorted(set(flags.ravel().tolist())) == [0, 255]


def test_values_that_cannot_be_windowed():
  flat = np.full((4, 4, 1), 7, np.uint16)
  with pytest.raises(SlideError, match="no contrast.*7 to 7"):
    images.to_uint8([flat], (), (0.5, 99.5))
  holes = np.where(np.eye(4)[..., None], np.nan, 1.0)
  with pytest.raises(SlideError, match="NaN"):
    images.to_uint8([holes], (0, 1), ())


def test_fit_keeps_the_middle_and_the_proportions():
  """A square of 8 px in the middle of 24 x 48."""
  frame = np.zeros((24, 48, 1), np.uint8)
  frame[8:16, 20:28] = 255
  crop = images.fit_frame(frame, (12, 12), "crop")[..., 0]
  assert crop.shape == (12, 12)
  assert (crop[4:8, 4:8] == 255).all() and crop.sum() == 16 * 255
  box = images.fit_frame(frame, (12, 12), "letterbox")[..., 0]
  # Scaled to 6 x 12 and centred: the square is 2 x 2 in the middle.
  assert (box[5:7, 5:7] == 255).all() and box.sum() == 4 * 255
  assert images.fit_frame(frame, (24, 48), "crop") is frame
  up = images.fit_frame(frame, (48, 96), "crop")
  assert up.shape == (48, 96, 1) and up[20:28, 44:52].min() == 255


@pytest.mark.parametrize("size", [(7, 5), (128, 127), (31, 99), (1, 1)])
@pytest.mark.parametrize("fit", images.FITS)
def test_any_size_is_met_exactly(size, fit):
  for shape in ((3, 200, 2), (101, 64, 3), (1, 1, 1)):
    got = images.fit_frame(np.full(shape, 9, np.uint8), size, fit)
    assert got.shape == (*size, shape[2])
    assert got.max() == 9


def test_channels_in_jpeg():
  grey = tiny_series.frames(1)[0][..., None]
  pixels = simplejpeg.decode_jpeg(images.encode(grey, 95, "420"))
  assert (pixels == pixels[..., :1]).all()
  assert np.abs(pixels[..., :1].astype(int) - grey).max() <= 3
  # Two stains, side by side: with shared chroma they would run together.
  two = np.zeros((16, 16, 2), np.uint8)
  two[:, ::2, 0], two[:, 1::2, 1] = 200, 200
  pixels = simplejpeg.decode_jpeg(images.encode(two, 95, "420")).astype(int)
  assert np.abs(pixels[..., :2] - two).mean() < 8
  assert pixels[..., 2].mean() < 12


def test_frames_are_chosen_by_rule():
  chosen = images.chosen_frames
  assert (
    chosen(5, 0, "last", 0) == chosen(5, 8, "windows", 0) == [(0, 1, 2, 3, 4)]
  )
  assert chosen(50, 5, "subsample", 0) == [(0, 12, 25, 37, 49)]
  assert chosen(50, 1, "subsample", 0) == [(49,)]
  assert chosen(9, 4, "windows", 2) == [
    (0, 1, 2, 3),
    (2, 3, 4, 5),
    (4, 5, 6, 7),
    (5, 6, 7, 8),
  ]
  for count in range(2, 40):
    for most in range(2, count):
      (got,) = chosen(count, most, "subsample", 0)
      assert len(set(got)) == most and got[0] == 0 and got[-1] == count - 1
