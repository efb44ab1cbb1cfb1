"""The report: one HTML file that shows what was learned, for people who look.

A pathologist wants to see tissue: which slides, what a sequence looks like,
what the model fills in, which tissue falls into one cluster, what it finds
similar, and where that lies on the slide. A reviewer wants to know what was
refused, how often the training looked at what, and what a picture does *not*
show. Every figure says both in its caption.

`build_report` needs embeddings, a function that returns frames, and
reconstructions; nothing here touches a model or JAX.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.files import atomic
from wsiseq_jax.reports import page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.reports.sequences import data as report_data
from wsiseq_jax.reports.sequences import likeness
from wsiseq_jax.reports.sequences import sections as report_sections
from wsiseq_jax.reports.sequences.material import (
  FramesOf,
  Report,
  ReportSettings,
)
from wsiseq_jax.reports.sequences.sections import ExtraFigure, Measure
from wsiseq_jax.tasks.videomae.reconstruction import Reconstruction

__all__ = ["ExtraFigure", "Measure", "ReportSettings", "build_report"]


def build_report(
  prep: str | os.PathLike,
  workdir: str | os.PathLike,
  out: str | os.PathLike,
  embeddings: Mapping[str, np.ndarray],
  frames_of: FramesOf,
  reconstructions: Sequence[Reconstruction] = (),
  model: Mapping[str, Any] | None = None,
  measures: Sequence[Measure] = (),
  curve: str = "",
  extra: Sequence[ExtraFigure] = (),
  settings: ReportSettings | None = None,
  title: str = "Sequences: what was learned",
  config_text: str = "",
) -> pathlib.Path:
  """Writes `<out>/index.html`, a single file without outside links.

  Args:
    prep: output folder of `python -m data_prep` (config key report.prep).
    workdir: folder of the run, with `metrics.jsonl`.
    out: folder of the report (config key report.out).
    embeddings: arrays of the embed job: features, sequence_id, slide_id,
      patient_id, frame_level0_xy, heading_deg, index.
    frames_of: (record index, n) → at most n frames of that record, evenly
      spread, as the model is shown them; the index is `embeddings["index"]`.
    reconstructions: clips before and after the model.
    model: facts for the summary, e.g. {"model": "demo", "step": 400,
      "checkpoint": "..."}.
    measures: numbers for the summary.
    curve: how to read the curves of this task's losses.
    extra: more figures, below the training loss.
    settings: how much is shown.
    title: heading of the page.
    config_text: the run's config, shown folded at the end.

  Returns:
    The path of the page.

  Raises:
    ValueError: if `prep` is no preparation or the embeddings are incomplete.
  """
  needed = {
    "features",
    "sequence_id",
    "slide_id",
    "patient_id",
    "frame_level0_xy",
    "heading_deg",
    "index",
  }
  missing = sorted(needed - set(embeddings))
  if missing:
    raise ValueError(
      f"embeddings lack {missing}; they have {sorted(embeddings)} (written by "
      "--config.job=embed)"
    )
  if not len(embeddings["features"]):
    raise ValueError("embeddings are empty: there is nothing to report on")
  preparation = report_data.read_preparation(pathlib.Path(prep))
  report = Report(
    preparation,
    report_data.read_losses(pathlib.Path(workdir)),
    embeddings,
    frames_of,
    settings or ReportSettings(),
  )
  more = "".join(
    f"<div><h3>{escape(item.title)}</h3>"
    + page.figure(
      item.content
      if isinstance(item.content, str)
      else page.image(item.content, item.title),
      escape(item.caption),
      "chart" if isinstance(item.content, str) else "",
    )
    + "</div>"
    for item in extra
  )
  curves = report_sections.training(report, curve)
  sections = [
    (
      "summary",
      "Summary",
      report_sections.summary(report, model or {}, measures),
    ),
    ("sequences", "Sequences", report_sections.examples(report)),
    (
      "training",
      "Training",
      f'<div class="charts">{curves}{more}</div>',
    ),
    ("clusters", "Clusters", likeness.montages(report)),
    ("neighbours", "Nearest neighbours", likeness.neighbours(report)),
  ]
  if reconstructions:
    rebuilt = report_sections.reconstructions(report, reconstructions)
    sections.insert(3, ("reconstructions", "Reconstructions", rebuilt))
  if preparation.slides:
    sections.insert(1, ("slides", "Slides", report_sections.slides(report)))
    sections.insert(
      -2, ("maps", "Clusters on the slides", likeness.maps(report))
    )
  if config_text:
    folded = (
      "<details><summary>The whole configuration</summary>"
      f"<pre>{escape(config_text)}</pre></details>"
    )
    sections.append(("config", "Configuration", folded))
  what = "pictures in time" if report.is_series else "tissue windows"
  lead = (
    f"<p>A model looked at short sequences of neighbouring {what}, without "
    "labels. This page shows the data, what was learned, and which sequences "
    "it holds to be similar.</p>"
    '<p class="limit">For research. Not for diagnosis. Pictures are shrunk and '
    "compressed.</p>"
  )
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "index.html"
  with atomic.replacing(path) as draft:
    draft.write_text(page.document(title, lead, sections), encoding="utf-8")
  return path
