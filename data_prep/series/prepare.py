"""Prepares a data set from folders of images or videos and a table.

The order of things, and why it survives being killed anywhere:

1. Read the table; everything wrong with it is a row of errors.csv.
2. Look at every file: is it there, has it changed, how many frames has it.
   From this follows what all sequences share: their length and frame size.
3. Give new patients a split. Before the work, because a part has one split;
   a patient whose files turn out unreadable keeps the place.
4. Deal the series into parts by patient, skip those that are finished, do the
   others, one part a worker; each appears complete or not at all.
5. Link the parts into a TFDS data set, which appears in one step.

`series_table.py` reads tables, `series_layouts.py` makes series of their lines,
`series_files.py` opens files, `series_images.py` makes frames of one size and
type, `series_job.py` makes the records.
"""

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from data_prep import cluster, records, schedulers, shards, splits
from data_prep.files import atomic
from data_prep.files.errors import SlideError
from data_prep.sequences import prepare
from data_prep.series import images, layouts, report, settings
from data_prep.series import job as series_job
from data_prep.series import look as series_look
from data_prep.series import table as series_table
from data_prep.series import targets as series_targets
from data_prep.series.job import Job, Outcome, Shape
from data_prep.series.spans import Series

# Settings that say what is read and how it is run, not what a frame looks like.
RUN_KEYS = (
  "csv", "images", "out", "splits", "seed", "layout", "columns", "parts",
  *schedulers.KEYS,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run did.

  Attributes:
    errors: everything that could not be used or was changed, by series.
    changed: whether anything was written.
    text: the result in words.
    exit_code: see `configs/prep_series.py`.
  """

  errors: Sequence[SlideError]
  changed: bool
  text: str
  exit_code: int


def prepare_series(config: Mapping[str, Any]) -> Summary:
  """Prepares a data set.

  Args:
    config: the whole preparation config as plain dictionaries.

  Returns:
    What was done.

  Raises:
    ValueError: the settings or the table contradict themselves.
    OSError: the output folder cannot be written.
  """
  begin = time.perf_counter()
  settings.check_config(config)
  table = series_table.read(config)
  found, errors = layouts.find_series(table, config)
  targets = series_targets.resolve(
    {
      name: [span.labels[name] for one in found for span in one.spans]
      for name in table.labels
    },
    config["targets"],
  )
  out = pathlib.Path(config["out"])
  for name in ("parts", "qc"):
    (out / name).mkdir(parents=True, exist_ok=True)
  with prepare.lock(out):
    atomic.remove_temporaries(out)
    look = series_look.Look(found)
    errors += look.errors
    values = {
      one.series_id: settings.values(one, targets, errors)
      for one in look.series
    }
    run = _Run(config, look, values, targets, errors)
    run.work()
    return run.finish(begin, bool(table.columns["patient_id"]))


class _Run:
  """The state of a run from the plan to the finished data set."""

  def __init__(
    self,
    config: Mapping[str, Any],
    look: series_look.Look,
    values: Mapping[str, tuple[tuple[float, ...], ...]],
    targets: Sequence[series_targets.Target],
    errors: Sequence[SlideError],
  ):
    self.config, self.look, self.targets = config, look, targets
    self.out = pathlib.Path(config["out"])
    self.found_errors = list(errors)
    self.outcomes: dict[str, Outcome] = {}
    self.changed = False
    self.assignment = self._assign()
    self.shape = self._shape()
    self.jobs = self._jobs(values) if look.series else []

  def _assign(self) -> dict[str, str]:
    series = self.look.series
    given = splits.pinned((s.series_id, s.patient_id, s.split) for s in series)
    path = self.out / "splits.json"
    existing = splits.load(path)
    config = self.config
    assignment = splits.assign(
      {s.patient_id for s in series},
      config["splits"],
      config["seed"],
      given,
      existing,
    )
    if series:
      self.changed |= splits.save(
        path, assignment, config["splits"], config["seed"]
      )
    return assignment

  def _shape(self) -> Shape:
    rules, image = self.config["sequence"], self.config["image"]
    if not self.look.series:
      return Shape(0, (0, 0), len(self.targets))
    longest = max(
      self.look.frames(span) for s in self.look.series for span in s.spans
    )
    frames = min(longest, rules["max_frames"] or longest)
    size = images.target_px(image["frame_px"], self.look.source_px())
    return Shape(max(frames, 1), size, len(self.targets))

  def shaping(self) -> dict[str, Any]:
    """What shapes every frame of the data set."""
    config = {k: v for k, v in self.config.items() if k not in RUN_KEYS}
    config["shape"] = dataclasses.asdict(self.shape)
    config["targets"] = [dataclasses.asdict(t) for t in self.targets]
    return config

  def _jobs(
    self, values: Mapping[str, tuple[tuple[float, ...], ...]]
  ) -> list[Job]:
    parts: dict[str, list[Series]] = {}
    for series in self.look.series:
      digest = hashlib.sha256(series.patient_id.encode()).digest()
      bucket = int.from_bytes(digest[:8], "little") % self.config["parts"]
      name = f"{self.assignment[series.patient_id]}-{bucket:04d}"
      parts.setdefault(name, []).append(series)
    shaping = self.shaping()
    jobs = []
    for name, members in sorted(parts.items()):
      content = [
        [self._content(series), repr(values[series.series_id])]
        for series in members
      ]
      jobs.append(
        Job(
          name,
          tuple((series, values[series.series_id]) for series in members),
          self.config,
          self.shape,
          str(self.out),
          shards.fingerprint({**shaping, "part": name, "series": content}),
        )
      )
    return jobs

  def _content(self, series: Series) -> dict[str, Any]:
    """What shapes a series' records; not where its files lie."""
    content = dataclasses.asdict(series)
    for span in content["spans"]:
      span["files"] = [self.look.digests[path] for path in span["files"]]
      del span["labels"]
    return content

  def work(self) -> None:
    """Does all parts that are not finished."""
    waiting = []
    for job in self.jobs:
      outcome = series_job.finished(job)
      if outcome is None:
        waiting.append(job)
      else:
        self.outcomes[job.name] = outcome
    total = sum(len(job.series) for job in self.jobs)
    todo = sum(len(job.series) for job in waiting)
    bar = tqdm.tqdm(
      total=total, initial=total - todo, unit="series", dynamic_ncols=True
    )
    with bar:
      died = self._do(waiting, bar)
      # Whatever killed a process has taken its whole part with it.
      died = self._do([self._without_deadly(job) for job in died], bar)
    for job, event in died.items():
      problem = SlideError(
        f"its process died again ({event.reason}) without the series that "
        "killed it before: most likely too little memory",
        "process",
        "worker_died",
        job.name,
      )
      self.outcomes[job.name] = Outcome(job.name, {}, True, problem)
    for name, outcome in self.outcomes.items():
      if outcome.fresh and outcome.info:
        self.changed = True
      for error in outcome.errors if outcome.fresh else ():
        tqdm.tqdm.write(
          f"{error.slide or name}: {error.error}: {error.message}",
          file=sys.stderr,
        )

  def _do(self, jobs: Sequence[Job], bar: tqdm.tqdm) -> dict[Job, cluster.Died]:
    """Does parts; returns those whose process died, and how."""
    died = {}
    with contextlib.closing(self._events(jobs)) as events:
      for event in events:
        job = jobs[event.index]
        if isinstance(event, cluster.Done):
          self.outcomes[job.name] = event.value
          bar.update(len(job.series))
        elif isinstance(event, cluster.Died):
          died[job] = event
    return died

  def _without_deadly(self, job: Job) -> Job:
    """Finds the series that kill, by reading each in a process of its own."""
    alone = [
      dataclasses.replace(job, series=(one,), out="") for one in job.series
    ]
    deadly = {}
    with contextlib.closing(self._events(alone)) as events:
      for event in events:
        if isinstance(event, cluster.Died):
          series_id = alone[event.index].series[0][0].series_id
          deadly[series_id] = event.reason
    return dataclasses.replace(job, deadly=deadly)

  def _events(self, jobs: Sequence[Job]) -> Iterator[cluster.Event]:
    return cluster.run(series_job.process, jobs, self.config, self.out)

  @property
  def errors(self) -> list[SlideError]:
    """Everything that could not be used or was changed, by series."""
    failed = [error for o in self.outcomes.values() for error in o.errors]
    unique = {
      (e.slide, e.stage, e.error, e.message): e
      for e in [*self.found_errors, *failed]
    }
    return [unique[key] for key in sorted(unique)]

  def finish(self, begin: float, has_patients: bool) -> Summary:
    """Puts the data set together, and says what was done."""
    full = [
      job for job in self.jobs if self.outcomes[job.name].info.get("sequences")
    ]
    parts = [
      shards.Part(
        job.folder / series_job.SHARD,
        job.name,
        job.name.split("-")[0],
        self.outcomes[job.name].info["sequences"],
        self.outcomes[job.name].info["num_bytes"],
      )
      for job in full
    ]
    if parts:
      self.changed |= shards.assemble(
        self.out / "shards", parts, self.shape.layout, self._metadata(full)
      )
      self.changed |= report.contact_sheet(
        self.out, parts, self.config["time_unit"]
      )
    self.changed |= report.write_tables(
      self.out, self.look.series, self._done(), self.assignment, self.errors
    )
    text, code = report.closing(
      self.out,
      shape=self.shape,
      targets=self.targets,
      done=self._done(),
      assignment=self.assignment,
      errors=self.errors,
      changed=self.changed,
      seconds=time.perf_counter() - begin,
      has_patients=has_patients,
    )
    return Summary(self.errors, self.changed, text, code)

  def _done(self) -> dict[str, dict[str, Any]]:
    """What became of each series that gave a sequence, by id."""
    infos = (o.info.get("series", {}) for o in self.outcomes.values())
    return dict(sorted(collections.ChainMap(*infos).items()))

  def _metadata(self, full: Iterable[Job]) -> dict[str, Any]:
    """Makes the content of metadata.json; no path and no time goes in."""
    shaping = self.shaping()
    return {
      "schema_version": records.SCHEMA_VERSION,
      "fingerprint": shards.fingerprint(shaping),
      "geometry": "series",
      "frames": self.shape.frames,
      "panels": self.shape.frames,
      "panel_px": list(self.shape.frame_px),
      "frame_px": list(self.shape.frame_px),
      "time_unit": self.config["time_unit"],
      "mpp": None,
      "target_names": [target.name for target in self.targets],
      "target_classes": {
        target.name: list(target.classes)
        for target in self.targets
        if target.classes
      },
      "slides": {
        series_id: {**info, "split": self.assignment[info["patient_id"]]}
        for series_id, info in self._done().items()
      },
      "config": {**shaping, "splits": dict(self.config["splits"])},
    }
