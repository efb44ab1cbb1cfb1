"""Settings of the job `mil_report`; `configs/mil_report.py` explains them."""

import dataclasses
from typing import Annotated, Literal

from data_prep.files.schema import AtLeast1, NotNegative, Range, Share
from data_prep.wsi import tissue
from wsiseq_jax.maps import regions

_TISSUE = ("none", *tissue.METHODS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """`config.data`: the slides, and what people drew on them."""

  # '' shows no pictures of slides; 'synthetic' makes up everything.
  slides: str = ""
  table: str = ""  # a CSV that describes slides named in `slides`
  # A folder of what people drew, to compare: <slide_id>.xml (ASAP), .geojson
  # (QuPath), .png or .tif (masks); '' has none.
  annotations: str = ""
  # Groups of polygons; () are those of Camelyon and 'tumour'.
  annotation_include: tuple[str, ...] = ()
  annotation_exclude: tuple[str, ...] = ()  # cut out again
  annotation_ignore: tuple[str, ...] = ()  # left alone; any other is an error
  default_mpp: NotNegative = 0.0  # where neither map nor slide say it
  # 'openslide': read everything through OpenSlide.
  reader: Literal["auto", "openslide"] = "auto"
  threads: AtLeast1 = 2  # slides at once

  def __post_init__(self):
    if self.table and not self.slides:
      raise ValueError(
        f"config.data.table = {self.table!r} describes slides, and "
        "config.data.slides names none"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """`config.report`: what is drawn, and what it is compared with."""

  out: str = ""  # '' is <workdir>/report
  # A page of the job `report`, or its run's folder, to link to; '' looks in the
  # folders beside the workdir.
  sequence_report: str = ""
  um_per_px: NotNegative = 0.0  # of maps; 0 makes them `longest_px` long
  longest_px: Annotated[int, Range(64)] = 1200  # of pictures on a page
  # Of the two pictures of each slide of the cohort.
  card_px: Annotated[int, Range(32)] = 260
  # Where colours are painted: the tissue method of data_prep/wsi/tissue.py, or
  # 'none' for whole tiles.
  tissue: Literal[_TISSUE] = "guarded"
  smooth_um: NotNegative = 0.0  # Gaussian over the map, for maps and regions
  # Of slides; 'given' is `threshold`.
  threshold_from: Literal["validation", "given"] = "validation"
  threshold: Share = 0.5
  tile_threshold: Share = 0.5  # of regions and detections
  close_um: NotNegative = 0.0
  open_um: NotNegative = 0.0
  min_area_um2: NotNegative = 0.0  # smaller regions are counted, not outlined
  max_hole_um2: NotNegative = 0.0
  radius_um: NotNegative = 373.0  # between detections
  tiles: Annotated[int, Range(0)] = 6  # highest and lowest tiles shown
  tiles_by: Literal[regions.SCORES] = "probability"
  tiles_apart_um: NotNegative = 150.0
  tile_px: Annotated[int, Range(8)] = 256  # of a tile's picture, at most
  # Side of what is shown around a tile, in tiles.
  context: Annotated[float, Range(1, 20)] = 2.0
  geojson: bool = True
  tiles_geojson: bool = True
  resamples: Annotated[int, Range(10)] = 1000  # for the intervals of the charts
  bins: AtLeast1 = 10  # of the calibration chart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The whole config."""

  job: Literal["mil_report"] = "mil_report"
  workdir: str  # of a finished job mil or mil_predict
  data: Data
  report: Report

  def __post_init__(self):
    if not self.workdir:
      raise ValueError(
        "config.workdir = '': name the workdir of a job 'mil' or 'mil_predict'"
      )
