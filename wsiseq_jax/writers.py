"""Where numbers go: JSON lines, TensorBoard, a progress line, a picture.

Other places are sinks (`wandb_sink`), which get what the JSON lines get.

`metrics.jsonl` is the record of a run: one object a line, each with its step.
A run that was killed has written lines beyond its last checkpoint; the resumed
run will compute those steps again, so opening the file for a resume at step s
first drops everything after s (and a last line that was cut short). No step is
ever there twice, and the file of an interrupted run equals that of an
undisturbed one, wall-clock columns apart.
"""

import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import matplotlib.figure
import tensorboardX

from data_prep.files import atomic

# Seconds between progress lines where there is no terminal to redraw on.
_LINE_EVERY = 10.0


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


@runtime_checkable
class Sink(Protocol):
  """Another place for scalars, such as `wandb_sink.WandbSink`."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the values of a step."""

  def close(self) -> None:
    """Ends it."""


class MetricWriter:
  """Writes scalars to `<workdir>/metrics.jsonl` and TensorBoard event files.

  Args:
    workdir: Folder of the run.
    resume_step: Lines of later steps are dropped; 0 starts afresh, keeping
      what was written at step 0.
    sinks: Where scalars go besides; closed with the writer.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    resume_step: int,
    sinks: Sequence[Sink] = (),
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
  """Draws all curves named `*/loss` over the step, as a PNG.

  Args:
    rows: Lines of a metrics file.
    path: The picture.
  """
  figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
  axes = figure.add_subplot()
  names = sorted({k for row in rows for k in row if k.endswith("/loss")})
  for name in names:
    points = [(row["step"], row[name]) for row in rows if name in row]
    style = "-" if len(points) > 20 else ".-"
    axes.plot(*zip(*points, strict=True), style, label=name, linewidth=1.2)
  axes.set_xlabel("step (updates)")
  axes.set_ylabel("loss")
  axes.grid(alpha=0.3)
  if names:
    axes.legend()
  with atomic.replacing(path) as draft:
    figure.savefig(draft, dpi=120, format="png")


def duration(seconds: float | int) -> str:
  """Seconds as a person writes them.

  Example:
    >>> duration(75), duration(3 * 3600 + 60), duration(50 * 3600)
    ('1:15', '3:01:00', '2 d 2 h')
  """
  whole = int(round(seconds))
  hours, rest = divmod(whole, 3600)
  minutes, secs = divmod(rest, 60)
  if hours >= 48:
    return f"{hours // 24} d {hours % 24} h"
  if hours:
    return f"{hours}:{minutes:02d}:{secs:02d}"
  return f"{minutes}:{secs:02d}"


class Progress:
  """One line that says how far a run is: redrawn in a terminal, sparse in logs.

  Args:
    total: Steps of the run.
    stream: Where to write; standard error by default.
  """

  def __init__(self, total: int, stream: io.TextIOBase | None = None):
    self._total = total
    self._stream = sys.stderr if stream is None else stream
    self._is_terminal = self._stream.isatty()
    self._shown_at = -float("inf")

  def show(
    self, step: int, rate: float | int, values: Mapping[str, str]
  ) -> None:
    """Shows the line.

    Args:
      step: Updates made.
      rate: Steps per second; 0 if not known.
      values: What else to show, formatted.
    """
    now = time.monotonic()
    is_last = step >= self._total
    if not (
      self._is_terminal or is_last or now - self._shown_at >= _LINE_EVERY
    ):
      return
    self._shown_at = now
    parts = [f"step {step}/{self._total}"]
    if self._is_terminal:
      done = 20 * step // max(self._total, 1)
      parts.append("█" * done + "░" * (20 - done))
    parts += [f"{name} {value}" for name, value in values.items()]
    if rate > 0:
      parts.append(f"{duration((self._total - step) / rate)} left")
    line = " · ".join(parts)
    if self._is_terminal:
      self._stream.write(f"\r\x1b[2K{line}" + ("\n" if is_last else ""))
    else:
      self._stream.write(line + "\n")
    self._stream.flush()

  def message(self, text: str) -> None:
    """Writes a line of its own, without spoiling the progress line."""
    start = "\r\x1b[2K" if self._is_terminal else ""
    self._stream.write(f"{start}{text}\n")
    self._stream.flush()
