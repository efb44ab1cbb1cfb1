"""Makes the records of some series: the unit of work of a run.

Series are dealt into *parts* by a hash of the patient's name, so that a data
set of 50,000 subjects is some 64 files a split, and one more subject means one
part done again. A part is a folder `parts/<split>-<number>/` with its records
and a `part.json`, written last: a folder that has one is complete, made from
the files and settings its hash names, and remembers what could not be used.
"""

import dataclasses
import itertools
import json
import pathlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data_prep import records, shards
from data_prep.files import atomic
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.series import files, images
from data_prep.series.spans import Series, Span, frame_times, kept

MARK = "part.json"
SHARD = "sequences.array_record"


@dataclasses.dataclass(frozen=True)
class Shape:
  """What all sequences of the data set share.

  Attributes:
    frames: frames of a sequence, padding included.
    frame_px: (h, w) of a frame.
    targets: number of labels.
  """

  frames: int
  frame_px: tuple[int, int]
  targets: int

  @property
  def layout(self) -> shards.Layout:
    """The shapes as the writer wants them: one panel a frame."""
    return shards.Layout(self.frames, self.frames, self.frame_px, self.targets)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """One part.

  Attributes:
    name: `<split>-<number>`.
    series: its series and, for each of their spans, the numbers to store.
    config: the whole preparation config as plain dictionaries.
    shape: what all sequences share.
    out: the output folder; '' = write nothing, to see which series kills.
    config_hash: names everything that shapes the part.
    deadly: series whose files kill the process that reads them, and how.
  """

  name: str
  series: tuple[tuple[Series, tuple[tuple[float, ...], ...]], ...]
  config: Mapping[str, Any]
  shape: Shape
  out: str
  config_hash: str
  deadly: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def folder(self) -> pathlib.Path:
    """Where the finished part lies."""
    return pathlib.Path(self.out) / "parts" / self.name


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a part.

  Attributes:
    name: the part.
    info: the content of `part.json`; empty if it failed as a whole.
    fresh: whether it was made now.
    error: what kept it from being written, such as a full disk.
  """

  name: str
  info: Mapping[str, Any]
  fresh: bool
  error: SlideError | None = None

  @property
  def errors(self) -> list[SlideError]:
    """What could not be used of its series."""
    rows = [SlideError(*row) for row in self.info.get("errors", ())]
    return rows if self.error is None else [self.error]


def finished(job: Job) -> Outcome | None:
  """Looks whether a part is finished with these files and settings.

  Args:
    job: the part.

  Returns:
    What became of it, or None if it has to be done.
  """
  try:
    info = json.loads((job.folder / MARK).read_text())
  except (OSError, ValueError):
    return None
  if info.get("config_hash") != job.config_hash:
    return None
  if info["sequences"] and not (job.folder / SHARD).is_file():
    return None
  return Outcome(job.name, info, fresh=False)


def process(job: Job) -> Outcome:
  """Makes one part; whatever goes wrong with a series is in the result.

  Args:
    job: the part.

  Returns:
    What became of it.
  """
  cv2.setNumThreads(1)  # parallel over parts; more threads only get in the way
  maker = _Maker(job)
  if not job.out:
    for _ in maker.make():
      pass
    return Outcome(job.name, {}, fresh=True)
  try:
    return Outcome(job.name, _write(job, maker), fresh=True)
  except OSError as error:
    # Reading errors belong to a series and are in `maker`: this is writing.
    problem = as_slide_error(error, job.name, "write", "config.out")
    return Outcome(job.name, {}, fresh=True, error=problem)


def _write(job: Job, maker: "_Maker") -> dict[str, Any]:
  job.folder.mkdir(parents=True, exist_ok=True)
  # From here on the folder is not what its old mark says.
  (job.folder / MARK).unlink(missing_ok=True)
  made = maker.make()
  first = next(made, None)
  count = num_bytes = 0
  if first is None:
    (job.folder / SHARD).unlink(missing_ok=True)
  else:
    count, num_bytes = shards.write_part(
      job.folder / SHARD, itertools.chain([first], made), job.shape.layout
    )
  info = {
    # A process that died may have wanted memory: next time it is tried again.
    "config_hash": "" if job.deadly else job.config_hash,
    "sequences": count,
    "num_bytes": num_bytes,
    "series": maker.done,
    "errors": [error.state() for error in maker.errors],
  }
  atomic.write_atomic(
    job.folder / MARK, json.dumps(info, ensure_ascii=False, sort_keys=True)
  )
  return info


class _Maker:
  """Turns the series of a part into records, one series after the other."""

  def __init__(self, job: Job):
    self.job = job
    self.done: dict[str, dict[str, Any]] = {}
    self.errors: list[SlideError] = []
    config = job.config
    self._jpeg = config["jpeg"]["quality"], config["jpeg"]["subsampling"]
    blank = np.zeros((*job.shape.frame_px, 1), np.uint8)
    self._blank = images.encode(blank, *self._jpeg)

  def make(self) -> Iterator[records.SequenceRecord]:
    """Yields the records of all series of the part."""
    for series, targets in self.job.series:
      yield from self._series(series, targets)

  def _series(
    self, series: Series, targets: Sequence[Sequence[float]]
  ) -> list[records.SequenceRecord]:
    """All records of a series; a list, so that a failure leaves none."""
    made, info = [], {}
    self._pictures: dict[str, np.ndarray | None] = {}
    before = len(self.errors)
    for span, values in zip(series.spans, targets, strict=True):
      try:
        if series.series_id in self.job.deadly:
          reason = self.job.deadly[series.series_id]
          raise SlideError(
            f"the process reading it died ({reason}): most likely a damaged "
            "file, or too little memory",
            "process",
            "worker_died",
          )
        more = self._span(series, span, values, info)
      except Exception as error:  # the one place where a series may fail
        self.errors.append(_as_error(error, series, span))
        if series.series_id in self.job.deadly:
          break
        continue
      made += more
    if made:
      self.done[series.series_id] = {
        "patient_id": series.patient_id,
        "sequences": len(made),
        **info,
      }
    elif len(self.errors) == before:
      self.errors.append(
        SlideError("no frame", "read", "empty_series", series.series_id)
      )
    return made

  def _span(
    self,
    series: Series,
    span: Span,
    values: Sequence[float],
    info: dict[str, Any],
  ) -> list[records.SequenceRecord]:
    config = self.job.config
    rules = config["sequence"]
    if span.is_stack:
      header = files.inspect(span.files[0])
      times = frame_times(span, header.frames, header.seconds, config)
    else:
      span = self._readable(series, span)
      times = frame_times(span, len(span.files), None, config)
    if not times and span.name:
      return []  # its own visit is unreadable, and has its row already
    if not times:
      raise SlideError("no frame", "read", "empty_series")
    if len(times) < rules["min_frames"]:
      raise SlideError(
        f"{len(times)} frames; config.sequence.min_frames asks for "
        f"{rules['min_frames']}",
        "read",
        "too_short",
      )
    made = []
    choices = images.chosen_frames(
      len(times), rules["max_frames"], rules["rule"], rules["stride"]
    )
    wanted = sorted(set().union(*choices))
    frames = dict(zip(wanted, self._frames(span, wanted), strict=True))
    panels = dict(zip(wanted, self._panels(frames, info), strict=True))
    for choice in choices:
      parts = [series.series_id, span.name]
      parts += [f"f{choice[0]}"] if len(choices) > 1 else []
      made.append(
        self._record(
          "/".join(part for part in parts if part),
          series,
          [panels[i] for i in choice],
          [times[i] for i in choice],
          values,
        )
      )
    info["frames"] = max(info.get("frames", 0), len(times))
    info["time_span"] = float(max(info.get("time_span", 0), times[-1]))
    return made

  def _readable(self, series: Series, span: Span) -> Span:
    """Leaves visits out whose picture cannot be read."""
    keep = []
    for index, path in enumerate(span.files):
      if path not in self._pictures:
        try:
          (picture,) = files.read(path, [0], one=True)
          self._pictures[path] = picture
        except SlideError as error:
          self._pictures[path] = None
          error.slide = series.series_id
          error.message += "; the visit is left out"
          self.errors.append(error)
      if self._pictures[path] is not None:
        keep.append(index)
    return kept(span, keep)

  def _frames(self, span: Span, wanted: Sequence[int]) -> list[np.ndarray]:
    """The stored frames; those of a long video are shrunk as they come."""
    if span.is_stack:
      stored = files.read(span.files[0], wanted)
    else:
      stored = (self._pictures[span.files[i]] for i in wanted)
    frames, shapes = [], []
    for frame in stored:
      shapes.append(frame.shape)
      is_final = frame.dtype == np.uint8  # others need all frames' intensities
      frames.append(self._fit(frame) if is_final else frame)
    self._source = shapes[0]
    channels = sorted({shape[2] for shape in shapes})
    if len(channels) > 1:
      raise SlideError(
        f"its frames have {channels} channels", "image", "channels_differ"
      )
    sizes = sorted({shape[:2] for shape in shapes})
    if len(sizes) > 1 and not self.job.config["image"]["mixed_sizes"]:
      listed = ", ".join(f"{h} x {w}" for h, w in sizes)
      raise SlideError(
        f"its frames have different sizes (h x w: {listed} px), so that one "
        "pixel is not one length; config.image.mixed_sizes=True fits each "
        "frame by itself",
        "image",
        "sizes_differ",
      )
    return frames

  def _fit(self, frame: np.ndarray) -> np.ndarray:
    return images.fit_frame(
      frame, self.job.shape.frame_px, self.job.config["image"]["fit"]
    )

  def _panels(
    self, frames: Mapping[int, np.ndarray], info: dict[str, Any]
  ) -> list[bytes]:
    image = self.job.config["image"]
    info["source_px"] = list(self._source[:2])
    info["channels"] = self._source[2]
    pixels = images.to_uint8(
      list(frames.values()), image["window"], image["percentiles"]
    )
    return [images.encode(self._fit(p), *self._jpeg) for p in pixels]

  def _record(
    self,
    name: str,
    series: Series,
    panels: list[bytes],
    times: list[float],
    values: Sequence[float],
  ) -> records.SequenceRecord:
    """Pads a sequence to the length of the data set and makes its record."""
    t, real = self.job.shape.frames, len(panels)
    last = np.minimum(np.arange(t), real - 1)
    height, width = self.job.shape.frame_px
    return records.SequenceRecord(
      sequence_id=name,
      slide_id=series.series_id,
      patient_id=series.patient_id,
      panels=(*panels, *[self._blank] * (t - real)),
      frame_panel=last.astype(np.int32),
      frame_box=np.tile(np.array([0, 0, width, height], np.float32), (t, 1)),
      frame_level0_xy=np.full((t, 2), np.nan, np.float32),
      time=np.array(times)[last].astype(np.float32),
      frame_mask=(np.arange(t) < real).astype(np.float32),
      mpp=float("nan"),
      heading_deg=float("nan"),
      targets=np.array(values, np.float32),
    )


def _as_error(error: Exception, series: Series, span: Span) -> SlideError:
  if isinstance(error, SlideError):
    error.slide = series.series_id
  else:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{pathlib.Path(last.filename).name}:{last.lineno}"
    error = SlideError(
      f"{error} ({place})", "read", type(error).__name__, series.series_id
    )
  if span.name:
    error.message = f"{span.name}: {error.message}"
  return error
