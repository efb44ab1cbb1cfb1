"""Cells of every program, from files written by hand as these write them."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from wsiseq_jax.spatial import cell_files, cell_tables, points

SQUARE = [[10, 20], [14, 20], [14, 22], [10, 22], [10, 20]]


def feature(geometry, **properties):
  return {"type": "Feature", "geometry": geometry, "properties": properties}


def save(path, data):
  path.write_text(data if isinstance(data, str) else json.dumps(data))
  return path


def test_qupath_geojson(tmp_path):
  polygon = {"type": "Polygon", "coordinates": [SQUARE]}
  tumour = {"name": "Tumor", "color": [200, 0, 0]}
  cell = feature(
    {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
    objectType="cell",
    classification={"names": ["Tumor", "Positive"]},
    measurements=[{"name": "Detection probability", "value": 0.5}],
  )
  cell["nucleusGeometry"] = polygon
  data = {
    "type": "FeatureCollection",
    "features": [
      feature(
        polygon,
        objectType="detection",
        classification=tumour,
        measurements={"Area": 8.0, "Detection probability": 0.75},
      ),
      cell,
      feature(
        {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]},
        objectType="annotation",
        classification="Immune",
      ),
      feature(polygon, objectType="annotation", classification=tumour),
    ],
  }
  found = cell_files.read(save(tmp_path / "s.geojson", data))
  assert found.kind == "QuPath" and found.unit == "px"
  assert found.xy.tolist() == [[12, 21], [12, 21], [1, 2], [3, 4]]
  assert found.type.tolist() == [
    *("Tumor", "Tumor: Positive", "Immune", "Immune")
  ]
  np.testing.assert_array_equal(found.score, [0.75, 0.5, np.nan, np.nan])
  assert found.skipped == ("1 annotated areas are no cells",)


def test_qupath_cells_in_any_packing_and_what_is_no_cell(tmp_path):
  point = {"type": "Point", "coordinates": [1, 2, 0]}
  collection = {"type": "FeatureCollection", "features": [feature(point)]}
  mixed = {"type": "GeometryCollection", "geometries": [point]}
  data = [
    collection,
    point,
    feature(mixed),
    feature({"type": "Polygon", "coordinates": []}),
    feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}),
    feature(None),
  ]
  found = cell_files.read(save(tmp_path / "s.geojson", data))
  assert found.xy.tolist() == [[1, 2]] * 3
  assert found.skipped == (
    *("1 features have no geometry",),
    *("1 shapes are a LineString, and no cells",),
    *("1 shapes have no coordinates",),
  )


def test_hovernet(tmp_path):
  data = {
    "mag": 40,
    "nuc": {
      "1": {"centroid": [5.5, 6.5], "type": 2, "type_prob": 0.9, "bbox": []},
      "2": {"centroid": [7.0, 8.0], "type": None, "type_prob": None},
    },
  }
  found = cell_files.read(save(tmp_path / "s.json", data))
  assert found.xy.tolist() == [[5.5, 6.5], [7.0, 8.0]]
  assert found.type.tolist() == ["2", ""]
  np.testing.assert_array_equal(found.score, [0.9, np.nan])
  assert found.magnification == 40


def test_cellvit(tmp_path):
  data = {
    "wsi_metadata": {"base_mpp": 0.25},
    "type_map": {"1": "Neoplastic", "2": "Inflammatory"},
    "cells": [{"centroid": [30, 40], "type": 2, "type_prob": 0.8}],
  }
  found = cell_files.read(save(tmp_path / "s.json", data))
  assert (found.kind, found.mpp) == ("CellViT", 0.25)
  assert found.type.tolist() == ["Inflammatory"]
  assert found.xy.tolist() == [[30, 40]]


def test_stardist_counts_rows_first(tmp_path):
  np.savez(tmp_path / "s.npz", points=[[2, 30]], prob=[0.6])
  found = cell_files.read(tmp_path / "s.npz")
  assert found.xy.tolist() == [[30, 2]] and found.score.tolist() == [0.6]


@pytest.mark.parametrize("end", ["png", "tif"])
def test_label_images(tmp_path, end):
  picture = np.zeros((6, 8), np.uint16)
  picture[1:3, 2:6] = 1
  picture[5, 0] = 7
  path = tmp_path / f"s.{end}"
  if end == "png":
    cv2.imwrite(str(path), picture)
  else:
    tifffile.imwrite(path, picture)
  found = cell_files.read(path)
  assert found.xy.tolist() == [[4, 2], [0.5, 5.5]]
  assert found.size_px == (8, 6)


def test_cellpose_outlines(tmp_path):
  path = save(
    tmp_path / "s_cp_outlines.txt", "0,0,3,0,3,1,0,1\n\n8,8,9,8,9,9\n"
  )
  found = cell_files.read(path)
  np.testing.assert_allclose(
    found.xy, [[2.0, 1.0], [26 / 3 + 0.5, 25 / 3 + 0.5]]
  )


def test_asap_points(tmp_path):
  text = """<ASAP_Annotations><Annotations>
    <Annotation Type="Dot" PartOfGroup="immune"><Coordinates>
      <Coordinate Order="0" X="1.5" Y="2" /></Coordinates></Annotation>
    <Annotation Type="PointSet" PartOfGroup="None"><Coordinates>
      <Coordinate Order="0" X="3" Y="4" /><Coordinate Order="1" X="5" Y="6" />
    </Coordinates></Annotation>
    <Annotation Type="Polygon" PartOfGroup="x"><Coordinates/></Annotation>
    </Annotations></ASAP_Annotations>"""
  found = cell_files.read(save(tmp_path / "s.xml", text))
  assert found.xy.tolist() == [[1.5, 2], [3, 4], [5, 6]]
  assert found.type.tolist() == ["immune", "", ""]
  assert found.skipped == ("1 shapes are no points",)


QUPATH_TABLE = (
  "Image\tObject ID\tName\tClassification\tParent\tCentroid X µm\t"
  "Centroid Y µm\tDetection probability\n"
  "a.svs\t1\t\tTumor\tRoot\t{}\t20\t0.5\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("number", ["10.5", "10,5"])
def test_qupath_table(tmp_path, encoding, number):
  path = tmp_path / "s.tsv"
  path.write_bytes(QUPATH_TABLE.format(number).encode(encoding))
  found = cell_files.read(path)
  assert (found.kind, found.unit) == ("QuPath", "um")
  assert found.xy.tolist() == [[10.5, 20]]
  assert found.type.tolist() == ["Tumor"] and found.score.tolist() == [0.5]


def test_halo_boxes_and_markers(tmp_path):
  text = (
    "Image Location,Object Id,XMin,XMax,YMin,YMax,CD3 Positive Classification,"
    "CD8 Positive Classification\n"
    "C:\\x\\s.svs,0,10,20,30,50,1,1\nC:\\x\\s.svs,1,0,2,0,4,0,0\n"
  )
  found = cell_files.read(save(tmp_path / "s.csv", text))
  assert found.xy.tolist() == [[15, 40], [1, 2]]
  assert found.type.tolist() == ["CD3+CD8+", "negative"]
  assert (found.kind, found.unit) == ("HALO", "")


def test_plain_table_with_semicolons_and_a_scale(tmp_path):
  text = "X Centroid;Y Centroid;cell type;MPP\n1,5;2;a;0,5\nx;3;;0,5\n"
  found = cell_files.read(save(tmp_path / "s.csv", text))
  np.testing.assert_array_equal(found.xy, [[1.5, 2], [np.nan, 3]])
  assert found.type.tolist() == ["a", ""] and found.mpp == 0.5


def test_parquet_is_read_back(tmp_path):
  cells = points.Points.of("s", "p", np.array([[1.0, 2], [3, 4]]), ["b", ""])
  points.write(tmp_path / "s.parquet", cells, {"distance_um": np.zeros(2)})
  found = cell_files.read(tmp_path / "s.parquet")
  assert found.unit == "um" and found.xy.tolist() == [[1, 2], [3, 4]]
  assert found.type.tolist() == ["b", "cell"]
  again = points.read(tmp_path / "s.parquet")
  assert (again.slide_id, again.patient_id) == ("s", "p")
  assert again.counts() == {"b": 1, "cell": 1}
  assert again.xy_of("b").tolist() == [[1, 2]] and len(again.xy_of("no")) == 0


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("s.json", "{", "not a JSON file"),
    ("s.json", "3", "neither GeoJSON nor cells of HoVer-Net"),
    ("s.json", '{"nuc": {"1": {}}}', "odd cells"),
    ("s.csv", "a,b\n1,2\n", "want x and y of cells"),
    ("s.csv", "x,y,mpp\n1,2,0.5\n1,3,0.25\n", "scales"),
    ("s.csv", "", "not a table of cells"),
    ("s.xml", "<a/>", "neither <ASAP_Annotations>"),
    ("s.npy", "", "pickled"),
    ("s.doc", "", "cells are read from"),
    ("s_cp_outlines.txt", "1,2,x\n", "line 1"),
    ("s.parquet", "PAR1", "not a table of cells"),
    ("s.npz", "no", "no details of StarDist"),
    ("s.png", "no", "not a picture"),
    ("s.tif", "no", "s.tif: not a picture"),
  ],
)
def test_bad_files_say_what_is_wanted(tmp_path, name, text, message):
  path = save(tmp_path / name, text)
  with pytest.raises(ValueError, match=message):
    cell_files.read(path)


def test_a_mask_of_one_value_parts_no_cells(tmp_path):
  cv2.imwrite(str(tmp_path / "s.png"), np.eye(9, dtype=np.uint8) * 255)
  with pytest.raises(ValueError, match="does not part cells"):
    cell_files.read(tmp_path / "s.png")


def test_one_table_of_many_slides_is_split(tmp_path):
  text = "slide_id,x_um,y_um,type\na.svs,1,2,t\nb,3,4,\na.svs,5,6,u\n"
  found = cell_tables.split(save(tmp_path / "all.csv", text), tmp_path / "in")
  assert sorted(found) == ["a", "b"]
  first = cell_files.read(found["a"])
  assert first.xy.tolist() == [[1, 2], [5, 6]] and first.unit == "um"
  assert first.type.tolist() == ["t", "u"]
  assert cell_files.read(found["b"]).type.tolist() == [""]
  alone = save(tmp_path / "one.csv", "x_um,y_um\n1,2\n")
  assert cell_tables.split(alone, tmp_path / "other") == {}


def test_two_slides_in_one_table_of_points(tmp_path):
  table = {"slide_id": ["a", "b"], "patient_id": ["p", "p"]}
  table |= {"x_um": [1.0, 2.0], "y_um": [1.0, 2.0], "type": ["", ""]}
  table |= {"score": [0.0, 0.0]}
  pq.write_table(pa.table(table), tmp_path / "s.parquet")
  with pytest.raises(ValueError, match="want one"):
    points.read(tmp_path / "s.parquet")


def test_tables_of_cells_as_people_write_them(tmp_path):
  """Unknown words, a hint of Excel, a row that is cut."""
  text = "sep=|\nX (\u00b5m)|Y (\u00b5m)|Type|mpp\n1,5|2|NA|\n3|4\n5|6|T|0,5\n"
  path = tmp_path / "s.csv"
  path.write_bytes(text.encode("utf-16"))
  found = cell_files.read(path)
  assert found.xy.tolist() == [[1.5, 2], [5, 6]] and found.unit == "um"
  assert found.type.tolist() == ["", "T"] and found.mpp == 0.5
  (left_out,) = found.skipped
  assert left_out.startswith("1 rows have another number of cells")
  with pytest.raises(ValueError, match="two columns 'x_um'"):
    cell_files.read(save(path, "x_um,X_um,y_um\n1,2,3\n"))


def test_a_score_by_name(tmp_path):
  cell = feature(
    {"type": "Point", "coordinates": [1, 2]},
    objectType="detection",
    measurements={"Detection probability": 0.9, "DAB OD mean": 0.25},
  )
  data = {"type": "FeatureCollection", "features": [cell]}
  path = save(tmp_path / "s.geojson", data)
  assert cell_files.read(path).score.tolist() == [0.9]
  assert cell_files.read(path, "DAB OD mean").score.tolist() == [0.25]
  text = "x,y,prob,Nucleus: DAB OD mean\n1,2,0.9,0.5\n"
  path = save(tmp_path / "s.csv", text)
  assert cell_files.read(path).score.tolist() == [0.9]
  assert cell_files.read(path, "Nucleus: DAB OD mean").score.tolist() == [0.5]
  path = save(tmp_path / "s.xml", "<ASAP_Annotations/>")
  with pytest.raises(ValueError, match="'DAB', and these files have no"):
    cell_files.read(path, "DAB")
