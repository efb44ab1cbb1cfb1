"""Comparing the views of a batch: InfoNCE, frame prediction, collapse monitors.

As in `losses.py`, what is an average comes as (sum, weight), so that padding
counts nothing. Numbers that are no average over records (a contrastive loss
depends on who else is in the batch) are given the weight of their batch.

A model has *collapsed* when it gives all clips one feature. InfoNCE then is
log(2B - 1), which a glance at a curve does not tell from slow learning. The
monitors do: the spread of features over the batch falls to 0, the cosine of
different clips rises to 1, and so does that of neighbouring frames (which is
high for a slow movie in any case; compare it with the one before).

Features may also share a large part and differ in a small one: standardised
projections do not mind, and neither does a probe. Then cosines are near 1, and
`top1` is high all the same; `feature_rank` says in how many directions they
differ.

Frames may collapse while clips do not: a model that is told the times of its
frames may tell records apart by their times alone, and never look. Then
`frame_cosine`, of frames of different records, is 1.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wsiseq_jax import parallel

Pairs = dict[str, tuple[Array, Array]]


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Vectors of length one, in float32; the zero vector stays.

  Example:
    >>> [round(float(v), 3) for v in unit(jnp.array([3.0, 4.0]))]
    [0.6, 0.8]
  """
  x = x.astype(jnp.float32)
  # Under the root, so that the gradient at zero is finite.
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + 1e-12)


def info_nce(
  projected: Float[Array, "b v p"],
  weight: Float[Array, " b"],
  temperature: float,
) -> Pairs:
  """Contrast of each view with all views of the *global* batch (NT-Xent).

  With s the cosines of all 2B views, a row i and its partner j,

    loss_i = -s_ij / T + log sum_{k != i} exp(s_ik / T)

  Records of weight 0 are neither rows nor among the k.

  Views are compared in units of their channels' mean and std over the
  global batch. What all views have in common is most of a fresh network's
  output, and the little they differ in is what is to grow: without this the
  demo's networks collapse in the first steps. It is the last batch-norm of the
  reference's projector, right on any number of devices and without averages to
  carry along.

  The batch may be sharded. Then each device compares its own rows with all
  (`parallel.all_gather_map`): one all-gather, of the vectors and weights side
  by side. It has the same value as on one device.

  Args:
    projected: Two vectors a record, of any length.
    weight: 1 for records that count, 0 for others.
    temperature: T.

  Returns:
    `contrastive_loss`; `top1` and `top5`, how often the partner is the most
    similar view or among the five; `rank`, its mean place, 1 at best. Views as
    similar as the partner come before it, so that a collapsed model is last,
    not first.

  Example:
    >>> views = jnp.array([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2])
    >>> out = info_nce(views, jnp.ones(2), 1.0)
    >>> total, count = out["contrastive_loss"]  # -1 + log(e + 2 / e) each
    >>> round(float(total / count), 4), float(out["rank"][0] / count)
    (0.2395, 1.0)

  Reference: Chen et al., A simple framework for contrastive learning (SimCLR),
  2020.
  """
  b, views, _ = projected.shape
  weight = weight.astype(jnp.float32)
  # Weights travel with the vectors; by themselves they would cost a second
  # all-gather.
  marks = jnp.broadcast_to(weight[:, None, None], (b, views, 1))
  marked = jnp.concatenate([projected.astype(jnp.float32), marks], axis=-1)
  compare = functools.partial(_compare, temperature=temperature)
  loss, rank = parallel.all_gather_map(compare, marked)
  rows = views * jnp.sum(weight)

  def pair(values: Array) -> tuple[Array, Array]:
    return jnp.sum(values * weight[:, None]), rows

  return {
    "contrastive_loss": pair(loss),
    "top1": pair((rank <= 1).astype(jnp.float32)),
    "top5": pair((rank <= 5).astype(jnp.float32)),
    "rank": pair(rank),
  }


def _compare(
  own: Float[Array, "r v q"],
  everything: Float[Array, "b v q"],
  first: Int[Array, ""] | int,
  temperature: float,
) -> tuple[Float[Array, "r v"], Float[Array, "r v"]]:
  """Loss and rank of own views; the last entry of vectors is the weight."""
  r, views, _ = own.shape
  own, vectors = own[..., :-1], everything[..., :-1]
  marks = everything[..., -1:]
  n = jnp.maximum(jnp.sum(marks), 1.0)
  mean = jnp.sum(vectors * marks, axis=(0, 1), keepdims=True) / n
  spread = jnp.square(vectors - mean) * marks
  variance = jnp.sum(spread, axis=(0, 1), keepdims=True) / n
  scale = jax.lax.rsqrt(variance + 1e-5)
  own, vectors = (own - mean) * scale, (vectors - mean) * scale
  logits = jnp.einsum(
    "ivp,kup->ivku",
    unit(own),
    unit(vectors),
    precision=jax.lax.Precision.HIGHEST,
  )
  logits /= temperature
  record, view = first + jnp.arange(r), jnp.arange(views)
  same_record = record[:, None] == jnp.arange(len(everything))[None]
  same_record = same_record[:, None, :, None]
  same_view = (view[:, None] == view[None, :])[None, :, None, :]
  is_partner = same_record & ~same_view
  counts = (marks[..., 0] > 0)[None, None]
  is_candidate = counts & ~(same_record & same_view)
  partner = jnp.sum(jnp.where(is_partner, logits, 0.0), axis=(2, 3))
  # The partner is always a candidate, also in rows that do not count: an empty
  # sum would be -inf and its gradient no number.
  others = jnp.where(is_candidate | is_partner, logits, -jnp.inf)
  loss = jax.nn.logsumexp(others, axis=(2, 3)) - partner
  is_before = is_candidate & ~is_partner & (logits >= partner[..., None, None])
  rank = 1.0 + jnp.sum(is_before, axis=(2, 3)).astype(jnp.float32)
  return loss, jax.lax.stop_gradient(rank)


def cosine_loss(
  prediction: Float[Array, "b t d"],
  target: Float[Array, "b t d"],
  weight: Float[Array, "b t"],
) -> tuple[Array, Array]:
  """Negative cosine of predicted and true frame features, as (sum, weight).

  A batch in which no frame counts has sum and weight 0; divide by at least 1.

  Example:
    >>> frames = jnp.array([[[1.0, 0.0], [0.0, 2.0]]])
    >>> total, weight = cosine_loss(frames, frames, jnp.array([[0.0, 1.0]]))
    >>> round(total.item(), 4), weight.item()
    (-1.0, 1.0)
  """
  cosine = jnp.sum(unit(prediction) * unit(target), axis=-1)
  return -jnp.sum(cosine * weight), jnp.sum(weight)


def mean_of(pair: tuple[Array, Array]) -> Float[Array, ""]:
  """Sum over weight; 0 where nothing counts.

  Example:
    >>> mean_of((jnp.array(0.0), jnp.array(0.0))).item()
    0.0
  """
  total, weight = pair
  return total / jnp.maximum(weight, 1.0)


def monitors(
  clips: Float[Array, "b e"],
  frames: Float[Array, "b t d"],
  frame_mask: Float[Array, "b t"],
  weight: Float[Array, " b"],
) -> Pairs:
  """Signs of collapse, of one clip a record.

  With u the clip features at length one, over the n records that count:

    feature_std        sqrt(d) * mean over channels of std over records of u;
                       about 1 if features point everywhere, 0 if all are one
    feature_rank       (trace C)^2 / trace(C^2) of the covariance C of u: the
                       number of directions, were all equally long
    clip_cosine        mean u_i . u_j over i != j,
                       = (|sum u|^2 - n) / (n (n - 1))
    frame_cosine       mean cosine of frame features of different records
    neighbour_cosine   mean cosine of a frame's feature and the next one's

  Args:
    clips: Clip features.
    frames: Frame features.
    frame_mask: 1 for frames that exist.
    weight: 1 for records that count.

  Returns:
    The five, the first three with the weight n.

  Example:
    >>> collapsed = monitors(jnp.ones((3, 4)), jnp.ones((3, 2, 4)),
    ...   jnp.ones((3, 2)), jnp.ones(3))
    >>> {k: round(float(s / w), 3) for k, (s, w) in collapsed.items()
    ... }  # doctest: +NORMALIZE_WHITESPACE
    {'feature_std': 0.0, 'feature_rank': 0.0, 'clip_cosine': 1.0,
     'frame_cosine': 1.0, 'neighbour_cosine': 1.0}
  """
  clips, frames = jax.lax.stop_gradient((clips, frames))
  weight = weight.astype(jnp.float32)
  u = unit(clips)
  count = jnp.sum(weight)
  total = jnp.sum(u * weight[:, None], axis=0)
  mean = total / jnp.maximum(count, 1.0)
  centred = (u - mean[None]) * weight[:, None]
  covariance = jnp.einsum("bd,be->de", centred, centred)
  covariance /= jnp.maximum(count, 1.0)
  variance = jnp.diagonal(covariance)
  feature_std = u.shape[-1] ** 0.5 * jnp.mean(jnp.sqrt(variance))
  feature_rank = jnp.square(jnp.sum(variance)) / jnp.maximum(
    jnp.sum(jnp.square(covariance)), 1e-12
  )
  square = jnp.sum(jnp.square(total))
  norms = jnp.sum(jnp.sum(jnp.square(u), axis=-1) * weight)
  clip_cosine = (square - norms) / jnp.maximum(count * (count - 1.0), 1.0)
  real = frame_mask * weight[:, None]
  sums = jnp.einsum("btd,bt->bd", unit(frames), real)
  counts = jnp.sum(real, axis=1)
  # Of all pairs of frames, those within a record are left out.
  across = jnp.sum(jnp.square(jnp.sum(sums, axis=0))) - jnp.sum(
    jnp.square(sums)
  )
  pairs = jnp.square(jnp.sum(counts)) - jnp.sum(jnp.square(counts))
  both = frame_mask[:, 1:] * frame_mask[:, :-1] * weight[:, None]
  negative, frame_count = cosine_loss(frames[:, 1:], frames[:, :-1], both)
  return {
    "feature_std": (feature_std * count, count),
    "feature_rank": (feature_rank * count, count),
    "clip_cosine": (clip_cosine * count, count),
    "frame_cosine": (across, pairs),
    "neighbour_cosine": (-negative, frame_count),
  }


def switched_weight(
  progress: Float[Array, ""], start: float, weight: float
) -> Float[Array, ""]:
  """Weight of the prediction term: 0 up to a part of training, then fixed.

  Example:
    >>> [switched_weight(jnp.array(p), 0.5, 0.5).item() for p in (0.5, 0.51)]
    [0.0, 0.5]
  """
  return jnp.where(progress > start, weight, 0.0)


def total_loss(
  contrast: Mapping[str, tuple[Array, Array]],
  prediction: tuple[Array, Array] | None,
  prediction_weight: Float[Array, ""],
) -> Float[Array, ""]:
  """(1 - w) contrast + w prediction, of the means; or contrast alone."""
  loss = mean_of(contrast["contrastive_loss"])
  if prediction is None:
    return loss
  return (1 - prediction_weight) * loss + prediction_weight * mean_of(
    prediction
  )
