"""Files of labelled pictures."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_prep.files.errors import SlideError
from data_prep.pictures import files


def test_masks_lie_as_they_are_shown(tmp_path):
  want = np.zeros((24, 32), np.uint8)
  want[4:9, 3:20] = 1
  path = tmp_path / "m.tif"
  turn = [(274, "H", 1, 3, True)]  # by half
  tifffile.imwrite(path, want[::-1, ::-1].copy(), extratags=turn)
  found = files.read_mask(str(path), (24, 32), 2, ())
  np.testing.assert_array_equal(found, want)
  # Of a palette the numbers count, whatever its colours are.
  greys = np.tile(np.arange(256, dtype=np.uint16)[::-1] * 257, (3, 1))
  tifffile.imwrite(path, want, photometric="palette", colormap=greys)
  found = files.read_mask(str(path), (24, 32), 2, ())
  np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("end", ["png", "tif"])
def test_masks_with_a_palette_are_turned(tmp_path, end):
  want = np.zeros((24, 32), np.uint8)
  want[4:9, 3:20] = 1
  stored = Image.fromarray(np.rot90(want, 1).copy(), "P")
  stored.putpalette([9, 9, 9, 200, 0, 0])
  exif = Image.Exif()
  exif[274] = 6  # a quarter clockwise brings it back
  path = tmp_path / f"m.{end}"
  if end == "png":
    stored.save(path, exif=exif)
  else:
    stored.save(path, tiffinfo={274: 6})
  found = files.read_mask(str(path), (24, 32), 2, ())
  np.testing.assert_array_equal(found, want)


def test_a_mask_of_several_pages_is_refused(tmp_path):
  path = tmp_path / "m.tif"
  pages = np.zeros((2, 24, 32), np.uint8)
  tifffile.imwrite(path, pages, photometric="minisblack")
  with pytest.raises(SlideError, match="it has 2 pictures"):
    files.read_mask(str(path), (24, 32), 2, ())
