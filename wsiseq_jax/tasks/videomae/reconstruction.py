"""Pictures of what a masked autoencoder makes of hidden patches."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from wsiseq_jax.data import augment
from wsiseq_jax.models import masking, tokens
from wsiseq_jax.tasks.videomae import losses
from wsiseq_jax.tasks.videomae.setup import Setup


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """A clip before masking, under the mask, and as the model fills it in.

  Raises:
    ValueError: The three clips differ in shape.
  """

  sequence_id: str  # The sequence
  mask_kind: str  # A kind of mask, see `models.masking`
  mask_ratio: float  # Share of tokens hidden from the encoder
  original: UInt8[np.ndarray, "t h w 3"]  # The frames as the model gets them
  masked: UInt8[np.ndarray, "t h w 3"]  # The same with hidden patches grey
  # Visible patches as given, hidden ones as predicted
  reconstructed: UInt8[np.ndarray, "t h w 3"]
  # Whether hidden patches were given the mean and std of the *true* patch. A
  # model of normalised targets predicts neither, so that colour and brightness
  # are borrowed: say so beside the picture
  used_true_statistics: bool
  loss: float  # Training loss of this clip

  def __post_init__(self):
    shapes = [x.shape for x in (self.original, self.masked, self.reconstructed)]
    if len(set(shapes)) != 1:
      raise ValueError(
        f"reconstruction of {self.sequence_id}: shapes differ: {shapes}"
      )


def reconstruct(
  setup: Setup,
  params: Any,
  batch: Mapping[str, Any],
  names: Sequence[str],
  ratio: float | None = None,
  kind: str | None = None,
) -> list[Reconstruction]:
  """Hides patches of the middle clip of each record and rebuilds them.

  Args:
    setup: The task.
    params: Parameters.
    batch: Records, as the loader gives them.
    names: Their sequence ids.
    ratio: Share of tokens to hide; that of the training by default.
    kind: Kind of mask; that of the training by default.

  Returns:
    One for each record.
  """
  spec = dataclasses.replace(
    setup.mask,
    decoder="all",
    ratio=setup.mask.ratio if ratio is None else ratio,
    kind=setup.mask.kind if kind is None else kind,
  )
  # Placed on no device yet: a handful of records need not divide over them.
  batch = {name: np.asarray(array) for name, array in batch.items()}
  images = jax.device_get(_reconstruct(setup, spec, params, batch))
  return [
    Reconstruction(
      sequence_id=name,
      mask_kind=spec.kind,
      mask_ratio=spec.ratio,
      original=images["original"][i],
      masked=images["masked"][i],
      reconstructed=images["reconstructed"][i],
      used_true_statistics=setup.model.normalise_target,
      loss=float(images["loss"][i]),
    )
    for i, name in enumerate(names)
  ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reconstruct(setup: Setup, spec: masking.MaskSpec, params, batch):
  clips = augment.centre_clips(batch, setup.clips)
  mask = losses.fixed_masks(setup, batch, clips, spec)
  prediction, _ = setup.merge(params)(
    clips.pixels, mask.visible, mask.decode, clips.shift_px
  )
  patches = losses.true_patches(setup, clips)
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
