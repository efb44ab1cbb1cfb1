"""Slides that are drawn and embedded, for the presets `demo` and `smoke`."""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from data_prep.synthetic import slides
from wsiseq_jax import encoders
from wsiseq_jax.encoders import embed_tiles
from wsiseq_jax.encoders import settings as embed_settings
from wsiseq_jax.search.settings import SearchSettings

_SLIDES, _SIZE_PX = 4, (640, 512)


def complete(asked: SearchSettings) -> SearchSettings:
  """Draws slides, embeds their tiles, and names both in the settings."""
  workdir = pathlib.Path(asked.workdir)
  table = slides.make_cohort(
    workdir / "slides", slides=_SLIDES, size_px=_SIZE_PX, region_um=200.0
  )
  encoder = encoders.Settings(**dataclasses.asdict(asked.encoder))
  wanted = embed_settings.Settings(
    workdir=str(workdir / "tiles"),
    data=embed_settings.Data(slides=str(table), batch_size=16, threads=2),
    tiles=embed_settings.Tiles(mpp=asked.index.mpp),
    tissue=embed_settings.Tissue(thumbnail_px=256),
    encoder=encoder,
  )
  config = ConfigDict(dataclasses.asdict(wanted))
  embed_tiles.embed_slides(config, encoders.load(config.encoder))
  block = dataclasses.replace(
    asked.index,
    features=str(workdir / "tiles" / "features"),
    slides=str(table),
    table=str(table),
  )
  return dataclasses.replace(asked, index=block)
