"""Windows and regions: areas by hand."""

import json

import cv2
import numpy as np
import pytest
import shapely

from data_prep.files.errors import SlideError
from wsiseq_jax.maps.tile_map import LEVEL0, TileMap
from wsiseq_jax.spatial import placing, regions

WHERE = placing.Place("s", "p", 0.5, (400, 200), (20, 0), (1.0,), None)


def geojson(path, *shapes):
  features = [
    {
      "type": "Feature",
      "geometry": {"type": "Polygon", "coordinates": rings},
      "properties": {"classification": {"name": name, "color": [1, 2, 3]}},
    }
    for name, rings in shapes
  ]
  path.write_text(
    json.dumps({"type": "FeatureCollection", "features": features})
  )
  return path


def box(x0, y0, x1, y1):
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def read(path, **drawn):
  return regions.read(path, WHERE, regions.Drawn(**drawn))


def test_annotations_with_holes_and_what_is_cut_out(tmp_path):
  path = geojson(
    tmp_path / "s.geojson",
    ("Tumor", [box(0, 0, 100, 100), box(10, 10, 30, 30)]),
    ("Exclusion", [box(80, 0, 200, 100)]),
  )
  found, notes = read(path)
  # (80 * 100 - 20 * 20) px of 0.25 µm², 10 µm further to the right.
  assert found.area == pytest.approx((8000 - 400) / 4) and notes == []
  assert found.bounds == (10, 0, 50, 50)


def test_overlapping_regions_are_joined_and_said(tmp_path):
  path = geojson(
    tmp_path / "s.geojson",
    ("Tumor", [box(0, 0, 100, 100)]),
    ("Tumor", [box(50, 0, 150, 100)]),
  )
  found, notes = read(path)
  assert found.area == pytest.approx(15000 / 4)
  assert [note.error for note in notes] == ["overlapping_regions"]
  assert "0.00125 mm²" in notes[0].message


def test_a_shape_that_crosses_itself_is_mended(tmp_path):
  bow = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
  found, _ = read(geojson(tmp_path / "s.geojson", ("Tumor", [bow])))
  assert found.is_valid and found.area == pytest.approx(5000 / 4)


def test_no_region_is_a_row(tmp_path):
  path = geojson(tmp_path / "s.geojson", ("Other", [box(0, 0, 9, 9)]))
  found, notes = read(path, ignore=("Other",))
  assert found is None and [note.error for note in notes] == ["no_region"]
  with pytest.raises(ValueError, match="'Other'"):
    read(path)


def test_regions_of_another_slide(tmp_path):
  path = geojson(tmp_path / "s.geojson", ("Tumor", [box(900, 0, 990, 9)]))
  with pytest.raises(ValueError, match="outside the slide of 400x200"):
    read(path)


def test_regions_on_glass_may_be_of_another_slide():
  tissue = shapely.box(0, 0, 100, 100)
  (note,) = regions.off_tissue(shapely.box(95, 0, 195, 100), tissue)
  assert note.error == "regions_off_tissue" and "only 5% of" in note.message
  assert not regions.off_tissue(shapely.box(80, 0, 180, 100), tissue)


def test_masks(tmp_path):
  mask = np.zeros((100, 200), np.uint8)
  mask[20:60, 30:100] = 255
  mask[30:40, 50:60] = 0
  cv2.imwrite(str(tmp_path / "s_mask.png"), mask)
  found, _ = read(tmp_path / "s_mask.png", mask_um=1.0)
  # A pixel is 1 µm, and so is what outlines are kept to.
  assert found.area == pytest.approx(40 * 70 - 100, rel=0.03)
  assert len(found.interiors) == 1
  mask[mask > 0] = 2
  mask[0, 0] = 1
  cv2.imwrite(str(tmp_path / "s_mask.png"), mask)
  again, _ = read(tmp_path / "s_mask.png", mask_um=1.0, include=("2",))
  assert again.equals(found)


def test_maps_of_mil(tmp_path):
  xy = np.array([[x, y] for y in (0, 100) for x in (0, 100, 200, 300)])
  probability = np.array([0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
  TileMap(
    "s", "p", xy.astype(float), 100.0, LEVEL0, 0.5, (400, 200),
    probability, probability, probability, "tumour", 0.9, 0.5, None,
  ).save(tmp_path / "s.npz")  # fmt: skip
  found, notes = read(tmp_path / "s.npz", threshold=0.5)
  assert found.area == pytest.approx(100 * 50, rel=0.02) and notes == []
  assert found.bounds == pytest.approx((0, 0, 100, 50), abs=0.1)
  none, notes = read(tmp_path / "s.npz", threshold=0.95)
  assert none is None and notes[0].error == "no_region"


def test_small_pieces_are_left_out(tmp_path):
  path = geojson(
    tmp_path / "s.geojson",
    ("Tumor", [box(0, 0, 100, 100)]),
    ("Tumor", [box(200, 0, 210, 10)]),
  )
  found, _ = read(path, min_area_um2=100.0)
  assert found.area == pytest.approx(2500)


def test_window_is_tissue_within_what_is_annotated():
  tissue = shapely.box(-50, 20, 150, 80)
  found = regions.window(WHERE, tissue, None)
  assert found.bounds == (0, 20, 150, 80)
  found = regions.window(WHERE, tissue, shapely.box(100, 0, 300, 50))
  assert found.bounds == (100, 20, 150, 50)
  with pytest.raises(SlideError, match="within what is annotated") as error:
    regions.window(WHERE, tissue, shapely.box(160, 0, 300, 50))
  assert error.value.error == "no_tissue"
  with pytest.raises(SlideError, match="no tissue"):
    regions.window(WHERE, shapely.Polygon(), None)


def test_window_around_cells():
  x, y = np.meshgrid(np.arange(0, 400, 10.0), np.arange(0, 300, 10.0))
  xy = np.stack([x.ravel(), y.ravel()], axis=1)
  xy = xy[np.hypot(xy[:, 0] - 200, xy[:, 1] - 150) > 100]
  found = regions.around(xy, close_um=20.0)
  # About 5 µm beyond the outermost cells, and into the disc.
  assert found.area == pytest.approx(400 * 300 - np.pi * 100**2, rel=0.05)
  assert isinstance(found, shapely.Polygon) and len(found.interiors) == 1
  assert shapely.contains_xy(found, 5, 5)
  assert not shapely.contains_xy(found, 200, 150)


def test_files_of_a_mil_job_are_found_in_its_maps(tmp_path):
  (tmp_path / "maps").mkdir()
  (tmp_path / "maps" / "S1.npz").touch()
  found = regions.find(str(tmp_path), ["s1.svs", "s2"], "data.regions")
  assert found == {"s1.svs": tmp_path / "maps" / "S1.npz"}
  with pytest.raises(ValueError, match="config.data.regions.* none of the 1"):
    regions.find(str(tmp_path), ["other"], "data.regions")
