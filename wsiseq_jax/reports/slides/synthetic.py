"""Made-up predictions and maps of synthetic slides: pages without models.

The maps know the truth and add noise to it: they show what a good model's pages
look like, and nothing else.
"""

import csv
import pathlib
from collections.abc import Sequence

import numpy as np

from data_prep.files import errors
from data_prep.files.errors import SlideError
from data_prep.synthetic import slides as synthetic
from data_prep.wsi.slides import Slide
from wsiseq_jax.maps.tile_map import LEVEL0, TileMap
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil import results, tables

CLASSES = ("normal", "tumour")
NORMAL = ("negative", "normal")
_THRESHOLD = 0.45


def write(
  workdir: pathlib.Path,
  slides: int = 3,
  size_px: tuple[int, int] = (640, 512),
  tile_um: float = 48.0,
) -> pathlib.Path:
  """Draws slides and writes what the job `mil` would have left behind."""
  table = synthetic.make_cohort(
    workdir / "slides", slides=slides, size_px=size_px, region_um=200.0
  )
  predict(workdir, table, tile_um)
  return table


def predict(
  workdir: pathlib.Path,
  table: pathlib.Path,
  tile_um: float,
  failures: Sequence[str] = (),
  seeds: int = 3,
) -> None:
  """Makes up predictions of slides whose truth lies beside them."""
  with table.open(newline="") as file:
    rows = sorted(csv.DictReader(file), key=lambda row: row["slide_id"])
  positive = np.array([row["label"] not in NORMAL for row in rows])
  members = tuple(
    cohorts.CohortSlide(
      row["slide_id"], row["patient_id"], CLASSES[int(is_positive)]
    )
    for row, is_positive in zip(rows, positive, strict=True)
  )
  labels = positive[:, None].astype(np.float64)
  cohort = cohorts.Cohort(members, labels, "binary", CLASSES)
  rng = np.random.default_rng(0)
  logit = np.where(positive, 1.1, -1.1) + rng.normal(0, 0.9, len(rows))
  status = {
    row["slide_id"]: "no_tissue" if row["slide_id"] in failures else "ok"
    for row in rows
  }
  found, every = [], []
  for seed in range(seeds):
    p = 1 / (1 + np.exp(-(logit + rng.normal(0, 0.5, len(rows)))))
    p[[row["slide_id"] in failures for row in rows]] = positive.mean()
    every.append(p)
    found.append(_result(seed, cohort, np.stack([1 - p, p], axis=1), status))
  workdir.mkdir(parents=True, exist_ok=True)
  errors.write(
    workdir / "errors.csv",
    [
      SlideError("it has no tile", "features", "no_tissue", name)
      for name in failures
    ],
  )
  tables.write(
    workdir, cohort, status, found, resamples=100, bins=5, is_crossed=False
  )
  (workdir / "maps").mkdir(exist_ok=True)
  for slide, row, p in zip(members, rows, np.mean(every, axis=0), strict=True):
    if slide.slide_id not in failures:
      one = _map(table.parent, slide, row, float(p), tile_um, rng)
      one.save(workdir / "maps" / f"{slide.slide_id}.npz")


def _result(seed, cohort, values, status) -> results.Result:
  ids = tuple(cohort.ids)
  test = results.Predicted(ids, values, tuple(status[name] for name in ids))
  return results.Result(
    results.FoldRun(0, 0, seed),
    1,
    ((1.0, 1.0),),
    (0.0, 1.0),
    np.full(2, 0.5),
    np.array([1 - _THRESHOLD, _THRESHOLD]),
    True,
    {"test": test},
  )


def _map(folder, slide, row, p, tile_um, rng) -> TileMap:
  truth = synthetic.Truth.load(folder / "truth" / f"{slide.slide_id}.npz")
  with Slide.open(folder / row["filename"]) as opened:
    size, mpp = opened.level0_px, opened.mpp
  side = tile_um / mpp
  columns, lines = (int(n // side) for n in size)
  number = np.arange(columns * lines)
  xy = np.stack([number % columns, number // columns], axis=1) * side
  # A tile is kept where most of 25 points in it are tissue.
  share = (np.arange(5) + 0.5) / 5 * side
  points = xy[:, None] + np.stack(np.meshgrid(share, share), -1).reshape(
    1, -1, 2
  )
  flat = points.reshape(-1, 2)
  inside = (truth.tissue_type(flat) >= 0).reshape(len(xy), -1).mean(axis=1)
  tumour = truth.lesion(flat).reshape(len(xy), -1).mean(axis=1)
  kept = inside > 0.5
  xy, tumour = xy[kept].astype(np.float64), tumour[kept]
  logit = -3.2 + 6.0 * tumour + rng.normal(0, 0.9, len(xy))
  attention = np.exp(logit - logit.max())
  attention /= attention.sum()
  return TileMap(
    slide_id=slide.slide_id,
    patient_id=slide.patient_id,
    xy=xy,
    tile_size=float(side),
    unit=LEVEL0,
    level0_mpp=mpp,
    level0_size=size,
    attention=attention.astype(np.float32),
    probability=(1 / (1 + np.exp(-logit))).astype(np.float32),
    contribution=(attention * logit).astype(np.float32),
    class_name=CLASSES[1],
    slide_probability=p,
    threshold=_THRESHOLD,
    label=slide.text,
  )
