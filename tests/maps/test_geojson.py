"""Files for QuPath: what is written, by the rules of its parser."""

import copy
import json
import uuid

import numpy as np
import pytest

from data_prep.wsi import annotations
from tests.maps import qupath
from wsiseq_jax.maps import geojson, heatmaps, regions
from wsiseq_jax.maps.tile_map import TileMap


def ring_of_tiles():
  """Eight tiles of 80 px around a hole, on a slide of 400x320 px."""
  cells = [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (1, 3), (2, 3), (3, 3)]
  probability = np.linspace(0.6, 0.95, 8).astype(np.float32)
  return TileMap(
    slide_id="slide ü", patient_id="c", xy=np.array(cells) * 80.0,
    tile_size=80.0, unit="level0_px", level0_mpp=0.5, level0_size=(400, 320),
    attention=np.full(8, 0.125, np.float32), probability=probability,
    contribution=probability - 0.7, class_name="tumour",
    slide_probability=0.875, threshold=0.5, label=None,
  )  # fmt: skip


@pytest.fixture(scope="module")
def written():
  tile_map = ring_of_tiles()
  found = regions.find_regions(tile_map)
  features = geojson.region_features(found, tile_map)
  tiles = geojson.tile_features(tile_map)
  qupath.validate({"type": "FeatureCollection", "features": features + tiles})
  return {"features": [*features, tiles[0], tiles[7]]}


def test_a_region_is_an_annotation(written):
  region = written["features"][0]
  outer, hole = region["geometry"]["coordinates"]
  assert outer[0] == outer[-1] and hole[0] == hole[-1]
  assert np.min(outer, 0).tolist() == [80, 80]
  assert np.max(hole, 0).tolist() == [240, 240]
  properties = region["properties"]
  assert properties["objectType"] == "annotation"
  assert properties["name"] == "tumour 1"
  assert properties["classification"] == {
    "name": "tumour",
    "color": [214, 39, 40],
  }
  # Eight tiles of (40 um)².
  assert properties["measurements"] == {
    "Area mm^2": pytest.approx(0.0128),
    "Probability mean": pytest.approx(0.775),
    "Probability max": pytest.approx(0.95),
    "Tiles": 8,
  }
  assert properties["metadata"]["slide_id"] == "slide ü"
  assert properties["metadata"]["slide_probability"] == "0.875"


def test_tiles_are_tiles(written):
  tile_map = ring_of_tiles()
  first, last = written["features"][1:]
  assert first["properties"]["objectType"] == "tile"
  assert first["geometry"]["coordinates"] == [
    [[80, 80], [160, 80], [160, 160], [80, 160], [80, 80]]
  ]
  assert last["properties"]["measurements"] == {
    "Probability": pytest.approx(0.95),
    "Contribution": pytest.approx(0.25),
    "Attention": 0.125,
    "Tile": 7,
  }
  scores = np.asarray(tile_map.probability[7:], np.float64)
  paint = heatmaps.colours(scores, "probability")[0].tolist()
  assert last["properties"]["color"] == paint
  assert len(geojson.tile_features(tile_map)) == 8


def test_identifiers_stay_and_differ(written):
  ids = [uuid.UUID(f["id"]) for f in written["features"]]
  assert len(set(ids)) == 3 and {i.version for i in ids} == {5}
  again = geojson.tile_features(ring_of_tiles())
  assert again[0]["id"] == written["features"][1]["id"]


def test_what_is_written_reads_back(tmp_path):
  """Also through the corner of the scanned part, which QuPath takes off."""
  tile_map = ring_of_tiles()
  found = regions.find_regions(tile_map)
  path = tmp_path / "a.geojson"
  geojson.write(
    path, geojson.region_features(found, tile_map, bounds_xy=(30, 70))
  )
  stored = json.loads(path.read_text(encoding="utf-8"))
  outer = stored["features"][0]["geometry"]["coordinates"][0]
  assert np.min(outer, 0).tolist() == [50, 10]
  back = annotations.read(path, include=["tumour"], bounds_xy=(30, 70))
  mask = annotations.draw(back, tile_map.level0_size, 10)
  wanted = np.zeros((32, 40), bool)
  wanted[8:32, 8:32] = True
  wanted[16:24, 16:24] = False
  np.testing.assert_array_equal(mask, wanted)
  assert [p.name for p in tmp_path.iterdir()] == ["a.geojson"]


def test_nothing_broken_is_written(tmp_path, written):
  broken = copy.deepcopy(written["features"])
  broken[1]["properties"]["measurements"]["Probability"] = float("nan")
  with pytest.raises(ValueError, match="nan|NaN|JSON"):
    geojson.write(tmp_path / "a.geojson", broken)
  assert not list(tmp_path.iterdir())
