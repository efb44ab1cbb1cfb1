"""The config of a pretraining experiment: its keys, defaults, checks, JSON.

A config is a locked `ConfigDict` built by a file in `configs/`. Its schema is a
frozen dataclass (`data_prep/files/schema.py`): `Experiment` has what all tasks
share, each task's `Config` adds its own keys (`tasks/*/setup.py`). A key
without a field cannot exist, so neither can an option that no code reads.

A checkpoint made before a key existed has that key's default: a default is what
the code did without the key, and never changes.

Units are part of names: `_px`, `_steps`, `_epochs`, `_minutes`, `_deg`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import (
  FILLED,
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
  Share,
)

# Keys that may differ between a checkpoint and the run that resumes it: where
# things are and how fast they go, not what is computed. `mesh` and `remat`
# change the order of floating-point sums, no more. `data.path` may differ
# because shards are compared by what they hold.
HARMLESS = (
  "job",
  "workdir",
  "data.path",
  "data.threads",
  "data.worker_processes",
  "data.eval_split",
  "model.remat",
  "mesh",
  "checkpoint",
  "wandb",
  "log_every_steps",
  "eval_every_steps",
  "aot",
  "embed",
  "report",
)
# Keys that jobs on a checkpoint take from the command line; everything else
# comes from the checkpoint.
RUNTIME = (
  "workdir",
  "data.path",
  "data.eval_split",
  "data.batch_size",
  "data.threads",
  "data.worker_processes",
  "model.attention_kernel",
  "mesh",
  "checkpoint.path",
  "embed",
  "report",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Shards, and how they are loaded."""

  path: str = ""
  train_split: str = "train"
  eval_split: str = "val"
  # Sequences loaded in a step, on all devices of all hosts together.
  batch_size: AtLeast1 = 256
  threads: AtLeast1 = 8
  worker_processes: AtLeast0 = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
  """AdamW; see `optim.py`."""

  # Learning rates for 256 sequences a step.
  lr_per_256: NotNegative = 1e-3
  min_lr_per_256: NotNegative = 1e-5
  # Of each pair below one is 0.
  warmup_epochs: NotNegative = 20.0
  warmup_steps: AtLeast0 = 0
  total_epochs: NotNegative = 200.0
  total_steps: AtLeast0 = 0
  weight_decay: NotNegative = 0.05
  b1: Share = 0.9
  b2: Share = 0.95
  eps: NotNegative = 1e-8
  clip_norm: NotNegative = 0.0  # 0 switches clipping off
  # Evaluation and features use the average of parameters, decayed by this at
  # each step; 0 is none.
  ema_decay: Annotated[float, Range(0, 0.999999)] = 0.0
  # Parts of a batch computed one after another; saves memory.
  accumulate_steps: AtLeast1 = 1

  def __post_init__(self):
    for name in ("warmup", "total"):
      epochs, steps = (
        getattr(self, f"{name}_{u}") for u in ("epochs", "steps")
      )
      if epochs and steps:
        raise ValueError(
          f"config.optim.{name}_epochs = {epochs} and "
          f"config.optim.{name}_steps = {steps}: set one of them to 0"
        )
    if not self.total_epochs and not self.total_steps:
      raise ValueError(
        "config.optim.total_epochs = 0 and config.optim.total_steps = 0: set "
        "one of them"
      )
    if self.min_lr_per_256 > self.lr_per_256:
      raise ValueError(
        f"config.optim.min_lr_per_256 = {self.min_lr_per_256}: must not exceed "
        f"config.optim.lr_per_256 = {self.lr_per_256}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """How arrays are sharded; see `parallel.py`."""

  fsdp: AtLeast1 = 1
  # (regex of a parameter's path, axis of each dimension) pairs.
  sharding_rules: tuple[
    tuple[str, tuple[Literal[None, "data", "fsdp"], ...]], ...
  ] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """When checkpoints are written."""

  path: str = ""  # '' is <workdir>/checkpoints
  every_steps: AtLeast0 = 0  # 0 is never
  every_minutes: NotNegative = 10.0  # 0 is never
  keep: AtLeast1 = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wandb:
  """Scalars also go to this project of Weights & Biases; '' is nowhere."""

  project: str = ""
  entity: str = ""
  group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aot:
  """Compiling for TPUs that are not there; see `tpu/aot.py`."""

  topology: str = "v5e:2x4"
  records_per_chip: AtLeast0 = 0  # 0 leaves data.batch_size as it is
  find_largest: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
  """The job `embed`."""

  # Whether embeddings/*.npz also keep the tokens, many times the size.
  tokens: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The job `report`; `mask_ratios` are also those of `evaluate`."""

  prep: str = ""  # what data_prep wrote; '' is the folder of data.path
  out: str = ""  # '' is <workdir>/report
  # Folder `truth` of a synthetic cohort: features are compared on its tissue
  # types. '' where none are known.
  truth: str = ""
  clusters: Annotated[int, Range(2)] = 16
  queries: AtLeast1 = 4
  mask_ratios: Annotated[tuple[float, ...], Range(0, 0.99), FILLED] = (
    0.5,
    0.75,
    0.9,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """What all pretraining tasks share; a task adds `model` and its own keys."""

  # Keys of older checkpoints that exist no longer: the value that is left.
  RETIRED: ClassVar[Mapping[str, Any]] = {}

  job: str = "train"
  task: str
  workdir: Annotated[str, FILLED] = ""
  seed: AtLeast0 = 0
  data: Data
  optim: Optim
  mesh: Mesh
  checkpoint: Checkpoint
  wandb: Wandb
  log_every_steps: AtLeast1 = 50
  eval_every_steps: AtLeast0 = 0  # 0 is never
  aot: Aot
  embed: Embed
  report: Report


def complete(
  kind: type[Experiment], saved: Mapping[str, Any], given: Any = None
) -> ConfigDict:
  """The config of a checkpoint, as today's code reads it.

  Args:
    kind: the schema of its task.
    saved: the config in the checkpoint's `meta`.
    given: the config of this run, whose `RUNTIME` keys replace those saved.

  Returns:
    The locked config. Keys younger than the checkpoint have their defaults.

  Raises:
    ValueError: a key or value that today's code does not know.
  """
  flat, problems = flatten(saved), []
  for key, left in kind.RETIRED.items():
    if flat.pop(key, left) != left:
      problems.append(
        f"config.{key} = {flatten(saved)[key]!r}: is no longer an option, it "
        f"is always {left!r} now; use the code that made the checkpoint"
      )
  if problems:
    raise ValueError("\n".join(problems))
  flat |= {k: v for k, v in flatten(given or {}).items() if _is_in(k, RUNTIME)}
  nested = {}
  for key, value in flat.items():
    *parents, name = key.split(".")
    block = nested
    for parent in parents:
      block = block.setdefault(parent, {})
    block[name] = value
  return from_dict(dataclasses.asdict(schema.build(kind, nested)))


def _is_in(key: str, keys: tuple[str, ...]) -> bool:
  return any(key == k or key.startswith(k + ".") for k in keys)


def flatten(
  config: Mapping[str, Any] | ConfigDict, prefix: str = ""
) -> dict[str, Any]:
  """A nested config as {dotted key: value}.

  Example:
    >>> flatten({"seed": 1, "mesh": {"fsdp": 2}})
    {'seed': 1, 'mesh.fsdp': 2}
  """
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[prefix + key] = value
  return flat


def validate(config: ConfigDict, kind: type[Experiment]) -> Experiment:
  """Checks every key and value, and the rules between them; see `schema.build`.

  Raises:
    ValueError: all that is wrong, one line a key.
  """
  return schema.build(kind, config)


def duration_steps(
  config: ConfigDict, name: str, records: int, batch_size: int
) -> int:
  """A duration in steps, whichever way the config gives it.

  An epoch is as many steps as it takes to load every record once on average:
  records / batch_size, a fraction; only the end result is rounded.
  """
  if config[f"{name}_steps"]:
    return config[f"{name}_steps"]
  return round(config[f"{name}_epochs"] * records / batch_size)


def to_json(config: ConfigDict) -> str:
  """The config as JSON text; tuples become lists."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"


def to_dict(config: ConfigDict) -> dict[str, Any]:
  """The config as plain dictionaries and lists, as JSON gives them back."""
  return json.loads(json.dumps(config.to_dict()))


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
  """A locked config from what JSON gave back; lists become tuples again.

  Example:
    >>> from_dict({"data": {"image_px": [64, 64]}}).data.image_px
    (64, 64)
  """

  def restore(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {k: restore(v) for k, v in value.items()}
    if isinstance(value, list):
      return tuple(restore(v) for v in value)
    return value

  return ConfigDict(restore(values)).lock()


def differences(
  kind: type[Experiment], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
  """Keys in which two configs differ in substance: (key, old, new).

  Keys in `HARMLESS`, and keys below one of them, are left out. A key that a
  config lacks has its default.
  """
  old, new = (flatten(to_dict(complete(kind, c))) for c in (old, new))
  return [
    (key, old[key], new[key])
    for key in old
    if old[key] != new[key] and not _is_in(key, HARMLESS)
  ]
