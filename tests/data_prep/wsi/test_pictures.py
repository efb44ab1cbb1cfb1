"""Pictures as viewers show them, whatever their header asks for."""

import io

import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image, ImageOps

from data_prep.wsi import pictures, tissue

# Red above, blue in the corner at the lower right.
STORED = np.full((24, 32, 3), 40, np.uint8)
STORED[:8] = 220, 30, 30
STORED[-8:, -8:] = 30, 30, 220


def save(path, orientation=1, **options):
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(STORED).save(path, exif=exif, **options)
  return path


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_upright_as_the_camera_says(tmp_path, name, orientation):
  options = {"quality": 98, "subsampling": 0} if name == "a.jpg" else {}
  path = save(tmp_path / name, orientation, **options)
  with Image.open(path) as picture:
    want = np.asarray(ImageOps.exif_transpose(picture))
  got = pictures.read(path)
  assert got.shape == want.shape
  assert np.abs(got.astype(int) - want).max() <= (8 if name == "a.jpg" else 0)
  if name != "a.tif":
    assert pictures.size(path) == want.shape[:2]


def test_by_hand_a_phone_held_upright(tmp_path):
  """Stored on its side, number 6: what was above is shown at the right."""
  got = pictures.read(save(tmp_path / "a.png", 6))
  assert got.shape == (32, 24, 3)
  assert (got[:, -8:] == (220, 30, 30)).all()
  assert (got[-8:, :8] == (30, 30, 220)).all()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.gif"])
def test_palettes_are_looked_up(tmp_path, name):
  numbers = Image.new("P", (4, 3), 0)
  numbers.putpalette([10, 10, 10, 200, 10, 20])
  numbers.paste(1, (0, 0, 2, 2))
  numbers.save(tmp_path / name)
  got = pictures.read(tmp_path / name)
  assert got.shape == (3, 4, 3)
  assert got[0, 0].tolist() == [200, 10, 20]
  assert got[2, 3].tolist() == [10, 10, 10]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_white_is_zero(tmp_path, dtype):
  pixels = np.zeros((4, 16), dtype)
  pixels[0] = 1
  tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
  got = pictures.read(tmp_path / "a.tif")
  top = 1 if dtype is bool else np.iinfo(dtype).max
  assert got.dtype == dtype
  assert (got[1, 0, 0], got[0, 0, 0]) == (top, top - 1)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_what_is_transparent_shows_the_page(tmp_path, name):
  pixels = np.zeros((2, 4, 4), np.uint8)
  pixels[0] = 200, 100, 0, 255
  pixels[1, 2:] = 200, 100, 0, 51  # a fifth
  Image.fromarray(pixels).save(tmp_path / name, lossless=True)
  got = pictures.read(tmp_path / name)
  assert got.shape == (2, 4, 3)
  assert got[0, 0].tolist() == [200, 100, 0]
  assert got[1, 0].tolist() == [255, 255, 255]
  assert got[1, 3].tolist() == [244, 224, 204]
  dark = pictures.read(tmp_path / name, background=0.0)
  assert dark[1, 0].tolist() == [0, 0, 0]
  assert dark[1, 3].tolist() == [40, 20, 0]


def test_pixels_that_are_no_squares():
  wide = pictures.Showing(aspect=2.0)
  assert wide.size((24, 32)) == wide.apply(STORED).shape[:2] == (24, 64)
  high = pictures.Showing(aspect=0.5, orientation=6)
  assert high.size((24, 32)) == high.apply(STORED).shape[:2] == (32, 48)
  numbers = np.arange(12, dtype=np.int32).reshape(3, 4)
  assert wide.apply(numbers).shape == (3, 8, 1)


def test_depth_stays(tmp_path):
  deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
  Image.fromarray(deep).save(tmp_path / "a.png")
  np.testing.assert_array_equal(pictures.read(tmp_path / "a.png")[..., 0], deep)


def test_a_cut_file_is_an_error(tmp_path):
  data = simplejpeg.encode_jpeg(STORED)
  (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
  with pytest.raises((OSError, ValueError)):
    pictures.read(tmp_path / "a.jpg")


def test_a_mask_is_read_as_it_is_shown(tmp_path):
  """A palette, a turned camera, and tissue painted on a transparent layer."""
  want = np.zeros((24, 32), bool)
  want[:8] = True
  layer = np.zeros((24, 32, 4), np.uint8)
  layer[:8] = 255, 255, 0, 255
  Image.fromarray(layer).save(tmp_path / "layer.png")
  turned = Image.fromarray(np.rot90(want).astype(np.uint8) * 255)
  exif = Image.Exif()
  exif[0x0112] = 6
  turned.save(tmp_path / "turned.png", exif=exif)
  numbers = Image.fromarray(want.astype(np.uint8), "P")
  numbers.putpalette([0, 0, 0, 90, 200, 90])
  numbers.save(tmp_path / "numbers.tif")
  for name in ("layer.png", "turned.png", "numbers.tif"):
    got = tissue.load_mask(tmp_path / name, (24, 32))
    np.testing.assert_array_equal(got, want, err_msg=name)


def test_display_matrices():
  """What phones and editors write: a turn, or a mirror."""

  def matrix(a, b, c, d):
    data = io.BytesIO()
    for value in (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30):
      data.write(value.to_bytes(4, "little", signed=True))
    return data.getvalue()

  assert pictures.orientation_of(None) == 1
  assert pictures.orientation_of(matrix(0, 1, -1, 0)) == 6
  assert pictures.orientation_of(matrix(-1, 0, 0, 1)) == 2


# Pictures of numbers: masks, labels.

_TURN = [(274, "H", 1, 4, True)]  # upside down
_RED = np.zeros((3, 256), np.uint16)
_RED[0, 1] = _RED[1, 2] = 65535


@pytest.mark.parametrize("kind", [
  *("palette.png", "exif.png", "rgba.png", "bilevel.png", "jpeg.tif.png"),
  *("plain.tif", "white_is_zero.tif", "palette.tif", "turned.tif", "rgb.tif"),
  *("planes.tif", "floats.tif", "pyramid.tif"),
])  # fmt: skip
def test_numbers_are_those_of_the_picture_as_it_is_shown(tmp_path, kind):
  """Of every kind of file that can say the same."""
  want = np.zeros((40, 60), np.uint8)
  want[5:15, 10:30] = 2
  path, top = tmp_path / kind, want // 2 * 255
  if kind == "palette.png":
    picture = Image.fromarray(want, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(path)
  elif kind == "exif.png":
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(want)).save(path, exif=exif)
  elif kind == "rgba.png":
    Image.fromarray(np.dstack([want] * 3 + [top * 0 + 255])).save(path)
  elif kind == "bilevel.png":
    Image.fromarray(top > 0).save(path)
  elif kind == "jpeg.tif.png":  # its content says what it is
    tifffile.imwrite(path, want)
  elif kind == "white_is_zero.tif":
    tifffile.imwrite(path, 255 - want, photometric="miniswhite")
  elif kind == "palette.tif":
    tifffile.imwrite(path, want, photometric="palette", colormap=_RED)
  elif kind == "turned.tif":
    tifffile.imwrite(path, want[::-1].copy(), extratags=_TURN)
  elif kind == "rgb.tif":
    tifffile.imwrite(path, np.dstack([want] * 3), photometric="rgb")
  elif kind == "planes.tif":
    planes = np.stack([want] * 3)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
  elif kind == "floats.tif":
    tifffile.imwrite(path, want.astype(np.float32))
  elif kind == "pyramid.tif":
    with tifffile.TiffWriter(path) as file:
      file.write(np.kron(want, np.ones((4, 4), np.uint8)), subifds=1)
      file.write(want, subfiletype=1)
  else:
    tifffile.imwrite(path, want)
  found = pictures.numbers(path, 60)
  assert (found == found[..., :1]).all()
  if kind == "bilevel.png":
    want = top
  np.testing.assert_array_equal(found[..., 0], want)


def test_pictures_that_are_no_mask_are_refused(tmp_path):
  path = tmp_path / "m.tif"
  tifffile.imwrite(
    path, np.zeros((2, 40, 60), np.uint8), photometric="minisblack"
  )
  with pytest.raises(ValueError, match="m.tif: .*it has 2 pictures"):
    pictures.numbers(path)
  path.write_bytes(path.read_bytes()[:900])
  with pytest.raises(ValueError, match="m.tif: not a picture"):
    pictures.numbers(path)


def test_a_mask_may_have_a_billion_pixels(tmp_path):
  """Pillow takes it for an attack."""
  Image.new("1", (20_000, 20_000)).save(tmp_path / "m.png")
  assert pictures.size(tmp_path / "m.png") == (20_000, 20_000)


def test_inks_are_colours(tmp_path):
  """CMYK: cyan is no red, black takes all."""
  ink = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]]], np.uint8)
  tifffile.imwrite(tmp_path / "p.tif", ink, photometric="separated")
  assert pictures.read(tmp_path / "p.tif")[0].tolist() == [
    [0, 255, 255],
    [255, 0, 255],
    [0, 0, 0],
  ]
  lab = np.zeros((4, 4, 3), np.uint8)
  tifffile.imwrite(tmp_path / "p.tif", lab, photometric="cielab")
  with pytest.raises(ValueError, match="CIELAB: save it as RGB"):
    pictures.read(tmp_path / "p.tif")


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_colours_stored_as_brightness_and_chroma(tmp_path, compression):
  want = np.full((32, 48, 3), (200, 90, 160), np.uint8)
  path = tmp_path / "a.tif"
  picture = Image.fromarray(want)
  if compression != "jpeg":
    picture = picture.convert("YCbCr")
  picture.save(path, compression=compression)
  found = pictures.read(path).astype(int)
  assert np.abs(found - want).max() <= 3


def test_what_a_header_says_is_measured_first(tmp_path):
  path = tmp_path / "a.png"
  Image.new("1", (9_000, 8_000)).save(path)
  assert pictures.size(path) == (8_000, 9_000)
  with pytest.raises(ValueError, match="9000 x 8000 px, more than 1,000,000"):
    pictures.read(path, most_px=1_000_000)
  tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 60), np.uint8))
  assert pictures.size(tmp_path / "a.tif") == (40, 60)
  with pytest.raises(ValueError, match="60 x 40 px, more than 100"):
    pictures.read(tmp_path / "a.tif", most_px=100)
  (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
  for ask in (pictures.size, pictures.read):
    with pytest.raises(OSError, match="a.pdf: no picture .* PNG, JPEG or TIFF"):
      ask(tmp_path / "a.pdf")
