"""How an index's vectors are made, and a query's in the same way.

The settings of an index name it all: the encoder with its fingerprint, the
scale of the tiles, the layer of a MIL model. A query goes through the same, or
is refused.

With a MIL model several tiles become one vector as in HERE: the mean, weighed
by the model's attention over all of them; without one the plain mean.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from wsiseq_jax import encoders
from wsiseq_jax.data import source
from wsiseq_jax.mil import results
from wsiseq_jax.models import mil
from wsiseq_jax.search import inputs
from wsiseq_jax.search.clustering import l2_normalise
from wsiseq_jax.search.inputs import How, Layer, Maker
from wsiseq_jax.search.settings import IndexBlock, QueryEncoder

# Settings of an index that never change.
FIXED = ("source", "mil", "region_um", "width", "made_by", "mpp")


def how(block: IndexBlock) -> tuple[How, dict[str, Any]]:
  """How the rows of a source are read, and what the index says of it.

  Raises:
    ValueError: the MIL model or the preparation is not there, or of no use.
  """
  layer, mil_model = None, {}
  if block.mil:
    mil_model = _mil_model(block.mil, block.mil_model)
    layer = _layer(mil_model, block.mil)
  scales = {}
  if block.prep:
    try:
      spec = source.read_spec(block.prep)
    except ValueError as error:
      raise ValueError(f"config.index.prep: {error}") from error
    scales = inputs.scales(block.prep, spec.frame_px)
  found = How(
    source=block.source,
    layer=layer,
    layer_name=mil_model.get("identity", ""),
    maps=str(pathlib.Path(block.mil) / "maps") if block.mil else "",
    region_um=block.region_um,
    tile_size=block.tile_size or None,
    scales=scales,
  )
  # Where it lies may change.
  return found, {
    "source": block.source,
    "region_um": block.region_um,
    "mil": mil_model.get("identity", ""),
    "mil_model": mil_model,
  }


def _mil_model(workdir: str, name: str) -> dict[str, Any]:
  """Which model of a MIL job: its folder, name and identity."""
  folder = pathlib.Path(workdir) / "models"
  try:
    runs = results.find(folder)
  except ValueError as error:
    raise ValueError(
      f"config.index.mil = {workdir!r}: no finished models there"
    ) from error
  known = {run.name: run for run in runs}
  if name and name not in known:
    raise ValueError(
      f"config.index.mil_model = {name!r}: must be one of {list(known)}"
    )
  run = known[name or runs[0].name]
  return {
    "workdir": str(pathlib.Path(workdir).resolve()),
    "name": run.name,
    "identity": results.inputs_of(folder, run),
  }


def _mil_params(model: Mapping[str, Any]) -> dict[str, Any]:
  folder = pathlib.Path(model["workdir"]) / "models"
  run = {r.name: r for r in results.find(folder)}[model["name"]]
  if results.inputs_of(folder, run) != model["identity"]:
    raise ValueError(
      f"{folder}: {model['name']} was trained anew since the index was made"
    )
  return results.load_params(folder, run)


def _layer(model: Mapping[str, Any], workdir: str) -> Layer:
  try:
    found = _mil_params(model)["tile"]["embed"]
  except KeyError as error:
    raise ValueError(
      f"config.index.mil = {workdir!r}: its model has no layer before "
      "attention; models that have one: gated, attention, additive, clam_sb, "
      "clam_mb"
    ) from error
  return Layer(found["kernel"], found["bias"])


def described(
  asked: QueryEncoder, block: IndexBlock, maker: Maker, read: How
) -> dict[str, Any]:
  """What the index says of the encoder.

  Args:
    asked: the block `encoder` of the config.
    block: the block `index`.
    maker: what made the features.
    read: how rows are read.

  Raises:
    ValueError: the encoder is not the one that made the features.
  """
  mpp = maker.mpp or block.mpp or None
  if maker.mpp and block.mpp and abs(block.mpp / maker.mpp - 1) > 0.01:
    raise ValueError(
      f"config.index.mpp = {block.mpp}: the files say {maker.mpp:g}"
    )
  width = maker.width if read.layer is None else read.layer.kernel.shape[1]
  if read.layer is not None and len(read.layer.kernel) != maker.width:
    raise ValueError(
      f"config.index.mil: the model takes features of width "
      f"{len(read.layer.kernel)}, config.index.features has {maker.width}"
    )
  found = {"width": width, "made_by": maker.fingerprint, "mpp": mpp}
  if asked.name:
    encoder = encoders.load(dataclasses.asdict(asked))
    if encoder.width != maker.width or (
      read.source == "tiles"
      and maker.fingerprint not in ("", encoder.fingerprint)
    ):
      raise ValueError(
        f"config.encoder: {encoder.weights} makes features of width "
        f"{encoder.width} and has the fingerprint {encoder.fingerprint}; "
        f"config.index.features has {maker}"
      )
    found["mpp"] = mpp or encoder.mpp
    found["encoder"] = dataclasses.asdict(asked)
    found["encoder_fingerprint"] = encoder.fingerprint
  return found


class Encoding:
  """Turns tiles into vectors like those of an index.

  Attributes:
    encoder: what tiles are given to.
    mpp: um per pixel of tiles; None = unknown.
  """

  def __init__(self, settings: Mapping[str, Any], batch_size: int = 16):
    if not settings.get("encoder"):
      raise ValueError(
        "the index does not know its encoder, so that pictures and regions "
        "cannot be encoded: run the job index again with config.encoder"
      )
    self.encoder = encoders.load(settings["encoder"])
    if self.encoder.fingerprint != settings["encoder_fingerprint"]:
      raise ValueError(
        f"the encoder of the index has changed: {self.encoder.weights} has the "
        f"fingerprint {self.encoder.fingerprint}, the index "
        f"{settings['encoder_fingerprint']}"
      )
    self.mpp = settings["mpp"]
    self._batch = batch_size
    self._apply = jax.jit(self.encoder.apply)
    self._mil = settings["mil_model"]
    self._layer = None
    if self._mil:
      self._params = _mil_params(self._mil)
      self._layer = _layer(self._mil, self._mil["workdir"])

  def __call__(
    self, tiles: UInt8[np.ndarray, "m h w 3"]
  ) -> Float32[np.ndarray, "m d"]:
    """Features of tiles as the encoder makes them, in batches of one shape."""
    found = []
    for start in range(0, len(tiles), self._batch):
      batch = tiles[start : start + self._batch]
      missing = self._batch - len(batch)
      padded = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
      out = self._apply(self.encoder.params, padded)
      found.append(np.asarray(out)[: len(batch)])
    return np.concatenate(found)

  def pooled(
    self, features: Float32[np.ndarray, "m d"]
  ) -> tuple[Float32[np.ndarray, " e"], Float32[np.ndarray, " m"]]:
    """One vector of length 1 for several tiles, and the weight of each."""
    weights = np.full(len(features), 1 / len(features), np.float32)
    vectors = features
    if self._layer is not None:
      weights, vectors = self._attention(features), self._layer(features)
    return l2_normalise(weights[None] @ l2_normalise(vectors))[0], weights

  def _attention(
    self, features: Float32[np.ndarray, "m d"]
  ) -> Float32[np.ndarray, " m"]:
    """The model's attention over these tiles as one bag."""
    text = (pathlib.Path(self._mil["workdir"]) / "mil_config.json").read_text()
    saved = json.loads(text)
    config = mil.configure(
      **saved["config"]["model"],
      width=features.shape[1],
      outputs=self._params["tile"]["classifier"]["bias"].shape[0],
    )
    bag = mil.Bag(
      jnp.asarray(features),
      jnp.ones(len(features), bool),
      jnp.zeros((len(features), 2)),
    )
    attention = mil.apply(self._params, config, bag).attention
    return np.asarray(attention, np.float32).mean(axis=1)
