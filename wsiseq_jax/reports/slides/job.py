"""The job `mil_report`: a page for every slide, and one for the cohort.

Reads what the jobs `mil` and `mil_predict` wrote, and the slides for pictures;
see `configs/mil_report.py`. Each slide is drawn by one thread and marked as
done with all that its page depends on. Whatever is wrong with its file or its
map is on its page and in `errors.csv`, and stops no other slide.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import cv2
from ml_collections import ConfigDict

from data_prep.files import done, errors, names, schema
from data_prep.files.errors import SlideError
from data_prep.wsi import find
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import jobs, launch
from wsiseq_jax.maps import annotations, heatmaps
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports import page as pages
from wsiseq_jax.reports.slides import cohort, draw, slide
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides.data import Predictions, SlideRow
from wsiseq_jax.reports.slides.settings import Data, Settings
from wsiseq_jax.reports.slides.source import SlideFiles

SYNTHETIC = "synthetic"
_KIND = "mil_report"
# Changes when pages of an older version must be written again; templates and
# style say so themselves (`page.design`).
_VERSION = 4
_TABLES = (
  "predictions.csv",
  "predictions_slide.csv",
  "summary.csv",
  "summary.md",
)
# Settings that no slide's page depends on.
_OF_COHORT = {"out": "", "sequence_report": "", "resamples": 10, "bins": 1}


@dataclasses.dataclass(frozen=True)
class Written:
  """What was done."""

  page: pathlib.Path  # the cohort's page
  drawn: int  # slides whose pages were written
  kept: int  # slides whose pages were there before
  # Why a slide's picture or map is not shown, by slide.
  problems: Mapping[str, str]


def run(config: ConfigDict) -> None:
  """The job; ends the program with exit code 3 if a slide could not be shown.

  Args:
    config: see `configs/mil_report.py`.

  Raises:
    ValueError: a bad config, no predictions, or no slide where they should be.
    SystemExit: some slides could not be shown.
  """
  jobs.check(config, "mil_report")
  settings = schema.build(Settings, config)
  if not launch.is_main():
    return
  if settings.data.slides == SYNTHETIC:
    from wsiseq_jax.reports.slides import synthetic

    made = synthetic.write(pathlib.Path(settings.workdir))
    data = dataclasses.replace(settings.data, slides=str(made))
    settings = dataclasses.replace(settings, data=data)
  written = write_report(settings)
  if written.problems:
    launch.log(
      f"report: {len(written.problems)} slides are not fully shown, see "
      f"{written.page.parent / 'errors.csv'}"
    )
    sys.exit(3)


def write_report(settings: Settings) -> Written:
  """Writes all pages that are not there, or no longer true."""
  data, report = settings.data, settings.report
  workdir = pathlib.Path(settings.workdir)
  out = pathlib.Path(report.out or workdir / "report")
  predictions = report_data.read(workdir)
  _refuse_others(out)
  sources, limit = _sources(workdir, data, predictions)
  drawn_by_people = frozenset(k for k, v in sources.items() if v.annotation)
  context = slide.Context(
    predictions,
    report_data.Decisions(report.threshold_from, report.threshold),
    report,
    drawn_by_people,
  )
  link = _sequence_report(report.sequence_report, workdir, out)
  stages = {
    row.slide_id: done.Done(
      _folder(out, row.slide_id) / "done.json",
      _inputs(row, sources[row.slide_id], context, data, limit),
    )
    for row in predictions.rows
  }
  known = {name: stage.read() for name, stage in stages.items()}
  page = out / "index.html"
  whole = done.Done(
    out / "report.json",
    {
      "version": [_VERSION, pages.design()],
      "slides": {name: stage.inputs for name, stage in stages.items()},
      "tables": {name: _digest(workdir / name) for name in _TABLES},
      "settings": dataclasses.replace(report, out=""),
      "link": link,
    },
  )
  todo = [row for row in predictions.rows if known[row.slide_id] is None]
  if not todo and whole.read() is not None:
    launch.log(f"report: {page} is up to date, nothing to do")
    return Written(page, 0, len(stages), _problems(known))
  _remove_others(out, set(stages))

  def work(row: SlideRow) -> dict[str, Any]:
    source, stage = sources[row.slide_id], stages[row.slide_id]
    return _draw(row, source, stage, context, data, limit)

  # Parallel over slides; OpenCV's own threads would only get in the way.
  cv2.setNumThreads(1)
  with concurrent.futures.ThreadPoolExecutor(data.threads) as pool:
    for number, (row, info) in enumerate(
      zip(todo, pool.map(work, todo), strict=True), 1
    ):
      known[row.slide_id] = info
      problem = f": {info['problem']}" if info["problem"] else ""
      launch.log(f"[{number}/{len(todo)}] {row.slide_id}{problem}")
  problems = _problems(known)
  cards = []
  for row in predictions.rows:
    info = known[row.slide_id]
    cards.append(cohort.Card(row, info["cards"], info["problem"]))
  cohort.write_page(page, cards, context, link)
  errors.write(
    out / "errors.csv",
    [
      SlideError(text, "report", "problem", name, None, known[name]["trace"])
      for name, text in problems.items()
    ],
  )
  whole.write({"kind": _KIND}, [page])
  launch.log(
    f"report: {len(todo)} slides drawn, {len(stages) - len(todo)} kept; "
    f"wrote {page}"
  )
  return Written(page, len(todo), len(stages) - len(todo), problems)


def _problems(known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  return {k: info["problem"] for k, info in known.items() if info["problem"]}


def _draw(
  row: SlideRow,
  source: SlideFiles,
  stage: done.Done,
  context: slide.Context,
  data: Data,
  limit: float,
) -> dict[str, Any]:
  """Writes a slide's page and files; returns its problem and its pictures."""
  folder = stage.path.parent
  folder.mkdir(parents=True, exist_ok=True)
  stage.clear()
  draw.clean(folder)
  name, value = report_data.headline(context.predictions, row)
  label = f", label {row.label}" if row.label else ""
  title = f"{row.slide_id}: {name} {value:.3f}{label}"
  try:
    drawn = draw.draw(folder, source, title, limit, data, context.settings)
  except Exception as error:  # the one place where a slide may fail at all
    if isinstance(error, OSError) or str(error).startswith("config."):
      raise
    wrong = errors.as_slide_error(error, row.slide_id, "report")
    drawn = draw.SlideFigures(notes=(wrong.message,), trace=wrong.trace)
  page = folder / "index.html"
  slide.write_page(page, row, drawn, context)
  # Without slides nobody expects pictures of them.
  missing = [drawn.slide_error] if drawn.slide_error and data.slides else []
  info = {
    "problem": " ".join([*missing, *drawn.notes]),
    "trace": drawn.trace,
    "cards": drawn.cards,
  }
  stage.write(info, [page, *(folder / file for file in drawn.files)])
  return info


def _folder(out: pathlib.Path, slide_id: str) -> pathlib.Path:
  """Where a slide's page is."""
  if slide_id in ("", ".", "..") or "/" in slide_id:
    raise ValueError(
      f"predictions_slide.csv: the slide id {slide_id!r} cannot name a folder"
    )
  return out / "slides" / slide_id


def _refuse_others(out: pathlib.Path) -> None:
  """A folder that holds a page of something else is left alone."""
  stamp = out / "report.json"
  if (out / "index.html").is_file() and _kind(stamp) != _KIND:
    raise ValueError(
      f"config.report.out = {str(out)!r} holds another report: name another "
      "folder"
    )


def _kind(stamp: pathlib.Path) -> str:
  """Which job wrote a report; '' for none of ours."""
  if not stamp.is_file():
    return ""
  return json.loads(stamp.read_text(encoding="utf-8")).get("kind", "")


def _remove_others(out: pathlib.Path, ids: set[str]) -> None:
  for mark in sorted((out / "slides").glob("*/done.json")):
    if mark.parent.name not in ids:
      launch.log(
        f"report: {mark.parent.name} is no longer predicted, its page is "
        "removed"
      )
      mark.unlink()
      draw.clean(mark.parent)


# What is known before anything is drawn.


def _sources(
  workdir: pathlib.Path, data: Data, predictions: Predictions
) -> tuple[dict[str, SlideFiles], float]:
  """Files of each slide, and the range of contributions of the cohort."""
  ids = [row.slide_id for row in predictions.rows]
  entries, missing = _find_slides(data, ids)
  twice: dict[str, str] = {}
  people = annotations.find(data.annotations, ids, doubled=twice)
  sources, contributions = {}, []
  for row in predictions.rows:
    name = row.slide_id
    path, problem = workdir / "maps" / f"{name}.npz", ""
    if not row.is_ok or not path.is_file():
      path = None
    else:
      try:
        scores = TileMap.load(path).contribution
        contributions += [scores] if len(scores) else []
      except ValueError as error:
        problem = str(error)
    sources[name] = SlideFiles(
      entries.get(name),
      missing.get(name, ""),
      path,
      problem,
      people.get(name),
      twice.get(name, ""),
    )
  limit = heatmaps.cohort_range(contributions) if contributions else 1.0
  return sources, limit


def _find_slides(
  data: Data, ids: list[str]
) -> tuple[dict[str, SlideEntry], dict[str, str]]:
  """Files of the predicted slides, and why there is none of the others."""
  if not data.slides:
    why = "no slides were given (config.data.slides = '')"
    return {}, dict.fromkeys(ids, why)
  try:
    found, refused = find.find_slides(data.slides, data.table)
  except ValueError as error:
    raise ValueError(f"config.data.slides: {error}") from error
  entries = names.match(ids, {e.slide_id: e for e in found})
  reasons = {error.slide: error.message for error in refused}
  if not entries:
    near = ", ".join(repr(entry.slide_id) for entry in found[:3])
    first = f"; {refused[0].message}" if refused else ""
    raise ValueError(
      f"config.data.slides = {data.slides!r}: none of the {len(ids)} predicted "
      f"slides (such as {ids[0]!r}) is there, found {near or 'nothing'}{first}"
    )
  missing = {
    name: reasons.get(name, f"no slide of this name in {data.slides}")
    for name in ids
    if name not in entries
  }
  return entries, missing


def _inputs(
  row: SlideRow,
  source: SlideFiles,
  context: slide.Context,
  data: Data,
  limit: float,
) -> dict[str, Any]:
  """All that a slide's page depends on."""
  found, entry, file = context.predictions, source.entry, None
  if entry is not None:
    status = os.stat(entry.path)
    mask = _digest(pathlib.Path(entry.mask_path)) if entry.mask_path else ""
    file = [entry, status.st_size, status.st_mtime_ns, mask]
  drawn_by_people = None
  if source.annotation is not None:
    groups = [
      data.annotation_include,
      data.annotation_exclude,
      data.annotation_ignore,
    ]
    path = source.annotation
    drawn_by_people = [path.name, _digest(path), groups]
  return {
    "version": [_VERSION, pages.design()],
    "row": row,
    "cohort": [found.target_type, found.classes, found.is_crossed],
    "map": _digest(source.tile_map) if source.tile_map else "",
    "limit": limit if source.tile_map else 0.0,
    "file": file,
    "missing": source.missing,
    "annotation": drawn_by_people,
    "has_annotations": bool(context.annotated),
    "data": [data.default_mpp, data.reader],
    "settings": dataclasses.replace(context.settings, **_OF_COHORT),
  }


def _digest(path: pathlib.Path) -> str:
  """Of a whole file; '' where there is none."""
  return done.file_digest(path, whole=True) if path.is_file() else ""


def _sequence_report(
  wanted: str, workdir: pathlib.Path, out: pathlib.Path
) -> str:
  """Address of a sequence report, seen from the cohort's page; '' = none."""
  if wanted:
    given = pathlib.Path(wanted).expanduser()
    tried = [given, given / "index.html", given / "report" / "index.html"]
    pages = [path for path in tried if path.is_file()]
    if not pages:
      raise ValueError(
        f"config.report.sequence_report = {wanted!r}: there is no page"
      )
  else:
    beside = sorted(workdir.resolve().parent.glob("*/report/index.html"))
    pages = [p for p in beside if _kind(p.with_name("report.json")) == "report"]
  if not pages:
    return ""
  relative = os.path.relpath(pages[0].resolve(), out.resolve())
  return pathlib.PurePath(relative).as_posix()
