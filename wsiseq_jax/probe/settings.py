"""The config of the job `probe`: its keys, defaults and checks.

`configs/probe.py` says how it is used.
"""

import dataclasses
from typing import Annotated, Literal

from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import (
  DIFFERENT,
  FILLED,
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
  Rule,
)
from wsiseq_jax import config as configs
from wsiseq_jax import jobs, optim
from wsiseq_jax.fit import FitSettings

KINDS = ("linear", "knn", "attentive", "pooling", "fine_tune", "supervised")
# Nothing in these is random but which labels they are given.
DETERMINISTIC = ("linear", "knn")
ON_TOKENS = ("attentive", "pooling")
ON_PIXELS = ("fine_tune", "supervised")


def _rates(pairs: tuple[str, ...]) -> dict[str, float]:
  split = (pair.rpartition("=") for pair in pairs)
  return {name: float(rate) for name, _, rate in split}


def _are_rates(pairs: tuple[str, ...]) -> bool:
  try:
    return all(name and rate > 0 for name, rate in _rates(pairs).items())
  except ValueError:
    return False


_RATES = Rule(_are_rates, "such as 'target=5e-3'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeData:
  """Data with labels, see `data/sources.py`."""

  path: str = ""
  train_split: str = "train"
  val_split: str = "val"
  test_split: str = "test"
  batch_size: AtLeast1 = 64  # sequences encoded at once
  threads: AtLeast1 = 8
  worker_processes: AtLeast0 = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRows:
  """Which probes there are."""

  targets: tuple[str, ...] = ()  # () is all
  kinds: Annotated[tuple[Literal[KINDS], ...], DIFFERENT, FILLED] = KINDS[:3]
  fractions: Annotated[
    tuple[float, ...], Range(above=0, high=1), DIFFERENT, FILLED
  ] = (0.01, 0.1, 1.0)
  seeds: Annotated[tuple[int, ...], Range(0), DIFFERENT, FILLED] = tuple(
    range(5)
  )
  resamples: Annotated[int, Range(10)] = 1000  # for intervals


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeFit:
  """How a head, or an encoder with one, is trained."""

  lr_per_256: NotNegative = 1e-3  # for 256 sequences a step
  # Of single targets instead: ("age=5e-3",).
  lr_of: Annotated[tuple[str, ...], _RATES] = ()
  weight_decay: NotNegative = 0.05
  batch_size: AtLeast1 = 256
  # Passes over the training samples at most, of ten steps or more.
  epochs: AtLeast1 = 100
  warmup_epochs: AtLeast0 = 10
  patience: AtLeast0 = 15  # epochs without a better; 0 is never

  def of_target(self, target: str) -> FitSettings:
    """How a target is trained, at the learning rate of its own name.

    Example:
      >>> how = ProbeFit(lr_of=("ef=4e-3",), batch_size=128)
      >>> [how.of_target(name).lr for name in ("ef", "af", "ef")]
      [0.002, 0.0005, 0.002]
    """
    rate = _rates(self.lr_of).get(target, self.lr_per_256)
    return FitSettings(
      lr=optim.scaled_lr(rate, self.batch_size),
      weight_decay=self.weight_decay,
      clip_norm=0.0,
      warmup_epochs=self.warmup_epochs,
      epochs=self.epochs,
      patience=self.patience,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbedCheckpoint:
  """What is probed."""

  path: str = ""  # '' is <workdir>/checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
  """All keys."""

  job: Literal["probe"] = "probe"
  workdir: Annotated[str, FILLED] = ""
  data: ProbeData = ProbeData()
  mesh: configs.Mesh = configs.Mesh()
  checkpoint: ProbedCheckpoint = ProbedCheckpoint()
  probe: ProbeRows = ProbeRows()
  head: ProbeFit = ProbeFit()  # of heads on frozen tokens
  fine_tune: ProbeFit = ProbeFit(batch_size=64)  # of whole encoders
  wandb: configs.Wandb = configs.Wandb()

  def fit_of(self, kind: str) -> ProbeFit:
    """How a kind of probe is trained."""
    return self.head if kind in ON_TOKENS else self.fine_tune


def validate(config: ConfigDict) -> ProbeConfig:
  """Checks every key and value of a probe config."""
  jobs.check(config, "probe")
  return schema.build(ProbeConfig, config)
