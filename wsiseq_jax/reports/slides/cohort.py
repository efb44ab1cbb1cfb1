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

from wsiseq_jax import charts
from wsiseq_jax.mil.summary import METRIC_NAMES
from wsiseq_jax.reports import page
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides import questions
from wsiseq_jax.reports.slides import slide as slide_page
from wsiseq_jax.reports.slides.data import Predictions, SlideRow
from wsiseq_jax.reports.slides.draw import CARDS
from wsiseq_jax.reports.slides.questions import cell, ensemble_row, number
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
  asked = list(questions.questions(context)) if has_classes else []
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
    curves=[questions.curves_of(question, context) for question in asked],
    confusions=[]
    if found.target_type == "multiclass"
    else [questions.confusion(question, context) for question in asked],
    matrix_counts=questions.matrix(context),
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
    row = ensemble_row(found, "", metric)
    if row:
      name = f"{METRIC_NAMES[metric]}, ensemble"
      items.append((name, cell(row)))
  return items


def _metrics(found: Predictions) -> list[tuple[str, ...]]:
  """Rows of the table of all scores."""
  rows = []
  for row in found.summary:
    if row["of"] != "model":
      continue
    name = METRIC_NAMES[row["metric"]]
    of_class = f", {row['class']}" if row["class"] else ""
    whole = ensemble_row(found, row["class"], row["metric"])
    rows.append(
      (
        name + of_class,
        number(row["mean"]),
        f"± {number(row['std'])}" if row["std"] else "–",
        f"{number(row['low'])} to {number(row['high'])}",
        number(whole["mean"]),
        f"{number(whole['low'])} to {number(whole['high'])}",
      )
    )
  return rows


# Charts of slides.


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
