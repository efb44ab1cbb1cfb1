"""Files of annotations as programs write them: XML, GeoJSON of anybody.

What the shapes mean is for whoever reads them: areas (`annotations.py`), or
cells.
"""

import dataclasses
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from data_prep.files import aliases, names

# ASAP, ImageScope, HALO; GeoJSON counts from the corner of the scanned part, as
# QuPath does.
XML = (".xml", ".annotations")
GEOJSON = (".geojson", ".json", ".geojson.gz", ".json.gz")
POLYGONS = (*XML, *GEOJSON)
_GEOMETRIES = {
  kind.lower(): kind
  for kind in (
    *("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon"),
    *("MultiPolygon", "GeometryCollection"),
  )
}


# Keys of QuPath, and what people rename it to.
_CLASS_KEYS = ("classification", "class", "classname", "label", "category")
_NO_AREA = ("3", "4", "5", "Ruler", "Arrow", "Line")  # of ImageScope and HALO


def is_polygons(path: str | os.PathLike) -> bool:
  """Whether a file is named as those of annotations are."""
  return os.fspath(path).lower().endswith(POLYGONS)


def is_geojson(path: str | os.PathLike) -> bool:
  """Whether a file is named as GeoJSON is."""
  return os.fspath(path).lower().endswith(GEOJSON)


def of_slides(
  folder: pathlib.Path, ids: Sequence[str], ends: Sequence[str] = POLYGONS
) -> tuple[dict[str, pathlib.Path], dict[str, list[pathlib.Path]]]:
  """Files of a folder that are named after slides, in whatever spelling.

  Args:
    folder: where they are.
    ids: the slides.
    ends: how the files end after the slide's name, longer ones first.

  Returns:
    The file of each slide that has one, and the files of those with several.
  """
  files: dict[str, list[pathlib.Path]] = {}
  for path in sorted(folder.iterdir()):
    end = next((end for end in ends if path.name.lower().endswith(end)), "")
    if end and path.name[0] != ".":
      key = names.folded(names.stem(path.name[: -len(end)]))
      files.setdefault(key, []).append(path)
  found = names.match(ids, files)
  one = {k: v[0] for k, v in found.items() if len(v) == 1}
  return one, {k: v for k, v in found.items() if len(v) > 1}


@dataclasses.dataclass(frozen=True)
class XmlShape:
  """A shape of an XML file."""

  name: str  # what the file calls it
  kind: str  # 'Polygon', 'Spline', 'Rectangle', 'Dot', 'PointSet', ...
  group: str  # its group
  points: tuple[tuple[float, float], ...]  # x, y in their order, level-0 pixels
  is_cut: bool = False  # whether it is cut out of the others


def xml(path: str | os.PathLike) -> list[XmlShape]:
  """Reads the shapes of a file of ASAP, ImageScope or HALO.

  Raises:
    ValueError: it is no such file, or a place is no number.
  """
  try:
    root = ElementTree.parse(path).getroot()
  except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
    raise ValueError(f"{path}: not an XML file: {error}") from error
  readers = {"ASAP_Annotations": _asap, "Annotations": _regions}
  if root.tag not in readers:
    raise ValueError(
      f"{path}: <{root.tag}> is neither <ASAP_Annotations> nor the "
      "<Annotations> of ImageScope and HALO"
    )
  return list(readers[root.tag](path, root))


def _asap(path, root: ElementTree.Element) -> Iterator[XmlShape]:
  for number, item in enumerate(root.iter("Annotation")):
    name = item.get("Name", f"annotation {number}")
    points = item.findall("./Coordinates/Coordinate")
    kind, group = item.get("Type", "Polygon"), item.get("PartOfGroup", "")
    places = _places(path, name, points)
    yield XmlShape(name, kind, group.strip(), places)


def _regions(path, root: ElementTree.Element) -> Iterator[XmlShape]:
  """Layers of regions, as ImageScope and HALO write them."""
  for layer in root.iter("Annotation"):
    said = {a.get("Name"): a.get("Value") for a in layer.iter("Attribute")}
    group = layer.get("Name") or said.get("Description") or ""
    for number, item in enumerate(layer.iter("Region")):
      name = item.get("Text") or f"{group} {item.get('Id', number)}".strip()
      places = _places(path, name, [*item.iter("Vertex"), *item.iter("V")])
      kind = item.get("Type", "0")
      if kind in ("2", "Ellipse"):
        kind = "Ellipse"
      elif kind in _NO_AREA:
        kind = "Line"
      else:
        is_box = len(places) == 2 and kind in ("1", "Rectangle")
        places = _corners(places) if is_box else places
        kind = "Polygon"
      is_cut = item.get("NegativeROA", "0") not in ("0", "")
      yield XmlShape(name, kind, group.strip(), places, is_cut)


def _corners(places):
  (x0, y0), (x1, y1) = places
  return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _places(path, name: str, points) -> tuple[tuple[float, float], ...]:
  try:
    points = sorted(points, key=lambda point: _number(point.get("Order", "0")))
    return tuple((_number(p.get("X")), _number(p.get("Y"))) for p in points)
  except (TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f"{path}: {name!r} has no number in an Order, X or Y"
    ) from error


def _number(text: str | None) -> float:
  """A number whose decimal sign is that of the writer's country."""
  return float(text.replace(",", "."))


def load_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file in any Unicode, gzipped or not, or of a value a line.

  Raises:
    ValueError: it is none, or nests too deep.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    if content[:2] == b"\x1f\x8b":
      content = gzip.decompress(content)
    text = content.decode(json.detect_encoding(content))
    try:
      return json.loads(text)
    except json.JSONDecodeError as error:
      if error.msg != "Extra data":
        raise
      lines = (line.strip("\x1e \t\r") for line in text.split("\n"))
      return [json.loads(line) for line in lines if line]
  except (ValueError, RecursionError, OSError, EOFError, zlib.error) as error:
    raise ValueError(f"{path}: not a JSON file: {error}") from error


def features(data: Any) -> Iterator[dict[str, Any]]:
  """The features of GeoJSON, however they are packed.

  Args:
    data: a collection, a feature, a bare geometry, or a list of these.

  Yields:
    Features; one without geometry has none, or nothing at all.

  Raises:
    ValueError: something else.

  Example:
    >>> point = {"type": "Point", "coordinates": [1, 2]}
    >>> whole = {"type": "FeatureCollection", "features": [{"geometry": None}]}
    >>> [one["geometry"] is None for one in features([whole, point])]
    [True, False]
  """
  if isinstance(data, list):
    for item in data:
      if isinstance(item, dict | list):
        yield from features(item)
      else:
        yield {}
  elif isinstance(data, dict) and "features" in data:
    if not isinstance(data["features"], list):
      raise ValueError("its features are no list")
    yield from features(data["features"])
  elif isinstance(data, dict) and kind_of(data) in _GEOMETRIES.values():
    yield {"geometry": data}
  elif isinstance(data, dict):
    yield data
  else:
    raise ValueError("neither a FeatureCollection nor a list")


def shapes(geometry: Any) -> Iterator[tuple[str, Any]]:
  """The parts of a geometry: kind and coordinates of each."""
  if not isinstance(geometry, dict):
    return
  kind = kind_of(geometry)
  if kind == "GeometryCollection":
    for part in geometry.get("geometries") or ():
      yield from shapes(part)
  elif kind == "MultiPolygon":
    for rings in geometry.get("coordinates") or ():
      yield kind, rings
  else:
    yield kind, geometry.get("coordinates")


def kind_of(geometry: dict[str, Any]) -> str:
  """The type of a geometry as the standard writes it."""
  kind = str(geometry.get("type"))
  return _GEOMETRIES.get(kind.lower(), kind)


def properties(feature: dict[str, Any]) -> dict[str, Any]:
  """The properties of a feature, which may have none."""
  found = feature.get("properties")
  return found if isinstance(found, dict) else {}


def class_of(feature: dict[str, Any]) -> str:
  """The name of a feature's class, '' without one.

  Example:
    >>> class_of({"properties": {"Class": "Tumor"}}), class_of({})
    ('Tumor', '')
  """
  said = {aliases.plain(str(k)): v for k, v in properties(feature).items()}
  return next((_name(said[k]) for k in _CLASS_KEYS if said.get(k)), "")


def _name(value: Any) -> str:
  """Of a QuPath classification: text, `name`, or `names`."""
  if isinstance(value, dict):
    value = value.get("name") or value.get("names") or ""
  if isinstance(value, list):
    value = ": ".join(str(one) for one in value if one is not None)
  return str(value).strip()
