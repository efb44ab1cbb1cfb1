"""Settings of the job `mil_report`; `configs/mil_report.py` explains them."""

import dataclasses
from typing import Annotated, Literal

from data_prep.files.schema import AtLeast1, NotNegative, Range, Share
from data_prep.wsi import tissue
from wsiseq_jax.maps import regions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """`config.data`: the slides, and what people drew on them."""

  slides: str
  table: str
  annotations: str
  annotation_include: tuple[str, ...]
  annotation_exclude: tuple[str, ...]
  annotation_ignore: tuple[str, ...]
  default_mpp: NotNegative
  reader: Literal["auto", "openslide"]
  threads: AtLeast1

  def __post_init__(self):
    if self.table and not self.slides:
      raise ValueError(
        f"config.data.table = {self.table!r} describes slides, and "
        "config.data.slides names none"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """`config.report`: what is drawn, and what it is compared with."""

  out: str
  sequence_report: str
  um_per_px: NotNegative
  longest_px: Annotated[int, Range(64)]
  card_px: Annotated[int, Range(32)]
  tissue: Literal[("none", *tissue.METHODS)]
  smooth_um: NotNegative
  threshold_from: Literal["validation", "given"]
  threshold: Share
  tile_threshold: Share
  close_um: NotNegative
  open_um: NotNegative
  min_area_um2: NotNegative
  max_hole_um2: NotNegative
  radius_um: NotNegative
  tiles: Annotated[int, Range(0)]
  tiles_by: Literal[regions.SCORES]
  tiles_apart_um: NotNegative
  tile_px: Annotated[int, Range(8)]
  context: Annotated[float, Range(1, 20)]
  geojson: bool
  tiles_geojson: bool
  resamples: Annotated[int, Range(10)]
  bins: AtLeast1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The whole config."""

  job: Literal["mil_report"]
  workdir: str
  data: Data
  report: Report

  def __post_init__(self):
    if not self.workdir:
      raise ValueError(
        "config.workdir = '': name the workdir of a job 'mil' or 'mil_predict'"
      )
