"""What is drawn of one slide before its page: maps, regions, tiles, files.

Everything comes from the slide's `TileMap`; its file (`source.py`) adds to it.
A slide without a usable file keeps all that the map alone can say, and its
notes say what is missing and why.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from data_prep.files import atomic
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi.slides import Slide
from wsiseq_jax.maps import annotations, detections, geojson, heatmaps, regions
from wsiseq_jax.maps.annotations import Annotated
from wsiseq_jax.maps.regions import Region, TileScore
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports import figures
from wsiseq_jax.reports.slides.settings import Data, Report
from wsiseq_jax.reports.slides.source import (
  Picture,
  SlideFiles,
  completed,
  map_px,
  opened,
  tissue_mask,
  um_per_px,
)

MAP_FILES = {
  "probability": "probability.jpg",
  "contribution": "contribution.jpg",
  "percentile": "percentile_display_only.jpg",
}
# Slide and map for the cohort's page.
CARDS = ("card_slide.jpg", "card_map.jpg")
_TABLES = ("regions.geojson", "tiles.geojson", "tiles.csv", "detections.csv")
_ENDS = ("highest", "lowest")
_REMEDY = "Give it as mpp in a table of slides or as config.data.default_mpp."


@dataclasses.dataclass(frozen=True)
class TilePicture:
  """A tile with what is around it."""

  found: TileScore  # its row in the map, its place and score
  # The tile in the middle of its surroundings; None if the slide cannot be read
  # there.
  picture: Picture | None
  # Left, top and side of the tile in the picture, pixels.
  inner: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class SlideFigures:
  """What was made of a slide."""

  notes: tuple[str, ...] = ()  # sentences on what is missing, and why
  trace: str = ""  # tracebacks of what nobody expected
  slide_error: str = ""  # why the slide's file is not shown; '' if it is
  # The map with all that is known; None without one.
  tile_map: TileMap | None = None
  # The slide's picture, white where its file cannot be read; None where the map
  # cannot be drawn either.
  slide: Picture | None = None
  # By kind, of `heatmaps.KINDS`.
  canvases: Mapping[str, heatmaps.Canvas] = dataclasses.field(
    default_factory=dict
  )
  # By kind, as large as the canvases.
  overlays: Mapping[str, Picture] = dataclasses.field(default_factory=dict)
  # Where colours are painted; None: on all tiles.
  tissue: Bool[np.ndarray, "h2 w2"] | None = None
  regions: tuple[Region, ...] = ()  # the outlines that were written
  small_regions: int = 0  # how many more there are, too small
  detections: int | None = None  # how many; None if there are none to be had
  highest: tuple[TilePicture, ...] = ()  # tiles with the highest scores
  lowest: tuple[TilePicture, ...] = ()  # tiles with the lowest
  # Corner that QuPath counts from; None = unknown.
  bounds_xy: tuple[int, int] | None = None
  # What people drew; None without a file that can be read.
  annotated: Annotated | None = None
  files: tuple[str, ...] = ()  # names of what was written, beside the page
  # Width and height of the pictures for the cohort's page, by name.
  cards: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

  def with_(self, notes=(), files=(), **changes: Any) -> "SlideFigures":
    """A copy with more notes and files, and other values."""
    return dataclasses.replace(
      self,
      notes=(*self.notes, *notes),
      files=(*self.files, *files),
      **changes,
    )


def draw(
  folder: pathlib.Path,
  source: SlideFiles,
  title: str,
  limit: float,
  data: Data,
  settings: Report,
) -> SlideFigures:
  """Draws a slide's maps and tiles, and writes all files but the page."""
  drawn = SlideFigures()
  tile_map = None
  if source.map_problem:
    drawn = drawn.with_(notes=[source.map_problem])
  elif source.tile_map is not None:
    tile_map = TileMap.load(source.tile_map)
  with opened(source, tile_map, data) as (slide, error):
    if tile_map is not None:
      tile_map = completed(tile_map, slide, data.default_mpp)
    thumbnail = None
    if slide is not None:
      try:
        thumbnail, _ = slide.thumbnail(map_px(tile_map, settings))
      except SlideError as damage:
        slide, error = None, damage.message
    bounds = slide.bounds[:2] if slide is not None else None
    drawn = drawn.with_(slide_error=error, tile_map=tile_map, bounds_xy=bounds)
    if tile_map is None:
      drawn = drawn.with_(slide=thumbnail)
    else:
      drawn = _tables(folder, drawn, settings)
    if tile_map is not None and tile_map.can_be_drawn:
      mask, note = tissue_mask(thumbnail, tile_map, source.entry, settings)
      drawn = drawn.with_(notes=note, tissue=mask)
      if source.annotation is not None:
        drawn = _annotations(drawn, source.annotation, data, settings)
      elif source.annotation_problem:
        text = f"Annotations are not shown: {source.annotation_problem}."
        drawn = drawn.with_(notes=[text])
      drawn = _maps(folder, drawn, thumbnail, title, limit, settings)
      drawn = _tiles(folder, drawn, slide, settings)
  return _cards(folder, drawn, settings.card_px)


def clean(folder: pathlib.Path) -> None:
  """Removes what an earlier run wrote, and nothing that others put there."""
  for name in ("index.html", *_TABLES, *MAP_FILES.values(), *CARDS):
    (folder / name).unlink(missing_ok=True)
  for kind in _ENDS:
    for path in (folder / "tiles").glob(f"{kind}_*_tile_*.jpg"):
      path.unlink()


# What is written.


def _annotations(
  drawn: SlideFigures, path: pathlib.Path, data: Data, settings: Report
) -> SlideFigures:
  """What people drew; a file that cannot be read is a note."""
  try:
    found = annotations.read(
      path,
      drawn.tile_map,
      drawn.bounds_xy or (0, 0),
      um_per_px(drawn.tile_map, settings),
      drawn.regions,
      dataclasses.asdict(data),
    )
  except Exception as error:  # whatever a stranger's file makes a library do
    name = drawn.tile_map.slide_id
    wrong = as_slide_error(error, name, "annotations")
    text = f"Annotations are not shown: {wrong.message}"
    note = f"{text} (config.data.annotation_*)."
    return drawn.with_(notes=[note], trace=drawn.trace + wrong.trace)
  return drawn.with_(annotated=found)


def _tables(
  folder: pathlib.Path, drawn: SlideFigures, settings: Report
) -> SlideFigures:
  """Scores, regions and detections as files."""
  tile_map, offset = drawn.tile_map, drawn.bounds_xy or (0, 0)
  if not tile_map.has_places:
    return drawn.with_(
      notes=[
        "Tiles lie at positions in µm and the slide's µm per pixel is unknown: "
        f"nothing can be placed on the slide. {_REMEDY}"
      ]
    )
  regions.write_csv(folder / "tiles.csv", tile_map)
  drawn = drawn.with_(files=["tiles.csv"])
  if tile_map.can_be_drawn:
    drawn = _findings(folder, drawn, settings)
  elif not len(tile_map.xy):
    note = "The slide has no tile: there is nothing to map."
    drawn = drawn.with_(notes=[note])
  else:
    drawn = drawn.with_(
      notes=[
        "The slide's µm per pixel is unknown: no map, no regions, no "
        f"detections. {_REMEDY}"
      ]
    )
  if settings.geojson and settings.tiles_geojson:
    features = geojson.tile_features(tile_map, offset)
    geojson.write(folder / "tiles.geojson", features)
    drawn = drawn.with_(files=["tiles.geojson"])
  return drawn


def _findings(
  folder: pathlib.Path, drawn: SlideFigures, settings: Report
) -> SlideFigures:
  """Regions and detections of a map that can be drawn."""
  tile_map, files = drawn.tile_map, ["detections.csv"]
  every = regions.find_regions(
    tile_map,
    settings.tile_threshold,
    smooth_um=settings.smooth_um,
    close_um=settings.close_um,
    open_um=settings.open_um,
    max_hole_um2=settings.max_hole_um2,
  )
  least = settings.min_area_um2 / 1e6
  found = [region for region in every if region.area_mm2 >= least]
  seen = detections.detect(
    tile_map,
    settings.tile_threshold,
    settings.radius_um,
    settings.smooth_um,
  )
  detections.write(folder / "detections.csv", seen)
  if settings.geojson:
    offset = drawn.bounds_xy or (0, 0)
    features = geojson.region_features(found, tile_map, offset)
    geojson.write(folder / "regions.geojson", features)
    files.append("regions.geojson")
  return drawn.with_(
    files=files,
    regions=tuple(found),
    small_regions=len(every) - len(found),
    detections=len(seen.xy),
  )


def _maps(
  folder: pathlib.Path,
  drawn: SlideFigures,
  thumbnail: Picture | None,
  title: str,
  limit: float,
  settings: Report,
) -> SlideFigures:
  """The three maps, as pictures with legends and as overlays for the page."""
  canvases, overlays = {}, {}
  outlines = [ring for region in drawn.regions for ring in region.rings]
  people = drawn.annotated
  people = () if people is None else (*people.rings, *people.cut_out)
  for kind, name in MAP_FILES.items():
    canvas = heatmaps.draw(
      drawn.tile_map,
      kind,
      um_per_px=um_per_px(drawn.tile_map, settings),
      smooth_um=settings.smooth_um,
      limit=limit if kind == "contribution" else None,
    )
    if thumbnail is None:
      thumbnail = np.full((*canvas.values.shape, 3), 255, np.uint8)
    canvases[kind] = canvas
    overlays[kind] = heatmaps.overlay(thumbnail, canvas, drawn.tissue)
    picture = heatmaps.figure(
      thumbnail,
      canvas,
      title,
      tissue=drawn.tissue,
      outlines=outlines,
      annotations=people,
    )
    _write_jpeg(folder / name, picture)
  return drawn.with_(
    files=MAP_FILES.values(),
    slide=heatmaps.resized(thumbnail, canvas.values.shape, "thumbnail"),
    canvases=canvases,
    overlays=overlays,
  )


def _tiles(
  folder: pathlib.Path,
  drawn: SlideFigures,
  slide: Slide | None,
  settings: Report,
) -> SlideFigures:
  """Pictures of the highest and lowest tiles, of as many as there are."""
  # Few tiles: no tile is both among the highest and among the lowest.
  count = min(settings.tiles, len(drawn.tile_map.xy) // 2)
  files, both = [], {}
  for name in _ENDS:
    chosen = regions.extreme_tiles(
      drawn.tile_map,
      count,
      by=settings.tiles_by,
      apart_um=settings.tiles_apart_um,
      lowest=name == "lowest",
    )
    both[name] = []
    for rank, tile in enumerate(chosen, 1):
      picture, inner = _cut(slide, drawn.tile_map, tile.xy, settings)
      both[name].append(TilePicture(tile, picture, inner))
      if picture is not None:
        left, top, side = inner
        path = f"tiles/{name}_{rank:02d}_tile_{tile.index}.jpg"
        (folder / "tiles").mkdir(exist_ok=True)
        inside = picture[top : top + side, left : left + side]
        _write_jpeg(folder / path, inside)
        files.append(path)
  return drawn.with_(
    files=files, **{name: tuple(shown) for name, shown in both.items()}
  )


def _cut(
  slide: Slide | None, tile_map: TileMap, xy, settings: Report
) -> tuple[Picture | None, tuple[int, int, int]]:
  """A tile and its surroundings; (None, ...) where they cannot be read."""
  tiles = tile_map.in_level0()
  middle = np.asarray(xy) + tiles.tile_size / 2
  # No finer than the slide itself.
  side = max(8, min(settings.tile_px, int(tiles.tile_size)))
  whole = max(side, round(side * settings.context))
  corner = (whole - side) // 2
  inner = (corner, corner, side)
  if slide is None:
    return None, inner
  mpp = tiles.tile_size * slide.mpp / side
  try:
    return slide.read_region(middle, (whole, whole), mpp), inner
  except SlideError:
    return None, inner


def _cards(
  folder: pathlib.Path, drawn: SlideFigures, side: int
) -> SlideFigures:
  """Slide and map, small, for the cohort's page."""
  slide = None if drawn.slide_error else drawn.slide
  shown = (slide, drawn.overlays.get("probability"))
  cards = {}
  for name, picture in zip(CARDS, shown, strict=True):
    if picture is not None:
      small = figures.fit(picture, side)
      _write_jpeg(folder / name, small, 80)
      cards[name] = small.shape[1::-1]
  return drawn.with_(files=cards, cards=cards)


def _write_jpeg(path: pathlib.Path, picture: Picture, quality=88) -> None:
  atomic.write_atomic(path, figures.jpeg(picture, quality))
