"""Slides: scale, exact regions, and every kind of bad file to its error."""

import math

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from data_prep.wsi import scale
from data_prep.wsi.scale import level_downsample
from data_prep.wsi.slides import Level, Slide, SlideError
from tests.data_prep.wsi import tiny_slides


@pytest.fixture
def path(tmp_path):
  return tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture())


def _error(path, **options) -> SlideError:
  with pytest.raises(SlideError) as caught:
    Slide.open(path, **options)
  return caught.value


# The scale.


@pytest.mark.parametrize(
  ("properties", "vendor", "expected"),
  [
    ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, "mirax",
     (0.25, "vendor")),
    ({"aperio.MPP": "0.499"}, "aperio", (0.499, "vendor")),
    ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25",
      "tiff.XResolution": "10000", "tiff.YResolution": "10000",
      "tiff.ResolutionUnit": "centimeter"}, "aperio", (0.25, "vendor")),
    # OpenSlide derives its own key from the tags here: no vendor's word.
    ({"openslide.mpp-x": "1", "openslide.mpp-y": "1",
      "tiff.XResolution": "10000", "tiff.YResolution": "10000",
      "tiff.ResolutionUnit": "centimeter"}, "generic-tiff", (1.0, "tiff")),
    ({"tiff.XResolution": "50800", "tiff.YResolution": "50800",
      "tiff.ResolutionUnit": "inch"}, "trestle", (0.5, "tiff")),
    ({"tiff.XResolution": "1", "tiff.YResolution": "1",
      "tiff.ResolutionUnit": "none"}, "generic-tiff", (2.0, "default")),
    ({"aperio.MPP": "rubbish"}, "aperio", (2.0, "default")),
  ],
)  # fmt: skip
def test_order_of_mpp_sources(properties, vendor, expected):
  assert scale.choose_mpp(properties, vendor, default=2.0) == expected
  assert scale.choose_mpp(properties, vendor, override=0.3, default=2.0) == (
    0.3,
    "override",
  )


def test_a_decimal_comma_in_ome_xml():
  text = '<OME><Pixels PhysicalSizeX="0,25" PhysicalSizeY="0,25"/></OME>'
  properties = {"tiff.ImageDescription": text}
  assert scale.choose_mpp(properties, "generic-tiff") == (0.25, "ome")


def test_small_difference_between_x_and_y_is_averaged():
  properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.2525"}
  mpp, _ = scale.choose_mpp(properties, "mirax")
  assert mpp == pytest.approx(math.sqrt(0.25 * 0.2525))


@pytest.mark.parametrize(
  ("mpp", "code"),
  [(352.8, "mpp_out_of_range"), ((0.5, 0.6), "mpp_anisotropic")],
)
def test_unbelievable_mpp_is_refused_but_can_be_overridden(tmp_path, mpp, code):
  path = tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture(), mpp)
  error = _error(path, default_mpp=0.5, name="S")
  assert (error.stage, error.error, error.slide) == ("mpp", code, "S")
  with Slide.open(path, mpp_override=0.5) as slide:
    assert (slide.mpp, slide.mpp_origin) == (0.5, "override")


def test_slide_without_mpp(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture(), None)
  error = _error(path)
  assert error.error == "no_mpp" and "mpp" in error.message
  with Slide.open(path, default_mpp=1.0) as slide:
    assert (slide.mpp, slide.mpp_origin) == (1.0, "default")
  assert _error(path, mpp_override=352.8).error == "mpp_out_of_range"


def test_target_finer_than_the_scan(path):
  with Slide.open(path) as slide:
    slide.check_target_mpp(0.5)
    slide.check_target_mpp(4.0)
    slide.check_target_mpp(0.491)  # 1.8 % finer
    with pytest.raises(SlideError, match="finer than the scan") as caught:
      slide.check_target_mpp(0.25)
    assert caught.value.error == "target_finer_than_scan"
    with pytest.raises(SlideError):
      slide.check_target_mpp(0.491, tolerance=0.01)
    slide.check_target_mpp(0.25, allow_upsampling=True)
    with pytest.raises(ValueError, match="mpp=352"):
      slide.check_target_mpp(352.0)


def test_downsample_is_the_integer_the_level_was_made_with():
  assert level_downsample((4483, 3092), (1120, 773), 4.00134) == 4.0
  assert level_downsample((4483, 3092), (1121, 773), 3.9995) == 4.0
  # No integer explains these sizes: the ratio stands.
  ratio = 1000 / 405
  assert level_downsample((1000, 1000), (405, 405), ratio) == ratio


@pytest.mark.parametrize("part", ["floor", "ceil", "round"])
@pytest.mark.parametrize(
  ("sides", "smallest"), [((20, 60), 1024), ((5, 20), 1024), ((1, 60), 200)]
)
def test_downsample_of_long_narrow_slides(part, sides, smallest):
  rng = np.random.default_rng(0)
  shrink = getattr(np, part)
  for _ in range(500):
    long = int(rng.integers(20_000, 200_000))
    size = [long, max(1, round(long / rng.uniform(*sides)))]
    size = size if rng.random() < 0.5 else size[::-1]
    for step in (2, 4):
      level, factor = size, 1
      while max(level) > smallest:
        level = [max(1, int(shrink(side / step))) for side in level]
        factor *= step
        mean = (size[0] / level[0] + size[1] / level[1]) / 2
        assert level_downsample(tuple(size), tuple(level), mean) == factor


def test_downsample_that_the_format_states_is_taken():
  # Levels of Philips are padded to whole tiles; the factor is in their XML.
  assert level_downsample((5000, 4000), (1536, 1024), 4.0) == 4.0


def test_level_that_no_factor_explains_is_not_used(tmp_path):
  pixels = tiny_slides.picture(800, 400)
  path = tmp_path / "padded.tiff"
  options = {"tile": (128, 128), "compression": "jpeg", "photometric": "rgb"}
  with tifffile.TiffWriter(path) as file:
    file.write(pixels, resolution=(2e4, 2e4), resolutionunit=3, **options)
    padded = np.pad(pixels[::2, ::2], ((0, 56), (0, 0), (0, 0)))
    file.write(padded, subfiletype=1, **options)
    file.write(pixels[::4, ::4], subfiletype=1, **options)
  for reader in ("auto", "openslide"):
    with Slide.open(path, reader=reader) as slide:
      assert [level.downsample for level in slide.levels] == [1.0, 4.0]
      difference = slide.read_level(1, (0, 0), (200, 100)) - pixels[
        ::4, ::4
      ].astype(int)
      assert np.abs(difference).mean() < 6


def test_narrow_slide_is_read_where_its_tissue_is(tmp_path):
  """12,000 x 210 px with a level of 1/64: 187 x 3 px, a mean factor of 67."""
  pixels = np.full((210, 12_000, 3), 230, np.uint8)
  pixels[:, 9_600:10_240] = 60, 40, 90
  path = tmp_path / "narrow.tiff"
  options = {"tile": (128, 128), "compression": "deflate", "photometric": "rgb"}
  with tifffile.TiffWriter(path) as file:
    file.write(pixels, resolution=(2e4, 2e4), resolutionunit=3, **options)
    small = pixels[:192, :11_968].reshape(3, 64, 187, 64, 3).mean((1, 3))
    file.write(small.astype(np.uint8), subfiletype=1, **options)
  with Slide.open(path) as slide:
    assert slide.levels[1].downsample == 64.0
    region = slide.read_region((9_920, 96), (12, 3), 32.0)
    thumb, downsample = slide.thumbnail(150)
  dark = (region[..., 0] < 145).all(0)
  assert dark.tolist() == [False] + 10 * [True] + [False]
  dark = np.flatnonzero(thumb[0, :, 0] < 145)
  np.testing.assert_allclose(
    [dark[0], dark[-1] + 1],
    [9_600 / downsample, 10_240 / downsample],
    atol=0.75,
  )


# Regions.


def test_region_at_the_scan_scale_is_the_scan(path):
  with Slide.open(path) as slide:
    whole = slide.read_level(0, (0, 0), (700, 500))
    region = slide.read_region((300, 250), (100, 60), 0.5)
    np.testing.assert_array_equal(region, whole[220:280, 250:350])
    # An odd side puts the centre in the middle of a pixel.
    region = slide.read_region((300.5, 250.5), (101, 61), 0.5)
    np.testing.assert_array_equal(region, whole[220:281, 250:351])
    coarse = slide.read_level(1, (0, 0), (175, 125))
    region = slide.read_region((320, 240), (40, 20), 2.0)
    np.testing.assert_array_equal(region, coarse[50:70, 60:100])


def test_level_choice(path):
  with Slide.open(path) as slide:
    assert slide.levels == (Level((700, 500), 1.0), Level((175, 125), 4.0))
    chosen = [slide.level_for(mpp) for mpp in (0.4, 0.5, 1.9, 1.97, 2.0, 9.0)]
    assert chosen == [0, 0, 0, 1, 1, 1]


def test_region_is_centred_where_asked(tmp_path):
  """A bright disc on black is found at the asked place at any scale."""
  y, x = np.mgrid[:600, :600] + 0.5
  disc = (np.hypot(x - 310.0, y - 250.0) < 30)[..., None] * np.uint8(
    [200, 200, 200]
  )
  path = tiny_slides.write(
    tmp_path / "s.tiff", disc, levels=1, compression="deflate"
  )
  with Slide.open(path) as slide:
    assert slide.reader == "openslide"
    for mpp in (0.37, 0.5, 0.51, 0.9, 1.0, 1.3):
      region = slide.read_region((300.3, 240.6), (150, 130), mpp)
      weight = region[..., 0].astype(float)
      yy, xx = np.mgrid[:130, :150] + 0.5
      found = (
        (weight * xx).sum() / weight.sum(),
        (weight * yy).sum() / weight.sum(),
      )
      step = mpp / 0.5
      np.testing.assert_allclose(
        found,
        [75 + (310 - 300.3) / step, 65 + (250 - 240.6) / step],
        atol=0.03 / step + 0.02,
      )


def test_window_larger_than_the_slide_is_white_around(tmp_path):
  path = tiny_slides.write(
    tmp_path / "s.tiff", tiny_slides.picture(200, 150), levels=1
  )
  with Slide.open(path) as slide:
    region = slide.read_region((100, 75), (400, 400), 0.5)
    np.testing.assert_array_equal(
      region[125:275, 100:300], slide.read_level(0, (0, 0), (200, 150))
    )
    region[125:275, 100:300] = 255
    assert (region == 255).all()
    for mpp in (0.47, 0.9):
      edge = slide.read_region((100, 75), (700, 700), mpp)[:5]
      assert (edge == 255).all()


def test_bad_arguments(path):
  with Slide.open(path) as slide:
    with pytest.raises(ValueError, match="centre_xy"):
      slide.read_region((float("nan"), 1.0), (10, 10), 0.5)
    with pytest.raises(ValueError, match="size_px"):
      slide.read_region((1.0, 1.0), (0, 10), 0.5)
  with pytest.raises(ValueError, match="reader"):
    Slide.open(path, reader="vips")


def test_transparent_pixels_are_laid_on_white(path, monkeypatch):
  def read_region(handle, location, level, size):
    rgba = np.zeros((size[1], size[0], 4), np.uint8)
    rgba[..., 0] = 100
    rgba[:, 0, 3], rgba[:, 1, 3], rgba[:, 2:, 3] = 0, 51, 255
    return Image.fromarray(rgba)

  monkeypatch.setattr(openslide.OpenSlide, "read_region", read_region)
  with Slide.open(path, reader="openslide") as slide:
    row = slide.read_level(0, (0, 0), (3, 1))[0]
  # 51 / 255 is one fifth: 100 / 5 + 255 * 4 / 5 = 224, 0 + 204.
  assert row.tolist() == [[255] * 3, [224, 204, 204], [100, 0, 0]]


# Thumbnails.


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("max_px", [64, 100, 128, 333, 700, 2000])
def test_thumbnail_keeps_places_and_brightness(tmp_path, levels, max_px):
  pixels = np.full((1500, 700, 3), 230, np.uint8)
  pixels[900:1200, 140:420] = 60, 40, 90
  path = tiny_slides.write(tmp_path / "s.tiff", pixels, levels=levels)
  with Slide.open(path) as slide:
    thumb, downsample = slide.thumbnail(max_px)
  assert downsample == max(1.0, 1500 / max_px)
  assert thumb.shape[0] == min(1500, max_px)
  assert thumb.shape[1] == round(700 / downsample)
  dark = thumb[..., 0] < 145
  rows, columns = np.nonzero(dark.any(1))[0], np.nonzero(dark.any(0))[0]
  np.testing.assert_allclose(
    [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1],
    np.array([900, 1200, 140, 420]) / downsample,
    atol=0.75,
  )
  inside = thumb[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1]
  np.testing.assert_allclose(inside.mean((0, 1)), [60, 40, 90], atol=2)
  assert thumb[-1].mean() > 220  # the last row is not white filler mixed in
