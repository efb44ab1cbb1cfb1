"""The work of the job `spatial`: all slides, their tables, and the cohort's.

Slides are shared over processes (`data_prep/cluster.py`); one that is done is
skipped. The pages are made of what this leaves, by `reports/spatial/job.py`.
"""

import contextlib
import dataclasses
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import tqdm

from data_prep import cluster, runs
from data_prep.files import errors, names, tables
from data_prep.files.done import Done
from data_prep.files.errors import SlideError
from data_prep.synthetic import cells as synthetic
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry
from wsiseq_jax.maps import annotations
from wsiseq_jax.spatial import (
  cell_tables,
  cohort,
  one_slide,
  points,
  regions,
  slide_files,
  slide_numbers,
  without_slides,
)
from wsiseq_jax.spatial.one_slide import CellsOutcome, SlideTask
from wsiseq_jax.spatial.settings import SYNTHETIC, Settings

EXIT_GOOD, EXIT_NOTHING, EXIT_SOME_FAILED = 0, 1, 3
SLIDES = (
  *("slide_id", "patient_id", "label", "split", "filename", "status"),
  *("cells", "types", "outside", "window_mm2", "region_mm2", "mpp"),
  *("seconds", "reason"),
)
_ANNOTATED = (".xml", ".geojson", ".json")
_CELL_ENDS = ("_cp_outlines.txt", "_cp_masks.png", "_cp_masks.tif")
_CELL_ENDS += (".geojson", ".json", ".xml", ".npz", ".npy", ".png", ".tiff")
_CELL_ENDS += (".tif", *cell_tables.ENDS)


@dataclasses.dataclass(frozen=True)
class CellsSummary:
  """What a run did."""

  tasks: Sequence[SlideTask]
  outcomes: Mapping[str, CellsOutcome]  # by slide
  groups: pd.DataFrame  # of patients, compared
  text: str  # the result in words
  exit_code: int


@dataclasses.dataclass(frozen=True)
class SlidesFound:
  """The slides of a run, and what is known before any is opened."""

  tasks: Sequence[SlideTask]
  entries: Mapping[str, SlideEntry]  # by slide, also of those without a file
  errors: Sequence[SlideError]


def compute(settings: Settings) -> CellsSummary:
  """Does all slides that are not done, and writes the tables.

  Raises:
    ValueError: nothing to do, or folders that are not there.
  """
  workdir = pathlib.Path(settings.workdir)
  tables.refuse_others(workdir, "workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  if settings.data.slides == SYNTHETIC:
    settings = _synthetic(settings, workdir)
  found = find_all(settings, workdir)
  number, parts = runs.share(settings.data.part, "data.part")
  mine = list(found.tasks)[number - 1 :: parts]
  outcomes: dict[str, CellsOutcome] = {}
  todo = []
  for task in mine:
    try:
      info = task.mark().read()
    except SlideError as error:
      error.slide = task.slide_id
      outcomes[task.slide_id] = CellsOutcome(task.slide_id, {}, error)
      continue
    if info is None:
      todo.append(task)
    else:
      outcomes[task.slide_id] = CellsOutcome(task.slide_id, info)
  before = len(outcomes)
  _work(todo, outcomes, settings)
  wrong = _tables(workdir, mine, found, outcomes, settings)
  groups = _cohort(workdir, mine, found, outcomes, settings)
  good = sum(outcome.error is None for outcome in outcomes.values())
  lines = [f"{good} slides done ({before} of them before this run)"]
  lines += [f"  - {e.slide} [{e.stage}/{e.error}]: {e.message}" for e in wrong]
  has_failed = good < len(outcomes) or bool(found.errors)
  code = EXIT_SOME_FAILED if has_failed else EXIT_GOOD
  return CellsSummary(
    mine, outcomes, groups, "\n".join(lines), code if good else EXIT_NOTHING
  )


def _synthetic(settings: Settings, workdir: pathlib.Path) -> Settings:
  table = synthetic.make_cohort(
    workdir / "synthetic", patients=settings.data.patients
  )
  data = dataclasses.replace(
    settings.data,
    slides=str(table),
    cells=settings.data.cells or str(table.parent / "cells"),
    regions=settings.data.regions or str(table.parent / "regions"),
  )
  return dataclasses.replace(settings, data=data)


def _work(
  todo: Sequence[SlideTask],
  outcomes: dict[str, CellsOutcome],
  settings: Settings,
) -> None:
  """Does slides in processes of their own."""
  data = settings.data
  config = {
    "cluster": cluster.LOCAL,
    "workers": data.workers,
    "memory_gb": data.memory_gb,
  }
  # Its remarks on workers that come and go are of no use to anybody here.
  logging.getLogger("distributed").setLevel(logging.WARNING)
  bar = tqdm.tqdm(total=len(todo), unit="slide", disable=not todo)
  results = cluster.run(one_slide.work, todo, config)
  with bar, contextlib.closing(results):
    for index, result in results:
      slide_id = todo[index].slide_id
      if isinstance(result, cluster.Died):
        error = SlideError(
          f"the process that read it died ({result.reason}): most likely too "
          "little memory (config.data.memory_gb), or a damaged file",
          "process",
          "worker_died",
          slide_id,
        )
        result = CellsOutcome(slide_id, {}, error)
      outcomes[slide_id] = result
      if result.error is not None:
        text = f"{slide_id}: {result.error.error}: {result.error.message}"
        tqdm.tqdm.write(text, file=sys.stderr)
      bar.update()


# Which slides, and which files belong to them.


def find_all(settings: Settings, workdir: pathlib.Path) -> SlidesFound:
  """Slides with the files of their cells, regions and windows.

  Raises:
    ValueError: a folder is not there, or none of its files is of a slide.
  """
  data, bad = settings.data, []
  entries: dict[str, SlideEntry] = {}
  if data.slides:
    listed, wrong = find.find_slides(data.slides, data.table)
    usable, names_bad = find.usable_names(listed)
    bad += [*wrong, *names_bad]
    entries = {entry.slide_id: entry for entry in usable}
  twice: dict[str, str] = {}
  cells = _cell_files(settings, list(entries), workdir, twice)
  if not data.slides:
    entries, wrong = without_slides.entries(data.table, cells)
    bad += wrong
  ids = sorted(entries)
  region = regions.find(data.regions, ids, "data.regions", twice) if ids else {}
  window = annotations.find(
    data.windows, ids, "data.windows", _ANNOTATED, twice
  )
  bad += [SlideError(v, "find", "two_files", k) for k, v in twice.items()]
  ids = [slide_id for slide_id in ids if slide_id not in twice]
  tasks = []
  for slide_id in ids:
    if data.cells and slide_id not in cells:
      bad.append(
        SlideError(
          f"no file of its cells in {data.cells}", "find", "no_cells", slide_id
        )
      )
      continue
    if data.windows and slide_id not in window:
      bad.append(
        SlideError(
          f"no file in {data.windows} says what of it is looked at",
          "find",
          "no_window",
          slide_id,
        )
      )
      continue
    entry = entries[slide_id]
    tasks.append(
      SlideTask(
        slide_id,
        entry.patient_id,
        str(workdir / "slides" / slide_id),
        settings,
        entry if data.slides else None,
        str(cells.get(slide_id, "")),
        str(region.get(slide_id, "")),
        str(window.get(slide_id, "")),
      )
    )
  return SlidesFound(tasks, entries, bad)


def _cell_files(
  settings: Settings,
  ids: Sequence[str],
  workdir: pathlib.Path,
  twice: dict[str, str],
) -> dict[str, pathlib.Path]:
  """Files of cells by slide; a table of many slides is split first."""
  data = settings.data
  if not data.cells:
    return {}
  place = pathlib.Path(data.cells).expanduser()
  if earlier := points.files(place):  # the workdir of this job
    found = names.match(ids, earlier) if data.slides else earlier
  elif place.is_file():
    files = _split(place, workdir / "cells", ids, settings.cells.score)
    found = names.match(ids, files) if data.slides else files
  elif data.slides:
    found = annotations.find(data.cells, ids, "data.cells", _CELL_ENDS, twice)
  elif place.is_dir():
    own = {
      names.stem(path.name[: -len(end)])
      for path in place.iterdir()
      for end in _CELL_ENDS
      if path.name.lower().endswith(end)
    }
    found = annotations.find(
      data.cells, sorted(own), "data.cells", _CELL_ENDS, twice
    )
  else:
    raise ValueError(f"config.data.cells = {data.cells!r}: no such file")
  if not found and not twice:
    raise ValueError(
      f"config.data.cells = {data.cells!r}: none of the slides is in it, such "
      f"as {ids[0] if ids else 'S1'!r}"
    )
  return found


def _split(
  place: pathlib.Path, folder: pathlib.Path, ids: Sequence[str], score: str
) -> dict[str, pathlib.Path]:
  """One file a slide of a table of cells, made once."""
  stat = place.stat()
  stage = Done(
    folder / "done.json", [str(place), stat.st_size, stat.st_mtime_ns, score]
  )
  info = stage.read()
  if info is None:
    files = cell_tables.split(place, folder, score)
    if not files and len(ids) == 1:
      return {ids[0]: place}
    if not files:
      raise ValueError(
        f"config.data.cells = {str(place)!r}: no column says which slide a "
        "cell is of, such as slide_id: give a folder with a file for each"
      )
    stage.write({"slides": sorted(files)}, files.values())
    return files
  return {name: folder / f"{name}.parquet" for name in info["slides"]}


# Tables.


def _tables(
  workdir: pathlib.Path,
  tasks: Sequence[SlideTask],
  found: SlidesFound,
  outcomes: Mapping[str, CellsOutcome],
  settings: Settings,
) -> list[SlideError]:
  """Writes slides.csv and errors.csv; returns the rows of the latter."""
  rows, wrong = [], list(found.errors)
  for task in tasks:
    outcome, entry = outcomes[task.slide_id], found.entries[task.slide_id]
    rows.append(_slide_row(entry, outcome))
    wrong += [SlideError(*state) for state in outcome.info.get("notes", ())]
    wrong += [outcome.error] if outcome.error else []
  part = settings.data.part
  if part == runs.WHOLE:
    rows += [
      _slide_row(
        found.entries[error.slide], CellsOutcome(error.slide, {}, error)
      )
      for error in found.errors
      if error.slide in found.entries
    ]
  rows.sort(key=lambda row: row["slide_id"])
  tables.write(workdir / runs.table_name("slides", part), SLIDES, rows)
  errors.write(workdir / runs.table_name("errors", part), wrong)
  return wrong


def _slide_row(entry: SlideEntry, outcome: CellsOutcome) -> dict[str, Any]:
  info, error = outcome.info, outcome.error
  row = {name: info.get(name, "") for name in SLIDES}
  types = info.get("types", {})
  return row | {
    "slide_id": entry.slide_id,
    "patient_id": entry.patient_id,
    "label": entry.label or "",
    "split": entry.split or "",
    "filename": pathlib.Path(entry.path).name,
    "status": one_slide.FAILED if error else info["status"],
    "types": " ".join(f"{name}={count}" for name, count in types.items()),
    "region_mm2": info.get("region_mm2") or "",
    "reason": error.error if error else info["reason"],
  }


def _cohort(
  workdir: pathlib.Path,
  tasks: Sequence[SlideTask],
  found: SlidesFound,
  outcomes: Mapping[str, CellsOutcome],
  settings: Settings,
) -> pd.DataFrame:
  """Joins the tables of slides, pools them, and compares groups."""
  good = [task for task in tasks if outcomes[task.slide_id].error is None]
  scores, curves = [], []
  for task in good:
    folder = pathlib.Path(task.folder)
    scores += tables.rows_of(folder / "scores.csv")
    curves.append(pq.read_table(folder / "curves.parquet").to_pandas())
  part = settings.data.part

  def path(name: str, end: str) -> pathlib.Path:
    table = workdir / runs.table_name(name, part)
    return table.with_suffix(end)

  tables.write(path("scores", ".csv"), slide_numbers.SCORES, scores)
  frame = pd.DataFrame(scores, columns=list(slide_numbers.SCORES))
  for name in ("at_um", "value", "expected", "p", "n_from", "n_to"):
    frame[name] = pd.to_numeric(frame[name])
  slide_files.write_frame(path("scores", ".parquet"), frame)
  every = pd.DataFrame(columns=list(slide_numbers.CURVES))
  if curves:
    every = pd.concat(curves, ignore_index=True)
  slide_files.write_frame(path("curves", ".parquet"), every)
  pooled = cohort.patients(every)
  slide_files.write_frame(path("patients", ".parquet"), pooled)
  rows = pooled.to_dict("records")
  tables.write(path("patients", ".csv"), list(pooled.columns), rows)
  compared = pd.DataFrame(columns=list(cohort.GROUPS))
  by = settings.groups.by
  owners: dict[str, set[str]] = {}
  for task in good:
    group = by and getattr(found.entries[task.slide_id], by)
    owners.setdefault(task.patient_id, set()).update([group] if group else [])
  # Whoever is in two groups is in none.
  group_of = {
    p: groups.pop() for p, groups in owners.items() if len(groups) == 1
  }
  if len(set(group_of.values())) > 1:
    compared = cohort.groups(pooled, group_of, settings)
  tables.write(
    path("groups", ".csv"), cohort.GROUPS, compared.to_dict("records")
  )
  return compared
