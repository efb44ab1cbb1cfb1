"""The work on one slide: cells, window, regions, numbers, files.

Runs in a process of its own; whatever is wrong with a slide's files becomes a
row of errors.csv. A slide is done when its mark says what it was made from.
"""

import dataclasses
import pathlib
import time
from typing import Any

import cv2
import numpy as np
import shapely
from jaxtyping import Bool, UInt8

from data_prep.files import done
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import damage, find, tissue
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slide_tissue import tissue_of
from data_prep.wsi.slides import Slide
from wsiseq_jax.spatial import (
  cell_files,
  detector,
  measures,
  placing,
  regions,
  slide_files,
  windows,
)
from wsiseq_jax.spatial.placing import Place
from wsiseq_jax.spatial.points import UNKNOWN, Points
from wsiseq_jax.spatial.settings import Settings
from wsiseq_jax.spatial.windows import Window

OK, FAILED, NO_TISSUE, FEW = "ok", "error", "no_tissue", "too_few_cells"
# Changes when slides of an older version must be done again.
VERSION = 2
# Tissue is found at so many µm a pixel or coarser.
_TISSUE_UM = 4.0


@dataclasses.dataclass(frozen=True)
class SlideTask:
  """One slide, and all that is needed to do it."""

  slide_id: str
  patient_id: str
  folder: str  # where its files go
  settings: Settings
  entry: SlideEntry | None  # its file; None without one
  cells: str = ""  # file of its cells; '' = look for nuclei
  region: str = ""  # file of its regions; '' = none
  window: str = ""  # file of what is looked at; '' = the whole slide

  def mark(self) -> done.Done:
    """The mark of the finished slide.

    Raises:
      SlideError: one of its files cannot be read.
    """
    keys = ("cells", "detector", "window", "regions", "statistics", "report")
    files = {}
    for name in ("cells", "region", "window"):
      path = getattr(self, name)
      try:
        files[name] = path and done.file_digest(path, whole=name != "cells")
      except OSError as error:
        raise SlideError(
          f"cannot read {path}: {error.strerror}", "find", "unreadable"
        ) from error
    data = self.settings.data
    return done.Done(
      pathlib.Path(self.folder) / "done.json",
      {
        "version": VERSION,
        "ids": [self.slide_id, self.patient_id],
        "slide": find.content(self.entry) if self.entry else None,
        "settings": {key: getattr(self.settings, key) for key in keys},
        "data": [data.default_mpp, data.reader],
        "files": files,
      },
    )


@dataclasses.dataclass(frozen=True)
class CellsOutcome:
  """What became of a slide."""

  slide_id: str
  info: dict[str, Any]  # as in its mark; empty if it failed
  error: SlideError | None = None


def work(task: SlideTask) -> CellsOutcome:
  """Does a slide; whatever is wrong with it is in the outcome."""
  start, folder = time.perf_counter(), pathlib.Path(task.folder)
  cv2.setNumThreads(1)  # parallel over slides
  try:
    folder.mkdir(parents=True, exist_ok=True)
    stage = task.mark()
    stage.clear()
    info, files = _do(task, folder)
    info["seconds"] = time.perf_counter() - start
    stage.write(info, files)
    return CellsOutcome(task.slide_id, info)
  except Exception as error:  # the one place where a slide may fail at all
    return CellsOutcome(
      task.slide_id,
      {},
      as_slide_error(error, task.slide_id, "spatial", "config.workdir"),
    )


@dataclasses.dataclass
class _Seen:
  """What is known of a slide's picture."""

  place: Place
  thumbnail: UInt8[np.ndarray, "h w 3"] | None = None
  um_per_px: float = 0.0  # of the thumbnail
  mask: Bool[np.ndarray, "h2 w2"] | None = None
  downsample: float = 1.0  # level-0 pixels per pixel of the mask
  tissue: shapely.Geometry | None = None


def _do(task: SlideTask, folder: pathlib.Path):
  """Computes and writes; returns the facts and the files."""
  settings, notes = task.settings, []
  slide = _open(task)
  try:
    seen = _look(task, slide, notes)
    annotated = None
    if task.window:
      annotated, found = regions.read(
        task.window, seen.place, _drawn(settings, everything=True)
      )
      notes += found
    around_cells = slide is None or settings.window.source == "cells"
    if not around_cells:
      window = regions.window(
        seen.place, seen.tissue, annotated, settings.window.min_area_um2
      )
      seen.place = dataclasses.replace(seen.place, window=window)
    cells = _cells(task, slide, seen, notes)
  finally:
    if slide is not None:
      slide.close()
  if around_cells:
    window = regions.window(
      seen.place,
      regions.around(cells.xy_um, settings.window.close_um),
      annotated,
      settings.window.min_area_um2,
    )
  window = windows.union([window])
  placed = len(cells)
  cells, lost = placing.within(cells, window)
  notes += lost
  region = _region(task, seen.place, window, notes)
  if not len(cells):
    raise SlideError(
      f"none of {placed} cells lies in the window", "cells", "no_cells"
    )
  measured = measures.measure(cells, window, region, settings)
  notes += measured.notes
  enough = measures.chosen_types(cells, settings)
  files = slide_files.write(
    folder,
    seen.place,
    cells,
    window,
    region,
    measured,
    seen.thumbnail,
    settings,
  )
  info = {
    "status": OK if enough else FEW,
    "reason": "" if enough else f"{len(cells)} cells",
    "cells": len(cells),
    "types": cells.counts(),
    "outside": placed - len(cells),
    "window_mm2": window.area / 1e6,
    "region_mm2": None if region is None else region.area / 1e6,
    "mpp": seen.place.mpp,
    "level0_px": seen.place.size_px,
    "bounds_xy": seen.place.bounds_xy,
    "um_per_px": seen.um_per_px,
    "notes": [_of(note, task.slide_id).state() for note in notes],
  }
  return info, files


def _of(note: SlideError, slide_id: str) -> SlideError:
  note.slide = note.slide or slide_id
  return note


def _open(task: SlideTask) -> Slide | None:
  if task.entry is None:
    return None
  data = task.settings.data
  return Slide.open(
    task.entry.path,
    mpp_override=task.entry.mpp,
    default_mpp=data.default_mpp or None,
    name=task.slide_id,
    reader=data.reader,
  )


def _look(
  task: SlideTask, slide: Slide | None, notes: list[SlideError]
) -> _Seen:
  """The slide's picture and tissue."""
  settings = task.settings
  if slide is None:
    mpp = settings.cells.mpp or settings.data.default_mpp or np.nan
    return _Seen(
      Place(task.slide_id, task.patient_id, mpp, None, (0, 0), (1.0,), None)
    )
  place = Place(
    task.slide_id,
    task.patient_id,
    slide.mpp,
    slide.level0_px,
    slide.bounds[:2],
    tuple(level.downsample for level in slide.levels),
    None,
  )
  seen = _Seen(place)
  lost: list[SlideError] = []
  seen.thumbnail, downsample = slide.thumbnail(settings.report.longest_px, lost)
  seen.um_per_px = downsample * slide.mpp
  longest = max(slide.level0_px) * slide.mpp / _TISSUE_UM
  most = min(settings.window.thumbnail_px, max(64, int(longest)))
  picture, seen.downsample = slide.thumbnail(most, lost)
  notes += damage.by_place(lost)
  seen.mask = np.ones(picture.shape[:2], bool)
  if settings.window.source == "tissue":
    seen.mask = _tissue(task, slide, picture, seen.downsample)
    seen.tissue = regions.outlines(seen.mask, seen.downsample * slide.mpp)
  return seen


def _tissue(task: SlideTask, slide: Slide, picture, downsample) -> np.ndarray:
  """The tissue of a picture, or what somebody drew."""
  wanted, entry = task.settings.window, task.entry
  mask = tissue_of(
    entry,
    picture,
    slide.mpp * downsample,
    wanted.method,
    max_hole_um2=wanted.max_hole_um2,
    min_area_um2=wanted.min_area_um2,
  )
  if not mask.any():
    raise SlideError(tissue.why_empty(picture), "window", NO_TISSUE)
  return mask


def _drawn(settings: Settings, everything: bool = False) -> regions.Drawn:
  """How files of regions are read; of windows, all that is drawn counts."""
  wanted = settings.regions
  if everything:
    return regions.Drawn(include=None)
  return regions.Drawn(
    include=wanted.include,
    exclude=wanted.exclude,
    ignore=wanted.ignore,
    threshold=wanted.threshold,
    min_area_um2=wanted.min_area_um2,
  )


def _cells(task: SlideTask, slide, seen: _Seen, notes) -> Points:
  """The cells of a slide, from a file or looked for."""
  settings = task.settings
  if not task.cells:
    raw, bad = detector.detect(
      slide, seen.mask, seen.downsample, settings.detector
    )
    notes += bad
    unit, mpp = placing.FILE, 0.0
  else:
    raw = cell_files.read(task.cells, settings.cells.score)
    unit, mpp = settings.cells.unit, settings.cells.mpp
  found, lost = placing.place(raw, seen.place, unit, mpp)
  notes += lost
  return _renamed(found, settings)


def _renamed(found: Points, settings: Settings) -> Points:
  """Types under the names of the config, without doubtful cells."""
  keep = ~(found.score < settings.cells.min_score)  # NaN stays
  found = _by_score(found, settings.cells.positive)
  new = {old: name for name, olds in settings.cells.types for old in olds}
  names = np.array([new.get(name, name) for name in found.names], str)
  kept = found.kept(keep)
  return Points.of(
    found.slide_id,
    found.patient_id,
    kept.xy_um,
    names[kept.type] if len(names) else np.zeros(0, str),
    kept.score,
  )


def _by_score(found: Points, limits: tuple[float, ...]) -> Points:
  """Types by score; a cell without one keeps its own."""
  if not limits:
    return found
  known = np.isfinite(found.score)
  if not known.any():
    raise SlideError(
      f"config.cells.positive = {limits}, and no cell has a score: "
      "config.cells.score names the column, config.detector.score = 'dab' "
      "measures nuclei",
      "cells",
      "no_score",
    )
  names = ("positive",) if len(limits) == 1 else ("1+", "2+", "3+")
  level = np.searchsorted(np.float32(limits), found.score, side="right")
  level = np.array(["negative", *names], object)[np.where(known, level, 0)]
  own = np.array(found.names, object)[found.type]
  typed = np.where(own == UNKNOWN, level, own + ": " + level)
  return Points.of(
    found.slide_id,
    found.patient_id,
    found.xy_um,
    np.where(known, typed, own).astype(str),
    found.score,
  )


def _region(
  task: SlideTask, place: Place, window: Window, notes
) -> Window | None:
  """The regions of a slide that meet its window, and rows on them."""
  if not task.region:
    if task.settings.data.regions:
      notes.append(
        SlideError(
          "no file of regions: cells are held against cells alone",
          "regions",
          "no_region",
        )
      )
    return None
  region, found = regions.read(task.region, place, _drawn(task.settings))
  notes += found
  if region is None:
    return None
  notes += regions.off_tissue(region, window)
  share = region.intersection(window).area / window.area
  if 0 < share < 1 - 1e-6:
    return region
  where = "none of the window" if share == 0 else "the whole window"
  notes.append(
    SlideError(
      f"regions cover {where}: there is nothing to hold cells against",
      "regions",
      "no_region",
    )
  )
  return None
