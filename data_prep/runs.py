"""What all runs of preparation share: folder, share of the work, result."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from data_prep import cluster, splits
from data_prep.files.errors import SlideError
from data_prep.files.schema import FILLED, Range, Rule

EXIT_GOOD, EXIT_NOTHING, EXIT_USAGE, EXIT_SOME_FAILED = 0, 1, 2, 3
WHOLE = "1/1"
SHARE_WANTED = (
  "'i/n', the i-th of n parts of the work, such as '1/8', or 'slurm' in a job "
  "array of n tasks"
)
# Settings that say where and how to run, not what comes out.
RUN_KEYS = tuple("out splits part cluster workers memory_gb slurm".split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jpeg:
  """How panels are stored."""

  quality: Annotated[int, Range(1, 100)]
  subsampling: Literal["420", "422", "444"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
  """What is submitted; what is empty comes from dask-jobqueue's own config."""

  queue: str = ""
  account: str = ""
  walltime: str = ""
  interface: str = ""
  workers_per_job: Annotated[int, Range(1)] = 1
  log_folder: str = ""
  directives: tuple[str, ...] = ()
  prologue: tuple[str, ...] = ()


def check_cluster(address: str, workers: int) -> None:
  """Checks `config.cluster` and `config.workers`."""
  wanted = ""
  if address == cluster.SLURM:
    if workers < 1:
      wanted = "the number of workers that Slurm shall start"
  elif address.startswith(cluster.ADDRESSES):
    if workers != -1:
      wanted = f"-1: all workers of {address}"
  elif address != cluster.LOCAL:
    raise ValueError(
      f"config.cluster = {address!r}: must be 'local', 'slurm' or the "
      "address of a Dask scheduler, tcp://host:port"
    )
  if wanted:
    raise ValueError(f"config.workers = {workers}: must be {wanted}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
  """Settings that all preparations share; see `docs/cluster.md`."""

  source: str  # slides or series
  out: Annotated[str, FILLED]
  # 'i/n': do the i-th of n parts of the work and do not put the data set
  # together; 'slurm': the place of this task in its job array.
  part: str = WHOLE
  # local: workers on this machine; slurm: Slurm jobs; or the address of a Dask
  # scheduler that runs already, tcp://host:port.
  cluster: str = cluster.LOCAL
  # Processes; -1 = one a core (local) or all there are (address), 0 = none:
  # everything in this process, without Dask (for debugging).
  workers: Annotated[int, Range(-1)] = -1
  # A worker that takes more is stopped.
  memory_gb: Annotated[float, Range(above=0)] = 4.0
  slurm: Slurm = Slurm()
  splits: Mapping[str, float]  # shares of patients
  seed: int = 0
  jpeg: Jpeg

  def __post_init__(self):
    check_cluster(self.cluster, self.workers)
    splits.check_fractions(self.splits)
    if share(self.part)[1] > 1 and self.cluster != cluster.LOCAL:
      raise ValueError(
        f"config.part is {self.part!r}, want {WHOLE!r} with "
        f"config.cluster={self.cluster!r}"
      )


@dataclasses.dataclass(frozen=True)
class RunSummary:
  """What a run did."""

  # Everything that could not be used or was changed, by slide.
  errors: Sequence[SlideError]
  changed: bool  # whether anything was written
  text: str  # the result in words
  exit_code: int  # see `configs/prep_wsi.py`


def nothing(summary: RunSummary) -> RunSummary:
  """The same result where there is nothing to train on."""
  return dataclasses.replace(summary, exit_code=EXIT_NOTHING)


def share(part: str, key: str = "part") -> tuple[int, int]:
  """Reads which share of the work a command does.

  Example:
    >>> share("3/8")
    (3, 8)
  """
  if part == "slurm":
    variables = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "COUNT")]
    if not all(os.environ.get(name, "").isdigit() for name in variables):
      raise ValueError(
        f"config.{key} is 'slurm', but this is no task of a Slurm job array "
        f"(no {variables[0]})"
      )
    number, first, parts = (int(os.environ[name]) for name in variables)
    number += 1 - first
  else:
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    number, parts = (int(n) for n in match.groups()) if match else (0, 0)
  if not 1 <= number <= parts:
    raise ValueError(f"config.{key} is {part!r}, want {SHARE_WANTED}")
  return number, parts


def part_text(part: str) -> str:
  """Says what follows after a part."""
  number, parts = share(part)
  return (
    f"part {number} of {parts} is done; after all of them the same command "
    "without config.part puts the data set together"
  )


def _is_share(part: str) -> bool:
  try:
    return bool(share(part))
  except ValueError:
    return False


# Of a setting that holds a share of the work.
IS_SHARE = Rule(_is_share, SHARE_WANTED)


@contextlib.contextmanager
def lock(
  out: pathlib.Path, part: str = WHOLE, key: str = "out"
) -> Iterator[None]:
  """Keeps two runs out of one folder; goes when the process does.

  The parts of a run share the folder with one another, not with a whole run.
  """
  number, parts = share(part)
  with contextlib.ExitStack() as stack:
    kinds = {".lock": fcntl.LOCK_EX}
    if parts > 1:
      kinds = {
        ".lock": fcntl.LOCK_SH,
        f".lock.{number}-of-{parts}": fcntl.LOCK_EX,
      }
    for name, kind in kinds.items():
      file = stack.enter_context(open(out / name, "a"))
      try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
          raise
        raise ValueError(
          f"config.{key}={str(out)!r} is in use by another run: wait for it, "
          "or choose another folder"
        ) from error
    yield


def table_name(name: str, part: str) -> str:
  """Returns `slides.csv`, or `slides.3-of-8.csv` for a part."""
  number, parts = share(part)
  return f"{name}.csv" if parts == 1 else f"{name}.{number}-of-{parts}.csv"
