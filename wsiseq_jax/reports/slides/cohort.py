"""The page of the cohort: how good predictions are, then every slide.

Numbers of the tables are shown as `summary.csv` has them; only what is in no
table (the band of the ROC, the confusion at the threshold) is computed here, of
the same slides. Pictures of slides stay files beside their pages.
"""

import dataclasses
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsiseq_jax import charts
from wsiseq_jax.metrics import bootstrap, curves
from wsiseq_jax.mil.summary import METRIC_NAMES
from wsiseq_jax.reports import page
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides import slide as slide_page
from wsiseq_jax.reports.slides.data import Predictions, SlideRow
from wsiseq_jax.reports.slides.draw import CARDS
from wsiseq_jax.reports.slides.slide import Context


@dataclasses.dataclass(frozen=True)
class Card:
  """What the cohort's page shows of a slide."""

  row: SlideRow  # what was predicted
  # Width and height of its pictures, by name of the file.
  sizes: Mapping[str, tuple[int, int] | list[int]]
  note: str = ""  # what is missing, and why


def write_page(
  path: pathlib.Path,
  cards: Sequence[Card],
  context: Context,
  sequence_report: str = "",
) -> None:
  """Writes the page."""
  found, settings = context.predictions, context.settings
  has_classes = bool(found.scored) and not found.is_number
  questions = list(_questions(context)) if has_classes else []
  page.write(
    path,
    "cohort.html.j2",
    **context.values(),
    sequence_report=sequence_report,
    facts=_facts(context),
    unseen=sum(CARDS[0] not in card.sizes for card in cards),
    count=len(cards),
    metrics=_metrics(found),
    is_certain=any(r["low"] and r["low"] == r["high"] for r in found.summary),
    curves=[_curves(question, context) for question in questions],
    confusions=[]
    if found.target_type == "multiclass"
    else [_confusion(question, context) for question in questions],
    matrix_counts=_matrix(context),
    dots=_dots(context),
    wrong=[
      (address(row.slide_id), slide_page.verdict(row, context))
      for row in sorted(found.scored, key=lambda row: row.slide_id)
      if context.decisions.is_right(found, row) is False
    ],
    numbers=_numbers(found),
    cards=_shown(in_order(cards, context), context),
    has_maps=any(CARDS[1] in card.sizes for card in cards),
    ramp=slide_page.colour_bar("probability"),
    failures=_failures(cards),
    bins=settings.bins,
  )


def address(slide_id: str, file: str = "index.html") -> str:
  """Of a slide's page or picture, seen from the cohort's.

  Example:
    >>> address("a b#1")
    'slides/a%20b%231/index.html'
  """
  return f"slides/{urllib.parse.quote(slide_id)}/{file}"


# Numbers of the tables.


def _ensemble_row(
  found: Predictions, name: str, metric: str
) -> Mapping[str, str] | None:
  """The ensemble's row of `summary.csv`, of a class ('' = all)."""
  for row in found.summary:
    if (row["of"], row["class"], row["metric"]) == ("ensemble", name, metric):
      return row
  return None


def _number(text: str) -> str:
  return page.number(float(text) if text else None)


def _cell(row: Mapping[str, str]) -> str:
  low, high = _number(row["low"]), _number(row["high"])
  return f"{_number(row['mean'])} [{low}, {high}]"


def _facts(context: Context) -> list[tuple[str, Any]]:
  found = context.predictions
  items: list[tuple[str, Any]] = [
    ("slides", len(found.rows)),
    ("patients", len({row.patient_id for row in found.rows})),
    ("failures", sum(not row.is_ok for row in found.rows)),
    ("slides with a label", len(found.labelled)),
    ("whole predictions", len(found.single)),
    ("predicted", "a number")
    if found.is_number
    else ("classes", ", ".join(found.classes)),
  ]
  for metric in ("auroc", "r2", "concordance"):
    row = _ensemble_row(found, "", metric)
    if row:
      name = f"{METRIC_NAMES[metric]}, ensemble"
      items.append((name, _cell(row)))
  return items


def _metrics(found: Predictions) -> list[tuple[str, ...]]:
  """Rows of the table of all scores."""
  rows = []
  for row in found.summary:
    if row["of"] != "model":
      continue
    name = METRIC_NAMES[row["metric"]]
    of_class = f", {row['class']}" if row["class"] else ""
    whole = _ensemble_row(found, row["class"], row["metric"])
    rows.append(
      (
        name + of_class,
        _number(row["mean"]),
        f"± {_number(row['std'])}" if row["std"] else "–",
        f"{_number(row['low'])} to {_number(row['high'])}",
        _number(whole["mean"]),
        f"{_number(whole['low'])} to {_number(whole['high'])}",
      )
    )
  return rows


# What is asked with yes or no.


@dataclasses.dataclass(frozen=True)
class _Question:
  """A class that is asked for, of the slides whose answer is known."""

  name: str
  rows: Sequence[SlideRow]
  true: Float[np.ndarray, " n"]
  score: Float[np.ndarray, " n"]
  patients: np.ndarray
  others: Sequence[curves.Score]


def _questions(context: Context) -> Iterable[_Question]:
  found = context.predictions
  asked = list(enumerate(found.classes))
  if found.target_type == "binary":
    asked = asked[-1:]
  true = report_data.truth(found, found.scored)
  score = report_data.values(found, found.scored)
  for column, name in asked:
    known = np.flatnonzero(np.isfinite(true[:, column]))
    rows = [found.scored[i] for i in known]
    answers = true[known, column]
    others = []
    for one in found.single:
      have = [i for i, row in enumerate(rows) if row.slide_id in one]
      if len(np.unique(answers[have])) > 1:
        scores = [one[rows[i].slide_id][column] for i in have]
        others.append((answers[have], np.array(scores)))
    patients = np.array([row.patient_id for row in rows])
    scores = score[known, column]
    yield _Question(name, rows, answers, scores, patients, others)


def _positive(question: _Question, context: Context) -> np.ndarray:
  """Whether each slide is above its threshold."""
  cut = context.decisions.threshold_of
  return question.score >= [cut(row, question.name) for row in question.rows]


def _curves(question: _Question, context: Context) -> dict[str, Any]:
  """ROC and calibration; no charts where all labels are the same."""
  found, true = context.predictions, question.true
  shown = {
    "name": question.name,
    "slides": len(true),
    "patients": len(set(question.patients.tolist())),
    "others": len(question.others),
    "auroc": _of_class(found, question.name, "auroc"),
    "ece": _of_class(found, question.name, "ece"),
    "roc": None,
  }
  if len(np.unique(true)) < 2:
    return shown
  point = None
  if found.target_type != "multiclass":
    said = _positive(question, context)
    point = (said[true == 0].mean(), said[true == 1].mean())
  roc, (axes,) = charts.grid(1)
  curves.roc(
    axes,
    true,
    question.score,
    question.patients,
    context.settings.resamples,
    question.others,
    point,
  )
  bins = curves.calibration_bins(
    true, question.score, question.patients, context.settings.bins
  )
  calibration, (axes,) = charts.grid(1)
  curves.calibration_curve(axes, bins)
  return shown | {
    "roc": page.svg(roc),
    "has_point": point is not None,
    "calibration": page.svg(calibration),
    "bins": [
      (n, of, f"{p:.3f}", f"{o:.3f}", f"{low:.3f} to {high:.3f}")
      for n, of, p, o, low, high in zip(
        *(column.tolist() for column in vars(bins).values()), strict=True
      )
    ],
  }


def _of_class(found: Predictions, name: str, metric: str) -> str:
  """A score of one class with its interval, as text; '' if there is none."""
  row = _ensemble_row(found, name, metric)
  if row is None and found.target_type == "binary":
    row = _ensemble_row(found, "", metric)
  return f"{METRIC_NAMES[metric]} {_cell(row)}" if row else ""


def rates(
  true: Float[np.ndarray, " n"],
  said: Float[np.ndarray, " n"],
  weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
  """Sensitivity, specificity and predictive values of yes-or-no answers.

  Example:
    >>> found = rates(np.array([1., 1, 0, 0]), np.array([1., 0, 0, 0]),
    ...               np.ones((1, 4)))
    >>> {name: value.round(2).tolist() for name, value in found.items()}
    {'sensitivity': [0.5], 'specificity': [1.0], 'PPV': [1.0], 'NPV': [0.67]}
  """

  def share(right, of) -> np.ndarray:
    total = weights @ of
    with np.errstate(invalid="ignore", divide="ignore"):
      return np.where(total > 0, weights @ (right * of) / total, np.nan)

  return {
    "sensitivity": share(said, true),
    "specificity": share(1 - said, 1 - true),
    "PPV": share(true, said),
    "NPV": share(1 - true, 1 - said),
  }


def _confusion(question: _Question, context: Context) -> dict[str, Any]:
  """Counts and rates at the threshold."""
  found, name, true = context.predictions, question.name, question.true
  said = _positive(question, context).astype(float)
  counts = [
    [int(((true == t) & (said == s)).sum()) for s in (0, 1)] for t in (0, 1)
  ]
  is_one_of_many = found.target_type == "multilabel"
  other = f"not {name}" if is_one_of_many else found.classes[0]
  ends = bootstrap.intervals(
    lambda weights: rates(true, said, weights),
    question.patients,
    context.settings.resamples,
  )
  plain = rates(true, said, np.ones((1, len(true))))
  return {
    "name": name,
    "names": (other, name),
    "counts": counts,
    "share": true.mean() if len(true) else np.nan,
    "rates": [
      (rate, page.number(value[0]), " to ".join(map(page.number, ends[rate])))
      for rate, value in plain.items()
    ],
  }


def _matrix(context: Context) -> list[list[int]] | None:
  """Slides by label and predicted one of several classes."""
  found = context.predictions
  if found.target_type != "multiclass":
    return None
  number = {name: i for i, name in enumerate(found.classes)}
  counts = np.zeros((len(number), len(number)), int)
  for row in found.scored:
    predicted = context.decisions.predicted(found, row)
    counts[number[row.label], number[predicted]] += 1
  return counts.tolist()


def _dots(context: Context) -> dict[str, Any] | None:
  """Slides as dots along their probability, a row for each label."""
  found = context.predictions
  if not found.scored or found.target_type != "binary":
    return None
  name = found.classes[-1]
  groups = {
    label: [
      (row.values[name], address(row.slide_id))
      for row in found.scored
      if row.label == label
    ]
    for label in found.classes
  }
  cuts = [context.decisions.threshold_of(row, name) for row in found.scored]
  figure, (axes,) = charts.grid(1, size=(4.6, 0.8 + 0.8 * len(groups)))
  charts.dots_by_group(axes, groups, float(np.mean(cuts)))
  axes.set_xlabel(f"probability of {name}", parse_math=False)
  return {
    "svg": page.svg(figure),
    "mean": np.mean(cuts),
    "low": min(cuts),
    "high": max(cuts),
    "is_one": max(cuts) - min(cuts) < 5e-4,
  }


def _numbers(found: Predictions) -> dict[str, Any] | None:
  """True against predicted numbers; no chart of times and events."""
  if not found.is_number:
    return None
  true = report_data.truth(found, found.scored)[:, 0]
  said = report_data.values(found, found.scored)[:, 0]
  known = np.flatnonzero(np.isfinite(true))
  if not len(known):
    return {"svg": None, "count": 0}
  figure, (axes,) = charts.grid(1)
  links = [address(found.scored[i].slide_id) for i in known]
  charts.scatter(axes, true[known], said[known], links)
  axes.set(xlabel="true", ylabel="predicted")
  return {"svg": page.svg(figure), "count": len(known)}


# Slides.


def in_order(cards: Sequence[Card], context: Context) -> list[Card]:
  """Cards by probability, the highest first; failures after all others."""
  found = context.predictions

  def key(card: Card):
    name, value = report_data.headline(found, card.row)
    # Of several classes, slides of one predicted class next to each other.
    is_grouped = found.target_type == "multiclass"
    group = found.classes.index(name) if is_grouped else 0
    return not card.row.is_ok, group, -value, card.row.slide_id

  return sorted(cards, key=key)


def _shown(cards: Sequence[Card], context: Context) -> Iterable[dict[str, Any]]:
  """What the template shows of each slide, one after the other."""
  found = context.predictions
  for card in cards:
    name, value = report_data.headline(found, card.row)
    slide_id = card.row.slide_id
    cut = context.decisions.threshold_of(card.row, name)
    yield {
      "row": card.row,
      "href": address(slide_id),
      "images": [
        page.Image(address(slide_id, file), f"{what} {slide_id}", *size)
        for file, what in zip(CARDS, ("slide", "map of"), strict=True)
        if (size := card.sizes.get(file))
      ],
      "name": name,
      "value": value,
      "cut": cut if cut == cut else None,
      "is_right": context.decisions.is_right(found, card.row),
      "note": card.note,
    }


def _failures(cards: Sequence[Card]) -> list[tuple[str, str, str, str]]:
  rows = [
    (card.row.slide_id, "prediction", card.row.status, card.row.reason)
    for card in cards
    if not card.row.is_ok
  ]
  return sorted(
    rows
    + [
      (card.row.slide_id, "picture or map", "not shown", card.note)
      for card in cards
      if card.note
    ]
  )
