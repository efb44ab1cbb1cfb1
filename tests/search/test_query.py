"""Pictures, regions and rows become vectors."""

import numpy as np
import pytest

from tests.data_prep.wsi import tiny_slides
from tests.search import tiny_index
from wsiseq_jax.search.query import Searcher

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 200
SOME = {"a": np.eye(3)[:2], "b": np.array([[1, 1, 0.0], [0, 0, 1]])}


def plain(colour, height=128, width=128) -> np.ndarray:
  return np.broadcast_to(colour, (height, width, 3)).astype(np.uint8)


def searcher(folder, monkeypatch, **sizes) -> Searcher:
  """An index of mean colours: red, green; yellow, blue."""
  encoder = tiny_index.with_colour_encoder(monkeypatch, **sizes)
  tiny_index.make(folder, SOME, encoder=encoder)
  return Searcher(folder / "index", batch_size=4)


def test_a_picture_finds_its_colour(tmp_path, monkeypatch):
  found = searcher(tmp_path, monkeypatch)
  for colour, slide, row in ((RED, "a", 0), (GREEN, "a", 1), (BLUE, "b", 3)):
    hits = found.by_images([plain(colour)], k=1)
    assert hits[["slide_id", "row"]].iloc[0].tolist() == [slide, row]
    assert hits["distance"][0] == pytest.approx(0, abs=1e-3)
  # Half red, half green is as yellow as row 2; two pictures are as well.
  both = np.concatenate([plain(RED), plain(GREEN)], axis=1)
  for images in ([both], [plain(RED), plain(GREEN)]):
    hits = found.by_images(images, k=1)
    assert hits["row"].tolist() == [2]
    assert hits["distance"][0] == pytest.approx(0, abs=1e-3)
  apart = found.images_query([plain(RED), plain(BLUE)], pool=False)
  np.testing.assert_allclose(apart.vectors, np.eye(3)[[0, 2]], atol=1e-6)


def test_tiles_lie_in_the_middle_at_the_scale_of_the_index(
  tmp_path, monkeypatch
):
  found = searcher(tmp_path, monkeypatch, tile_px=64)
  # 200 x 150 px at 2 um are 400 x 300 of the index's 1 um: 6 x 4 tiles.
  query = found.images_query([plain(RED, 150, 200)], mpp=2.0)
  assert len(query.boxes) == 24
  low = query.boxes[:, :2].min(axis=0)
  high = (query.boxes[:, :2] + query.boxes[:, 2:]).max(axis=0)
  assert low.tolist() == [4, 11] and high.tolist() == [196, 139]
  assert query.weights.sum() == pytest.approx(1)
  # 128 px at 0.25 um are half a tile: it is continued, and is one.
  small = found.images_query([plain(RED)], mpp=0.25)
  assert len(small.boxes) == 1
  np.testing.assert_allclose(small.vectors, [[1, 0, 0]], atol=1e-6)


def test_what_is_around_a_tile_is_seen_and_not_counted(tmp_path, monkeypatch):
  found = searcher(tmp_path, monkeypatch, tile_px=64, window_px=96)
  query = found.images_query([plain(RED)])
  assert len(query.boxes) == 4
  np.testing.assert_allclose(query.vectors, [[1, 0, 0]], atol=1e-6)


def test_glass_says_nothing(tmp_path, monkeypatch):
  found = searcher(tmp_path, monkeypatch, tile_px=64)
  picture = np.concatenate([plain(RED), plain((250, 250, 250))], axis=1)
  query = found.images_query([picture])
  assert len(query.boxes) == 4 and query.boxes[:, 0].max() == 64
  np.testing.assert_allclose(query.vectors, [[1, 0, 0]], atol=1e-6)
  # Nothing but glass is asked with as it is.
  assert len(found.images_query([plain((250, 250, 250))]).boxes) == 4


def test_grey_is_taken_for_three_equal_channels(tmp_path, monkeypatch):
  found = searcher(tmp_path, monkeypatch)
  grey = np.full((128, 128, 1), 90, np.uint8)
  third = 3**-0.5
  np.testing.assert_allclose(
    found.images_query([grey]).vectors, [[third] * 3], atol=1e-6
  )


@pytest.mark.parametrize(
  ("images", "mpp", "message"),
  [
    ([], None, "0 pictures: must be 1 to 5"),
    ([plain(RED)] * 6, None, "6 pictures"),
    ([plain(RED, 127, 300)], None, "300 x 127 pixels: its sides must have 128"),
    ([plain(RED, 128, 4097)], None, "to 4096"),
    ([plain(RED).astype(np.float32)], None, "must be uint8"),
    ([plain(RED)[..., 0]], None, "must be uint8"),
    ([np.zeros((128, 128, 4), np.uint8)], None, r"\(128, 128, 4\)"),
    ([plain(RED)], 0.0, "mpp = 0.0"),
    ([plain(RED)], float("nan"), "mpp = nan"),
    ([plain(RED, 1024, 1024)], None, "4,096 tiles .* at most 1,024"),
  ],
)
def test_pictures_that_are_refused(tmp_path, monkeypatch, images, mpp, message):
  found = searcher(tmp_path, monkeypatch)
  with pytest.raises(ValueError, match=message):
    found.by_images(images, mpp)


def test_rows_are_asked_with_and_their_slide_is_left_out(tmp_path, monkeypatch):
  found = searcher(tmp_path, monkeypatch)
  hits = found.by_rows([0])
  assert set(hits["slide_id"]) == {"b"}
  hits = found.by_rows([0], exclude="none", apart=0, k=9)
  assert hits["row"].tolist()[0] == 0 and len(hits) == 4
  # The mean of red and green is yellow.
  assert found.by_rows([0, 1], exclude="none", k=1)["row"].tolist() == [2]
  assert len(found.rows_query([0, 1], pool=False).vectors) == 2
  with pytest.raises(ValueError, match="at least one row"):
    found.by_rows([])
  with pytest.raises(ValueError, match="row 4 is not"):
    found.by_rows([4])
  with pytest.raises(ValueError, match="must be whole numbers"):
    found.by_rows([0.5])


def test_a_region_of_a_slide_is_read_at_the_scale_of_the_index(
  tmp_path, monkeypatch
):
  pixels = np.full((400, 600, 3), 255, np.uint8)
  pixels[:, :300] = RED
  pixels[:, 300:] = BLUE
  (tmp_path / "slides").mkdir()
  path = tiny_slides.write(tmp_path / "slides" / "a.tiff", pixels, mpp=0.5)
  encoder = tiny_index.with_colour_encoder(monkeypatch)
  tiny_index.make(tmp_path, SOME, encoder=encoder, slides=str(path))
  found = Searcher(tmp_path / "index")
  # 128 px of 0.5 um are 64 of the index's 1 um: 4 x 4 tiles.
  query, picture = found.region_query(path, (0, 100, 128, 128))
  assert picture.shape == (64, 64, 3) and len(query.boxes) == 16
  assert query.slides == ("a",) and query.patients == ("a",)
  assert found.by_region(path, 0, 100, 256, 256, exclude="none")["row"][0] == 0
  # The slide is in the index: its own rows are left out.
  hits = found.by_region(path, 310, 100, 256, 256)
  assert hits["row"].tolist()[0] == 3 and set(hits["slide_id"]) == {"b"}
  cut = [pixels[100:356, 310:566]]
  hits = found.by_images(cut, 0.5, slide_path=path)
  assert set(hits["slide_id"]) == {"b"}
  assert set(found.by_images(cut, 0.5)["slide_id"]) == {"a", "b"}
  # The same slide in another place is known by its name.
  moved = tiny_slides.write(tmp_path / "A.TIF", pixels, mpp=0.5)
  assert set(found.by_region(moved, 310, 100, 256, 256)["slide_id"]) == {"b"}
  with pytest.raises(ValueError, match="must have an area"):
    found.by_region(path, 0, 0, 0, 10)
  for corner in ((600, 0), (0, 400), (-10, 0)):
    with pytest.raises(ValueError, match="outside the slide of 600x400 px"):
      found.by_region(path, *corner, 10, 10)
  with pytest.raises(ValueError, match="at most 4096 on a side"):
    found.by_region(path, 0, 0, 1e5, 10)


def test_an_index_without_an_encoder_takes_rows_only(tmp_path):
  tiny_index.make(tmp_path, SOME)
  found = Searcher(tmp_path / "index")
  assert len(found.by_rows([0], exclude="none", apart=0)) == 4
  with pytest.raises(ValueError, match="does not know its encoder"):
    found.by_images([plain(RED)])


def test_an_encoder_that_changed_is_refused(tmp_path, monkeypatch):
  found = searcher(tmp_path, monkeypatch)
  other = tiny_index.colour_encoder()
  object.__setattr__(other, "fingerprint", "two")
  monkeypatch.setattr(
    "wsiseq_jax.encoders.load", lambda config: other, raising=True
  )
  with pytest.raises(ValueError, match="encoder of the index has changed"):
    found.by_images([plain(RED)])
