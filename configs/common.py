"""Blocks that all experiments share, and how a config reads its argument.

`--config=configs/videomae.py:small` calls `get_config("small")`. Every value
may then be overridden on the command line: `--config.optim.lr_per_256=6e-4`.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from data_prep.files.schema import did_you_mean


def choose(arg: str, presets: Sequence[str]) -> str:
  """The preset named after the colon; '' means the first one.

  Raises:
    ValueError: There is no such preset.

  Example:
    >>> choose("", ["base", "smoke"])
    'base'
  """
  if not arg:
    return presets[0]
  if arg not in presets:
    hint = did_you_mean(arg, presets)
    raise ValueError(f"preset {arg!r}: must be one of {list(presets)}{hint}")
  return arg


def defaults(schema: type, **given: Any) -> ConfigDict:
  """Every key of a dataclass, unlocked: what is given, else its default.

  A key without a default, which the user must set, is ''.
  """
  hints, values = typing.get_type_hints(schema), {}
  for field in dataclasses.fields(schema):
    if field.name in given:
      value = given[field.name]
    elif field.default is not dataclasses.MISSING:
      value = field.default
    elif field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    else:
      is_block = dataclasses.is_dataclass(hints[field.name])
      value = defaults(hints[field.name]) if is_block else ""
    is_block = dataclasses.is_dataclass(value)
    values[field.name] = dataclasses.asdict(value) if is_block else value
  return ConfigDict(values)


def base_config(task: str) -> ConfigDict:
  """The defaults of a task; see its `Config` for keys and meaning."""
  # Imported here: preparation needs no JAX.
  from wsiseq_jax import tasks

  return defaults(tasks.get(task).Config, task=task)
