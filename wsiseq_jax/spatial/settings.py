"""Settings of the job `spatial`; `configs/spatial.py` explains them."""

import dataclasses
from typing import Annotated, Literal

from data_prep import runs
from data_prep.files.schema import (
  FILLED,
  AtLeast1,
  NotNegative,
  Range,
  Share,
)
from data_prep.wsi import tissue
from wsiseq_jax.spatial import placing
from wsiseq_jax.spatial.detector import Detector

SYNTHETIC = "synthetic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """`config.data`: slides, cells, regions."""

  # As everywhere; '' = the slides of `cells`, without pictures; 'synthetic'
  # draws a small cohort with its cells and regions.
  slides: str = ""
  patients: Annotated[int, Range(2)] = 12  # that 'synthetic' draws
  table: str = ""  # a CSV that describes slides named in `slides`
  # A folder with a file for each slide, one table of the cells of all slides,
  # or the workdir of such a job; '' = nuclei are looked for on the slides.
  cells: str = ""
  # A folder with a file for each slide (annotations, masks), or the workdir of
  # a MIL job; '' = none: nothing is held against regions.
  regions: str = ""
  # A folder of annotations of what is looked at; '' = the whole slide.
  windows: str = ""
  # '3/8': the third of eight machines; or 'slurm'.
  part: Annotated[str, runs.IS_SHARE] = runs.WHOLE
  default_mpp: NotNegative = 0.0  # for slides that state none; 0 = refuse them
  # 'openslide': read everything through OpenSlide.
  reader: Literal["auto", "openslide"] = "auto"
  # Processes, each with a slide; -1 = one a core, 0 = this one.
  workers: Annotated[int, Range(-1)] = -1
  memory_gb: Annotated[float, Range(above=0)] = 8.0  # a worker may take

  def __post_init__(self):
    if not (self.slides or self.cells):
      raise ValueError(
        "config.data.slides = '' and config.data.cells = '': name slides, or "
        "cells, or both"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
  """`config.cells`: how files of cells are taken."""

  # 'file': as the file says, else level-0 pixels.
  unit: Literal[placing.UNITS] = placing.FILE
  mpp: NotNegative = 0.0  # µm per pixel of the file; 0 = level-0 pixels
  # (new name, names that become it), such as (('immune', ('CD4', 'CD8')),).
  types: tuple[tuple[str, tuple[str, ...]], ...] = ()
  # Column of a table, or measurement of QuPath's GeoJSON, that is the score;
  # '' = a probability, if there is one.
  score: str = ""
  min_score: float = 0.0  # cells of a lower score are left out
  # Limits of the score that make types: one parts 'negative' and 'positive',
  # two or three part 'negative', '1+', '2+', '3+'; () = types as they are.
  positive: tuple[float, ...] = ()
  min_cells: Annotated[int, Range(2)] = 20  # of a type, to say anything of it

  def __post_init__(self):
    limits = self.positive
    if len(limits) > 3 or list(limits) != sorted(set(limits)):
      raise ValueError(
        f"config.cells.positive = {limits}: want up to three limits of the "
        "score, each above the one before"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
  """`config.window`: where cells can be."""

  # 'tissue' of the slide's picture; 'slide', all of it; 'cells', where cells
  # are, as for tables without slides.
  source: Literal["tissue", "slide", "cells"] = "tissue"
  method: Literal[tuple(tissue.METHODS)] = "guarded"  # of tissue
  thumbnail_px: Annotated[int, Range(64)] = 4096  # what tissue is found in
  max_hole_um2: NotNegative = 5_000.0  # smaller holes belong to the tissue
  min_area_um2: NotNegative = 30_000.0  # smaller pieces are left out
  close_um: Annotated[float, Range(1)] = 50.0  # between cells, for 'cells'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions:
  """`config.regions`: how regions are read."""

  include: tuple[str, ...] = ()  # groups, or values of a mask; () = tumour
  exclude: tuple[str, ...] = ()  # cut out again
  ignore: tuple[str, ...] = ()  # left alone; any other group is an error
  threshold: Share = 0.5  # of tiles' probability, for maps of MIL
  min_area_um2: NotNegative = 0.0  # smaller pieces are left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
  """`config.statistics`: what is computed."""

  reach_um: Annotated[float, Range(above=0)] = (
    100.0  # largest distance of pairs
  )
  step_um: Annotated[float, Range(above=0)] = 5.0  # between distances
  # Ordered pairs of types to compare; () = all types with each other.
  pairs: tuple[tuple[str, str], ...] = ()
  max_types: AtLeast1 = 5  # the most frequent; others are in the counts only
  # What 'no relation' is: cells keep their places and swap their types; the
  # first type is shifted as a whole; or its cells are strewn uniformly, each by
  # itself, which takes clusters for relations.
  null: Literal["labels", "shift", "uniform"] = "labels"
  # Above 0: also K for a density that differs from place to place, by a kernel
  # of this standard deviation, well above reach_um; cells are strewn by it.
  intensity_um: NotNegative = 0.0
  # Longest shift; cells nearer than half of it to the window's border do not
  # count in tests by shifts.
  shift_um: Annotated[float, Range(above=0)] = 300.0
  simulations: Annotated[int, Range(19)] = 199
  level: Annotated[float, Range(0.001, 0.5)] = 0.05  # of tests and envelopes
  # Distance to the border of regions: bands, on both sides.
  band_um: Annotated[float, Range(above=0)] = 20.0
  border_um: Annotated[float, Range(above=0)] = 200.0
  contact_um: Annotated[float, Range(above=0)] = 30.0  # longest contact
  # Around single cells, of which the significant ones go to QuPath.
  near_um: Annotated[float, Range(above=0)] = 50.0
  # Counts between level sets (G-SODA, Spatiopath). The patent application
  # US 2023/0237664 A1 covers comparing counts between level sets: ask whoever
  # knows before you switch it on.
  level_sets: bool = False
  seed: int = 0

  def __post_init__(self):
    if self.step_um > self.reach_um / 2:
      raise ValueError(
        f"config.statistics.step_um = {self.step_um:g}: must be at most half "
        f"of reach_um, {self.reach_um:g}"
      )
    if self.band_um > self.border_um:
      raise ValueError(
        f"config.statistics.band_um = {self.band_um:g}: must be at most "
        f"border_um, {self.border_um:g}"
      )
    if 1 / (self.simulations + 1) > self.level:
      raise ValueError(
        f"config.statistics.simulations = {self.simulations}: no p below "
        f"{1 / (self.simulations + 1):.3g}, and level is {self.level:g}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
  """`config.groups`: patients that are compared."""

  by: Literal["", "label", "split"] = "label"  # column; '' compares none
  permutations: Annotated[int, Range(99)] = 9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """`config.report`: the pages."""

  longest_px: Annotated[int, Range(64)] = 1600  # of the map of cells
  max_geojson: Annotated[int, Range(0)] = 50_000  # cells written for QuPath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The whole config."""

  job: Literal["spatial"] = "spatial"
  workdir: Annotated[str, FILLED]
  data: Data
  cells: Cells
  detector: Detector
  window: Windows
  regions: Regions
  statistics: Statistics
  groups: Groups
  report: Report
