"""Files of annotations as programs write them: ASAP's XML, GeoJSON of anybody.

What the shapes mean is for whoever reads them: areas (`annotations.py`), or
cells.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

_GEOMETRIES = {
  kind.lower(): kind
  for kind in (
    *("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon"),
    *("MultiPolygon", "GeometryCollection"),
  )
}


@dataclasses.dataclass(frozen=True)
class AsapShape:
  """A shape of an ASAP file."""

  name: str  # what the file calls it
  kind: str  # 'Polygon', 'Spline', 'Rectangle', 'Dot', 'PointSet', ...
  group: str  # its group
  points: tuple[tuple[float, float], ...]  # x, y in their order, level-0 pixels


def asap(path: str | os.PathLike) -> list[AsapShape]:
  """Reads the shapes of an ASAP file.

  Raises:
    ValueError: it is no such file, or a place is no number.
  """
  try:
    root = ElementTree.parse(path).getroot()
  except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
    raise ValueError(f"{path}: not an XML file: {error}") from error
  if root.tag != "ASAP_Annotations":
    raise ValueError(f"{path}: <{root.tag}> is not <ASAP_Annotations>")
  shapes = []
  for number, item in enumerate(root.iter("Annotation")):
    name = item.get("Name", f"annotation {number}")
    points = item.findall("./Coordinates/Coordinate")
    try:
      points.sort(key=lambda point: _number(point.get("Order", "0")))
      places = tuple((_number(p.get("X")), _number(p.get("Y"))) for p in points)
    except (TypeError, ValueError, AttributeError) as error:
      raise ValueError(
        f"{path}: {name!r} has no number in an Order, X or Y"
      ) from error
    kind, group = item.get("Type", "Polygon"), item.get("PartOfGroup", "")
    shapes.append(AsapShape(name, kind, group.strip(), places))
  return shapes


def _number(text: str | None) -> float:
  """A number whose decimal sign is that of the writer's country."""
  return float(text.replace(",", "."))


def load_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file in any Unicode, or one of a value a line.

  Raises:
    ValueError: it is none, or nests too deep.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    text = content.decode(json.detect_encoding(content))
    try:
      return json.loads(text)
    except json.JSONDecodeError as error:
      if error.msg != "Extra data":
        raise
      lines = (line.strip("\x1e \t\r") for line in text.split("\n"))
      return [json.loads(line) for line in lines if line]
  except (ValueError, RecursionError) as error:
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


def class_name(value: Any) -> str:
  """The name of a QuPath classification: text, `name`, or `names`."""
  if isinstance(value, dict):
    value = value.get("name") or ": ".join(value.get("names", ()))
  return str(value or "").strip()
