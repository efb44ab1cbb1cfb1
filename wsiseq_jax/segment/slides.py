"""The job `segment_slides`: a trained network on whole slides.

Tiles overlap, are read as for features (`data_prep/wsi/tile_stream.py`), go
through the network, and their scores are blended on disk (`slide_masks.py`).
Memory does not depend on the size of a slide. A network of the method `nuclei`
also leaves the centres of nuclei, in the table that `wsiseq_jax/spatial` reads.

A slide is finished when its mark (`done/<slide_id>.json`) names the slide, the
network's weights and the settings. See `configs/segment_slides.py`.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from data_prep import runs
from data_prep.files import atomic, tables
from data_prep.files.errors import SlideError
from data_prep.wsi import tile_stream, tiles
from wsiseq_jax.encoders import slide_run
from wsiseq_jax.encoders.run_tables import Summary
from wsiseq_jax.encoders.slide_run import OpenSlide
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
_FILES = {"masks": "tif", "png": "png", "overlays": "jpg", "geojson": "geojson"}


def run(config: ConfigDict) -> Summary:
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


def segment_slides(asked: SegmentSlides, model: SlideModel) -> Summary:
  """Segments all slides that are not finished, and writes the tables."""
  return _Slides(slide_settings.sized(asked, model.crop_px), model).run()


@dataclasses.dataclass
class _Scores:
  """Scores of a slide, as far as they have come."""

  place: MaskPlace
  canvas: Blended
  # x, y in µm, height, number of the tile, of each batch
  cells: list[np.ndarray] = dataclasses.field(default_factory=list)


class _Slides(slide_run.SlideRun):
  """Masks of slides."""

  stage, drawn = "write", 2

  def __init__(self, asked: SegmentSlides, model: SlideModel):
    shaping = slide_settings.shaping(asked, model.threshold)
    super().__init__(
      asked.workdir,
      asked.data,
      slide_settings.cutting(asked, model.mpp),
      {"model": model.fingerprint, **shaping},
    )
    self._asked, self._model = asked, model
    for folder in (*_FILES, "drafts"):
      (self.workdir / folder).mkdir(parents=True, exist_ok=True)
    self._weights = slide_masks.ramp(
      asked.tiles.tile_px // STRIDE, asked.tiles.overlap_px // STRIDE
    )

  def program(self) -> Callable[[np.ndarray], Any]:
    """The network, compiled."""
    return slide_run.compile_tiles(
      self._model.apply,
      self._model.params,
      self._asked.tiles.tile_px,
      self.data.batch_size,
    )

  def begin(self, event: tile_stream.Begin) -> _Scores:
    """An empty canvas on disk."""
    info, slide_id = event.info, event.entry.slide_id
    place = MaskPlace.of(
      slide_id,
      info["level0_px"],
      info["mpp"],
      STRIDE * event.grid.mpp,
      info["bounds_xy"],
    )
    draft = atomic.temporary_path(self.workdir / "drafts" / slide_id)
    return _Scores(place, Blended(draft, place.size, len(self._model.classes)))

  def release(self, slide: OpenSlide) -> None:
    """Removes the canvas."""
    slide.content.canvas.remove()

  def words(self, info: Mapping[str, Any]) -> str:
    """The area of each class."""
    areas = zip(self._model.classes, info["areas_mm2"], strict=True)
    return ", ".join(f"{name} {area:.3g} mm²" for name, area in areas)

  def paths(self, slide_id: str) -> dict[str, pathlib.Path]:
    """Where the files of a slide are."""
    ends = dict(_FILES)
    if self._model.detection is not None:
      ends["cells"] = "parquet"
    return {
      kind: self.workdir / kind / f"{slide_id}.{end}"
      for kind, end in ends.items()
    }

  def take(self, slide: OpenSlide, batch: tiles.TileBatch, output: Any) -> None:
    """Blends scores into the canvas, and keeps nuclei."""
    grid, found = slide.begin.grid, slide.content
    scores = np.asarray(output["scores"], np.float32)
    seen = output.get("nuclei")
    seen = None if seen is None else np.asarray(seen, np.float32)
    half = len(self._weights) / 2
    for row, (corner, number) in enumerate(
      zip(batch.xy, batch.index, strict=True)
    ):
      centre = (corner + grid.tile_level0 / 2) / found.place.downsample
      left, top = (int(v) for v in np.rint(centre - half))
      found.canvas.add(scores[row], top, left, self._weights)
      if seen is not None:
        self._nuclei(slide, seen[row], corner, int(number))

  def _nuclei(self, slide: OpenSlide, seen, corner, number: int) -> None:
    """The nuclei of a tile, those of its overlaps left to its neighbours."""
    rule, grid = self._model.detection, slide.begin.grid
    side = self._asked.tiles.tile_px
    share = decide.enlarge(seen.transpose(2, 0, 1), (side, side))[0]
    xy, height = nuclei.peaks(share, rule.threshold, rule.apart_px)
    # Whole numbers are middles of pixels; slides count from corners.
    xy = xy + 0.5 - (side - grid.tile_px) / 2
    keep = ((xy >= -1) & (xy < grid.tile_px + 1)).all(axis=1)
    xy = corner * slide.begin.info["mpp"] + xy[keep] * grid.mpp
    owner = np.full((len(xy), 1), number)
    slide.content.cells.append(
      np.concatenate([xy, height[keep][:, None], owner], axis=1)
    )

  def write(
    self, slide: OpenSlide, info: Mapping[str, Any]
  ) -> tuple[dict[str, Any], list[pathlib.Path]]:
    """Writes the files of a slide."""
    asked, model, place = self._asked, self._model, slide.content.place
    begin, name = slide.begin, place.slide_id
    mask = slide.content.canvas.mask(
      model.threshold, begin.tissue, place.downsample / begin.downsample
    )
    paths = self.paths(name)
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
    facts: dict[str, Any] = {
      "areas_mm2": slide_masks.areas(mask, len(model.classes), place.um_per_px),
      "um_per_px": place.um_per_px,
    }
    if model.detection is not None:
      facts["cells"] = self._write_cells(paths["cells"], slide)
    return facts, list(paths.values())

  def _write_cells(self, path: pathlib.Path, slide: OpenSlide) -> int:
    """Writes the nuclei of a slide, each once; glass has none."""
    begin = slide.begin
    found = np.concatenate([np.zeros((0, 4)), *slide.content.cells])
    found = found[_on_tissue(found[:, :2] / begin.info["mpp"], begin)]
    xy, height, owner = found[:, :2], found[:, 2], found[:, 3].astype(int)
    apart = self._model.detection.apart_px * slide.begin.grid.mpp
    kept = detector.alone(xy, height, owner, apart)
    entry = slide.begin.entry
    cells = points.Points.of(
      entry.slide_id,
      entry.patient_id,
      xy[kept],
      np.full(len(kept), self._model.classes[0]),
      height[kept],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    points.write(path, cells)
    return len(kept)

  def write_tables(self) -> list[SlideError]:
    """Writes areas.csv besides."""
    rows = []
    for slide_id, outcome in sorted(self.outcomes.items()):
      info: Mapping[str, Any] = outcome.info
      for name, area in zip(
        self._model.classes, info.get("areas_mm2", ()), strict=False
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
            "threshold": self._model.threshold,
            "cells": info.get("cells", ""),
          }
        )
    name = runs.table_name("areas", self.data.part)
    tables.write(self.workdir / name, AREA_COLUMNS, rows)
    return super().write_tables()


def _on_tissue(xy: np.ndarray, begin: tile_stream.Begin) -> np.ndarray:
  """Which level-0 places lie on the slide, on its tissue."""
  on_slide = ((xy >= 0) & (xy < begin.info["level0_px"])).all(axis=1)
  column, row = np.floor(xy[on_slide] / begin.downsample).astype(int).T
  height, width = begin.tissue.shape
  row, column = np.minimum(row, height - 1), np.minimum(column, width - 1)
  on_slide[on_slide] = begin.tissue[row, column]
  return on_slide
