"""Which runs a sweep has, from its config alone; nothing is started here.

A run's folder is named after the settings that vary and a hash of all that are
set. So a sweep that is extended finds the runs it has, and a changed setting
never meets the checkpoint of another.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import runpy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_prep.files.schema import did_you_mean
from wsiseq_jax import config as configs
from wsiseq_jax import tasks
from wsiseq_jax.probe import settings as probe_config

EXPERIMENT = "experiment"  # a key of the grid that is none of the config's
HOW = ("uniform", "log", "int")


def _pairs(value: Any) -> str | None:
  is_good = isinstance(value, tuple | list) and all(
    isinstance(pair, tuple | list)
    and len(pair) == 2
    and isinstance(pair[0], str)
    for pair in value
  )
  return None if is_good else "a tuple of (key, value)"


def _grid(value: Any) -> str | None:
  is_good = _pairs(value) is None and all(
    isinstance(values, tuple | list) and len(values) > 0 for _, values in value
  )
  return None if is_good else "a tuple of (key, (value, ...))"


def _random(value: Any) -> str | None:
  is_good = isinstance(value, tuple | list) and all(
    isinstance(entry, tuple | list)
    and len(entry) == 4
    and isinstance(entry[0], str)
    and entry[1] in HOW
    and all(configs.number(-math.inf)(end) is None for end in entry[2:])
    and entry[2] < entry[3]
    and (entry[1] != "log" or entry[2] > 0)
    for entry in value
  )
  if is_good:
    return None
  return (
    "a tuple of (key, 'uniform', 'log' or 'int', low, high) with low < high, "
    "both above 0 for 'log'"
  )


CHECKS: Mapping[str, configs.Check] = {
  "out": configs.text(),
  "experiment": configs.text(),
  "fixed": _pairs,
  "grid": _grid,
  "random": _random,
  "draws": configs.integer(0),
  "draw_seed": configs.integer(0),
  "probe": configs.text(),
  "probe_fixed": _pairs,
  "metric": configs.text(),
  "goal": configs.one_of("min", "max"),
  "at_once": configs.integer(1),
  "gpus_each": configs.integer(0),
  "table_only": configs.flag(),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep.

  Attributes:
    experiment: what follows `--config=`.
    varied: the settings that differ between runs, in the order of the config.
    fixed: the others that are set.
  """

  experiment: str
  varied: Mapping[str, Any]
  fixed: Mapping[str, Any]

  @property
  def settings(self) -> dict[str, Any]:
    """All that is set in the experiment's config."""
    both = {**self.fixed, **self.varied}
    return {key: value for key, value in both.items() if key != EXPERIMENT}

  @property
  def name(self) -> str:
    """Name of its folder.

    Example:
      >>> Run("configs/videomae.py", {"optim.lr_per_256": 0.1}, {}).name
      'lr_per_256=0.1-7e2ff47b'
    """
    parts = [
      f"{key.rpartition('.')[2]}={text_of(value).rpartition('/')[2]}"
      for key, value in self.varied.items()
    ]
    safe = "".join(
      c if c.isalnum() or c in "=._-" else "_" for c in "-".join(parts)
    )
    everything = json.dumps([self.experiment, self.settings], sort_keys=True)
    digest = hashlib.sha256(everything.encode()).hexdigest()[:8]
    return "-".join(filter(None, (safe[:90], digest)))

  def arguments(self) -> list[str]:
    """What main.py is told."""
    return [f"--config={self.experiment}", *flags_of(self.settings.items())]


def text_of(value: Any) -> str:
  """A value as the command line takes it.

  Example:
    >>> text_of(1e-4), text_of((1, 2)), text_of("a/b"), text_of(True)
    ('0.0001', '(1, 2)', 'a/b', 'True')
  """
  return value if isinstance(value, str) else repr(value)


def flags_of(pairs: Iterable[tuple[str, Any]]) -> list[str]:
  """(key, value) pairs as flags of main.py.

  Example:
    >>> flags_of([("seed", 3)])
    ['--config.seed=3']
  """
  return [f"--config.{key}={text_of(value)}" for key, value in pairs]


def plan(config: ConfigDict) -> list[Run]:
  """All runs of a sweep, checked.

  Args:
    config: see `configs/sweep.py`.

  Raises:
    ValueError: the sweep's config is wrong, or one of the runs'.
  """
  configs.check_keys(config, CHECKS)
  if not config.out:
    raise ValueError("config.out = '': name a folder for the sweep")
  if bool(config.random) != bool(config.draws):
    raise ValueError(
      f"config.draws = {config.draws}, config.random = {config.random}: how "
      "many draws of what? Set both, or none"
    )
  keys = [entry[0] for entry in (*config.fixed, *config.grid, *config.random)]
  twice = sorted({key for key in keys if keys.count(key) > 1})
  if twice:
    raise ValueError(f"config.fixed, grid and random: {twice} are set twice")
  runs = []
  names = [key for key, _ in config.grid]
  for values in itertools.product(*(values for _, values in config.grid)):
    point = dict(zip(names, values, strict=True))
    experiment = point.get(EXPERIMENT, config.experiment)
    for drawn in draw(config.random, config.draws, config.draw_seed):
      runs.append(Run(experiment, {**point, **drawn}, dict(config.fixed)))
  for run in runs:
    _check(run)
  if config.probe:
    probed = set_values(load(config.probe), config.probe_fixed, "probe_fixed")
    probed.workdir, probed.data.path = "w", probed.data.path or "d"
    probe_config.validate(probed)
  return runs


def draw(
  entries: Sequence[Sequence[Any]], draws: int, seed: int
) -> list[dict[str, Any]]:
  """Random values of settings; a single empty draw if there are none.

  Args:
    entries: (key, how, low, high); 'log' is uniform in the logarithm, 'int'
      uniform over the whole numbers from low to high.
    draws: how many.
    seed: of the draws. The first ones stay when there are more.

  Example:
    >>> few = draw((("seed", "int", 1, 9),), 2, seed=0)
    >>> few == draw((("seed", "int", 1, 9),), 3, seed=0)[:2]
    True
  """
  if not entries:
    return [{}]
  found = []
  for number in range(draws):
    drawn = {}
    for place, (key, how, low, high) in enumerate(entries):
      rng = np.random.default_rng([seed, number, place])
      if how == "int":
        drawn[key] = int(rng.integers(low, high, endpoint=True))
      elif how == "log":
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        drawn[key] = float(f"{value:.4g}")  # readable in names and tables
      else:
        drawn[key] = float(f"{rng.uniform(low, high):.4g}")
    found.append(drawn)
  return found


def load(experiment: str) -> ConfigDict:
  """The config of `path/to/file.py:preset`.

  Raises:
    ValueError: there is no such file, or no such preset.
  """
  path, _, preset = experiment.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(f"config.experiment = {experiment!r}: there is no {path}")
  return runpy.run_path(path)["get_config"](preset)


def set_values(
  config: ConfigDict, pairs: Iterable[tuple[str, Any]], where: str
) -> ConfigDict:
  """Sets values of a config in place.

  Raises:
    ValueError: an unknown key, or a value of another type.
  """
  known = configs.flatten(config)
  for key, value in pairs:
    if key not in known:
      hint = did_you_mean(key, known)
      raise ValueError(f"config.{where}: unknown key {key!r}{hint}")
    *parents, name = key.split(".")
    block = config
    for parent in parents:
      block = block[parent]
    try:
      block[name] = value
    except TypeError as error:
      raise ValueError(f"config.{where}: {key} = {value!r}: {error}") from error
  return config


def _check(run: Run) -> None:
  config = load(run.experiment)
  set_values(config, run.settings.items(), "grid")
  config.workdir = "w"
  if not config.data.path:
    raise ValueError(
      f"{run.experiment}: data.path is not set; --config.fixed="
      "\"(('data.path', 'DATA'),)\" sets it for all runs"
    )
  try:
    configs.validate(config, tasks.get(config.task).CHECKS)
  except ValueError as error:
    raise ValueError(f"{run.experiment}, {run.name}: {error}") from error
