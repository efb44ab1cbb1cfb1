"""Tissue masks from files of other tools."""

import cv2
import numpy as np
import pytest

from data_prep.files.errors import SlideError
from data_prep.wsi import tissue


def _iou(a, b):
  return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("high", [1, 255])
def test_mask_file(tmp_path, high):
  drawn = np.zeros((200, 300), np.uint8)
  drawn[50:150, 60:240] = high
  path = tmp_path / "mask.png"
  cv2.imwrite(str(path), drawn)
  mask = tissue.load_mask(path, (100, 150))
  expected = np.zeros((100, 150), bool)
  expected[25:75, 30:120] = True
  np.testing.assert_array_equal(mask, expected)
  np.testing.assert_array_equal(
    tissue.load_mask(path, (400, 600))[::4, ::4], expected
  )


def test_mask_file_errors(tmp_path):
  with pytest.raises(SlideError) as caught:
    tissue.load_mask(tmp_path / "none.png", (10, 10))
  assert caught.value.error == "unreadable_mask"
  path = tmp_path / "mask.png"
  cv2.imwrite(str(path), np.zeros((100, 100), np.uint8))
  with pytest.raises(SlideError) as caught:
    tissue.load_mask(path, (100, 150))
  assert caught.value.error == "mask_shape"
  assert not tissue.load_mask(path, (50, 50)).any()


def _saved(path, values):
  cv2.imwrite(str(path), values)
  return path


def _classes(dtype=np.uint8, scale=1):
  """Classes of a quality tool: 7 is glass, 1 tissue, 4 a fold."""
  classes = np.full((120, 160), 7, dtype)
  classes[20:80, 30:100] = 1
  classes[30:50, 40:60] = 4
  return classes * dtype(scale)


@pytest.mark.parametrize(
  "values",
  [
    _classes(),
    _classes(np.uint16),
    _classes(np.uint8, 36),
    np.where(_classes() == 7, 7, 1).astype(np.uint8),  # which of the two?
    np.full((120, 160), 7, np.uint8),
    cv2.applyColorMap(_classes(np.uint8, 36), cv2.COLORMAP_JET),
    np.tile(np.arange(160, dtype=np.uint8), (120, 1)),  # a probability
  ],
)
def test_mask_that_does_not_say_what_is_tissue_is_refused(tmp_path, values):
  path = _saved(tmp_path / "mask.png", values)
  with pytest.raises(SlideError) as caught:
    tissue.load_mask(path, (60, 80))
  assert caught.value.error == "mask_values"
  assert "tissue_mask_values" in caught.value.message


def test_mask_values_are_named(tmp_path):
  path = _saved(tmp_path / "mask.png", _classes())
  with pytest.raises(SlideError, match="values 1, 4, 7"):
    tissue.load_mask(path, (120, 160))
  np.testing.assert_array_equal(
    tissue.load_mask(path, (120, 160), "1"), _classes() == 1
  )
  np.testing.assert_array_equal(
    tissue.load_mask(path, (120, 160), "1; 4"), _classes() < 7
  )
  with pytest.raises(SlideError, match="'one'"):
    tissue.load_mask(path, (120, 160), "one")


def test_soft_borders_are_no_classes(tmp_path):
  drawn = np.zeros((200, 300), np.uint8)
  cv2.circle(drawn, (150, 100), 60, 255, -1)
  expected = drawn > 0
  soft = cv2.GaussianBlur(drawn, (0, 0), 1.5)
  for name in ("a.png", "a.jpg"):
    mask = tissue.load_mask(_saved(tmp_path / name, soft), (200, 300))
    assert _iou(mask, expected) > 0.98
  rgba = np.dstack([drawn * 0, drawn, drawn * 0, drawn])
  mask = tissue.load_mask(_saved(tmp_path / "b.png", rgba), (200, 300))
  np.testing.assert_array_equal(mask, expected)


def test_mask_of_a_long_narrow_slide(tmp_path):
  """512 x 8 px of a slide of 120,000 x 2,100: 8.96 px, cut to 8."""
  drawn = np.zeros((8, 512), np.uint8)
  drawn[:, 400:440] = 255
  mask = tissue.load_mask(_saved(tmp_path / "m.png", drawn), (18, 1024))
  expected = np.zeros((18, 1024), bool)
  expected[:, 800:880] = True
  np.testing.assert_array_equal(mask, expected)


def test_real_mask_file(real_data):
  mask = tissue.load_mask(real_data / "bcss/1008_tumor_mask.png", (256, 358))
  assert 0.02 < mask.mean() < 0.98
