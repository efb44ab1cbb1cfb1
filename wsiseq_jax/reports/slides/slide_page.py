"""The page of one slide, for a pathologist.

What it has to say first: how probable, against which threshold, and where that
threshold comes from; then where on the slide, in maps that may be compared with
those of other slides; then the tiles themselves, which can be looked up in the
slide by their coordinates. What the colours do not mean is said beside them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from wsiseq_jax.reports import page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.reports.slides import data as report_data
from wsiseq_jax.reports.slides import slide_findings, slide_stage
from wsiseq_jax.reports.slides.data import Decisions, Predictions, Row
from wsiseq_jax.reports.slides.slide_files import MAP_FILES, Drawn

# Rules that the style sheet of the pages has not.
STYLE = (
  slide_stage.STYLE
  + slide_findings.STYLE
  + """
.pair { display: grid; gap: 16px 20px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.verdict { font-size: 1.1rem; }
"""
)
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Context:
  """What the pages of all slides share.

  Attributes:
    predictions: of the cohort.
    decisions: how they become words.
    settings: `config.report`.
    annotated: slides that have a file of annotations.
    home: address of the cohort's page, seen from a slide's.
  """

  predictions: Predictions
  decisions: Decisions
  settings: Mapping[str, Any]
  annotated: frozenset[str] = frozenset()
  home: str = "../../index.html"


def build(row: Row, drawn: Drawn, context: Context) -> str:
  """The page.

  Args:
    row: what was predicted.
    drawn: what was made of the slide.
    context: what all slides share.

  Returns:
    A complete HTML document.
  """
  sections = [("prediction", "Prediction", _prediction(row, drawn, context))]
  if drawn.slide is not None:
    sections.append(("map", "Where", _where(row, drawn, context)))
  if drawn.tile_map is not None and drawn.detections is not None:
    sections += [
      ("regions", "Regions", slide_findings.regions(drawn, context.settings)),
      ("tiles", "Tiles", slide_findings.tiles(drawn, context.settings)),
    ]
  sections.append(("limits", "What this does not say", _limits()))
  if drawn.files:
    sections.append(("files", "Files", _files(drawn)))
  lead = (
    f'<p><a href="{escape(context.home)}">All slides</a></p>'
    '<p class="limit">For research. Not for diagnosis. What a model made of '
    "this slide, from labels of whole slides alone.</p>"
  )
  document = page.document(f"Slide {row.slide_id}", lead, sections)
  return document.replace("</style>", f"{STYLE}</style>", 1)


# What was predicted.


def verdict(row: Row, context: Context) -> str:
  """The prediction in a sentence or two, as HTML."""
  found, rule = context.predictions, context.decisions
  if not row.is_ok:
    what = "no tissue" if row.status == "no_tissue" else "an error"
    why = f" ({escape(row.reason)})" if row.reason else ""
    return (
      f'<span class="warn">Failure: {what}{why}. No model saw this slide; its '
      "numbers are what the models knew before, from the labels they were "
      "trained on.</span>"
    )
  name, value = report_data.headline(found, row)
  if found.head == report_data.NUMBER:
    text = f"Predicted value <strong>{value:.4g}</strong>."
  else:
    text = (
      f"Probability of {escape(name)}: <strong>{value:.3f}</strong>. Predicted:"
      f" <strong>{escape(rule.predicted(found, row) or 'none')}</strong>."
    )
  right = rule.is_right(found, row)
  if row.label:
    agrees = {True: ", as predicted", False: ", not as predicted", None: ""}
    css = ' class="warn"' if right is False else ""
    text += f" <span{css}>The label says {escape(row.label)}{agrees[right]}."
    text += "</span>"
    if not row.is_scored:
      text += " Not scored: the models were trained on this case."
  else:
    text += " The label is unknown."
  return text


def threshold_words(context: Context, row: Row | None = None) -> str:
  """Where the decision threshold comes from."""
  head = context.predictions.head
  if head == report_data.NUMBER:
    return "There is no threshold: a number is predicted."
  if head == "multiclass":
    return "There is no threshold: the most probable class is predicted."
  if context.decisions.threshold_from == "given":
    return (
      f"The decision threshold {context.decisions.threshold:g} was given for "
      "this report (config.report.threshold); it was not chosen on data."
    )
  models = _models(row) if row is not None else "models"
  return (
    f"The decision threshold is the mean over {models} of the one with the "
    "highest balanced accuracy on each model's validation slides (0.5 where "
    "these were of one class). No test slide had a part in it."
  )


def _models(row: Row) -> str:
  return f"{row.models} model{'s' * (row.models != 1)}"


def _prediction(row: Row, drawn: Drawn, context: Context) -> str:
  found, rule = context.predictions, context.decisions
  parts = [f'<p class="verdict">{verdict(row, context)}</p>']
  items: list[tuple[str, object]] = []
  for name in found.classes:
    spread = row.spread.get(name, math.nan)
    several = row.models > 1 and math.isfinite(spread)
    more = f" ± {spread:.3f}" if several else ""
    what = "value" if found.head == report_data.NUMBER else f"p({name})"
    # Of two probabilities that add up to 1 one is enough.
    if found.head != "binary" or name == found.classes[-1]:
      items.append((what, f"{row.values[name]:.3f}{more}"))
    cut = rule.threshold_of(row, name)
    if math.isfinite(cut):
      items.append((f"threshold for {name}", f"{cut:.3f}"))
  items += [
    ("label", row.label or UNKNOWN),
    ("case", row.patient_id),
    ("models", row.models),
    *_facts(drawn),
  ]
  parts.append(page.facts(items))
  spread = "± is the deviation over these models. " if row.models > 1 else ""
  blind = ""
  if found.is_crossed:
    blind = (
      " None of them was trained or tuned on this slide, or on another of the "
      "same case."
    )
  parts.append(
    f'<p class="soft">The prediction is the mean of {_models(row)}.'
    f"{blind} {spread}{escape(threshold_words(context, row))}</p>"
  )
  if drawn.slide_error:
    parts.append(
      '<p class="warn">There is no picture of this slide: '
      f"{escape(drawn.slide_error)}.</p>"
    )
  parts += [f'<p class="warn">{escape(note)}</p>' for note in drawn.notes]
  if drawn.tile_map is None and row.is_ok:
    parts.append(
      '<p class="warn">There is no map of this slide in the folder maps: run '
      "the job with config.maps.write=True.</p>"
    )
  return "".join(parts)


def _facts(drawn: Drawn) -> list[tuple[str, object]]:
  if drawn.tile_map is None:
    return []
  tiles = drawn.tile_map
  items: list[tuple[str, object]] = [("tiles", f"{len(tiles.xy):,}")]
  if tiles.level0_mpp:
    side = tiles.in_level0().tile_size * tiles.level0_mpp
    items.append(("side of a tile", f"{side:.4g} µm"))
    items.append(("level 0", f"{tiles.level0_mpp:.4g} µm/px"))
  if tiles.level0_mpp and tiles.level0_size and drawn.has_picture:
    wide, high = (n * tiles.level0_mpp / 1000 for n in tiles.level0_size)
    items.append(("slide", f"{wide:.1f} × {high:.1f} mm"))
  if drawn.detections is not None:
    area = sum(region.area_mm2 for region in drawn.regions)
    items.append(("regions", f"{len(drawn.regions)}, {area:.3g} mm²"))
    items.append(("detections", drawn.detections))
  if drawn.annotated is not None:
    items.append(("annotated", f"{drawn.annotated.area_mm2:.3g} mm²"))
  return items


# Maps.


def _where(row: Row, drawn: Drawn, context: Context) -> str:
  if not drawn.canvases:
    picture = page.image(drawn.slide, f"slide {row.slide_id}")
    return page.figure(picture, "The slide. There is no map of it.")
  name = escape(drawn.tile_map.class_name)
  cut = context.settings["tile_threshold"]
  base = "White: no picture of the slide."
  if drawn.has_picture:
    base = "The slide."
  outlined = f"No region of tiles is above {cut:g}."
  if drawn.regions:
    outlined = f"Outlined and numbered: regions of tiles above {cut:g}."
  slide = page.figure(
    slide_stage.stage(drawn, None, row.slide_id, tiles=True)
    + slide_stage.scale_bar(drawn),
    f"{base} {outlined} Letters: the highest tiles, shown below.",
  )
  what = f"probability of {name}"
  if context.predictions.head == report_data.NUMBER:
    what = "its number, from 0 to 1 with 0.5 for the mean in training"
  probability = _map_figure(
    drawn,
    "probability",
    f"<strong>What each tile says by itself</strong>: {what}.",
  )
  contribution = _map_figure(
    drawn,
    "contribution",
    "<strong>How much each tile moved the slide's prediction</strong>: red for "
    f"{name}, blue against.",
  )
  percentile = _map_figure(
    drawn,
    "percentile",
    '<strong class="warn">For display only.</strong> The rank of each tile\'s '
    "attention among the tiles of this slide. Half of every slide, healthy or "
    "not, is above 50 %: it cannot be compared with other slides and says "
    "nothing about how probable anything is.",
  )
  return (
    f"{_compared(row, drawn, context)}{slide_stage.keys(drawn)}"
    f'<div class="pair">{slide}{probability}</div>'
    f'<div class="pair">{contribution}<div>{_reading(drawn, context)}</div>'
    "</div><details><summary>Attention by rank in this slide (for display "
    f"only)</summary>{percentile}</details>"
  )


def _compared(row: Row, drawn: Drawn, context: Context) -> str:
  """What people drew, and how much of it regions cover."""
  found = drawn.annotated
  if found is None:
    # A file that cannot be read is among the notes above.
    if not context.annotated or row.slide_id in context.annotated:
      return ""
    return (
      "<p>This slide has no file of annotations, others of the cohort have. "
      "That says nothing about what is on it.</p>"
    )
  if not found.area_mm2:
    text = "nothing with an area is drawn in it, or it is smaller than a pixel."
  else:
    area = sum(region.area_mm2 for region in drawn.regions)
    text = (
      f"{found.area_mm2:.3g} mm² are annotated, {found.in_regions:.0%} of it "
      f"in regions of the model; these cover {area:.3g} mm² in all."
    )
  left = "".join(f" {escape(line)}." for line in found.skipped)
  return (
    f"<p>Annotations from {escape(found.file)}: {text}{left} No model has seen "
    "them. Regions are as coarse as tiles; their outlines cannot agree.</p>"
  )


def _reading(drawn: Drawn, context: Context) -> str:
  """How to read the maps."""
  points = [
    "The probability map has the same colours from 0 to 1 on every slide of "
    "this cohort: slides may be compared.",
    "The contribution map has one scale for all slides of this cohort, in "
    "logits; what is stronger has the colour of the end. A large lesion shares "
    "its contribution among many tiles, and each of them is pale.",
    "A tile may speak for the class and yet move nothing, because the model "
    "hardly weighed it: the two maps need not agree.",
  ]
  if drawn.has_picture:
    points.append("Tissue that keeps its stain was not looked at.")
  smooth = context.settings["smooth_um"]
  if smooth:
    points.append(f"Maps and regions are smoothed over {smooth:g} µm.")
  items = "".join(f"<li>{escape(point)}</li>" for point in points)
  return f"<h3>How to read the maps</h3><ul>{items}</ul>"


def _map_figure(drawn: Drawn, kind: str, caption: str) -> str:
  content = slide_stage.stage(
    drawn, kind, drawn.tile_map.slide_id
  ) + slide_stage.ramp(drawn, kind)
  full = f' <a href="{MAP_FILES[kind]}">As one picture</a>.'
  return page.figure(content, caption + full)


# What it does not say, and where things are.


def _limits() -> str:
  points = [
    "This page is for research. It is no medical device and no diagnosis, and "
    "nobody may be treated by it.",
    "Attention is not a diagnosis. It says which tiles a model weighed, not "
    "why, and not that anything is there.",
    "The models were trained on labels of whole slides. Nobody told them where "
    "anything is; no tile's score was checked against a pathologist unless "
    "that is reported elsewhere, and tile probabilities are not calibrated.",
    "A low probability does not exclude anything. Lesions smaller than a tile "
    "are easily missed.",
    "Pictures are shrunk and compressed. What counts is the slide.",
  ]
  return "<ul>" + "".join(f"<li>{escape(p)}</li>" for p in points) + "</ul>"


def _files(drawn: Drawn) -> str:
  rows: Sequence[tuple[str, str]] = (
    ("regions.geojson", "regions, for QuPath"),
    ("tiles.geojson", "all tiles with scores, for QuPath"),
    ("tiles.csv", "scores of all tiles"),
    ("detections.csv", "probability, x, y; the format of Camelyon16"),
    (MAP_FILES["probability"], "the probability map with its legend"),
    (MAP_FILES["contribution"], "the contribution map with its legend"),
    (MAP_FILES["percentile"], "ranks of attention, for display only"),
  )
  items = "".join(
    f'<li><a href="{name}">{name}</a>: {escape(what)}</li>'
    for name, what in rows
    if name in drawn.files
  )
  how = ""
  if "regions.geojson" in drawn.files:
    how = (
      "<p>QuPath: open the slide, then drag a .geojson file onto its picture. "
      "Scores are measurements of the objects (Measure → Show measurement "
      "maps).</p>"
    )
  offset = ""
  if drawn.bounds_xy is None and how:
    offset = (
      '<p class="warn">The slide could not be opened, so that QuPath\'s origin '
      "is taken to be (0, 0).</p>"
    )
  return f"<ul>{items}</ul>{how}{offset}"
