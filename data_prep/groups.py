"""Groups of records: the unit of work where a data set has many small files.

A group is a folder `parts/<name>/` with its records and a `part.json`, written
last: a folder that has one is complete, made from the files and settings its
hash names, and remembers what could not be used. A member whose file kills the
process that reads it is found out and left out; the others stay.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tqdm

from data_prep import cluster, shards
from data_prep.files.done import Done
from data_prep.files.errors import SlideError, as_slide_error

MARK = "part.json"


@dataclasses.dataclass(frozen=True, eq=False)
class GroupJob:
  """One group."""

  name: str
  members: tuple[Any, ...]  # what its records are made of
  # The whole preparation config as plain dictionaries.
  config: Mapping[str, Any]
  content: Mapping[str, Any]  # everything that shapes the group
  # Members whose files kill the process that reads them, and how.
  deadly: Mapping[str, str] = dataclasses.field(default_factory=dict)
  is_trial: bool = False  # write nothing, to see which member kills

  SHARD: ClassVar[str] = "sequences.array_record"  # name of the file of records
  ID: ClassVar[str] = "series_id"  # field that names a member
  UNIT: ClassVar[str] = "series"  # what members are called

  @property
  def folder(self) -> pathlib.Path:
    """Where the finished group lies."""
    return pathlib.Path(self.config["out"]) / "parts" / self.name

  @property
  def done(self) -> Done:
    """The mark that says what the folder was made from."""
    return Done(self.folder / MARK, self.content)

  def refuse_deadly(self, member_id: str) -> None:
    """Raises a SlideError for a member whose file killed its process."""
    if member_id in self.deadly:
      raise SlideError(
        f"the process reading it died ({self.deadly[member_id]}): most likely "
        "a damaged file, or too little memory",
        "process",
        "worker_died",
      )


@dataclasses.dataclass(frozen=True)
class GroupOutcome:
  """What became of a group."""

  name: str  # the group
  # The facts in `part.json`; empty if it failed as a whole.
  info: Mapping[str, Any]
  is_fresh: bool  # whether it was made now
  # What kept it from being written, such as a full disk.
  error: SlideError | None = None

  @property
  def errors(self) -> list[SlideError]:
    """What could not be used of its members."""
    rows = [SlideError(*row) for row in self.info.get("errors", ())]
    return rows if self.error is None else [self.error]


def bucket(patient_id: str, parts: int) -> int:
  """The number of a patient's group; one patient more changes no other."""
  digest = hashlib.sha256(patient_id.encode()).digest()
  return int.from_bytes(digest[:8], "little") % parts


def write(
  job: GroupJob,
  made: Iterator[Any],
  schema: shards.Schema,
  facts: Callable[[], Mapping[str, Any]],
) -> GroupOutcome:
  """Writes a group's records; what goes wrong while writing is in the result.

  Args:
    job: the group.
    made: its records; what is wrong with a member, it keeps to itself.
    schema: of the records.
    facts: () → what else `part.json` says, once all records are made.
  """
  if job.is_trial:
    for _ in made:
      pass
    return GroupOutcome(job.name, {}, True)
  try:
    job.folder.mkdir(parents=True, exist_ok=True)
    # From here on the folder is not what its old mark says.
    job.done.clear()
    path, first = job.folder / job.SHARD, next(made, None)
    count = num_bytes = 0
    if first is None:
      path.unlink(missing_ok=True)
    else:
      count, num_bytes = shards.write_part(
        path, itertools.chain([first], made), schema
      )
    info = {"sequences": count, "num_bytes": num_bytes, **facts()}
    # A process that died may have wanted memory: next time it is tried again.
    if not job.deadly:
      job.done.write(info, [path] if count else [])
  except OSError as error:
    # Reading errors belong to a member and are with it: this is writing.
    problem = as_slide_error(error, job.name, "write", "config.out")
    return GroupOutcome(job.name, {}, True, problem)
  return GroupOutcome(job.name, info, True)


def work(
  jobs: Sequence[GroupJob], process: Callable[[GroupJob], GroupOutcome]
) -> dict[str, GroupOutcome]:
  """Does all groups that are not finished, and says what became of each.

  Args:
    jobs: the groups.
    process: makes one; importable by its name on the workers.

  Returns:
    Outcomes by name.
  """
  outcomes, waiting = {}, []
  for job in jobs:
    info = job.done.read()
    if info is None:
      waiting.append(job)
    else:
      outcomes[job.name] = GroupOutcome(job.name, info, False)
  total = sum(len(job.members) for job in jobs)
  todo = sum(len(job.members) for job in waiting)
  unit = jobs[0].UNIT if jobs else ""
  bar = tqdm.tqdm(
    total=total, initial=total - todo, unit=unit, dynamic_ncols=True
  )
  with bar:
    died = _do(waiting, process, outcomes, bar)
    # Whatever killed a process has taken its whole group with it.
    alive = [_without_deadly(job, process) for job in died]
    died = _do(alive, process, outcomes, bar)
  for job, reason in died.items():
    problem = SlideError(
      f"its process died again ({reason}) without the {job.UNIT} that killed "
      "it before: most likely too little memory",
      "process",
      "worker_died",
      job.name,
    )
    outcomes[job.name] = GroupOutcome(job.name, {}, True, problem)
  for name, outcome in outcomes.items():
    for error in outcome.errors if outcome.is_fresh else ():
      tqdm.tqdm.write(
        f"{error.slide or name}: {error.error}: {error.message}",
        file=sys.stderr,
      )
  return outcomes


def _do(jobs, process, outcomes, bar) -> dict[GroupJob, str]:
  """Does groups; returns those whose process died, and how."""
  died = {}
  results = cluster.run(process, jobs, jobs[0].config if jobs else _NOWHERE)
  with contextlib.closing(results):
    for index, result in results:
      if isinstance(result, cluster.Died):
        died[jobs[index]] = result.reason
      else:
        outcomes[result.name] = result
        bar.update(len(jobs[index].members))
  return died


_NOWHERE = {"workers": 0}  # nothing to do, no workers


def _without_deadly(job: GroupJob, process) -> GroupJob:
  """Finds the members that kill, by reading each in a process of its own."""
  alone = [
    dataclasses.replace(job, members=(one,), is_trial=True)
    for one in job.members
  ]
  results = cluster.run(process, alone, job.config)
  with contextlib.closing(results):
    deadly = {
      getattr(alone[index].members[0], job.ID): result.reason
      for index, result in results
      if isinstance(result, cluster.Died)
    }
  return dataclasses.replace(job, deadly=deadly)
