"""GeoJSON that QuPath reads: regions as annotations, tiles as tiles.

What QuPath asks of a file, from its parser:

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
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_prep.files import atomic
from wsiseq_jax.maps import heatmaps
from wsiseq_jax.maps.regions import Region
from wsiseq_jax.maps.tile_map import TileMap

# Of the class in QuPath, RGB.
COLOUR = [214, 39, 40]
Number = int | float | np.integer | np.floating
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsiseq_jax/geojson")
# Coordinates of a picture need no more; 0.01 px is 2.5 nm.
_DIGITS = 2


def region_features(
  regions: Sequence[Region],
  tile_map: TileMap,
  bounds_xy: tuple[Number, Number] = (0, 0),
) -> list[dict[str, Any]]:
  """Regions as annotations of the map's class."""
  return [
    _feature(
      tile_map,
      "annotation",
      f"region {number}",
      [_ring(ring, bounds_xy) for ring in region.rings],
      {
        "name": f"{tile_map.class_name} {number + 1}",
        "classification": {"name": tile_map.class_name, "color": COLOUR},
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
  bounds_xy: tuple[Number, Number] = (0, 0),
) -> list[dict[str, Any]]:
  """Tiles with their scores as measurements, one feature a tile.

  Each has the colour of its probability; QuPath's measurement maps colour them
  by any of the scores.
  """
  tiles = tile_map.in_level0()
  corners = np.asarray(tiles.xy, np.float64)
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
        "classification": {"name": tiles.class_name, "color": COLOUR},
        "color": paints[index],
        "measurements": {
          "Probability": float(tiles.probability[index]),
          "Contribution": float(tiles.contribution[index]),
          "Attention": float(tiles.attention[index]),
          "Tile": int(index),
        },
      },
    )
    for index in range(len(corners))
  ]


def cell_feature(
  slide_id: str,
  number: int,
  ring: Float[np.ndarray, "_ 2"],
  class_name: str,
  colour: Sequence[int],
  measurements: Mapping[str, float],
) -> dict[str, Any]:
  """A cell as a detection.

  Args:
    slide_id: the slide.
    number: of the cell in the slide's table.
    ring: its closed outline as QuPath counts pixels.
    class_name: its class in QuPath.
    colour: of the class, RGB.
    measurements: what QuPath shows of it.
  """
  name = f"{slide_id}\n{class_name}\ncell {number}"
  return {
    "type": "Feature",
    "id": str(uuid.uuid5(_SPACE, name)),
    "geometry": {"type": "Polygon", "coordinates": [_ring(ring, (0, 0))]},
    "properties": {
      "objectType": "detection",
      "classification": {"name": class_name, "color": list(colour)},
      "measurements": dict(measurements),
      "metadata": {"slide_id": slide_id, "made_by": "wsiseq_jax"},
    },
  }


def area_feature(
  slide_id: str,
  class_name: str,
  number: int,
  rings: Sequence[Float[np.ndarray, "_ 2"]],
  colour: Sequence[int],
  measurements: Mapping[str, float],
  bounds_xy: tuple[Number, Number] = (0, 0),
  kind: str = "annotation",
) -> dict[str, Any]:
  """A segmented area, to be corrected by hand.

  Args:
    slide_id: the slide.
    class_name: its class in QuPath.
    number: of the area among those of the class on the slide, from 1.
    rings: outline, then holes; closed, level-0 pixels.
    colour: of the class, RGB.
    measurements: what QuPath shows of it.
    bounds_xy: corner that QuPath counts from, level-0 pixels.
    kind: 'annotation', or 'detection' where there are thousands.
  """
  name = f"{slide_id}\n{class_name}\narea {number}"
  return {
    "type": "Feature",
    "id": str(uuid.uuid5(_SPACE, name)),
    "geometry": {
      "type": "Polygon",
      "coordinates": [_ring(ring, bounds_xy) for ring in rings],
    },
    "properties": {
      "objectType": kind,
      "name": f"{class_name} {number}",
      "classification": {"name": class_name, "color": list(colour)},
      "measurements": dict(measurements),
      "metadata": {"slide_id": slide_id, "made_by": "wsiseq_jax"},
    },
  }


def _ring(ring, bounds_xy) -> list[list[float]]:
  shifted = np.asarray(ring, np.float64) - np.asarray(bounds_xy, np.float64)
  return np.round(shifted, _DIGITS).tolist()


def _feature(tile_map, kind, key, rings, properties) -> dict[str, Any]:
  metadata = {
    "slide_id": str(tile_map.slide_id),
    "patient_id": str(tile_map.patient_id),
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


def write(
  path: str | os.PathLike, features: Sequence[Mapping[str, Any]]
) -> None:
  """Writes features as a file that can be dragged onto QuPath."""
  found = {"type": "FeatureCollection", "features": list(features)}
  text = json.dumps(found, ensure_ascii=False, allow_nan=False)
  with atomic.replacing(path) as draft:
    draft.write_text(text, encoding="utf-8")
