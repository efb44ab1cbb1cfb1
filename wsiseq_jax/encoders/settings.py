"""Keys of `configs/embed_tiles.py`, and what they may be."""

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from data_prep import runs
from data_prep.wsi import tile_stream, tiles, tissue
from wsiseq_jax import config as configs
from wsiseq_jax import jobs, launch
from wsiseq_jax.encoders import Encoder

# Features at another scale than the encoder's are worth a word from here on.
_SCALE_TOLERANCE = 0.1


def _part(value: Any) -> str | None:
  try:
    runs.share(value, "data.part")
  except (TypeError, ValueError):
    return runs.SHARE_WANTED
  return None


CHECKS: Mapping[str, configs.Check] = {
  "job": configs.one_of("embed_tiles"),
  "workdir": configs.text(),
  "data.slides": configs.text(),
  "data.table": configs.text(),
  "data.part": _part,
  "data.batch_size": configs.integer(1),
  "data.threads": configs.integer(1),
  "tiles.mpp": configs.number(0, 20),
  "tiles.overlap_px": configs.integer(0),
  "tiles.min_tissue": configs.number(1e-3, 1),
  "tiles.anchor": configs.one_of(*tiles.ANCHORS),
  "tiles.mpp_tolerance": configs.number(0, 1),
  "tiles.allow_upsampling": configs.flag(),
  "tiles.default_mpp": configs.number(0),
  "tiles.reader": configs.one_of("auto", "openslide"),
  "tiles.max_bad_share": configs.number(0, 1),
  "tissue.method": configs.one_of(*tissue.METHODS),
  "tissue.thumbnail_px": configs.integer(64),
}


def validate(config: ConfigDict) -> None:
  """Checks the config, less the encoder's block, which its loader checks.

  Raises:
    ValueError: all that is wrong.
  """
  jobs.check(config, "embed_tiles")
  rest = {key: config[key] for key in config if key != "encoder"}
  configs.check_keys(ConfigDict(rest), CHECKS)
  if "encoder" not in config:
    raise ValueError("config.encoder: missing")
  for key, value in (
    ("workdir", config.workdir),
    ("data.slides", config.data.slides),
  ):
    if not value:
      raise ValueError(f"config.{key} = '': name a folder")
  if jax.process_count() > 1:
    raise ValueError(
      "job embed_tiles runs in one process: start it alone on each machine, "
      "with --config.data.part=1/8 and so on"
    )


def settings_of(config: ConfigDict, encoder: Encoder) -> tile_stream.Settings:
  """Returns how tiles are cut for an encoder.

  Args:
    config: see `configs/embed_tiles.py`.
    encoder: says how large tiles are, and perhaps their scale.

  Returns:
    The settings, checked.

  Raises:
    ValueError: they contradict each other, or nobody says the scale.
  """
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
