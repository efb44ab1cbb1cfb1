"""What QuPath asks of a GeoJSON file, from its parser."""

import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

OBJECT_TYPES = ("annotation", "detection", "tile", "cell", "tmaCore")
_DEPTH = {"Point": 0, "LineString": 1, "MultiPoint": 1, "Polygon": 2,
          "MultiLineString": 2, "MultiPolygon": 3}  # fmt: skip


def validate(found: Any) -> None:
  """Checks that QuPath reads a collection, and reads what was meant."""
  if not isinstance(found, Mapping) or found.get("type") != "FeatureCollection":
    raise ValueError("not an object of type 'FeatureCollection'")
  if not isinstance(found.get("features"), list):
    raise ValueError("'features' is not a list")
  seen = {}
  for number, feature in enumerate(found["features"]):
    problem = _problem(feature)
    name = feature.get("id") if isinstance(feature, Mapping) else None
    if not problem and name is not None and name in seen:
      problem = f"its id {name} is that of feature {seen[name]}, too"
    if problem:
      raise ValueError(f"feature {number}: {problem}")
    seen[name] = number


def _problem(feature: Any) -> str:
  """What is wrong with a feature, '' if nothing."""
  if not isinstance(feature, Mapping):
    return "not an object"
  if feature.get("type") != "Feature":
    return f"type {feature.get('type')!r} is not 'Feature'"
  if "id" in feature and not _is_uuid(feature["id"]):
    return f"id {feature['id']!r} is not a UUID"
  properties = feature.get("properties")
  if not isinstance(properties, Mapping):
    return "'properties' is not an object"
  kind = properties.get("objectType")
  if kind not in OBJECT_TYPES:
    return f"objectType {kind!r} is not one of {OBJECT_TYPES}"
  return (
    _geometry_problem(feature.get("geometry"))
    or _class_problem(properties.get("classification", ""))
    or _property_problem(properties)
  )


def _is_uuid(value: Any) -> bool:
  try:
    return str(uuid.UUID(value)) == value.lower()
  except (ValueError, AttributeError, TypeError):
    return False


def _is_number(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value)


def _is_colour(value: Any) -> bool:
  return (
    isinstance(value, list | tuple)
    and len(value) == 3
    and all(type(v) is int and 0 <= v <= 255 for v in value)
  )


def _class_problem(value: Any) -> str:
  if isinstance(value, str):
    return ""
  if not isinstance(value, Mapping):
    return "'classification' is neither a text nor an object"
  names = value.get("names", [value.get("name")])
  if not isinstance(names, list) or not names:
    return "'classification' has no name"
  if not all(isinstance(name, str) and name for name in names):
    return "'classification' has no name"
  if not _is_colour(value.get("color")):
    return (
      f"'classification' has color {value.get('color')!r}, not three whole "
      "numbers from 0 to 255"
    )
  return ""


def _property_problem(properties: Mapping[str, Any]) -> str:
  measurements = properties.get("measurements", {})
  if not isinstance(measurements, Mapping):
    return "'measurements' is not an object of numbers"
  for name, value in measurements.items():
    if not isinstance(name, str) or not _is_number(value):
      return f"measurement {name!r} is {value!r}, not a finite number"
  metadata = properties.get("metadata", {})
  if not isinstance(metadata, Mapping):
    return "'metadata' is not an object of texts"
  for name, value in metadata.items():
    if not isinstance(name, str) or not isinstance(value, str):
      return f"metadata {name!r} is {value!r}, not a text"
  if "color" in properties and not _is_colour(properties["color"]):
    return f"color {properties['color']!r} is not three numbers from 0 to 255"
  if not isinstance(properties.get("name", ""), str):
    return f"name {properties['name']!r} is not a text"
  if not isinstance(properties.get("isLocked", False), bool):
    return f"isLocked {properties['isLocked']!r} is not true or false"
  return ""


def _geometry_problem(geometry: Any) -> str:
  if not isinstance(geometry, Mapping) or geometry.get("type") not in _DEPTH:
    return f"'geometry' is not one of {tuple(_DEPTH)}"
  kind, parts = geometry["type"], [geometry.get("coordinates")]
  for _ in range(_DEPTH[kind]):
    if not all(isinstance(part, list | tuple) and part for part in parts):
      return f"{kind} with missing or empty coordinates"
    # Rings stay whole; they are looked at below.
    lines, parts = parts, [item for part in parts for item in part]
  for point in parts:
    if not isinstance(point, list | tuple) or len(point) != 2:
      return f"position {point!r} is not [x, y]"
    if not all(map(_is_number, point)):
      return f"position {point!r} is not two finite numbers"
  if "Polygon" not in kind:
    return ""
  for ring in lines:
    if len(ring) < 4 or list(ring[0]) != list(ring[-1]):
      return (
        f"a ring of {len(ring)} positions, from {ring[0]} to {ring[-1]}, is "
        "not closed: four or more, the last equal to the first"
      )
    x, y = np.array(ring, np.float64).T
    if not (x[:-1] * y[1:] - x[1:] * y[:-1]).sum():
      return f"a ring of {len(ring)} positions has no area"
  return ""
