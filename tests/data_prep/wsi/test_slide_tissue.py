"""Masks of people, and what tells that one is turned round."""

import cv2
import numpy as np
import pytest

from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slide_tissue import tissue_of

_TISSUE = (slice(60, 200), slice(80, 260))


def _slide():
  picture = np.full((300, 400, 3), 243, np.uint8)
  picture[_TISSUE] = (190, 110, 170)
  return picture


def _drawn(where=_TISSUE, inside=255, outside=0):
  mask = np.full((300, 400), outside, np.uint8)
  mask[where] = inside
  return mask


def _of(tmp_path, mask, name="mask.png", picture=None, **parameters):
  path = tmp_path / name
  cv2.imwrite(str(path), mask)
  entry = SlideEntry("s", "s.svs", "p", mask_path=str(path), tissue=parameters)
  picture = _slide() if picture is None else picture
  return tissue_of(entry, picture, 8.0, "guarded")


@pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.jpg"])
@pytest.mark.parametrize("glass", [1, 255])
def test_inverted_mask_is_refused_and_can_be_turned(tmp_path, name, glass):
  if name == "mask.jpg" and glass == 1:
    pytest.skip("JPEG keeps no ones")
  mask = _drawn(inside=0, outside=glass)
  with pytest.raises(SlideError) as caught:
    _of(tmp_path, mask, name)
  assert caught.value.error == "mask_inverted"
  assert "tissue_mask_values" in caught.value.message
  found = _of(tmp_path, mask, name, mask_values="0")
  assert (found == (_drawn() > 0)).mean() > 0.99
  if name != "mask.jpg":
    as_it_is = _of(tmp_path, mask, name, mask_values=str(glass))
    np.testing.assert_array_equal(as_it_is, mask > 0)


@pytest.mark.parametrize(
  "where",
  [
    _TISSUE,
    (slice(100, 120), slice(100, 130)),  # a part of the tissue
    (slice(0, 40), slice(0, 40)),  # glass alone: odd, not turned round
    (slice(20, 260), slice(30, 320)),  # a generous hand
    (slice(0, 0), slice(0, 0)),
    (slice(0, 300), slice(0, 400)),
  ],
)
def test_other_masks_are_taken_as_they_are(tmp_path, where):
  mask = _drawn(where)
  np.testing.assert_array_equal(_of(tmp_path, mask), mask > 0)


def test_a_slide_of_no_colour_does_not_judge_a_mask(tmp_path):
  grey = np.full((300, 400, 3), 230, np.uint8)
  grey[_TISSUE] = 120
  mask = _drawn(inside=0, outside=255)
  np.testing.assert_array_equal(_of(tmp_path, mask, picture=grey), mask > 0)


def test_without_a_mask_tissue_is_found():
  entry = SlideEntry("s", "s.svs", "p", tissue={"erode_um": 80.0})
  found = tissue_of(entry, _slide(), 8.0, "guarded")
  assert found[130, 170] and not found[62, 170] and not found[20, 20]
  with pytest.raises(ValueError, match="other"):
    tissue_of(entry, _slide(), 8.0, "other")
