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
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from wsiseq_jax import config as checks
from wsiseq_jax import losses
from wsiseq_jax.data import augment
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import attention, masking, tokens, videomae, vit
from wsiseq_jax.tasks import base

# Sizes that a config may override one by one; 0 leaves them to `model.size`.
_OVERRIDES = (
  "width",
  "depth",
  "heads",
  "mlp_width",
  "decoder_width",
  "decoder_depth",
  "decoder_heads",
  "decoder_mlp_width",
)

CHECKS: Mapping[str, checks.Check] = {
  "data.frames": checks.integer(1),
  "data.frame_step": checks.integer(1),
  "data.repeats": checks.integer(1),
  "data.image_px": checks.integers(1, length=2),
  "data.crop_scales": checks.numbers(0.01, 1.0),
  "model.size": checks.one_of(*videomae.SIZES),
  "model.patch": checks.integers(1, length=3),
  **{f"model.{name}": checks.integer(0) for name in _OVERRIDES},
  "model.normalise_target": checks.flag(),
  "model.dtype": checks.one_of(*videomae.DTYPES),
  "model.remat": checks.one_of(*vit.REMAT),
  "model.attention_kernel": checks.one_of(*attention.KERNELS),
  "model.init_from": checks.text(),
  "model.trained_grid": checks.integers(0, length=3),
  "model.norm_eps": checks.number(0),
  "model.decoder_norm_eps": checks.number(0),
  "mask.kind": checks.one_of(*masking.KINDS),
  "mask.ratio": checks.number(0.01, 0.99),
  "mask.decoder": checks.one_of(*masking.DECODERS),
  "mask.decoder_ratio": checks.number(0, 1),
  "mask.run_patches": checks.number(1),
}

# Fine-tuning crops sides of 0.9 at least, 0.8 of the area. Milder crops of
# small frames would snap to the whole frame (`augment.crop_sizes`).
_MILD_CROPS = (1.0, 0.9)
# Masks of evaluation depend on this and the record's index alone.
_EVAL_SEED = 20


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything static about a run of this task.

  Attributes:
    model: shape and numerics of the network.
    graphdef: the network without its parameters.
    clips: what clips to cut.
    mask: how to mask them.
  """

  model: videomae.VideoMAEConfig
  graphdef: Any = dataclasses.field(repr=False)
  clips: augment.ClipSpec
  mask: masking.MaskSpec

  def merge(self, params: Any) -> videomae.VideoMAE:
    """The network with parameters; used functionally, inside a traced call."""
    return nnx.merge(self.graphdef, params)


def model_config(config: ConfigDict) -> videomae.VideoMAEConfig:
  """The network that `config.model` and `config.data` describe."""
  sizes = dict(videomae.SIZES[config.model.size])
  for prefix in ("", "decoder_"):
    # Another width keeps the usual MLP of four times the width.
    width = config.model[f"{prefix}width"]
    if width:
      sizes[f"{prefix}mlp_width"] = 4 * width
  sizes.update(
    {name: config.model[name] for name in _OVERRIDES if config.model[name]}
  )
  sizes["patch"] = tuple(config.model.patch)
  trained_grid = tuple(config.model.trained_grid)
  return videomae.VideoMAEConfig(
    **sizes,
    frames=config.data.frames,
    image_px=tuple(config.data.image_px),
    normalise_target=config.model.normalise_target,
    trained_grid=trained_grid if any(trained_grid) else None,
    norm_eps=config.model.norm_eps,
    decoder_norm_eps=config.model.decoder_norm_eps,
    dtype=config.model.dtype,
    remat=config.model.remat,
    attention_kernel=config.model.attention_kernel,
  )


def init_params(model: videomae.VideoMAEConfig, key: Key[Array, ""]) -> Any:
  """Fresh parameters, a nested dictionary."""
  network = videomae.VideoMAE(model, nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])


def make_setup(config: ConfigDict, spec: DataSpec) -> Setup:
  """Builds the static parts, checking that data, model and masks fit.

  Raises:
    ValueError: They do not; the config key is named.
  """
  model = model_config(config)
  clips = augment.ClipSpec(
    frames=config.data.frames,
    frame_step=config.data.frame_step,
    image_px=model.image_px,
    frame_px=tuple(spec.frame_px),
    crop_scales=tuple(config.data.crop_scales),
    repeats=config.data.repeats,
  )
  if clips.span > spec.frames:
    raise ValueError(
      f"config.data.frames = {clips.frames} and config.data.frame_step = "
      f"{clips.frame_step} span {clips.span} stored frames, the data has "
      f"{spec.frames}"
    )
  mask = masking.MaskSpec(
    grid=model.grid,
    patch=model.patch,
    kind=config.mask.kind,
    ratio=config.mask.ratio,
    decoder=config.mask.decoder,
    decoder_ratio=config.mask.decoder_ratio,
    run_patches=config.mask.run_patches,
  )
  network = nnx.eval_shape(lambda: videomae.VideoMAE(model, nnx.Rngs(0)))
  graphdef, _ = nnx.split(network, nnx.Param)
  return Setup(model, graphdef, clips, mask)


def masked_loss(
  setup: Setup,
  params: Any,
  clips: augment.Clips,
  mask: masking.TokenMask,
  record_weight: Float[Array, "b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Squared error of the rebuilt tokens, as (sum, weight).

  Args:
    setup: The task.
    params: Parameters.
    clips: Clips.
    mask: What is visible and what is rebuilt.
    record_weight: 0 for clips that only fill up a batch, else 1.
  """
  network = setup.merge(params)
  prediction, _ = network(clips.pixels, mask.visible, mask.decode)
  patches = tokens.take_tokens(true_patches(setup, clips), mask.decode)
  target = losses.patch_target(patches, setup.model.normalise_target)
  weight = mask.weight * record_weight[:, None]
  return losses.masked_mse(prediction, target, weight)


def true_patches(setup: Setup, clips: augment.Clips) -> Float[Array, "b n p"]:
  """All patches of the clips, in [0, 1]."""
  patches = tokens.patchify(clips.pixels, setup.model.patch)
  # Channels come last within a patch.
  copies = patches.shape[-1] // len(setup.clips.mean)
  mean = jnp.tile(jnp.asarray(setup.clips.mean, jnp.float32), copies)
  std = jnp.tile(jnp.asarray(setup.clips.std, jnp.float32), copies)
  return patches * std[None, None] + mean[None, None]


def fixed_masks(
  setup: Setup,
  batch: base.Batch,
  clips: augment.Clips,
  spec: masking.MaskSpec,
) -> masking.TokenMask:
  """Masks that depend on nothing but the record."""
  key = jax.random.key(_EVAL_SEED)

  def one(index, shift_px, panel):
    record_key = jax.random.fold_in(key, index)
    return masking.make_mask(record_key, shift_px[None], panel[None], spec)

  masks = jax.vmap(one)(batch["index"], clips.shift_px, clips.panel)
  return jax.tree.map(lambda x: x[:, 0], masks)


def _loss(
  setup: Setup,
  params: Any,
  batch: base.Batch,
  key: Key[Array, ""],
  progress: Float[Array, ""],
):
  del progress  # the same from beginning to end
  clips = augment.sample_clips(batch, base.stream(key, "crop"), setup.clips)
  mask = masking.make_mask(
    base.stream(key, "mask"), clips.shift_px, clips.panel, setup.mask
  )
  record_weight = jnp.repeat(batch["mask"], setup.clips.repeats)
  total, weight = masked_loss(setup, params, clips, mask, record_weight)
  return total / weight, {"loss": (total, weight)}


def mean_colour_loss(
  setup: Setup,
  clips: augment.Clips,
  mask: masking.TokenMask,
  record_weight: Float[Array, "b"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Loss of painting hidden patches in the mean colour of the visible ones.

  What a model must beat to have understood anything. Of normalised patches the
  mean is 0, and the loss (n - 1) / n for n pixels of a patch.

  Args:
    setup: The task.
    clips: Clips.
    mask: What is visible and what is rebuilt.
    record_weight: 0 for clips that only fill up a batch, else 1.

  Returns:
    (sum, weight), as `masked_loss`.
  """
  patches = true_patches(setup, clips)
  hidden = tokens.take_tokens(patches, mask.decode)
  target = losses.patch_target(hidden, setup.model.normalise_target)
  guess = jnp.zeros_like(target)
  if not setup.model.normalise_target:
    seen = tokens.take_tokens(patches, mask.visible)
    b, _, values = seen.shape
    channels = setup.model.channels
    colour = seen.reshape(b, -1, channels).mean(axis=1)
    guess += jnp.tile(colour, (1, values // channels))[:, None]
  weight = mask.weight * record_weight[:, None]
  return losses.masked_mse(guess, target, weight)


def evaluate(
  setup: Setup, spec: masking.MaskSpec, params: Any, batch: base.Batch
) -> base.Metrics:
  """Loss of all hidden tokens under fixed masks of `spec`, and the trivial one.

  Returns:
    `loss` of the model and `mean_colour_loss`, on the same tokens.
  """
  spec = dataclasses.replace(spec, decoder="all")
  clips = augment.centre_clips(batch, setup.clips)
  mask = fixed_masks(setup, batch, clips, spec)
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
  encoded, _ = setup.merge(params).encode(clips.pixels)
  b, _, d = encoded.shape
  slots = encoded.reshape(b, model.grid[0], -1, d).mean(axis=2)
  return slots, clips.frame_mask.reshape(b, model.grid[0], -1).max(axis=2)


def _embed(setup: Setup, params: Any, batch: base.Batch) -> dict[str, Array]:
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


def _encode(
  setup: Setup, params: Any, batch: base.Batch, key: Key[Array, ""] | None
) -> Float[Array, "b d"]:
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
  the file that training started from.
  """
  if not config.model.init_from:
    return config
  from wsiseq_jax import pretrained

  found, _ = pretrained.init_from(config.model.init_from, model_config(config))
  resolved = ConfigDict(config.to_dict())
  resolved.model.update(
    {
      "trained_grid": found.trained_grid or (0, 0, 0),
      "norm_eps": found.norm_eps,
      "decoder_norm_eps": found.decoder_norm_eps,
    }
  )
  return resolved.lock()


def _load_params(setup: Setup, path: str) -> Any:
  # Imported here: few runs start from weights of others.
  from wsiseq_jax import pretrained

  return pretrained.init_from(path, setup.model)[1]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Pictures of what a model makes of hidden patches.

  Attributes:
    original: the clips, uint8 [b, t, h, w, 3].
    masked: the same with hidden patches grey.
    reconstructed: visible patches as they are, hidden ones as rebuilt.
    true_statistics: whether rebuilt patches were given the mean and deviation
      of the true ones. They must be where the model predicts normalised
      patches, and then colour and brightness are not predicted: say so.
    loss: mean loss of each clip, [b].
  """

  original: UInt8[np.ndarray, "b t h w 3"]
  masked: UInt8[np.ndarray, "b t h w 3"]
  reconstructed: UInt8[np.ndarray, "b t h w 3"]
  true_statistics: bool
  loss: Float[np.ndarray, "b"]


def reconstruct(
  setup: Setup,
  params: Any,
  batch: Mapping[str, Any],
  ratio: float | None = None,
  kind: str | None = None,
) -> Reconstruction:
  """Hides patches of the middle clip of each record and rebuilds them.

  Args:
    setup: The task, `Task.setup`.
    params: Parameters.
    batch: Records, as the loader gives them.
    ratio: Part to hide; that of the training by default.
    kind: Kind of mask; that of the training by default.

  Returns:
    The pictures.
  """
  spec = dataclasses.replace(
    setup.mask,
    decoder="all",
    ratio=setup.mask.ratio if ratio is None else ratio,
    kind=setup.mask.kind if kind is None else kind,
  )
  images = _reconstruct(setup, spec, params, dict(batch))
  images = {name: np.asarray(array) for name, array in images.items()}
  return Reconstruction(**images, true_statistics=setup.model.normalise_target)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reconstruct(setup: Setup, spec: masking.MaskSpec, params, batch):
  clips = augment.centre_clips(batch, setup.clips)
  mask = fixed_masks(setup, batch, clips, spec)
  prediction, _ = setup.merge(params)(clips.pixels, mask.visible, mask.decode)
  patches = true_patches(setup, clips)
  hidden = tokens.take_tokens(patches, mask.decode)
  target = losses.patch_target(hidden, setup.model.normalise_target)
  loss = jnp.mean(jnp.square(prediction - target), axis=(1, 2))
  if setup.model.normalise_target:
    prediction = losses.denormalise_patches(prediction, hidden)
  # Where each token stands in [visible, decode]; undone by a second gather.
  place = jnp.argsort(
    jnp.concatenate([mask.visible, mask.decode], axis=1), axis=1
  )
  seen = tokens.take_tokens(patches, mask.visible)

  def picture(filling):
    parts = jnp.concatenate([seen, filling], axis=1)
    parts = tokens.take_tokens(parts, place)
    pixels = tokens.unpatchify(parts, setup.model.patch, setup.model.grid)
    return jnp.clip(jnp.round(pixels * 255), 0, 255).astype(jnp.uint8)

  return {
    "original": picture(hidden),
    "masked": picture(jnp.full_like(hidden, 0.5)),
    "reconstructed": picture(prediction),
    "loss": loss,
  }


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


_CURVE = (
  "mean_colour_loss is what painting all hidden patches in the mean colour of "
  "the visible ones would cost (with normalised patches: each in its own mean "
  "colour); a model above it has understood nothing yet. Losses at different "
  "mask ratios or mask kinds cannot be compared: what a mask leaves visible "
  "nearby can simply be copied."
)


def _words(setup: Setup, size: str) -> base.Words:
  model, mask = setup.model, setup.mask
  h, w = model.image_px

  def measures(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    trivial = result["mean_colour_loss"]
    return [
      (
        f"loss on {result['split']}, mask ratio {ratio}",
        f"{loss:.4f}",
        f"mean over {result['records']} sequences, step {result['step']}; "
        f"painting the mean colour costs {trivial[ratio]:.4f}",
      )
      for ratio, loss in result["loss"].items()
    ]

  return base.Words(
    facts={
      "model": f"VideoMAE {size}, {model.frames} frames of {h} × {w} px, "
      f"tokens of {' × '.join(map(str, model.patch))}",
      "masks in training": f"{mask.kind}, ratio {mask.ratio:g}",
      "target": "normalised patches" if model.normalise_target else "pixels",
    },
    curve=_CURVE,
    measures=measures,
  )


def make_task(config: ConfigDict, spec: DataSpec) -> base.Task:
  """The task that a config and a data set describe."""
  setup = make_setup(config, spec)
  return base.Task(
    init=functools.partial(init_params, setup.model),
    loss=functools.partial(_loss, setup),
    evaluate=functools.partial(evaluate, setup, setup.mask),
    embed=functools.partial(_embed, setup),
    encode=functools.partial(_encode, setup),
    pool=None,
    load_params=functools.partial(_load_params, setup),
    evaluations=functools.partial(_evaluations, setup),
    reconstruct=reconstruct,
    words=_words(setup, config.model.size),
    clips_per_record=config.data.repeats,
    setup=setup,
  )
