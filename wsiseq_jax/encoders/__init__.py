"""Tile encoders: uint8 tiles in, one feature vector a tile out.

`load` turns the block `encoder` of a config into an `Encoder`, which is all
that the streaming of tiles knows. Three families:

- ResNet-50 (`models.resnet`) and vision transformers (`models.tile_vit`) with
  weights from a file of others (`encoder_weights`);
- `run`: an encoder of sequences trained here, from its checkpoint; how a tile
  becomes a sequence is said in `run_encoder`.

Normalisation is part of an encoder, hence it cannot be forgotten. Random
weights are a baseline worth having, and a terrible accident: they must be asked
for.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from wsiseq_jax import config as configs
from wsiseq_jax.data import augment
from wsiseq_jax.models import attention, resnet, tile_vit
from wsiseq_jax.weights import files, tile_encoders

NAMES = (*resnet.PRESETS, *tile_vit.PRESETS, "run")

# What `load` takes, and what it takes a missing key for.
DEFAULTS: Mapping[str, Any] = {
  "name": "",
  "weights": "",  # a file, see `encoder_weights.read`
  "random_weights": False,  # must be True for weights = ''
  "seed": 0,  # of random weights
  "dtype": "",  # '' = float32; a run has its own
  "tile_px": 0,  # 0 = the encoder's own
  "trained_px": 0,  # ViT: tiles the file's positions are for; 0 = the preset's
  "pooling": "",  # ViT; '' = the preset's
  "mean": (),  # () = the encoder's own
  "std": (),
  "attention_kernel": "auto",
  "checkpoint": "",  # run: its workdir, or folder of checkpoints
  "frames": 1,  # run: 1 = a still clip, or the frames of the run
  "data": "",  # run with a drift: its shards, if they were moved
}


def _channels(value: Any) -> str | None:
  if isinstance(value, tuple | list) and not value:
    return None
  wanted = configs.numbers(0, 1, length=3)(value)
  return f"(), or {wanted}" if wanted else None


CHECKS: Mapping[str, configs.Check] = {
  "name": configs.one_of(*NAMES),
  "weights": configs.text(),
  "random_weights": configs.flag(),
  "seed": configs.integer(0),
  "dtype": configs.one_of("", *tile_vit.DTYPES),
  "tile_px": configs.integer(0),
  "trained_px": configs.integer(0),
  "pooling": configs.one_of("", *tile_vit.POOLINGS),
  "mean": _channels,
  "std": _channels,
  "attention_kernel": configs.one_of(*attention.KERNELS),
  "checkpoint": configs.text(),
  "frames": configs.integer(1),
  "data": configs.text(),
}
_OF_RUNS = ("checkpoint", "frames", "data")
_OF_VITS = ("trained_px", "pooling", "attention_kernel")
_OF_FILES = (
  "weights", "random_weights", "seed", "dtype", "mean", "std", *_OF_VITS
)  # fmt: skip
_RESNET_PX = 224


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """What turns tiles into features.

  Attributes:
    name: Of the config.
    width: Features of a tile.
    tile_px: Side of a tile, the tissue that a feature is said to be of.
    window_px: Side of what `apply` is given, the tile in its middle; larger
      than `tile_px` where frames drift.
    mean: Channel means of the normalisation, of pixels in [0, 1].
    std: Channel deviations.
    params: Parameters, on the default device.
    apply: (params, uint8 [b, window_px, window_px, 3]) → float32 [b, width];
      pure, to be compiled by the caller.
    weights: Where the parameters come from, in words.
    fingerprint: Equal for encoders that compute the same, wherever their files
      lie: a hash of all parameters and settings.
    mpp: um per pixel of the tiles that a run was trained on, at `tile_px`;
      None where that is not known.
  """

  name: str
  width: int
  tile_px: int
  window_px: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  params: Any = dataclasses.field(repr=False)
  apply: Callable[[Any, Array], Array] = dataclasses.field(repr=False)
  weights: str
  fingerprint: str
  mpp: float | None = None


def load(encoder_config: Mapping[str, Any] | ConfigDict) -> Encoder:
  """Makes an encoder with its weights.

  Args:
    encoder_config: The block `encoder` of a config; see `DEFAULTS`.

  Raises:
    ValueError: A key is unknown, or means nothing to this encoder; a value
      cannot be; weights are not there, or do not fit.
  """
  config = {**DEFAULTS, **dict(encoder_config)}
  configs.check_keys(
    ConfigDict({"encoder": config}),
    {f"encoder.{key}": check for key, check in CHECKS.items()},
  )
  if config["name"] == "run":
    # Imported here: most encoders need no checkpoint.
    from wsiseq_jax.encoders import run

    _refuse(config, _OF_FILES, "is decided by the run")
    return run.load(config)
  _refuse(config, _OF_RUNS, "is for config.encoder.name = 'run'")
  is_random = config["random_weights"]
  if bool(config["weights"]) == is_random:
    raise ValueError(
      f"config.encoder.weights = {config['weights']!r} and config.encoder."
      f"random_weights = {is_random}: name a file of weights, or ask for "
      "random ones, which know nothing of tissue"
    )
  if config["name"] in resnet.PRESETS:
    _refuse(config, _OF_VITS, "means nothing to a ResNet")
    spec = resnet.PRESETS[config["name"]]
    spec = dataclasses.replace(spec, dtype=config["dtype"] or "float32")
    return _make(config, resnet, spec, spec.width, _RESNET_PX)
  given = ("dtype", "tile_px", "trained_px", "pooling", "attention_kernel")
  spec = tile_vit.PRESETS[config["name"]]
  # Another tile size does not change what the file's positions are for.
  spec = dataclasses.replace(spec, trained_px=spec.trained_px or spec.tile_px)
  spec = dataclasses.replace(
    spec, **{key: config[key] for key in given if config[key]}
  )
  return _make(config, tile_vit, spec, spec.features, spec.tile_px)


def _refuse(config: Mapping[str, Any], keys: tuple[str, ...], why: str) -> None:
  """Keys that would change nothing are errors."""
  for key in keys:
    if config[key] != DEFAULTS[key]:
      raise ValueError(
        f"config.encoder.{key} = {config[key]!r}: {why} (config.encoder.name "
        f"= {config['name']!r})"
      )


def _make(
  config: Mapping[str, Any], model: Any, spec: Any, width: int, tile_px: int
) -> Encoder:
  """An encoder of a model's module, with weights from a file or random."""
  tile_px = config["tile_px"] or tile_px
  if isinstance(spec, resnet.ResNetSpec) and tile_px < spec.least_px:
    raise ValueError(
      f"config.encoder.tile_px = {tile_px}: {config['name']} needs "
      f"{spec.least_px} or more"
    )
  if config["random_weights"]:
    init = jax.jit(model.init_params, static_argnums=0)
    params = init(spec, jax.random.key(config["seed"]))
    weights = f"random, seed {config['seed']}"
  else:
    tensors = files.read(config["weights"], "config.encoder.weights")
    reader = tile_encoders.vit_params
    if model is resnet:
      reader = tile_encoders.resnet_params
    try:
      params = reader(tensors, spec)
    except ValueError as error:
      raise ValueError(
        f"config.encoder.weights = {config['weights']!r}, config.encoder.name "
        f"= {config['name']!r}: {error}"
      ) from error
    weights = f"file {config['weights']}"
  mean = tuple(config["mean"] or getattr(spec, "mean", augment.IMAGENET_MEAN))
  std = tuple(config["std"] or getattr(spec, "std", augment.IMAGENET_STD))
  if min(std) <= 0:
    raise ValueError(f"config.encoder.std = {std}: must be above 0")
  # What is the same on every platform: kernels of attention compute alike.
  settings = {**dataclasses.asdict(spec), "attention_kernel": ""}
  settings |= dict(tile_px=tile_px, mean=mean, std=std)
  fingerprint = fingerprint_of(params, settings)
  return Encoder(
    name=config["name"],
    width=width,
    tile_px=tile_px,
    window_px=tile_px,
    mean=mean,
    std=std,
    params=_on_device(params, spec.dtype),
    apply=functools.partial(_encode, model.apply, spec, tile_px, mean, std),
    weights=weights,
    fingerprint=fingerprint,
  )


def check_windows(windows: Any, px: int) -> None:
  """Refuses what is not uint8 [b, px, px, 3]."""
  if windows.shape[1:] != (px, px, 3) or windows.dtype != jnp.uint8:
    raise ValueError(
      f"windows of {windows.dtype}{list(windows.shape)} were given to an "
      f"encoder of uint8[b, {px}, {px}, 3]"
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


def fingerprint_of(params: Any, settings: Mapping[str, Any]) -> str:
  """A hash of parameters, by path, and settings.

  Example:
    >>> one = fingerprint_of({"a": np.zeros(2)}, {"tile_px": 224})
    >>> one == fingerprint_of({"a": np.zeros(2)}, {"tile_px": 256}), len(one)
    (False, 16)
  """
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  for path, leaf in jax.tree.leaves_with_path(params):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
    digest.update(leaf)
  return digest.hexdigest()[:16]


def _on_device(params: Any, dtype: str) -> Any:
  """Parameters on the default device, matrices in the compute dtype."""

  def put(path, leaf):
    is_kernel = "kernel" in jax.tree_util.keystr(path)
    return jnp.asarray(leaf, dtype if is_kernel else jnp.float32)

  return jax.tree_util.tree_map_with_path(put, params)
