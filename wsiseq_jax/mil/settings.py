"""The config of the jobs `mil` and `mil_predict`: keys, defaults and checks.

`configs/mil.py` says how it is used. The block `model` is the config of the
chosen model, `wsiseq_jax/models/mil`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import DIFFERENT, FILLED, Range
from wsiseq_jax import config as configs
from wsiseq_jax import jobs
from wsiseq_jax.mil import class_weights as weighting
from wsiseq_jax.mil import cohort
from wsiseq_jax.mil.trainer import BagFitSettings
from wsiseq_jax.models import mil

SYNTHETIC = "synthetic"
Count = Annotated[int, Range(1)]
NotNegative = Annotated[float, Range(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilData:
  """Features, labels and batches."""

  features: Annotated[str, FILLED]  # a folder, or 'synthetic'
  table: str = ""  # CSV of slides, patients and labels
  label: str = "label"  # its column; several with commas for some types
  # In order, the last of two is positive; () is sorted.
  classes: Annotated[tuple[str, ...], DIFFERENT] = ()
  # A column, 'camelyon16', or '' to draw splits.
  split_column: str = ""
  # Feature files that the table does not name.
  unlisted: Literal["error", "ignore"] = "error"
  tile_size: NotNegative = 0.0  # for files that do not say it, in their unit
  batch_size: Count = 8  # bags in a step
  # So many random tiles of a training bag; 0 is all.
  max_tiles: Annotated[int, Range(0)] = 0
  smallest_bucket: Count = 64  # bags are padded to this times a power of 2
  cache_gb: NotNegative = 8.0
  threads: Count = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilOptim:
  """AdamW, epochs, and weights of classes."""

  lr: NotNegative = 3e-4  # of a step, whatever its batch
  weight_decay: NotNegative = 1e-3
  b1: Annotated[float, Range(0, 1)] = 0.9
  b2: Annotated[float, Range(0, 1)] = 0.999
  eps: NotNegative = 1e-8
  clip_norm: NotNegative = 5.0  # 0 switches clipping off
  warmup_epochs: Annotated[int, Range(0)] = 1
  epochs: Count = 100
  # Epochs without a lower validation loss; 0 is never.
  patience: Annotated[int, Range(0)] = 15
  class_weights: Literal[weighting.NAMES] = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilFolds:
  """Arguments of `folds.draw`."""

  k: Annotated[int, Range(2)] = 5
  repeats: Count = 1
  # Of what is left after the test fold.
  val_share: Annotated[float, Range(0.01, 0.5)] = 0.2
  stratify: bool = True
  seed: Annotated[int, Range(0)] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilScores:
  """Intervals and calibration."""

  resamples: Annotated[int, Range(10)] = 1000
  ece_bins: Count = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilMaps:
  """Maps of tiles."""

  write: bool = True
  class_name: str = ""  # '' is the positive, or the predicted class


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilPredict:
  """What `mil_predict` applies."""

  models: str = ""  # workdir of a finished job mil


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilSettings:
  """Everything that `configs/mil.py` says."""

  job: Literal["mil", "mil_predict"] = "mil"
  workdir: Annotated[str, FILLED]
  target_type: Literal[cohort.TARGET_TYPES] = "binary"
  data: MilData
  model: Mapping[str, Any]
  optim: MilOptim
  folds: MilFolds
  seeds: Annotated[tuple[int, ...], Range(0), DIFFERENT, FILLED] = tuple(
    range(5)
  )
  scores: MilScores
  maps: MilMaps
  predict: MilPredict
  wandb: configs.Wandb

  def __post_init__(self):
    problems = []
    is_predict = self.job == "mil_predict"
    if is_predict and not self.predict.models:
      problems.append(
        "config.predict.models = '': name the workdir of a finished job 'mil'"
      )
    if self.predict.models and not is_predict:
      problems.append(
        f"config.predict.models = {self.predict.models!r}: is for config.job = "
        "'mil_predict'"
      )
    is_real = self.data.features != SYNTHETIC
    if not is_predict and is_real and not self.data.table:
      problems.append("config.data.table = '': name a CSV of slides and labels")
    weights = self.optim.class_weights
    if weights != "none" and self.target_type not in weighting.TARGET_TYPES:
      problems.append(
        f"config.optim.class_weights = {weights!r}: config.target_type = "
        f"{self.target_type!r} has no classes; of use for "
        f"{weighting.TARGET_TYPES}"
      )
    if problems:
      raise ValueError("\n".join(problems))

  def model_config(self, width: int, outputs: int) -> mil.MilConfig:
    """The model's shape, for features of a width and slides of some logits."""
    return mil.configure(**self.model, width=width, outputs=outputs)

  @property
  def fit_settings(self) -> BagFitSettings:
    """How to train."""
    return BagFitSettings(
      **dataclasses.asdict(self.optim),
      batch_size=self.data.batch_size,
      max_tiles=self.data.max_tiles,
    )


def read(config: ConfigDict) -> MilSettings:
  """Checks every key and value of a config of `configs/mil.py`."""
  jobs.check(config, "mil")
  found = schema.build(MilSettings, config)
  # Of classes there are two or more; how many is not known yet.
  found.model_config(1, outputs_of(found.target_type, ("", "")))
  return found


def outputs_of(target_type: str, classes: tuple[str, ...]) -> int:
  """Logits of a slide.

  Example:
    >>> outputs_of("binary", ("a", "b")), outputs_of("multiclass", ("a", "b"))
    (1, 2)
  """
  return len(classes) if target_type in ("multiclass", "multilabel") else 1
