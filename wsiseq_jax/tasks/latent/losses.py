"""The loss of latent prediction, what is trivial, and signs of collapse."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsiseq_jax.data import augment
from wsiseq_jax.models import masking, tokens
from wsiseq_jax.tasks import base
from wsiseq_jax.tasks.contrastive.losses import monitors
from wsiseq_jax.tasks.latent.setup import Setup

_EPS = 1e-5


def decay(
  progress: Float[Array, ""], start: float, end: float
) -> Float[Array, ""]:
  """Part of the teacher that stays at an update, linear in the progress.

  Example:
    >>> [float(decay(jnp.float32(p), 0.5, 1.0)) for p in (0.0, 0.25, 1.0)]
    [0.5, 0.625, 1.0]
  """
  return start + (end - start) * progress


def standardise(features: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Each vector at mean 0 and deviation 1 over its channels: the target.

  Example:
    >>> standardise(jnp.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]
  """
  mean = jnp.mean(features, axis=-1, keepdims=True)
  variance = jnp.var(features, axis=-1, keepdims=True)
  return (features - mean) / jnp.sqrt(variance + _EPS)


def masked_l1(
  prediction: Float[Array, "b m d"],
  target: Float[Array, "b m d"],
  weight: Float[Array, "b m"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Mean absolute error of a token, summed over tokens, and their number.

  Example:
    >>> zeros, threes = jnp.zeros((1, 2, 4)), jnp.full((1, 2, 4), 3.0)
    >>> total, weight = masked_l1(zeros, threes, jnp.array([[1.0, 0.0]]))
    >>> total.item(), weight.item()
    (3.0, 1.0)
  """
  error = jnp.abs(prediction.astype(jnp.float32) - target)
  return jnp.sum(jnp.mean(error, axis=-1) * weight), jnp.sum(weight)


def measure(
  setup: Setup,
  params: Any,
  teacher: Any,
  clips: augment.Clips,
  mask: masking.TokenMask,
  record_weight: Float[Array, " b"],
) -> base.Metrics:
  """The loss, and what tells whether it means anything.

  Args:
    setup: the task.
    params: the student's parameters, and the predictor's.
    teacher: parameters of the encoder that sees everything; no gradient.
    clips: clips.
    mask: what the student sees and what is predicted.
    record_weight: 0 for clips that only fill up a batch, else 1.

  Returns:
    Pairs: `loss`, the mean absolute error of standardised features of hidden
    tokens; `mean_feature_loss`, that of predicting for each the mean over the
    clip's visible tokens, the target's own: a predictor above it knows nothing
    of places; and the signs of collapse of `contrastive.losses.monitors`, of
    the teacher's features of clips and of their slots in time.
  """
  network = setup.merge(params)
  prediction, _ = network(
    clips.pixels, mask.visible, mask.decode, clips.shift_px
  )
  seer = setup.merge({**params, "encoder": teacher})
  whole, _ = seer.encode(clips.pixels, shift_px=clips.shift_px)
  whole = jax.lax.stop_gradient(whole)
  features = standardise(whole)
  target = tokens.take_tokens(features, mask.decode)
  seen = tokens.take_tokens(features, mask.visible)
  guess = jnp.broadcast_to(seen.mean(axis=1, keepdims=True), target.shape)
  weight = mask.weight * record_weight[:, None]
  b, t = len(whole), setup.model.grid[0]
  slots = whole.reshape(b, t, -1, whole.shape[-1]).mean(axis=2)
  real = clips.frame_mask.reshape(b, t, -1).max(axis=2)
  pooled = tokens.pool_features(slots, real)
  return {
    "loss": masked_l1(prediction, target, weight),
    "mean_feature_loss": masked_l1(guess, target, weight),
    **monitors(pooled, slots, real, record_weight),
  }
