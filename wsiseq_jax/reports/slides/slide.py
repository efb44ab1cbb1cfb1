"""The page of one slide, for a pathologist: what its template shows.

What it has to say first: how probable, against which threshold, and where that
threshold comes from; then where on the slide, in maps that may be compared with
those of other slides; then the tiles themselves, which can be looked up in the
slide by their coordinates.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.wsi import qc
from wsiseq_jax.maps import heatmaps
from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides.data import Decisions, Predictions, SlideRow
from wsiseq_jax.reports.slides.draw import (
  MAP_FILES,
  SlideFigures,
  TilePicture,
)
from wsiseq_jax.reports.slides.settings import Report

# Numbers and outlines lie over a picture in shares of its size.
_STAGE_PX = 1200
# Regions that are marked on the pictures; all are in the table.
_PINS = 12
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Of usual stained tissue, below the colours of the cohort's legend.
_TISSUE_GREY = 190
_FILES = {
  "regions.geojson": "regions, for QuPath",
  "tiles.geojson": "all tiles with scores, for QuPath",
  "tiles.csv": "scores of all tiles",
  "detections.csv": "probability, x, y; the format of Camelyon16",
  MAP_FILES["probability"]: "the probability map with its legend",
  MAP_FILES["contribution"]: "the contribution map with its legend",
  MAP_FILES["percentile"]: "ranks of attention, for display only",
}


@dataclasses.dataclass(frozen=True)
class Context:
  """What the pages of all slides share."""

  predictions: Predictions  # of the cohort
  decisions: Decisions  # how they become words
  settings: Report  # `config.report`
  # Slides that have a file of annotations.
  annotated: frozenset[str] = frozenset()

  def values(self) -> dict[str, Any]:
    """What templates say of all slides."""
    found = self.predictions
    return {
      "found": found,
      "settings": self.settings,
      "is_number": found.is_number,
    }


def write_page(
  path: pathlib.Path, row: SlideRow, drawn: SlideFigures, context: Context
) -> None:
  """Writes the page of a slide, one file with its pictures."""
  left, top = drawn.bounds_xy or (0, 0)
  page.write(
    path,
    "slide.html.j2",
    row=row,
    drawn=drawn,
    **context.values(),
    verdict=verdict(row, context),
    facts=_facts(row, context) + _slide_facts(drawn),
    has_others_annotated=bool(context.annotated)
    and row.slide_id not in context.annotated,
    slide=_slide_picture(row, drawn),
    maps={kind: _map(drawn, kind) for kind in drawn.canvases},
    map_files=MAP_FILES,
    bar=_scale_bar(drawn),
    regions=_regions(drawn, left, top),
    region_mm2=sum(region.area_mm2 for region in drawn.regions),
    best=_best(drawn),
    tiles={
      "Highest": _tiles(drawn.highest, _LETTERS, left, top),
      "Lowest": _tiles(drawn.lowest, "", left, top),
    },
    files={k: v for k, v in _FILES.items() if k in drawn.files},
  )


def verdict(row: SlideRow, context: Context) -> dict[str, Any]:
  """What the macro `verdict` says: prediction, decision, label."""
  found, rule = context.predictions, context.decisions
  name, value = report_data.headline(found, row)
  return {
    "row": row,
    "name": name,
    "value": value,
    "predicted": rule.predicted(found, row),
    "is_right": rule.is_right(found, row),
  }


def _facts(row: SlideRow, context: Context) -> list[tuple[str, Any]]:
  found, rule = context.predictions, context.decisions
  items: list[tuple[str, Any]] = []
  for name in found.classes:
    spread = row.spread.get(name, math.nan)
    several = row.models > 1 and math.isfinite(spread)
    more = f" ± {spread:.3f}" if several else ""
    what = "value" if found.is_number else f"p({name})"
    # Of two probabilities that add up to 1 one is enough.
    if found.target_type != "binary" or name == found.classes[-1]:
      items.append((what, f"{row.values[name]:.3f}{more}"))
    cut = rule.threshold_of(row, name)
    if math.isfinite(cut):
      items.append((f"threshold for {name}", f"{cut:.3f}"))
  items.append(("label", row.label or "unknown"))
  return [*items, ("patient", row.patient_id), ("models", row.models)]


def _slide_facts(drawn: SlideFigures) -> list[tuple[str, Any]]:
  if drawn.tile_map is None:
    return []
  tiles = drawn.tile_map
  items: list[tuple[str, Any]] = [("tiles", f"{len(tiles.xy):,}")]
  if tiles.level0_mpp:
    side = tiles.in_level0().tile_size * tiles.level0_mpp
    items.append(("side of a tile", f"{side:.4g} µm"))
    items.append(("level 0", f"{tiles.level0_mpp:.4g} µm/px"))
  if tiles.level0_mpp and tiles.level0_size and not drawn.slide_error:
    wide, high = (n * tiles.level0_mpp / 1000 for n in tiles.level0_size)
    items.append(("slide", f"{wide:.1f} × {high:.1f} mm"))
  if drawn.detections is not None:
    area = sum(region.area_mm2 for region in drawn.regions)
    items.append(("regions", f"{len(drawn.regions)}, {area:.3g} mm²"))
    items.append(("detections", drawn.detections))
  if drawn.annotated is not None:
    items.append(("annotated", f"{drawn.annotated.area_mm2:.3g} mm²"))
  return items


# Pictures with outlines and marks, which stay thin and legible at any size.


def _slide_picture(row: SlideRow, drawn: SlideFigures) -> Any:
  """The slide with its marks; alone where there is no map; None without."""
  if drawn.slide is None:
    return None
  alt = f"slide {row.slide_id}"
  if not drawn.canvases:
    return {"image": page.embedded(drawn.slide, alt)}
  return _stage(drawn, drawn.slide, alt, has_tiles=True)


def _map(drawn: SlideFigures, kind: str) -> dict[str, Any]:
  """A map with its outlines and its colour bar."""
  canvas = drawn.canvases[kind]
  grey = heatmaps.tissue_grey(drawn.slide, canvas, drawn.tissue)
  alt = f"{kind} map of {drawn.tile_map.slide_id}"
  return {
    "stage": _stage(drawn, drawn.overlays[kind], alt),
    "ramp": colour_bar(kind, canvas.limits, grey),
  }


def _stage(
  drawn: SlideFigures,
  picture: UInt8[np.ndarray, "h w 3"],
  alt: str,
  has_tiles: bool = False,
) -> dict[str, Any]:
  """A picture, and what lies over it in its pixels."""
  height, width = picture.shape[:2]
  factor = next(iter(drawn.canvases.values())).downsample
  lines, pins = [], []
  for number, region in enumerate(drawn.regions, 1):
    if number <= _PINS:
      # The topmost point, where a number hides least.
      ring = np.asarray(region.rings[0])
      pins.append((ring[ring[:, 1].argmin()] / factor, number, ""))
  rings = [ring for region in drawn.regions for ring in region.rings]
  lines.append((_path(rings, factor), "model"))
  if drawn.annotated is not None:
    lines.append((_path(drawn.annotated.rings, factor), "people"))
    lines.append((_path(drawn.annotated.cut_out, factor), "people cut"))
  if has_tiles:
    half = drawn.tile_map.in_level0().tile_size / 2
    for letter, tile in zip(_LETTERS, drawn.highest, strict=False):
      pins.append(((np.asarray(tile.found.xy) + half) / factor, letter, "tile"))
  # Marks at the edge would make the page wider than the screen.
  size = (width, height)
  placed = [(np.clip(xy / size, 0.02, 0.98) * 100, *pin) for xy, *pin in pins]
  return {
    "image": page.embedded(figures.fit(picture, _STAGE_PX), alt, 76),
    "width": width,
    "height": height,
    "lines": [(path, whose) for path, whose in lines if path],
    "pins": [(*xy.tolist(), *pin) for xy, *pin in placed],
  }


def _path(rings: Sequence[np.ndarray], factor: float) -> str:
  """Rings of level-0 pixels as an SVG path, nowhere a pixel off."""
  parts = []
  for ring in rings:
    points = np.asarray(ring, np.float32)[:, None] / np.float32(factor)
    thin = cv2.approxPolyDP(points, 0.5, True)
    points = (thin if len(thin) > 2 else points)[:, 0].tolist()
    parts.append("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z")
  return " ".join(parts)


def _scale_bar(drawn: SlideFigures) -> dict[str, Any] | None:
  """A bar of a round length that keeps its share of the picture."""
  if not drawn.canvases:
    return None
  canvas = drawn.canvases["probability"]
  um = canvas.values.shape[1] * canvas.um_per_px
  length, text = qc.scale(um)
  return {"percent": 100 * length / um, "text": text}


def colour_bar(
  kind: str,
  limits: tuple[float, float] = (0.0, 1.0),
  grey: float | int = _TISSUE_GREY,
) -> dict[str, Any]:
  """Colours and numbers of a kind of map, on tissue of a grey level."""
  return {
    "colours": heatmaps.ramp(kind, limits, grey, 17).tolist(),
    "ticks": heatmaps.ticks(kind, limits),
  }


# Findings.


def _regions(drawn: SlideFigures, left, top) -> list[tuple]:
  """Rows of the table; the middle is that of the box, as QuPath counts."""
  rows = []
  for number, region in enumerate(drawn.regions, 1):
    ring = np.asarray(region.rings[0])
    x, y = (ring.min(axis=0) + ring.max(axis=0)) / 2
    row = (f"{region.area_mm2:.4f}", f"{region.mean:.3f}", f"{region.max:.3f}")
    middle = f"{x - left:.0f}, {y - top:.0f}"
    rows.append((number, *row, region.tiles, middle))
  return rows


def _best(drawn: SlideFigures) -> float | None:
  """The highest probability of a tile."""
  if drawn.tile_map is None or not len(drawn.tile_map.xy):
    return None
  return float(drawn.tile_map.probability.max())


def _tiles(
  tiles: Sequence[TilePicture], letters: str, left, top
) -> list[dict[str, Any]]:
  return [
    {
      "letter": letters[rank : rank + 1],
      "tile": tile.found,
      "x": tile.found.xy[0] - left,
      "y": tile.found.xy[1] - top,
      "image": None
      if tile.picture is None
      else page.embedded(_framed(tile), f"tile {tile.found.index}", 85),
    }
    for rank, tile in enumerate(tiles)
  ]


def _framed(tile: TilePicture) -> UInt8[np.ndarray, "h w 3"]:
  """The surroundings with a frame just outside the tile."""
  left, top, side = tile.inner
  picture = tile.picture.copy()
  if side < min(picture.shape[:2]):
    corners = (left - 2, top - 2), (left + side + 1, top + side + 1)
    for ink, wide in (((255, 255, 255), 3), ((20, 20, 26), 1)):
      cv2.rectangle(picture, *corners, ink, wide)
  return picture
