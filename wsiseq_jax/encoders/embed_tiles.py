"""The job `embed_tiles`: slides in, one feature file a slide out.

Tiles go from the slide through the encoder (`slide_run.py`); no pictures are
kept in between. See `configs/embed_tiles.py` for how to run it,
`data_prep/wsi/tile_stream.py` for the slides' side.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_prep.wsi import tile_stream, tiles
from wsiseq_jax import encoders
from wsiseq_jax.data import tile_features
from wsiseq_jax.encoders import settings as embed_config
from wsiseq_jax.encoders import slide_run
from wsiseq_jax.encoders.run_tables import Summary
from wsiseq_jax.encoders.slide_run import OpenSlide


def run(config: ConfigDict) -> None:
  """The job; ends the program with the exit code unless all is well.

  Args:
    config: see `configs/embed_tiles.py`.

  Raises:
    ValueError: a bad config, or nothing to do.
    SystemExit: some slides could not be used.
  """
  embed_config.validate(config)
  summary = embed_slides(config, encoders.load(config.encoder))
  print(summary.text)
  if summary.exit_code:
    sys.exit(summary.exit_code)


def embed_slides(config: ConfigDict, encoder: encoders.Encoder) -> Summary:
  """Embeds all slides that are not finished, and writes the tables."""
  settings = embed_config.settings_of(config, encoder)
  return _Embedding(config, settings, encoder).run()


def compile_encoder(
  encoder: encoders.Encoder, batch_size: int
) -> Callable[[np.ndarray], jax.Array]:
  """The program that takes one padded batch of tiles."""
  return slide_run.compile_tiles(
    encoder.apply, encoder.params, encoder.window_px, batch_size
  )


@dataclasses.dataclass
class _Features:
  """Features of a slide's tiles."""

  values: np.ndarray
  have: np.ndarray  # which tiles there are features of


class _Embedding(slide_run.SlideRun):
  """Features of slides."""

  stage, drawn = "encode", 3

  def __init__(
    self,
    config: ConfigDict,
    settings: tile_stream.Settings,
    encoder: encoders.Encoder,
  ):
    names = ("name", "width", "fingerprint")
    made_by = {name: getattr(encoder, name) for name in names}
    super().__init__(config.workdir, config.data, settings, made_by)
    self._encoder = encoder
    (self.workdir / "features").mkdir(parents=True, exist_ok=True)

  def program(self) -> Callable[[np.ndarray], jax.Array]:
    """The encoder, compiled."""
    return compile_encoder(self._encoder, self.data.batch_size)

  def begin(self, event: tile_stream.Begin) -> _Features:
    """Room for the features of all its tiles."""
    count = len(event.grid)
    values = np.empty((count, self._encoder.width), np.float32)
    return _Features(values, np.zeros(count, bool))

  def take(
    self, slide: OpenSlide, batch: tiles.TileBatch, output: jax.Array
  ) -> None:
    """Puts features where their tiles are."""
    found, index = slide.content, batch.index
    found.values[index] = np.asarray(output)[: len(index)]
    found.have[index] = True

  def paths(self, slide_id: str) -> dict[str, pathlib.Path]:
    """Where the features of a slide are."""
    return {"features": self.workdir / "features" / f"{slide_id}.h5"}

  def write(
    self, slide: OpenSlide, info: Mapping[str, Any]
  ) -> tuple[dict[str, Any], list[pathlib.Path]]:
    """Writes the features of a slide."""
    found, grid = slide.content, slide.begin.grid
    slide_id = slide.begin.entry.slide_id
    path = self.paths(slide_id)["features"]
    tile_features.write(
      path,
      tile_features.TileFeatures(
        slide_id=slide_id,
        features=found.values[found.have],
        xy=grid.xy[found.have].astype(np.float64),
        tile_size=grid.tile_level0,
        mpp=grid.mpp,
        level0_mpp=info["mpp"],
        level0_size=tuple(info["level0_px"]),
        encoder=self._encoder.name,
      ),
      attributes={
        "encoder_fingerprint": self._encoder.fingerprint,
        "encoder_weights": self._encoder.weights,
      },
      overlap_px=self.cutting.tiles["overlap_px"],
    )
    return {}, [path]
