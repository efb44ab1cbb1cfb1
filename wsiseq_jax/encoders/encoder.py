"""What turns tiles into features, whatever it is made of."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data_prep.files.schema import Range, Rule
from wsiseq_jax.models import attention, resnet, tile_vit

NAMES = (*resnet.PRESETS, *tile_vit.PRESETS, "run")
_AtLeast0 = Annotated[int, Range(0)]
_NONE_OR_THREE = Rule(lambda value: len(value) in (0, 3), "none or three")
_Channels = Annotated[tuple[float, ...], _NONE_OR_THREE, Range(0, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Keys of the block `encoder` of a config."""

  name: Literal[NAMES]
  weights: str = ""  # see `weights.files.find`
  random_weights: bool = False  # must be True for weights = ''
  seed: _AtLeast0 = 0  # of random weights
  dtype: Literal["", "float32", "bfloat16"] = ""  # '' = float32, or the run's
  tile_px: _AtLeast0 = 0  # 0 = the encoder's own
  # ViT: tiles that the file's positions are for; 0 = the preset's.
  trained_px: _AtLeast0 = 0
  layer: _AtLeast0 = 0  # ViT: features after this block; 0 = the last
  pooling: Literal[("", *tile_vit.POOLINGS)] = ""  # ViT; '' = the preset's
  mean: _Channels = ()  # () = the encoder's own
  std: _Channels = ()
  attention_kernel: Literal[attention.KERNELS] = "auto"
  checkpoint: str = ""  # run: its workdir, or folder of checkpoints
  frames: Annotated[int, Range(1)] = 1  # run: 1 = a still clip, or the run's
  data: str = ""  # run with a drift: its shards, if they were moved


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """What turns tiles into features."""

  name: str  # of the config
  width: int  # features of a tile
  tile_px: int  # side of a tile, the tissue that a feature is said to be of
  # Side of what `apply` is given, the tile in its middle; larger than `tile_px`
  # where frames drift.
  window_px: int
  # Channel means of the normalisation, of pixels in [0, 1].
  mean: tuple[float, ...]
  std: tuple[float, ...]  # channel deviations
  # Parameters, on the default device.
  params: Any = dataclasses.field(repr=False)
  # (params, uint8 [b, window_px, window_px, 3]) → float32 [b, width]; pure, to
  # be compiled by the caller.
  apply: Callable[[Any, Array], Array] = dataclasses.field(repr=False)
  weights: str  # where the parameters come from, in words
  # Equal for encoders that compute the same, wherever their files are: a hash
  # of all parameters and settings.
  fingerprint: str
  # Um per pixel of the tiles that a run was trained on, at `tile_px`; None
  # where that is not known.
  mpp: float | None = None
  # (params, pixels from 0 to 255 [b, h, w, 3], sides multiples of 16) →
  # float32 [b, h / 16, w / 16, c], a map of features; None where the encoder
  # has none.
  maps: Callable[[Any, Array], Array] | None = dataclasses.field(
    default=None, repr=False
  )
  map_width: int = 0  # features of a place of the map


def check_windows(windows: Any, px: int) -> None:
  """Refuses what is not uint8 [b, px, px, 3]."""
  if windows.shape[1:] != (px, px, 3) or windows.dtype != jnp.uint8:
    raise ValueError(
      f"windows of {windows.dtype}{list(windows.shape)} were given to an "
      f"encoder of uint8[b, {px}, {px}, 3]"
    )


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
