"""Prepares a data set from folders of images or videos and a table.

The order of things, and why it survives being killed anywhere:

1. Read the table; everything wrong with it is a row of errors.csv.
2. Look at every file: is it there, has it changed, how many frames has it.
   From this follows what all sequences share: their length and frame size.
3. Give new patients a split. Before the work, because a group has one split;
   a patient whose files turn out unreadable keeps the place.
4. Deal the series into groups by patient, skip those that are finished, do the
   others, one group a worker; each appears complete or not at all.
5. Link the groups' files into a TFDS data set, which appears in one step, and
   write the labels beside them.

A part (`config.part`) ends after step 4.
"""

import collections
import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep import groups, records, runs, shards, splits
from data_prep.files import atomic, schema, tables, values
from data_prep.files.errors import NOTE, SlideError
from data_prep.series import images, layouts, report
from data_prep.series import job as series_job
from data_prep.series import look as series_look
from data_prep.series import table as series_table
from data_prep.series.job import SeriesJob, Shape
from data_prep.series.settings import RUN_KEYS, SeriesSettings
from data_prep.series.spans import Series
from data_prep.targets import Target, TargetTable, encode, resolve


def prepare_series(config: Mapping[str, Any]) -> runs.RunSummary:
  """Prepares a data set, or a part of its groups."""
  begin = time.perf_counter()
  schema.build(SeriesSettings, config)
  table = series_table.read(config)
  found, errors = layouts.find_series(table, config)
  targets = resolve(
    {
      name: [span.labels[name] for one in found for span in one.spans]
      for name in table.labels
    },
    config["targets"],
  )
  out = pathlib.Path(config["out"])
  for name in ("parts", "qc"):
    (out / name).mkdir(parents=True, exist_ok=True)
  with runs.lock(out, config["part"]):
    _, parts = runs.share(config["part"])
    if parts == 1:
      atomic.remove_temporaries(out)
    look = series_look.Look(found)
    errors += look.errors
    rows = {}
    for one in look.series:
      rows |= _target_rows(one, targets, errors)
    run = _Run(config, look, TargetTable(tuple(targets), rows), errors)
    run.work()
    if parts > 1:
      return run.part_summary()
    return run.finish(begin, bool(table.columns["patient_id"]))


def _target_rows(
  series: Series, targets: Sequence[Target], errors: list[SlideError]
) -> dict[str, tuple[float, ...]]:
  """The numbers of all labels of a series; notes those that are unknown."""
  rows, missing = {}, collections.Counter()
  for span in series.spans:
    row = []
    for target in targets:
      value = math.nan
      try:
        value = encode(target, span.labels[target.name])
        missing[target.name] += math.isnan(value)
      except ValueError as error:
        errors.append(
          SlideError(
            f"{error}; stored as unknown (NaN)",
            "target",
            "bad_target",
            series.series_id,
          )
        )
      row.append(value)
    name = "/".join(part for part in (series.series_id, span.name) if part)
    rows[name] = tuple(row)
  unknown = [name for name, count in missing.items() if count]
  if unknown:
    errors.append(
      SlideError(
        f"no value for {', '.join(unknown)}: stored as unknown (NaN)",
        NOTE,
        "missing_target",
        series.series_id,
      )
    )
  return rows


class _Run:
  """The state of a run from the plan to the finished data set."""

  def __init__(
    self,
    config: Mapping[str, Any],
    look: series_look.Look,
    targets: TargetTable,
    errors: Sequence[SlideError],
  ):
    self.config, self.look, self.targets = config, look, targets
    self.out = pathlib.Path(config["out"])
    self.found_errors = list(errors)
    self.outcomes: dict[str, groups.GroupOutcome] = {}
    self.changed = False
    self.assignment = self._assign()
    self.shape = self._shape()
    self.jobs = self._jobs() if look.series else []

  def _assign(self) -> dict[str, str]:
    series, config = self.look.series, self.config
    for text in values.odd_ids(one.patient_id for one in series):
      tables.say(f"warning: {text}")
    given = splits.pinned((s.series_id, s.patient_id, s.split) for s in series)
    path = self.out / "splits.json"
    assignment = splits.assign(
      {s.patient_id for s in series},
      config["splits"],
      config["seed"],
      given,
      splits.load(path),
    )
    if series:
      self.changed |= splits.save(
        path, assignment, config["splits"], config["seed"]
      )
    return assignment

  def _shape(self) -> Shape:
    rules, image = self.config["sequence"], self.config["image"]
    if not self.look.series:
      return Shape(0, (0, 0))
    longest = max(
      self.look.frames(span) for s in self.look.series for span in s.spans
    )
    frames = min(longest, rules["max_frames"] or longest)
    size = images.target_px(image["frame_px"], self.look.source_px())
    return Shape(max(frames, 1), size)

  def shaping(self) -> dict[str, Any]:
    """What shapes every frame of the data set."""
    config = {k: v for k, v in self.config.items() if k not in RUN_KEYS}
    return {**config, "shape": dataclasses.asdict(self.shape)}

  def _jobs(self) -> list[SeriesJob]:
    """Deals the series into groups; only those of this part."""
    found: dict[str, list[Series]] = {}
    for series in self.look.series:
      bucket = groups.bucket(series.patient_id, self.config["parts"])
      name = f"{self.assignment[series.patient_id]}-{bucket:04d}"
      found.setdefault(name, []).append(series)
    shaping = self.shaping()
    part, parts = runs.share(self.config["part"])
    return [
      SeriesJob(
        name,
        tuple(members),
        self.config,
        {
          **shaping,
          "part": name,
          "series": [self._content(series) for series in members],
        },
        shape=self.shape,
      )
      for name, members in sorted(found.items())[part - 1 :: parts]
    ]

  def _content(self, series: Series) -> dict[str, Any]:
    """What shapes a series' records; not where its files lie, nor labels."""
    content = dataclasses.asdict(series)
    for span in content["spans"]:
      span["files"] = [self.look.digests[path] for path in span["files"]]
      del span["labels"]
    return content

  def work(self) -> None:
    """Does all groups that are not finished."""
    self.outcomes = groups.work(self.jobs, series_job.process)
    self.changed |= any(o.is_fresh and o.info for o in self.outcomes.values())

  @property
  def errors(self) -> list[SlideError]:
    """Everything that could not be used or was changed, by series."""
    failed = [error for o in self.outcomes.values() for error in o.errors]
    unique = {
      (e.slide, e.stage, e.error, e.message): e
      for e in [*self.found_errors, *failed]
    }
    return [unique[key] for key in sorted(unique)]

  def part_summary(self) -> runs.RunSummary:
    """Says what a part did; tables are made when all are put together."""
    text = "\n".join(
      [
        *(f"{e.slide} [{e.stage}/{e.error}] {e.message}" for e in self.errors),
        runs.part_text(self.config["part"]),
      ]
    )
    bad = any(error.stage != NOTE for error in self.errors)
    code = runs.EXIT_SOME_FAILED if bad else runs.EXIT_GOOD
    return runs.RunSummary(self.errors, self.changed, text, code)

  def finish(self, begin: float, has_patients: bool) -> runs.RunSummary:
    """Puts the data set together, and says what was done."""
    full = {
      job: self.outcomes[job.name].info
      for job in self.jobs
      if self.outcomes[job.name].info.get("sequences")
    }
    parts = [
      shards.Part(
        job.folder / job.SHARD,
        job.name,
        job.name.split("-")[0],
        info["sequences"],
        info["num_bytes"],
      )
      for job, info in full.items()
    ]
    if parts:
      self.changed |= shards.assemble(
        self.out / "shards",
        parts,
        self.shape.layout,
        self._metadata(),
        self.targets,
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
      targets=self.targets.targets,
      done=self._done(),
      assignment=self.assignment,
      errors=self.errors,
      changed=self.changed,
      seconds=time.perf_counter() - begin,
      has_patients=has_patients,
    )
    return runs.RunSummary(self.errors, self.changed, text, code)

  def _done(self) -> dict[str, dict[str, Any]]:
    """What became of each series that gave a sequence, by id."""
    infos = (o.info.get("series", {}) for o in self.outcomes.values())
    return dict(sorted(collections.ChainMap(*infos).items()))

  def _metadata(self) -> dict[str, Any]:
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
      "slides": {
        series_id: {**info, "split": self.assignment[info["patient_id"]]}
        for series_id, info in self._done().items()
      },
      "config": {**shaping, "splits": dict(self.config["splits"])},
    }
