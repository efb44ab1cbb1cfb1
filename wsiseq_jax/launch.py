"""Starting up, logging once, and stopping when told to.

Several processes. `start` must run before any device is touched. It joins the
processes if the environment says that there are several: Slurm (`srun` with one
task a node or GPU), a TPU slice, or `JAX_COORDINATOR_ADDRESS` with
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. Alone it does nothing.

Being stopped. A scheduler sends SIGTERM some time before it kills. `Preemption`
turns that into an answer to "shall I stop?", asked with one `tick` before every
training step and every evaluation batch. With several processes the signal
reaches one of them at any moment, and all must stop at the same step: JAX
agrees on "the highest number asked so far, plus one". For this to work there
must be ONE counter that all processes count alike, which is why evaluation
ticks it too.
"""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils


def is_distributed(environ: Mapping[str, str]) -> bool:
  """Whether the environment says that this is one process of several.

  Example:
    >>> is_distributed({"SLURM_NTASKS": "1"})
    False
    >>> is_distributed({"SLURM_NTASKS": "16", "SLURM_STEP_ID": "0"})
    True
  """
  if environ.get("JAX_COORDINATOR_ADDRESS"):
    return True
  # A batch script sees SLURM_NTASKS too, but only `srun` starts the tasks.
  is_step = environ.get("SLURM_STEP_ID", "").isdigit()
  if int(environ.get("SLURM_NTASKS", "1")) > 1 and is_step:
    return True
  return "," in environ.get("TPU_WORKER_HOSTNAMES", "")


def start(environ: Mapping[str, str] = os.environ) -> None:
  """Joins the processes of a job; does nothing for a single process."""
  if not is_distributed(environ) or jax.distributed.is_initialized():
    return
  if "JAX_NUM_PROCESSES" in environ:
    jax.distributed.initialize(
      environ["JAX_COORDINATOR_ADDRESS"],
      int(environ["JAX_NUM_PROCESSES"]),
      int(environ["JAX_PROCESS_ID"]),
    )
  else:
    jax.distributed.initialize()


def is_main() -> bool:
  """Whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def log(message: str) -> None:
  """Prints a line on the main process."""
  if is_main():
    print(message, file=sys.stderr, flush=True)


def git_revision() -> str:
  """Revision of this checkout, with `+` if it has changes; '' if unknown."""
  root = pathlib.Path(__file__).resolve().parents[1]
  command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40"]
  try:
    result = subprocess.run(
      [*command, "--dirty=+"], capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return result.stdout.strip() if result.returncode == 0 else ""


class Preemption:
  """Says when to stop; a context manager that owns SIGTERM and SIGINT.

  A second signal acts as it would without us, so that Ctrl-C twice always ends
  the program.
  """

  def __init__(self):
    self._ticks = 0
    self._is_asked = False
    self._previous = {}

  def __enter__(self):
    # With several processes JAX's own handler must see SIGTERM.
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._on_signal)
    return self

  def __exit__(self, *_):
    self._restore()

  def _restore(self):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def _on_signal(self, number, frame):
    del frame
    name = signal.Signals(number).name
    print(f"\n{name}: saving, then stopping", file=sys.stderr, flush=True)
    self._is_asked = True
    self._restore()

  def tick(self) -> bool:
    """Counts on by one and says whether to stop, on all processes alike."""
    self._ticks += 1
    if jax.process_count() == 1:
      return self._is_asked
    # The answer is True at one number only.
    self._is_asked |= multihost_utils.reached_preemption_sync_point(self._ticks)
    return self._is_asked
