"""Native tiles: OpenSlide's pixels, each tile once, no silent damage."""

import concurrent.futures

import imagecodecs
import numpy as np
import pytest
import tifffile

from data_prep.files.errors import SlideError
from data_prep.wsi import tiled
from data_prep.wsi.slides import Slide
from tests.data_prep.wsi import tiny_slides

DAMAGES = [
  "zeroed",
  "half zeroed",
  "half random",
  "middle random",
  "half of another",
  "first half zeroed",
]


@pytest.fixture
def path(tmp_path):
  return tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture())


def _open(path):
  with tifffile.TiffFile(path) as file:
    sizes = [(p.imagewidth, p.imagelength) for p in file.pages]
  levels, reason = tiled.pyramid_levels(path, "generic-tiff", sizes)
  assert not reason
  return tiled.TiledPyramid(path, levels)


def _read(pyramid, corner, size, level=0):
  out = np.zeros((size[1], size[0], 3), np.uint8)
  pyramid.read(level, corner, out)
  return out


def test_pixels_are_those_of_openslide(path):
  with Slide.open(path) as ours, Slide.open(path, reader="openslide") as ref:
    assert (ours.reader, ref.reader) == ("tiled", "openslide")
    for number, level in enumerate(ours.levels):
      for corner in ((0, 0), (-20, -30)):
        np.testing.assert_array_equal(
          ours.read_level(number, corner, level.size_px),
          ref.read_level(number, corner, level.size_px),
        )


@pytest.mark.parametrize(
  "name",
  [
    "slides/bs9_duodenum_giardiasis_he2_40x.tiff",
    "slides/seed_he_10x.tiff",
    "native/CMU-1-Small-Region.svs",  # RGB JPEG, tables apart, 240 px tiles
  ],
)
def test_pixels_are_those_of_openslide_on_real_slides(real_data, name):
  rng = np.random.default_rng(0)
  path = real_data / name
  with Slide.open(path) as ours, Slide.open(path, reader="openslide") as ref:
    assert ours.reader == "tiled"
    for _ in range(6):
      corner = tuple(int(rng.integers(0, s - 600)) for s in ours.level0_px)
      a, b = (s.read_level(0, corner, (600, 500)) for s in (ours, ref))
      difference = np.abs(a.astype(int) - b)
      assert difference.mean() <= 1  # what the project promises
      assert difference.max() == 0  # what holds with this decoder
    top = len(ours.levels) - 1
    size = ours.levels[top].size_px
    if top:
      np.testing.assert_array_equal(
        ours.read_level(top, (0, 0), size), ref.read_level(top, (0, 0), size)
      )


def test_rgb_jpeg_is_not_taken_for_ycbcr(tmp_path):
  """The colour space is in the TIFF tag; the decoder must be told."""
  pixels = tiny_slides.picture(256, 128)

  path = tiny_slides.write_rgb_tiles(tmp_path / "rgb.tiff", pixels)
  with tifffile.TiffFile(path) as file:
    assert file.pages[0].photometric == 2
  difference = np.abs(
    _read(_open(path), (0, 0), (256, 128)).astype(int) - pixels
  )
  assert difference.mean() < 3


def test_each_tile_is_decoded_once(path, monkeypatch):
  pyramid = _open(path)
  decoded = tiny_slides.watch_decoding(monkeypatch)
  _read(pyramid, (100, 100), (300, 200))  # columns 0 to 3, rows 0 to 2
  assert len(decoded) == 12
  _read(pyramid, (100, 100), (300, 200))
  assert len(decoded) == 12
  _read(pyramid, (100, 100), (300, 300))  # one more row of four
  assert len(decoded) == 16


def test_cache_is_bounded(path, monkeypatch):
  pyramid = _open(path)
  small = tiled.TiledPyramid(
    path, pyramid.levels, cache_bytes=3 * tiny_slides.TILE**2 * 3
  )
  whole = _read(small, (0, 0), (700, 500))
  np.testing.assert_array_equal(whole, _read(pyramid, (0, 0), (700, 500)))
  # Of 6 x 4 tiles the last three are held.
  decoded = tiny_slides.watch_decoding(monkeypatch)
  for column in (3, 4, 5):
    small.tile(0, column, 3)
  assert not decoded
  small.tile(0, 2, 3)
  small.tile(0, 3, 3)
  assert len(decoded) == 2


def test_outside_is_white(path):
  pyramid = _open(path)
  out = _read(pyramid, (-10, -5), (40, 30))
  assert (out[:5] == 255).all() and (out[:, :10] == 255).all()
  np.testing.assert_array_equal(out[5:, 10:], _read(pyramid, (0, 0), (30, 25)))
  # The last tile hangs over the edge of a 700 x 500 picture.
  out = _read(pyramid, (690, 490), (40, 40))
  assert (out[10:] == 255).all() and (out[:, 10:] == 255).all()
  assert (out[:10, :10] < 255).any()
  assert (_read(pyramid, (5000, 0), (4, 4)) == 255).all()


def test_tile_that_was_not_stored_is_white(path):
  before = _read(_open(path), (0, 0), (700, 500))
  tiny_slides.unlist_tile(path, 0, 1, 1)
  after = _read(_open(path), (0, 0), (700, 500))
  assert (after[128:256, 128:256] == 255).all()
  before[128:256, 128:256] = 255
  np.testing.assert_array_equal(after, before)
  with Slide.open(path, reader="openslide") as ref:
    np.testing.assert_array_equal(after, ref.read_level(0, (0, 0), (700, 500)))


@pytest.mark.parametrize("level", [0, 1])
def test_missing_tiles_of_aperio_are_drawn_as_openslide_does(tmp_path, level):
  path = tiny_slides.write_svs(
    tmp_path / "s.svs", tiny_slides.picture(1024, 1024)
  )
  with tifffile.TiffFile(path) as file:
    page = [p for p in file.pages if p.is_tiled][level]
    tag = page.tags["TileByteCounts"]
  size = {3: 2, 4: 4, 16: 8}[tag.dtype]
  tiny_slides.overwrite(path, tag.valueoffset + size, bytes(size))
  with Slide.open(path) as ours, Slide.open(path, reader="openslide") as ref:
    assert ours.vendor == "aperio" and "missing" in ours.reader_reason
    size = ours.levels[level].size_px
    found = ours.read_level(level, (0, 0), size)
    np.testing.assert_array_equal(found, ref.read_level(level, (0, 0), size))
  is_white = (found[:128, 128:256] == 255).all()
  assert is_white == (level == 0)


def test_padded_tables_are_read(real_data, tmp_path):
  """Bytes after the end of the shared JPEG tables say nothing."""
  source = real_data / "native/CMU-1-Small-Region.svs"
  path = tmp_path / "padded.svs"
  data = source.read_bytes()
  with tifffile.TiffFile(source) as file:
    tag = file.pages[0].tags["JPEGTables"]
    entry = file.pages[0].offset + 2
  at = data.index(bytes.fromhex("5b01"), entry)  # the tag 347, type, count
  count, where = tag.count + 2, len(data)
  new = count.to_bytes(4, "little") + where.to_bytes(4, "little")
  data = data[: at + 4] + new + data[at + 12 :] + tag.value + b"\0\0"
  path.write_bytes(data)
  with Slide.open(path) as ours, Slide.open(source) as whole:
    assert ours.reader == "tiled"
    np.testing.assert_array_equal(
      *(s.read_level(0, (500, 500), (300, 300)) for s in (ours, whole))
    )


def test_tile_that_openslide_reads_is_rescued(path):
  """And what it cannot read is asked of it once."""
  tiny_slides.damage(path, "half random")
  asked = []

  def rescue(level, corner, size):
    asked.append((level, corner, size))
    return np.full((*size[::-1], 3), 7, np.uint8)

  levels = _open(path).levels
  pyramid = tiled.TiledPyramid(path, levels, rescue)
  for _ in range(2):
    assert (_read(pyramid, (140, 140), (20, 20)) == 7).all()
  assert asked == [(0, (128, 128), (128, 128))]
  pyramid = tiled.TiledPyramid(path, levels, lambda *a: asked.append(a))
  for _ in range(2):
    with pytest.raises(tiled.TileError):
      _read(pyramid, (140, 140), (20, 20))
  assert len(asked) == 2


def test_tile_that_ends_in_zeros_is_damaged_whatever_openslide_says(tmp_path):
  """Of a detailed tile, zeros enough are left to decode a whole picture."""
  pixels = np.random.default_rng(0).integers(0, 256, (384, 384, 3), np.uint8)
  path = tiny_slides.write(tmp_path / "s.tiff", pixels, levels=1)
  offset, length = tiny_slides.tile_at(path, 0, 1, 1)
  third = length // 3
  tiny_slides.overwrite(path, offset + third, bytes(length - third))
  with Slide.open(path, reader="openslide") as lenient:
    lenient.read_level(0, (128, 128), (128, 128))  # raises nothing
  with Slide.open(path) as slide, pytest.raises(SlideError):
    slide.read_level(0, (128, 128), (128, 128))


def test_lost_tiles_are_white_and_listed(path):
  whole = _read(_open(path), (0, 0), (700, 500))
  tiny_slides.damage(path, "half zeroed")
  out, lost = np.zeros((500, 700, 3), np.uint8), []
  _open(path).read(0, (0, 0), out, lost)
  assert [error.corner for error in lost] == [(128, 128)]
  whole[128:256, 128:256] = 255
  np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_tile_raises_and_others_stay_readable(path, kind):
  intact = _read(_open(path), (256, 0), (128, 128))
  tiny_slides.damage(path, kind)
  pyramid = _open(path)
  with pytest.raises(tiled.TileError) as caught:
    _read(pyramid, (100, 100), (60, 60))
  assert caught.value.level == 0
  assert caught.value.corner == (128, 128)
  assert caught.value.reason
  np.testing.assert_array_equal(_read(pyramid, (256, 0), (128, 128)), intact)


def test_half_overwritten_tile_would_pass_a_lenient_decoder(path):
  """Shows that the strictness is what finds it."""
  tiny_slides.damage(path, "half zeroed")
  offset, length = tiny_slides.tile_at(path, 0, 1, 1)
  raw = path.read_bytes()[offset : offset + length]
  assert imagecodecs.jpeg8_decode(raw).shape == (128, 128, 3)


def test_tile_beyond_the_end_of_the_file(path):
  offset, length = tiny_slides.tile_at(path, 1, 0, 0)
  path.write_bytes(path.read_bytes()[: offset + length // 2])
  # The directory of level 1 comes before its pixels, so it still opens.
  pyramid = _open(path)
  with pytest.raises(tiled.TileError, match="end of the file"):
    _read(pyramid, (0, 0), (10, 10), level=1)


def test_tile_of_another_size_raises(path):
  offset, length = tiny_slides.tile_at(path, 0, 1, 1)
  small = imagecodecs.jpeg8_encode(np.zeros((64, 64, 3), np.uint8))
  tiny_slides.overwrite(path, offset, small + bytes(length - len(small)))
  with pytest.raises(tiled.TileError, match="64x64"):
    _read(_open(path), (128, 128), (10, 10))


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"compression": "lzw"}, "LZW"),
    ({"tile": None, "rowsperstrip": 16}, "not tiled"),
    ({"compression": "jpeg2000"}, "JPEG2000"),
  ],
)
def test_rule_names_what_it_does_not_read(tmp_path, options, word):
  path = tiny_slides.write(
    tmp_path / "s.tiff", tiny_slides.picture(300, 200), levels=1, **options
  )
  levels, reason = tiled.pyramid_levels(path, "generic-tiff", [(300, 200)])
  assert levels == () and word.lower() in reason.lower().replace("_", "")


def test_rule_on_the_format_and_the_sizes(path):
  assert tiled.pyramid_levels(path, "hamamatsu", [(700, 500)]) == (
    (),
    "format hamamatsu is read by OpenSlide",
  )
  levels, reason = tiled.pyramid_levels(path, "aperio", [(700, 500), (9, 9)])
  assert levels == () and "level 1" in reason


def test_grey_jpeg_goes_to_openslide(tmp_path):
  path = tmp_path / "grey.tiff"
  tifffile.imwrite(
    path,
    tiny_slides.picture(256, 256)[..., 0],
    tile=(128, 128),
    compression="jpeg",
  )
  levels, reason = tiled.pyramid_levels(path, "generic-tiff", [(256, 256)])
  assert levels == () and "photometric" in reason


def test_threads_share_a_pyramid(path):
  pyramid = _open(path)
  alone = _read(_open(path), (0, 0), (700, 500))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for out in pool.map(
      lambda _: _read(pyramid, (0, 0), (700, 500)), range(16)
    ):
      np.testing.assert_array_equal(out, alone)
