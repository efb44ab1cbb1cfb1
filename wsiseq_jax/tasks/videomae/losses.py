"""Losses of masked autoencoding, and the masks under which models compare.

A loss is returned as (sum, weight): the mean over a sharded or padded batch is
then one division, exact whatever the split.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wsiseq_jax.data import augment
from wsiseq_jax.models import masking, tokens
from wsiseq_jax.tasks import base
from wsiseq_jax.tasks.videomae.setup import Setup

# Masks of evaluation depend on this and the record's index alone.
_EVAL_SEED = 20


def _patch_statistics(patches: Array, channels: int) -> tuple[Array, ...]:
  """Values `[b, n, pixels, c]`, mean and std of each patch's channels."""
  if patches.shape[-1] % channels:
    raise ValueError(
      f"patches of {patches.shape[-1]} values cannot hold model.channels="
      f"{channels} channels"
    )
  values = patches.reshape(*patches.shape[:-1], -1, channels)
  mean = jnp.mean(values, axis=-2, keepdims=True)
  std = jnp.std(values, axis=-2, keepdims=True, ddof=1) + 1e-6
  return values, mean, std


def normalised_patch_target(
  patches: Float[Array, "b n p"], channels: int = 3
) -> Float[Array, "b n p"]:
  """Normalises each patch, channel by channel, to what the decoder predicts.

  Removing brightness and contrast of each patch makes texture the task, not
  colour. With x the pixels of one patch in one channel,

    target = (x - mean(x)) / (std(x) + 1e-6)

  where `std` is the unbiased one and 1e-6 is added to it, not to the variance.

  Args:
    patches: Pixels in [0, 1] as `patchify` lays them out, channels last.
    channels: Number of image channels.

  Returns:
    The target, of the same shape.

  Example:
    >>> patch = jnp.array([[[0.0, 0.5, 1.0]]])  # one channel, three pixels
    >>> normalised_patch_target(patch, channels=1).round(3).tolist()
    [[[-1.0, 0.0, 1.0]]]

  Reference: He et al., Masked autoencoders, 2022 (all channels jointly); per
  channel: Tong et al., VideoMAE, 2022.
  """
  values, mean, std = _patch_statistics(patches, channels)
  return ((values - mean) / std).reshape(patches.shape)


def patch_target(
  patches: Float[Array, "b n p"], normalise: bool
) -> Float[Array, "b n p"]:
  """What the decoder predicts: normalised patches, or plain pixels."""
  return normalised_patch_target(patches) if normalise else patches


def denormalise_patches(
  prediction: Float[Array, "b n p"],
  patches: Float[Array, "b n p"],
) -> Float[Array, "b n p"]:
  """Gives predicted patches the brightness and contrast of the true ones.

  For pictures only: mean and std come from the very pixels that were hidden.
  """
  pixels, mean, std = _patch_statistics(patches, channels=3)
  values = prediction.reshape(pixels.shape)
  return (values * std + mean).reshape(prediction.shape)


def masked_mse(
  prediction: Float[Array, "b m p"],
  target: Float[Array, "b m p"],
  weight: Float[Array, "b m"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Computes the squared error of supervised patches as (sum, weight).

  Each patch counts by its own mean over pixels, so `sum / weight` is VideoMAE's
  plain mean where all weights are one, and V2's average over supervised tokens
  where some positions are decoded but not supervised (weight 0):

    sum = sum_bm weight[b, m] * mean_p (prediction - target)[b, m, p] ** 2

  Example:
    >>> zeros, threes = jnp.zeros((1, 2, 4)), jnp.full((1, 2, 4), 3.0)
    >>> total, weight = masked_mse(zeros, threes, jnp.array([[1.0, 0.0]]))
    >>> total.item(), weight.item()
    (9.0, 1.0)
  """
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  per_patch = jnp.mean(jnp.square(error), axis=-1)
  weight = weight.astype(jnp.float32)
  return jnp.sum(per_patch * weight), jnp.sum(weight)


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


def masked_clips(
  setup: Setup, batch: base.Batch, key: Key[Array, ""]
) -> tuple[augment.Clips, masking.TokenMask, Float[Array, " b"]]:
  """What a step learns from: clips, masks, and the weight of each clip."""
  clips = augment.sample_clips(batch, base.stream(key, "crop"), setup.clips)
  mask = masking.make_mask(
    base.stream(key, "mask"), clips.shift_px, clips.panel, setup.mask
  )
  return clips, mask, jnp.repeat(batch["mask"], setup.clips.repeats)


def middle_clips(
  setup: Setup, batch: base.Batch, spec: masking.MaskSpec
) -> tuple[augment.Clips, masking.TokenMask]:
  """What evaluation looks at: middle clips, fixed masks, all hidden tokens."""
  spec = dataclasses.replace(spec, decoder="all")
  clips = augment.centre_clips(batch, setup.clips)
  return clips, fixed_masks(setup, batch, clips, spec)


def masked_loss(
  setup: Setup,
  params: Any,
  clips: augment.Clips,
  mask: masking.TokenMask,
  record_weight: Float[Array, " b"],
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
  prediction, _ = network(
    clips.pixels, mask.visible, mask.decode, clips.shift_px
  )
  patches = tokens.take_tokens(true_patches(setup, clips), mask.decode)
  target = patch_target(patches, setup.model.normalise_target)
  weight = mask.weight * record_weight[:, None]
  return masked_mse(prediction, target, weight)


def mean_colour_loss(
  setup: Setup,
  clips: augment.Clips,
  mask: masking.TokenMask,
  record_weight: Float[Array, " b"],
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
  target = patch_target(hidden, setup.model.normalise_target)
  guess = jnp.zeros_like(target)
  if not setup.model.normalise_target:
    seen = tokens.take_tokens(patches, mask.visible)
    b, _, values = seen.shape
    channels = setup.model.channels
    colour = seen.reshape(b, -1, channels).mean(axis=1)
    guess += jnp.tile(colour, (1, values // channels))[:, None]
  weight = mask.weight * record_weight[:, None]
  return masked_mse(guess, target, weight)
