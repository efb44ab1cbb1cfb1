"""Runs preparation over many slides: find, skip, work, split, put together.

The order of things, and why it survives being killed anywhere:

1. Find the slides; everything named but unusable is a row of errors.csv.
2. Skip slides whose `slide.json` names the same settings and the same file.
3. Do the others, one slide a worker; each leaves a complete folder or none.
4. Give new patients a split. This comes after the work, so that a slide which
   fails takes no place in a split, and it depends on names and seed alone.
5. Link the finished files into a TFDS data set, which appears in one step.

Each step finds what an earlier, killed run left and goes on from there.
"""

import contextlib
import dataclasses
import errno
import fcntl
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tqdm

from data_prep import cluster, records, shards, splits
from data_prep.files import atomic, tables
from data_prep.files import errors as error_rows
from data_prep.files.errors import SlideError
from data_prep.sequences import geometry, settings, slide_job, summary
from data_prep.sequences.slide_job import Job, Outcome
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry

EXIT_GOOD, EXIT_NOTHING, EXIT_USAGE, EXIT_SOME_FAILED = 0, 1, 2, 3
_TABLES_EVERY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run did.

  Attributes:
    outcomes: what became of each slide, by slide id.
    errors: everything that could not be used, by slide.
    changed: whether anything was written.
    text: the result in words.
    exit_code: see `configs/prep_wsi.py`.
  """

  outcomes: Mapping[str, Outcome]
  errors: Sequence[SlideError]
  changed: bool
  text: str
  exit_code: int


def prepare(config: Mapping[str, Any]) -> Summary:
  """Prepares a data set.

  Args:
    config: the whole preparation config as plain dictionaries.

  Returns:
    What was done.

  Raises:
    ValueError: the settings, or the patients' splits, contradict themselves.
    OSError: the output folder cannot be written.
  """
  begin = time.perf_counter()
  spec = settings.check_config(config)
  entries, errors = find.find_slides(config["slides"], config["table"])
  entries, bad_names = slide_job.usable_names(entries)
  errors = [*errors, *bad_names]
  given = splits.pinned((e.slide_id, e.patient_id, e.split) for e in entries)
  classes = settings.class_names(entries, config["labels"])
  out = pathlib.Path(config["out"])
  for name in ("parts", "qc"):
    (out / name).mkdir(parents=True, exist_ok=True)
  with lock(out):
    atomic.remove_temporaries(out)
    existing = splits.load(out / "splits.json")
    # Contradictions end the run before hours of work, not after them.
    splits.assign([], config["splits"], config["seed"], given, existing)
    run = _Run(config, entries, errors, existing)
    run.work(classes)
    return _finish(run, spec, given, classes, begin)


class _Run:
  """The state of a run while slides are being done."""

  def __init__(
    self,
    config: Mapping[str, Any],
    entries: Sequence[SlideEntry],
    errors: Sequence[SlideError],
    assignment: Mapping[str, str],
  ):
    self.config, self.entries = config, entries
    self.out = pathlib.Path(config["out"])
    self.found_errors = list(errors)
    self.assignment = assignment
    self.outcomes: dict[str, Outcome] = {}
    self.changed = False
    earlier = tables.rows_of(self.out / "slides.csv")
    self._earlier = {row.get("slide_id", ""): row for row in earlier}

  @property
  def errors(self) -> list[SlideError]:
    """Everything that could not be used, by slide."""
    failed = [o.error for o in self.outcomes.values() if o.error is not None]
    return sorted([*self.found_errors, *failed], key=lambda e: e.slide)

  def work(self, classes: Sequence[str]) -> None:
    """Does all slides that are not finished."""
    jobs = list(self._jobs(classes))
    if not jobs:
      return
    running: dict[int, str] = {}
    written = time.perf_counter()
    bar = tqdm.tqdm(
      total=len(self.entries),
      initial=len(self.entries) - len(jobs),
      unit="slide",
      dynamic_ncols=True,
      smoothing=0.1,
    )
    events = cluster.run(slide_job.process, jobs, self.config, self.out)
    with bar, contextlib.closing(events):
      try:
        for event in events:
          slide_id = jobs[event.index].entry.slide_id
          if isinstance(event, cluster.Started):
            running[event.index] = slide_id
          else:
            del running[event.index]
            self._take(slide_id, event)
            bar.update()
            if time.perf_counter() - written > _TABLES_EVERY_SECONDS:
              self.write_tables()
              written = time.perf_counter()
          bar.set_postfix_str(", ".join(running.values()))
      finally:
        self.write_tables()

  def _jobs(self, classes: Sequence[str]) -> Iterator[Job]:
    """Yields the slides to do; notes those finished or unreadable."""
    for entry in self.entries:
      targets = settings.target_of(entry, classes)
      try:
        digest = slide_job.config_hash(entry, self.config, targets)
      except SlideError as error:
        self.outcomes[entry.slide_id] = Outcome(
          entry.slide_id, slide_job.FAILED, {}, None, error
        )
        continue
      job = Job(entry, self.config, str(self.out), targets, digest)
      outcome = slide_job.finished(job)
      if outcome is None:
        yield job
      else:
        self.outcomes[entry.slide_id] = outcome

  def _take(self, slide_id: str, event: cluster.Done | cluster.Died) -> None:
    if isinstance(event, cluster.Died):
      error = SlideError(
        f"the process reading it died ({event.reason}): most likely a damaged "
        "file, or too little memory",
        stage="process",
        error="worker_died",
        slide=slide_id,
      )
      outcome = Outcome(slide_id, slide_job.FAILED, {}, None, error)
    else:
      outcome = event.value
    self.outcomes[slide_id] = outcome
    if outcome.status != slide_job.FAILED:
      self.changed = True
    elif outcome.error is not None:
      tqdm.tqdm.write(
        f"{slide_id}: {outcome.error.error}: {outcome.error.message}",
        file=sys.stderr,
      )

  def write_tables(self) -> None:
    """Writes slides.csv and errors.csv as far as the run has come."""
    rows = summary.slide_rows(
      self.entries, self.outcomes, self.assignment, self._earlier
    )
    self.changed |= tables.write(
      self.out / "slides.csv", tables.SLIDE_COLUMNS, rows
    )
    self.changed |= error_rows.write(self.out / "errors.csv", self.errors)


@contextlib.contextmanager
def lock(out: pathlib.Path) -> Iterator[None]:
  """Keeps two runs out of one folder; goes when the process does.

  Args:
    out: the output folder.

  Yields:
    Once, while no other run can take it.

  Raises:
    ValueError: another run has it.
  """
  with open(out / ".lock", "a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        raise
      raise ValueError(
        f"config.out={str(out)!r} is in use by another run: wait for it, or "
        "choose another folder"
      ) from error
    yield


def _finish(
  run: _Run,
  spec: geometry.Spec,
  given: Mapping[str, str],
  classes: Sequence[str],
  begin: float,
) -> Summary:
  """Splits the patients, puts the data set together, and says what was done."""
  config, out, entries = run.config, run.out, run.entries
  patients = {entry.slide_id: entry.patient_id for entry in entries}
  full = {
    slide_id: outcome.info
    for slide_id, outcome in sorted(run.outcomes.items())
    if outcome.info.get("sequences")
  }
  if full:
    run.assignment = splits.assign(
      {patients[slide_id] for slide_id in full},
      config["splits"],
      config["seed"],
      given,
      run.assignment,
    )
    run.changed |= splits.save(
      out / "splits.json", run.assignment, config["splits"], config["seed"]
    )
    parts = [
      shards.Part(
        path=slide_job.folder(str(out), slide_id) / slide_job.SHARD,
        slide_id=slide_id,
        split=run.assignment[patients[slide_id]],
        sequences=info["sequences"],
        num_bytes=info["num_bytes"],
      )
      for slide_id, info in full.items()
    ]
    layout = spec.layout(1)
    metadata = _metadata(run, spec, layout, full, parts, classes)
    run.changed |= shards.assemble(out / "shards", parts, layout, metadata)
  run.write_tables()
  sequences = sum(info["sequences"] for info in full.values())
  took = time.perf_counter() - begin
  worked = [
    o for o in run.outcomes.values() if o.seconds is not None and o.info
  ]
  made = sum(o.info["sequences"] for o in worked)
  lines = []
  if not full:
    lines.append("No slide gave a sequence: no data set was written.")
  elif not run.changed:
    lines.append(
      f"Everything was finished already: {sequences:,} sequences in "
      f"{out / 'shards'}; nothing was written."
    )
  else:
    height, width = spec.window_px
    speed = sum(o.seconds for o in worked) / made * 1e3 if made else 0.0
    lines += [
      f"{sequences:,} {spec.geometry} sequences of {spec.frames} frames, "
      f"{height} x {width} px at {spec.mpp:g} um/px, in {out / 'shards'}",
      f"{took:.1f} s"
      + (f", {speed:.1f} ms a sequence and process" if made else ""),
    ]
  if run.errors:
    rows = "1 row" if len(run.errors) == 1 else f"{len(run.errors)} rows"
    lines.append(f"{rows} in {out / 'errors.csv'}")
  others = {p.name for p in (out / "parts").iterdir()} - set(patients)
  if others:
    lines.append(
      f"{len(others)} slides of earlier runs were not named this time: they "
      f"stay in {out / 'parts'}, outside the data set"
    )
  code = EXIT_SOME_FAILED if run.errors else EXIT_GOOD
  # "No tissue" on every slide is a result, but not one to train on.
  code = code if full else EXIT_NOTHING
  text = summary.closing_text(
    entries, run.outcomes, run.errors, run.assignment, lines
  )
  return Summary(run.outcomes, run.errors, run.changed, text, code)


def _metadata(
  run: _Run,
  spec: geometry.Spec,
  layout: shards.Layout,
  full: Mapping[str, Mapping[str, Any]],
  parts: Sequence[shards.Part],
  classes: Sequence[str],
) -> dict[str, Any]:
  """Makes the content of metadata.json; no path and no time goes in."""
  shaping = slide_job.shaping_config(run.config)
  return {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": shards.fingerprint(shaping),
    "geometry": spec.geometry,
    "frames": layout.frames,
    "panels": layout.panels,
    "panel_px": list(layout.panel_px),
    "frame_px": list(spec.window_px),
    "time_unit": "um",
    "mpp": spec.mpp,
    "target_names": ["label"],
    "target_classes": {"label": list(classes)} if classes else {},
    "slides": {
      part.slide_id: {
        "mpp": full[part.slide_id]["mpp"],
        "mpp_origin": full[part.slide_id]["mpp_origin"],
        "level0_px": full[part.slide_id]["level0_px"],
        "split": part.split,
        "patient_id": full[part.slide_id]["patient_id"],
        "sequences": part.sequences,
      }
      for part in parts
    },
    "config": {**shaping, "splits": dict(run.config["splits"])},
  }
