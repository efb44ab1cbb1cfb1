"""The job `segment`: computes (`wsiseq_jax/segment/job.py`), then a page.

The page shows pictures of the test split that came out best, and as many that
came out worst, by the mIoU of the last result in the table.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_prep.files import tables
from wsiseq_jax import launch
from wsiseq_jax.metrics import segmentation
from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.segment import draw
from wsiseq_jax.segment import decide, settings
from wsiseq_jax.segment import job as work
from wsiseq_jax.segment.pictures import LabelledPicture
from wsiseq_jax.segment.stage import Reading, StageContext

_SHOWN = 4  # best pictures, and worst ones
_PICTURE_PX = 320

# Scores whose names in tables are no words.
_WORDS = {
  "miou": "mIoU",
  "dice": "Dice",
  "boundary_f1": "boundary F1",
  "ap50": "AP50",
}


def run(config: ConfigDict) -> list[dict[str, object]]:
  """The job; see `wsiseq_jax/segment/job.py`.

  Returns:
    The rows of `segmentation.csv`.
  """
  rows = work.run(config)
  launch.log(f"wrote {write_page(config)}")
  return rows


def write_page(config: ConfigDict) -> pathlib.Path:
  """Writes `index.html` of a finished run."""
  context = work.prepare(config)
  chain = settings.read(config).chain()
  rows = tables.rows_of(context.workdir / "segmentation.csv")
  stages = {stage.name: stage for stage in chain}
  result = _result(rows, stages)
  best, worst = [], []
  if result:
    ranked = _ranked(context, *result)
    half = min(_SHOWN, len(ranked) // 2)
    worst = [_shown(context, stages, result, *one) for one in ranked[:half]]
    best = [
      _shown(context, stages, result, *one)
      for one in ranked[::-1][: max(half, min(1, len(ranked)))]
    ]
  detection = [
    path
    for path in (context.folder(name) / "detection.csv" for name in stages)
    if path.is_file()
  ]
  test = context.pictures("test")
  path = context.workdir / "index.html"
  page.write(
    path,
    "segment.html.j2",
    facts=[
      ("method", settings.read(config).method),
      ("classes", ", ".join(context.classes)),
      *(
        (
          f"{role} pictures (patients)",
          f"{len(one)} ({len(set(one.patient_ids))})",
        )
        for role, one in context.splits.items()
      ),
    ],
    header=(
      *("stage", "reading"),
      *(_WORDS.get(name, name) for name in _metrics(rows)),
      "threshold",
    ),
    measures=_measures(rows),
    detected=[
      (row["metric"], _interval(row))
      for file in detection
      for row in tables.rows_of(file)
    ],
    split=test.split,
    result=result and f"{result[0]} ({result[1].name or 'usual'})",
    best=best,
    worst=worst,
  )
  return path


def _metrics(rows: Sequence[Mapping[str, str]]) -> list[str]:
  return list(dict.fromkeys(row["metric"] for row in rows))


def _interval(row: Mapping[str, str]) -> str:
  """A value with its interval; of one patient there is none.

  Example:
    >>> _interval({"value": "0.51", "low": "0.4", "high": "0.6"})
    '0.510 [0.400, 0.600]'
  """
  value, low, high = (
    page.number(float(row[key]) if row[key] else None)
    for key in ("value", "low", "high")
  )
  return f"{value} [{low}, {high}]" if row["low"] else value


def _measures(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
  """The table: a row a result, a column a score."""
  found: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
  for row in rows:
    of = found.setdefault((row["stage"], row["reading"]), {})
    of[row["metric"]] = row
  names, lines = _metrics(rows), []
  for (stage, reading), of in found.items():
    one = next(iter(of.values()))
    where = one["threshold_from"]
    if one["threshold"]:
      where = f"{float(one['threshold']):.3f}, {where}"
    cells = [_interval(of[n]) if n in of else "" for n in names]
    lines.append((stage, reading, *cells, where))
  return lines


def _result(
  rows: Sequence[Mapping[str, str]], stages: Mapping[str, Any]
) -> tuple[str, Reading, float] | None:
  """The last result of the table: stage, reading, threshold; None without."""
  found = None
  for row in rows:
    for reading in getattr(stages.get(row["stage"]), "readings", ()):
      if reading.name == row["reading"]:
        threshold = float(row["threshold"]) if row["threshold"] else math.nan
        found = (row["stage"], reading, threshold)
  return found


def _classes(
  context: StageContext,
  picture: LabelledPicture,
  stage: str,
  reading: Reading,
  threshold: float,
) -> np.ndarray:
  """What a result says of a picture of the test split."""
  found = context.maps(stage, "test").read(picture.id)[reading.array]
  if found.ndim == 2:
    return found
  return decide.classes_of(
    decide.enlarge(found, picture.size), picture.tissue, threshold
  )


def _ranked(
  context: StageContext, stage: str, reading: Reading, threshold: float
) -> list[tuple[int, float]]:
  """Pictures of the test split with masks and their mIoU, the worst first."""
  pictures, found = context.pictures("test"), []
  for number in np.flatnonzero(pictures.has_truth).tolist():
    picture = pictures.picture(number)
    counts = segmentation.confusion(
      picture.truth,
      _classes(context, picture, stage, reading, threshold),
      len(context.classes),
    )
    miou = float(segmentation.overlap(counts[None].astype(float))["miou"][0])
    found.append((number, miou))
  return sorted(found, key=lambda one: one[1])


def _shown(
  context: StageContext,
  stages: Mapping[str, Any],
  result: tuple[str, Reading, float],
  number: int,
  miou: float,
) -> dict[str, Any]:
  """A picture with all that the stages saw in it, side by side."""
  picture = context.pictures("test").picture(number)
  panels = [("picture", figures.fit(picture.pixels, _PICTURE_PX))]
  for stage in stages:
    maps = context.maps(stage, "test")
    if maps.has(picture.id):
      panels += [
        (f"{stage}: {name}", drawn)
        for name, drawn in draw.maps(picture.pixels, maps.read(picture.id))
      ]
  found = _classes(context, picture, *result)
  for name, classes in (("result", found), ("truth", picture.truth)):
    drawn = draw.classes(picture.pixels, classes)
    panels.append((name, figures.fit(drawn, _PICTURE_PX)))
  labels = [
    name
    for name, label in zip(context.classes, picture.labels, strict=True)
    if label > 0
  ]
  return {
    "id": picture.id,
    "patient": picture.patient_id,
    "labels": ", ".join(labels) or "none",
    "miou": miou,
    "panels": [
      (name, page.embedded(drawn, f"{name} of {picture.id}"))
      for name, drawn in panels
    ],
  }
