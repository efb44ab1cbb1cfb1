"""Makes the records of one slide: its tiles, and what is drawn on them.

Polygons of ASAP and QuPath become masks: a class covers what its polygons do,
a later class lies over an earlier one, and what is cut out is background. What
nobody drew on is background too: a slide with annotations is annotated all
over. Without a file nothing is known of a slide's masks.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, UInt8

from data_prep import groups
from data_prep.files.errors import NOTE, SlideError, as_slide_error
from data_prep.pictures import records
from data_prep.pictures.classes import Classes
from data_prep.pictures.job import PictureJob, PictureMaker
from data_prep.wsi import annotation_files, annotations, damage, tiles, tissue
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slide_tissue import open_entry, tissue_of
from data_prep.wsi.slides import Slide

_BATCH = 16  # tiles read at a time


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TileJob(PictureJob):
  """The tiles of one slide; the group is called after it."""

  drawn: str  # file of its annotations, '' = none

  ID: ClassVar[str] = "slide_id"
  UNIT: ClassVar[str] = "slides"


def find_annotations(
  folder: str, ids: list[str]
) -> tuple[dict[str, pathlib.Path], list[SlideError]]:
  """Files of slides in a folder, and a row for each slide that has several.

  Raises:
    ValueError: no such folder, or no slide has a file there.
  """
  if not folder:
    return {}, []
  place = pathlib.Path(folder).expanduser()
  if not place.is_dir():
    raise ValueError(f"config.tiles.annotations = {folder!r}: no such folder")
  found, several = annotation_files.of_slides(place, ids)
  if not found and not several:
    raise ValueError(
      f"config.tiles.annotations = {folder!r}: none of the {len(ids)} slides "
      f"has a file there, such as {ids[0] if ids else 'SLIDE'}.xml"
    )
  errors = [
    SlideError(
      f"config.tiles.annotations: the slide has two files, {paths[0].name} "
      f"and {paths[1].name}; leave one",
      "annotations",
      "two_files",
      slide_id,
    )
    for slide_id, paths in several.items()
  ]
  return found, errors


def process(job: TileJob) -> groups.GroupOutcome:
  """Makes the tiles of one slide; what goes wrong is in the result."""
  cv2.setNumThreads(1)  # parallel over slides; more threads are in the way
  maker = PictureMaker(job.classes)
  (entry,) = job.members
  try:
    job.refuse_deadly(entry.slide_id)
    # A list: a slide that fails half-way gives nothing.
    made = list(_records(entry, job, maker))
  except Exception as error:  # the one place where a slide may fail
    made, maker.done = [], []
    maker.errors.append(
      as_slide_error(error, entry.slide_id, "read", "config.out")
    )
  return groups.write(job, iter(made), records.PictureSchema(), maker.facts)


def _records(
  entry: SlideEntry, job: TileJob, maker: PictureMaker
) -> Iterator[records.PictureRecord]:
  wanted, rules = job.config["tiles"], job.config["tissue"]
  jpeg = job.config["jpeg"]
  with open_entry(entry, wanted) as slide:
    drawn = _polygons(job, entry, slide, maker)
    notes: list[SlideError] = []
    thumbnail, downsample = slide.thumbnail(rules["thumbnail_px"], notes)
    mask = tissue_of(entry, thumbnail, slide.mpp * downsample, rules["method"])
    grid = tiles.tile_grid(
      slide,
      mask,
      downsample,
      tile_px=wanted["px"],
      mpp=wanted["mpp"],
      overlap_px=wanted["overlap_px"],
      min_tissue=wanted["min_tissue"],
      anchor=wanted["anchor"],
    )
    grid = _some(grid, wanted["most"], job.config["seed"], entry.slide_id)
    if not len(grid):
      reason = f"no tile holds {wanted['min_tissue']:.0%} tissue"
      reason = reason if mask.any() else tissue.why_empty(thumbnail)
      raise SlideError(reason, "tiles", "no_tissue")
    scale = grid.tile_level0 / grid.tile_px
    for batch in tiles.read_tiles(
      slide, grid, window_px=grid.tile_px, batch_size=_BATCH, bad=notes
    ):
      for pixels, (x, y) in zip(batch.pixels, batch.xy.tolist(), strict=True):
        yield maker.record(
          (f"{entry.slide_id}/x{x}_y{y}", entry.slide_id, entry.patient_id),
          simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels),
            quality=jpeg["quality"],
            colorsubsampling=jpeg["subsampling"],
          ),
          None if drawn is None else _draw(drawn, (x, y), scale, grid.tile_px),
          _cut(mask, (x, y), scale, downsample, grid.tile_px),
          mpp=grid.mpp,
          level0_xy=(float(x), float(y)),
        )
    maker.errors += damage.by_place(notes)
    for error in maker.errors:
      error.slide = error.slide or entry.slide_id


def _some(
  grid: tiles.TileGrid, most: int, seed: int, slide_id: str
) -> tiles.TileGrid:
  """A grid with at most so many tiles, drawn."""
  if not most or len(grid) <= most:
    return grid
  rng = np.random.default_rng([seed, *slide_id.encode()])
  chosen = np.sort(rng.permutation(len(grid))[:most])
  return dataclasses.replace(
    grid, xy=grid.xy[chosen], tissue=grid.tissue[chosen]
  )


# Class number and rings, in the order they are drawn.
Drawing = list[tuple[int, tuple[np.ndarray, ...]]]


def _polygons(
  job: TileJob, entry: SlideEntry, slide: Slide, maker: PictureMaker
) -> Drawing | None:
  """What is drawn on a slide; None if nobody drew."""
  if not job.drawn:
    return None
  wanted, classes = job.config["tiles"], job.classes
  try:
    found = annotations.read(
      job.drawn,
      include=None,
      exclude=wanted["exclude"],
      ignore=wanted["ignore"],
      # QuPath counts from the corner of the scanned part.
      bounds_xy=slide.bounds[:2]
      if annotation_files.is_geojson(job.drawn)
      else (0, 0),
    )
    shapes = [(classes.number(one.group), one) for one in found.include]
    annotations.draw(found, slide.level0_px, 64.0)  # outside of the slide?
  except ValueError as error:
    raise SlideError(str(error), "annotations", "bad_annotations") from error
  if found.skipped:
    maker.errors.append(
      SlideError(
        f"{os.path.basename(job.drawn)}: {len(found.skipped)} shapes are not "
        f"drawn: {found.skipped[0]}",
        NOTE,
        "no_area",
        entry.slide_id,
      )
    )
  shapes.sort(key=lambda item: item[0])
  cut_out = [(0, one.rings) for one in found.exclude]
  return [(number, one.rings) for number, one in shapes if number] + cut_out


def _draw(
  drawn: Drawing, xy: tuple[int, int], scale: float, px: int
) -> UInt8[np.ndarray, "h w"]:
  """The classes on a tile at level-0 `xy` whose pixels are `scale` wide."""
  mask = np.zeros((px, px), np.uint8)
  low, high = np.array(xy), np.array(xy) + px * scale
  for number, rings in drawn:
    outer = rings[0]
    if (outer.max(0) <= low).any() or (outer.min(0) >= high).any():
      continue
    moved = [(ring - low) / scale for ring in rings]
    mask[annotations.fill(moved, mask.shape)] = number
  return mask


def _cut(
  mask: Bool[np.ndarray, "h w"],
  xy: tuple[int, int],
  scale: float,
  downsample: float,
  px: int,
) -> Bool[np.ndarray, "px px"]:
  """The tissue of a tile, from that of the whole slide."""
  rows, columns = (
    ((start + (np.arange(px) + 0.5) * scale) / downsample).astype(int)
    for start in (xy[1], xy[0])
  )
  inside = (rows < mask.shape[0])[:, None] & (columns < mask.shape[1])
  rows = np.minimum(rows, mask.shape[0] - 1)
  columns = np.minimum(columns, mask.shape[1] - 1)
  return mask[rows[:, None], columns] & inside


def labels_of(
  info: Mapping[str, Any], classes: Classes, min_share: float
) -> tuple[float, ...]:
  """Labels of a tile by what is drawn on it; NaN where nobody drew."""
  if info["share"] is None:
    return (float("nan"),) * len(classes.names)
  return tuple(float(0 < share >= min_share) for share in info["share"][1:])
