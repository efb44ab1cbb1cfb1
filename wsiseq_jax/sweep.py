"""Many experiments: `python -m wsiseq_jax.sweep --config=configs/sweep.py`.

Every run is the command that one would type, `main.py` in a process of its own
and a workdir of its own; this file starts them, and knows nothing of training.
What there is to be known lies on disk:

- a run is done when its newest checkpoint is of its last step, and its probe
  has ended well; `run.json` then says so;
- a run is under way as long as somebody holds the lock on its folder. Its
  processes inherit the lock, so it outlives a sweep that was killed, and ends
  with the last of them, however that ends.

Hence the same command resumes a sweep, extends it, or helps another machine
with it.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from data_prep.files import atomic
from wsiseq_jax import checkpoint, sweep_plan, sweep_tables, writers
from wsiseq_jax.sweep_plan import Run

_MAIN = pathlib.Path(__file__).resolve().parents[1] / "main.py"

DONE, FAILED, STOPPED, ELSEWHERE, WAITING = (
  "done", "failed", "stopped", "under way", "waiting",
)  # fmt: skip


def share(environ: Mapping[str, str]) -> tuple[int, int]:
  """Which part of the runs is this process's, under Slurm.

  Returns:
    (number, count): every run whose place is number modulo count.

  Example:
    >>> share({})
    (0, 1)
    >>> share({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1",
    ...        "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2"})
    (3, 4)
    >>> share({"SLURM_PROCID": "2", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"})
    (2, 8)
  """

  def number(name, default):
    return int(environ.get(f"SLURM_{name}", default))

  place, count = 0, 1
  if "SLURM_ARRAY_TASK_ID" in environ:
    first, step = number("ARRAY_TASK_MIN", 0), number("ARRAY_TASK_STEP", 1)
    place = (number("ARRAY_TASK_ID", 0) - first) // step
    count = number("ARRAY_TASK_COUNT", 1)
  # A batch script sees the number of tasks too, but only `srun` starts them.
  if environ.get("SLURM_STEP_ID", "").isdigit():
    tasks = number("NTASKS", 1)
    place, count = place * tasks + number("PROCID", 0), count * tasks
  return place, count


def child_environment(
  environ: Mapping[str, str], slot: int, at_once: int, gpus_each: int
) -> dict[str, str]:
  """What a run sees of the environment.

  Args:
    environ: that of the sweep.
    slot: which of those that run at once it is.
    at_once: how many run at once.
    gpus_each: GPUs of a run; 0 leaves them as they are.

  Raises:
    ValueError: there are fewer GPUs than that.

  Example:
    >>> child_environment({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, 2, 1)
    {'CUDA_VISIBLE_DEVICES': '3'}
  """
  # A run is one process, and no member of a step of Slurm.
  found = {k: v for k, v in environ.items() if k != "SLURM_STEP_ID"}
  if gpus_each:
    wanted = at_once * gpus_each
    given = environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(i) for i in range(wanted)]
    if len(gpus) < wanted:
      raise ValueError(
        f"config.at_once = {at_once}, config.gpus_each = {gpus_each}: needs "
        f"{wanted} GPUs, CUDA_VISIBLE_DEVICES = {given!r}"
      )
    mine = gpus[slot * gpus_each : (slot + 1) * gpus_each]
    found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
  return found


def folder_of(config: ConfigDict, run: Run) -> pathlib.Path:
  """Workdir of a run."""
  return pathlib.Path(config.out) / "runs" / run.name


def read_state(folder: pathlib.Path) -> dict[str, Any]:
  """What `run.json` says; nothing yet if there is none."""
  path = folder / "run.json"
  if not path.exists():
    return {"state": WAITING, "seconds": 0.0, "stages": {}, "error": ""}
  return json.loads(path.read_text())


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[int | None]:
  """Holds the lock on a folder; gives None if somebody else has it."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield None
      return
    yield file.fileno()


@dataclasses.dataclass(frozen=True)
class Stage:
  """One command of a run.

  Attributes:
    name: 'train' or 'probe'.
    arguments: of main.py.
  """

  name: str
  arguments: tuple[str, ...]

  @property
  def stamp(self) -> str:
    """Tells the command from any other."""
    return hashlib.sha256(repr(self.arguments).encode()).hexdigest()[:16]


def stages(config: ConfigDict, run: Run) -> list[Stage]:
  """The commands of a run, in their order."""
  folder = folder_of(config, run)
  workdir = ("--config.workdir=" + str(folder),)
  found = [Stage("train", (*run.arguments(), *workdir))]
  if config.probe:
    # The data of training, unless the probe's settings say otherwise.
    settings = {"data.path": run.settings.get("data.path", "")}
    settings |= dict(config.probe_fixed)
    if not settings["data.path"]:
      settings["data.path"] = sweep_plan.load(run.experiment).data.path
    if settings["data.path"] == "synthetic":
      settings["data.path"] = str(folder / "data")
    settings |= {"checkpoint.path": str(folder)}
    settings |= {"workdir": str(folder / "probe")}
    probe_flags = sweep_plan.flags_of(settings.items())
    found.append(Stage("probe", (f"--config={config.probe}", *probe_flags)))
  return found


def is_trained(folder: pathlib.Path) -> bool:
  """Whether the newest checkpoint is that of the last step.

  A run that was told to stop ends well, too: its exit code says nothing.
  """
  path = folder / "checkpoints"
  if not path.is_dir():
    return False
  with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
    last = checkpoints.latest
    return last is not None and last == checkpoints.meta()["total_steps"]


class Sweep:
  """Starts runs, and stops them when told to.

  Args:
    config: see `configs/sweep.py`.
    runs: all runs, of which only this process's share is started.
    environ: the environment variables.
    main: the program that runs are given to.
  """

  def __init__(
    self,
    config: ConfigDict,
    runs: Sequence[Run],
    environ: Mapping[str, str] = os.environ,
    main: pathlib.Path = _MAIN,
  ):
    place, count = share(environ)
    self._mine = runs[place::count]
    self._config, self._environ, self._main = config, environ, main
    self._slots = queue.SimpleQueue()
    for slot in range(config.at_once):
      child_environment(environ, slot, config.at_once, config.gpus_each)
      self._slots.put(slot)
    self._active: set[subprocess.Popen] = set()
    self._is_stopping = False
    self._finished = 0

  def execute(self) -> None:
    """Runs whatever of this process's share is not done."""
    before = {
      number: signal.signal(number, self._on_signal)
      for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
      with concurrent.futures.ThreadPoolExecutor(self._config.at_once) as pool:
        jobs = [pool.submit(self._one, run) for run in self._mine]
        for job in concurrent.futures.as_completed(jobs):
          job.result()
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _on_signal(self, number, frame) -> None:
    del frame
    name = signal.Signals(number).name
    print(f"{name}: runs save, then stop", file=sys.stderr, flush=True)
    self._is_stopping = True
    for process in tuple(self._active):
      # A second one ends a run at once, as it would without a sweep.
      process.send_signal(signal.SIGTERM)

  def _one(self, run: Run) -> None:
    folder = folder_of(self._config, run)
    state = {"state": WAITING}
    if not self._is_stopping:
      slot = self._slots.get()
      try:
        with locked(folder) as lock:
          state = {"state": ELSEWHERE}
          if lock is not None:
            state = self._stages(run, folder, slot, lock)
      finally:
        self._slots.put(slot)
    self._finished += 1
    text = f"[{self._finished}/{len(self._mine)}] {run.name}: {state['state']}"
    if state.get("error"):
      text += f": {state['error']}"
    print(text, file=sys.stderr, flush=True)

  def _stages(
    self, run: Run, folder: pathlib.Path, slot: int, lock: int
  ) -> dict[str, Any]:
    state = read_state(folder)
    state["state"], state["error"] = DONE, ""
    for stage in stages(self._config, run):
      if state["stages"].get(stage.name) == stage.stamp:
        continue
      start = time.monotonic()
      code = self._call(stage, folder, slot, lock)
      state["seconds"] += time.monotonic() - start
      is_whole = code == 0 and (stage.name != "train" or is_trained(folder))
      if is_whole:
        state["stages"][stage.name] = stage.stamp
        self._write(folder, run, state)
        continue
      state["state"] = STOPPED
      if code != 0 and not self._is_stopping:
        state["state"], state["error"] = FAILED, _last_line(folder, code)
      break
    self._write(folder, run, state)
    return state

  def _call(
    self, stage: Stage, folder: pathlib.Path, slot: int, lock: int
  ) -> int:
    config = self._config
    environment = child_environment(
      self._environ, slot, config.at_once, config.gpus_each
    )
    with (folder / "log.txt").open("a") as log:
      log.write(f"$ main.py {' '.join(stage.arguments)}\n")
      log.flush()
      process = subprocess.Popen(
        [sys.executable, str(self._main), *stage.arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        # The terminal's Ctrl-C reaches the sweep alone, which passes it on.
        start_new_session=True,
        pass_fds=(lock,),
      )
      self._active.add(process)
      if self._is_stopping:
        process.send_signal(signal.SIGTERM)
      code = process.wait()
      self._active.discard(process)
    return code

  def _write(
    self, folder: pathlib.Path, run: Run, state: Mapping[str, Any]
  ) -> None:
    said = {"experiment": run.experiment, "settings": run.settings, **state}
    with atomic.replacing(folder / "run.json") as draft:
      draft.write_text(json.dumps(said, indent=2) + "\n")


def _last_line(folder: pathlib.Path, code: int) -> str:
  lines = (folder / "log.txt").read_text().splitlines()
  said = [line.strip() for line in lines if line.strip()]
  return f"exit code {code}: {said[-1][:200]}"


def collect(config: ConfigDict, runs: Sequence[Run]) -> list[dict[str, Any]]:
  """A row of the table for each run, from what lies on disk.

  Args:
    config: see `configs/sweep.py`.
    runs: all runs.

  Returns:
    run, experiment, what varies, state, seconds, error, step, and the last
    value of each metric, by name.
  """
  rows = []
  for run in runs:
    folder = folder_of(config, run)
    state = read_state(folder)
    known = {stage.name: stage.stamp for stage in stages(config, run)}
    name = state["state"]
    if name == DONE and state["stages"] != known:
      name = WAITING  # for another probe than the one that was made
    values = {}
    for line in writers.read_metrics(folder / "metrics.jsonl"):
      values |= line
    values |= sweep_tables.probe_values(folder / "probe")
    rows.append(
      {
        "run": run.name,
        sweep_plan.EXPERIMENT: run.experiment,
        **run.varied,
        "state": name,
        "seconds": round(state["seconds"], 1),
        "error": state["error"],
        **values,
      }
    )
  return rows


def sweep(config: ConfigDict) -> int:
  """Runs what is not done, writes the tables.

  Args:
    config: see `configs/sweep.py`.

  Returns:
    The exit code.

  Raises:
    ValueError: the sweep's config is wrong, or one of the runs'.
  """
  runs = sweep_plan.plan(config)
  out = pathlib.Path(config.out)
  out.mkdir(parents=True, exist_ok=True)
  if not config.table_only:
    print(f"{len(runs)} runs in {out}", file=sys.stderr, flush=True)
    Sweep(config, runs).execute()
  rows = collect(config, runs)
  varied = list(dict.fromkeys(key for run in runs for key in run.varied))
  sweep_tables.write(out, rows, varied, config.metric, config.goal)
  place, count = share(os.environ)
  states = {row["state"] for row in rows[place::count]}
  if FAILED in states:
    return 1
  return 0 if states == {DONE} else 3


def main(_: list[str]) -> None:
  """Reads the config, and exits with the sweep's code."""
  # The sweep computes nothing: devices are its runs'.
  jax.config.update("jax_platforms", "cpu")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  try:
    sys.exit(sweep(flags.FLAGS.config))
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  # Not when imported: main.py has a flag of this name.
  config_flags.DEFINE_config_file(
    "config", None, "The sweep: configs/sweep.py or a copy, and a preset.",
    lock_config=True,
  )  # fmt: skip
  flags.mark_flag_as_required("config")
  app.run(main)
