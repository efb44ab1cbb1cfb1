"""Losses of masked autoencoding, and the masks under which models compare."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsiseq_jax.data import augment
from wsiseq_jax.models import masking, tokens
from wsiseq_jax.tasks import base
from wsiseq_jax.tasks.videomae import patch_losses
from wsiseq_jax.tasks.videomae.setup import Setup

# Masks of evaluation depend on this and the record's index alone.
_EVAL_SEED = 20


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
  prediction, _ = network(clips.pixels, mask.visible, mask.decode)
  patches = tokens.take_tokens(true_patches(setup, clips), mask.decode)
  target = patch_losses.patch_target(patches, setup.model.normalise_target)
  weight = mask.weight * record_weight[:, None]
  return patch_losses.masked_mse(prediction, target, weight)


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
  target = patch_losses.patch_target(hidden, setup.model.normalise_target)
  guess = jnp.zeros_like(target)
  if not setup.model.normalise_target:
    seen = tokens.take_tokens(patches, mask.visible)
    b, _, values = seen.shape
    channels = setup.model.channels
    colour = seen.reshape(b, -1, channels).mean(axis=1)
    guess += jnp.tile(colour, (1, values // channels))[:, None]
  weight = mask.weight * record_weight[:, None]
  return patch_losses.masked_mse(guess, target, weight)
