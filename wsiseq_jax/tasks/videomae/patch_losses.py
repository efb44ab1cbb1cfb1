"""Losses and targets, as (sum, weight) pairs.

A loss that is an average is returned as its sum and its weight, so that the
mean over a global batch (sharded, padded, of unequal weights) is one division
of two sums, exact whatever the split.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def _patch_statistics(patches: Array, channels: int) -> tuple[Array, ...]:
  """Values `[b, n, pixels, c]`, mean and deviation of each patch's channels."""
  if patches.shape[-1] % channels:
    raise ValueError(
      f"patches of {patches.shape[-1]} values cannot hold model.channels="
      f"{channels} channels"
    )
  values = patches.reshape(*patches.shape[:-1], -1, channels)
  mean = jnp.mean(values, axis=-2, keepdims=True)
  deviation = jnp.std(values, axis=-2, keepdims=True, ddof=1) + 1e-6
  return values, mean, deviation


def normalised_patch_target(
  patches: Float[Array, "b n p"], channels: int = 3
) -> Float[Array, "b n p"]:
  """Normalises each patch, channel by channel, to what the decoder predicts.

  Removing the brightness and contrast of each patch makes texture the task, not
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
  values, mean, deviation = _patch_statistics(patches, channels)
  return ((values - mean) / deviation).reshape(patches.shape)


def patch_target(
  patches: Float[Array, "b n p"], normalise: bool = True, channels: int = 3
) -> Float[Array, "b n p"]:
  """Returns what the decoder is asked for: normalised patches, or plain pixels.

  Plain pixels (config key `model.normalise_target`) cost accuracy of the
  features but let pictures be drawn without borrowing the true patch
  statistics.

  Args:
    patches: Pixels in [0, 1] as `patchify` lays them out.
    normalise: Whether to normalise each patch and channel.
    channels: Number of image channels.

  Returns:
    The target, of the same shape.

  Example:
    >>> patch_target(jnp.ones((1, 1, 6)), normalise=False).sum().item()
    6.0
  """
  return normalised_patch_target(patches, channels) if normalise else patches


def denormalise_patches(
  prediction: Float[Array, "b n p"],
  patches: Float[Array, "b n p"],
  channels: int = 3,
) -> Float[Array, "b n p"]:
  """Gives predicted patches the brightness and contrast of the true ones.

  For pictures only, and whoever shows them must say so: mean and deviation come
  from the very pixels that were hidden, hence colour and brightness of a
  reconstruction are not predicted.

  Args:
    prediction: Predicted patches in normalised units.
    patches: True pixels in [0, 1] of the same patches.
    channels: Number of image channels.

  Returns:
    Pixels, about [0, 1], not clipped.

  Example:
    >>> true = jnp.array([[[0.0, 0.5, 1.0]]])
    >>> target = normalised_patch_target(true, channels=1)
    >>> denormalise_patches(target, true, channels=1).round(3).tolist()
    [[[0.0, 0.5, 1.0]]]
  """
  _, mean, deviation = _patch_statistics(patches, channels)
  values = prediction.reshape(*prediction.shape[:-1], -1, channels)
  return (values * deviation + mean).reshape(prediction.shape)


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

  Args:
    prediction: Decoder output.
    target: What it should be.
    weight: Weight of each patch; 0 leaves it out.

  Returns:
    The weighted sum and the sum of weights, float32 scalars.

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
