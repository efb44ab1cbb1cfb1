"""The job `segment_slides`: a trained network on whole slides.

Tiles overlap, are read as for features (`data_prep/wsi/tile_stream.py`), go
through the network, and their scores are blended on disk (`slide_masks.py`).
Memory does not depend on the size of a slide. A network of the method `nuclei`
also leaves the centres of nuclei, in the table that `wsiseq_jax/spatial` reads.

A slide is finished when its mark (`done/<slide_id>.json`) names the slide, the
network's weights and the settings. See `configs/segment_slides.py`.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tqdm
from ml_collections import ConfigDict

from data_prep import runs
from data_prep.files import atomic, tables
from data_prep.files.done import Done
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.synthetic import slides as synthetic
from data_prep.wsi import find, tile_stream, tiles
from data_prep.wsi.find import SlideEntry
from wsiseq_jax.data.background import Background
from wsiseq_jax.encoders import embed_tables, embed_tiles
from wsiseq_jax.encoders.embed_tables import FAILED, Outcome
from wsiseq_jax.maps import geojson
from wsiseq_jax.segment import (
  decide,
  nuclei,
  slide_masks,
  slide_model,
  slide_settings,
  student,
)
from wsiseq_jax.segment.slide_masks import Blended, MaskPlace
from wsiseq_jax.segment.slide_model import SlideModel
from wsiseq_jax.segment.slide_settings import SegmentSlides
from wsiseq_jax.spatial import detector, points

STRIDE = student.STRIDE
AREA_COLUMNS = (
  *("slide_id", "patient_id", "class", "area_mm2", "tissue_mm2"),
  *("share_of_tissue", "threshold", "cells"),
)
_QUEUED = 4  # batches decoded ahead
_BAD_LISTED = 100  # damaged places of one slide, in errors.csv


def run(config: ConfigDict) -> embed_tables.Summary:
  """The job; ends the program with the exit code unless all is well.

  Args:
    config: see `configs/segment_slides.py`.

  Raises:
    ValueError: a bad config, or nothing to do.
    SystemExit: some slides could not be used.
  """
  asked = slide_settings.read(config)
  summary = segment_slides(asked, slide_model.load(asked.model))
  print(summary.text)
  if summary.exit_code:
    sys.exit(summary.exit_code)
  return summary


def segment_slides(
  asked: SegmentSlides, model: SlideModel
) -> embed_tables.Summary:
  """Segments all slides that are not finished, and writes the tables."""
  return _Slides(asked, model).work()


@dataclasses.dataclass
class _Open:
  """A slide being segmented."""

  begin: tile_stream.Begin
  place: MaskPlace
  canvas: Blended
  tiles: int = 0
  # x, y in µm, height, number of the tile, of each batch
  cells: list[np.ndarray] = dataclasses.field(default_factory=list)
  start: float = dataclasses.field(default_factory=time.perf_counter)
  waited: float = 0.0  # for its tiles


class _Slides:
  """The state of a run."""

  def __init__(self, asked: SegmentSlides, model: SlideModel):
    self.asked, self.model = asked, model
    self.workdir = pathlib.Path(asked.workdir)
    tables.refuse_others(self.workdir, "workdir")
    for folder in ("masks", "png", "overlays", "geojson", "drafts"):
      (self.workdir / folder).mkdir(parents=True, exist_ok=True)
    self.cutting = slide_settings.cutting(asked, model.mpp)
    self.weights = slide_masks.ramp(
      asked.tiles.tile_px // STRIDE, asked.tiles.overlap_px // STRIDE
    )
    source = asked.data.slides
    if source == "synthetic":
      source = str(
        synthetic.make_cohort(
          self.workdir / "slides", slides=2, size_px=(640, 512)
        )
      )
    entries, errors = find.find_slides(source, asked.data.table)
    entries, bad_names = find.usable_names(entries)
    number, parts = runs.share(asked.data.part, "data.part")
    self.entries = entries[number - 1 :: parts]
    self.found_errors = [*errors, *bad_names]
    self.outcomes: dict[str, Outcome] = {}
    self.marks: dict[str, Done] = {}
    self.tiles, self.waited = 0, 0.0

  def work(self) -> embed_tables.Summary:
    """Segments all slides that are not finished, and writes the tables."""
    todo, start = self._todo(), time.perf_counter()
    try:
      if todo:
        program = embed_tiles.compile_tiles(
          self.model.apply,
          self.model.params,
          self.asked.tiles.tile_px,
          self.asked.data.batch_size,
        )
        self._segment(todo, program)
    finally:
      wrong = self._write_tables()
    seconds = time.perf_counter() - start if todo else 0.0
    return embed_tables.summary(
      self.workdir / runs.table_name("errors", self.asked.data.part),
      self.outcomes,
      wrong,
      self.tiles,
      seconds,
      self.waited / seconds if seconds else 0.0,
    )

  def _todo(self) -> list[SlideEntry]:
    todo, shaping = [], slide_settings.shaping(self.asked, self.model.threshold)
    for entry in self.entries:
      try:
        digest = tile_stream.slide_hash(
          entry, self.cutting, {"model": self.model.fingerprint, **shaping}
        )
      except SlideError as error:
        self._note(entry, error)
        continue
      mark = Done(self.workdir / "done" / f"{entry.slide_id}.json", digest)
      self.marks[entry.slide_id] = mark
      if (info := mark.read()) is None:
        todo.append(entry)
      else:
        self.outcomes[entry.slide_id] = Outcome(
          entry, info["status"], info, before=True
        )
    return todo

  def _note(self, entry: SlideEntry, error: SlideError) -> None:
    self.outcomes[entry.slide_id] = Outcome(entry, FAILED, {}, error=error)
    tqdm.tqdm.write(
      f"{entry.slide_id}: {error.error}: {error.message}", file=sys.stderr
    )

  def _segment(self, todo: Sequence[SlideEntry], program) -> None:
    data, slide = self.asked.data, None
    events = tile_stream.events(
      todo, self.cutting, self.workdir, data.batch_size, data.threads
    )
    stream = contextlib.closing(Background(events, _QUEUED))
    with stream as background, tqdm.tqdm(total=len(todo), unit="slide") as bar:
      while True:
        before = time.perf_counter()
        event = background.get()
        waited = time.perf_counter() - before
        self.waited += waited
        if slide is not None:
          slide.waited += waited
        match event:
          case None:
            break
          case tile_stream.Begin():
            slide = self._begin(event)
          case tiles.TileBatch():
            self._add(slide, event, program(self._padded(event.pixels)))
          case tile_stream.End():
            self._finish(slide, event)
            bar.update()
          case tile_stream.Failed():
            self._note(event.entry, event.error)
            bar.update()

  def _padded(self, pixels: np.ndarray) -> np.ndarray:
    missing = self.asked.data.batch_size - len(pixels)
    return np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))

  def _begin(self, event: tile_stream.Begin) -> _Open:
    info, slide_id = event.info, event.entry.slide_id
    place = MaskPlace.of(
      slide_id,
      info["level0_px"],
      info["mpp"],
      STRIDE * event.grid.mpp,
      info["bounds_xy"],
    )
    draft = atomic.temporary_path(self.workdir / "drafts" / slide_id)
    canvas = Blended(draft, place.size, len(self.model.classes))
    return _Open(event, place, canvas)

  def _add(self, slide: _Open, batch: tiles.TileBatch, found) -> None:
    grid, place = slide.begin.grid, slide.place
    scores = np.asarray(found["scores"], np.float32)
    seen = found.get("nuclei")
    seen = None if seen is None else np.asarray(seen, np.float32)
    half = len(self.weights) / 2
    for row, (corner, number) in enumerate(
      zip(batch.xy, batch.index, strict=True)
    ):
      centre = (corner + grid.tile_level0 / 2) / place.downsample
      left, top = (int(v) for v in np.rint(centre - half))
      slide.canvas.add(scores[row], top, left, self.weights)
      if seen is not None:
        self._nuclei(slide, seen[row], corner, int(number))
    slide.tiles += len(batch.index)

  def _nuclei(self, slide: _Open, seen, corner, number: int) -> None:
    """The nuclei of a tile, those of its overlaps left to its neighbours."""
    rule, grid = self.model.detection, slide.begin.grid
    side = self.asked.tiles.tile_px
    share = decide.enlarge(seen.transpose(2, 0, 1), (side, side))[0]
    xy, height = nuclei.peaks(share, rule.threshold, rule.apart_px)
    # Whole numbers are middles of pixels; slides count from corners.
    xy = xy + 0.5 - (side - grid.tile_px) / 2
    keep = ((xy >= -1) & (xy < grid.tile_px + 1)).all(axis=1)
    xy = corner * slide.begin.info["mpp"] + xy[keep] * grid.mpp
    owner = np.full((len(xy), 1), number)
    slide.cells.append(
      np.concatenate([xy, height[keep][:, None], owner], axis=1)
    )

  def _finish(self, slide: _Open, end: tile_stream.End) -> None:
    entry = slide.begin.entry
    info = {
      **slide.begin.info,
      "tiles": slide.tiles,
      "bad_tiles": end.bad_tiles,
      "bad": [error.state() for error in end.bad[:_BAD_LISTED]],
    }
    mark = self.marks[entry.slide_id]
    mark.clear()
    try:
      more, files = self._write(slide)
      seconds = max(time.perf_counter() - slide.start, 1e-9)
      info |= {**more, "seconds": seconds}
      info["waiting"] = min(1.0, slide.waited / seconds)
      mark.write(info, files)
    except Exception as error:  # a slide that cannot be written is a row
      self._note(
        entry, as_slide_error(error, entry.slide_id, "write", "config.workdir")
      )
      return
    finally:
      slide.canvas.remove()
    self.outcomes[entry.slide_id] = Outcome(entry, info["status"], info)
    self.tiles += slide.tiles
    tqdm.tqdm.write(
      f"{entry.slide_id}: {slide.tiles:,} tiles, "
      + ", ".join(
        f"{name} {area:.3g} mm²"
        for name, area in zip(
          self.model.classes, info["areas_mm2"], strict=True
        )
      ),
      file=sys.stderr,
    )
    self._write_tables()

  def _write(self, slide: _Open) -> tuple[dict[str, Any], list[pathlib.Path]]:
    """Writes the files of a slide; returns facts and files."""
    asked, model, place = self.asked, self.model, slide.place
    begin, name = slide.begin, slide.place.slide_id
    mask = slide.canvas.mask(
      model.threshold, begin.tissue, place.downsample / begin.downsample
    )
    paths = {
      kind: self.workdir / kind / f"{name}.{end}"
      for kind, end in (
        *(("masks", "tif"), ("png", "png"), ("overlays", "jpg")),
        ("geojson", "geojson"),
      )
    }
    slide_masks.write_tiff(paths["masks"], mask, place.um_per_px)
    slide_masks.write_png(paths["png"], mask, asked.output.png_px)
    picture = cv2.imread(str(self.workdir / "thumbnails" / f"{name}.jpg"))
    slide_masks.write_overlay(
      paths["overlays"], mask, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    )
    geojson.write(
      paths["geojson"],
      slide_masks.features(
        mask,
        place,
        model.classes,
        outline_um=asked.output.outline_um,
        min_area_um2=asked.output.min_area_um2,
        max_hole_um2=asked.output.max_hole_um2,
        kind="annotation" if model.detection is None else "detection",
      ),
    )
    info: dict[str, Any] = {
      "areas_mm2": slide_masks.areas(mask, len(model.classes), place.um_per_px),
      "um_per_px": place.um_per_px,
    }
    if model.detection is not None:
      paths["cells"] = self.workdir / "cells" / f"{name}.parquet"
      info["cells"] = self._write_cells(paths["cells"], slide)
    return info, list(paths.values())

  def _write_cells(self, path: pathlib.Path, slide: _Open) -> int:
    """Writes the nuclei of a slide, each once; glass has none."""
    found, begin = np.concatenate([np.zeros((0, 4)), *slide.cells]), slide.begin
    found = found[_on_tissue(found[:, :2] / begin.info["mpp"], begin)]
    xy, height, owner = found[:, :2], found[:, 2], found[:, 3].astype(int)
    apart = self.model.detection.apart_px * slide.begin.grid.mpp
    kept = detector.alone(xy, height, owner, apart)
    entry = slide.begin.entry
    cells = points.Points.of(
      entry.slide_id,
      entry.patient_id,
      xy[kept],
      np.full(len(kept), self.model.classes[0]),
      height[kept],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    points.write(path, cells)
    return len(kept)

  def _write_tables(self) -> list[SlideError]:
    rows = []
    for slide_id, outcome in sorted(self.outcomes.items()):
      info: Mapping[str, Any] = outcome.info
      for name, area in zip(
        self.model.classes, info.get("areas_mm2", ()), strict=False
      ):
        tissue = info["tissue_mm2"]
        rows.append(
          {
            "slide_id": slide_id,
            "patient_id": outcome.entry.patient_id,
            "class": name,
            "area_mm2": area,
            "tissue_mm2": tissue,
            "share_of_tissue": area / tissue if tissue else "",
            "threshold": self.model.threshold,
            "cells": info.get("cells", ""),
          }
        )
    part = self.asked.data.part
    tables.write(
      self.workdir / runs.table_name("areas", part), AREA_COLUMNS, rows
    )
    return embed_tables.write(
      self.workdir, part, self.outcomes, self.found_errors
    )


def _on_tissue(xy: np.ndarray, begin: tile_stream.Begin) -> np.ndarray:
  """Which level-0 places lie on the slide, on its tissue."""
  on_slide = ((xy >= 0) & (xy < begin.info["level0_px"])).all(axis=1)
  column, row = np.floor(xy[on_slide] / begin.downsample).astype(int).T
  height, width = begin.tissue.shape
  row, column = np.minimum(row, height - 1), np.minimum(column, width - 1)
  on_slide[on_slide] = begin.tissue[row, column]
  return on_slide
