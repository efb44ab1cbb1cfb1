"""Static parts of the contrastive task: config keys, objective, views, model.

Everything that can be wrong with a config is found here, before a program is
compiled. What the keys mean is said in `configs/contrastive.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from wsiseq_jax import config as checks
from wsiseq_jax.data import clip_sampling, views
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import (
  attention,
  clip_encoder,
  time_embedding,
  vit,
)

MASK_MODES = ("hidden", "seen")
GRADIENTS = ("context", "target", "both")

CHECKS: Mapping[str, checks.Check] = {
  "data.clips": clip_sampling.clip_name_problem,
  "data.image_px": checks.integers(2, length=2),
  "data.strict_half": checks.flag(),
  "data.second_clip": checks.one_of(*clip_sampling.SECOND_CLIP),
  "data.dense_step": checks.integer(0),
  "data.time_jitter": checks.number(0),
  "data.augment.rotate_deg": checks.number(0, 180),
  "data.augment.crop_areas": checks.numbers(0.01, 1.0, length=2),
  "data.augment.flips": checks.numbers(0, 1, length=2),
  "data.augment.jitter_probability": checks.number(0, 1),
  "data.augment.brightness": checks.number(0, 1),
  "data.augment.contrast": checks.number(0, 1),
  "data.augment.blur_probability": checks.number(0, 1),
  "data.augment.blur_sigma_px": checks.numbers(0.01, 10.0, length=2),
  "model.size": checks.one_of(*clip_encoder.SIZES),
  "model.patch": checks.one_of(2, 4, 8, 16, 32),
  "model.temporal_width": checks.integer(0),
  "model.temporal_depth": checks.integer(1),
  "model.temporal_heads": checks.integer(0),
  "model.projector_width": checks.integer(1),
  "model.projection": checks.integer(1),
  "model.time_embedding": checks.flag(),
  "model.time_mlp": checks.flag(),
  "model.relative_time": checks.flag(),
  "model.time_shortest": checks.number(0),
  "model.time_longest": checks.number(0),
  "model.dtype": checks.one_of(*clip_encoder.DTYPES),
  "model.remat": checks.one_of(*vit.REMAT),
  "model.attention_kernel": checks.one_of(*attention.KERNELS),
  "model.init_from": checks.text(),
  "objective.kind": checks.one_of(*clip_encoder.OBJECTIVES),
  "objective.temperature": checks.number(1e-3, 10.0),
  "objective.standardise": checks.flag(),
  "objective.directions": checks.integer(1),
  "objective.mask_ratio": checks.number(0, 1),
  "objective.mask_mode": checks.one_of(*MASK_MODES),
  "objective.gradient_into": checks.one_of(*GRADIENTS),
  "objective.prediction_weight": checks.number(0, 1),
  "objective.prediction_start": checks.number(0, 1),
}


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is asked of the model.

  Attributes:
    kind: See the module.
    temperature: Of InfoNCE.
    standardise: Whether projections are compared in units of their mean and
      deviation over the batch.
    mask_ratio: Chance of each frame to be hidden.
    mask_mode: Whether hidden frames are 'hidden' from the class token that is
      compared, too (the reference's v2), or 'seen' by it (v1).
    gradient_into: Where the prediction's gradient reaches the frame encoder:
      'context', 'target' or 'both'.
    prediction_weight: Weight w of the prediction; 1 - w is the contrast's.
    prediction_start: Part of training after which w applies; before, it is 0.
  """

  kind: str
  temperature: float
  standardise: bool
  mask_ratio: float
  mask_mode: str
  gradient_into: str
  prediction_weight: float
  prediction_start: float

  @property
  def predicts(self) -> bool:
    """Whether frame features are predicted."""
    return self.kind in ("masked_frames", "next_frame")


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything static about a run of this task.

  Attributes:
    model: Shape and numerics of the network.
    graphdef: The network without its parameters.
    views: What views to cut.
    objective: What is asked.
    time_jitter: Deviation of the noise on times in training, in their unit.
    dense_step: Stored frames between test clips; 0 for the middle clip alone.
  """

  model: clip_encoder.ClipEncoderConfig
  graphdef: Any = dataclasses.field(repr=False)
  views: views.ViewSpec
  objective: Objective
  time_jitter: float
  dense_step: int

  def merge(self, params: Any) -> clip_encoder.ClipEncoder:
    """The network with parameters; used functionally, inside a traced call."""
    return nnx.merge(self.graphdef, params)


def model_config(
  config: ConfigDict, time_unit: str
) -> clip_encoder.ClipEncoderConfig:
  """The network that a config describes, for times of a unit."""
  model = config.model
  size = clip_encoder.SIZES[model.size]
  shortest, longest = time_embedding.periods(
    time_unit, model.time_shortest, model.time_longest
  )
  return clip_encoder.ClipEncoderConfig(
    **size,
    frames=clip_sampling.parse_clip_name(config.data.clips).frames,
    image_px=tuple(config.data.image_px),
    patch=model.patch,
    temporal_width=model.temporal_width or size["width"],
    temporal_depth=model.temporal_depth,
    temporal_heads=model.temporal_heads or size["heads"],
    projector_width=model.projector_width,
    projection=model.projection,
    objective=config.objective.kind,
    uses_time=model.time_embedding,
    learns_time=model.time_mlp,
    relative_time=model.relative_time,
    time_shortest=shortest,
    time_longest=longest,
    directions=config.objective.directions,
    dtype=model.dtype,
    remat=model.remat,
    attention_kernel=model.attention_kernel,
  )


def make_setup(config: ConfigDict, spec: sources.DataSpec) -> Setup:
  """Builds the static parts, checking that data, model and objective fit.

  Raises:
    ValueError: They do not; the config key is named.
  """
  model = model_config(config, spec.time_unit)
  data, augment = config.data, config.data.augment
  name = clip_sampling.parse_clip_name(data.clips)
  room = spec.frames // 2 if data.strict_half else spec.frames
  if name.span + (name.clips == 2) > room:
    half = " in each half (config.data.strict_half)" * data.strict_half
    more = ", and two different ones need one more" * (name.clips == 2)
    raise ValueError(
      f"config.data.clips = {data.clips!r}: a clip spans {name.span} stored "
      f"frames{more}; the data has {room}{half}"
    )
  objective = config.objective
  if objective.kind == "navigation" and name.clips != 2:
    raise ValueError(
      f"config.data.clips = {data.clips!r}: config.objective.kind = "
      "'navigation' moves features by the time between two clips; it needs two "
      "different ones, such as '2c8f2s'"
    )
  for key in ("crop_areas", "blur_sigma_px"):
    if augment[key][0] > augment[key][1]:
      raise ValueError(
        f"config.data.augment.{key} = {tuple(augment[key])}: the first must "
        "not exceed the second"
      )
  view = views.ViewSpec(
    clips=name,
    image_px=model.image_px,
    frame_px=tuple(spec.frame_px),
    strict_half=data.strict_half,
    second_clip=data.second_clip,
    **{
      key: tuple(value) if isinstance(value, list | tuple) else value
      for key, value in augment.items()
    },
  )
  network = nnx.eval_shape(lambda: clip_encoder.ClipEncoder(model, nnx.Rngs(0)))
  graphdef, _ = nnx.split(network, nnx.Param)
  fields = {f.name for f in dataclasses.fields(Objective)}
  return Setup(
    model=model,
    graphdef=graphdef,
    views=view,
    objective=Objective(**{k: objective[k] for k in fields}),
    time_jitter=data.time_jitter,
    dense_step=data.dense_step,
  )
