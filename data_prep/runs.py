"""What all runs of preparation share: folder, share of the work, result."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep import cluster, splits
from data_prep.files.errors import SlideError

EXIT_GOOD, EXIT_NOTHING, EXIT_USAGE, EXIT_SOME_FAILED = 0, 1, 2, 3
WHOLE = "1/1"
SHARE_WANTED = (
  "'i/n', the i-th of n parts of the work, such as '1/8', or 'slurm' in a job "
  "array of n tasks"
)
SUBSAMPLINGS = ("420", "422", "444")
# Settings that say where and how to run, not what comes out.
RUN_KEYS = ("out", "splits", "part", *cluster.KEYS)


@dataclasses.dataclass(frozen=True)
class RunSummary:
  """What a run did.

  Attributes:
    errors: everything that could not be used or was changed, by slide.
    changed: whether anything was written.
    text: the result in words.
    exit_code: see `configs/prep_wsi.py`.
  """

  errors: Sequence[SlideError]
  changed: bool
  text: str
  exit_code: int


def nothing(summary: RunSummary) -> RunSummary:
  """The same result where there is nothing to train on."""
  return dataclasses.replace(summary, exit_code=EXIT_NOTHING)


def share(part: str, key: str = "part") -> tuple[int, int]:
  """Reads which share of the work a command does.

  Args:
    part: 'i/n', the i-th of n shares, such as '3/8'; or 'slurm': the place of
      this task in its job array.
    key: config key, for the error.

  Returns:
    i from 1 to n, and n: `items[i - 1 :: n]` are to be done.

  Raises:
    ValueError: it is neither, or there is no job array.

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


@contextlib.contextmanager
def lock(out: pathlib.Path, part: str = WHOLE) -> Iterator[None]:
  """Keeps two runs out of one folder; goes when the process does.

  The parts of a run share the folder with one another, not with a whole run.

  Raises:
    ValueError: another run has it.
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
          f"config.out={str(out)!r} is in use by another run: wait for it, or "
          "choose another folder"
        ) from error
    yield


def table_name(name: str, part: str) -> str:
  """Returns `slides.csv`, or `slides.3-of-8.csv` for a part."""
  number, parts = share(part)
  return f"{name}.csv" if parts == 1 else f"{name}.{number}-of-{parts}.csv"


def need(
  config: Mapping[str, Any], key: str, condition: bool, want: str
) -> None:
  """Raises ValueError with key and value unless the condition holds."""
  if not condition:
    value = config
    for name in key.split("."):
      value = value[name]
    raise ValueError(f"config.{key} is {value!r}, want {want}")


def check_config(config: Mapping[str, Any]) -> None:
  """Checks the settings that all preparations share.

  Raises:
    ValueError: naming the config key, the value and what is allowed.
  """
  need(config, "out", bool(config["out"]), "an output folder")
  cluster.check_config(config)
  _, parts = share(config["part"])
  need(
    config,
    "part",
    parts == 1 or config["cluster"] == cluster.LOCAL,
    f"'{WHOLE}' with config.cluster={config['cluster']!r}",
  )
  need(
    config,
    "jpeg.quality",
    1 <= config["jpeg"]["quality"] <= 100,
    "1 to 100",
  )
  need(
    config,
    "jpeg.subsampling",
    config["jpeg"]["subsampling"] in SUBSAMPLINGS,
    f"one of {SUBSAMPLINGS}",
  )
  splits.check_fractions(config["splits"])
