"""Tile encoders: uint8 tiles in, one feature vector a tile out.

`load` turns the block `encoder` of a config into an `Encoder`, which is all
that the streaming of tiles knows. Three families:

- ResNet-50 (`models.resnet`) and vision transformers (`models.tile_vit`) with
  weights of others (`weights.tile_encoders`);
- `run`: an encoder of sequences trained here, from its checkpoint; `run.py`
  says how a tile becomes a sequence.

Normalisation is part of an encoder, hence it cannot be forgotten. Random
weights are a baseline worth having, and a terrible accident: they must be asked
for.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from data_prep.files import schema
from wsiseq_jax.data import augment
from wsiseq_jax.encoders import run
from wsiseq_jax.encoders.encoder import (
  NAMES,
  Encoder,
  Settings,
  check_windows,
  fingerprint_of,
)
from wsiseq_jax.models import resnet, tile_vit, tokens
from wsiseq_jax.weights import files, tile_encoders

__all__ = ["NAMES", "Encoder", "Settings", "load"]

_OF_RUNS = ("checkpoint", "frames", "data")
_OF_VITS = ("trained_px", "layer", "pooling", "attention_kernel")
_OF_FILES = (*"weights random_weights seed dtype mean std".split(), *_OF_VITS)
_RESNET_PX = 224
_MAP_STRIDE = 16


def load(encoder_config: Mapping[str, Any] | ConfigDict) -> Encoder:
  """Makes an encoder with its weights.

  Raises:
    ValueError: A key is unknown, or means nothing to this encoder; a value
      cannot be; weights are not there, or do not fit.
  """
  config = schema.build(Settings, dict(encoder_config), "config.encoder")
  if config.name == "run":
    _refuse(config, _OF_FILES, "is decided by the run")
    return run.load(config)
  _refuse(config, _OF_RUNS, "is for config.encoder.name = 'run'")
  if bool(config.weights) == config.random_weights:
    raise ValueError(
      f"config.encoder.weights = {config.weights!r} and config.encoder."
      f"random_weights = {config.random_weights}: name a file of weights, or "
      "ask for random ones, which know nothing of tissue"
    )
  if config.name in resnet.PRESETS:
    _refuse(config, _OF_VITS, "means nothing to a ResNet")
    return _resnet(config)
  return _vit(config)


def _refuse(config: Settings, keys: tuple[str, ...], why: str) -> None:
  """Keys that would change nothing are errors."""
  usual = Settings(name=config.name)
  for key in keys:
    if getattr(config, key) != getattr(usual, key):
      raise ValueError(
        f"config.encoder.{key} = {getattr(config, key)!r}: {why} "
        f"(config.encoder.name = {config.name!r})"
      )


def _resnet(config: Settings) -> Encoder:
  spec = resnet.PRESETS[config.name]
  spec = dataclasses.replace(spec, dtype=config.dtype or "float32")
  tile_px = config.tile_px or _RESNET_PX
  if tile_px < spec.least_px:
    raise ValueError(
      f"config.encoder.tile_px = {tile_px}: {config.name} needs "
      f"{spec.least_px} or more"
    )
  params, weights = _params(
    config, spec, resnet.init_params, tile_encoders.resnet_params
  )
  norm = tokens.IMAGENET_MEAN, tokens.IMAGENET_STD
  made = _make(config, resnet, spec, spec.width, tile_px, norm, params, weights)
  maps = functools.partial(_resnet_map, spec, made.mean, made.std)
  return dataclasses.replace(made, maps=maps, map_width=spec.width)


def _vit(config: Settings) -> Encoder:
  given = ("dtype", "tile_px", "trained_px", "pooling", "attention_kernel")
  spec = tile_vit.PRESETS[config.name]
  # Another tile size does not change what the file's positions are for.
  spec = dataclasses.replace(spec, trained_px=spec.trained_px or spec.tile_px)
  spec = dataclasses.replace(
    spec, **{key: getattr(config, key) for key in given if getattr(config, key)}
  )
  if config.layer > spec.depth:
    raise ValueError(
      f"config.encoder.layer = {config.layer}: {config.name} has {spec.depth} "
      "blocks; must be 0 (the last) or up to that"
    )
  params, weights = _params(
    config, spec, tile_vit.init_params, tile_encoders.vit_params
  )
  if config.layer:
    weights += f", after block {config.layer} of {spec.depth}"
    spec, params = tile_vit.first_blocks(spec, params, config.layer)
  norm = spec.mean, spec.std
  made = _make(
    config, tile_vit, spec, spec.features, spec.tile_px, norm, params, weights
  )
  maps = functools.partial(_vit_map, spec, made.mean, made.std)
  return dataclasses.replace(made, maps=maps, map_width=spec.width)


def _params(
  config: Settings, spec: Any, init: Callable, read: Callable
) -> tuple[Any, str]:
  """Parameters from a file or random, and where they come from."""
  if config.random_weights:
    params = jax.jit(init, static_argnums=0)(spec, jax.random.key(config.seed))
    return params, f"random, seed {config.seed}"
  tensors = files.read(config.weights, "config.encoder.weights")
  try:
    return read(tensors, spec), f"file {config.weights}"
  except ValueError as error:
    raise ValueError(
      f"config.encoder.weights = {config.weights!r}, config.encoder.name = "
      f"{config.name!r}: {error}"
    ) from error


def _make(
  config: Settings,
  model: Any,
  spec: Any,
  width: int,
  tile_px: int,
  norm: tuple[tuple[float, ...], tuple[float, ...]],
  params: Any,
  weights: str,
) -> Encoder:
  mean, std = config.mean or norm[0], config.std or norm[1]
  if min(std) <= 0:
    raise ValueError(f"config.encoder.std = {std}: must be above 0")
  # What is the same on every platform: kernels of attention compute alike.
  settings = {**dataclasses.asdict(spec), "attention_kernel": ""}
  settings |= dict(tile_px=tile_px, mean=mean, std=std)
  return Encoder(
    name=config.name,
    width=width,
    tile_px=tile_px,
    window_px=tile_px,
    mean=mean,
    std=std,
    params=_on_device(params, spec.dtype),
    apply=functools.partial(_encode, model.apply, spec, tile_px, mean, std),
    weights=weights,
    fingerprint=fingerprint_of(params, settings),
  )


def _encode(
  apply: Callable[[Any, Any, Array], Array],
  spec: Any,
  tile_px: int,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  params: Any,
  tiles: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"],
) -> Float[Array, "b d"]:
  """Normalises and encodes."""
  check_windows(tiles, tile_px)
  pixels = jnp.asarray(tiles).astype(jnp.float32) / 255.0
  return apply(params, spec, augment.normalise(pixels, mean, std))


def _resnet_map(spec, mean, std, params, pixels) -> Float[Array, "b h w c"]:
  """Features of the last stage, which is strided up to 16 in all."""
  x = augment.normalise(pixels.astype(jnp.float32) / 255.0, mean, std)
  strides = (1, 2, 2, 1)[: len(spec.blocks)]
  return resnet.maps(params, spec, x, strides)[-1].astype(jnp.float32)


def _vit_map(spec, mean, std, params, pixels) -> Float[Array, "b h w c"]:
  """Patch tokens; pictures are resized for patches that are not of 16 px."""
  b, h, w, _ = pixels.shape
  x = augment.normalise(pixels.astype(jnp.float32) / 255.0, mean, std)
  if spec.patch_px != _MAP_STRIDE:
    h, w = (side // _MAP_STRIDE * spec.patch_px for side in (h, w))
    x = jax.image.resize(x, (b, h, w, 3), "bilinear")
  return tile_vit.patch_map(params, spec, x)


def _on_device(params: Any, dtype: str) -> Any:
  """Parameters on the default device, matrices in the compute dtype."""

  def put(path, leaf):
    is_kernel = "kernel" in jax.tree_util.keystr(path)
    return jnp.asarray(leaf, dtype if is_kernel else jnp.float32)

  return jax.tree_util.tree_map_with_path(put, params)
