"""Slides that open and are not what they seem."""

import cv2
import numpy as np
import pytest
import tifffile

from data_prep.wsi import oddities
from data_prep.wsi.slides import Slide, SlideError
from tests.data_prep.wsi import tiny_slides

_PHOTOMETRIC = 262  # the TIFF tag


def _codes(path, **options):
  with Slide.open(path, **options) as slide:
    notes = []
    slide.thumbnail(256, notes)
  return [note.error for note in notes]


def _pages(path, *pictures, **options):
  """Writes tiled pages that are no levels of one another."""
  shared = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg"}
  shared["resolution"] = (20_000, 20_000)
  with tifffile.TiffWriter(path) as file:
    for pixels in pictures:
      file.write(
        pixels, resolutionunit="CENTIMETER", metadata=None,
        **shared, **options,
      )  # fmt: skip
  return path


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_label_in_front_of_the_slide_is_not_taken_for_it(tmp_path, reader):
  label, slide = (
    tiny_slides.picture(*size) for size in ((300, 260), (700, 500))
  )
  path = _pages(tmp_path / "s.tif", label, slide)
  with pytest.raises(SlideError) as caught:
    Slide.open(path, reader=reader)
  assert caught.value.error == "not_the_largest"
  assert "page=1" in caught.value.message
  # In strips it is no slide to OpenSlide at all.
  with tifffile.TiffWriter(tmp_path / "t.tif") as file:
    file.write(label, photometric="rgb", rowsperstrip=32, metadata=None)
    file.write(slide, photometric="rgb", tile=(128, 128), metadata=None)
  with pytest.raises(SlideError, match="page=1"):
    Slide.open(tmp_path / "t.tif", reader=reader)


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [
    ([(700, 500), (700, 500), (700, 500)], ["other_pictures"]),  # planes
    ([(700, 500), (640, 500)], ["other_pictures"]),  # a second scene
    ([(700, 500), (350, 250), (175, 125)], []),  # levels that nobody marked
    ([(700, 500), (120, 90)], []),  # a thumbnail or a label
    ([(700, 500)], []),
  ],
)
def test_other_pictures_of_a_file_are_said(tmp_path, sizes, expected):
  first = tiny_slides.picture(*sizes[0])
  pictures = [
    cv2.resize(first, size, interpolation=cv2.INTER_AREA) for size in sizes
  ]
  assert _codes(_pages(tmp_path / "s.tif", *pictures)) == expected


def test_levels_are_no_other_pictures(tmp_path):
  pixels = tiny_slides.picture()
  assert _codes(tiny_slides.write(tmp_path / "a.tif", pixels)) == []
  path = tiny_slides.write_ome(tmp_path / "b.ome.tif", pixels, "jpeg")
  assert _codes(path) == []
  assert _codes(tiny_slides.write_svs(tmp_path / "c.svs", pixels)) == []


@pytest.mark.parametrize(
  ("mpp", "power", "is_odd"),
  [
    (0.25, "40", False), (0.5, "20", False), (0.2265, "40", False),
    (0.22, "20", False), (0.345, "20", False), (1.06, "10", False),
    (2.5, "40", True), (0.05, "20", True), (0.635, "40", True),
    (0.098, "40", True), (5.0, "", False), (6.0, "", True),
    (5.0, "n/a", False), (5.0, "0", False),
  ],
)  # fmt: skip
def test_scale_and_objective(mpp, power, is_odd):
  """Ten times off, or inches taken for centimetres; 6 um make 180 mm."""
  notes = oddities.doubtful_scale(mpp, "tiff", (30_000, 9_000), power, "s")
  assert [note.error for note in notes] == ["mpp_doubtful"] * is_odd


def test_aperio_whose_scale_does_not_go_with_its_objective(tmp_path):
  path = tiny_slides.write_svs(tmp_path / "s.svs", tiny_slides.picture())
  content = path.read_bytes().replace(
    b"AppMag = 20|MPP = 0.5", b"AppMag = 40|MPP = 2.5"
  )
  path.write_bytes(content)
  assert _codes(path) == ["mpp_doubtful"]
  assert _codes(path, mpp_override=0.25) == []


def _tissue(glass=(243, 242, 240)):
  """H&E on glass."""
  pixels = np.full((384, 512, 3), glass, np.uint8)
  pixels[100:300, 100:400] = (200, 120, 180)
  pixels[150:250, 150:250] = (110, 70, 150)
  noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
  return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("holds", "says", "seen"), [
  ("YCbCr", 2, "salmon"), ("RGB", 6, "magenta"),
])  # fmt: skip
def test_colours_of_another_space_are_refused_and_can_be_mended(
  tmp_path, holds, says, seen
):
  stored = _tissue()
  if holds == "YCbCr":
    stored = cv2.cvtColor(stored, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
  path = tiny_slides.write_rgb_tiles(
    tmp_path / "s.tif", stored, resolution=(1e4, 1e4), resolutionunit=3
  )
  _set_photometric(path, says)
  with Slide.open(path) as slide, pytest.raises(SlideError) as caught:
    slide.thumbnail(256)
  assert caught.value.error == "odd_colours"
  other = {2: 6, 6: 2}[says]
  assert seen in caught.value.message
  assert f"tiffset -s 262 {other}" in caught.value.message
  _set_photometric(path, other)
  with Slide.open(path) as slide:
    thumbnail, _ = slide.thumbnail(512)
  assert np.abs(thumbnail.astype(int) - _tissue()).mean() < 5


def _set_photometric(path, value):
  with tifffile.TiffFile(path, mode="r+b") as file:
    file.pages[0].tags[_PHOTOMETRIC].overwrite(value)


@pytest.mark.parametrize(
  "picture",
  [
    _tissue(), _tissue((255, 255, 255)), _tissue((248, 244, 232)),
    np.full((50, 50, 3), 255, np.uint8), np.full((50, 50, 3), 0, np.uint8),
    np.full((50, 50, 3), 128, np.uint8),
    np.full((50, 50, 3), (200, 120, 180), np.uint8),  # no glass at all
    np.full((50, 50, 3), (224, 101, 164), np.uint8),
    tiny_slides.picture(),
  ],
)  # fmt: skip
def test_colours_that_are_fine(picture):
  oddities.refuse_colours(picture)


def test_colours_of_real_slides_are_fine(real_data):
  paths = sorted((real_data / "slides").glob("*.tiff"))
  for path in [*paths, real_data / "native/CMU-1-Small-Region.svs"]:
    assert _codes(path, default_mpp=1.0) == [], path.name
