"""What lies on slides, by hand-made files."""

import contextlib
import io
import json
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Slide
from tests.data_prep.wsi import tiny_slides
from tests.view import server
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.spatial import points
from wsiseq_jax.view.layers import LayerFinder
from wsiseq_jax.view.pyramid import Pyramid


@pytest.fixture
def slide(tmp_path):
  path = tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture())
  with contextlib.closing(Pyramid(Slide.open(path))) as pyramid:
    yield pyramid, SlideEntry("s", str(path), "p")


def made(slide, name, annotations="", **folders):
  pyramid, entry = slide
  config = server.config("x", layers=folders).layers
  found = LayerFinder(config, annotations, ["s"]).of(entry, True)
  return found[name].make(pyramid)


def tile_map(folder):
  (folder / "maps").mkdir()
  TileMap(
    slide_id="s",
    patient_id="p",
    xy=np.array([[0.0, 0.0], [64.0, 0.0]]),
    tile_size=64.0,
    unit="level0_px",
    level0_mpp=0.5,
    level0_size=(700, 500),
    attention=np.array([0.25, 0.75], np.float32),
    probability=np.array([0.1, 0.9], np.float32),
    contribution=np.array([-1.0, 2.0], np.float32),
    class_name="tumour",
    slide_probability=0.8,
    threshold=0.5,
    label=None,
  ).save(folder / "maps" / "s.npz")


def test_maps_cover_their_tiles_alone(slide, tmp_path):
  tile_map(tmp_path)
  for kind in ("probability", "contribution", "percentile"):
    data, downsample = made(slide, f"mil_{kind}", mil=str(tmp_path))
    rgba = np.asarray(Image.open(io.BytesIO(data)))
    assert downsample == pytest.approx(8)
    assert (rgba[:8, :16, 3] == 255).all()
    assert not rgba[8:, :, 3].any() and not rgba[:, 16:, 3].any()
    assert (rgba[0, 0] != rgba[0, 15]).any()
  shapes = json.loads(made(slide, "mil_regions", mil=str(tmp_path))[0])
  ring = np.array(shapes["shapes"][0]["rings"][0]).reshape(-1, 2)
  assert shapes["classes"][0]["name"] == "tumour"
  assert ring.min(axis=0) == pytest.approx([64, 0], abs=8)
  assert ring.max(axis=0) == pytest.approx([128, 64], abs=8)


def test_bad_files_of_other_slides_cost_nothing(slide, tmp_path):
  tile_map(tmp_path)
  want = made(slide, "mil_contribution", mil=str(tmp_path))
  (tmp_path / "maps/t.npz").write_bytes(b"PK cut")
  config = server.config("x", layers={"mil": str(tmp_path)}).layers
  layers = LayerFinder(config, "", ["s", "t"]).of(slide[1], True)
  assert layers["mil_contribution"].make(slide[0]) == want
  folder = tmp_path / "embeddings"
  folder.mkdir()
  (folder / "test.npz").write_bytes(b"PK cut")
  with pytest.raises(ValueError, match="layers.sequences: nothing in"):
    made(slide, "clusters", sequences=str(tmp_path))
  ids, xy = np.array(["s"]), np.array([[5.0, 6.0]])
  np.savez(folder / "train.npz", slide_id=ids, level0_xy=xy,
           features=np.ones((1, 4), np.float32))  # fmt: skip
  assert made(slide, "clusters", sequences=str(tmp_path))


@pytest.mark.parametrize("path", ["s.parquet", "slides/s/cells.parquet"])
def test_cells_are_in_pixels(slide, tmp_path, path):
  """A folder of tables, or the workdir of a job `spatial`."""
  cells = points.Points.of(
    "s", "p", np.array([[10.0, 20.0], [30.0, 40.0]]), ["b", "a"]
  )
  (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
  points.write(tmp_path / path, cells)
  data, _ = made(slide, "cells", cells=str(tmp_path))
  (length,) = struct.unpack_from("<I", data)
  head = json.loads(data[4 : 4 + length])
  assert head["count"] == 2
  assert [one["name"] for one in head["classes"]] == ["a", "b"]
  xy = np.frombuffer(data, "<f4", 4, 4 + length)
  np.testing.assert_allclose(xy, [20, 40, 60, 80])  # 0.5 um a pixel
  assert list(data[4 + length + 16 :]) == [1, 0]


def test_class_zero_of_a_mask_is_nothing(slide, tmp_path):
  mask = np.zeros((50, 70), np.uint8)
  mask[10:20, 10:20] = 2
  folder = tmp_path / "masks"
  folder.mkdir()
  cv2.imwrite(str(folder / "s.png"), mask)
  data, downsample = made(slide, "segmentation", segmentation=str(folder))
  rgba = np.asarray(Image.open(io.BytesIO(data)))
  assert downsample == pytest.approx(10)
  np.testing.assert_array_equal(rgba[..., 3] > 0, mask > 0)


def test_annotations_of_any_group(slide, tmp_path):
  ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
  feature = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [ring]},
    "properties": {"name": "a", "classification": {"name": "Odd"}},
  }
  folder = tmp_path / "drawn"
  folder.mkdir()
  (folder / "s.geojson").write_text(json.dumps(feature))
  shapes = json.loads(made(slide, "annotations", str(folder))[0])
  assert shapes["classes"][0]["name"] == "Odd"
  assert shapes["shapes"][0]["rings"] == [[0, 0, 9, 0, 9, 9]]


def test_sequences_lie_at_their_middles(slide, tmp_path):
  folder = tmp_path / "embeddings"
  folder.mkdir()
  np.savez(
    folder / "val.npz",
    slide_id=np.array(["s", "t", "s"]),
    level0_xy=np.array([[5.0, 6.0], [1.0, 1.0], [7.0, 8.0]], np.float32),
    features=np.eye(3, dtype=np.float32),
  )
  data, _ = made(slide, "clusters", sequences=str(tmp_path), clusters=3)
  (length,) = struct.unpack_from("<I", data)
  xy = np.frombuffer(data, "<f4", 4, 4 + length)
  np.testing.assert_allclose(xy, [5, 6, 7, 8])


@pytest.mark.parametrize("name", ["mil", "cells", "segmentation", "sequences"])
def test_a_folder_of_nothing_names_its_key(slide, tmp_path, name):
  with pytest.raises(ValueError, match=f"config.layers.{name}"):
    made(slide, "tissue", **{name: str(tmp_path / "none")})
