"""Where numbers go: JSON lines, TensorBoard, Weights & Biases, a progress bar.

`metrics.jsonl` is the record of a run: one object a line, each with its step.
A run that was killed has written lines beyond its last checkpoint; the resumed
run will compute those steps again, so opening the file for a resume at step s
first drops everything after s (and a last line that was cut short). No step is
ever there twice, and the file of an interrupted run equals that of an
undisturbed one, wall-clock columns apart.
"""

import importlib
import io
import json
import os
import pathlib
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
import tqdm
from ml_collections import ConfigDict

from data_prep.files import atomic
from wsiseq_jax import config as configs

# Seconds between progress lines where there is no terminal to redraw on.
LINE_EVERY_SECONDS = 10.0


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics file; a last line that was cut short is left out."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  lines = path.read_text().splitlines()
  for index, line in enumerate(lines):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if index + 1 < len(lines):
        raise ValueError(f"{path}:{index + 1}: not JSON: {line!r}") from error
  return rows


class MetricWriter:
  """Writes scalars to `<workdir>/metrics.jsonl` and TensorBoard event files.

  Args:
    workdir: Folder of the run.
    resume_step: Lines of later steps are dropped; 0 starts afresh, keeping
      what was written at step 0.
    sinks: Where scalars go besides, such as `WandbSink`; closed with this.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    resume_step: int,
    sinks: Sequence["WandbSink"] = (),
  ):
    self._sinks = sinks
    self.path = pathlib.Path(workdir) / "metrics.jsonl"
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.rows = [
      row for row in read_metrics(self.path) if row["step"] <= resume_step
    ]
    with atomic.replacing(self.path) as draft:
      draft.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
    self._file = self.path.open("a")
    self._events = tensorboardX.SummaryWriter(
      str(self.path.parent / "tensorboard"), purge_step=resume_step + 1
    )

  def has(self, step: int, name: str) -> bool:
    """Whether a scalar of this name was written at this step."""
    return any(row["step"] == step and name in row for row in self.rows)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line."""
    row = {"step": step, **values}
    self.rows.append(row)
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)
    for sink in self._sinks:
      sink.scalars(step, values)

  def sync(self) -> None:
    """Makes sure that all lines are on disk; call before a checkpoint."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self.sync()
    self._file.close()
    self._events.close()
    for sink in self._sinks:
      sink.close()


def plot_loss(
  rows: Sequence[Mapping[str, Any]], path: str | pathlib.Path
) -> None:
  """Draws all curves named `*/loss` over the step, as a PNG; none, no file."""
  names = sorted({k for row in rows for k in row if k.endswith("/loss")})
  if not names:
    return
  curves = {
    name: tuple(np.array([(r["step"], r[name]) for r in rows if name in r]).T)
    for name in names
  }
  from wsiseq_jax import charts  # Matplotlib: half a second

  figure, (axes,) = charts.grid(1, size=(7.0, 4.0))
  charts.lines(axes, curves)
  axes.set(xlabel="step (updates)", ylabel="loss")
  charts.to_png(figure, pathlib.Path(path))


class WandbSink:
  """Sends scalars to a run of Weights & Biases, for those who ask for it.

  The library is imported when a project is named, and not before. Whether it
  talks to a server, and as whom, are its own variables (`WANDB_MODE=offline`,
  `WANDB_API_KEY`). A resumed training goes on in the same run: its id is kept
  in the folder. Steps computed a second time are the same numbers, and Weights
  & Biases drops what is not later than what it has.

  Args:
    config: has the block `wandb`, whose `project` is not ''.
    folder: of the run, which is named after it; `config.workdir` by default.

  Raises:
    ValueError: the library is not installed.
  """

  def __init__(self, config: ConfigDict, folder: pathlib.Path | None = None):
    try:
      wandb = importlib.import_module("wandb")
    except ImportError as error:
      raise ValueError(
        f"config.wandb.project = {config.wandb.project!r}: needs the package "
        "wandb (pip install wandb); '' switches it off"
      ) from error
    folder = pathlib.Path(folder or config.workdir)
    self._run = wandb.init(
      project=config.wandb.project,
      entity=config.wandb.entity or None,
      group=config.wandb.group or None,
      name=folder.name,
      id=_run_id(folder),
      resume="allow",
      dir=os.fspath(folder),
      config=configs.flatten(configs.to_dict(config)),
    )

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Sends the values of a step."""
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Sends what is left, and ends the connection."""
    self._run.finish()


def _run_id(folder: pathlib.Path) -> str:
  """The id in the folder; a new one is written there."""
  path = folder / "wandb_id.txt"
  if not path.exists():
    atomic.write_atomic(path, secrets.token_hex(8) + "\n")
  return path.read_text().strip()


class Progress:
  """A `tqdm` bar; where there is no terminal, a line every ten seconds.

  Args:
    total: steps of the run.
    start: steps made before.
    stream: where to write; standard error by default.
  """

  def __init__(
    self, total: int, start: int = 0, stream: io.TextIOBase | None = None
  ):
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    self._bar = tqdm.tqdm(
      total=total,
      initial=start,
      file=stream if is_terminal else _Lines(stream),
      unit=" step",
      mininterval=0.1 if is_terminal else LINE_EVERY_SECONDS,
      miniters=1,
      ncols=None if is_terminal else 0,
      dynamic_ncols=is_terminal,
    )

  def show(self, step: int, values: Mapping[str, str]) -> None:
    """Says how far the run is, with more values, formatted."""
    self._bar.set_postfix(values, refresh=False)
    self._bar.update(step - self._bar.n)

  def message(self, text: str) -> None:
    """Writes a line of its own, without spoiling the bar."""
    self._bar.write(text, file=self._bar.fp)

  def close(self) -> None:
    """Shows where the run ended."""
    self._bar.close()


class _Lines:
  """A log file as `tqdm` wants it: whatever is redrawn is a new line."""

  def __init__(self, stream: io.TextIOBase):
    self._stream, self._last = stream, ""

  def write(self, text: str) -> None:
    text = text.strip("\r\n ")
    if text and text != self._last:
      self._stream.write(text + "\n")
      self._last = text

  def flush(self) -> None:
    self._stream.flush()
