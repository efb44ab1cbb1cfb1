"""Blocks that all experiments share, and how a config reads its argument.

`--config=configs/videomae.py:small` calls `get_config("small")`. Every value
may then be overridden on the command line: `--config.optim.lr_per_256=6e-4`.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from data_prep.files.schema import did_you_mean


def choose(arg: str, presets: Sequence[str]) -> str:
  """The preset named after the colon.

  Args:
    arg: What stood after the colon; '' means the first preset.
    presets: Their names.

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


def base_config(task: str) -> ConfigDict:
  """The defaults of a task, unlocked; see its `Config` for keys and meaning."""
  # Imported here: configs of other jobs need no JAX.
  from wsiseq_jax import config, tasks

  return config.defaults(tasks.get(task).Config, task)
