"""Contrastive learning of clips in time: CVRL, LTN, cSimCLR, TVRL and others.

A step cuts two views of each sequence (`data.views`), encodes their frames and
clips (`models.clip_encoder`), and tells which views are of one record
(`info_nce`, over the global batch). `objective.kind` adds:

  contrastive     nothing. Two clips of different times (data.clips =
                  '2c...') make CVRL; one clip seen twice ('1c...') cSimCLR;
                  model.time_embedding makes it cSimCLR-TE.
  navigation      LTN: the second clip is moved by the time between the two,
                  before they are compared. Needs two clips of different times.
  masked_frames   TVRL: some frames are hidden, and their features predicted
                  from the others', within each view.
  next_frame      each frame's feature is predicted from the earlier ones.

The target of a prediction is the frame encoder's own output, kept apart from
what the temporal encoder is given, where hidden frames are replaced by a mask
token and position and time are added. Gradients reach the frame encoder through
the context, not through the target: a target that may move finds it easiest to
be the same everywhere, and only the contrastive term would keep it from that.
Deviation: the reference detaches the context and lets the target move. Hidden
frames are hidden from the class token that is compared, too.

The prediction's weight is 0 for the first half of training, so that there are
features worth predicting. What is logged as `loss` in training has the weight
of its step; in evaluation it is the final one. Look at `contrastive_loss` and
`prediction_loss`.

Evaluation has no other views to compare than random ones: of one clip shown
twice without change they would be equal. They are drawn from the record's
index, hence always the same, and so are hidden frames. Other records in the
batch are part of the loss: compare numbers at equal data.batch_size.

References: Qian et al., CVRL, CVPR 2021; Yang et al., LTN, AAAI 2023; Shen et
al., Spatiotemporal representation learning for short and long medical image
time series (TVRL), MICCAI 2024; Chen et al., SimCLR, ICML 2020.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key
from ml_collections import ConfigDict

from wsiseq_jax.data import clip_sampling, sources, views
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import clip_encoder, flops, time_embedding
from wsiseq_jax.tasks import base
from wsiseq_jax.tasks.contrastive import losses
from wsiseq_jax.tasks.contrastive.setup import (
  Config,
  Objective,
  Setup,
  make_setup,
)

__all__ = [
  "Config",
  "clip",
  "evaluate",
  "make_setup",
  "make_task",
  "resolve",
]

# Views of evaluation depend on this and the record's index alone.
_EVAL_SEED = 20


def predict_frames(
  network: clip_encoder.ClipEncoder,
  objective: Objective,
  frames: Float[Array, "b t d"],
  time: Float[Array, "b t"],
  real: Bool[Array, "b t"],
  hidden: Bool[Array, "b t"],
) -> tuple[Array, Array, Array]:
  """Predicts frame features from others of the same clip."""
  context, target = frames, jax.lax.stop_gradient(frames)
  if objective.kind == "masked_frames":
    token = network.mask_token[...][None, None]
    context = jnp.where(hidden[..., None], token, context)
    _, out = network.temporal(context, time, real)
    return network.predictor(out), target, hidden.astype(jnp.float32)
  _, out = network.temporal(context, time, real, is_causal=True)
  # Padding is no target.
  weight = real[:, 1:].astype(jnp.float32)
  return network.predictor(out[:, :-1]), target[:, 1:], weight


def objective_terms(
  setup: Setup,
  params: Any,
  seen: views.Views,
  record_mask: Float[Array, " b"],
  key: Key[Array, " b"],
  jitter: float,
) -> tuple[base.Metrics, tuple[Array, Array] | None]:
  """All that is measured on the views of a batch."""
  network, objective = setup.merge(params), setup.objective
  b, v, t = seen.time.shape
  noise_keys, mask_keys = jax.vmap(jax.random.split, out_axes=1)(key)

  def of_views(x):
    return x.reshape(b * v, *x.shape[2:])

  time = seen.time
  if jitter:
    noise = jax.vmap(lambda k: jax.random.normal(k, (v, t)))(noise_keys)
    time = time + jitter * noise
  time, real = of_views(time), of_views(seen.frame_mask) > 0
  frames = network.encode_frames(of_views(seen.pixels))
  chance = jax.vmap(lambda k: jax.random.uniform(k, (v, t)))(mask_keys)
  hidden = (of_views(chance) < objective.mask_ratio) & real
  is_masked = objective.kind == "masked_frames"
  shown = real & ~hidden if is_masked else real
  clips = network.temporal(frames, time, shown)[0].reshape(b, v, -1)
  counts = record_mask * seen.is_distinct
  compared = clips
  if objective.kind == "navigation":
    interval = seen.time[:, 1, 0] - seen.time[:, 0, 0]
    counts = counts * (interval != 0)
    moved = network.navigation(clips[:, 1], interval)
    compared = jnp.stack([clips[:, 0], moved], axis=1)
  metrics = losses.info_nce(
    network.projector(compared),
    counts,
    objective.temperature,
  )
  metrics |= losses.monitors(
    clips[:, 0],
    frames.reshape(b, v, t, -1)[:, 0],
    seen.frame_mask[:, 0],
    record_mask,
  )
  metrics["used_records"] = (jnp.sum(counts), jnp.sum(record_mask))
  if not objective.predicts:
    return metrics, None
  prediction, target, weight = predict_frames(
    network, objective, frames, time, real, hidden
  )
  weight = weight * jnp.repeat(record_mask, v)[:, None]
  pair = losses.cosine_loss(prediction, target, weight)
  metrics["prediction_loss"] = pair
  return metrics, pair


def loss(
  setup: Setup,
  params: Any,
  extra: base.Extra,
  batch: base.Batch,
  key: Key[Array, ""],
  progress: Float[Array, ""],
):
  del extra
  b = batch["mask"].shape[0]
  seen = views.sample_views(
    batch, jax.random.split(base.stream(key, "views"), b), setup.views
  )
  metrics, prediction = objective_terms(
    setup,
    params,
    seen,
    batch["mask"],
    jax.random.split(base.stream(key, "objective"), b),
    setup.time_jitter,
  )
  objective = setup.objective
  weight = losses.switched_weight(
    progress, objective.prediction_start, objective.prediction_weight
  )
  loss = losses.total_loss(metrics, prediction, weight)
  metrics["loss"] = (loss, 1.0)
  if objective.predicts:
    metrics["prediction_weight"] = (weight, 1.0)
  return loss, (metrics, {})


def evaluate(
  setup: Setup, params: Any, extra: base.Extra, batch: base.Batch
) -> base.Metrics:
  """All measures on fixed views; see the module for what that means."""
  del extra

  def record_keys(index):
    key = jax.random.fold_in(jax.random.key(_EVAL_SEED), index)
    return jax.random.split(key)

  keys = jax.vmap(record_keys, out_axes=1)(batch["index"])
  seen = views.sample_views(batch, keys[0], setup.views)
  metrics, prediction = objective_terms(
    setup, params, seen, batch["mask"], keys[1], jitter=0.0
  )
  weight = jnp.asarray(setup.objective.prediction_weight, jnp.float32)
  loss = losses.total_loss(metrics, prediction, weight)
  count = jnp.sum(batch["mask"])
  return {"loss": (loss * count, count), **metrics}


def _embed(setup: Setup, params: Any, batch: base.Batch) -> dict[str, Array]:
  network = setup.merge(params)
  chosen, mask = views.centre_frames(batch, setup.views)
  b, stored = batch["frame_mask"].shape
  shown = chosen
  if setup.dense_step:
    shown = jnp.broadcast_to(jnp.arange(stored)[None], (b, stored))
  pixels, time = views.whole_frames(batch, shown, setup.views)
  frames = network.encode_frames(pixels)
  if setup.dense_step:
    features = _dense_features(setup, network, batch, frames, time)
    frames = jnp.take_along_axis(frames, chosen[..., None], axis=1)
    time = jnp.take_along_axis(time, chosen, axis=1)
  else:
    features, _ = network.temporal(frames, time, mask > 0)
  return {
    "features": features,
    "tokens": frames,
    "token_mask": mask,
    "token_time": time,
    "frame_level0_xy": jnp.take_along_axis(
      batch["frame_level0_xy"], chosen[..., None], axis=1
    ),
    "time": jnp.take_along_axis(batch["time"], chosen, axis=1),
    "frames": chosen,
  }


def _dense_features(setup, network, batch, frames, time) -> Array:
  """Mean over all windows of a record. Frames are encoded once for all."""
  window, mask, weight = views.dense_frames(
    batch, setup.views, setup.dense_step
  )
  b, n, t = window.shape
  flat = window.reshape(b, n * t)
  cut = jnp.take_along_axis(frames, flat[..., None], axis=1)
  features, _ = network.temporal(
    cut.reshape(b * n, t, -1),
    jnp.take_along_axis(time, flat, axis=1).reshape(b * n, t),
    mask.reshape(b * n, t) > 0,
  )
  total = jnp.sum(features.reshape(b, n, -1) * weight[..., None], axis=1)
  return total / jnp.sum(weight, axis=1, keepdims=True)


def _encode(
  setup: Setup, params: Any, batch: base.Batch, key: Key[Array, ""] | None
) -> Float[Array, "b d"]:
  if key is None:
    return _embed(setup, params, batch)["features"]
  keys = jax.random.split(base.stream(key, "views"), batch["mask"].shape[0])
  seen = views.sample_clip(batch, keys, setup.views.mild())
  network = setup.merge(params)
  frames = network.encode_frames(seen.pixels[:, 0])
  return network.temporal(frames, seen.time[:, 0], seen.frame_mask[:, 0] > 0)[0]


def _pool(
  setup: Setup,
  params: Any,
  tokens: Float[Array, "b n d"],
  token_mask: Float[Array, "b n"],
  token_time: Float[Array, "b n"],
  cls_token: Float[Array, " d"],
) -> Float[Array, "b d"]:
  network = setup.merge(params)
  return network.temporal(
    tokens, token_time, token_mask > 0, cls_token=cls_token
  )[0]


def resolve(config: ConfigDict) -> ConfigDict:
  """Writes into the config what the data's unit of time decides.

  With the periods of the time embedding in it, a checkpoint is not read
  otherwise when it is used on data of another unit.
  """
  if not config.data.path:
    return config
  unit = sources.find(config.data.path).spec.time_unit
  shortest, longest = time_embedding.periods(
    unit, config.model.time_shortest, config.model.time_longest
  )
  resolved = ConfigDict(config.to_dict())
  resolved.model.update({"time_shortest": shortest, "time_longest": longest})
  return resolved.lock()


def _evaluations(setup: Setup, config: ConfigDict) -> base.Evaluations:
  """One measure; the batch is part of what it means."""
  return base.Evaluations(
    facts={"batch_size": config.data.batch_size},
    functions={"fixed views": functools.partial(evaluate, setup)},
  )


def clip(config: ConfigDict) -> base.Clip:
  """What clips a config trains on."""
  name = clip_sampling.parse_clip_name(config.data.clips)
  stored = name.span + (name.clips == 2)
  if config.data.strict_half:
    stored *= 2
  # With one frame more, where the middle would lie between two frames.
  stored += (stored - name.span) % 2
  return base.Clip(
    frames=name.frames,
    frame_step=name.frame_step,
    image_px=tuple(config.data.image_px),
    stored=stored,
    embedded=stored if config.data.dense_step else name.span,
  )


def make_task(config: ConfigDict, spec: DataSpec) -> base.Task:
  """The task that a config and a data set describe."""
  setup = make_setup(config, spec)
  return base.Task(
    init=functools.partial(clip_encoder.init_params, setup.model),
    loss=functools.partial(loss, setup),
    evaluate=functools.partial(evaluate, setup),
    embed=functools.partial(_embed, setup),
    encode=functools.partial(_encode, setup),
    pool=functools.partial(_pool, setup),
    evaluations=functools.partial(_evaluations, setup),
    clips_per_record=2,
    flops=flops.contrastive_step_flops(setup.model),
    compares_batch=True,
  )
