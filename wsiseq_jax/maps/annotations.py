"""What people drew on a slide, to be looked at beside what models say.

One file a slide, named after it: polygons of ASAP, ImageScope, HALO (`.xml`,
`.annotations`) or QuPath (`.geojson`, `.json`, gzipped or not), or a mask
picture (`.png`, `.tif`, `.tiff`, also as `<slide_id>_mask.tif`, as the
challenge names them). They are read as for FROC
(`data_prep/wsi/annotations.py`); no model and no number of the cohort knows
them.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_prep.wsi import (
  annotation_files,
  annotation_masks,
  annotations,
  tissue_masks,
)
from wsiseq_jax.maps.regions import Region
from wsiseq_jax.maps.tile_map import TileMap

_MASKS = (".png", ".tif", ".tiff")
ENDS = (
  *(f"_mask{end}" for end in _MASKS),
  *annotation_files.POLYGONS,
  *_MASKS,
)
Ring = Float[np.ndarray, "_ 2"]


@dataclasses.dataclass(frozen=True, eq=False)
class Annotated:
  """The annotations of a slide."""

  file: str  # name of the file
  # Outlines of what is drawn, level-0 pixels; holes are rings too.
  rings: tuple[Ring, ...]
  cut_out: tuple[Ring, ...]  # outlines of what is cut out of it
  area_mm2: float  # of what is drawn, less what is cut out
  # Share of that area in regions of the model; NaN without area.
  in_regions: float
  skipped: tuple[str, ...] = ()  # one sentence for each thing that has no area


def find(
  folder: str,
  ids: Sequence[str],
  key: str = "data.annotations",
  ends: Sequence[str] = ENDS,
  doubled: dict[str, str] | None = None,
) -> dict[str, pathlib.Path]:
  """Files of slides in a folder; slides without one are not in it.

  Args:
    folder: the folder; '' has no files.
    ids: the slides.
    key: config key of the folder.
    ends: how the files end after the slide's name, longer ones first.
    doubled: takes what is wrong with slides of two files, by slide, which are
      then left out.

  Raises:
    ValueError: no such folder, no slide has a file, or one has two and
      nothing takes that.
  """
  if not folder:
    return {}
  place = pathlib.Path(folder).expanduser()
  if not place.is_dir():
    raise ValueError(f"config.{key} = {folder!r}: no such folder")
  found, several = annotation_files.of_slides(place, ids, ends)
  twice = {
    slide_id: f"config.{key}: slide {slide_id!r} has two files, "
    f"{paths[0].name} and {paths[1].name}; leave one"
    for slide_id, paths in several.items()
  }
  if twice and doubled is None:
    raise ValueError(next(iter(twice.values())))
  if doubled is not None:
    doubled |= twice
  if not found and not twice:
    some = ids[0] if len(ids) else "SLIDE"
    raise ValueError(
      f"config.{key} = {folder!r}: none of the {len(ids)} slides has a file "
      f"there, such as {some}.xml; allowed: {tuple(ends)}"
    )
  return found


def read(
  path: pathlib.Path,
  tile_map: TileMap,
  bounds_xy: tuple[int, int],
  um_per_px: float,
  regions: Sequence[Region],
  data: Mapping[str, Any],
) -> Annotated:
  """Reads a file for a slide whose size and resolution are known."""
  size, mpp = tile_map.level0_size, tile_map.level0_mpp
  downsample = um_per_px / mpp
  rings, cut_out, skipped = (), (), ()
  if annotation_files.is_polygons(path):
    include = tuple(data["annotation_include"]) or annotations.INCLUDE
    others = (group for group in annotations.EXCLUDE if group not in include)
    found = annotations.read(
      path,
      include=include,
      exclude=tuple(data["annotation_exclude"] or others),
      ignore=tuple(data["annotation_ignore"]),
      bounds_xy=bounds_xy if annotation_files.is_geojson(path) else (0, 0),
    )
    mask = annotations.draw(found, size, downsample)
    rings = tuple(ring for one in found.include for ring in one.rings)
    cut_out = tuple(ring for one in found.exclude for ring in one.rings)
    skipped = found.skipped
  else:
    named = [int(v) for v in data["annotation_include"] if v.isdigit()]
    mask = annotation_masks.read_mask(path, size, downsample, named or None)
    rings = tuple(
      np.array(ring) for ring in tissue_masks.mask_polygons(mask, downsample)
    )
  inside = np.zeros_like(mask)
  for region in regions:
    inside |= annotations.fill(
      [np.asarray(ring) / downsample for ring in region.rings], mask.shape
    )
  count = int(mask.sum())
  return Annotated(
    path.name,
    rings,
    cut_out,
    tissue_masks.tissue_mm2(mask, um_per_px),
    float(inside[mask].mean()) if count else math.nan,
    skipped,
  )
