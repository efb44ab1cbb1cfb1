"""Keys of `configs/search.py`, and what they may be."""

import dataclasses
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from data_prep import cluster, runs
from data_prep.files import schema
from data_prep.files.schema import (
  DIFFERENT,
  FILLED,
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
)
from wsiseq_jax import encoders, jobs

SYNTHETIC = "synthetic"
SOURCES = ("tiles", "sequences")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexBlock:
  """What is indexed; see `configs/search.py`."""

  source: Literal[SOURCES] = "tiles"
  # tiles: a folder of feature files; sequences: `embeddings` of a run.
  # 'synthetic' draws slides and embeds them.
  features: str = ""
  mil: str = ""  # tiles: workdir of a job `mil`, whose layer is applied
  mil_model: str = ""  # one of its models, repeat0_fold0_seed0; '' = the first
  # tiles: side of regions whose tiles are one row, their mean; 0 = single tiles
  region_um: NotNegative = 0.0
  # sequences: what preparation wrote, for sizes on the slide
  prep: str = ""
  slides: str = ""  # files of slides, for pictures and regions; '' = none
  table: str = ""  # a CSV with what is known of slides
  label: str = "label"  # column of the table
  cohort: str = ""  # of slides whose table has no column `cohort`
  # um per pixel of the tiles, where feature files do not say
  mpp: NotNegative = 0.0
  # side of a tile, in a file's unit, where files do not say
  tile_size: NotNegative = 0.0
  remove: tuple[str, ...] = ()  # slides to take out
  part_rows: Annotated[int, Range(1)] = 250_000  # vectors of a part, about
  seed: AtLeast0 = 0  # of the quantiser


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryEncoder(encoders.Settings):
  """What encodes pictures; name = '': the index takes rows only."""

  name: Literal[("", *encoders.NAMES)] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
  """Which rows may be found; () = all, several = any of them."""

  slide_id: tuple[str, ...] = ()
  patient_id: tuple[str, ...] = ()
  cohort: tuple[str, ...] = ()
  organ: tuple[str, ...] = ()
  label: tuple[str, ...] = ()
  score: tuple[float, ...] = ()  # lowest and highest

  def given(self) -> dict[str, Any]:
    """As `Index.search` takes them."""
    return {name: v for name, v in dataclasses.asdict(self).items() if v}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryBlock:
  """What is looked for: pictures, a region, or rows."""

  index: str = ""  # workdir of a job `index`
  images: tuple[str, ...] = ()  # one to five files
  mpp: NotNegative = 0.0  # um per pixel of them; 0 = that of the index
  slide: str = ""  # a slide's file, with `region`
  region: tuple[float, ...] = ()  # x, y, width, height, level-0 pixels
  rows: tuple[int, ...] = ()  # rows of the index
  # Several pictures or rows as one query, or each by itself.
  pool: bool = True
  k: Annotated[int, Range(1, 1000)] = 20
  where: Filters = Filters()
  exclude: Literal["none", "slide", "patient"] = "slide"  # the query's own
  # Hits closer than so many sides on one slide are shown once; 0 = all.
  apart: NotNegative = 2.0
  exact: bool = False  # looks at all rows, on the devices, not at codes
  thumbnail_px: Annotated[int, Range(32, 1024)] = 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """How retrieval is scored."""

  labels: tuple[Literal["label", "organ", "cohort"], ...] = ("label",)
  k: Annotated[tuple[int, ...], Range(1), DIFFERENT, FILLED] = (1, 5, 10)
  sample: AtLeast0 = 10_000  # random rows that are asked with; 0 = all
  resamples: AtLeast1 = 1000
  seed: AtLeast0 = 0  # of the sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
  """The config of the jobs `index`, `search` and `retrieval`."""

  job: Literal["index", "search", "retrieval"] = "index"
  workdir: Annotated[str, FILLED]
  index: IndexBlock = IndexBlock()
  encoder: QueryEncoder = QueryEncoder()
  query: QueryBlock = QueryBlock()
  scores: Scores = Scores()
  # Where parts are written, see `docs/cluster.md`.
  cluster: str = cluster.LOCAL
  workers: Annotated[int, Range(-1)] = 0
  memory_gb: Annotated[float, Range(above=0)] = 4.0
  slurm: runs.Slurm = runs.Slurm()
  batch_size: AtLeast1 = 16  # tiles of a query that are encoded at once

  def __post_init__(self):
    runs.check_cluster(self.cluster, self.workers)
    if self.job == "index" and not self.index.features:
      if not self.index.remove:
        raise ValueError(
          "config.index.features = '': name a folder of feature files, or "
          "slides to remove (config.index.remove)"
        )
    if self.index.source == "sequences":
      for key in ("mil", "region_um", "mpp", "tile_size"):
        if getattr(self.index, key):
          raise ValueError(
            f"config.index.{key} = {getattr(self.index, key)!r}: is for "
            "config.index.source = 'tiles'"
          )
    if self.job == "search":
      self._check_query()

  def _check_query(self):
    query = self.query
    given = {
      "images": bool(query.images),
      "region": bool(query.slide or query.region),
      "rows": bool(query.rows),
    }
    if sum(given.values()) != 1:
      raise ValueError(
        "config.query: give one of images, rows, or slide and region; given: "
        f"{[name for name, is_given in given.items() if is_given]}"
      )
    if given["region"] and (len(query.region) != 4 or not query.slide):
      raise ValueError(
        f"config.query.region = {query.region}, config.query.slide = "
        f"{query.slide!r}: a region is a slide's file and x, y, width, height"
      )


def read(config: ConfigDict) -> SearchSettings:
  """Checks every key and value of a config of `configs/search.py`."""
  jobs.check(config, "index")
  return schema.build(SearchSettings, config)
