"""The config of the job `segment`: keys, defaults and checks.

`configs/segment.py` says how it is used.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import (
  FILLED,
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
  did_you_mean,
)
from wsiseq_jax import config as configs
from wsiseq_jax import jobs
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.methods import METHODS, STAGES
from wsiseq_jax.segment.pictures import Crops
from wsiseq_jax.segment.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentData:
  """Labelled pictures."""

  path: Annotated[str, FILLED]  # what data_prep wrote, or 'synthetic'
  train_split: str = "train"
  val_split: str = "val"  # chooses epochs and thresholds
  test_split: str = "test"  # is reported, and decides nothing
  crops: Crops = Crops()
  batch_size: AtLeast1 = 8  # whole pictures, where nothing is trained

  def __post_init__(self):
    splits = (self.train_split, self.val_split, self.test_split)
    if len(set(splits)) < len(splits):
      raise ValueError(
        f"config.data.train_split, val_split, test_split = {splits}: must be "
        "three different splits; thresholds are not chosen where results are "
        "reported"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentScores:
  """Scores and intervals; see `wsiseq_jax/metrics/segmentation.py`."""

  resamples: Annotated[int, Range(10)] = 1000  # of patients
  boundary_px: NotNegative = 3.0  # how near a boundary has to be found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentSettings:
  """Everything that `configs/segment.py` says."""

  job: Literal["segment"] = "segment"
  method: Literal[tuple(METHODS)] = "cam"
  workdir: Annotated[str, FILLED]
  seed: AtLeast0 = 0
  data: SegmentData
  backbone: Backbone = Backbone()
  # Settings of the method's stages, by name.
  stages: Mapping[str, Any]
  scores: SegmentScores = SegmentScores()
  wandb: configs.Wandb = configs.Wandb()

  def __post_init__(self):
    chain = tuple(METHODS[self.method])
    for name in self.stages:
      if name not in chain:
        hint = did_you_mean(name, chain)
        raise ValueError(
          f"config.stages.{name}: config.method = {self.method!r} has the "
          f"stages {chain}{hint}"
        )

  def chain(self) -> tuple[Stage, ...]:
    """The method's stages, in order."""
    return tuple(
      schema.build(
        STAGES[name],
        {**given, **self.stages.get(name, {})},
        f"config.stages.{name}",
      )
      for name, given in METHODS[self.method].items()
    )


def read(config: ConfigDict) -> SegmentSettings:
  """Checks every key and value of a config of `configs/segment.py`."""
  jobs.check(config, "segment")
  found = schema.build(SegmentSettings, config)
  found.chain()
  return found
