"""Latent prediction: the features of hidden tokens, not their pixels.

A step is that of `tasks/videomae`, with another target. The student encodes the
visible tokens; a predictor (VideoMAE's decoder, with a head of features) says
what the *teacher*, who sees the whole clip, makes of the hidden ones. Masks
follow the tissue as they do there. The teacher is the student's encoder,
averaged over the steps:

    teacher ← m teacher + (1 - m) student       after each update
    m = teacher.decay + (teacher.decay_end - teacher.decay) · progress

Nothing in the loss forbids that all features are one. What keeps them apart is
that the teacher is slow and gets no gradient, that the predictor stands
between, and that targets are standardised over their channels. So watch
`feature_std` and `clip_cosine` (`contrastive/losses.py`): at 0 and 1 the model
has collapsed, whatever the loss. Tokens that differ by their positions alone
are found out, too: they are the same in every clip.

Evaluation and `embed` use the teacher, in place of the student as well. The
loss of two runs does not compare: each has a target of its own.

Deviations from the references: VideoMAE's initialisation and sinusoids; one
mask a clip, of our kinds; no crop of the context beyond the mask.

References: Assran et al., I-JEPA, CVPR 2023; Bardes et al., V-JEPA, TMLR 2024.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from wsiseq_jax import checkpoint
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import flops, masking
from wsiseq_jax.tasks import base, videomae
from wsiseq_jax.tasks.latent import losses
from wsiseq_jax.tasks.latent.setup import Config, Setup, make_setup
from wsiseq_jax.tasks.videomae.losses import masked_clips, middle_clips

__all__ = [
  "Config",
  "Setup",
  "clip",
  "evaluate",
  "make_setup",
  "make_task",
  "resolve",
  "update_extra",
]

clip = videomae.clip


def _loss(
  setup: Setup,
  params: Any,
  extra: base.Extra,
  batch: base.Batch,
  key: Key[Array, ""],
  progress: Float[Array, ""],
):
  clips, mask, weight = masked_clips(setup, batch, key)
  metrics = losses.measure(setup, params, extra["teacher"], clips, mask, weight)
  # `update_extra` is told nothing else of the step.
  aux = {"progress": jnp.broadcast_to(progress, weight.shape)}
  total, count = metrics["loss"]
  return total / count, (metrics, aux)


def init_extra(params: Any) -> dict[str, Any]:
  """The teacher at the start: the student."""
  # Copied: params are donated, and one buffer cannot be donated twice.
  return {"teacher": jax.tree.map(jnp.copy, params["encoder"])}


def update_extra(
  setup: Setup, params: Any, extra: base.Extra, aux: Any
) -> dict[str, Any]:
  """Moves the teacher towards the student, by the schedule of the decay."""
  decay = losses.decay(
    jnp.max(aux["progress"]), setup.teacher.decay, setup.teacher.decay_end
  )
  teacher = jax.tree.map(
    lambda old, new: decay * old + (1 - decay) * new,
    extra["teacher"],
    params["encoder"],
  )
  return {"teacher": teacher}


def evaluate(
  setup: Setup,
  spec: masking.MaskSpec,
  params: Any,
  extra: base.Extra,
  batch: base.Batch,
) -> base.Metrics:
  """What the loss measures, on middle clips under fixed masks of `spec`."""
  clips, mask = middle_clips(setup, batch, spec)
  return losses.measure(
    setup, params, extra["teacher"], clips, mask, batch["mask"]
  )


def _evaluations(setup: Setup, config: ConfigDict) -> base.Evaluations:
  """At the ratio of training: at another the target is the same, of others."""
  return base.Evaluations(
    facts={
      "mask_kind": setup.mask.kind,
      "mask_ratio": setup.mask.ratio,
      # Signs of collapse compare the records of a batch.
      "batch_size": config.data.batch_size,
    },
    functions={
      f"{setup.mask.ratio:g}": functools.partial(evaluate, setup, setup.mask)
    },
  )


def resolve(config: ConfigDict) -> ConfigDict:
  """Writes into the config what `model.init_from` decides."""
  path = config.model.init_from
  if not path or not checkpoint.is_run(path):
    return config
  model = videomae.model_config(config)
  return videomae.settled(
    config, videomae.settle(path, model, "latent", Config)
  )


def make_task(config: ConfigDict, spec: DataSpec) -> base.Task:
  """The task that a config and a data set describe."""
  setup = make_setup(config, spec)
  return base.Task(
    init=functools.partial(videomae.init_params, setup.model),
    init_extra=init_extra,
    loss=functools.partial(_loss, setup),
    update_extra=functools.partial(update_extra, setup),
    inference_params=lambda params, extra: {
      **params,
      "encoder": extra["teacher"],
    },
    evaluate=functools.partial(evaluate, setup, setup.mask),
    embed=functools.partial(videomae.embed, setup),
    encode=functools.partial(videomae.encode, setup),
    evaluations=functools.partial(_evaluations, setup),
    clips_per_record=config.data.repeats,
    flops=flops.latent_step_flops(
      setup.model, setup.mask.visible, setup.mask.decoded
    ),
  )
