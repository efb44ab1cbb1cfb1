"""The file of a slide, opened for its pages, and what it and its map know.

A slide whose file is missing, damaged, or another picture than the features
were made from is None with a reason, never an error: its map can be shown.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import tissue
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Slide
from wsiseq_jax.maps.tile_map import LEVEL0, TileMap
from wsiseq_jax.reports import figures

# Tissue is found in pictures of 4 um a pixel or coarser, of so many pixels.
_TISSUE_UM, _TISSUE_PX = 4.0, 2048
_MAX_MAP_PX = 100_000_000
Picture = UInt8[np.ndarray, "h w 3"]


@contextlib.contextmanager
def opened(
  entry: SlideEntry | None,
  reason: str,
  tile_map: TileMap | None,
  data: Mapping[str, Any],
) -> Iterator[tuple[Slide | None, str]]:
  """The open slide, or None and why."""
  if entry is None:
    yield None, reason
    return
  known = tile_map.level0_mpp if tile_map is not None else None
  try:
    slide = Slide.open(
      entry.path,
      # The features' scale is the one that lengths are told in.
      mpp_override=known or entry.mpp,
      default_mpp=data["default_mpp"] or None,
      name=entry.slide_id,
      reader=data["reader"],
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
  elif size is None and can_place(tile_map) and len(tile_map.xy):
    # As far as there are tiles.
    ends = tile_map.in_level0()
    ends = np.ceil(np.asarray(ends.xy).max(axis=0) + ends.tile_size)
    size = tuple(int(v) for v in ends)
  return dataclasses.replace(tile_map, level0_size=size)


def can_place(tile_map: TileMap) -> bool:
  """Whether its tiles have a place in level-0 pixels."""
  return tile_map.unit == LEVEL0 or bool(tile_map.level0_mpp)


def is_placed(tile_map: TileMap) -> bool:
  """Whether it can be drawn: it has tiles, and size and scale are known."""
  known = tile_map.level0_mpp and tile_map.level0_size
  return bool(known) and len(tile_map.xy) > 0


def um_per_px(tile_map: TileMap, settings: Mapping[str, Any]) -> float:
  """Micrometres per pixel of a slide's maps.

  Args:
    tile_map: with size and resolution.
    settings: `config.report`.

  Returns:
    The one asked for; by default such that the longer side has `longest_px`
    pixels, not finer than the slide and not coarser than a tile.

  Raises:
    ValueError: it makes too large a map, or one whose pixels exceed a tile.
  """
  mpp = float(tile_map.level0_mpp)
  tile_um = float(tile_map.in_level0().tile_size) * mpp
  wanted = settings["um_per_px"]
  longest_um = max(tile_map.level0_size) * mpp
  if not wanted:
    return min(max(longest_um / settings["longest_px"], mpp), tile_um)
  width, height = (side * mpp / wanted for side in tile_map.level0_size)
  if width * height > _MAX_MAP_PX or wanted > tile_um:
    raise ValueError(
      f"config.report.um_per_px = {wanted}: slide {tile_map.slide_id!r} would "
      f"have a map of {width:.0f} x {height:.0f} pixels; at most "
      f"{_MAX_MAP_PX:,} in all, and none larger than a tile ({tile_um:g} um)"
    )
  return float(wanted)


def map_size(tile_map: TileMap, settings: Mapping[str, Any]) -> int:
  """Longest side of the map in pixels."""
  if not is_placed(tile_map):
    return settings["longest_px"]
  longest_um = max(tile_map.level0_size) * tile_map.level0_mpp
  return int(np.ceil(longest_um / um_per_px(tile_map, settings)))


def tissue_mask(
  thumbnail: Picture | None,
  tile_map: TileMap,
  entry: SlideEntry | None,
  settings: Mapping[str, Any],
) -> tuple[np.ndarray | None, tuple[str, ...]]:
  """Where colours are painted, and what has to be said of it."""
  if thumbnail is None or settings["tissue"] == "none":
    return None, ()
  um = max(tile_map.level0_size) * tile_map.level0_mpp
  small = figures.fit(thumbnail, min(_TISSUE_PX, max(1, int(um / _TISSUE_UM))))
  try:
    if entry.mask_path:
      return tissue.load_mask(entry.mask_path, small.shape[:2]), ()
    wanted = {"method": settings["tissue"], **entry.tissue}
    scale = um / max(small.shape[:2])
    return tissue.tissue_mask(small, mpp=scale, **wanted), ()
  except SlideError as error:
    return None, (f"Whole tiles are painted: {error.message}.",)
