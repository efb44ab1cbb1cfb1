"""Files for QuPath: what is written, and every rule of its parser."""

import copy
import json
import uuid

import numpy as np
import pytest

from data_prep.wsi import annotations
from wsiseq_jax.maps import geojson, heatmaps, regions
from wsiseq_jax.maps.tile_map import TileMap


def ring_of_tiles():
  """Eight tiles of 80 px around a hole, on a slide of 400x320 px."""
  cells = [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (1, 3), (2, 3), (3, 3)]
  probability = np.linspace(0.6, 0.95, 8).astype(np.float32)
  return TileMap(
    slide_id="slide ü", case_id="c", xy=np.array(cells) * 80.0, tile_size=80.0,
    unit="level0_px", level0_mpp=0.5, level0_size=(400, 320),
    attention=np.full(8, 0.125, np.float32), probability=probability,
    contribution=probability - 0.7, class_name="tumour",
    slide_probability=0.875, threshold=0.5, label=None,
  )  # fmt: skip


@pytest.fixture(scope="module")
def written():
  tile_map = ring_of_tiles()
  found = regions.find_regions(tile_map)
  return geojson.collection(
    geojson.region_features(found, tile_map, colour=(200, 0, 0))
    + geojson.tile_features(tile_map, [0, 7])
  )


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
    "color": [200, 0, 0],
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
  everything = geojson.tile_features(ring_of_tiles())
  assert len(everything) == 8
  with pytest.raises(ValueError, match="tile 8 is not one of 8"):
    geojson.tile_features(ring_of_tiles(), [8])


def test_identifiers_stay_and_differ(written):
  ids = [uuid.UUID(f["id"]) for f in written["features"]]
  assert len(set(ids)) == 3 and {i.version for i in ids} == {5}
  again = geojson.tile_features(ring_of_tiles(), [0])
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
  with pytest.raises(ValueError, match="feature 1: measurement 'Probability'"):
    geojson.write(tmp_path / "a.geojson", broken)
  assert not list(tmp_path.iterdir())


def test_plain_files_of_others_pass():
  geojson.validate(
    {
      "type": "FeatureCollection",
      "features": [
        {
          "type": "Feature",
          "geometry": {"type": "Point", "coordinates": [1, 2.5]},
          "properties": {"objectType": "detection", "classification": "Tumor"},
        },
        {
          "type": "Feature",
          "geometry": {
            "type": "MultiPolygon",
            "coordinates": [[[[0, 0], [1, 0], [1, 1], [0, 0]]]],
          },
          "properties": {
            "objectType": "annotation",
            "classification": {"names": ["a", "b"], "color": [0, 0, 255]},
            "isLocked": True,
          },
        },
      ],
    }
  )


# Path to what is broken, the value put there, and what is said.
RULES = [
  ("type", "Region", "type 'Region' is not 'Feature'"),
  ("id", "region-1", "id 'region-1' is not a UUID"),
  ("id", 7, "id 7 is not a UUID"),
  ("geometry", None, "'geometry' is not one of"),
  ("geometry/type", "Circle", "'geometry' is not one of"),
  ("geometry/coordinates", [], "Polygon with missing or empty coordinates"),
  ("geometry/coordinates", None, "Polygon with missing or empty coordinates"),
  ("geometry/coordinates/0", [[0, 0], [1, 0], [1, 1]], "is not closed"),
  (
    "geometry/coordinates/0",
    [[0, 0], [1, 0], [1, 1], [0, 1]],
    r"from \[0, 0\] to \[0, 1\], is not closed",
  ),
  ("geometry/coordinates/0", [[0, 0], [1, 1], [2, 2], [0, 0]], "has no area"),
  ("geometry/coordinates/0/1", [1, 2, 3], "is not \\[x, y\\]"),
  ("geometry/coordinates/0/1", [1, float("inf")], "not two finite numbers"),
  ("geometry/coordinates/0/1", ["1", 2], "not two finite numbers"),
  ("properties", None, "'properties' is not an object"),
  ("properties/objectType", "region", "objectType 'region' is not one of"),
  ("properties/classification", 3, "neither a text nor an object"),
  ("properties/classification", {"color": [1, 2, 3]}, "has no name"),
  ("properties/classification", {"name": "a"}, "has color None"),
  ("properties/classification/color", [1, 2], "has color \\[1, 2\\]"),
  ("properties/classification/color", [1, 2, 256], "from 0 to 255"),
  ("properties/classification/color", [0.5, 0, 0], "three whole numbers"),
  ("properties/measurements", [{"name": "a", "value": 1}], "not an object of"),
  ("properties/measurements/Tiles", "8", "measurement 'Tiles' is '8'"),
  ("properties/measurements/Tiles", True, "not a finite number"),
  ("properties/metadata", [], "'metadata' is not an object of texts"),
  ("properties/metadata/case_id", 5, "metadata 'case_id' is 5, not a text"),
  ("properties/color", "red", "color 'red' is not three numbers"),
  ("properties/name", 1, "name 1 is not a text"),
  ("properties/isLocked", "no", "isLocked 'no' is not true or false"),
]


@pytest.mark.parametrize("path, value, message", RULES)
def test_rules_of_qupath(written, path, value, message):
  broken = copy.deepcopy(written)
  # Another feature first: the number must be that of the broken one.
  broken["features"] = [broken["features"][1], broken["features"][0]]
  place = broken["features"][1]
  *parents, last = path.split("/")
  for key in parents:
    place = place[int(key) if isinstance(place, list) else key]
  place[int(last) if isinstance(place, list) else last] = value
  with pytest.raises(ValueError, match=f"^feature 1: .*{message}"):
    geojson.validate(broken)


def test_rules_of_the_collection(written):
  with pytest.raises(ValueError, match="not an object of type"):
    geojson.validate([])
  with pytest.raises(ValueError, match="'features' is not a list"):
    geojson.validate({"type": "FeatureCollection"})
  with pytest.raises(ValueError, match="feature 0: not an object"):
    geojson.validate({"type": "FeatureCollection", "features": [None]})
  feature = written["features"][0]
  with pytest.raises(ValueError, match="feature 1: its id .* feature 0, too"):
    geojson.collection([feature, feature])
