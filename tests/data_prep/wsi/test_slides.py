"""Slides: scale, exact regions, and every kind of bad file to its error."""

import math
import pickle

import cv2
import imagecodecs
import numpy as np
import openslide
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from data_prep.wsi import resample, scale
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


def _wave(xy: np.ndarray) -> np.ndarray:
  """A picture known at every point: 40 px and 57 px waves."""
  x, y = xy[..., 0], xy[..., 1]
  values = np.stack(
    [
      128 + 100 * np.sin(2 * np.pi * x / 40),
      128 + 100 * np.cos(2 * np.pi * y / 57),
      128 + 50 * np.sin(2 * np.pi * (x + y) / 60),
    ],
    -1,
  )
  return np.rint(values).astype(np.uint8)


def _grid(corner, size, step=1.0):
  """Middles of pixels that begin at a corner."""
  x = corner[0] + (np.arange(size[0]) + 0.5) * step
  y = corner[1] + (np.arange(size[1]) + 0.5) * step
  return np.stack(np.meshgrid(x, y), -1)


@pytest.mark.parametrize(
  "factor", [0.5, 0.8, 0.25 / 0.2528, 1.0, 1.01, 1.25, 1.7, 2.0, 3.8, 4.0]
)
@pytest.mark.parametrize("corner", [(0.0, 0.0), (13.37, -4.81), (7.5, 3.25)])
def test_resampling_is_exact_in_place_and_scale(factor, corner):
  """Compares with the picture's formula, 300 result pixels away included."""

  def read(start, out):
    out[:] = _wave(_grid(start, out.shape[1::-1]))

  size = (300, 200)
  out = resample.read_scaled(read, corner, size, factor)
  assert out.shape == (200, 300, 3)
  expected = _wave(_grid(corner, size, factor)).astype(float)
  # The mean over an area lowers a wave by sinc(factor / period).
  for channel, period in enumerate((40, 57)):
    expected[..., channel] -= 128
    expected[..., channel] *= np.sinc(max(factor, 0) / period)
    expected[..., channel] += 128
  error = np.abs(out[..., :2] - expected[..., :2])
  # The steepest slope is 15.7 grey levels a pixel: 1/64 px is 0.25, rounding
  # of source and result 1, the kernel's own ripple the rest.
  assert error.mean() < 1.0
  assert error.max() < 3.5
  # A shift of a tenth of a pixel would show.
  shifted = _wave(_grid((corner[0] + 0.1, corner[1]), size, factor))
  moved = np.abs(out[..., 0] - shifted[..., 0].astype(float)).mean()
  assert moved > error[..., 0].mean()


def _cubic(source, grid):
  """Keys' cubic between pixels, by OpenCV's slowest function."""
  x, y = np.moveaxis(grid.astype(np.float32) - 0.5, -1, 0)
  return cv2.remap(source, x, y, cv2.INTER_CUBIC)


def _area_means(source, grid, factor):
  """Means over squares, from a table of sums that is linear between pixels."""
  table = np.zeros((source.shape[0] + 1, source.shape[1] + 1, 3))
  table[1:, 1:] = source.cumsum(axis=0, dtype=float).cumsum(axis=1)

  def at(values, places):
    whole = places.astype(int)
    rest = (places - whole)[:, None, None]
    return values[whole] * (1 - rest) + values[whole + 1] * rest

  x, y = (
    np.append(middle, middle[-1] + factor) - factor / 2
    for middle in (grid[0, :, 0], grid[:, 0, 1])
  )
  sums = at(at(table, y).swapaxes(0, 1), x).swapaxes(0, 1)
  return np.diff(np.diff(sums, axis=0), axis=1) / factor**2


# The second of each kernel lies where no whole pixel can be begun with.
@pytest.mark.parametrize(
  "factor, corner",
  [
    (0.9889, (10.3, 20.7)),
    (0.5, (10.2, 4.6)),
    (1.6, (10.2, 4.6)),
    (2.0, (10.2, 4.6)),
  ],
)
def test_noise_is_resampled_as_by_a_slow_reference(factor, corner):
  rng = np.random.default_rng(0)
  source = rng.integers(0, 256, (600, 600, 3), np.uint8)

  def read(start, out):
    x, y = start[0] + 100, start[1] + 100
    out[:] = source[y : y + out.shape[0], x : x + out.shape[1]]

  found = resample.read_scaled(read, corner, (80, 60), factor)
  grid = _grid(corner, (80, 60), factor) + 100
  wanted = (
    _cubic(source, grid) if factor < 1 else _area_means(source, grid, factor)
  )
  difference = np.abs(found - wanted.astype(float))
  # White noise is the worst case: 1/64 px is up to 4 grey levels.
  assert difference.mean() < 1.5 and difference.max() <= 8


def test_shrinking_does_not_alias():
  def stripes(start, out):
    x = (start[0] + np.arange(out.shape[1])) % 2
    out[:] = (255 * x)[None, :, None]

  out = resample.read_scaled(stripes, (3.0, 3.0), (64, 64), 3.7)
  assert np.ptp(out[8:-8, 8:-8].astype(int)) <= 80  # stripes are gone
  assert abs(out.mean() - 127.5) < 3
  out = resample.read_scaled(stripes, (3.0, 3.0), (64, 64), 2.0)
  assert np.ptp(out) <= 1


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


# Bad files.


def test_errors_travel_between_processes_and_make_rows():
  error = SlideError("msg", "read", "damaged_tile", "S1", (0, 128, 256))
  again = pickle.loads(pickle.dumps(error))
  assert (
    again.row()
    == error.row()
    == {
      "slide_id": "S1",
      "stage": "read",
      "code": "damaged_tile",
      "message": "msg",
      "place": "0 128 256",
    }
  )
  assert str(again) == "msg"


def test_files_that_are_no_slides(tmp_path, path):
  assert _error(tmp_path / "none.svs").error == "missing_file"
  empty = tmp_path / "empty.svs"
  empty.touch()
  assert _error(empty).error == "empty_file"
  text = tmp_path / "text.svs"
  text.write_text("see the other folder\n" * 50)
  assert _error(text).error == "unsupported_format"
  assert _error(text).stage == "open"


@pytest.mark.parametrize("share", [0.6, 0.99])
def test_truncated_real_slide(real_data, tmp_path, share):
  whole = (real_data / "native/CMU-1-Small-Region.svs").read_bytes()
  path = tmp_path / "cut.svs"
  path.write_bytes(whole[: int(len(whole) * share)])
  assert _error(path).stage == "open"


def test_truncated_slide_whose_directory_survives(path):
  """OpenSlide reads all of the coarsest level to open a TIFF."""
  offset, _ = tiny_slides.tile_at(path, 1, 1, 0)
  path.write_bytes(path.read_bytes()[: offset + 10])
  assert _error(path).error == "unreadable"


@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize("kind", ["zeroed", "half zeroed", "half random"])
def test_damaged_tile_is_reported_and_the_slide_stays_usable(
  path, reader, kind
):
  with Slide.open(path) as slide:
    intact = slide.read_level(0, (256, 256), (128, 128))
  tiny_slides.damage(path, kind)
  with Slide.open(path, reader=reader, name="S") as slide:
    for _ in range(2):
      with pytest.raises(SlideError) as caught:
        slide.read_region((192, 192), (20, 20), 0.5)
      error = caught.value
      assert (error.stage, error.error, error.slide) == (
        "read",
        "damaged_tile",
        "S",
      )
      assert error.tile[0] == 0
      assert all(128 <= v < 256 for v in error.tile[1:])
      # OpenSlide's handle would fail for good; ours was reopened.
      np.testing.assert_array_equal(
        slide.read_level(0, (256, 256), (128, 128)), intact
      )


def test_damage_in_a_real_svs(real_data, tmp_path):
  source = real_data / "native/CMU-1-Small-Region.svs"
  path = tmp_path / "broken.svs"
  path.write_bytes(source.read_bytes())
  tiny_slides.damage(path, "half zeroed", column=3, row=4)
  with Slide.open(path) as slide:
    assert slide.reader == "tiled"
    with pytest.raises(SlideError) as caught:
      slide.read_region((3 * 240 + 50, 4 * 240 + 50), (64, 64), 0.499)
    assert caught.value.tile == (0, 720, 960)
    slide.read_region((100, 100), (64, 64), 0.499)


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_damage_in_the_level_of_the_thumbnail(tmp_path, reader):
  """The next level is taken; where all are damaged, a tile is white."""
  pixels = tiny_slides.picture(1200, 1000)
  path = tiny_slides.write(tmp_path / "s.tiff", pixels, levels=2)
  with Slide.open(path) as slide:
    intact, _ = slide.thumbnail(250)
  tiny_slides.damage(path, "zeroed", level=1)
  with Slide.open(path, reader=reader, name="S") as slide:
    lost = []
    thumb, _ = slide.thumbnail(250, lost)
  assert np.abs(thumb.astype(int) - intact).mean() < 3
  assert [(e.stage, e.error, e.slide) for e in lost] == [
    ("thumbnail", "damaged_tile", "S")
  ]
  assert lost[0].tile == (1, 512, 512)
  tiny_slides.damage(path, "zeroed", level=0)
  with Slide.open(path, reader=reader) as slide:
    lost = []
    thumb, downsample = slide.thumbnail(250, lost)
    x, y = round(192 / downsample), round(192 / downsample)
    assert (thumb[y, x] == 255).all() and len(lost) == 2
    white = (thumb == 255).all(-1)
    side = 128 / downsample
    assert white.sum() == pytest.approx(side**2, rel=0.2)
    assert np.abs(thumb[~white].astype(int) - intact[~white]).mean() < 4
    # And the slide goes on.
    slide.read_region((600, 600), (64, 64), 0.5)


def test_slide_of_damaged_tiles_alone_has_no_thumbnail(tmp_path):
  path = tiny_slides.write(
    tmp_path / "s.tiff", tiny_slides.picture(128, 128), levels=1
  )
  tiny_slides.damage(path, "zeroed", column=0, row=0)
  with Slide.open(path) as slide, pytest.raises(SlideError) as caught:
    slide.thumbnail(64)
  assert caught.value.error == "damaged_tile"


# Formats.


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
def test_ome_tiff(tmp_path, compression):
  pixels = tiny_slides.picture()
  path = tiny_slides.write_ome(tmp_path / "s.ome.tif", pixels, compression)
  with Slide.open(path) as slide:
    assert (slide.mpp, slide.mpp_origin) == (0.5, "ome")
    assert [level.downsample for level in slide.levels] == [1.0, 2.0, 4.0]
    assert slide.level_for(2.0) == 2
    for number, (factor, level) in enumerate(
      zip((1, 2, 4), slide.levels, strict=True)
    ):
      height, width = (side // factor for side in pixels.shape[:2])
      expected = cv2.resize(
        pixels[: height * factor, : width * factor],
        (width, height),
        interpolation=cv2.INTER_AREA,
      )
      found = slide.read_level(number, (0, 0), level.size_px)
      bound = 5 if compression == "jpeg" else 0
      assert np.abs(found.astype(int) - expected).mean() <= bound
  if compression == "lzw":
    offset, _ = tiny_slides.tile_at(path, 0, 1, 1)
    tiny_slides.overwrite(path, offset, b"\xff" * 40)
    with Slide.open(path) as slide, pytest.raises(SlideError):
      slide.read_region((192, 192), (20, 20), 0.5)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"rowsperstrip": 64, "photometric": "rgb"}, ("strips", "vips", "tile")),
    ({"photometric": "minisblack"}, ("strips", "grey", "srgb")),
  ],
)
def test_tiff_that_is_no_slide_says_why_and_what_to_do(
  tmp_path, options, words
):
  pixels = tiny_slides.picture()
  pixels = pixels if options["photometric"] == "rgb" else pixels[..., 0]
  tifffile.imwrite(tmp_path / "s.tif", pixels, **options)
  error = _error(tmp_path / "s.tif")
  assert error.error == "unsupported_format"
  for word in words:
    assert word in error.message


def test_tiff_that_is_cut_short_or_of_floats_says_so(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tif", tiny_slides.picture())
  whole = path.read_bytes()
  for share in (0.5, 0.9):
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "it is cut short" in _error(path).message
  path.write_bytes(whole[:-1])  # of the coarsest level, which OpenSlide reads
  assert "Copy it again" in _error(path).message
  pixels = tiny_slides.picture().astype(np.float32) / 255
  path = tiny_slides.write(
    tmp_path / "f.tif", pixels, levels=1, compression="deflate"
  )
  with Slide.open(path) as slide, pytest.raises(SlideError) as caught:
    slide.thumbnail(256)
  assert caught.value.error == "unsupported_format"
  assert "32 bits a sample" in caught.value.message
  with tifffile.TiffWriter(tmp_path / "b.tif", byteorder=">") as file:
    file.write(tiny_slides.picture(), photometric="rgb", tile=(128, 128))
  assert "big-endian" in _error(tmp_path / "b.tif").message


@pytest.mark.parametrize("compression", ["webp", "jpeg2000"])
def test_compression_that_openslide_cannot_read_is_named(tmp_path, compression):
  path = tiny_slides.write(
    tmp_path / "s.tif",
    tiny_slides.picture(),
    levels=1,
    compression=compression,
  )
  error = _error(path)
  assert compression in error.message.lower().replace("_", "")
  assert "vips" in error.message


@pytest.mark.parametrize(
  ("said", "transform", "is_ycbcr"),
  [
    ("YBR_ICT", False, True),
    ("YBR_ICT", True, False),
    ("RGB", False, True),
    ("RGB", False, False),
    ("RGB", True, False),
  ],
)
def test_jpeg_2000_frames_of_ycbcr_that_say_something_else(
  real_data, tmp_path, said, transform, is_ycbcr
):
  """With `transform` the decoder makes RGB of them, as YBR_ICT says."""
  source = real_data / "dicom/level-3-frames-0-1.dcm"
  dataset = pydicom.dcmread(source)
  frames = []
  for frame in generate_frames(
    dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)
  ):
    rgb = imagecodecs.jpeg8_decode(frame)
    stored = rgb
    if is_ycbcr:
      stored = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    frames.append(
      imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(stored),
        level=45,
        reversible=False,
        codecformat="j2k",
        mct=transform,
      )
    )
  dataset.PixelData = encapsulate(frames)
  dataset["PixelData"].is_undefined_length = True
  dataset.PhotometricInterpretation = said
  dataset.SeriesInstanceUID = generate_uid()
  dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.91"
  dataset.save_as(tmp_path / "s.dcm")
  with Slide.open(tmp_path / "s.dcm") as slide:
    assert slide.colours_fixed is is_ycbcr
    found = slide.read_level(0, (0, 0), slide.level0_px)
  height, width = found.shape[:2]
  expected = rgb[:height, :width].astype(int)
  assert np.abs(found - expected).mean() < 3


def test_real_formats(real_data):
  with Slide.open(real_data / "native/CMU-1-Small-Region.svs") as slide:
    assert (slide.vendor, slide.mpp, slide.mpp_origin) == (
      "aperio",
      0.499,
      "vendor",
    )
    assert slide.bounds == (0, 0, 2220, 2967)
  with Slide.open(real_data / "native/test3-DAPI-2-387.ndpi") as slide:
    assert slide.vendor == "hamamatsu" and slide.reader == "openslide"
    assert slide.mpp == pytest.approx(0.22818, abs=1e-5)
    assert slide.mpp_origin == "vendor"
    region = slide.read_region((2000, 2400), (300, 200), 0.5)
    assert region.shape == (200, 300, 3) and region.std() > 5
  with Slide.open(real_data / "dicom/level-2-frames-0-4.dcm") as slide:
    assert slide.level0_px == (2220, 2967) and len(slide.levels) == 12
    assert slide.colours_fixed  # says RGB, holds YCbCr
    thumb, downsample = slide.thumbnail(512)
    assert thumb.shape == (512, 383, 3) and downsample == 2967 / 512
    dicom = slide.read_region((1000, 1500), (400, 400), 0.499)
  with Slide.open(real_data / "native/CMU-1-Small-Region.svs") as slide:
    svs = slide.read_region((1000, 1500), (400, 400), 0.499)
  # The same slide twice, but the DICOM one was compressed again.
  difference = dicom.astype(int) - svs
  assert np.abs(difference.mean((0, 1))).max() < 1
  assert np.abs(difference).mean() < 10


def test_real_slides_that_are_refused(real_data):
  error = _error(real_data / "native/camelyon_lowres_jpeg.dcm")
  assert error.error == "mpp_out_of_range" and "28.9" in error.message
  assert (
    _error(real_data / "slides/tubular_adenoma_flat_nompp.tiff").error
    == "no_mpp"
  )
  assert (
    _error(real_data / "video/examples_ybr_color.dcm").error
    == "unsupported_format"
  )


def test_drift_region_of_a_real_slide_equals_openslide(real_data):
  """The same resampling on OpenSlide's pixels gives the same picture."""
  path = real_data / "slides/bs9_duodenum_giardiasis_he2_40x.tiff"
  with Slide.open(path) as ours, Slide.open(path, reader="openslide") as ref:
    ours.check_target_mpp(0.25)  # 1.1 % finer than the scan
    regions = [
      slide.read_region((7000.3, 13000.7), (1104, 1104), 0.25)
      for slide in (ours, ref)
    ]
  np.testing.assert_array_equal(*regions)
  assert regions[0].std() > 20
