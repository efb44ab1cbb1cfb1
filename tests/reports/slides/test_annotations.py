"""What people drew on a slide, beside what models say."""

import json

import cv2
import numpy as np
import pytest

from tests.reports.slides.report_pages import (
  FAILED,
  MISSING,
  Page,
  configured,
  rows_of,
  slide_folder,
  write_report,
)
from wsiseq_jax.maps import annotations
from wsiseq_jax.maps.regions import Region
from wsiseq_jax.maps.tile_map import TileMap

GROUPS = {
  "annotation_include": (), "annotation_exclude": (), "annotation_ignore": (),
}  # fmt: skip


def box(left, top, right, bottom):
  return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_asap(path, *shapes):
  """Shapes are (group, points)."""
  parts = []
  for group, points in shapes:
    each = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in points)
    parts.append(
      f'<Annotation Name="one" Type="Polygon" PartOfGroup="{group}">'
      f"<Coordinates>{each}</Coordinates></Annotation>"
    )
  text = "".join(parts)
  path.write_text(f"<ASAP_Annotations>{text}</ASAP_Annotations>")


@pytest.fixture
def tile_map():
  """Of a slide of 100 x 80 pixels of 2 um."""
  return TileMap(
    "s", "c", np.zeros((1, 2)), 10.0, "level0_px", 2.0, (100, 80),
    *(np.ones(1, np.float32),) * 3, "yes", 0.5, 0.5, None,
  )  # fmt: skip


def read(path, tile_map, bounds=(0, 0), regions=(), **groups):
  return annotations.read(
    path, tile_map, bounds, 4.0, regions, {**GROUPS, **groups}
  )


def test_area_and_share_in_regions(tmp_path, tile_map):
  path = tmp_path / "s.xml"
  write_asap(path, ("_0", box(20, 20, 60, 60)), ("_2", box(20, 20, 40, 60)))
  ring = np.array([*box(50, 0, 100, 80), [50, 0]], float)
  region = Region((ring,), 1.0, 0.5, 0.5, 1)
  found = read(path, tile_map, regions=[region])
  # 20 x 40 pixels of 4 um² are left; the right half lies in the region.
  assert found.area_mm2 == pytest.approx(0.0032)
  assert found.in_regions == pytest.approx(0.5)
  assert [ring.tolist() for ring in found.rings] == [box(20, 20, 60, 60)]
  assert [ring.tolist() for ring in found.cut_out] == [box(20, 20, 40, 60)]
  # The bounds are QuPath's.
  assert read(path, tile_map, (10, 4)).rings[0][0].tolist() == [20, 20]
  assert read(path, tile_map).in_regions == 0
  # What is asked for is no longer cut out.
  left = read(
    path, tile_map, annotation_include=("_2",), annotation_ignore=("_0",)
  )
  assert left.area_mm2 == pytest.approx(0.0032) and not left.cut_out


def test_qupath_counts_from_the_scanned_part(tmp_path, tile_map):
  path = tmp_path / "s.geojson"
  ring = box(0, 0, 20, 10)
  feature = {
    "type": "Feature",
    "properties": {"classification": {"name": "Tumor"}},
    "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
  }
  point = {"type": "Point", "coordinates": [1, 1]}
  both = [feature, {**feature, "geometry": point}]
  path.write_text(json.dumps({"type": "FeatureCollection", "features": both}))
  found = read(path, tile_map, (30, 6))
  assert found.rings[0].tolist() == box(30, 6, 50, 16)
  assert found.area_mm2 == pytest.approx(200 * 4e-6)
  assert "Point has no area" in found.skipped[0]
  path.write_text("[]")
  found = read(path, tile_map)
  assert found.area_mm2 == 0 and np.isnan(found.in_regions)


def test_a_mask(tmp_path, tile_map):
  mask = np.zeros((20, 25), np.uint8)
  mask[5:10, 10:20] = 255  # of 4 x 4 level-0 pixels
  path = tmp_path / "s_mask.png"
  cv2.imwrite(str(path), mask)
  found = read(path, tile_map)
  assert found.area_mm2 == pytest.approx(50 * 16 * 4e-6)
  (ring,) = found.rings
  np.testing.assert_allclose(ring.min(axis=0), [40, 20], atol=1)
  np.testing.assert_allclose(ring.max(axis=0), [80, 40], atol=1)
  classes = np.where(mask, 2, 1).astype(np.uint8)
  cv2.imwrite(str(path), classes)
  with pytest.raises(ValueError, match="annotation_include"):
    read(path, tile_map)
  again = read(path, tile_map, annotation_include=("2",))
  assert again.area_mm2 == found.area_mm2
  with pytest.raises(ValueError, match="has not the shape of the slide"):
    cv2.imwrite(str(path), mask[:10])
    read(path, tile_map)


def test_files_by_name(tmp_path):
  ids = ["a", "b", "c"]
  assert annotations.find("", ids) == {}
  with pytest.raises(ValueError, match="gone'?: no such folder"):
    annotations.find(str(tmp_path / "gone"), ids)
  with pytest.raises(ValueError, match="none of the 3 .* such as a.xml"):
    annotations.find(str(tmp_path), ids)
  for name in ("a.xml", "b_mask.tif", "other.xml"):
    (tmp_path / name).touch()
  found = annotations.find(str(tmp_path), ids)
  assert {k: path.name for k, path in found.items()} == {
    "a": "a.xml", "b": "b_mask.tif",
  }  # fmt: skip
  (tmp_path / "a.geojson").touch()
  with pytest.raises(ValueError, match="'a' has two files, a.geojson and a.x"):
    annotations.find(str(tmp_path), ids)
  doubled = {}
  assert list(annotations.find(str(tmp_path), ids, doubled=doubled)) == ["b"]
  assert "'a' has two files" in doubled["a"]


@pytest.mark.parametrize(
  "file", ["S1.GEOJSON", "s1.xml", "S1.svs.geojson", "S1_mask.png"]
)
def test_files_in_any_spelling(tmp_path, file):
  (tmp_path / file).touch()
  (tmp_path / "S10.xml").touch()
  found = annotations.find(str(tmp_path), ["S1", "S2"])
  assert found == {"S1": tmp_path / file}


def test_a_broken_file_costs_its_annotations(made, tmp_path, monkeypatch):
  drawn = tmp_path / "drawn"
  drawn.mkdir()
  feature = {"type": "Feature", "properties": {"classification": "Tumor"},
             "geometry": {"type": "Polygon", "coordinates": []}}  # fmt: skip
  (drawn / "syn_00.geojson").write_text(json.dumps(feature))
  config = configured(made, made / "slides", out=str(tmp_path / "out"))
  config.data.annotations = str(drawn)
  written = write_report(config)
  assert set(written.problems) == {MISSING, "syn_00"}
  assert "'feature 0' has no coordinates" in written.problems["syn_00"]
  # Nor does what a library raises, whatever it is; it is in the log.
  monkeypatch.setattr(annotations, "read", lambda *unused: [][1])
  (drawn / "syn_00.geojson").write_text("{}")
  written = write_report(config)
  assert "list index out of range" in written.problems["syn_00"]
  assert (slide_folder(written, "syn_00") / "index.html").is_file()
  log = (written.page.parent / "errors.log").read_text()
  assert "syn_00 [report]" in log and "IndexError" in log


def test_on_the_page(made, tmp_path):
  drawn = tmp_path / "drawn"
  drawn.mkdir()
  shapes = ("_0", box(100, 80, 300, 180)), ("_2", box(100, 80, 150, 180))
  # Without its file, too, a slide's size is known from the features.
  for name in ("syn_00", MISSING, FAILED):
    write_asap(drawn / f"{name}.xml", *shapes)
  write_asap(drawn / "syn_02.xml", ("Stroma", box(0, 0, 9, 9)))
  config = configured(made, made / "slides", out=str(tmp_path / "out"))
  config.data.annotations = str(drawn)
  written = write_report(config)
  page = slide_folder(written, "syn_00") / "index.html"
  text = Page(page).text
  # 150 x 100 pixels of 1 um, up to the width of a pixel of the map.
  mm2 = TileMap.load(made / "maps" / "syn_00.npz").level0_mpp ** 2 * 0.015
  words = text[text.index("Annotations from syn_00.xml: ") :].split()
  assert float(words[3]) == pytest.approx(mm2, rel=0.05)
  assert "cut out of the annotation" in text
  # Slide and three maps, rim and ink; and in the key.
  assert page.read_text().count('"people cut ') == 2 * 4 + 2
  text = Page(slide_folder(written, MISSING) / "index.html").text
  assert f"Annotations from {MISSING}.xml: " in text
  # What cannot be read is said, and the page is there all the same.
  assert set(written.problems) == {MISSING, "syn_02"}
  errors = {r["slide_id"]: r["message"] for r in rows_of(
    written.page.parent / "errors.csv")}  # fmt: skip
  assert "groups ['Stroma'] are not in include" in errors["syn_02"]
  text = Page(slide_folder(written, "syn_02") / "index.html").text
  assert (
    "Annotations are not shown: " in text and "Annotations from" not in text
  )
  # A page depends on its own annotations alone.
  assert write_report(config).drawn == 0
  write_asap(drawn / "syn_00.xml", shapes[0])
  assert write_report(config).drawn == 1
  assert "people cut" not in page.read_text()
  config.data.annotation_ignore = ("Stroma",)
  written = write_report(config)
  assert "syn_02" not in written.problems
  text = Page(slide_folder(written, "syn_02") / "index.html").text
  assert "nothing with an area is drawn" in text
  (drawn / "syn_02.xml").unlink()
  written = write_report(config)
  assert written.drawn == 1
  text = Page(slide_folder(written, "syn_02") / "index.html").text
  assert "has no file of annotations, others of the cohort have" in text
