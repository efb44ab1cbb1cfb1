"""Keys of `configs/segment_slides.py`, and what they may be."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import (
  FILLED,
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
  Share,
)
from data_prep.wsi import tile_stream
from wsiseq_jax import jobs
from wsiseq_jax.encoders import settings as embed_settings

# Sides that any backbone takes.
_MULTIPLE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
  """`config.model`: what segments."""

  workdir: Annotated[str, FILLED]  # of a finished job `segment`
  stage: str = ""  # 'student', 'clicks' or 'nuclei'; '' = the last of them
  threshold: Share = 0.0  # of scores; 0 = the one that validation chose


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidesData(embed_settings.Data):
  """`config.data`: slides, and how they are read."""

  batch_size: AtLeast1 = 8  # tiles on all devices together


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideTiles(embed_settings.Tiles):
  """`config.tiles`: what the network is given."""

  # um per pixel; 0 = as the pictures that it learned from.
  mpp: Annotated[float, Range(0, 20)] = 0.0
  # Side of what it sees; 0 = as the crops that it learned from. A group-norm
  # takes its mean over all that it sees: larger tiles are not the same to it.
  tile_px: AtLeast0 = 0
  overlap_px: AtLeast0 = 0  # of neighbours; 0 = a quarter of a tile
  # Least share of tissue in a tile, overlaps left out.
  min_tissue: Annotated[float, Range(1e-3, 1)] = 0.01

  def __post_init__(self):
    if self.tile_px % _MULTIPLE:
      raise ValueError(
        f"config.tiles.tile_px = {self.tile_px}: must be a multiple of "
        f"{_MULTIPLE}"
      )
    is_whole = self.tile_px and self.overlap_px >= self.tile_px
    if self.overlap_px % 8 or is_whole:
      raise ValueError(
        f"config.tiles.overlap_px = {self.overlap_px}: must be a multiple of 8 "
        f"below tile_px, {self.tile_px}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideOutput:
  """`config.output`: files of a slide."""

  png_px: AtLeast1 = 8192  # longest side of a PNG
  outline_um: Annotated[float, Range(above=0)] = 4.0  # pixels of outlines
  min_area_um2: NotNegative = 2_000.0  # smaller outlines are left out
  max_hole_um2: NotNegative = 1_000.0  # smaller holes are filled


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSlides:
  """The config of the job `segment_slides`."""

  job: Literal["segment_slides"] = "segment_slides"
  workdir: Annotated[str, FILLED]
  model: TrainedModel
  data: SlidesData
  tiles: SlideTiles
  tissue: embed_settings.Tissue
  output: SlideOutput


def read(config: ConfigDict) -> SegmentSlides:
  """Checks the config."""
  jobs.check(config, "segment_slides")
  asked = schema.build(SegmentSlides, config)
  if jax.process_count() > 1:
    raise ValueError(
      "job segment_slides runs in one process: start it alone on each machine, "
      "with --config.data.part=1/8 and so on"
    )
  return asked


def sized(asked: SegmentSlides, crop_px: int) -> SegmentSlides:
  """The config with the tiles of a network that learned from such crops.

  Raises:
    ValueError: neighbours would overlap by a whole tile.
  """
  tiles = asked.tiles
  side = tiles.tile_px or math.ceil(crop_px / _MULTIPLE) * _MULTIPLE
  tiles = dataclasses.replace(
    tiles, tile_px=side, overlap_px=tiles.overlap_px or side // 4
  )
  return dataclasses.replace(asked, tiles=tiles)


def cutting(asked: SegmentSlides, mpp: float | None) -> tile_stream.Settings:
  """How tiles are cut: neighbours are `overlap_px` less than a tile apart.

  Args:
    asked: the config, its tiles `sized`.
    mpp: of the pictures that the network learned from; None = unknown.

  Raises:
    ValueError: nobody says at which scale.
  """
  mpp = asked.tiles.mpp or mpp
  if not mpp:
    raise ValueError(
      "config.tiles.mpp = 0: takes the scale of the pictures that the network "
      "learned from, which have none: set it, such as 0.5 (20x)"
    )
  wanted = dataclasses.asdict(asked.tiles)
  side, overlap = wanted.pop("tile_px"), wanted["overlap_px"]
  found = tile_stream.Settings(
    side - overlap,
    side,
    {**wanted, "mpp": float(mpp), "overlap_px": 0},
    dataclasses.asdict(asked.tissue),
  )
  found.check()
  return found


def shaping(asked: SegmentSlides, threshold: float) -> dict[str, Any]:
  """What else shapes the files of a slide."""
  return {"threshold": threshold, "output": dataclasses.asdict(asked.output)}
