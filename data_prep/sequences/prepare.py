"""Runs preparation over many slides: find, skip, work, split, put together.

The order of things, and why it survives being killed anywhere:

1. Find the slides; everything named but unusable is a row of errors.csv.
2. Skip slides whose `slide.json` names the same settings and the same file.
3. Do the others, one slide a worker; each leaves a complete folder or none.
4. Give new patients a split. This comes after the work, so that a slide which
   fails takes no place in a split, and it depends on names and seed alone.
5. Link the finished files into a TFDS data set, which appears in one step, and
   write the labels beside them.

Each step finds what an earlier, killed run left and goes on from there. A part
(`config.part`) ends after step 3.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import tqdm

from data_prep import cluster, records, runs, shards, splits
from data_prep.files import atomic, schema, tables, values
from data_prep.files import errors as error_rows
from data_prep.files.errors import SlideError
from data_prep.files.schema import FILLED, Range
from data_prep.sequences import geometries, slide_job, summary
from data_prep.sequences.geometries import Geometry
from data_prep.sequences.slide_job import SlideJob, SlideOutcome
from data_prep.targets import Target, TargetTable, encode, resolve
from data_prep.wsi import find, tissue
from data_prep.wsi.find import SlideEntry

_TABLES_EVERY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tissue:
  """How tissue is found."""

  method: Literal[tuple(tissue.METHODS)] = "guarded"
  # Longest side of what the mask is made of.
  thumbnail_px: Annotated[int, Range(64)] = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideSettings(runs.RunSettings):
  """The settings of a run over slides: `configs/prep_wsi.py`."""

  source: str = "slides"
  slides: Annotated[str, FILLED]
  table: str = ""  # a CSV that describes slides named in `slides`
  splits: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1}
  )
  # Class names in the order of their numbers; () = those found, sorted.
  labels: tuple[str, ...] = ()
  # um per pixel of the frames, met exactly.
  mpp: Annotated[float, Range(above=0)] = 0.25
  # How much finer than the scan `mpp` may be.
  mpp_tolerance: Annotated[float, Range(0, 0.99)] = 0.02
  allow_upsampling: bool = False
  # For slides that state none; 0 = refuse them.
  default_mpp: Annotated[float, Range(0)] = 0.0
  # 'openslide': read everything through OpenSlide.
  reader: Literal["auto", "openslide"] = "auto"
  sequence: geometries.SequenceSettings
  tissue: Tissue
  # 4:2:0 halves the colour resolution: at 224 px, where models look, that
  # costs 2.4 dB of 46.7 and saves 16 % of the bytes and 28 % of the decoding.
  jpeg: runs.Jpeg = runs.Jpeg(quality=90, subsampling="420")


def check_config(config: Mapping[str, Any]) -> Geometry:
  """Checks all settings before any work is done."""
  schema.build(SlideSettings, config)
  return geometries.from_config(config)


def label_of(entries: Sequence[SlideEntry], given: Sequence[str]) -> Target:
  """Says what the labels of slides are: numbers, or which classes."""
  cells = [entry.label for entry in entries if entry.label]
  if not given and all(values.number(cell) is not None for cell in cells):
    return resolve({"label": cells}, ())[0]
  return Target("label", values.class_names(cells, given, "labels"))


def prepare(config: Mapping[str, Any]) -> runs.RunSummary:
  """Prepares a data set, or a part of its slides."""
  begin = time.perf_counter()
  geometry = check_config(config)
  entries, errors = find.find_slides(
    config["slides"], config["table"], config["labels"]
  )
  entries, bad_names = find.usable_names(entries)
  errors = [*errors, *bad_names]
  given = splits.pinned((e.slide_id, e.patient_id, e.split) for e in entries)
  label = label_of(entries, config["labels"])
  out = pathlib.Path(config["out"])
  tables.refuse_others(out, "out")
  for name in ("parts", "qc"):
    (out / name).mkdir(parents=True, exist_ok=True)
  part, parts = runs.share(config["part"])
  with runs.lock(out, config["part"]):
    existing = splits.load(out / "splits.json")
    # Contradictions end the run before hours of work, not after them.
    splits.assign([], config["splits"], config["seed"], given, existing)
    if parts > 1:
      run = _Run(config, entries[part - 1 :: parts], errors, existing)
      run.work()
      return run.summary([runs.part_text(config["part"])])
    atomic.remove_temporaries(out)
    run = _Run(config, entries, errors, existing)
    run.work()
    return _finish(run, geometry, given, label, begin)


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
    self.outcomes: dict[str, SlideOutcome] = {}
    self.changed = False
    earlier = tables.rows_of(self._table("slides"))
    self._earlier = {row.get("slide_id", ""): row for row in earlier}

  def _table(self, name: str) -> pathlib.Path:
    return self.out / runs.table_name(name, self.config["part"])

  @property
  def errors(self) -> list[SlideError]:
    """Everything that could not be used, by slide."""
    failed = [o.error for o in self.outcomes.values() if o.error is not None]
    notes = [
      SlideError(*state)
      for outcome in self.outcomes.values()
      for state in outcome.info.get("notes", ())
    ]
    return sorted([*self.found_errors, *failed, *notes], key=lambda e: e.slide)

  def work(self) -> None:
    """Does all slides that are not finished."""
    jobs = list(self._jobs())
    bar = tqdm.tqdm(
      total=len(self.entries),
      initial=len(self.entries) - len(jobs),
      unit="slide",
      dynamic_ncols=True,
      smoothing=0.1,
      disable=not jobs,
    )
    results = cluster.run(slide_job.process, jobs, self.config)
    written = time.perf_counter()
    try:
      with bar, contextlib.closing(results):
        for index, result in results:
          self._take(jobs[index].entry.slide_id, result)
          bar.set_postfix_str(jobs[index].entry.slide_id)
          bar.update()
          if time.perf_counter() - written > _TABLES_EVERY_SECONDS:
            self.write_tables()
            written = time.perf_counter()
    finally:
      self.write_tables()

  def _jobs(self) -> Iterator[SlideJob]:
    """Yields the slides to do; notes those finished or unreadable."""
    for entry in self.entries:
      try:
        job = slide_job.make_job(entry, self.config)
      except SlideError as error:
        self.outcomes[entry.slide_id] = SlideOutcome(
          entry.slide_id, slide_job.FAILED, {}, None, error
        )
        continue
      outcome = slide_job.finished(job)
      if outcome is None:
        yield job
      else:
        self.outcomes[entry.slide_id] = outcome

  def _take(self, slide_id: str, result: SlideOutcome | cluster.Died) -> None:
    if isinstance(result, cluster.Died):
      error = SlideError(
        f"the process reading it died ({result.reason}): most likely a damaged "
        "file, or too little memory",
        stage="process",
        error="worker_died",
        slide=slide_id,
      )
      result = SlideOutcome(slide_id, slide_job.FAILED, {}, None, error)
    self.outcomes[slide_id] = result
    self.changed |= result.status != slide_job.FAILED
    if result.error is not None:
      tqdm.tqdm.write(
        f"{slide_id}: {result.error.error}: {result.error.message}",
        file=sys.stderr,
      )

  def write_tables(self) -> None:
    """Writes slides.csv and errors.csv as far as the run has come."""
    rows = summary.slide_rows(
      self.entries, self.outcomes, self.assignment, self._earlier
    )
    self.changed |= tables.write(
      self._table("slides"), tables.SLIDE_COLUMNS, rows
    )
    self.changed |= error_rows.write(self._table("errors"), self.errors)

  def summary(self, lines: Sequence[str]) -> runs.RunSummary:
    """Says what was done."""
    lines = list(lines)
    if self.errors:
      rows = "1 row" if len(self.errors) == 1 else f"{len(self.errors)} rows"
      lines.append(f"{rows} in {self._table('errors')}")
    text = summary.closing_text(
      self.entries, self.outcomes, self.errors, self.assignment, lines
    )
    code = runs.EXIT_SOME_FAILED if self.errors else runs.EXIT_GOOD
    return runs.RunSummary(self.errors, self.changed, text, code)


def _finish(
  run: _Run,
  geometry: Geometry,
  given: Mapping[str, str],
  label: Target,
  begin: float,
) -> runs.RunSummary:
  """Splits the patients, puts the data set together, and says what was done."""
  config, out, entries = run.config, run.out, run.entries
  full = [
    (entry, run.outcomes[entry.slide_id].info)
    for entry in sorted(entries, key=lambda entry: entry.slide_id)
    if run.outcomes[entry.slide_id].info.get("sequences")
  ]
  if full:
    run.assignment = splits.assign(
      {entry.patient_id for entry, _ in full},
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
        path=out / "parts" / entry.slide_id / slide_job.SHARD,
        slide_id=entry.slide_id,
        split=run.assignment[entry.patient_id],
        sequences=info["sequences"],
        num_bytes=info["num_bytes"],
      )
      for entry, info in full
    ]
    run.changed |= shards.assemble(
      out / "shards",
      parts,
      geometry.layout(),
      _metadata(run, geometry, full),
      TargetTable(
        (label,), {e.slide_id: (encode(label, e.label or ""),) for e, _ in full}
      ),
    )
  run.write_tables()
  result = run.summary(_closing_lines(run, geometry, full, begin))
  # "No tissue" on every slide is a result, but not one to train on.
  return result if full else runs.nothing(result)


def _closing_lines(
  run: _Run,
  geometry: Geometry,
  full: Sequence[tuple[SlideEntry, Mapping[str, Any]]],
  begin: float,
) -> list[str]:
  out, sequences = run.out, sum(info["sequences"] for _, info in full)
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
    height, width = geometry.window_px
    speed = sum(o.seconds for o in worked) / made * 1e3 if made else 0.0
    lines += [
      f"{sequences:,} {run.config['sequence']['geometry']} sequences of "
      f"{geometry.frames} frames, {height} x {width} px at "
      f"{geometry.mpp:g} um/px, in {out / 'shards'}",
      f"{time.perf_counter() - begin:.1f} s"
      + (f", {speed:.1f} ms a sequence and process" if made else ""),
    ]
  named = {entry.slide_id for entry in run.entries}
  others = {p.name for p in (out / "parts").iterdir()} - named
  if others:
    lines.append(
      f"{len(others)} slides of earlier runs were not named this time: they "
      f"stay in {out / 'parts'}, outside the data set"
    )
  return lines


def _metadata(
  run: _Run,
  geometry: Geometry,
  full: Sequence[tuple[SlideEntry, Mapping[str, Any]]],
) -> dict[str, Any]:
  """Makes the content of metadata.json; no path and no time goes in."""
  shaping = slide_job.shaping_config(run.config)
  layout = geometry.layout()
  return {
    "schema_version": records.SCHEMA_VERSION,
    "fingerprint": shards.fingerprint(shaping),
    "geometry": run.config["sequence"]["geometry"],
    "frames": layout.frames,
    "panels": layout.panels,
    "panel_px": list(layout.panel_px),
    "frame_px": list(geometry.window_px),
    "time_unit": "um",
    "mpp": geometry.mpp,
    "slides": {
      entry.slide_id: {
        "mpp": info["mpp"],
        "mpp_origin": info["mpp_origin"],
        "level0_px": info["level0_px"],
        "split": run.assignment[entry.patient_id],
        "patient_id": entry.patient_id,
        "sequences": info["sequences"],
      }
      for entry, info in full
    },
    "config": {**shaping, "splits": dict(run.config["splits"])},
  }
