"""The job `mil_report`: a page for every slide, and one for the cohort.

Reads what the jobs `mil` and `mil_predict` wrote, and the slides for pictures;
see `configs/mil_report.py`. Each slide is drawn by itself, with a digest of all
that its page depends on (prediction, map, file, settings, the cohort's range of
contributions); a slide whose digest is right is left as it is. What stands in
`report.json` is written last.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from data_prep.files import atomic, errors
from data_prep.files.errors import SlideError
from data_prep.wsi import find, tissue
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import config as configs
from wsiseq_jax import jobs, launch
from wsiseq_jax.maps import annotations, heatmaps, regions
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports.slides import cohort_page, slide_page
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides import work as report_work

SYNTHETIC = "synthetic"
_KIND = "mil_report"


def _groups(value: Any) -> str | None:
  if isinstance(value, tuple | list) and all(isinstance(v, str) for v in value):
    return None
  return "a tuple of names of groups"


CHECKS: Mapping[str, configs.Check] = {
  "job": configs.one_of("mil_report"),
  "workdir": configs.text(),
  "data.slides": configs.text(),
  "data.table": configs.text(),
  "data.default_mpp": configs.number(0),
  "data.annotations": configs.text(),
  "data.annotation_include": _groups,
  "data.annotation_exclude": _groups,
  "data.annotation_ignore": _groups,
  "data.reader": configs.one_of("auto", "openslide"),
  "data.threads": configs.integer(1),
  "report.out": configs.text(),
  "report.sequence_report": configs.text(),
  "report.um_per_px": configs.number(0),
  "report.longest_px": configs.integer(64),
  "report.card_px": configs.integer(32),
  "report.tissue": configs.one_of("none", *tissue.METHODS),
  "report.smooth_um": configs.number(0),
  "report.threshold_from": configs.one_of("validation", "given"),
  "report.threshold": configs.number(0, 1),
  "report.tile_threshold": configs.number(0, 1),
  "report.close_um": configs.number(0),
  "report.open_um": configs.number(0),
  "report.min_area_um2": configs.number(0),
  "report.max_hole_um2": configs.number(0),
  "report.radius_um": configs.number(0),
  "report.tiles": configs.integer(0),
  "report.tiles_by": configs.one_of(*regions.SCORES),
  "report.tiles_apart_um": configs.number(0),
  "report.tile_px": configs.integer(8),
  "report.context": configs.number(1, 20),
  "report.geojson": configs.flag(),
  "report.tiles_geojson": configs.flag(),
  "report.resamples": configs.integer(10),
  "report.bins": configs.integer(1),
}


@dataclasses.dataclass(frozen=True)
class Written:
  """What was done.

  Attributes:
    page: the cohort's page.
    drawn: slides whose pages were written.
    kept: slides whose pages were there before.
    problems: why a slide's picture or map is not shown, by slide.
  """

  page: pathlib.Path
  drawn: int
  kept: int
  problems: Mapping[str, str]


def mil_report(config: ConfigDict) -> None:
  """The job; ends the program with exit code 3 if a slide could not be shown.

  Args:
    config: see `configs/mil_report.py`.

  Raises:
    ValueError: a bad config, no predictions, or no slide where they should be.
    SystemExit: some slides could not be shown.
  """
  validate(config)
  if not launch.is_main():
    return
  if config.data.slides == SYNTHETIC:
    from wsiseq_jax.reports.slides import synthetic

    made = synthetic.write(pathlib.Path(config.workdir))
    config.data.slides = str(made)
  written = write_report(config)
  if written.problems:
    launch.log(
      f"report: {len(written.problems)} slides are not fully shown, see "
      f"{written.page.parent / 'errors.csv'}"
    )
    sys.exit(3)


def validate(config: ConfigDict) -> None:
  """Checks every key and value.

  Raises:
    ValueError: all that is wrong.
  """
  jobs.check(config, "mil_report")
  configs.check_keys(config, CHECKS)
  if not config.workdir:
    raise ValueError(
      "config.workdir = '': name the workdir of a job 'mil' or 'mil_predict'"
    )
  if config.data.table and not config.data.slides:
    raise ValueError(
      f"config.data.table = {config.data.table!r} describes slides, and "
      "config.data.slides names none"
    )


def write_report(config: ConfigDict) -> Written:
  """Writes all pages that are not there, or no longer true.

  Args:
    config: see `configs/mil_report.py`.

  Returns:
    What was done.

  Raises:
    ValueError: no predictions, no slide where they should be, or a folder that
      holds another report.
  """
  workdir = pathlib.Path(config.workdir)
  out = pathlib.Path(config.report.out or workdir / "report")
  predictions = report_data.read(workdir)
  old = _read_state(out)
  entries, missing = _find_slides(config, predictions)
  drawn_by_people = annotations.find(
    config.data.annotations, [row.slide_id for row in predictions.rows]
  )
  maps, limit = _read_maps(workdir / "maps", predictions)
  settings = configs.to_dict(config)
  context = slide_page.Context(
    predictions,
    report_data.Decisions(
      config.report.threshold_from, config.report.threshold
    ),
    settings["report"],
    annotated=frozenset(drawn_by_people),
  )
  link = _sequence_report(config, workdir, out)
  work = report_work.Work(
    out, context, settings["data"], entries, missing, drawn_by_people, maps,
    limit,
  )  # fmt: skip
  digests = {row.slide_id: work.digest(row) for row in predictions.rows}
  cohort = _cohort_digest(digests, workdir, settings["report"], link)
  page = out / "index.html"
  todo = [
    row
    for row in predictions.rows
    if old["slides"].get(row.slide_id, {}).get("digest")
    != digests[row.slide_id]
    or not work.is_there(row.slide_id)
  ]
  problems = {
    name: known["problem"]
    for name, known in old["slides"].items()
    if name in digests and known["problem"]
  }
  if not todo and page.is_file() and old["cohort"] == cohort:
    launch.log(f"report: {page} is up to date, nothing to do")
    return Written(page, 0, len(digests), problems)
  slides = {
    name: known for name, known in old["slides"].items() if name in digests
  }
  for name in sorted(set(old["slides"]) - set(digests)):
    launch.log(f"report: {name} is no longer predicted, its page is removed")
    report_work.clean(out / "slides" / name)
  state = {"kind": _KIND, "cohort": "", "slides": slides}
  for number, (row, problem) in enumerate(work.draw(todo), 1):
    slides[row.slide_id] = {
      "digest": digests[row.slide_id],
      "problem": problem,
    }
    # Slides that are done stay done after an interruption.
    _write_state(out, state)
    launch.log(
      f"[{number}/{len(todo)}] {row.slide_id}"
      + (f": {problem}" if problem else "")
    )
  problems = {k: v["problem"] for k, v in slides.items() if v["problem"]}
  cards = [work.card(row, problems) for row in predictions.rows]
  atomic.write_atomic(page, cohort_page.build(cards, context, link))
  errors.write(
    out / "errors.csv",
    [SlideError(v, "report", "problem", k) for k, v in problems.items()],
  )
  _write_state(out, {**state, "cohort": cohort})
  launch.log(
    f"report: {len(todo)} slides drawn, {len(digests) - len(todo)} kept; "
    f"wrote {page}"
  )
  return Written(page, len(todo), len(digests) - len(todo), problems)


# What is known before anything is drawn.


def _read_state(out: pathlib.Path) -> dict[str, Any]:
  path = out / "report.json"
  empty = {"kind": _KIND, "cohort": "", "slides": {}}
  if not path.is_file():
    if (out / "index.html").is_file():
      raise ValueError(
        f"config.report.out = {str(out)!r} holds a page of something else: "
        "name another folder"
      )
    return empty
  state = json.loads(path.read_text(encoding="utf-8"))
  if state.get("kind") != _KIND:
    raise ValueError(
      f"config.report.out = {str(out)!r} holds another report: name another "
      "folder"
    )
  return state


def _write_state(out: pathlib.Path, state: Mapping[str, Any]) -> None:
  text = json.dumps(state, indent=1, sort_keys=True)
  atomic.write_atomic(out / "report.json", text + "\n")


def _find_slides(
  config: ConfigDict, predictions: report_data.Predictions
) -> tuple[dict[str, SlideEntry], dict[str, str]]:
  """Files of the predicted slides, and why there is none of the others."""
  data = config.data
  ids = [row.slide_id for row in predictions.rows]
  if not data.slides:
    why = "no slides were given (config.data.slides = '')"
    return {}, dict.fromkeys(ids, why)
  try:
    found, errors = find.find_slides(data.slides, data.table)
  except ValueError as error:
    raise ValueError(f"config.data.slides: {error}") from error
  entries = {entry.slide_id: entry for entry in found if entry.slide_id in ids}
  reasons = {error.slide: error.message for error in errors}
  if not entries:
    near = ", ".join(repr(entry.slide_id) for entry in found[:3])
    first = f"; {errors[0].message}" if errors else ""
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


def _read_maps(
  folder: pathlib.Path, predictions: report_data.Predictions
) -> tuple[dict[str, pathlib.Path], float]:
  """Map files by slide, and the range of contributions of the cohort."""
  paths, contributions = {}, []
  for row in predictions.rows:
    path = folder / f"{row.slide_id}.npz"
    if row.is_ok and path.is_file():
      paths[row.slide_id] = path
      try:
        contributions.append(TileMap.load(path).contribution)
      except ValueError:
        pass  # its own page will say so
  some = [c for c in contributions if len(c)]
  return paths, heatmaps.cohort_range(some) if some else 1.0


def _sequence_report(
  config: ConfigDict, workdir: pathlib.Path, out: pathlib.Path
) -> str:
  """Address of a sequence report, seen from the cohort's page; '' = none."""
  wanted = config.report.sequence_report
  if wanted:
    given = pathlib.Path(wanted).expanduser()
    tried = [given, given / "index.html", given / "report" / "index.html"]
    found = [path for path in tried if path.is_file()]
    if not found:
      raise ValueError(
        f"config.report.sequence_report = {wanted!r}: there is no page"
      )
    page = found[0]
  else:
    pages = sorted(workdir.resolve().parent.glob("*/report/index.html"))
    pages = [path for path in pages if _is_sequence_report(path)]
    if not pages:
      return ""
    page = pages[0]
  return pathlib.PurePath(
    os.path.relpath(page.resolve(), out.resolve())
  ).as_posix()


def _is_sequence_report(page: pathlib.Path) -> bool:
  """Whether the job `report` wrote it."""
  stamp = page.with_name("report.json")
  try:
    return "fingerprint" in json.loads(stamp.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return False


def _cohort_digest(digests, workdir, settings, link) -> str:
  names = ("predictions.csv", "predictions_slide.csv", "summary.csv")
  files = [
    report_work.file_digest(workdir / name) for name in (*names, "summary.md")
  ]
  return report_work.digest_of(
    [report_work.VERSION, digests, files, {**settings, "out": ""}, link]
  )
