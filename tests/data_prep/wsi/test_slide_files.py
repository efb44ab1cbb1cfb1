"""Slides whose files are damaged, odd, or of many formats."""

import pickle

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from data_prep.wsi.slides import Slide, SlideError
from tests.data_prep.wsi import tiny_slides


@pytest.fixture
def path(tmp_path):
  return tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture())


def _error(path, **options) -> SlideError:
  with pytest.raises(SlideError) as caught:
    Slide.open(path, **options)
  return caught.value


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


def test_a_file_that_changes_while_it_is_read_is_refused(path):
  with Slide.open(path) as slide:
    slide.check_unchanged()
    with open(path, "ab") as file:
      file.write(b"more")
    with pytest.raises(SlideError, match="copied") as caught:
      slide.check_unchanged()
  assert caught.value.error == "file_changed"


@pytest.mark.parametrize("said", ["0", "-0.5", "nan", "0.5 um"])
def test_a_scale_that_cannot_be_used_is_quoted(tmp_path, said):
  path = tiny_slides.write_svs(tmp_path / "s.svs", tiny_slides.picture())
  text = f"MPP = {said}".encode()
  content = path.read_bytes().replace(b"AppMag = 20|MPP = 0.5", text.ljust(21))
  path.write_bytes(content)
  error = _error(path)
  assert error.error == "no_mpp" and repr(said) in error.message
