"""Many experiments: `python -m wsiseq_jax.sweep --config=configs/sweep.py`.

Every run is the command that one would type, `main.py` in a process and a
workdir of its own, one after the other. The workdir is named after the settings
that vary and a hash of all that are set. So the same command resumes a sweep or
extends it, and a changed setting never meets the checkpoint of another.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pandas as pd
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from data_prep import runs as runs_
from data_prep.files import atomic, done, schema
from wsiseq_jax import charts, checkpoint, tasks, writers
from wsiseq_jax import config as configs
from wsiseq_jax.probe import settings as probe_settings

_MAIN = pathlib.Path(__file__).resolve().parents[1] / "main.py"
_STOPPED_CODE = 75  # of `launch.Stopped`
DONE, FAILED, STOPPED, WAITING = "done", "failed", "stopped", "waiting"

Pairs = tuple[tuple[str, Any], ...]
Values = Annotated[tuple[Any, ...], schema.FILLED]
How = Literal["uniform", "log", "int"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Keys of `configs/sweep.py`, which says what they mean."""

  out: Annotated[str, schema.FILLED]
  experiment: str = "configs/videomae.py:demo"
  fixed: Pairs = ()
  grid: tuple[tuple[str, Values], ...] = ()
  random: tuple[tuple[str, How, float, float], ...] = ()
  draws: Annotated[int, schema.Range(0)] = 0
  draw_seed: Annotated[int, schema.Range(0)] = 0
  probe: str = ""
  probe_fixed: Pairs = ()
  metric: str = "val/loss"
  goal: Literal["min", "max"] = "min"
  table_only: bool = False

  def __post_init__(self):
    for entry in self.random:
      if entry[2] >= entry[3] or (entry[1] == "log" and entry[2] <= 0):
        raise ValueError(
          f"config.random = {entry}: must be (key, how, low, high) with low < "
          "high, both above 0 for 'log'"
        )
    if bool(self.random) != bool(self.draws):
      raise ValueError(
        f"config.draws = {self.draws}, config.random = {self.random}: set both "
        "or none"
      )
    keys = [key for key, _ in self.fixed] + self.varied
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
      raise ValueError(f"config.fixed, grid and random: {twice} are set twice")

  @property
  def varied(self) -> list[str]:
    """Keys that differ between runs."""
    return [entry[0] for entry in (*self.grid, *self.random)]


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """What follows `--config=`, what varies, all that is set, and the workdir."""

  experiment: str
  varied: Mapping[str, Any]
  settings: Mapping[str, Any]
  folder: pathlib.Path
  stages: list[list[str]]  # arguments of main.py

  @property
  def marks(self) -> list[done.Done]:
    """The mark of each stage."""
    folder = self.folder / "stages"
    return [
      done.Done(folder / f"{number}.json", stage)
      for number, stage in enumerate(self.stages)
    ]

  @property
  def outcome(self) -> pathlib.Path:
    """How the last attempt ended; not there after one that got through."""
    return self.folder / "outcome.json"

  def state(self) -> dict[str, str]:
    """`state` and, if it failed, `error`."""
    if all(mark.read() is not None for mark in self.marks):
      return {"state": DONE, "error": ""}
    if self.outcome.exists():
      return json.loads(self.outcome.read_text())
    return {"state": WAITING, "error": ""}

  def is_trained(self) -> bool:
    """Whether the newest checkpoint is that of the last step."""
    path = self.folder / "checkpoints"
    if not path.is_dir():
      return False
    with checkpoint.Checkpoints(path, read_only=True) as found:
      return found.latest and found.latest == found.meta()["total_steps"]


def plan(config: Settings) -> list[SweepRun]:
  """All runs of a sweep, checked."""
  names = [key for key, _ in config.grid]
  points = itertools.product(*(values for _, values in config.grid))
  drawn = draw(config.random, config.draws, config.draw_seed)
  runs = []
  for values, more in itertools.product(points, drawn):
    varied = {**dict(zip(names, values, strict=True)), **more}
    runs.append(_run(config, varied))
  if config.probe:
    probe = _load(config.probe, dict(config.probe_fixed), "probe_fixed")
    probe.workdir, probe.data.path = "w", probe.data.path or "d"
    probe_settings.validate(probe)
  return runs


def _run(config: Settings, varied: Mapping[str, Any]) -> SweepRun:
  settings = {**dict(config.fixed), **varied}
  experiment = settings.pop("experiment", config.experiment)
  folder = (
    pathlib.Path(config.out) / "runs" / _name(experiment, varied, settings)
  )
  settings["workdir"] = str(folder)
  told = _load(experiment, settings, "grid")
  if not told.data.path:
    raise ValueError(
      f"{experiment}: data.path is not set; --config.fixed="
      "\"(('data.path', 'DATA'),)\" sets it for all runs"
    )
  try:
    configs.validate(told, tasks.get(told.task).Config)
  except ValueError as error:
    raise ValueError(f"{experiment}, {dict(varied)}: {error}") from error
  stages = [_flags(experiment, settings)]
  if config.probe:
    # The data of training, unless the probe's settings say otherwise.
    own = str(folder / "data")
    data = own if told.data.path == "synthetic" else told.data.path
    pairs = {"data.path": data} | dict(config.probe_fixed)
    pairs |= {"checkpoint.path": str(folder), "workdir": str(folder / "probe")}
    stages.append(_flags(config.probe, pairs))
  return SweepRun(experiment, varied, settings, folder, stages)


def _name(experiment: str, varied: Mapping, settings: Mapping) -> str:
  parts = [
    f"{key.rpartition('.')[2]}={str(value).rpartition('/')[2]}"
    for key, value in varied.items()
  ]
  safe = re.sub(r"[^\w=.-]", "_", "-".join(parts))[:90]
  return "-".join(filter(None, (safe, done.digest([experiment, settings])[:8])))


def _flags(config: str, pairs: Mapping[str, Any]) -> list[str]:
  return [
    f"--config={config}",
    *(f"--config.{k}={v}" for k, v in pairs.items()),
  ]


def _load(experiment: str, values: Mapping[str, Any], where: str) -> ConfigDict:
  """The config of `path/to/file.py:preset`, with values set."""
  path, _, preset = experiment.partition(":")
  if not pathlib.Path(path).is_file():
    raise ValueError(f"config.experiment = {experiment!r}: there is no {path}")
  config = runpy.run_path(path)["get_config"](preset)
  try:
    config.update_from_flattened_dict(values)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"config.{where} = {dict(values)}: {error}") from error
  return config


def draw(
  entries: Sequence[Sequence[Any]], draws: int, seed: int
) -> list[dict[str, Any]]:
  """Random values of settings; the first ones stay when there are more."""
  found = [{} for _ in range(draws if entries else 1)]
  for number, place in itertools.product(range(draws), range(len(entries))):
    key, how, low, high = entries[place]
    rng = np.random.default_rng([seed, number, place])
    if how == "int":
      value = int(rng.integers(int(low), int(high), endpoint=True))
    elif how == "log":
      value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
      value = rng.uniform(low, high)
    # Readable in names and tables.
    found[number][key] = value if how == "int" else float(f"{value:.4g}")
  return found


def execute(runs: Sequence[SweepRun], main: pathlib.Path = _MAIN) -> None:
  """Calls what is not done of runs, one after the other."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  for number, run in enumerate(runs):
    run.folder.mkdir(parents=True, exist_ok=True)
    state = {"state": STOPPED, "error": ""}
    atomic.write_atomic(run.outcome, json.dumps(state) + "\n")
    for stage, mark in zip(run.stages, run.marks, strict=True):
      if mark.read() is not None:
        continue
      code = _call([str(main), *stage], run.folder / "log.txt")
      if code not in (0, _STOPPED_CODE):
        said = (run.folder / "log.txt").read_text().split("\n")[-2][:200]
        state = {"state": FAILED, "error": f"exit code {code}: {said}"}
        atomic.write_atomic(run.outcome, json.dumps(state, indent=2) + "\n")
      if code or not run.is_trained():
        break
      mark.write()
    else:
      run.outcome.unlink()
      state["state"] = DONE
    words = f"[{number + 1}/{len(runs)}] {run.folder.name}: {state['state']}"
    print(words, state["error"], file=sys.stderr, flush=True)


def _call(arguments: Sequence[str], log: pathlib.Path) -> int:
  """Exit code of a program, which is told to stop when this process is."""
  with log.open("a") as file:
    print("$", *arguments, file=file, flush=True)
    # The terminal's Ctrl-C reaches the sweep alone, which passes it on.
    process = subprocess.Popen(
      [sys.executable, *arguments],
      stdout=file,
      stderr=file,
      start_new_session=True,
    )
    try:
      return process.wait()
    except KeyboardInterrupt:
      process.terminate()
      process.wait()
      raise


def collect(runs: Sequence[SweepRun]) -> pd.DataFrame:
  """A row a run, from what lies on disk."""
  rows = []
  for run in runs:
    state = run.state()
    row = {"run": run.folder.name, "experiment": run.experiment}
    for key, value in run.varied.items():
      row[key] = value if isinstance(value, int | float) else str(value)
    row |= {"state": state["state"], "error": state["error"]}
    for line in writers.read_metrics(run.folder / "metrics.jsonl"):
      row |= line
    path = run.folder / "probe" / "probe_summary.csv"
    if path.exists():
      names = ["target", "probe", "fraction", "metric"]
      means = pd.read_csv(path, dtype=dict.fromkeys(names, str))
      means = means.dropna(subset="mean").set_index(names)["mean"]
      row |= {"/".join(key): value for key, value in means.items()}
    rows.append(row)
  return pd.DataFrame(rows)


def summarise(table: pd.DataFrame, config: Settings) -> pd.DataFrame:
  """Mean and std (NaN for one) of the metric over seeds, best first."""
  if config.metric not in table:
    raise ValueError(
      f"config.metric = {config.metric!r}: no run has it; there are "
      f"{[name for name in table if '/' in name]}"
    )
  keys = dict.fromkeys(["experiment", *config.varied])
  keys.pop("seed", None)
  groups = table.groupby(list(keys), sort=False)[config.metric]
  found = groups.agg(["mean", "std", "count"]).reset_index()
  return found.sort_values("mean", ascending=config.goal == "min")


def plot(path: pathlib.Path, table: pd.DataFrame, config: Settings) -> None:
  """Draws the metric over each setting: points for runs, a line for means."""
  names = [name for name in config.varied if name != "seed"] or ["experiment"]
  figure, panels = charts.grid(len(names), size=(5.0, 4.0))
  for axes, name in zip(panels, names, strict=True):
    means = table.groupby(name)[config.metric].mean()
    axes.plot(table[name], table[config.metric], "o", alpha=0.5)
    axes.plot(means.index, means, "_-")
    axes.set(xlabel=name, ylabel=config.metric)
    is_number = pd.api.types.is_numeric_dtype(table[name])
    axes.tick_params(axis="x", rotation=0 if is_number else 30)
    if is_number and table[name].min() > 0:
      axes.set_xscale("log")
  charts.to_png(figure, path)


def sweep(config: ConfigDict, main: pathlib.Path = _MAIN) -> int:
  """Runs what is not done, writes the tables."""
  settings = schema.build(Settings, config)
  runs, out = plan(settings), pathlib.Path(settings.out)
  # Each task of a Slurm array takes its share.
  is_array = "SLURM_ARRAY_TASK_ID" in os.environ
  number, parts = runs_.share("slurm" if is_array else "1/1")
  mine = slice(number - 1, None, parts)
  try:
    if not settings.table_only:
      execute(runs[mine], main)
  except KeyboardInterrupt:
    print("stopped; the same command goes on", file=sys.stderr, flush=True)
  table = collect(runs)
  out.mkdir(parents=True, exist_ok=True)
  atomic.write_atomic(out / "sweep.csv", table.to_csv(index=False))
  if (table["state"] == DONE).any():
    summary = summarise(table, settings)
    text = summary.to_csv(index=False)
    atomic.write_atomic(out / "sweep_summary.csv", text)
    plot(out / "sweep.png", table, settings)
    print(summary.to_string(index=False))
  states = set(table["state"][mine])
  return 1 if FAILED in states else 0 if states == {DONE} else 3


def main(_: list[str]) -> None:
  """Reads the config, and exits with the sweep's code."""
  # The sweep computes nothing: devices are its runs'.
  jax.config.update("jax_platforms", "cpu")
  logging.set_verbosity(logging.WARNING)
  try:
    sys.exit(sweep(flags.FLAGS.config))
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  # Not when imported: main.py has a flag of this name.
  config_flags.DEFINE_config_file("config", lock_config=True)
  flags.mark_flag_as_required("config")
  app.run(main)
