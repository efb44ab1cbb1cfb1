"""Makes the records of some series: the unit of work of a run.

Series are dealt into *groups* by a hash of the patient's name, so that a data
set of 50,000 subjects is some 64 files a split, and one more subject means one
group done again; see `data_prep/groups.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data_prep import groups, records, shards
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.series import files, images
from data_prep.series.spans import Series, Span, frame_times, kept


@dataclasses.dataclass(frozen=True)
class Shape:
  """What all sequences of the data set share."""

  frames: int  # frames of a sequence, padding included
  frame_px: tuple[int, int]  # (h, w) of a frame

  @property
  def layout(self) -> shards.Layout:
    """The shapes as the writer wants them: one panel a frame."""
    return shards.Layout(self.frames, self.frames, self.frame_px)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SeriesJob(groups.GroupJob):
  """One group of series, `<split>-<number>`."""

  shape: Shape  # what all sequences share


def process(job: SeriesJob) -> groups.GroupOutcome:
  """Makes one group; whatever goes wrong with a series is in the result."""
  cv2.setNumThreads(1)  # parallel over groups; more threads are in the way
  maker = _Maker(job)

  def facts():
    errors = [error.state() for error in maker.errors]
    return {"series": maker.done, "errors": errors}

  return groups.write(job, maker.make(), job.shape.layout, facts)


class _Maker:
  """Turns the series of a part into records, one series after the other."""

  def __init__(self, job: SeriesJob):
    self.job = job
    self.done: dict[str, dict[str, Any]] = {}
    self.errors: list[SlideError] = []
    config = job.config
    self._jpeg = config["jpeg"]["quality"], config["jpeg"]["subsampling"]
    blank = np.zeros((*job.shape.frame_px, 1), np.uint8)
    self._blank = images.encode(blank, *self._jpeg)

  def make(self) -> Iterator[records.SequenceRecord]:
    """Yields the records of all series of the part."""
    for series in self.job.members:
      yield from self._series(series)

  def _series(self, series: Series) -> list[records.SequenceRecord]:
    """All records of a series; a list, so that a failure leaves none."""
    made, info = [], {}
    self._pictures: dict[str, np.ndarray | None] = {}
    before = len(self.errors)
    for span in series.spans:
      try:
        self.job.refuse_deadly(series.series_id)
        more = self._span(series, span, info)
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
    self, series: Series, span: Span, info: dict[str, Any]
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
    self, name: str, series: Series, panels: list[bytes], times: list[float]
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
    )


def _as_error(error: Exception, series: Series, span: Span) -> SlideError:
  problem = as_slide_error(error, series.series_id, "read", "config.out")
  if span.name:
    problem.message = f"{span.name}: {problem.message}"
  return problem
