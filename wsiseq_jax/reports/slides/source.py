"""A slide's files, and what the slide and its map know of one another.

The slide's file adds to the map: pictures, the outline of tissue, its size and
scale. Where it is missing, damaged or another picture than the features were
made from, it is left out, with the reason.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slide_tissue import tissue_of
from data_prep.wsi.slides import Slide
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports import figures
from wsiseq_jax.reports.slides.settings import Data, Report

# Tissue is found in pictures of 4 um a pixel or coarser, of so many pixels.
_TISSUE_UM, _TISSUE_PX = 4.0, 2048
_MAX_MAP_PX = 100_000_000
Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class SlideFiles:
  """The files that a slide's page is drawn from."""

  entry: SlideEntry | None  # the slide; None if there is none
  missing: str  # why there is none
  tile_map: pathlib.Path | None  # its map; None if it has none
  map_problem: str  # why the map cannot be read; '' if it can
  annotation: pathlib.Path | None  # what people drew on it; None if it has none
  annotation_problem: str = ""  # why there is none


@contextlib.contextmanager
def opened(
  source: SlideFiles, tile_map: TileMap | None, data: Data
) -> Iterator[tuple[Slide | None, str]]:
  """The open slide, or None and why."""
  entry = source.entry
  if entry is None:
    yield None, source.missing
    return
  known = tile_map.level0_mpp if tile_map is not None else None
  try:
    slide = Slide.open(
      entry.path,
      # Lengths are those of the features' scale.
      mpp_override=known or entry.mpp,
      default_mpp=data.default_mpp or None,
      name=entry.slide_id,
      reader=data.reader,
    )
  except SlideError as error:
    yield None, error.message
    return
  with slide:
    size = tile_map.level0_size if tile_map is not None else None
    if size and tuple(size) != slide.level0_px:
      wide, high = slide.level0_px
      yield (
        None,
        f"{entry.path} has {wide} x {high} pixels, the features were made "
        f"from a slide of {size[0]} x {size[1]}: it is another picture",
      )
    else:
      yield slide, ""


def completed(
  tile_map: TileMap, slide: Slide | None, default_mpp: float
) -> TileMap:
  """The map with what the slide knows and the features did not."""
  mpp, size = tile_map.level0_mpp, tile_map.level0_size
  if not mpp:
    mpp = slide.mpp if slide is not None else default_mpp or None
  tile_map = dataclasses.replace(tile_map, level0_mpp=mpp)
  if size is None and slide is not None:
    size = slide.level0_px
  elif size is None and tile_map.has_places and len(tile_map.xy):
    # As far as there are tiles.
    ends = tile_map.in_level0()
    ends = np.ceil(np.asarray(ends.xy).max(axis=0) + ends.tile_size)
    size = tuple(int(v) for v in ends)
  return dataclasses.replace(tile_map, level0_size=size)


def um_per_px(tile_map: TileMap, settings: Report) -> float:
  """Scale of a slide's maps: the one asked for, or `longest_px` pixels long.

  By default not finer than the slide and not coarser than a tile.
  """
  mpp = float(tile_map.level0_mpp)
  tile_um = float(tile_map.in_level0().tile_size) * mpp
  wanted = settings.um_per_px
  longest_um = max(tile_map.level0_size) * mpp
  if not wanted:
    return min(max(longest_um / settings.longest_px, mpp), tile_um)
  width, height = (side * mpp / wanted for side in tile_map.level0_size)
  if width * height > _MAX_MAP_PX or wanted > tile_um:
    raise ValueError(
      f"config.report.um_per_px = {wanted}: slide {tile_map.slide_id!r} would "
      f"have a map of {width:.0f} x {height:.0f} pixels; at most "
      f"{_MAX_MAP_PX:,} in all, and none larger than a tile ({tile_um:g} um)"
    )
  return float(wanted)


def map_px(tile_map: TileMap | None, settings: Report) -> int:
  """Longest side of the map in pixels."""
  if tile_map is None or not tile_map.can_be_drawn:
    return settings.longest_px
  longest_um = max(tile_map.level0_size) * tile_map.level0_mpp
  return int(np.ceil(longest_um / um_per_px(tile_map, settings)))


def tissue_mask(
  thumbnail: Picture | None,
  tile_map: TileMap,
  entry: SlideEntry | None,
  settings: Report,
) -> tuple[np.ndarray | None, tuple[str, ...]]:
  """Where colours are painted, and what has to be said of it."""
  if thumbnail is None or settings.tissue == "none":
    return None, ()
  um = max(tile_map.level0_size) * tile_map.level0_mpp
  small = figures.fit(thumbnail, min(_TISSUE_PX, max(1, int(um / _TISSUE_UM))))
  try:
    scale = um / max(small.shape[:2])
    return tissue_of(entry, small, scale, settings.tissue), ()
  except SlideError as error:
    return None, (f"Whole tiles are painted: {error.message}.",)
