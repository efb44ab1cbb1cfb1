"""Keys of `configs/embed_tiles.py`, and what they may be."""

import dataclasses
from typing import Annotated, Literal

import jax
from ml_collections import ConfigDict

from data_prep import runs
from data_prep.files import schema
from data_prep.files.schema import FILLED, Range
from data_prep.wsi import damage, tile_stream, tiles, tissue
from wsiseq_jax import jobs, launch
from wsiseq_jax.encoders import encoder as encoders

# Features at another scale than the encoder's are worth a word from here on.
_SCALE_TOLERANCE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Slides, and how they are read."""

  slides: Annotated[str, FILLED]  # 'synthetic' makes three small ones
  table: str = ""  # a CSV that describes slides named in `slides`
  # '3/8': the third of eight machines; or 'slurm'.
  part: Annotated[str, runs.IS_SHARE] = "1/1"
  batch_size: Annotated[int, Range(1)] = 64  # tiles on all devices together
  threads: Annotated[int, Range(1)] = 8  # that decode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
  """How tiles are cut; see `data_prep/wsi/tiles.py`."""

  # um per pixel, met exactly; 0 = a run's own.
  mpp: Annotated[float, Range(0, 20)] = 0.5
  overlap_px: Annotated[int, Range(0)] = 0  # of neighbours
  min_tissue: Annotated[float, Range(1e-3, 1)] = 0.25  # share of a tile
  # The grid begins at (0, 0), or at the slide's bounds.
  anchor: Literal[tuple(tiles.ANCHORS)] = "level0"
  # How much finer than the scan `mpp` may be.
  mpp_tolerance: Annotated[float, Range(0, 1)] = 0.02
  allow_upsampling: bool = False
  # For slides that state none; 0 = refuse them.
  default_mpp: Annotated[float, Range(0)] = 0.0
  # 'openslide': read everything through OpenSlide.
  reader: Literal["auto", "openslide"] = "auto"
  # Of a slide's tiles that may be unreadable.
  max_bad_share: Annotated[float, Range(0, 1)] = damage.MAX_BAD_SHARE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tissue:
  """What is tissue; see `data_prep/wsi/tissue.py`."""

  method: Literal[tuple(tissue.METHODS)] = "guarded"
  # Longest side of what the mask is made of.
  thumbnail_px: Annotated[int, Range(64)] = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The config of the job `embed_tiles`."""

  job: Literal["embed_tiles"] = "embed_tiles"
  workdir: Annotated[str, FILLED]
  data: Data
  tiles: Tiles
  tissue: Tissue
  encoder: encoders.Settings


def validate(config: ConfigDict) -> None:
  """Checks the config."""
  jobs.check(config, "embed_tiles")
  schema.build(Settings, config)
  if jax.process_count() > 1:
    raise ValueError(
      "job embed_tiles runs in one process: start it alone on each machine, "
      "with --config.data.part=1/8 and so on"
    )


def settings_of(
  config: ConfigDict, encoder: encoders.Encoder
) -> tile_stream.Settings:
  """Returns how tiles are cut for an encoder."""
  mpp = config.tiles.mpp or encoder.mpp
  if mpp is None:
    raise ValueError(
      "config.tiles.mpp = 0: takes the scale that the encoder was trained at, "
      f"which is not known of {encoder.name!r}: set it, such as 0.5 (20x)"
    )
  if encoder.mpp and abs(mpp / encoder.mpp - 1) > _SCALE_TOLERANCE:
    launch.log(
      f"warning: config.tiles.mpp = {mpp:g}, but the encoder was trained at "
      f"{encoder.mpp:g} um/px"
    )
  settings = tile_stream.Settings(
    encoder.tile_px,
    encoder.window_px,
    {**config.tiles.to_dict(), "mpp": float(mpp)},
    config.tissue.to_dict(),
  )
  settings.check()
  return settings
