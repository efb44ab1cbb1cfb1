"""The table of a run: what every stage is worth, on pictures of the test split.

A stage's maps become classes by a threshold. Either it is fixed, or validation
chooses the one of the highest mIoU, by its masks; nothing looks at the masks of
the split that is reported, and each row says where its threshold comes from.

Two rows are there in any case, to be beaten: `all tissue` is foreground, and
`stain`, a threshold on haematoxylin alone, smoothed. Both name the foreground
class that validation has most of.

    segmentation.csv            a row for each result and score, with the 95 %
                                interval over patients
    segmentation_patients.csv   the same for each patient
    segmentation.md             the scores side by side
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import skimage.color
from jaxtyping import Float, Int

from data_prep.files import atomic, tables
from wsiseq_jax import launch
from wsiseq_jax.metrics import bootstrap, segmentation
from wsiseq_jax.metrics.segmentation import NOT_KNOWN, Matched
from wsiseq_jax.segment import decide
from wsiseq_jax.segment.pictures import LabelledPicture
from wsiseq_jax.segment.settings import SegmentScores
from wsiseq_jax.segment.stage import Stage, StageContext

COLUMNS = (
  *("stage", "reading", "metric", "value", "low", "high", "threshold"),
  *("threshold_from", "split", "pictures", "patients"),
)
PATIENT_COLUMNS = (
  *("stage", "reading", "patient_id", "pictures", "metric", "value"),
)
FIXED, CHOSEN = "fixed, no mask was looked at", "masks of validation"
# Thresholds that are tried: as many quantiles of the scores of validation.
_TRIED = 64
_EVERY = 7  # pixel of those scores
_STAIN_SIGMA_PX = 4.0


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """Something that segments pictures: a reading of a stage, or a baseline."""

  stage: str
  reading: str
  # (split, picture) → scores [y, h, w] of every pixel.
  of: Callable[[str, LabelledPicture], np.ndarray]
  threshold: float | None = None  # None is to be chosen
  threshold_from: str = ""
  has_instances: bool = False


@dataclasses.dataclass
class _Counts:
  """What is counted of each picture; see `metrics.segmentation`."""

  overlap: list[Int[np.ndarray, "k k"]] = dataclasses.field(
    default_factory=list
  )
  boundary: list[Int[np.ndarray, "4"]] = dataclasses.field(default_factory=list)
  instances: list[Matched] = dataclasses.field(default_factory=list)


def write(
  context: StageContext, chain: Sequence[Stage], asked: SegmentScores
) -> list[dict[str, Any]]:
  """Scores all stages that segment, and writes the tables.

  Returns:
    The rows of `segmentation.csv`; [] where no picture of the test split has a
    mask.
  """
  numbers = _with_masks(context, "test")
  if not numbers:
    launch.log("no picture of the test split has a mask: nothing is scored")
    return []
  results = _choose(context, _results(context, chain))
  counts = _count(context, results, numbers, asked.boundary_px)
  patients = np.array(
    [context.pictures("test").patient_ids[n] for n in numbers]
  )
  rows, patient_rows = [], []
  for result, counted in zip(results, counts, strict=True):
    score = functools.partial(
      segmentation.statistics,
      np.stack(counted.overlap),
      np.stack(counted.boundary),
      counted.instances,
    )
    values = score(np.ones((1, len(numbers))))
    ends = bootstrap.intervals(score, patients, asked.resamples)
    about = {"stage": result.stage, "reading": result.reading}
    rows += [
      {
        **about,
        "metric": name,
        "value": float(value[0]),
        "low": ends[name][0],
        "high": ends[name][1],
        "threshold": result.threshold,
        "threshold_from": result.threshold_from,
        "split": context.pictures("test").split,
        "pictures": len(numbers),
        "patients": len(set(patients)),
      }
      for name, value in values.items()
    ]
    of_patient = np.unique(patients)[:, None] == patients[None]
    each = score(of_patient.astype(np.float64))
    for at, patient in enumerate(np.unique(patients)):
      patient_rows += [
        {
          **about,
          "patient_id": patient,
          "pictures": int(of_patient[at].sum()),
          "metric": name,
          "value": float(value[at]),
        }
        for name, value in each.items()
      ]
  folder = context.workdir
  tables.write(folder / "segmentation.csv", COLUMNS, rows)
  tables.write(
    folder / "segmentation_patients.csv", PATIENT_COLUMNS, patient_rows
  )
  atomic.write_atomic(folder / "segmentation.md", text_of(rows))
  return rows


def text_of(rows: Sequence[dict[str, Any]]) -> str:
  """The table for people: a line a result, a column a score."""
  names = list(dict.fromkeys(row["metric"] for row in rows))
  one_patient = rows[0]["patients"] == 1
  lines = [
    f"Split `{rows[0]['split']}`: {rows[0]['pictures']} pictures with masks of "
    + (
      "one patient, so that there is no interval"
      if one_patient
      else f"{rows[0]['patients']} patients. Intervals of 95 % come from "
      "resampling patients"
    )
    + ". No threshold was chosen on this split.",
    "",
    "| stage | reading | " + " | ".join(names) + " | threshold |",
    "|---" * (len(names) + 3) + "|",
  ]
  groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
  for row in rows:
    key = (row["stage"], row["reading"])
    groups.setdefault(key, {})[row["metric"]] = row
  for (stage, reading), of in groups.items():
    cells = [_cell(of[n]) if n in of else "" for n in names]
    one = next(iter(of.values()))
    threshold = f"{one['threshold']:.3f}: {one['threshold_from']}"
    lines.append(f"| {stage} | {reading} | {' | '.join(cells)} | {threshold} |")
  return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
  interval = f" [{row['low']:.3f}, {row['high']:.3f}]"
  return f"{row['value']:.3f}" + (interval if row["low"] == row["low"] else "")


def _with_masks(context: StageContext, split: str) -> list[int]:
  """Pictures of which some pixel's class is known."""
  pictures = context.pictures(split)
  return [
    number
    for number in range(len(pictures))
    if (pictures.picture(number).truth != NOT_KNOWN).any()
  ]


def _results(context: StageContext, chain: Sequence[Stage]) -> list[Scored]:
  """The baselines and all readings of all stages."""
  most = _commonest_class(context)
  count = len(context.classes)

  def alone(score):
    scores = np.full((count, *score.shape), -np.inf, np.float32)
    scores[most - 1] = score
    return scores

  found = [
    Scored(
      "all tissue", "", lambda split, p: alone(p.tissue * 1.0), 0.5, FIXED
    ),
    Scored("stain", "chosen", lambda split, p: alone(stain(p))),
  ]
  for stage in chain:
    for reading in stage.readings:

      def of(split, picture, name=stage.name, array=reading.array):
        maps = context.maps(name, split).read(picture.id)
        return decide.enlarge(maps[array], picture.size)

      where = FIXED if reading.threshold is not None else ""
      found.append(
        Scored(
          stage.name,
          reading.name,
          of,
          reading.threshold,
          where,
          getattr(stage, "has_instances", False),
        )
      )
  return found


def stain(picture: LabelledPicture) -> Float[np.ndarray, "h w"]:
  """Haematoxylin of every pixel, smoothed: what nuclei are full of."""
  hed = skimage.color.rgb2hed(picture.pixels)[..., 0].astype(np.float32)
  return cv2.GaussianBlur(hed, (0, 0), _STAIN_SIGMA_PX)


def _commonest_class(context: StageContext) -> int:
  """The foreground class that masks of validation have most of; or 1."""
  pictures, counts = context.pictures("val"), np.zeros(NOT_KNOWN + 1, int)
  for number in range(len(pictures)):
    counts += np.bincount(
      pictures.picture(number).truth.ravel(), minlength=len(counts)
    )
  return int(counts[1:NOT_KNOWN].argmax()) + 1


def _choose(context: StageContext, results: Sequence[Scored]) -> list[Scored]:
  """The same results, with all their thresholds.

  Where validation has no masks those that need them are left out.
  """
  open_ones = [r for r in results if r.threshold is None]
  numbers = _with_masks(context, "val")
  if not numbers:
    launch.log(
      "no picture of the validation split has a mask: rows whose threshold "
      "would be chosen there are left out"
    )
    return [r for r in results if r not in open_ones]
  pictures, found = context.pictures("val"), {}
  for result in open_ones:

    def each(result=result):
      for number in numbers:
        picture = pictures.picture(number)
        yield picture, result.of("val", picture)

    found[result] = best_threshold(each)
  return [
    dataclasses.replace(r, threshold=found[r], threshold_from=CHOSEN)
    if r in found
    else r
    for r in results
  ]


def best_threshold(
  each: Callable[
    [], Iterator[tuple[LabelledPicture, Float[np.ndarray, "y h w"]]]
  ],
) -> float:
  """The threshold of the highest mIoU; the lowest of equal ones.

  Args:
    each: () → pictures with masks, and scores of their pixels; called twice.
  """
  values = [s.max(axis=0)[p.tissue > 0][::_EVERY] for p, s in each()]
  values = np.concatenate(values)
  if not len(values):
    raise ValueError(
      "config.data.val_split: no tissue in any picture with a mask, so that no "
      "threshold can be chosen"
    )
  tried = np.unique(np.quantile(values, np.linspace(0, 1, _TRIED)))
  total = sum(counts_at(p, scores, tried) for p, scores in each())
  return float(tried[np.nanargmax(segmentation.overlap(total)["miou"])])


def counts_at(
  picture: LabelledPicture,
  scores: Float[np.ndarray, "y h w"],
  thresholds: Float[np.ndarray, " t"],
) -> Int[np.ndarray, "t k k"]:
  """`segmentation.confusion` at each of ascending thresholds, in one pass."""
  y, t = len(scores), len(thresholds)
  known = picture.truth != NOT_KNOWN
  best = np.where(picture.tissue > 0, scores.max(axis=0), -np.inf)[known]
  # A pixel is foreground at the first `bin` thresholds.
  bins = np.searchsorted(thresholds, best, side="right")
  truth = picture.truth[known].astype(int)
  cell = (truth * y + scores.argmax(axis=0)[known]) * (t + 1) + bins
  counts = np.bincount(cell, minlength=(y + 1) * y * (t + 1))
  counts = counts.reshape(y + 1, y, t + 1)
  above = counts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]  # [k, y, t]
  below = counts.sum(axis=(1, 2))[:, None] - above.sum(axis=1)  # [k, t]
  whole = np.concatenate([below[:, None], above], axis=1)
  return whole.transpose(2, 0, 1)


def _count(
  context: StageContext,
  results: Sequence[Scored],
  numbers: Sequence[int],
  tolerance_px: float | int,
) -> list[_Counts]:
  """Counts of each result on each test picture, read once."""
  pictures, count = context.pictures("test"), len(context.classes)
  found = [_Counts() for _ in results]
  for picture in map(pictures.picture, numbers):
    for result, counts in zip(results, found, strict=True):
      scores = result.of("test", picture)
      classes = decide.classes_of(scores, picture.tissue, result.threshold)
      counts.overlap.append(
        segmentation.confusion(picture.truth, classes, count)
      )
      counts.boundary.append(
        segmentation.boundary_counts(picture.truth, classes, tolerance_px)
      )
      if result.has_instances:
        maps = context.maps(result.stage, "test").read(picture.id)
        counts.instances.append(
          segmentation.match_instances(
            picture.truth,
            maps["instances"],
            maps["instance_classes"],
            maps["instance_scores"],
          )
        )
  return found
