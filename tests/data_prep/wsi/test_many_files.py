"""Slides of several files, some of which are missing or still to come."""

import numpy as np
import pytest

from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry, find_slides
from data_prep.wsi.slides import Slide, SlideError
from tests.data_prep.wsi import tiny_mrxs, tiny_slides


@pytest.fixture
def path(tmp_path):
  return tiny_mrxs.write(tmp_path / "s.mrxs", tiny_slides.picture(512, 512))


def test_a_whole_one_is_read(path):
  with Slide.open(path) as slide:
    assert (slide.level0_px, slide.mpp) == ((512, 512), 1.0)
    found = slide.read_level(0, (0, 0), (512, 512)).astype(int)
  assert np.abs(found - tiny_slides.picture(512, 512)).mean() < 3


@pytest.mark.parametrize(
  ("lost", "words"),
  [
    ("Slidedat.ini", "s/Slidedat.ini is missing. Copy it too"),
    ("Index.dat", "Couldn't open .*Index.dat"),
    ("Data0001.dat", "Couldn't open .*Data0001.dat"),
  ],
)
def test_a_file_that_is_missing_is_named(path, lost, words):
  (path.with_suffix("") / lost).unlink()
  with pytest.raises(SlideError, match=words):
    Slide.open(path)


def test_tiles_of_a_data_file_that_is_missing(path):
  (path.with_suffix("") / "Data0000.dat").unlink()
  lost = []
  with Slide.open(path) as slide:
    slide.read_level(0, (0, 0), (256, 256), lost=lost)
    assert len(lost) == 4 and "Data0000.dat" in lost[0].message
    # The other level has all that a thumbnail needs.
    thumbnail, _ = slide.thumbnail(256)
  assert np.ptp(thumbnail) > 50


def test_parts_that_come_later_make_it_another_slide(path):
  entry = SlideEntry("s", str(path), "s")
  data = path.with_suffix("") / "Data0000.dat"
  whole = data.read_bytes()
  before = find.content(entry)
  data.write_bytes(whole[:1000])
  assert find.content(entry) != before
  with Slide.open(path) as slide:
    data.write_bytes(whole)
    with pytest.raises(SlideError, match="changed while it was read"):
      slide.check_unchanged()
  assert find.content(entry) == before


def test_pictures_of_mirax_are_not_the_slides(path, tmp_path):
  other = tmp_path / "t.mrxs"
  other.write_bytes(path.read_bytes())
  said = []
  assert len(find_slides(tmp_path, log=said.append)[0]) == 2
  assert not [text for text in said if "one file" in text]
