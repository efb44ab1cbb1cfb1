"""The page of the cohort: how good the predictions are, then every slide.

The numbers are in `cohort_scores`. Failures are counted, listed, and never left
out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from wsiseq_jax.mil import tables
from wsiseq_jax.reports import page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.reports.slides import cohort_scores, slide_stage
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides.data import Row
from wsiseq_jax.reports.slides.slide_page import Context

STYLE = """
.cards { display: grid; gap: 22px 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.cards figure { margin: 0; }
.cards a { text-decoration: none; color: inherit; display: block; }
.cards .two { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.cards .two img { width: 100%; height: 100%; object-fit: contain;
  background: #fff; border-radius: 4px; }
.cards .empty { display: grid; place-items: center; min-height: 7rem;
  background: var(--panel); color: var(--soft); border-radius: 4px;
  padding: 12px; font-size: .85rem; text-align: center; }
.cards .name { font-weight: 600; color: var(--accent); }
.track { position: relative; height: 8px; border-radius: 4px; margin: 6px 0 2px;
  background: var(--line); }
.track i { display: block; height: 8px; border-radius: 4px;
  background: var(--accent); }
.track b { position: absolute; top: -3px; height: 14px; width: 2px;
  background: var(--ink); }
.chart.small { max-width: 440px; }
table.confusion { width: auto; } table.confusion td { min-width: 5em; }
table.confusion th { white-space: normal; }
"""
# Of usual stained tissue, below the colours of the legend.
_TISSUE_GREY = 190


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
  """What the cohort's page shows of a slide.

  Attributes:
    row: what was predicted.
    slide: a small picture of it; None if there is none.
    overlay: of its probability map; None if there is none.
    note: what is missing, and why.
  """

  row: Row
  slide: UInt8[np.ndarray, "h w 3"] | None
  overlay: UInt8[np.ndarray, "h2 w2 3"] | None
  note: str = ""


def build(
  cards: Sequence[Card],
  context: Context,
  sequence_report: str = "",
) -> str:
  """The page.

  Args:
    cards: all slides.
    context: predictions, decisions, settings.
    sequence_report: address of a report on sequences beside; '' = none.

  Returns:
    A complete HTML document.
  """
  found = context.predictions
  sections = [("summary", "Summary", _summary(cards, context, sequence_report))]
  if found.summary:
    sections.append(("metrics", "Metrics", cohort_scores.metrics(context)))
  if found.scored and found.head != report_data.NUMBER:
    sections += [
      ("roc", "ROC and calibration", cohort_scores.curves(context)),
      ("decisions", "At the threshold", cohort_scores.decisions(context)),
    ]
  elif found.scored:
    sections.append(
      ("numbers", "True and predicted", cohort_scores.numbers(context))
    )
  sections += [
    ("slides", "Slides", _slides(cards, context)),
    ("failures", "Failures", _failures(cards)),
  ]
  if found.notes:
    notes = (
      "<details><summary>summary.md, as the job wrote it</summary>"
      f"<pre>{escape(found.notes)}</pre></details>"
    )
    sections.append(("notes", "Notes of the job", notes))
  lead = (
    "<p>Models learned from labels of whole slides. This page shows how well "
    "they predict slides, and for every slide where they looked.</p>"
    '<p class="limit">For research. Not for diagnosis. Attention is not a '
    "diagnosis, and a region is no outline of a lesion.</p>"
  )
  document = page.document("Attention MIL: the cohort", lead, sections)
  return document.replace("</style>", f"{slide_stage.STYLE}{STYLE}</style>", 1)


def _summary(cards, context, sequence_report) -> str:
  found = context.predictions
  rows = found.rows
  items: list[tuple[str, object]] = [
    ("slides", len(rows)),
    ("cases", len({row.patient_id for row in rows})),
    ("failures", sum(not row.is_ok for row in rows)),
    ("slides with a label", len(found.labelled)),
    ("whole predictions", len(found.single)),
  ]
  if found.head == report_data.NUMBER:
    items.append(("predicted", "a number"))
  else:
    items.append(("classes", ", ".join(found.classes)))
  for metric in ("auroc", "r2", "concordance"):
    row = cohort_scores.summary_row(found, "ensemble", "", metric)
    if row:
      items.append(
        (f"{tables.METRIC_NAMES[metric]}, ensemble", cohort_scores.cell(row))
      )
  parts = [page.facts(items)]
  if not found.labelled:
    parts.append("<p>No label is known: nothing can be scored.</p>")
  elif len(found.scored) < len(found.labelled):
    parts.append(
      f'<p class="warn">{len(found.labelled)} slides have a label, '
      f"{len(found.scored)} of them are scored: the others are of cases that "
      "the models were trained on, and are in no number and no chart.</p>"
    )
  if found.is_crossed:
    parts.append(
      "<p>Every slide was predicted only by models that were trained without "
      "it and without other slides of its case.</p>"
    )
  if sequence_report:
    parts.append(
      f'<p><a href="{escape(sequence_report)}">Report on sequences</a>: what '
      "was learned without labels.</p>"
    )
  unseen = sum(card.slide is None for card in cards)
  if unseen:
    parts.append(
      f'<p class="warn">{unseen} of {len(cards)} slides have no picture; their '
      "pages say why.</p>"
    )
  return "".join(parts)


# Slides.


def in_order(cards: Sequence[Card], context: Context) -> list[Card]:
  """Cards by probability, the highest first; failures after all others."""
  found = context.predictions

  def key(card: Card):
    name, value = report_data.headline(found, card.row)
    # Of several classes, slides of one predicted class next to each other.
    group = found.classes.index(name) if found.head == "multiclass" else 0
    return not card.row.is_ok, group, -value, card.row.slide_id

  return sorted(cards, key=key)


def _slides(cards: Sequence[Card], context: Context) -> str:
  found = context.predictions
  what = "value" if found.head == report_data.NUMBER else "probability"
  shown = "".join(_card(card, context) for card in in_order(cards, context))
  text = f"By {what}, the highest first; failures last."
  if found.head != report_data.NUMBER:
    text += " The bar is the slide's probability"
    if found.head != "multiclass":
      text += ", the mark on it the decision threshold"
    text += "."
  legend = ""
  if any(card.overlay is not None for card in cards):
    text += (
      " Right: what each tile says by itself, in the same colours on all "
      "slides."
    )
    legend = slide_stage.colour_bar("probability", (0.0, 1.0), _TISSUE_GREY)
  return (
    f"<p>{text} Touch a slide for its page.</p>{legend}"
    f'<div class="cards">{shown}</div>'
  )


def _card(card: Card, context: Context) -> str:
  found, row = context.predictions, card.row
  name, value = report_data.headline(found, row)
  pictures = [
    page.image(picture, f"{what} {row.slide_id}", 78)
    for picture, what in ((card.slide, "slide"), (card.overlay, "map of"))
    if picture is not None
  ]
  content = f'<div class="two">{"".join(pictures)}</div>'
  if not pictures:
    content = f'<div class="empty">{escape(card.note or "no picture")}</div>'
  track, number = "", f"{value:.4g}"
  if found.head != report_data.NUMBER:
    cut = context.decisions.threshold_of(row, name)
    mark = f'<b style="left:{100 * cut:.1f}%"></b>' if cut == cut else ""
    track = (
      f'<div class="track"><i style="width:{100 * value:.1f}%"></i>{mark}</div>'
    )
    number = f"p({escape(name)}) = {value:.3f}"
  right = context.decisions.is_right(found, row)
  label = f"label {escape(row.label)}" if row.label else "no label"
  if row.label and not row.is_scored:
    label += ", not scored"
  if right is False:
    label = f'<span class="warn">{label}, not as predicted</span>'
  state = ""
  if not row.is_ok:
    state = f' · <span class="warn">failure: {escape(row.status)}</span>'
  note = ""
  if pictures and card.note:
    note = f'<br><span class="warn">{escape(card.note)}</span>'
  caption = (
    f'<span class="name">{escape(row.slide_id)}</span> · {number} · {label}'
    f"{state}{note}"
  )
  return (
    f'<figure><a href="{cohort_scores.address(row.slide_id)}">{content}{track}'
    f"<figcaption>{caption}</figcaption></a></figure>"
  )


def _failures(cards: Sequence[Card]) -> str:
  rows = [
    (card.row.slide_id, "prediction", card.row.status, card.row.reason)
    for card in cards
    if not card.row.is_ok
  ] + [
    (card.row.slide_id, "picture or map", "not shown", card.note)
    for card in cards
    if card.note
  ]
  if not rows:
    return (
      "<p>None: every slide was predicted from its tiles, and is shown.</p>"
    )
  return (
    "<p>Failures of prediction are scored with all others, by what the models "
    "knew before.</p>"
    + page.table(("slide", "what failed", "how", "why"), sorted(rows), True)
  )
