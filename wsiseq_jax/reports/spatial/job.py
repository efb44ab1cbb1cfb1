"""The job `spatial`: computes (`wsiseq_jax/spatial/job.py`), then pages.

A slide's page is written again if its numbers or the settings are others.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from data_prep import runs
from data_prep.files import done, schema, tables
from wsiseq_jax import jobs, launch
from wsiseq_jax.reports import page
from wsiseq_jax.reports.spatial import draw, slide
from wsiseq_jax.reports.spatial.draw import SlideData
from wsiseq_jax.spatial import job as work
from wsiseq_jax.spatial.one_slide import FAILED, SlideTask
from wsiseq_jax.spatial.settings import Settings

# Changes when pages of an older version must be written again.
_VERSION = 1
_CHARTS = 6  # of groups that differ


def run(config: ConfigDict) -> None:
  """The job; ends the program with the exit code unless all is well.

  Args:
    config: see `configs/spatial.py`.

  Raises:
    ValueError: a bad config, or nothing to do.
    SystemExit: some slides could not be used.
  """
  jobs.check(config, "spatial")
  settings = schema.build(Settings, config)
  if not launch.is_main():
    return
  summary = work.compute(settings)
  print(summary.text)
  if settings.data.part == runs.WHOLE:
    print(f"wrote {write_pages(settings, summary)}")
  if summary.exit_code:
    sys.exit(summary.exit_code)


def write_pages(settings: Settings, summary: work.CellsSummary) -> pathlib.Path:
  """Writes the pages of slides that are not up to date, and the cohort's."""
  workdir = pathlib.Path(settings.workdir)
  tasks = {task.slide_id: task for task in summary.tasks}
  cards = []
  for row in tables.rows_of(workdir / "slides.csv"):
    shown: dict[str, Any] = {}
    if row["status"] != FAILED:
      task = tasks[row["slide_id"]]
      info = summary.outcomes[row["slide_id"]].info
      shown = _slide_page(task, info, row["label"], settings)
    cards.append({"row": row, **shown})
  path = workdir / "index.html"
  _cohort_page(path, cards, summary, settings)
  return path


def _slide_page(
  task: SlideTask, info: Mapping[str, Any], group: str, settings: Settings
) -> dict[str, Any]:
  folder = pathlib.Path(task.folder)
  stage = done.Done(folder / "page.json", [_VERSION, task.mark().inputs, group])
  shown = stage.read()
  if shown is None:
    stage.clear()
    shown = slide.write_page(SlideData.load(folder, info), settings, group)
    files = ("index.html", draw.MAP, draw.CARD)
    stage.write(shown, [folder / name for name in files])
  return shown


def _cohort_page(
  path: pathlib.Path,
  cards: Sequence[Mapping[str, Any]],
  summary: work.CellsSummary,
  settings: Settings,
) -> None:
  """The page of all slides, with patients compared."""
  workdir = path.parent
  pooled = pq.read_table(workdir / "patients.parquet").to_pandas()
  group_of = {c["row"]["patient_id"]: c["row"]["label"] for c in cards}
  good = [card for card in cards if card["row"]["status"] != FAILED]
  level = settings.statistics.level
  compared = summary.groups.sort_values(["q", "p"], kind="stable")
  differ = compared[compared["q"] <= level]
  page.write(
    path,
    "spatial_cohort.html.j2",
    facts=[
      ("slides", len(cards)),
      ("patients", len({c["row"]["patient_id"] for c in cards})),
      ("not used", len(cards) - len(good)),
      ("cells", f"{sum(int(c['row']['cells'] or 0) for c in good):,}"),
      ("groups", ", ".join(sorted({g for g in group_of.values() if g})) or "–"),
    ],
    differ=[_sentence(row) for row in differ.to_dict("records")],
    compared=[_group_row(row) for row in compared.to_dict("records")],
    chart=_group_chart(pooled, compared, group_of),
    shown=min(len(compared), _CHARTS),
    level=level,
    cards=[
      {
        "row": card["row"],
        "image": page.Image(
          f"slides/{card['row']['slide_id']}/{draw.CARD}",
          f"cells of slide {card['row']['slide_id']}",
          *card["card"],
        )
        if "card" in card
        else None,
      }
      for card in cards
    ],
    errors=[
      (r["slide_id"], r["stage"], r["code"], r["message"])
      for r in tables.rows_of(workdir / "errors.csv")
    ],
    settings=settings,
  )


def _pair(row: Mapping[str, Any]) -> str:
  """Which cells a row is about.

  Example:
    >>> _pair({"from": "a", "to": "regions"}), _pair({"from": "a", "to": ""})
    ('a around regions', 'a')
  """
  if not row["to"]:
    return row["from"]
  word = "around" if row["to"] == "regions" else "and"
  return f"{row['from']} {word} {row['to']}"


def _sentence(row: Mapping[str, Any]) -> dict[str, Any]:
  """A difference in words."""
  return {
    "what": slide.SAID[row["statistic"]],
    "pair": _pair(row),
    "a": row["group_a"],
    "b": row["group_b"],
    "mean_a": slide.digits(row["mean_a"]),
    "mean_b": slide.digits(row["mean_b"]),
    "at": f"{row['at_um']:g} µm" if row["statistic"] in _CURVES else "",
    "q": slide.digits(row["q"]),
  }


_CURVES = ("K", "g", "G", "profile", "level_sets")


def _group_row(row: Mapping[str, Any]) -> tuple[str, ...]:
  said = _sentence(row)
  groups = (
    f"{said['a']} ({row['patients_a']}), {said['b']} ({row['patients_b']})"
  )
  return (
    said["what"],
    said["pair"],
    groups,
    said["at"],
    said["mean_a"],
    said["mean_b"],
    slide.digits(row["p"]),
    said["q"],
    row["note"],
  )


def _group_chart(
  pooled: pd.DataFrame, compared: pd.DataFrame, group_of: Mapping[str, str]
):
  """Curves of patients for the statistics that differ most."""
  tested = compared[compared["p"].notna()]
  keys = list(
    dict.fromkeys(
      (row["statistic"], row["from"], row["to"])
      for row in tested.to_dict("records")
    )
  )[:_CHARTS]
  if not keys:
    return None
  parts = [
    pooled[(pooled[["statistic", "from", "to"]] == list(key)).all(axis=1)]
    for key in keys
  ]
  names = [
    f"{key[0]}: " + _pair({"from": key[1], "to": key[2]}) for key in keys
  ]
  known = {patient: group for patient, group in group_of.items() if group}
  return page.svg(draw.groups_chart(parts, names, known))
