"""GeoJSON that QuPath reads: regions as annotations, tiles as tiles.

What QuPath asks of a file, from its parser; `validate` checks it all:

- a FeatureCollection; coordinates in full-resolution pixels; rings closed;
- `objectType`: 'annotation', 'tile', 'detection', 'cell' or 'tmaCore'.
  Thousands of annotations are slow, thousands of tiles are not;
- `classification`: text, or an object with name *and* colour; an object without
  a colour stops the import of the whole file;
- `measurements`: an object of numbers (QuPath 0.4 or later);
- `metadata`: an object of texts; `id`: a UUID.

QuPath counts from the corner of the scanned part of a slide (OpenSlide's
`bounds-x`, `bounds-y`, not 0 for MRXS and some others); `bounds_xy` is taken
off every coordinate. `data_prep.wsi.annotations.read` puts it back.

Identifiers are made of slide, kind and number (UUID version 5): writing again
gives the same file.

Reference: QuPath, `QuPathTypeAdapters` and `GsonTools`; RFC 7946.
"""

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.files import atomic
from wsiseq_jax.maps import heatmaps
from wsiseq_jax.maps.regions import Region
from wsiseq_jax.maps.tile_map import TileMap

OBJECT_TYPES = ("annotation", "detection", "tile", "cell", "tmaCore")
COLOUR = (214, 39, 40)
Number = int | float | np.integer | np.floating
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsiseq_jax/geojson")
# Coordinates of a picture need no more; 0.01 px is 2.5 nm.
_DIGITS = 2
_DEPTH = {"Point": 0, "LineString": 1, "MultiPoint": 1, "Polygon": 2,
          "MultiLineString": 2, "MultiPolygon": 3}  # fmt: skip


def region_features(
  regions: Sequence[Region],
  tile_map: TileMap,
  *,
  colour: tuple[int, int, int] = COLOUR,
  bounds_xy: tuple[Number, Number] = (0, 0),
) -> list[dict[str, Any]]:
  """Regions as annotations of the map's class.

  Args:
    regions: from `regions.find_regions`.
    tile_map: the map they come from.
    colour: of the class in QuPath, RGB.
    bounds_xy: corner of the scanned part in level-0 pixels; see the module.

  Returns:
    Features with area, mean and largest probability, and number of tiles.
  """
  return [
    _feature(
      tile_map,
      "annotation",
      f"region {number}",
      [_ring(ring, bounds_xy) for ring in region.rings],
      {
        "name": f"{tile_map.class_name} {number + 1}",
        "classification": {
          "name": tile_map.class_name,
          "color": list(colour),
        },
        "measurements": {
          "Area mm^2": region.area_mm2,
          "Probability mean": region.mean,
          "Probability max": region.max,
          "Tiles": region.tiles,
        },
      },
    )
    for number, region in enumerate(regions)
  ]


def tile_features(
  tile_map: TileMap,
  indices: Sequence[int] | None = None,
  *,
  colour: tuple[int, int, int] = COLOUR,
  bounds_xy: tuple[Number, Number] = (0, 0),
) -> list[dict[str, Any]]:
  """Tiles with their scores as measurements.

  Each has the colour of its probability; QuPath's measurement maps colour them
  by any of the scores.

  Args:
    tile_map: the map.
    indices: of the tiles; None: all.
    colour: of the class in QuPath, RGB.
    bounds_xy: corner of the scanned part in level-0 pixels; see the module.

  Returns:
    One feature a tile.

  Raises:
    ValueError: an index that is no tile.
  """
  tiles = tile_map.in_level0()
  corners = np.asarray(tiles.xy, np.float64)
  chosen = range(len(corners)) if indices is None else indices
  for index in chosen:
    if not 0 <= index < len(corners):
      raise ValueError(
        f"slide {tiles.slide_id!r}: tile {index} is not one of {len(corners)}"
      )
  paints = heatmaps.colours(
    np.asarray(tiles.probability, np.float64), "probability"
  ).tolist()
  square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * tiles.tile_size
  return [
    _feature(
      tile_map,
      "tile",
      f"tile {index}",
      [_ring(corners[index] + square, bounds_xy)],
      {
        "classification": {
          "name": tiles.class_name,
          "color": list(colour),
        },
        "color": paints[index],
        "measurements": {
          "Probability": float(tiles.probability[index]),
          "Contribution": float(tiles.contribution[index]),
          "Attention": float(tiles.attention[index]),
          "Tile": int(index),
        },
      },
    )
    for index in chosen
  ]


def _ring(ring, bounds_xy) -> list[list[float]]:
  shifted = np.asarray(ring, np.float64) - np.asarray(bounds_xy, np.float64)
  return np.round(shifted, _DIGITS).tolist()


def _feature(tile_map, kind, key, rings, properties) -> dict[str, Any]:
  metadata = {
    "slide_id": str(tile_map.slide_id),
    "case_id": str(tile_map.case_id),
    "class": str(tile_map.class_name),
    "slide_probability": f"{tile_map.slide_probability:.6g}",
    "made_by": "wsiseq_jax",
  }
  # The class is part of the name: maps of two classes may share a project.
  name = f"{tile_map.slide_id}\n{tile_map.class_name}\n{key}"
  return {
    "type": "Feature",
    "id": str(uuid.uuid5(_SPACE, name)),
    "geometry": {"type": "Polygon", "coordinates": rings},
    "properties": {"objectType": kind, **properties, "metadata": metadata},
  }


def collection(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Features as one FeatureCollection, checked.

  Raises:
    ValueError: from `validate`.

  Example:
    >>> collection([])
    {'type': 'FeatureCollection', 'features': []}
  """
  found = {"type": "FeatureCollection", "features": list(features)}
  validate(found)
  return found


def write(
  path: str | os.PathLike, features: Sequence[Mapping[str, Any]]
) -> None:
  """Writes features as a file that can be dragged onto QuPath.

  Args:
    path: `<slide_id>.geojson`; it is there whole or not at all.
    features: of regions and tiles.

  Raises:
    ValueError: from `validate`; nothing is written then.
  """
  text = json.dumps(collection(features), ensure_ascii=False, allow_nan=False)
  with atomic.replacing(path) as draft:
    draft.write_text(text, encoding="utf-8")


def validate(found: Any) -> None:
  """Checks that QuPath reads a collection, and reads what was meant.

  Args:
    found: the FeatureCollection.

  Raises:
    ValueError: what is wrong, with the number of the feature, from 0.

  Example:
    >>> validate({"type": "FeatureCollection", "features": [{"type": "Zone"}]})
    Traceback (most recent call last):
    ...
    ValueError: feature 0: type 'Zone' is not 'Feature'
  """
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
