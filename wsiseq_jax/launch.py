"""Starting up, logging once, and stopping on a signal.

Several processes. `start` must run before any device is touched. It joins the
processes if there are several: under Slurm (`srun`), on a TPU slice, or where
`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say so.
Alone it does nothing. `docs/launch.md` has recipes to paste.

All processes run the same program on the same arguments. Whatever only one of
them can know (is this file there? is it time?) is decided by the main one and
told to the others with `agree`: two processes that go different ways wait for
each other for ever. An error in one of them ends it at once, and thereby the
others (`ending_together`).

Being stopped. A scheduler sends SIGTERM some time before it kills. `Preemption`
turns that into an answer to "shall I stop?", asked with one `tick` before every
training step and every evaluation batch. With several processes the signal
reaches one of them at any moment, and all must stop at the same step: JAX
agrees on "the highest number asked so far, plus one". For this to work there
must be ONE counter that all processes count alike, which is why evaluation
ticks it too.
"""

import contextlib
import glob
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_tpu_host(environ: Mapping[str, str]) -> bool:
  """Whether this machine has TPU chips that JAX will use.

  Chips show as device files. The library alone proves nothing: it compiles
  for TPUs on machines without any (the job `aot`).
  """
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_distributed(environ: Mapping[str, str]) -> bool:
  """Whether the environment says that this is one process of several.

  A Cloud TPU machine does not say so itself, its metadata server does: there
  the answer is yes (see `is_tpu_host`), and a slice of one machine is joined by
  one process.

  Example:
    >>> is_distributed({"SLURM_NTASKS": "1", "JAX_PLATFORMS": "cpu"})
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
  return "," in environ.get("TPU_WORKER_HOSTNAMES", "") or is_tpu_host(environ)


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
  """GPUs of a Slurm task that has its node for itself, None for any other.

  JAX gives each Slurm task one GPU, the one of its number on the node. With
  one task a node all GPUs but the first would stay idle, without a word.

  Example:
    >>> alone = {"SLURM_STEP_ID": "0", "SLURM_GPUS_ON_NODE": "4",
    ...          "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    >>> slurm_devices(alone)
    [0, 1, 2, 3]
    >>> slurm_devices(alone | {"SLURM_NTASKS": "8"})
  """
  if not environ.get("SLURM_STEP_ID", "").isdigit():
    return None
  nodes = int(environ.get("SLURM_STEP_NUM_NODES", "0"))
  gpus = environ.get("SLURM_GPUS_ON_NODE", "")
  if nodes != int(environ.get("SLURM_NTASKS", "1")) or not gpus.isdigit():
    return None
  return list(range(int(gpus)))


def start(
  environ: Mapping[str, str] = os.environ, saves_on_sigterm: bool = True
) -> None:
  """Joins the processes of a job; does nothing for a single process.

  Args:
    environ: the environment variables.
    saves_on_sigterm: whether the job asks a `Preemption` when to stop. JAX
      catches SIGTERM for that, and a job that never asks could not be ended.
  """
  if not is_distributed(environ) or jax.distributed.is_initialized():
    return
  jax.config.update("jax_enable_preemption_service", saves_on_sigterm)
  if "JAX_NUM_PROCESSES" in environ:
    jax.distributed.initialize(
      environ["JAX_COORDINATOR_ADDRESS"],
      int(environ["JAX_NUM_PROCESSES"]),
      int(environ["JAX_PROCESS_ID"]),
    )
  elif "JAX_LOCAL_DEVICE_IDS" in environ:
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(local_device_ids=slurm_devices(environ))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Lets an error in the block end this process at once, one of several or not.

  At its normal end Python waits up to five minutes for the other processes to
  end as well. After an error they will not: they wait for this one in the
  middle of a step. Without the farewell they notice, and end with an error too.
  """
  try:
    yield
  except BaseException as error:
    if not jax.distributed.is_initialized() or isinstance(error, Stopped):
      raise
    if isinstance(error, SystemExit):
      print(error.code, file=sys.stderr)
    else:
      traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def is_main() -> bool:
  """Whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def agree(answer: bool) -> bool:
  """The main process's answer, on all processes; each must ask.

  Args:
    answer: this process's own; only the main one's counts.
  """
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.broadcast_one_to_all(np.int32(answer)))


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
  """Runs the block in the main process, and then in the others.

  For files that are made where they are missing: on a shared disk the others
  find them made.

  Args:
    name: any word, the same on all processes.
  """
  if not is_main():
    multihost_utils.sync_global_devices(name)
  yield
  if is_main() and jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


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


class Stopped(SystemExit):
  """Ends a job that saved and stopped before its end, as it was told to.

  The exit status is EX_TEMPFAIL of sysexits.h: the same command goes on.
  """

  CODE = 75

  def __init__(self, message: str):
    log(message)
    super().__init__(self.CODE)


class Preemption:
  """Says when to stop; a context manager that owns SIGTERM and SIGINT.

  A second signal acts as it would without us, so that Ctrl-C twice always ends
  the program.
  """

  def __init__(self):
    self._ticks = 0
    self._is_asked = False
    self._previous = {}
    # Processes that have no step in common stop each by itself.
    self._is_shared = (
      jax.process_count() > 1 and jax.config.jax_enable_preemption_service
    )

  def __enter__(self):
    # JAX's own handler, if `start` asked for it, must see SIGTERM.
    if not self._is_shared:
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
    if not self._is_shared:
      return self._is_asked
    # The answer is True at one number only.
    self._is_asked |= multihost_utils.reached_preemption_sync_point(self._ticks)
    return self._is_asked
