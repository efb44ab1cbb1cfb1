"""The sections of the report, one method each.

`report.py` puts them on a page. Split off only for length; what the report is
for stands there.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wsiseq_jax.evals import clustering, figures, page, retrieval
from wsiseq_jax.evals.page import escape
from wsiseq_jax.evals.reconstruction import Reconstruction

FramesOf = Callable[[int, int], UInt8[np.ndarray, "t h w 3"]]


@dataclasses.dataclass(frozen=True)
class ReportSettings:
  """How much the report shows.

  Attributes:
    clusters: number of clusters; fewer where there are fewer sequences.
    members: members shown per cluster.
    one_per_region: at most one member of a region in a cluster's picture.
    frames: frames shown per sequence.
    queries: sequences whose neighbours are shown.
    neighbours: neighbours per query.
    examples: sequences shown as strips.
    max_slides: most slides shown; the rest is counted.
    seed: seed of the clusters and of every choice of what to show.
  """

  clusters: int = 16
  members: int = 10
  one_per_region: bool = True
  frames: int = 16
  queries: int = 6
  neighbours: int = 5
  examples: int = 6
  max_slides: int = 24
  seed: int = 0


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


class Sections:
  """Holds what the sections share; each method is one section."""

  def __init__(self, prep, losses, embeddings, frames_of, settings):
    self.prep, self.losses, self.settings = prep, losses, settings
    self.is_series = prep.metadata["geometry"] == "series"
    self.whole = "series" if self.is_series else "slide"
    self.rng = np.random.default_rng(settings.seed)
    self.features = np.asarray(embeddings["features"], np.float32)
    self.names = np.asarray(embeddings["sequence_id"]).astype(str)
    self.slide = np.asarray(embeddings["slide_id"]).astype(str)
    self.patient = np.asarray(embeddings["patient_id"]).astype(str)
    self.xy = np.asarray(embeddings["frame_level0_xy"], np.float64)
    self.heading = np.asarray(embeddings["heading_deg"], np.float64)
    self.index = np.asarray(embeddings["index"])
    self.region = clustering.region_groups(self.slide, self.xy[:, 0])
    self._frames_of = frames_of
    self._strips: dict[int, str] = {}
    self.count = min(settings.clusters, len(self.features))
    self.clusters = clustering.kmeans(self.features, self.count, settings.seed)

  # Parts the sections share.

  def frames(self, row: int) -> np.ndarray:
    """At most `settings.frames` frames of a sequence."""
    return self._frames_of(int(self.index[row]), self.settings.frames)

  def strip(self, row: int) -> str:
    """The strip of a sequence as an image; encoded once."""
    if row not in self._strips:
      picture = figures.strip(self.frames(row), 64)
      self._strips[row] = page.image(picture, f"frames of {self.names[row]}")
    return self._strips[row]

  def line(self, row: int, text: str) -> str:
    """A labelled strip."""
    heading = self.heading[row]
    to = f", heading {heading:.0f}°" if np.isfinite(heading) else ""
    label = f"{text} · {self.whole} {self.slide[row]}{to}"
    return (
      f'<div class="row"><span class="label">{escape(label)}</span>'
      f"{self.strip(row)}</div>"
    )

  def spread(self, count: int) -> list[int]:
    """Rows drawn at random, one a slide before any slide has a second."""
    order = self.rng.permutation(len(self.slide))
    seen: Counter = Counter()
    turn = []
    for row in order:
      turn.append(seen[self.slide[row]])
      seen[self.slide[row]] += 1
    return order[np.argsort(turn, kind="stable")][:count].tolist()

  def frame_text(self) -> str:
    """How large a frame is, in words."""
    pixels, mpp = self.prep.metadata["frame_px"], self.prep.metadata["mpp"]
    if self.is_series:
      return (
        f"A frame has {pixels[1]} × {pixels[0]} pixels; frames follow one "
        "another in time, not always at equal intervals."
      )
    height, width = (round(n * mpp) for n in pixels)
    geometry = self.prep.metadata["geometry"]
    if geometry == "zoom":
      return "From left to right the field of view grows round one centre."
    how = {
      "drift": "neighbouring frames overlap: a window slides over the slide",
      "walk": "frames lie side by side and do not overlap",
    }.get(geometry, f"geometry {geometry}")
    return f"A frame shows {width} × {height} µm of tissue; {how}."

  # Sections.

  def summary(self, model, measures) -> str:
    """What data, what model, what was measured, what was refused."""
    meta, prep = self.prep.metadata, self.prep
    # An empty slide may be listed with no sequences.
    used = {k: v for k, v in meta["slides"].items() if v["sequences"]}
    shown = list(used.values())
    troubled = {row["slide"] for row in prep.errors}
    splits = Counter()
    for slide in shown:
      splits[slide["split"]] += slide["sequences"]
    whole = "series" if self.is_series else "slides"
    items = [
      (f"{whole} used", len(shown)),
      ("of these damaged", len(troubled & set(used))),
      (f"{whole} refused", len(troubled - set(used))),
      ("patients", len({s["patient_id"] for s in shown})),
      ("sequences", " + ".join(f"{n} {k}" for k, n in splits.items())),
      ("sequences in this report", len(self.features)),
      ("geometry", f"{meta['geometry']}, {meta['frames']} frames stored"),
      *([] if self.is_series else _scale(meta["mpp"], shown)),
      *model.items(),
    ]
    for name, (_, values) in self.losses.items():
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
      parts.append(f"<p>No {self.whole} was refused.</p>")
    # Empty slides are a result and not an error, but they must not vanish.
    empty = [
      (row["slide_id"], row.get("status", ""), row.get("reason", ""))
      for row in prep.table
      if row["slide_id"] not in troubled and row["slide_id"] not in used
    ]
    if empty:
      parts.append("<h3>Without sequences</h3>")
      header = (self.whole, "status", "reason")
      parts.append(page.table(header, empty, stack=True))
    return "".join(parts)

  def slides(self) -> str:
    """Thumbnails with tissue outline and region centres."""
    cards = []
    for slide in self.prep.slides[: self.settings.max_slides]:
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
        *(
          escape(slide.row[k]) for k in ("split", "status") if slide.row.get(k)
        ),
        f"{width:.1f} × {height:.1f} mm",
        f"{info['mpp']:.3f} µm/px ({escape(info['mpp_origin'])})",
        f"{len(info['centres_level0'])} regions",
        f"{info['sequences']} sequences",
      ]
      alt = f"slide {slide.slide_id} with tissue outline and region centres"
      cards.append(page.figure(page.image(picture, alt), " · ".join(text)))
    note = _left_out(len(self.prep.slides), self.settings.max_slides)
    return (
      "<p>Green: the outline of what was taken for tissue. Blue dots: the "
      "centres of the regions that sequences were cut from.</p>"
      '<p class="limit">The outline comes from colour and density alone. Pen, '
      "folds, and dust can lie inside it, very pale tissue outside. "
      f"{note}</p>"
      f'<div class="slides">{"".join(cards)}</div>'
    )

  def examples(self) -> str:
    """Strips of a few sequences."""
    lines = [
      self.line(r, self.names[r]) for r in self.spread(self.settings.examples)
    ]
    return page.figure(
      page.scroll("".join(lines), 900),
      f"{len(lines)} sequences drawn at random (seed {self.settings.seed}), "
      f"spread over the slides; up to {self.settings.frames} frames of each in "
      f"the order the model sees them. {escape(self.frame_text())} Scroll "
      "sideways on a small screen. A handful of sequences is no overview of "
      "the data.",
    )

  def training(self, curve: str) -> str:
    """The loss curve; `curve` says how to read it."""
    if not self.losses:
      return (
        '<p class="warn">There is no metrics.jsonl in the run\'s folder: the '
        "curve of the training loss cannot be shown.</p>"
      )
    curves, faint = {}, []
    for name, (step, loss) in self.losses.items():
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
    few = all(len(step) <= 40 for step, _ in self.losses.values())
    chart = figures.line_chart(
      curves, "step (updates of the weights)", "loss", few, faint
    )
    return page.figure(
      chart,
      f"Loss over the training. {escape(curve)} A low loss is no proof of "
      "useful features; look at clusters and neighbours.",
      "chart",
    )

  def reconstructions(self, clips: Sequence[Reconstruction]) -> str:
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

  def maps(self) -> str:
    """Cluster maps over the slides, with their legend."""
    cards = []
    present = [s for s in self.prep.slides if (self.slide == s.slide_id).any()]
    for slide in present[: self.settings.max_slides]:
      mine = self.slide == slide.slide_id
      thumbnail, downsample = slide.thumbnail(720)
      picture = figures.cluster_picture(
        thumbnail, downsample, self.xy[mine], self.clusters.assignment[mine]
      )
      picture = figures.scale_bar(picture, slide.info["mpp"] * downsample)
      common = Counter(self.clusters.assignment[mine].tolist()).most_common(3)
      most = ", ".join(f"{k} ({n / mine.sum():.0%})" for k, n in common)
      cards.append(
        page.figure(
          page.image(picture, f"cluster map of slide {slide.slide_id}"),
          f"<strong>{escape(slide.slide_id)}</strong> · {mine.sum()} sequences "
          f"· most frequent clusters: {most}",
        )
      )
    legend = "".join(
      f"<li>{page.swatch(n)}{n} ({size})</li>"
      for n, size in enumerate(self.clusters.sizes.tolist())
    )
    note = _left_out(len(present), self.settings.max_slides)
    return (
      "<p>Each line is one sequence: the path of its frame centres over the "
      "slide, with a dot where it starts, in the colour of its cluster. The "
      "legend gives the number of the cluster and its sequences.</p>"
      f'<ul class="legend">{legend}</ul>'
      '<p class="limit">Clusters are found without labels and mean nothing by '
      "themselves; they can follow stain, thickness, or focus as well as "
      f"tissue. Some colours are hard to tell apart: the number counts. {note}"
      f'</p><div class="slides">{"".join(cards)}</div>'
    )

  def montages(self) -> str:
    """The members nearest the centre of each cluster."""
    settings, clusters = self.settings, self.clusters
    groups = self.region if settings.one_per_region else None
    members = clustering.nearest_members(clusters, settings.members, groups)
    by_slide = clustering.mutual_information(clusters.assignment, self.slide)
    once = "at most one per region" if groups is not None else "any region"
    less = ""
    if self.count < settings.clusters:
      less = (
        f" {settings.clusters} clusters were asked for, but there are only "
        f"{self.count} sequences."
      )
    parts = [
      f"<p>k-means with {self.count} clusters (seed {settings.seed}) on "
      f"features of length 1.{less} Open a cluster to see the up to "
      f"{settings.members} members nearest its centre, nearest first, {once}. "
      f"{escape(self.frame_text())}</p>"
      '<p class="limit">The members nearest the centre are the most typical '
      "ones and look more alike than the cluster as a whole. Agreement of "
      f"clusters with {self.whole}{'' if self.is_series else 's'}: "
      f"{by_slide:.2f} (normalised mutual information; 0 = clusters ignore the "
      f"{self.whole}, 1 = each {self.whole} has its own clusters). A high "
      "value means that stain or scanner, not what is shown, may have been "
      "learned.</p>"
    ]
    for number, rows in enumerate(members):
      mine = clusters.assignment == number
      slides = Counter(self.slide[mine].tolist())
      top = ", ".join(f"{name} {n}" for name, n in slides.most_common(3))
      rest = len(slides) - 3
      plural = "s" * (rest > 1 and not self.is_series)
      more = f" and {rest} more {self.whole}{plural}" if rest > 0 else ""
      middle = [self.frames(int(r)) for r in rows[:6]]
      preview = np.stack([clip[len(clip) // 2] for clip in middle])
      lines = [
        self.line(int(r), f"{place}. distance {clusters.distance[r]:.3g}")
        for place, r in enumerate(rows, 1)
      ]
      parts.append(
        f"<details{' open' if number < 2 else ''}><summary>"
        f"{page.swatch(number)}<strong>Cluster {number}</strong> · "
        f"{mine.sum()} sequences · {escape(top)}{more}"
        '<span class="preview">'
        f"{page.image(figures.strip(preview, 64), f'cluster {number}')}</span>"
        f"</summary>{page.scroll(''.join(lines), 900)}</details>"
      )
    return "".join(parts)

  def neighbours(self) -> str:
    """Nearest neighbours of a few sequences."""
    settings = self.settings
    rows = np.array(self.spread(settings.queries))
    found = retrieval.nearest(
      self.features[rows],
      self.features,
      settings.neighbours,
      self.region[rows],
      self.region,
    )
    many = self.rng.permutation(len(self.features))[:2000]
    first = retrieval.nearest(
      self.features[many], self.features, 1, self.region[many], self.region
    )
    same = retrieval.share_same(first, self.slide[many], self.slide)
    share = np.array(list(Counter(self.slide.tolist()).values()))
    chance = float(((share / share.sum()) ** 2).sum())
    parts = [
      f"<p>For {len(rows)} sequences drawn at random (seed {settings.seed}): "
      f"the {settings.neighbours} most similar sequences of all "
      f"{len(self.features)}, by cosine distance (0 = same direction)."
    ]
    if not self.is_series:
      parts.append(
        " Sequences of the query's own region are left out.</p>"
        '<p class="limit">Neighbouring regions of one slide may overlap and '
        f"count as finds. Over {len(many)} queries, {same:.0%} of the nearest "
        f"neighbours come from the query's own slide; by chance it would be "
        f"about {chance:.0%}. Part of that is tissue, part is stain."
      )
    parts.append("</p>")
    for row, hits, distances in zip(
      rows, found.index, found.distance, strict=True
    ):
      lines = [self.line(int(row), "query")]
      for place, (hit, distance) in enumerate(
        zip(hits.tolist(), distances.tolist(), strict=True), 1
      ):
        if hit < 0:
          continue
        kin = ""
        if self.slide[hit] == self.slide[row]:
          kin = f" · same {self.whole}"
        elif self.patient[hit] == self.patient[row]:
          kin = " · same patient"
        lines.append(self.line(hit, f"{place}. distance {distance:.3g}{kin}"))
      parts.append(f"<h3>{escape(self.names[row])}</h3>")
      parts.append(page.scroll("".join(lines), 900))
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


def _left_out(count: int, most: int) -> str:
  if count <= most:
    return ""
  return f"{most} of {count} slides are shown."
