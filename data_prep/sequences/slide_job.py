"""One slide, from its file to its finished folder: the unit of work.

A worker process runs `process`. It writes `parts/<slide_id>/` and the slide's
QC picture and nothing else, and it turns whatever goes wrong into a
`SlideOutcome` with a row for `errors.csv`. `slide.json` is written last and
removed first: a folder that has one is complete, and made from the file and the
settings its hash names.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np

from data_prep import records, runs, shards
from data_prep.files import atomic
from data_prep.files.done import Done
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.sequences import cut, geometries
from data_prep.wsi import damage, find, qc, slides, tissue
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slide_tissue import open_entry, tissue_of

DONE, NO_TISSUE, NO_REGION, FAILED = "done", "no_tissue", "no_region", "failed"
MARK = "slide.json"
SHARD = "sequences.array_record"
THUMBNAIL = "thumbnail.jpg"
_LOST = "sequences touch damaged tiles"
RUN_KEYS = (*runs.RUN_KEYS, "slides", "table", "labels")


@dataclasses.dataclass(frozen=True)
class SlideJob:
  """What a worker needs to know to do one slide."""

  entry: SlideEntry  # the slide
  # The whole preparation config as plain dictionaries.
  config: Mapping[str, Any]
  content: Mapping[str, Any]  # everything that shapes what comes out

  @property
  def folder(self) -> pathlib.Path:
    """Where the finished slide lies."""
    return pathlib.Path(self.config["out"]) / "parts" / self.entry.slide_id

  @property
  def done(self) -> Done:
    """The mark that says what the folder was made from."""
    return Done(self.folder / MARK, self.content)


@dataclasses.dataclass(frozen=True)
class SlideOutcome:
  """What became of one slide."""

  slide_id: str
  status: str  # 'done', 'no_tissue', 'no_region' or 'failed'
  # The facts in `slide.json`, with `notes`, states of errors that cost a part
  # of the slide; empty if it failed.
  info: Mapping[str, Any]
  seconds: float | None  # how long it took; None if it was finished before
  # What is wrong with it; None unless it failed.
  error: SlideError | None = None


def shaping_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the part of the config that shapes what comes out of a slide."""
  return {key: config[key] for key in config if key not in RUN_KEYS}


def make_job(entry: SlideEntry, config: Mapping[str, Any]) -> SlideJob:
  """Makes the job of a slide; SlideError if its file cannot be read."""
  content = {**shaping_config(config), "slide": find.content(entry)}
  return SlideJob(entry, config, content)


def finished(job: SlideJob) -> SlideOutcome | None:
  """Returns what became of a slide, None if it has to be done."""
  info = job.done.read()
  if info is None:
    return None
  return SlideOutcome(job.entry.slide_id, info["status"], info, None)


def process(job: SlideJob) -> SlideOutcome:
  """Does one slide; whatever goes wrong with it is in the result."""
  # Parallel over slides; OpenCV's own threads would only get in the way.
  cv2.setNumThreads(1)
  start = time.perf_counter()
  stage = _Stage()
  slide_id = job.entry.slide_id
  try:
    info = _process(job, stage)
  except Exception as error:  # the one place where a slide may fail at all
    problem = as_slide_error(error, slide_id, stage.name, "config.out")
    seconds = time.perf_counter() - start
    return SlideOutcome(slide_id, FAILED, {}, seconds, problem)
  seconds = time.perf_counter() - start
  return SlideOutcome(slide_id, info["status"], info, seconds)


class _Stage:
  """Remembers what was being done, for the error row."""

  name = "open"


def _process(job: SlideJob, stage: _Stage) -> dict[str, Any]:
  entry, config = job.entry, job.config
  geometry = geometries.from_config(config)
  folder = job.folder
  # From here on the folder is not what its old mark says.
  folder.mkdir(parents=True, exist_ok=True)
  job.done.clear()
  with open_entry(entry, config) as slide:
    _check_size(slide, geometry)
    stage.name = "thumbnail"
    notes: list[SlideError] = []
    thumbnail, downsample = slide.thumbnail(
      config["tissue"]["thumbnail_px"], notes
    )
    stage.name = "tissue"
    mask = tissue_of(
      entry, thumbnail, slide.mpp * downsample, config["tissue"]["method"]
    )
    stage.name = "centres"
    settings = config["sequence"]
    centres = cut.choose_centres(
      mask,
      downsample,
      slide,
      geometry,
      spacing_um=settings["spacing_um"],
      max_centres=settings["max_centres"],
      min_tissue=settings["min_tissue"],
      all_headings=settings["all_headings"],
      rng=cut.slide_rng(config["seed"], entry.slide_id),
    )
    status, reason = DONE, ""
    if not mask.any():
      status, reason = NO_TISSUE, tissue.why_empty(thumbnail)
    elif not centres:
      status, reason = (
        NO_REGION,
        "no place where every frame is on the slide and holds "
        f"{settings['min_tissue']:.0%} tissue (config.sequence.min_tissue)",
      )
    stage.name = "read"
    count = num_bytes = 0
    bad: list[SlideError] = []
    if centres:
      count, num_bytes = shards.write_part(
        folder / SHARD,
        _records(slide, centres, geometry, job, bad),
        geometry.layout(),
      )
    else:
      (folder / SHARD).unlink(missing_ok=True)
    if bad:
      reason = f"{len(bad)} of {count + len(bad)} {_LOST}"
    stage.name = "write"
    small = qc.shrink(thumbnail, qc.THUMBNAIL_PX)
    atomic.write_atomic(folder / THUMBNAIL, qc.jpeg(small))
    xy = np.array([c.xy for c in centres], float).reshape(-1, 2)
    picture = qc.qc_picture(
      thumbnail,
      mask,
      downsample=downsample,
      mpp=slide.mpp,
      title=entry.slide_id,
      mpp_origin=slide.mpp_origin,
      centres_level0=xy,
      region_px=geometry.window_px[1] * geometry.mpp / slide.mpp,
    )
    picture_file = pathlib.Path(config["out"]) / "qc" / f"{entry.slide_id}.jpg"
    atomic.write_atomic(picture_file, qc.jpeg(picture))
    info = {
      "slide_id": entry.slide_id,
      "patient_id": entry.patient_id,
      "filename": os.path.basename(entry.path),
      "status": status,
      "reason": reason,
      "level0_px": list(slide.level0_px),
      "mpp": slide.mpp,
      "mpp_origin": slide.mpp_origin,
      "reader": slide.reader,
      "target_mpp": config["mpp"],
      "tissue_mm2": tissue.tissue_mm2(mask, slide.mpp * downsample),
      "tissue_polygons_level0": tissue.mask_polygons(mask, downsample),
      "centres_level0": [list(c.xy) for c in centres],
      "thumbnail": THUMBNAIL,
      "thumbnail_downsample": max(slide.level0_px) / max(small.shape[:2]),
      "sequences": count,
      "num_bytes": num_bytes,
    }
    if notes or bad:
      found = damage.by_place([*bad, *notes])
      info["notes"] = [error.state() for error in found]
    slide.check_unchanged()
    job.done.write(info, [folder / SHARD] if count else [])
  return info


def _check_size(slide: slides.Slide, geometry: geometries.Geometry) -> None:
  scale = geometry.mpp / slide.mpp
  height, width = (side * scale for side in geometry.window_px)
  if slide.level0_px[0] < width or slide.level0_px[1] < height:
    raise SlideError(
      f"the slide of {slide.level0_px[0]} x {slide.level0_px[1]} px is smaller "
      f"than one window ({width:.0f} x {height:.0f} px of level 0)",
      stage="centres",
      error="slide_too_small",
    )


def _records(
  slide: slides.Slide,
  centres: list[geometries.Centre],
  geometry: geometries.Geometry,
  job: SlideJob,
  bad: list[SlideError],
) -> Iterator[records.SequenceRecord]:
  total = sum(len(centre.paths) for centre in centres)
  for centre in centres:
    yield from cut.cut_sequences(
      slide,
      centre,
      geometry,
      slide_id=job.entry.slide_id,
      patient_id=job.entry.patient_id,
      jpeg=job.config["jpeg"],
      lost=bad,
    )
    damage.check(bad, total, what=_LOST)
