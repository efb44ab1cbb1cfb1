"""An encoder of sequences, trained here, as an encoder of tiles.

It wants a clip and is given one tile. There are two ways to make a clip of it:

    frames = 1   a still clip: the tile in every frame, all at time 0
    frames = t   those of the run's clips: a short drift to the right, the tile
                 in its middle

                    +---------- window_px ----------+
                    |                               |
                    | [ 0 ]..[ tile ]..[ t - 1 ]    |
                    |                               |
                    +-------------------------------+

For the drift a larger window is asked for, and frames are cut out of it as far
apart, in space and in time, as in the data the run was trained on: this is read
from the first record of its shards. Nothing outside the window is ever seen.

Either way the clip goes through the task as a stored record would, whole frames
without augmentation, and its feature is the task's own (`Task.encode`): the
mean of all tokens for VideoMAE, the class token's for contrastive learning.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from wsiseq_jax import checkpoint, evaluate, tasks
from wsiseq_jax import config as configs
from wsiseq_jax.data import sources
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.encoders import encoder as encoders
from wsiseq_jax.models import tokens


@dataclasses.dataclass(frozen=True)
class _Drift:
  """How far and for how long frames of a record drift: px of the tile, time."""

  px: float = 0.0
  time: float = 0.0
  mpp: float | None = None


def _read_drift(path: str, fingerprint: str, tile_px: int) -> _Drift:
  """The drift of the data that a run was trained on, from its first record."""
  key = "config.encoder.data"
  try:
    data = sources.find(path)
    source = data.open(data.splits[0], "encoder.data")
  except ValueError as error:
    raise ValueError(
      f"{key} = {path!r}: how far frames drift is read from the shards of the "
      f"run, which are not there ({error})"
    ) from error
  if source.spec.fingerprint != fingerprint:
    raise ValueError(f"{key} = {path!r}: other shards than those of the run")
  if source.spec.geometry != "drift":
    raise ValueError(
      "config.encoder.frames: frames around a tile need a run that was trained "
      f"on drifting windows; its geometry is {source.spec.geometry!r}. 1 gives "
      "a still clip"
    )
  record = source.record(0)
  scale = tile_px / min(source.spec.frame_px)
  last = len(record.time) - 1
  return _Drift(
    float(record.frame_box[last, 0] - record.frame_box[0, 0]) / last * scale,
    float(record.time[last] - record.time[0]) / last,
    float(record.mpp) / scale,
  )


def load(config: encoders.Settings) -> encoders.Encoder:
  """Makes an encoder of tiles from the newest checkpoint of a run.

  Args:
    config: The block `encoder`.

  Raises:
    ValueError: There is no checkpoint, or it cannot do what is asked; the
      config key is named.
  """
  folder = config.checkpoint
  try:
    with checkpoint.Checkpoints(folder, read_only=True) as found:
      meta = found.meta()
  except FileNotFoundError as error:
    raise ValueError(
      f"config.encoder.checkpoint = {folder!r}: no checkpoint there ({error})"
    ) from error
  module = tasks.get(meta["config"]["task"])
  saved = configs.complete(module.Config, meta["config"])
  clip = module.clip(saved)
  h, w = clip.image_px
  if h != w:
    raise ValueError(
      f"config.encoder.checkpoint = {folder!r}: its frames are {h} x {w} px, "
      "but tiles are square"
    )
  if config.frames not in (1, clip.frames):
    raise ValueError(
      f"config.encoder.frames = {config.frames}: must be 1 (a still clip) "
      f"or {clip.frames}, the frames of the run's clips"
    )
  tile_px = config.tile_px or h
  drift = _Drift()
  if config.frames > 1:
    path = config.data or saved.data.path
    drift = _read_drift(path, meta["fingerprint"], tile_px)
  stored = clip.stored
  reach_px = math.ceil((clip.embedded - 1) * drift.px / 2 - 1e-3)
  window_px = tile_px + 2 * reach_px
  spec = DataSpec(
    fingerprint=meta["fingerprint"],
    geometry="drift",
    frames=stored,
    panels=1,
    panel_px=(window_px, window_px),
    frame_px=(tile_px, tile_px),
    # The run's config holds its periods; the unit is no longer asked for them.
    time_unit="um",
    target_names=(),
    target_classes={},
    metadata={},
  )
  run = evaluate.load(
    ConfigDict(
      {
        "workdir": folder,
        "checkpoint": {"path": folder},
        "data": {"path": "", "batch_size": jax.device_count()},
        "mesh": {"fsdp": 1},
      }
    ),
    spec=spec,
  )
  box = np.full((stored, 4), tile_px, np.float32)
  place = np.arange(stored) - (stored - 1) / 2
  box[:, 0] = (window_px - tile_px) / 2 + place * drift.px
  box[:, 1] = (window_px - tile_px) / 2
  time = (drift.time * np.arange(stored)).astype(np.float32)
  apply = functools.partial(_encode_clip, run.task.encode, window_px, box, time)
  params = jax.device_get(run.params)
  settings = {
    "task": saved.task,
    "model": configs.to_dict(saved.model),
    "window_px": window_px,
    "box": box.tolist(),
    "time": time.tolist(),
  }
  out = jax.eval_shape(
    apply, params, jax.ShapeDtypeStruct((1, window_px, window_px, 3), np.uint8)
  )
  return encoders.Encoder(
    name="run",
    width=out.shape[1],
    tile_px=tile_px,
    window_px=window_px,
    mean=tokens.IMAGENET_MEAN,
    std=tokens.IMAGENET_STD,
    params=jax.tree.map(jnp.asarray, params),
    apply=apply,
    weights=f"run {folder}, task {saved.task}, step {run.step}",
    fingerprint=encoders.fingerprint_of(params, settings),
    mpp=drift.mpp,
  )


def _encode_clip(
  encode: Callable[..., Array],
  window_px: int,
  box: np.ndarray,
  time: np.ndarray,
  params: Any,
  windows: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"],
) -> Float[Array, "b d"]:
  """Encodes windows as if each were the panel of a stored record."""
  encoders.check_windows(windows, window_px)
  b, t = windows.shape[0], len(box)
  batch = {
    "panels": jnp.asarray(windows)[:, None],
    "frame_panel": jnp.zeros((b, t), jnp.int32),
    "frame_box": jnp.broadcast_to(jnp.asarray(box), (b, t, 4)),
    "time": jnp.broadcast_to(jnp.asarray(time), (b, t)),
    "frame_level0_xy": jnp.zeros((b, t, 2)),
    "frame_mask": jnp.ones((b, t)),
    "index": jnp.arange(b),
    "mask": jnp.ones(b),
  }
  return encode(params, batch, None).astype(jnp.float32)
