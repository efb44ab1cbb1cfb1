"""What is made of one slide before its page is written: maps, regions, tiles.

Everything comes from the slide's `TileMap`; its file adds the pictures, the
outline of tissue and the bounds that QuPath counts from. A slide whose file is
missing, damaged or another picture than the features were made from keeps all
that the map alone can say, and its notes say what is missing and why.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from data_prep.files import atomic
from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Slide
from wsiseq_jax.maps import (
  annotations,
  detections,
  geojson,
  heatmaps,
  regions,
)
from wsiseq_jax.maps.annotations import Annotated
from wsiseq_jax.maps.regions import Region
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports.slides import slide_source

MAP_FILES = {
  "probability": "probability.jpg",
  "contribution": "contribution.jpg",
  "percentile": "percentile_display_only.jpg",
}
# Prefixes of the pictures of tiles.
ENDS = ("highest", "lowest")
TABLES = ("regions.geojson", "tiles.geojson", "tiles.csv", "detections.csv")
Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class TilePicture:
  """A tile with what is around it.

  Attributes:
    index: its row in the map.
    xy: top-left corner, level-0 pixels.
    score: what it was chosen by.
    picture: the tile in the middle of its surroundings; None if the slide
      cannot be read there.
    inner: left, top and side of the tile in the picture, pixels.
  """

  index: int
  xy: tuple[float, float]
  score: float
  picture: Picture | None
  inner: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What the page shows of a slide.

  Attributes:
    notes: sentences on what is missing, and why.
    slide_error: why the slide's file is not shown; '' if it is.
    tile_map: the map with all that is known; None without one.
    slide: the slide's picture, white where its file cannot be read; None
      where the map cannot be drawn either.
    canvases: by kind, of `heatmaps.KINDS`.
    overlays: by kind, as large as the canvases.
    tissue: where colours are painted; None: on all tiles.
    regions: the outlines that were written.
    small_regions: how many more there are, too small.
    detections: how many; None if there are none to be had.
    highest: tiles with the highest scores.
    lowest: tiles with the lowest.
    bounds_xy: corner that QuPath counts from; None = unknown.
    annotated: what people drew; None without a file that can be read.
    files: names of what was written, beside the page.
  """

  notes: tuple[str, ...]
  slide_error: str = ""
  tile_map: TileMap | None = None
  slide: Picture | None = None
  canvases: Mapping[str, heatmaps.Canvas] = dataclasses.field(
    default_factory=dict
  )
  overlays: Mapping[str, Picture] = dataclasses.field(default_factory=dict)
  tissue: Bool[np.ndarray, "h2 w2"] | None = None
  regions: tuple[Region, ...] = ()
  small_regions: int = 0
  detections: int | None = None
  highest: tuple[TilePicture, ...] = ()
  lowest: tuple[TilePicture, ...] = ()
  bounds_xy: tuple[int, int] | None = None
  annotated: Annotated | None = None
  files: tuple[str, ...] = ()

  @property
  def has_picture(self) -> bool:
    """Whether the slide itself can be seen."""
    return not self.slide_error


def make(
  folder: pathlib.Path,
  tile_map: TileMap | None,
  entry: SlideEntry | None,
  reason: str,
  annotation: pathlib.Path | None,
  title: str,
  limit: float | int,
  data: Mapping[str, Any],
  settings: Mapping[str, Any],
) -> Drawn:
  """Draws a slide's maps and tiles, and writes all files but the page.

  Args:
    folder: of the slide's files; exists.
    tile_map: its map; None if it has none.
    entry: its file; None if it has none.
    reason: why it has none.
    annotation: the file of what people drew on it; None if it has none.
    title: a line for the pictures.
    limit: of the contributions, from `heatmaps.cohort_range`.
    data: `config.data`.
    settings: `config.report`.

  Returns:
    What the page shows.

  Raises:
    OSError: files cannot be written.
  """
  with slide_source.opened(entry, reason, tile_map, data) as (slide, error):
    if tile_map is not None:
      tile_map = slide_source.completed(tile_map, slide, data["default_mpp"])
    size = (
      slide_source.map_size(tile_map, settings)
      if tile_map
      else settings["longest_px"]
    )
    thumbnail = None
    if slide is not None:
      try:
        thumbnail, _ = slide.thumbnail(size)
      except SlideError as damage:
        slide, error = None, damage.message
    if tile_map is None:
      return Drawn((), error, slide=thumbnail)
    drawn = _tables(folder, tile_map, slide, settings)
    drawn = dataclasses.replace(drawn, slide_error=error)
    if slide_source.is_placed(tile_map):
      mask, note = slide_source.tissue_mask(
        thumbnail, tile_map, entry, settings
      )
      drawn = dataclasses.replace(drawn, notes=(*drawn.notes, *note))
      if annotation is not None:
        drawn = _annotations(drawn, annotation, data, settings)
      drawn = _maps(folder, drawn, thumbnail, mask, title, limit, settings)
      drawn = _tiles(folder, drawn, slide, settings)
    return drawn


def _annotations(
  drawn: Drawn,
  path: pathlib.Path,
  data: Mapping[str, Any],
  settings: Mapping[str, Any],
) -> Drawn:
  """What people drew; a file that cannot be read is a note."""
  try:
    found = annotations.read(
      path,
      drawn.tile_map,
      drawn.bounds_xy or (0, 0),
      slide_source.um_per_px(drawn.tile_map, settings),
      drawn.regions,
      data,
    )
  except ValueError as error:
    note = f"Annotations are not shown: {error} (config.data.annotation_*)."
    return dataclasses.replace(drawn, notes=(*drawn.notes, note))
  return dataclasses.replace(drawn, annotated=found)


# What is written.


def _tables(
  folder: pathlib.Path,
  tile_map: TileMap,
  slide: Slide | None,
  settings: Mapping[str, Any],
) -> Drawn:
  """Scores, regions and detections as files."""
  notes, files = [], []
  bounds = slide.bounds[:2] if slide is not None else None
  offset = bounds or (0, 0)
  found, small, points = [], 0, None
  if not slide_source.can_place(tile_map):
    notes.append(
      "Tiles lie at positions in µm and the slide's µm per pixel is unknown: "
      "nothing can be placed on the slide. Give it as mpp in a table of slides "
      "or as config.data.default_mpp."
    )
    return Drawn(tuple(notes), tile_map=tile_map)
  regions.write_csv(folder / "tiles.csv", tile_map)
  files.append("tiles.csv")
  if slide_source.is_placed(tile_map):
    every = regions.find_regions(
      tile_map,
      settings["tile_threshold"],
      **{
        key: settings[key]
        for key in ("smooth_um", "close_um", "open_um", "max_hole_um2")
      },
    )
    least = settings["min_area_um2"] / 1e6
    found = [region for region in every if region.area_mm2 >= least]
    small = len(every) - len(found)
    seen = detections.detect(
      tile_map,
      settings["tile_threshold"],
      settings["radius_um"],
      settings["smooth_um"],
    )
    points = len(seen.xy)
    detections.write(folder / "detections.csv", seen)
    files.append("detections.csv")
  elif not len(tile_map.xy):
    notes.append("The slide has no tile: there is nothing to map.")
  else:
    notes.append(
      "The slide's µm per pixel is unknown: no map, no regions, no "
      "detections. Give it as mpp in a table of slides or as "
      "config.data.default_mpp."
    )
  if settings["geojson"]:
    if slide_source.is_placed(tile_map):
      features = geojson.region_features(found, tile_map, bounds_xy=offset)
      geojson.write(folder / "regions.geojson", features)
      files.append("regions.geojson")
    if settings["tiles_geojson"]:
      features = geojson.tile_features(tile_map, bounds_xy=offset)
      geojson.write(folder / "tiles.geojson", features)
      files.append("tiles.geojson")
  return Drawn(
    tuple(notes),
    tile_map=tile_map,
    regions=tuple(found),
    small_regions=small,
    detections=points,
    bounds_xy=bounds,
    files=tuple(files),
  )


def _maps(
  folder: pathlib.Path,
  drawn: Drawn,
  thumbnail: Picture | None,
  mask: np.ndarray | None,
  title: str,
  limit: float,
  settings: Mapping[str, Any],
) -> Drawn:
  """The three maps, as pictures with legends and as overlays for the page."""
  scale = slide_source.um_per_px(drawn.tile_map, settings)
  canvases, overlays, files = {}, {}, list(drawn.files)
  outlines = [ring for region in drawn.regions for ring in region.rings]
  people = drawn.annotated
  people = () if people is None else (*people.rings, *people.cut_out)
  for kind, name in MAP_FILES.items():
    canvas = heatmaps.draw(
      drawn.tile_map,
      kind,
      um_per_px=scale,
      smooth_um=settings["smooth_um"],
      limit=limit if kind == "contribution" else None,
    )
    if thumbnail is None:
      thumbnail = np.full((*canvas.values.shape, 3), 255, np.uint8)
    canvases[kind] = canvas
    overlays[kind] = heatmaps.overlay(thumbnail, canvas, mask)
    picture = heatmaps.figure(
      thumbnail, canvas, title, tissue=mask, outlines=outlines,
      annotations=people,
    )  # fmt: skip
    write_jpeg(folder / name, picture)
    files.append(name)
  base = heatmaps.resized(thumbnail, canvas.values.shape, "thumbnail")
  return dataclasses.replace(
    drawn,
    slide=base,
    canvases=canvases,
    overlays=overlays,
    tissue=mask,
    files=tuple(files),
  )


def _tiles(
  folder: pathlib.Path,
  drawn: Drawn,
  slide: Slide | None,
  settings: Mapping[str, Any],
) -> Drawn:
  """Pictures of the highest and lowest tiles, of as many as there are."""
  # Few tiles: no tile is both among the highest and among the lowest.
  count = min(settings["tiles"], len(drawn.tile_map.xy) // 2)
  files, both = list(drawn.files), []
  for name, is_lowest in zip(ENDS, (False, True), strict=True):
    chosen = regions.extreme_tiles(
      drawn.tile_map,
      count,
      by=settings["tiles_by"],
      apart_um=settings["tiles_apart_um"],
      lowest=is_lowest,
    )
    shown = []
    for rank, tile in enumerate(chosen, 1):
      picture, inner = _cut(slide, drawn.tile_map, tile.xy, settings)
      shown.append(TilePicture(tile.index, tile.xy, tile.score, picture, inner))
      if picture is None:
        continue
      left, top, side = inner
      path = f"tiles/{name}_{rank:02d}_tile_{tile.index}.jpg"
      (folder / "tiles").mkdir(exist_ok=True)
      inside = picture[top : top + side, left : left + side]
      write_jpeg(folder / path, inside)
      files.append(path)
    both.append(tuple(shown))
  return dataclasses.replace(
    drawn, highest=both[0], lowest=both[1], files=tuple(files)
  )


def _cut(slide, tile_map, xy, settings):
  """A tile and its surroundings; (None, ...) where they cannot be read."""
  tiles = tile_map.in_level0()
  middle = np.asarray(xy) + tiles.tile_size / 2
  # No finer than the slide itself.
  side = max(8, min(settings["tile_px"], int(tiles.tile_size)))
  whole = max(side, round(side * settings["context"]))
  corner = (whole - side) // 2
  inner = (corner, corner, side)
  if slide is None:
    return None, inner
  mpp = tiles.tile_size * slide.mpp / side
  try:
    return slide.read_region(middle, (whole, whole), mpp), inner
  except SlideError:
    return None, inner


def write_jpeg(path: pathlib.Path, picture: Picture, quality: int = 88) -> None:
  """Writes a picture; it is there whole or not at all.

  Raises:
    OSError: it cannot be written.
  """
  ok, data = cv2.imencode(
    ".jpg",
    cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
    [cv2.IMWRITE_JPEG_QUALITY, quality],
  )
  if not ok:
    raise OSError(f"{path}: {picture.shape} cannot be a JPEG")
  with atomic.replacing(path) as draft:
    draft.write_bytes(data.tobytes())
