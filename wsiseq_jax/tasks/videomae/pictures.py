"""Pictures of what a masked autoencoder makes of hidden patches."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from wsiseq_jax.data import augment
from wsiseq_jax.models import masking, tokens
from wsiseq_jax.tasks.videomae import patch_losses
from wsiseq_jax.tasks.videomae.losses import fixed_masks, true_patches
from wsiseq_jax.tasks.videomae.setup import Setup


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
  loss: Float[np.ndarray, " b"]


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
  target = patch_losses.patch_target(hidden, setup.model.normalise_target)
  loss = jnp.mean(jnp.square(prediction - target), axis=(1, 2))
  if setup.model.normalise_target:
    prediction = patch_losses.denormalise_patches(prediction, hidden)
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
