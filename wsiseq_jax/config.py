"""Experiment configs: checks with readable messages, JSON, durations.

A config is a locked `ConfigDict` built by a file in `configs/`. Locking makes
`--config.modle.size=base` an error at the command line; `validate` says the
same of a key written into a config file, and checks every value before any
data is opened or program compiled.

A key is a dotted path, `optim.lr_per_256`. Each has one `Check`, a function
that returns None for a good value and otherwise says what is wanted. The
checks common to all tasks are below in `COMMON`; those of a task (its model,
its masks) live beside the task, in `tasks/*.py`. A key without a check cannot
exist, so neither can an option that no code reads.

Units are part of names: `_px`, `_steps`, `_epochs`, `_minutes`, `_deg`.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from wsiseq_jax import jobs

Check = Callable[[Any], str | None]

# Keys that may differ between a checkpoint and the run that resumes it: where
# things lie and how fast they go, not what is computed. `mesh` and `remat`
# change the order of floating-point sums, no more. `data.path` may differ
# because shards are compared by fingerprint.
HARMLESS = (
  "job",
  "workdir",
  "data.path",
  "data.threads",
  "data.worker_processes",
  "mesh",
  "model.remat",
  "checkpoint",
  "wandb",
  "log_every_steps",
  "eval_every_steps",
  "data.eval_split",
  "aot",
  "embed",
  "report",
)


# Keys that older checkpoints lack, and what they did.
_NEWER = {"ema_decay": 0.0, "accumulate_steps": 1}


def with_newer_keys(saved: Mapping[str, Any]) -> dict[str, Any]:
  """The config of a checkpoint, with keys that did not exist then."""
  return {**saved, "optim": {**_NEWER, **saved["optim"]}}


def text() -> Check:
  """Any string, the empty one included."""
  return lambda v: None if isinstance(v, str) else "a string"


def one_of(*allowed: Any) -> Check:
  """One of the values listed.

  Example:
    >>> one_of("none", "full")("half")
    "one of 'none', 'full'"
  """
  wanted = "one of " + ", ".join(repr(a) for a in allowed)
  return lambda v: None if v in allowed else wanted


def flag() -> Check:
  """True or False."""
  return lambda v: None if isinstance(v, bool) else "True or False"


def integer(minimum: int) -> Check:
  """A whole number from `minimum` upwards."""
  return lambda v: (
    None
    if isinstance(v, int) and not isinstance(v, bool) and v >= minimum
    else f"a whole number, {minimum} or more"
  )


def number(minimum: float | int, maximum: float | int = math.inf) -> Check:
  """A finite number in [minimum, maximum].

  Example:
    >>> number(0, 1)(1.5)
    'a number from 0 to 1'
  """
  top = "" if math.isinf(maximum) else f" to {maximum:g}"
  wanted = f"a number from {minimum:g}{top}" + ("" if top else " upwards")

  def check(value: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and minimum <= value <= maximum:
      return None
    return wanted

  return check


def numbers(
  minimum: float | int,
  maximum: float | int = math.inf,
  length: int | None = None,
) -> Check:
  """A tuple of numbers in [minimum, maximum], of `length` if that is given."""
  item = number(minimum, maximum)
  count = "" if length is None else f"{length} "

  def check(value: Any) -> str | None:
    is_good = isinstance(value, tuple | list) and len(value) > 0
    if is_good and length is not None:
      is_good = len(value) == length
    if is_good and all(item(v) is None for v in value):
      return None
    return f"a tuple of {count}numbers, each {item('')}"

  return check


def integers(minimum: int, length: int) -> Check:
  """A tuple of `length` whole numbers, each at least `minimum`."""
  item = integer(minimum)

  def check(value: Any) -> str | None:
    is_good = isinstance(value, tuple | list) and len(value) == length
    if is_good and all(item(v) is None for v in value):
      return None
    return f"a tuple of {length} whole numbers, each {minimum} or more"

  return check


def seeds() -> Check:
  """A tuple of different whole numbers, at least one."""
  item = integer(0)

  def check(value: Any) -> str | None:
    is_good = isinstance(value, tuple | list) and len(value) > 0
    if is_good and all(item(v) is None for v in value):
      if len(set(value)) == len(value):
        return None
    return "a tuple of different whole numbers"

  return check


def _rules(value: Any) -> str | None:
  is_good = isinstance(value, tuple | list) and all(
    isinstance(rule, tuple | list)
    and len(rule) == 2
    and isinstance(rule[0], str)
    and isinstance(rule[1], tuple | list)
    and all(axis in (None, "data", "fsdp") for axis in rule[1])
    for rule in value
  )
  if is_good:
    return None
  return "a tuple of (regex, (axis, ...)) with axes None, 'data' or 'fsdp'"


COMMON: Mapping[str, Check] = {
  "job": one_of(*(job for job in jobs.JOBS if job not in jobs.OWN_CONFIGS)),
  "task": text(),
  "workdir": text(),
  "seed": integer(0),
  "data.path": text(),
  "data.train_split": text(),
  "data.eval_split": text(),
  "data.batch_size": integer(1),
  "data.threads": integer(1),
  "data.worker_processes": integer(0),
  "optim.lr_per_256": number(0),
  "optim.min_lr_per_256": number(0),
  "optim.warmup_epochs": number(0),
  "optim.warmup_steps": integer(0),
  "optim.total_epochs": number(0),
  "optim.total_steps": integer(0),
  "optim.weight_decay": number(0),
  "optim.b1": number(0, 1),
  "optim.b2": number(0, 1),
  "optim.eps": number(0),
  "optim.clip_norm": number(0),
  "optim.ema_decay": number(0, 0.999999),
  "optim.accumulate_steps": integer(1),
  "mesh.fsdp": integer(1),
  "mesh.sharding_rules": _rules,
  "checkpoint.path": text(),
  "checkpoint.every_steps": integer(0),
  "checkpoint.every_minutes": number(0),
  "checkpoint.keep": integer(1),
  "wandb.project": text(),
  "wandb.entity": text(),
  "wandb.group": text(),
  "log_every_steps": integer(1),
  "eval_every_steps": integer(0),
  "aot.topology": text(),
  "aot.records_per_chip": integer(0),
  "aot.find_largest": flag(),
  "embed.tokens": flag(),
  "report.prep": text(),
  "report.out": text(),
  "report.clusters": integer(2),
  "report.queries": integer(1),
  "report.mask_ratios": numbers(0.0, 0.99),
}


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


def validate(config: ConfigDict, task_checks: Mapping[str, Check]) -> None:
  """Checks every key and value, and the rules between them.

  Args:
    config: the experiment.
    task_checks: the task's own keys, beside `COMMON`.

  Raises:
    ValueError: all that is wrong, one line a key: the value, what is wanted,
      and for an unknown key the nearest known ones.
  """
  check_keys(config, {**COMMON, **task_checks})
  _report(_cross_checks(config))


def check_keys(config: ConfigDict, checks: Mapping[str, Check]) -> None:
  """Checks that exactly these keys are there, each with a good value.

  Args:
    config: the experiment.
    checks: the check of every key.

  Raises:
    ValueError: as `validate`.
  """
  flat = flatten(config)
  problems = []
  for key, value in flat.items():
    if key not in checks:
      near = difflib.get_close_matches(key, checks, n=3)
      hint = f"; did you mean {' or '.join(near)}?" if near else ""
      problems.append(f"config.{key}: unknown key{hint}")
    elif (wanted := checks[key](value)) is not None:
      problems.append(f"config.{key} = {value!r}: must be {wanted}")
  problems += [f"config.{key}: missing" for key in checks if key not in flat]
  _report(problems)


def _report(problems: list[str]) -> None:
  if problems:
    raise ValueError("bad config:\n  " + "\n  ".join(problems))


def _cross_checks(config: ConfigDict) -> list[str]:
  problems = []
  optim = config.optim
  for name in ("warmup", "total"):
    epochs, steps = optim[f"{name}_epochs"], optim[f"{name}_steps"]
    if epochs and steps:
      problems.append(
        f"config.optim.{name}_epochs = {epochs} and config.optim.{name}_steps "
        f"= {steps}: set one of them to 0"
      )
  if not optim.total_epochs and not optim.total_steps:
    problems.append(
      "config.optim.total_epochs and config.optim.total_steps are both 0: "
      "how long shall it train?"
    )
  if optim.min_lr_per_256 > optim.lr_per_256:
    problems.append(
      f"config.optim.min_lr_per_256 = {optim.min_lr_per_256}: must not exceed "
      f"config.optim.lr_per_256 = {optim.lr_per_256}"
    )
  if not config.workdir:
    problems.append("config.workdir = '': name a folder for the results")
  return problems


def duration_steps(
  config: ConfigDict, name: str, records: int, batch_size: int
) -> int:
  """A duration in steps, whichever way the config gives it.

  An epoch is as many steps as it takes to load every record once on average:
  records / batch_size, a fraction; only the end result is rounded.

  Args:
    config: the block with `<name>_steps` and `<name>_epochs`, one of them 0.
    name: `warmup` or `total`.
    records: records in the training split.
    batch_size: records loaded in a step.

  Returns:
    Steps.

  Example:
    >>> block = ConfigDict({"total_steps": 0, "total_epochs": 10})
    >>> duration_steps(block, "total", records=50, batch_size=4)
    125
  """
  if config[f"{name}_steps"]:
    return config[f"{name}_steps"]
  return round(config[f"{name}_epochs"] * records / batch_size)


def to_json(config: ConfigDict) -> str:
  """The config as JSON text; tuples become lists."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"


def to_dict(config: ConfigDict) -> dict[str, Any]:
  """The config as plain dictionaries and lists, as JSON gives them back.

  Example:
    >>> to_dict(ConfigDict({"data": {"image_px": (64, 64)}}))
    {'data': {'image_px': [64, 64]}}
  """
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
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
  """Keys in which two configs (as `to_dict` gives them) differ in substance.

  Keys in `HARMLESS`, and keys below one of them, are left out.

  Returns:
    (key, old value, new value), None standing for a missing key.

  Example:
    >>> differences({"seed": 0, "mesh": {"fsdp": 1}},
    ...             {"seed": 1, "mesh": {"fsdp": 8}})
    [('seed', 0, 1)]
  """
  old, new = flatten(old), flatten(new)

  def is_harmless(key: str) -> bool:
    return any(key == h or key.startswith(h + ".") for h in HARMLESS)

  return [
    (key, old.get(key), new.get(key))
    for key in sorted({*old, *new})
    if old.get(key) != new.get(key) and not is_harmless(key)
  ]
