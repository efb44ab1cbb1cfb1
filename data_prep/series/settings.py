"""The settings of a run over series; `configs/prep_series.py` is the manual."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from data_prep import runs
from data_prep.files.schema import FILLED, Range, Rule
from data_prep.series import images, spans
from data_prep.series import table as series_table

# Settings that say what is read and how it is run, not what a frame looks like.
RUN_KEYS = (
  *runs.RUN_KEYS,
  *("csv", "images", "seed", "layout", "columns", "parts", "targets"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
  """Names of columns; '' = found by `files/tables.py`."""

  series_id: str = ""
  patient_id: str = ""
  file: str = ""
  time: str = ""
  times: str = ""
  fps: str = ""
  split: str = ""
  history: str = ""
  video: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
  """`config.sequence`: which frames become a sequence."""

  # The longest series gives the length of all; shorter ones are padded.
  max_frames: Annotated[int, Range(0)] = 0  # 0 = no limit
  # Of longer ones: the last frames, evenly spread ones, or windows (several
  # sequences a series).
  rule: Literal["last", "subsample", "windows"] = "subsample"
  stride: Annotated[int, Range(0)] = 0  # from window to window; 0 = no overlap
  min_frames: Annotated[int, Range(1)] = 1  # shorter ones are not used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
  """`config.image`: size and intensity of a frame."""

  # Height and width of a frame; (128,) = the short side is 128 px and the long
  # one follows from the commonest shape of the files.
  frame_px: Annotated[
    tuple[int, ...],
    Rule(lambda px: len(px) in (1, 2), "(height, width), or (short side,)"),
    Range(1),
  ] = (128, 128)
  # crop: cover and cut the middle out; or letterbox.
  fit: Literal[images.FITS] = "crop"
  mixed_sizes: bool = False  # True: frames of one series may differ
  # uint8 is stored as it is. Other types: (low, high) that become 0 and 255,
  # or () for percentiles over all frames of the sequence.
  window: Annotated[
    tuple[float, ...],
    Rule(lambda w: not w or (len(w) == 2 and w[0] < w[1]), "() or (low, high)"),
  ] = ()
  percentiles: Annotated[
    tuple[float, float],
    Range(0, 100),
    Rule(lambda share: share[0] < share[1], "(low, high)"),
  ] = (0.5, 99.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesSettings(runs.RunSettings):
  """The settings of a run over series: `configs/prep_series.py`."""

  source: str = "series"
  csv: Annotated[str, FILLED]
  images: str = ""  # where relative file names start; '' = the table's folder
  splits: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2}
  )
  # Files a split that series are dealt into, by patient.
  parts: Annotated[int, Range(1)] = 64
  layout: Literal[series_table.LAYOUTS] = "auto"
  columns: Columns  # such as --config.columns.patient_id=PID
  # Labels: "name", "name:number", "name:class" or "name:class=first|second";
  # () = all columns that are nothing else.
  targets: tuple[str, ...] = ()
  # history: one sequence for each visit, up to it.
  sequences: Literal[spans.SEQUENCES] = "series"
  time_unit: Literal["year", "s", "frame"] = "year"  # named in the data set
  # 365.25 if the table's times are days.
  time_divisor: Annotated[float, Range(above=0)] = 1.0
  # Frames a second where table and file say none.
  fps: Annotated[float, Range(0)] = 0.0
  sequence: Length
  image: Image
  jpeg: runs.Jpeg = runs.Jpeg(quality=95, subsampling="444")
