"""Static parts of the contrastive task: config keys, objective, views, model.

Everything that can be wrong with a config is found here, before a program is
compiled. What methods and sizes there are is said in `configs/contrastive.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from flax import nnx
from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import (
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
  Share,
)
from wsiseq_jax import config as configs
from wsiseq_jax.data import clip_sampling, views
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import attention, clip_encoder, time_embedding, vit
from wsiseq_jax.models.rngs import Rngs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(configs.Data):
  """Which clips are cut from a sequence."""

  # Clips, frames and step, see `clip_sampling`.
  clips: Annotated[str, clip_sampling.IS_CLIP_NAME] = "1c8f2s"
  image_px: Annotated[tuple[int, int], Range(2)] = (128, 128)
  # Whether clips come from one half of the record: for periodic films.
  strict_half: bool = False
  # Stored frames between clips that `embed` averages; 0 is the middle clip.
  dense_step: AtLeast0 = 0
  # Standard deviation of the noise on times in training, in their unit.
  time_jitter: NotNegative = 0.01
  augment: views.Augment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The network; see `models/clip_encoder.py`."""

  size: Literal[tuple(clip_encoder.SIZES)] = "small"
  patch: Literal[2, 4, 8, 16, 32] = 16
  temporal_width: AtLeast0 = 0  # 0 is that of the frame encoder
  temporal_depth: AtLeast1 = 3
  temporal_heads: AtLeast0 = 0  # 0 as well
  projector_width: AtLeast1 = 2048
  projection: AtLeast1 = 128
  time_embedding: bool = False
  time_mlp: bool = True
  relative_time: bool = True
  # Periods of the time embedding; 0 is that of the data's unit.
  time_shortest: NotNegative = 0.0
  time_longest: NotNegative = 0.0
  dtype: Literal[vit.DTYPES] = "bfloat16"
  remat: Literal[vit.REMAT] = "none"
  attention_kernel: Literal[attention.KERNELS] = "auto"
  init_from: str = ""  # checkpoints of a run with the same network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What the model learns: the block `objective` of a config."""

  kind: Literal[clip_encoder.OBJECTIVES] = "contrastive"  # See the package
  temperature: Annotated[float, Range(1e-3, 10)] = 0.1  # Of InfoNCE
  directions: AtLeast1 = 64  # Directions of LTN's shift
  mask_ratio: Share = 0.15  # Chance of each frame to be hidden
  # Weight w of the prediction; 1 - w is the contrast's
  prediction_weight: Share = 0.5
  # Part of training after which w applies; before, it is 0
  prediction_start: Share = 0.5

  @property
  def predicts(self) -> bool:
    """Whether frame features are predicted."""
    return self.kind in ("masked_frames", "next_frame")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(configs.Experiment):
  """A config with `config.task = "contrastive"`."""

  RETIRED: ClassVar[Mapping[str, Any]] = {
    "data.second_clip": "independent",
    "objective.standardise": True,
    "objective.mask_mode": "hidden",
    "objective.gradient_into": "context",
  }

  data: Data
  model: Model
  objective: Objective


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything static about a run of this task."""

  model: clip_encoder.ClipEncoderConfig  # Shape and numerics of the network
  # The network without its parameters
  graphdef: Any = dataclasses.field(repr=False)
  views: views.ViewSpec  # What views to cut
  objective: Objective  # What is asked
  time_jitter: float  # Standard deviation of the noise on times in training
  # Stored frames between test clips; 0 for the middle clip alone
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
  data = config.data
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
  changes = schema.build(views.Augment, data.augment, "config.data.augment")
  view = views.ViewSpec(
    clips=name,
    image_px=model.image_px,
    frame_px=tuple(spec.frame_px),
    strict_half=data.strict_half,
    **vars(changes),
  )
  network = nnx.eval_shape(lambda: clip_encoder.ClipEncoder(model, Rngs(0)))
  graphdef, _ = nnx.split(network, nnx.Param)
  return Setup(
    model=model,
    graphdef=graphdef,
    views=view,
    objective=schema.build(Objective, objective, "config.objective"),
    time_jitter=data.time_jitter,
    dense_step=data.dense_step,
  )
