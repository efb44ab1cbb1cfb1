"""One slide, from its file to its finished folder: the unit of work.

A worker process runs `process`. It writes `parts/<slide_id>/` and the slide's
QC picture and nothing else, and it turns whatever goes wrong into an `Outcome`
with a row for `errors.csv`. `slide.json` is written last and removed first: a
folder that has one is complete, and made with the settings its hash names.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

from data_prep import records, schedulers, shards
from data_prep.files import atomic
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.sequences import cut, geometry
from data_prep.wsi import slides, tissue
from data_prep.wsi.find import SlideEntry

DONE, NO_TISSUE, NO_REGION, FAILED = "done", "no_tissue", "no_region", "failed"
MARK = "slide.json"
SHARD = "sequences.array_record"
THUMBNAIL = "thumbnail.jpg"
THUMBNAIL_PX = 1024
_DIGEST_BYTES = 1 << 16
# Settings that say where and how to run, not what comes out for a slide.
RUN_KEYS = (
  *("slides", "table", "out", "splits", "labels"),
  *schedulers.KEYS,
)


@dataclasses.dataclass(frozen=True)
class Job:
  """What a worker needs to know to do one slide.

  Attributes:
    entry: the slide.
    config: the whole preparation config as plain dictionaries.
    out: the output folder.
    targets: the slide's labels.
    config_hash: names everything that shapes the slide's output.
  """

  entry: SlideEntry
  config: Mapping[str, Any]
  out: str
  targets: tuple[float, ...]
  config_hash: str


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one slide.

  Attributes:
    slide_id: the slide.
    status: 'done', 'no_tissue', 'no_region' or 'failed'.
    info: the content of `slide.json`; empty if it failed.
    seconds: how long it took; None if it was finished before.
    error: what is wrong with it; None unless it failed.
  """

  slide_id: str
  status: str
  info: Mapping[str, Any]
  seconds: float | None
  error: SlideError | None = None


def shaping_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the part of the config that shapes what comes out of a slide.

  Args:
    config: the whole preparation config.

  Returns:
    The config without what says where and how to run.
  """
  return {key: config[key] for key in config if key not in RUN_KEYS}


def config_hash(
  entry: SlideEntry, config: Mapping[str, Any], targets: tuple[float, ...]
) -> str:
  """Names everything that shapes the output of one slide.

  The slide file counts with its size and a digest of its first and last 64 kB,
  where headers and directories are; reading gigabytes to skip a slide would
  defeat the purpose.

  Args:
    entry: the slide.
    config: the whole preparation config.
    targets: the slide's labels.

  Returns:
    sha256, hexadecimal.

  Raises:
    SlideError: the slide or its mask file cannot be read.
  """
  own = dataclasses.asdict(entry)
  # Where the file lies does not matter, nor which split the slide is in.
  for key in ("path", "split", "label"):
    del own[key]
  try:
    own["file"] = _file_digest(entry.path)
    if entry.mask_path:
      own["mask_path"] = _file_digest(entry.mask_path)
  except OSError as error:
    raise SlideError(
      f"cannot read {error.filename}: {error.strerror}",
      stage="open",
      error="unreadable",
      slide=entry.slide_id,
    ) from error
  # As text: JSON has no NaN.
  own["targets"] = [repr(target) for target in targets]
  return shards.fingerprint({**shaping_config(config), "slide": own})


def _file_digest(path: str) -> str:
  with open(path, "rb") as file:
    size = os.fstat(file.fileno()).st_size
    start = file.read(_DIGEST_BYTES)
    file.seek(max(0, size - _DIGEST_BYTES))
    end = file.read(_DIGEST_BYTES)
  return hashlib.sha256(b"%d/" % size + start + end).hexdigest()


def folder(out: str, slide_id: str) -> pathlib.Path:
  """Returns the folder of a slide's finished work.

  Args:
    out: the output folder.
    slide_id: the slide.

  Returns:
    `<out>/parts/<slide_id>`.
  """
  return pathlib.Path(out) / "parts" / slide_id


def finished(job: Job) -> Outcome | None:
  """Looks whether a slide is finished with these settings.

  Args:
    job: the slide.

  Returns:
    What became of it, or None if it has to be done.
  """
  part = folder(job.out, job.entry.slide_id)
  try:
    info = json.loads((part / MARK).read_text())
  except (OSError, ValueError):
    return None
  if info.get("config_hash") != job.config_hash:
    return None
  if info["sequences"] and not (part / SHARD).is_file():
    return None
  return Outcome(job.entry.slide_id, info["status"], info, None)


def process(job: Job) -> Outcome:
  """Does one slide; whatever goes wrong with it is in the result.

  Args:
    job: the slide.

  Returns:
    What became of it.
  """
  # Parallel over slides; OpenCV's own threads would only get in the way.
  cv2.setNumThreads(1)
  start = time.perf_counter()
  stage = _Stage()
  try:
    info = _process(job, stage)
  except Exception as error:  # the one place where a slide may fail at all
    problem = as_slide_error(
      error, job.entry.slide_id, stage.name, "config.out"
    )
    seconds = time.perf_counter() - start
    return Outcome(job.entry.slide_id, FAILED, {}, seconds, problem)
  seconds = time.perf_counter() - start
  return Outcome(job.entry.slide_id, info["status"], info, seconds)


def usable_names(
  entries: Sequence[SlideEntry],
) -> tuple[list[SlideEntry], list[SlideError]]:
  """Sets slides aside whose id cannot be the name of a file or folder.

  Args:
    entries: the slides.

  Returns:
    Those that can, and an error for each that cannot.
  """
  good, bad = [], []
  for entry in entries:
    name = entry.slide_id
    if "/" in name or name[:1] == "." or atomic.TEMPORARY in name:
      message = (
        f"the slide id {name!r} cannot name a file or folder (no '/', "
        f"no leading '.', no {atomic.TEMPORARY!r}): give another in a CSV"
      )
      bad.append(SlideError(message, "find", "bad_slide_id", name))
    else:
      good.append(entry)
  return good, bad


class _Stage:
  """Remembers what was being done, for the error row."""

  name = "open"


def _process(job: Job, stage: _Stage) -> dict[str, Any]:
  entry, config = job.entry, job.config
  spec = geometry.spec_from_config(config)
  part = folder(job.out, entry.slide_id)
  # From here on the folder is not what its old mark says.
  part.mkdir(parents=True, exist_ok=True)
  (part / MARK).unlink(missing_ok=True)
  with slides.Slide.open(
    entry.path,
    mpp_override=entry.mpp,
    default_mpp=config["default_mpp"] or None,
    name=entry.slide_id,
    reader=config["reader"],
  ) as slide:
    slide.check_target_mpp(
      config["mpp"], config["mpp_tolerance"], config["allow_upsampling"]
    )
    _check_size(slide, spec)
    stage.name = "thumbnail"
    thumbnail, downsample = slide.thumbnail(config["tissue"]["thumbnail_px"])
    stage.name = "tissue"
    mask = _mask(entry, config, thumbnail, slide.mpp * downsample)
    stage.name = "centres"
    settings = config["sequence"]
    centres = cut.choose_centres(
      mask,
      downsample,
      slide,
      spec,
      spacing_um=settings["spacing_um"],
      max_centres=settings["max_centres"],
      min_tissue=settings["min_tissue"],
      all_headings=settings["all_headings"],
      rng=cut.slide_rng(config["seed"], entry.slide_id),
    )
    status, reason = DONE, ""
    if not mask.any():
      status, reason = NO_TISSUE, "the tissue mask is empty"
    elif not centres:
      status, reason = (
        NO_REGION,
        "no place where every frame is on the slide and holds "
        f"{settings['min_tissue']:.0%} tissue (config.sequence.min_tissue)",
      )
    stage.name = "read"
    count = num_bytes = 0
    if centres:
      count, num_bytes = shards.write_part(
        part / SHARD,
        _records(slide, centres, spec, job),
        spec.layout(len(job.targets)),
      )
    else:
      (part / SHARD).unlink(missing_ok=True)
    stage.name = "write"
    small = _shrink(thumbnail, THUMBNAIL_PX)
    atomic.write_atomic(part / THUMBNAIL, _jpeg(small))
    xy = np.array([c.xy for c in centres], float).reshape(-1, 2)
    picture = tissue.qc_picture(
      thumbnail,
      mask,
      downsample=downsample,
      mpp=slide.mpp,
      title=entry.slide_id,
      mpp_origin=slide.mpp_origin,
      centres_level0=xy,
      region_px=spec.window_px[1] * spec.mpp / slide.mpp,
    )
    qc = pathlib.Path(job.out) / "qc" / f"{entry.slide_id}.jpg"
    atomic.write_atomic(qc, _jpeg(picture))
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
      "thumbnail_downsample": slide.level0_px[0] / small.shape[1],
      "config_hash": job.config_hash,
      "sequences": count,
      "num_bytes": num_bytes,
    }
    atomic.write_atomic(part / MARK, json.dumps(info, ensure_ascii=False))
  return info


def _check_size(slide: slides.Slide, spec: geometry.Spec) -> None:
  scale = spec.mpp / slide.mpp
  height, width = (side * scale for side in spec.window_px)
  if slide.level0_px[0] < width or slide.level0_px[1] < height:
    raise SlideError(
      f"the slide of {slide.level0_px[0]} x {slide.level0_px[1]} px is smaller "
      f"than one window ({width:.0f} x {height:.0f} px of level 0)",
      stage="centres",
      error="slide_too_small",
    )


def _mask(
  entry: SlideEntry,
  config: Mapping[str, Any],
  thumbnail: np.ndarray,
  mpp: float,
) -> np.ndarray:
  if entry.mask_path:
    return tissue.load_mask(entry.mask_path, thumbnail.shape[:2])
  params = {"method": config["tissue"]["method"], **entry.tissue}
  return tissue.tissue_mask(thumbnail, mpp=mpp, **params)


def _records(
  slide: slides.Slide,
  centres: list[cut.Centre],
  spec: geometry.Spec,
  job: Job,
) -> Iterator[records.SequenceRecord]:
  for centre in centres:
    yield from cut.cut_sequences(
      slide,
      centre,
      spec,
      slide_id=job.entry.slide_id,
      patient_id=job.entry.patient_id,
      targets=job.targets,
    )


def _shrink(picture: np.ndarray, longest_px: int) -> np.ndarray:
  factor = longest_px / max(picture.shape[:2])
  if factor >= 1:
    return picture
  size = tuple(max(1, round(side * factor)) for side in picture.shape[1::-1])
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _jpeg(picture: np.ndarray) -> bytes:
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(picture), quality=85, colorsubsampling="420"
  )
