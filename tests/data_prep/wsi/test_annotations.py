"""Polygons and masks against pixels counted by hand."""

import json

import cv2
import numpy as np
import pytest
import tifffile

from data_prep.wsi import annotation_masks, annotations

SQUARE = ((10, 10), (50, 10), (50, 30), (10, 30))


def asap(path, shapes):
  """Writes (name, group, type, points) as ASAP does."""
  items = []
  for name, group, kind, points in shapes:
    coordinates = "".join(
      f'<Coordinate Order="{i}" X="{x}" Y="{y}" />'
      for i, (x, y) in enumerate(points)
    )
    items.append(
      f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" '
      f'Color="#F4FA58"><Coordinates>{coordinates}</Coordinates></Annotation>'
    )
  path.write_text(
    '<?xml version="1.0"?><ASAP_Annotations><Annotations>'
    + "".join(items)
    + '</Annotations><AnnotationGroups><Group Name="_0" PartOfGroup="None" '
    'Color="#00ff00"><Attributes /></Group></AnnotationGroups>'
    "</ASAP_Annotations>"
  )
  return path


def test_camelyon_groups_become_tumour_with_holes(tmp_path):
  file = asap(
    tmp_path / "tumor_001.xml",
    [
      ("a", "_0", "Polygon", SQUARE),
      ("b", "_1", "Spline", [(60, 0), (80, 0), (80, 10), (60, 10)]),
      ("cut", "_2", "Polygon", [(20, 10), (30, 10), (30, 20), (20, 20)]),
      # An island within what is cut out stays out, as in the official masks.
      ("isle", "_0", "Polygon", [(20, 10), (30, 10), (30, 15), (20, 15)]),
      ("mark", "_0", "Dot", [(1, 1)]),
      ("slip", "_0", "Polygon", [(1, 1), (2, 2)]),
    ],
  )
  found = annotations.read(file)
  assert [p.name for p in found.include] == ["a", "b", "isle"]
  assert [p.name for p in found.exclude] == ["cut"]
  assert found.skipped == (
    "mark: a Dot has no area",
    "slip: 2 points have no area",
  )
  mask = annotations.draw(found, (90, 40), 10)
  assert mask.astype(int).tolist() == [
    [0, 0, 0, 0, 0, 0, 1, 1, 0],
    [0, 1, 0, 1, 1, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
  ]


def test_points_are_taken_in_their_order(tmp_path):
  file = asap(tmp_path / "a.xml", [("a", "_0", "Polygon", SQUARE)])
  text = file.read_text()
  # Swap two lines, not their numbers.
  one = '<Coordinate Order="1" X="50" Y="10" />'
  two = '<Coordinate Order="2" X="50" Y="30" />'
  swapped = text.replace(one + two, two + one)
  assert swapped != text
  file.write_text(swapped)
  ring = annotations.read(file).include[0].rings[0]
  assert ring.tolist() == [list(point) for point in SQUARE]


def test_slopes_follow_pixel_centres():
  # The triangle below x = y: centres (c + .5, r + .5) with c < r are inside;
  # those on the line are on a right edge, hence outside.
  triangle = np.array([[0.0, 0.0], [4.0, 4.0], [0.0, 4.0]])
  mask = annotations.fill([triangle], (4, 4))
  assert mask.tolist() == np.tri(4, 4, -1).astype(bool).tolist()
  # The other half takes them: together they fill the square once.
  other = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
  rest = annotations.fill([other], (4, 4))
  assert (mask ^ rest).all()


def test_filling_is_that_of_many_crossings():
  """Against the rule itself: an odd number of edges to the left."""
  rng = np.random.default_rng(0)
  ring = rng.uniform(-5, 25, (40, 2))  # crosses itself, and the border
  mask = annotations.fill([ring], (18, 20))
  x, y = np.meshgrid(np.arange(20) + 0.5, np.arange(18) + 0.5)
  wanted = np.zeros((18, 20), bool)
  for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
    with np.errstate(divide="ignore", invalid="ignore"):
      at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    wanted ^= ((y0 <= y) != (y1 <= y)) & (at <= x)
  assert 50 < mask.sum() < 310
  np.testing.assert_array_equal(mask, wanted)


def feature(kind, coordinates, **properties):
  return {
    "type": "Feature",
    "geometry": {"type": kind, "coordinates": coordinates},
    "properties": {"objectType": "annotation", **properties},
  }


def test_qupath_classes_holes_and_bounds(tmp_path):
  def ring(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]

  tumour = {"name": "Tumor", "color": [200, 0, 0]}
  file = tmp_path / "a.geojson"
  features = [
    feature("Polygon", [ring(0, 0, 40), ring(10, 10, 10)], name="big",
            classification=tumour),
    feature("MultiPolygon", [[ring(50, 0, 10)], [ring(70, 0, 10)]],
            classification={"names": ["Tumor"], "color": [200, 0, 0]}),
    feature("Polygon", [ring(0, 0, 10)], classification="Exclusion"),
    feature("Polygon", [ring(0, 30, 10)], classification="Stroma"),
    feature("Point", [3, 3]),
  ]  # fmt: skip
  file.write_text(
    json.dumps({"type": "FeatureCollection", "features": features})
  )
  with pytest.raises(ValueError, match=r"groups \['Stroma'\] are not in"):
    annotations.read(file)
  found = annotations.read(file, ignore=["Stroma"], bounds_xy=(10, 20))
  assert found.skipped == ("feature 4: a Point has no area",)
  mask = annotations.draw(found, (100, 60), 10)
  assert mask.astype(int).tolist() == [
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 1, 1, 1, 0, 1, 0, 1, 0],
    [0, 1, 0, 1, 1, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 0, 0, 0, 0, 0],
  ]
  # A plain list, as older QuPath writes.
  file.write_text(json.dumps(features[:1]))
  assert len(annotations.read(file).include[0].rings) == 2


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("a.csv", "", "are read from .xml"),
    ("a.xml", "<nothing", "not an XML file"),
    ("a.xml", "<svg></svg>", "<svg> is neither <ASAP_Annotations>"),
    ("a.json", "{", "not a JSON file"),
    ("a.json", '"text"', "neither a FeatureCollection nor a list"),
  ],
)
def test_what_is_no_annotation_is_refused(tmp_path, name, text, message):
  file = tmp_path / name
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    annotations.read(file)


def polygons(tmp_path, *geometries):
  file = tmp_path / "odd.geojson"
  features = [{"type": "Feature", "geometry": g} for g in geometries]
  # A byte order mark, as some programs of Windows leave it.
  file.write_text(json.dumps(features), encoding="utf-8-sig")
  return annotations.read(file, include=[""])


def test_features_without_a_shape_are_noted(tmp_path):
  good = {"type": "Polygon", "coordinates": [SQUARE]}
  collection = {"type": "GeometryCollection", "geometries": [good, None]}
  found = polygons(
    tmp_path,
    good,
    None,
    {"type": "MultiPolygon", "coordinates": []},
    {"type": "GeometryCollection", "geometries": []},
    collection,
  )
  assert [p.name for p in found.include] == ["feature 0", "feature 4"]
  assert found.skipped == tuple(
    f"feature {n}: it has no geometry" for n in (1, 2, 3)
  )


def _packings():
  """One polygon, as programs pack it into a file."""
  polygon = {"type": "Polygon", "coordinates": [[[*xy, 7.5] for xy in SQUARE]]}
  feature = {"type": "Feature", "geometry": polygon, "properties": {}}
  whole = {"type": "FeatureCollection", "features": [feature]}
  nested = polygon
  for _ in range(3):
    nested = {"type": "GeometryCollection", "geometries": [nested]}
  crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC::CRS84"}}
  return {
    "in a list": [whole],
    "in a collection": {**whole, "features": [whole]},
    "with a crs": {**whole, "crs": crs},
    "nested": {**feature, "geometry": nested},
    "bare": polygon,
    "in small letters": {**polygon, "type": "polygon"},
  }


@pytest.mark.parametrize("packing", _packings())
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_polygon_in_any_packing(tmp_path, packing, encoding):
  path = tmp_path / "a.geojson"
  path.write_bytes(json.dumps(_packings()[packing]).encode(encoding))
  found = annotations.read(path, include=None)
  (ring,) = (ring for one in found.include for ring in one.rings)
  assert not found.skipped
  np.testing.assert_array_equal(ring, SQUARE)


def test_a_feature_a_line(tmp_path):
  line = json.dumps(_packings()["bare"])
  path = tmp_path / "a.geojson"
  path.write_text(f"{line}\n\n\x1e{line}\n")
  assert len(annotations.read(path, include=None).include) == 2


def test_a_file_that_nests_too_deep_is_refused(tmp_path):
  path = tmp_path / "a.geojson"
  path.write_text("[" * 100_000)
  with pytest.raises(ValueError, match="a.geojson: not a JSON file"):
    annotations.read(path)


def test_decimal_commas_in_xml(tmp_path):
  path = tmp_path / "a.xml"
  points = "".join(
    f'<Coordinate Order="{i}" X="{x},125" Y="{y},5"/>'
    for i, (x, y) in enumerate([(0, 0), (4, 0), (4, 8)])
  )
  path.write_text(
    '<ASAP_Annotations><Annotation PartOfGroup=" Tumor " Type="Polygon">'
    f"<Coordinates>{points}</Coordinates></Annotation></ASAP_Annotations>"
  )
  (one,) = annotations.read(path).include
  assert one.rings[0].tolist() == [[0.125, 0.5], [4.125, 0.5], [4.125, 8.5]]


@pytest.mark.parametrize(
  "coordinates",
  [None, [], [None], [[None] * 4], [[[1, 2], [3, None], [5, 6]]],
   [[[1], [2], [3]]], [["a", "b", "c"]], [{"x": 1}], 7, [[[1, 2], 3, [4, 5]]]],
)  # fmt: skip
def test_polygons_that_lost_their_coordinates_are_refused(
  tmp_path, coordinates
):
  for kind in ("Polygon", "MultiPolygon"):
    nested = coordinates if kind == "Polygon" else [coordinates]
    with pytest.raises(ValueError, match="'feature 0' has"):
      polygons(tmp_path, {"type": kind, "coordinates": nested})


def test_bad_coordinates_and_places_are_refused(tmp_path):
  file = asap(tmp_path / "a.xml", [("far", "_0", "Polygon", SQUARE)])
  with pytest.raises(ValueError, match="'far' .* lies outside the slide"):
    annotations.draw(annotations.read(file), (9, 9), 1)
  file.write_text(file.read_text().replace('X="50"', 'X="fifty"'))
  with pytest.raises(ValueError, match="'far' has no number in"):
    annotations.read(file)
  file.write_text(file.read_text().replace('X="fifty"', 'X="nan"'))
  with pytest.raises(ValueError, match="'far' has coordinates that are not"):
    annotations.read(file)
  geojson = tmp_path / "b.json"
  geojson.write_text(json.dumps([feature("Polygon", [[[0, 0], [1], [2, 2]]])]))
  with pytest.raises(ValueError, match="odd coordinates"):
    annotations.read(geojson, include=[""])


def test_mask_pictures(tmp_path):
  # A slide of 83x40 level-0 px; its mask is at 1/4 and drops the last column.
  picture = np.zeros((10, 20), np.uint8)
  picture[4:8, 8:16] = 255
  picture[0, 0] = 90  # noise of a JPEG
  cv2.imwrite(str(tmp_path / "m.png"), picture)
  mask = annotation_masks.read_mask(tmp_path / "m.png", (83, 40), 8)
  wanted = np.zeros((5, 11), bool)
  wanted[2:4, 4:8] = True
  np.testing.assert_array_equal(mask, wanted)
  with pytest.raises(ValueError, match="has not the shape of the slide"):
    annotation_masks.read_mask(tmp_path / "m.png", (83, 80), 8)
  labels = np.where(picture == 255, 2, 1).astype(np.uint8)
  cv2.imwrite(str(tmp_path / "l.png"), labels)
  found = annotation_masks.read_mask(
    tmp_path / "l.png", (83, 40), 8, values=[2]
  )
  np.testing.assert_array_equal(found, wanted)
  # Nobody says which of several classes count.
  with pytest.raises(ValueError, match=r"values \[1, 2\]: name those"):
    annotation_masks.read_mask(tmp_path / "l.png", (83, 40), 8)
  cv2.imwrite(str(tmp_path / "c.png"), np.uint8([[[1, 2, 3]]]))
  with pytest.raises(ValueError, match="colour picture"):
    annotation_masks.read_mask(tmp_path / "c.png", (1, 1), 1)
  with pytest.raises(ValueError, match="not a picture"):
    annotation_masks.read_mask(tmp_path / "none.png", (1, 1), 1)


def test_pyramids_are_read_at_the_level_that_fits(tmp_path):
  full = np.zeros((64, 96), np.uint8)
  full[16:48, 32:64] = 1
  path = tmp_path / "m.tif"
  with tifffile.TiffWriter(path) as file:
    file.write(full, subifds=2, tile=(16, 16))
    file.write(full[::4, ::4], subfiletype=1, tile=(16, 16))
    # The coarsest says something else, so that reading it shows.
    file.write(np.zeros((4, 6), np.uint8), subfiletype=1, tile=(16, 16))
  mask = annotation_masks.read_mask(path, (96, 64), 4)
  np.testing.assert_array_equal(mask, full[::4, ::4] > 0)
  assert annotation_masks.read_mask(path, (96, 64), 2).sum() == 16 * 16
  assert annotation_masks.read_mask(path, (96, 64), 8).sum() == 4 * 4
  assert annotation_masks.read_mask(path, (96, 64), 16).sum() == 0
  path.write_bytes(b"II*\0 and no more")
  with pytest.raises(ValueError, match="not a picture that is read"):
    annotation_masks.read_mask(path, (96, 64), 4)


def test_mask_of_a_long_narrow_slide_has_one_factor(tmp_path):
  """120,000 x 2,100 px over 1875 x 32: 64 both ways, not 65.6 and 66 down."""
  drawn = np.zeros((32, 1875), np.uint8)
  drawn[:16, :100] = 255
  path = tmp_path / "mask.png"
  cv2.imwrite(str(path), drawn)
  found = annotation_masks.read_mask(path, (120_000, 2_100), 32.0)
  assert found[:32, :200].all() and found.sum() == 32 * 200
