"""Levels of a slide have to show the same."""

import cv2
import numpy as np
import pytest
import tifffile

from data_prep.wsi.slides import Slide, SlideError
from tests.data_prep.wsi import tiny_slides


def _write(path, levels):
  with tifffile.TiffWriter(path) as file:
    for number, pixels in enumerate(levels):
      file.write(
        pixels, tile=(128, 128), photometric="rgb", compression="jpeg",
        subfiletype=int(number > 0), metadata=None, resolutionunit=3,
        resolution=(1e4 / (1 << number),) * 2,
      )  # fmt: skip
  return path


def _half(pixels):
  size = [side // 2 for side in pixels.shape[1::-1]]
  return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


@pytest.fixture
def levels():
  pixels = tiny_slides.picture(1024, 768)
  return [pixels, _half(pixels), _half(_half(pixels))]


def test_levels_of_one_slide_are_fine_in_any_order(tmp_path, levels):
  first, middle, last = levels
  with Slide.open(_write(tmp_path / "a.tif", levels)) as slide:
    expected, _ = slide.thumbnail(256)
  with Slide.open(_write(tmp_path / "b.tif", [first, last, middle])) as slide:
    found, _ = slide.thumbnail(256)
  assert (found == expected).all()
  blank = [np.full_like(pixels, 243) for pixels in levels]
  with Slide.open(_write(tmp_path / "c.tif", blank)) as slide:
    slide.thumbnail(256)


@pytest.mark.parametrize(
  "change",
  [
    lambda last: _half(_half(tiny_slides.picture(1024, 768, seed=1))),
    lambda last: last[::-1],
    lambda last: last[:, ::-1],
    lambda last: np.roll(last, 40, axis=1),
    lambda last: np.full_like(last, 243),
  ],
  ids=["other", "turned", "mirrored", "shifted", "blank"],
)
@pytest.mark.parametrize("place", [0, 2])
def test_a_level_that_shows_something_else_is_refused(
  tmp_path, levels, change, place
):
  small = np.ascontiguousarray(change(levels[2]))
  size = levels[place].shape[1::-1]
  levels[place] = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
  path = _write(tmp_path / "s.tif", levels)
  with Slide.open(path) as slide, pytest.raises(SlideError) as caught:
    slide.thumbnail(256)
  assert caught.value.error == "levels_differ"
  pair = {0: "0 and 1", 2: "1 and 2"}[place]
  assert f"levels {pair}" in caught.value.message


def test_the_scale_of_a_smaller_first_level_is_not_taken(tmp_path, levels):
  """OpenSlide reads the resolution of whatever comes first."""
  path = _write(tmp_path / "s.tif", levels[::-1])
  with pytest.raises(SlideError, match="begins with a smaller level") as caught:
    Slide.open(path)
  assert caught.value.error == "no_mpp"
  with Slide.open(path, mpp_override=1.0) as slide:
    assert slide.level0_px == (1024, 768) and slide.mpp == 1.0
