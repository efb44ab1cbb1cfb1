"""Annotations of other programs, and how people rename their files."""

import gzip
import json

import pytest

from data_prep.wsi import annotation_files, annotations


def _vertices(tag, *points):
  return "".join(f'<{tag} X="{x}" Y="{y}"/>' for x, y in points)


BOX = ((10, 10), (30, 10), (30, 30), (10, 30))
INNER = ((15, 15), (20, 15), (20, 20), (15, 20))


def test_regions_of_imagescope(tmp_path):
  """A negative region is cut out; a ruler has no area."""
  text = (
    '<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="Tumor">'
    '<Regions><Region Id="7" Type="0" NegativeROA="0"><Vertices>'
    f"{_vertices('Vertex', *BOX)}</Vertices></Region>"
    '<Region Id="8" Type="0" NegativeROA="1"><Vertices>'
    f"{_vertices('Vertex', *INNER)}</Vertices></Region>"
    '<Region Id="9" Type="4" NegativeROA="0"><Vertices>'
    f"{_vertices('Vertex', *INNER)}</Vertices></Region>"
    "</Regions></Annotation></Annotations>"
  )
  path = tmp_path / "a.xml"
  path.write_text(text)
  found = annotations.read(path)
  assert [(p.name, p.group) for p in found.include] == [("Tumor 7", "Tumor")]
  assert [p.name for p in found.exclude] == ["Tumor 8"]
  assert found.skipped == ("Tumor 9: a Line has no area",)
  assert annotations.draw(found, (40, 40), 1).sum() == 20 * 20 - 5 * 5
  with pytest.raises(ValueError, match="groups \\['Tumor'\\] are not in"):
    annotations.read(path, include=("Other",))


def test_layers_of_halo(tmp_path):
  text = (
    '<Annotations><Annotation Name="Tumor"><Regions>'
    '<Region Type="Rectangle" NegativeROA="0"><Vertices>'
    f"{_vertices('V', (10, 10), (30, 20))}</Vertices></Region>"
    "</Regions></Annotation></Annotations>"
  )
  path = tmp_path / "a.annotations"
  path.write_text(text)
  found = annotations.read(path)
  assert annotations.draw(found, (40, 40), 1).sum() == 20 * 10
  path.write_text("<viewstates/>")
  with pytest.raises(ValueError, match="<viewstates> is neither"):
    annotations.read(path)


@pytest.mark.parametrize(
  ("properties", "group"),
  [
    ({"classification": {"name": "T", "colorRGB": -3670016}}, "T"),
    ({"classification": {"names": ["T", None, "deep"]}}, "T: deep"),
    ({"classification": {"name": None}}, ""),
    ({"classification": ["T"]}, "T"),
    ({"classification": None, "Class_Name": "T"}, "T"),
    ({"label": "T", "classification": 3}, "3"),
    (None, ""),
    ([1], ""),
  ],
)
def test_classes_however_they_are_called(tmp_path, properties, group):
  ring = [*BOX, BOX[0]]
  geometry = {"type": "Polygon", "coordinates": [ring]}
  text = json.dumps([{"geometry": geometry, "properties": properties}])
  path = tmp_path / "a.geojson.gz"
  path.write_bytes(gzip.compress(text.encode()))
  (found,) = annotations.read(path, include=None, exclude=()).include
  assert found.group == group


def test_files_of_slides_in_whatever_spelling(tmp_path):
  for name in ("S1.geojson.gz", "s2.XML", "S3.xml", "s3.geojson", ".S4.xml"):
    (tmp_path / name).touch()
  one, several = annotation_files.of_slides(tmp_path, ["S1.svs", "S2", "S3"])
  assert {k: v.name for k, v in one.items()} == {
    "S1.svs": "S1.geojson.gz",
    "S2": "s2.XML",
  }
  assert [v.name for v in several["S3"]] == ["S3.xml", "s3.geojson"]
