"""Static parts of latent prediction: those of VideoMAE, and a teacher."""

import dataclasses

from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import Share
from wsiseq_jax import config as configs
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import masking
from wsiseq_jax.tasks import videomae
from wsiseq_jax.tasks.videomae import setup as videomae_setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
  """How slowly the teacher follows: part of it that stays at an update."""

  decay: Share = 0.996  # at the start of training
  decay_end: Share = 1.0  # at its end; linear between

  def __post_init__(self):
    if self.decay_end < self.decay:
      raise ValueError(
        f"config.teacher.decay_end = {self.decay_end}: must be at least "
        f"config.teacher.decay = {self.decay}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(configs.Experiment):
  """A config with `config.task = "latent"`.

  `model.decoder_*` are sizes of the predictor.
  """

  data: videomae_setup.Data
  model: videomae_setup.Network
  mask: masking.MaskSettings
  teacher: Teacher

  def __post_init__(self):
    if self.optim.ema_decay:
      raise ValueError(
        f"config.optim.ema_decay = {self.optim.ema_decay}: must be 0 for task "
        "'latent', which embeds with its teacher (config.teacher.decay)"
      )


@dataclasses.dataclass(frozen=True)
class Setup(videomae.Setup):
  """Everything static about a run of this task."""

  teacher: Teacher


def make_setup(config: ConfigDict, spec: DataSpec) -> Setup:
  """Builds the static parts, checking that data, model and masks fit.

  Raises:
    ValueError: They do not; the config key is named.
  """
  shared = videomae.make_setup(config, spec)
  teacher = schema.build(Teacher, config.teacher, "config.teacher")
  return Setup(**vars(shared), teacher=teacher)
