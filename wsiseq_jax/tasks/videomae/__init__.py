"""Masked autoencoding of clips: VideoMAE, and V2's dual masking.

A step takes a batch of stored sequences and does all of this on the device:
cut clips, draw masks, encode what is visible, rebuild what is hidden, compare.
Random numbers come from the step's key by name (`crop`, `mask`).

Evaluation uses the middle clip of each sequence, uncropped, and a mask drawn
from the record's index: a record always gets the same mask, so that numbers of
different checkpoints and batch sizes compare. All hidden tokens count, also for
models trained with V2's decoder mask.

References: Tong et al., "VideoMAE", NeurIPS 2022; Wang et al., "VideoMAE V2",
CVPR 2023.
"""

import dataclasses
import functools
from typing import Any

from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from wsiseq_jax import checkpoint
from wsiseq_jax.data import augment
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import flops, masking, tokens
from wsiseq_jax.tasks import base
from wsiseq_jax.tasks.videomae.losses import (
  masked_clips,
  masked_loss,
  mean_colour_loss,
  middle_clips,
)
from wsiseq_jax.tasks.videomae.reconstruction import reconstruct
from wsiseq_jax.tasks.videomae.setup import (
  Config,
  Setup,
  init_params,
  make_setup,
  model_config,
  settle,
  settled,
)
from wsiseq_jax.weights import hf_videomae

__all__ = [
  "Config",
  "Setup",
  "clip",
  "embed",
  "encode",
  "evaluate",
  "init_params",
  "make_setup",
  "make_task",
  "model_config",
  "reconstruct",
  "resolve",
]

# Fine-tuning crops sides of 0.9 at least, 0.8 of the area. Milder crops of
# small frames would snap to the whole frame (`augment.crop_sizes`).
_MILD_CROPS = (1.0, 0.9)


def loss(
  setup: Setup,
  params: Any,
  extra: base.Extra,
  batch: base.Batch,
  key: Key[Array, ""],
  progress: Float[Array, ""],
):
  del extra, progress  # none, and the same from beginning to end
  clips, mask, record_weight = masked_clips(setup, batch, key)
  total, weight = masked_loss(setup, params, clips, mask, record_weight)
  return total / weight, ({"loss": (total, weight)}, {})


def evaluate(
  setup: Setup,
  spec: masking.MaskSpec,
  params: Any,
  extra: base.Extra,
  batch: base.Batch,
) -> base.Metrics:
  """Loss of all hidden tokens under fixed masks of `spec`, and the trivial one.

  Returns:
    `loss` of the model and `mean_colour_loss`, on the same tokens.
  """
  del extra
  clips, mask = middle_clips(setup, batch, spec)
  return {
    "loss": masked_loss(setup, params, clips, mask, batch["mask"]),
    "mean_colour_loss": mean_colour_loss(setup, clips, mask, batch["mask"]),
  }


def _tokens(
  setup: Setup, params: Any, clips: augment.Clips
) -> tuple[Float[Array, "b n d"], Float[Array, "b n"]]:
  """The encoder's tokens averaged over space, and which slots are real.

  A slot of padded frames alone counts for nothing.
  """
  model = setup.model
  network = setup.merge(params)
  encoded, _ = network.encode(clips.pixels, shift_px=clips.shift_px)
  b, _, d = encoded.shape
  slots = encoded.reshape(b, model.grid[0], -1, d).mean(axis=2)
  return slots, clips.frame_mask.reshape(b, model.grid[0], -1).max(axis=2)


def embed(setup: Setup, params: Any, batch: base.Batch) -> dict[str, Array]:
  """Features of whole middle clips; see `Task.embed`."""
  clips = augment.centre_clips(batch, setup.clips)
  slots, real = _tokens(setup, params, clips)
  b, n, _ = slots.shape
  return {
    "features": tokens.pool_features(slots, real),
    "tokens": slots,
    "token_mask": real,
    "token_time": clips.time.reshape(b, n, -1).mean(axis=2),
    "frame_level0_xy": clips.level0_xy,
    "time": clips.time,
    "frames": clips.frames,
  }


def encode(
  setup: Setup, params: Any, batch: base.Batch, key: Key[Array, ""] | None
) -> Float[Array, "b d"]:
  """Features of whole clips, differentiable; see `Task.encode`."""
  if key is None:
    clips = augment.centre_clips(batch, setup.clips)
  else:
    mild = dataclasses.replace(setup.clips, repeats=1, crop_scales=_MILD_CROPS)
    clips = augment.sample_clips(batch, base.stream(key, "crop"), mild)
  return tokens.pool_features(*_tokens(setup, params, clips))


def resolve(config: ConfigDict) -> ConfigDict:
  """Writes into the config what `model.init_from` decides.

  Weights come with the grid their positions belong to and with their own
  epsilons. With these in the config, a checkpoint describes its model without
  what training started from.
  """
  path = config.model.init_from
  if not path:
    return config
  if checkpoint.is_run(path):
    found = settle(path, model_config(config), "videomae", Config)
  else:
    found = hf_videomae.settle(path, model_config(config))
  return settled(config, found)


def _evaluations(setup: Setup, config: ConfigDict) -> base.Evaluations:
  """One measure for each ratio of `report.mask_ratios`, and that of training.

  The same for every model, so that models compare.
  """
  ratios = sorted({*config.report.mask_ratios, setup.mask.ratio})
  return base.Evaluations(
    facts={
      "mask_kind": setup.mask.kind,
      "trained_mask_ratio": setup.mask.ratio,
      "mask_ratios": ratios,
    },
    functions={
      f"{ratio:g}": functools.partial(
        evaluate, setup, dataclasses.replace(setup.mask, ratio=ratio)
      )
      for ratio in ratios
    },
  )


def clip(config: ConfigDict) -> base.Clip:
  """What clips a config trains on."""
  frames, step = config.data.frames, config.data.frame_step
  span = (frames - 1) * step + 1
  return base.Clip(frames, step, tuple(config.data.image_px), span, span)


def make_task(config: ConfigDict, spec: DataSpec) -> base.Task:
  """The task that a config and a data set describe."""
  setup = make_setup(config, spec)
  return base.Task(
    init=functools.partial(init_params, setup.model),
    loss=functools.partial(loss, setup),
    evaluate=functools.partial(evaluate, setup, setup.mask),
    embed=functools.partial(embed, setup),
    encode=functools.partial(encode, setup),
    load_params=lambda path: hf_videomae.load(path)[1],
    evaluations=functools.partial(_evaluations, setup),
    reconstruct=functools.partial(reconstruct, setup),
    clips_per_record=config.data.repeats,
    flops=flops.videomae_step_flops(
      setup.model, setup.mask.visible, setup.mask.decoded
    ),
  )
