"""Sections of the report about data and training, one function each.

`report.py` puts them on a page; what the report is for stands there.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.reports.sequences.material import Report, left_out
from wsiseq_jax.tasks.videomae.reconstruction import Reconstruction


@dataclasses.dataclass(frozen=True)
class Measure:
  """A number with what it means: `name`, `value`, `meaning`."""

  name: str
  value: str
  meaning: str


@dataclasses.dataclass(frozen=True)
class ExtraFigure:
  """A figure of the caller's: a heading, a picture or an SVG, a caption."""

  title: str
  content: UInt8[np.ndarray, "h w 3"] | str
  caption: str


def summary(report: Report, model, measures) -> str:
  """What data, what model, what was measured, what was refused."""
  meta, prep = report.prep.metadata, report.prep
  # An empty slide may be listed with no sequences.
  used = {k: v for k, v in meta["slides"].items() if v["sequences"]}
  shown = list(used.values())
  troubled = {row["slide_id"] for row in prep.errors}
  splits = Counter()
  for slide in shown:
    splits[slide["split"]] += slide["sequences"]
  whole = "series" if report.is_series else "slides"
  items = [
    (f"{whole} used", len(shown)),
    ("of these damaged", len(troubled & set(used))),
    (f"{whole} refused", len(troubled - set(used))),
    ("patients", len({s["patient_id"] for s in shown})),
    ("sequences", " + ".join(f"{n} {k}" for k, n in splits.items())),
    ("sequences in this report", len(report.features)),
    ("geometry", f"{meta['geometry']}, {meta['frames']} frames stored"),
    *([] if report.is_series else _scale(meta["mpp"], shown)),
    *model.items(),
  ]
  for name, (_, values) in report.losses.items():
    items.append((f"last {name}", f"{values[-1]:.3f}"))
  parts = [page.facts(items)]
  if measures:
    rows = [(m.name, m.value, m.meaning) for m in measures]
    parts.append("<h3>Measured</h3>")
    parts.append(page.table(("measure", "value", "what it means"), rows))
  if prep.errors:
    parts.append("<h3>Refused or damaged</h3>")
    header = ("slide", "stage", "error", "message", "tile")
    rows = [[row.get(k, "") for k in header] for row in prep.errors]
    parts.append(page.table(header, rows, stack=True))
  else:
    parts.append(f"<p>No {report.whole} was refused.</p>")
  # Empty slides are a result and not an error, but they must not vanish.
  empty = [
    (row["slide_id"], row.get("status", ""), row.get("reason", ""))
    for row in prep.table
    if row["slide_id"] not in troubled and row["slide_id"] not in used
  ]
  if empty:
    parts.append("<h3>Without sequences</h3>")
    header = (report.whole, "status", "reason")
    parts.append(page.table(header, empty, stack=True))
  return "".join(parts)


def slides(report: Report) -> str:
  """Thumbnails with tissue outline and region centres."""
  cards = []
  for slide in report.prep.slides[: report.settings.max_slides]:
    info = slide.info
    thumbnail, downsample = slide.thumbnail(720)
    picture = figures.outline_picture(
      thumbnail,
      downsample,
      info["tissue_polygons_level0"],
      info["centres_level0"],
    )
    picture = figures.scale_bar(picture, info["mpp"] * downsample)
    width, height = slide.size_mm
    text = [
      f"<strong>{escape(slide.slide_id)}</strong>",
      f"case {escape(slide.patient_id)}",
      *(escape(slide.row[k]) for k in ("split", "status") if slide.row.get(k)),
      f"{width:.1f} × {height:.1f} mm",
      f"{info['mpp']:.3f} µm/px ({escape(info['mpp_origin'])})",
      f"{len(info['centres_level0'])} regions",
      f"{info['sequences']} sequences",
    ]
    alt = f"slide {slide.slide_id} with tissue outline and region centres"
    cards.append(page.figure(page.image(picture, alt), " · ".join(text)))
  note = left_out(len(report.prep.slides), report.settings.max_slides)
  return (
    "<p>Green: the outline of what was taken for tissue. Blue dots: the "
    "centres of the regions that sequences were cut from.</p>"
    '<p class="limit">The outline comes from colour and density alone. Pen, '
    "folds, and dust can lie inside it, very pale tissue outside. "
    f"{note}</p>"
    f'<div class="slides">{"".join(cards)}</div>'
  )


def examples(report: Report) -> str:
  """Strips of a few sequences."""
  lines = [
    report.line(r, report.names[r])
    for r in report.spread(report.settings.examples)
  ]
  return page.figure(
    page.scroll("".join(lines), 900),
    f"{len(lines)} sequences drawn at random (seed {report.settings.seed}), "
    f"spread over the slides; up to {report.settings.frames} frames of each in "
    f"the order the model sees them. {escape(report.frame_text())} Scroll "
    "sideways on a small screen. A handful of sequences is no overview of "
    "the data.",
  )


def training(report: Report, curve: str) -> str:
  """The loss curve; `curve` says how to read it."""
  if not report.losses:
    return (
      '<p class="warn">There is no metrics.jsonl in the run\'s folder: the '
      "curve of the training loss cannot be shown.</p>"
    )
  curves, faint = {}, []
  for name, (step, loss) in report.losses.items():
    if len(step) > 40:
      raw, window = f"{name} raw", max(5, len(step) // 25)
      curves[raw] = (step, loss)
      curves[f"{name}, mean of {window}"] = (
        step,
        figures.smooth(loss, window),
      )
      faint.append(raw)
    else:
      curves[name] = (step, loss)
  few = all(len(step) <= 40 for step, _ in report.losses.values())
  chart = figures.line_chart(
    curves, "step (updates of the weights)", "loss", few, faint
  )
  return page.figure(
    chart,
    f"Loss over the training. {escape(curve)} A low loss is no proof of "
    "useful features; look at clusters and neighbours.",
    "chart",
  )


def reconstructions(report: Report, clips: Sequence[Reconstruction]) -> str:
  """Original, masked, reconstructed, side by side."""
  borrowed = any(clip.used_true_statistics for clip in clips)
  parts = [
    "<p>Left: what was there. Middle: what the model was shown; hidden "
    "patches are blank. Right: its guess for the hidden patches, beside the "
    "visible ones as they were. One row per frame, downwards in order; six "
    "frames are shown, or fewer.</p>"
  ]
  if borrowed:
    parts.append(
      '<p class="limit"><strong>Brightness and colour are borrowed.</strong> '
      "Where a caption says so, hidden patches were coloured with the "
      "average and the contrast of the <em>true</em> patch, because the "
      "model is trained to predict only the pattern inside a patch. Judge "
      "the pattern there, not the colour.</p>"
    )
  for name in dict.fromkeys(clip.sequence_id for clip in clips):
    parts.append(f"<h3>{escape(name)}</h3>")
    cards = []
    for clip in clips:
      if clip.sequence_id != name:
        continue
      picture = figures.triptych(
        (clip.original, clip.masked, clip.reconstructed), 104, 6
      )
      used = (
        "colour and contrast of the true patches used"
        if clip.used_true_statistics
        else "no true statistics used"
      )
      caption = (
        f"<strong>{clip.mask_ratio:.0%} hidden</strong>, mask kind "
        f"{escape(clip.mask_kind)}, loss {clip.loss:.3f}; {used}."
      )
      heads = (
        '<div class="heads"><span>original</span><span>shown'
        "</span><span>reconstructed</span></div>"
      )
      alt = f"original, masked, reconstructed at {clip.mask_ratio:.0%} hidden"
      cards.append(page.figure(heads + page.image(picture, alt), caption))
    parts.append(f'<div class="recon">{"".join(cards)}</div>')
  parts.append(
    '<p class="limit">Single sequences, not an average; a model trained at '
    "one mask ratio is shown at all of them.</p>"
  )
  return "".join(parts)


def _scale(mpp: float, slides: Sequence[Mapping[str, Any]]) -> list[tuple]:
  scans = sorted({round(float(slide["mpp"]), 3) for slide in slides})
  most = f" to {scans[-1]:g}" if len(scans) > 1 else ""
  origins = sorted({slide["mpp_origin"] for slide in slides})
  return [
    ("pixel size", f"{mpp:g} µm"),
    ("slides scanned at", f"{scans[0]:g}{most} µm/px"),
    ("pixel size from", ", ".join(origins)),
  ]
