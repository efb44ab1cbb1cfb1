"""Tiles: where they lie, their pixels, and what a damaged slide costs."""

import threading

import numpy as np
import pytest
from PIL import Image

from data_prep.files.errors import SlideError
from data_prep.wsi import find, tile_stream, tiles
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Level, Slide
from tests.data_prep.wsi import tiny_slides


class _Sheet:
  """A slide without pixels: 1000 x 600 px at 0.4 um/px, levels 1 and 4."""

  mpp = 0.4
  level0_px = (1000, 600)
  bounds = (130, 50, 700, 500)
  levels = (Level((1000, 600), 1.0), Level((250, 150), 4.0))

  def level_for(self, mpp):
    return int(mpp >= 1.6)


def _grid(slide=None, mask=None, downsample=10.0, **settings):
  mask = np.ones((60, 100), bool) if mask is None else mask
  settings = {"tile_px": 100, "mpp": 0.5, **settings}
  return tiles.tile_grid(slide or _Sheet(), mask, downsample, **settings)


# Where they lie.


def test_corners_by_hand():
  # A tile is 100 px * 0.5 / 0.4 = 125 px of level 0, neighbours 90 * 1.25 =
  # 112.5 px apart: 0, 112.5, 225, 337.5, ... rounded to even by numpy.
  grid = _grid(overlap_px=10, min_tissue=0.1)
  x, y = np.unique(grid.xy[:, 0]), np.unique(grid.xy[:, 1])
  assert grid.tile_level0 == 125.0
  assert x.tolist() == [0, 112, 225, 338, 450, 562, 675, 788, 900]
  assert y.tolist() == [0, 112, 225, 338, 450, 562]
  # Reading order of a page: rows, then columns.
  assert grid.xy[:3].tolist() == [[0, 0], [112, 0], [225, 0]]
  # The last row hangs over: 562 + 125 = 687, 38 of 125 px are on the slide.
  share = grid.tissue.reshape(6, 9)
  assert share[0, 0] == 1.0
  np.testing.assert_allclose(share[5, 0], 38 / 125, rtol=1e-6)
  np.testing.assert_allclose(share[0, 8], 100 / 125, rtol=1e-6)
  # With more tissue asked for, that row goes.
  assert len(_grid(overlap_px=10, min_tissue=0.31)) == 45


def test_corners_are_whole_pixels_of_the_level_read():
  # At 1.7 um/px level 1 is read, whose pixels are 4 of level 0. A tile of 20
  # px is 85 px of level 0: 0, 85, 170, 255, 340 becomes 0, 84, 168, 256, 340.
  grid = _grid(tile_px=20, mpp=1.7)
  assert np.unique(grid.xy[:, 0])[:5].tolist() == [0, 84, 168, 256, 340]
  assert (grid.xy % 4 == 0).all()


def test_anchor_at_the_bounds():
  grid = _grid(anchor="bounds", tile_px=100, mpp=0.8)  # 200 px of level 0
  assert np.unique(grid.xy[:, 0]).tolist() == [130, 330, 530, 730]
  assert np.unique(grid.xy[:, 1]).tolist() == [50, 250, 450]


def test_share_of_tissue_is_by_area():
  # Mask pixels of 10 px; tissue is x 205 to 310 once rounded to mask pixels:
  # columns 20 to 30, that is x in [200, 310).
  mask = np.zeros((60, 100), bool)
  mask[:, 20:31] = True
  grid = _grid(mask=mask, min_tissue=0.001)
  # Tiles at 125 (to 250) and 250 (to 375): 50 and 60 of 125 px.
  assert np.unique(grid.xy[:, 0]).tolist() == [125, 250]
  share = {
    int(x): float(s)
    for (x, _), s in zip(grid.xy[:2], grid.tissue[:2], strict=True)
  }
  assert share == pytest.approx({125: 50 / 125, 250: 60 / 125})
  assert np.unique(_grid(mask=mask, min_tissue=0.45).xy[:, 0]).tolist() == [250]


def test_no_tissue_is_no_tile():
  grid = _grid(mask=np.zeros((60, 100), bool))
  assert len(grid) == 0 and grid.xy.shape == (0, 2)


@pytest.mark.parametrize(
  ("settings", "word"),
  [
    ({"tile_px": 0}, "tile_px=0"),
    ({"overlap_px": 100}, "overlap_px=100: want 0 to 99"),
    ({"overlap_px": -1}, "overlap_px=-1"),
    ({"min_tissue": 0.0}, "min_tissue=0"),
    ({"min_tissue": 1.1}, "min_tissue=1.1"),
    ({"anchor": "corner"}, "anchor='corner'"),
  ],
)
def test_bad_settings(settings, word):
  with pytest.raises(ValueError, match=word):
    _grid(**settings)


# Their pixels.


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiles")
  return tiny_slides.write(folder / "s.tiff", tiny_slides.picture())


def _whole(slide, **settings):
  """A grid over all of a slide."""
  width, height = slide.level0_px
  mask = np.ones((height // 10, width // 10), bool)
  return tiles.tile_grid(slide, mask, 10.0, min_tissue=0.1, **settings)


def _collect(batches):
  found = list(batches)
  pixels = np.concatenate([batch.pixels for batch in found])
  index = np.concatenate([batch.index for batch in found])
  return pixels, index, [len(batch.index) for batch in found]


@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize(
  ("mpp", "tile_px", "window_px", "overlap_px"),
  [(0.5, 96, 96, 0), (0.61, 64, 64, 8), (2.0, 32, 48, 0), (0.8, 40, 60, 4)],
)
def test_pixels_are_those_of_the_region(
  path, reader, mpp, tile_px, window_px, overlap_px
):
  with Slide.open(path, reader=reader) as slide:
    grid = _whole(slide, mpp=mpp, tile_px=tile_px, overlap_px=overlap_px)
    batches = list(
      tiles.read_tiles(
        slide, grid, window_px=window_px, batch_size=7, threads=3
      )
    )
    seen = np.concatenate([batch.index for batch in batches])
    assert sorted(seen) == list(range(len(grid)))
    for batch in batches:
      np.testing.assert_array_equal(batch.xy, grid.xy[batch.index])
      for pixels, (x, y) in zip(batch.pixels, batch.xy, strict=True):
        half = tile_px * mpp / 0.5 / 2
        region = slide.read_region(
          (x + half, y + half), (window_px, window_px), mpp
        )
        np.testing.assert_array_equal(pixels, region)


def test_a_tile_at_the_scale_of_its_level_is_a_copy(path):
  with Slide.open(path) as slide:
    whole = slide.read_level(1, (0, 0), (175, 125))
    grid = _whole(slide, mpp=2.0, tile_px=25)
    pixels, index, sizes = _collect(
      tiles.read_tiles(slide, grid, window_px=25, batch_size=16)
    )
    assert len(grid) == 35 and sizes == [16, 16, 3]
    for tile, number in zip(pixels, index, strict=True):
      x, y = grid.xy[number] // 4
      np.testing.assert_array_equal(tile, whole[y : y + 25, x : x + 25])


def test_each_native_tile_is_decoded_once(path, monkeypatch):
  # 6 x 4 native tiles of 128 px; tiles of 100 px share most of them.
  decoded = tiny_slides.watch_decoding(monkeypatch)
  with Slide.open(path) as slide:
    grid = _whole(slide, mpp=0.5, tile_px=100)
    pixels, _, _ = _collect(
      tiles.read_tiles(slide, grid, window_px=100, batch_size=8)
    )
    assert len(pixels) == 35
    assert len(decoded) == 24


def test_wide_slides_are_read_in_strips():
  # 2^21 x 3 px make a strip. Rows are 1536 px high and 512 px more, so that it
  # is 3072 px wide: two tiles.
  x, y = np.meshgrid(np.arange(5) * 1536, np.arange(2) * 1536)
  xy = np.stack([x.ravel(), y.ravel()], 1)
  order = tiles.reading_order(xy, 1536, 1.0)
  assert sorted(order) == list(range(10))
  assert (xy[order] // 1536).tolist() == [
    *([0, 0], [1, 0], [0, 1], [1, 1]),
    *([2, 0], [3, 0], [2, 1], [3, 1]),
    *([4, 0], [4, 1]),
  ]


# Damage.


@pytest.fixture
def damaged(tmp_path):
  path = tiny_slides.write(tmp_path / "d.tiff", tiny_slides.picture())
  tiny_slides.damage(path, "half zeroed", column=3, row=2)  # x 384, y 256
  return path


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_damaged_tile_costs_the_tiles_on_it(damaged, path, reader):
  with Slide.open(damaged, reader=reader) as slide:
    grid = _whole(slide, mpp=0.5, tile_px=100)
    bad = []
    pixels, index, sizes = _collect(
      tiles.read_tiles(
        slide, grid, window_px=100, batch_size=8, threads=2,
        max_bad_share=0.2, bad=bad,
      )
    )  # fmt: skip
  # Native tile x 384 to 512, y 256 to 384 touches tiles x 300 to 600, y 200
  # to 400.
  lost = [[x, y] for y in (200, 300) for x in (300, 400, 500)]
  missing = sorted(set(range(35)) - set(index.tolist()))
  assert grid.xy[missing].tolist() == lost
  assert len(bad) == 6 and sizes == [8, 8, 8, 5]
  assert {error.error for error in bad} == {"damaged_tile"}
  assert {error.tile for error in bad} == {(0, 384, 256)}
  with Slide.open(path) as good:
    for tile, number in zip(pixels, index, strict=True):
      centre = grid.xy[number] + 50
      np.testing.assert_array_equal(
        tile, good.read_region(centre, (100, 100), 0.5)
      )


def test_slide_with_too_many_lost_tiles_is_refused(damaged):
  with Slide.open(damaged) as slide:
    grid = _whole(slide, mpp=0.5, tile_px=100)  # 6 of 35 tiles are lost
    with pytest.raises(SlideError, match="given up after 4 of 35") as caught:
      _collect(
        tiles.read_tiles(
          slide, grid, window_px=100, batch_size=8, max_bad_share=0.1
        )
      )
    assert caught.value.error == "too_many_bad_tiles"
    assert caught.value.tile == (0, 384, 256)
    with pytest.raises(ValueError, match="window_px=99"):
      next(tiles.read_tiles(slide, grid, window_px=99, batch_size=8))


def test_stream_that_is_left_early_ends_its_threads(path):
  before = set(threading.enumerate())
  with Slide.open(path) as slide:
    grid = _whole(slide, mpp=0.5, tile_px=50)
    stream = tiles.read_tiles(slide, grid, window_px=50, batch_size=4)
    assert len(next(stream).index) == 4
    assert set(threading.enumerate()) - before
    stream.close()
  assert set(threading.enumerate()) <= before


# Many slides.


def _settings(**changes):
  wanted = {
    "mpp": 0.5, "overlap_px": 0, "min_tissue": 0.5, "anchor": "level0",
    "mpp_tolerance": 0.02, "allow_upsampling": False, "default_mpp": 0.0,
    "reader": "auto", "max_bad_share": 0.3, **changes,
  }  # fmt: skip
  tissue = {"method": "guarded", "thumbnail_px": 128}
  return tile_stream.Settings(64, 64, wanted, tissue)


def _tissue_picture(colour=(190, 110, 170)):
  pixels = np.full((500, 700, 3), 243, np.uint8)
  pixels[128:384, 128:640] = colour
  return pixels


def _stream(tmp_path, entries, **changes):
  return list(
    tile_stream.events(entries, _settings(**changes), tmp_path / "out", 8, 2)
  )


def test_slides_are_streamed_one_after_the_other(tmp_path):
  """Good, damaged, blank, missing: each tells its own story."""
  entries = []
  for name in ("blank", "damaged", "good", "missing"):
    path = tmp_path / f"{name}.tiff"
    entries.append(SlideEntry(name, str(path), "p"))
    if name == "missing":
      continue
    pixels = _tissue_picture((243,) * 3 if name == "blank" else (190, 110, 170))
    tiny_slides.write(path, pixels)
  tiny_slides.damage(tmp_path / "damaged.tiff", "zeroed", column=2, row=2)
  blank, *events = _stream(tmp_path, entries)
  assert blank.info["status"] == "no_tissue" and blank.info["tiles"] == 0
  assert "mask is empty" in blank.info["reason"]
  assert events[0] == tile_stream.End((), 0)
  begin, events = events[1], events[2:]
  assert begin.entry.slide_id == "damaged"
  # Tissue covers native tiles exactly: 8 x 4 tiles of 64 px; 4 are on the
  # damaged one (x 256 to 384).
  assert begin.info["tiles"] == 32 and begin.info["status"] == "ok"
  assert begin.info["mpp"] == 0.5 and begin.info["reader"] == "tiled"
  assert sum(len(e.index) for e in events[:4]) == 28
  assert events[4].bad_tiles == 4
  assert [error.tile for error in events[4].bad] == [(0, 256, 256)]
  assert events[5].entry.slide_id == "good" and len(events[5].grid) == 32
  assert [len(e.index) for e in events[6:10]] == [8, 8, 8, 8]
  assert events[10] == tile_stream.End((), 0)
  failed = events[11]
  assert (failed.entry.slide_id, failed.error.error, failed.error.slide) == (
    "missing", "missing_file", "missing",
  )  # fmt: skip
  assert len(events) == 12
  for folder in ("qc", "thumbnails"):
    pictures = sorted(p.name for p in (tmp_path / "out" / folder).iterdir())
    assert pictures == ["blank.jpg", "damaged.jpg", "good.jpg"]


def test_damage_in_the_thumbnail_is_a_note(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tiff", _tissue_picture())
  tiny_slides.damage(path, "zeroed", level=1, column=0, row=0)
  begin, *batches, end = _stream(tmp_path, [SlideEntry("s", str(path), "p")])
  assert begin.info["status"] == "ok" and begin.info["tiles"] == 32
  assert sum(len(batch.index) for batch in batches) == 32
  assert end.bad_tiles == 0
  assert [(e.stage, e.error, e.slide, e.tile) for e in end.bad] == [
    ("thumbnail", "damaged_tile", "s", (1, 0, 0))
  ]


def test_values_of_a_mask_are_those_of_the_table(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tiff", _tissue_picture())
  classes = np.full((200, 280), 7, np.uint8)
  classes[:, :140] = 1
  Image.fromarray(classes).save(tmp_path / "mask.png")
  entry = SlideEntry("s", str(path), "p", mask_path=f"{tmp_path}/mask.png")
  (failed,) = _stream(tmp_path, [entry])
  assert failed.error.error == "mask_values"
  assert "1, 7" in failed.error.message
  table = tmp_path / "t.csv"
  table.write_text(
    "slide_id,filename,mask,tissue_mask_values\ns,s.tiff,mask.png,1\n"
  )
  (entry,), errors = find.find_slides(table)
  assert not errors
  begin, *_ = _stream(tmp_path, [entry])
  assert begin.info["tiles"] and begin.grid.xy[:, 0].max() < 350


def test_slides_that_are_refused(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tiff", _tissue_picture())
  entry = SlideEntry("s", str(path), "p")
  (failed,) = _stream(tmp_path, [entry], mpp=0.25)
  assert failed.error.error == "target_finer_than_scan"
  tiny_slides.damage(path, "zeroed", column=2, row=2)
  *_, failed = _stream(tmp_path, [entry], max_bad_share=0.1)
  assert failed.error.error == "too_many_bad_tiles"
  bad_mask = SlideEntry("s", str(path), "p", mask_path=str(path))
  (failed,) = _stream(tmp_path, [bad_mask])
  assert (failed.error.stage, failed.error.slide) == ("tissue", "s")


def test_hash_follows_what_shapes_features(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tiff", _tissue_picture())
  encoder = {"name": "tiny", "fingerprint": "a"}

  def digest(settings=None, encoder=encoder, **changes):
    values = {"slide_id": "s", "path": str(path), "patient_id": "p", **changes}
    return tile_stream.slide_hash(
      SlideEntry(**values), settings or _settings(), encoder
    )

  first = digest()
  assert digest(patient_id="q", label="tumour", split="test") == first
  assert digest(_settings(min_tissue=0.4)) != first
  assert digest(encoder={"name": "tiny", "fingerprint": "b"}) != first
  assert digest(mpp=0.49) != first
  tiny_slides.damage(path, "zeroed", level=1, column=0, row=0)
  assert digest() != first
  with pytest.raises(SlideError, match="cannot read"):
    digest(path=str(tmp_path / "none.tiff"))


def test_ids_that_cannot_name_a_file():
  entries = [SlideEntry(name, "x", "p") for name in ("a.b", ".a", "a/b")]
  good, bad = find.usable_names(entries)
  assert [e.slide_id for e in good] == ["a.b"]
  assert [e.slide for e in bad] == [".a", "a/b"]
