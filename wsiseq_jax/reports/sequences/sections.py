"""The page about sequences: what its template shows, section by section.

A pathologist wants to see tissue: which slides, what a sequence looks like,
what the model fills in, what it holds to be alike, and where that lies. A
reviewer wants to know what was refused and what a picture does *not* show.
Nothing here touches a model or JAX.
"""

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_prep.files import errors
from data_prep.sequences.geometries import GEOMETRIES
from wsiseq_jax import charts
from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.sequences import data as report_data
from wsiseq_jax.reports.sequences.comparison import FeatureComparison
from wsiseq_jax.search import clustering
from wsiseq_jax.search import neighbours as retrieval
from wsiseq_jax.tasks.videomae.reconstruction import Reconstruction

FramesOf = Callable[[int, int], UInt8[np.ndarray, "t h w 3"]]
_NEEDED = {
  "features",
  "sequence_id",
  "slide_id",
  "patient_id",
  "frame_level0_xy",
  "heading_deg",
  "index",
}
# Longest side of a slide's picture, height of a frame.
_SLIDE_PX, _FRAME_PX = 720, 64


@dataclasses.dataclass(frozen=True)
class ReportSettings:
  """How much the report shows."""

  # Number of clusters; fewer where there are fewer sequences.
  clusters: int = 16
  members: int = 10  # members shown per cluster
  # At most one member of a region in a cluster's picture.
  one_per_region: bool = True
  frames: int = 16  # frames shown per sequence
  queries: int = 6  # sequences whose neighbours are shown
  neighbours: int = 5  # neighbours per query
  examples: int = 6  # sequences shown as strips
  max_slides: int = 24  # most slides shown; the rest is counted
  seed: int = 0  # seed of the clusters and of every choice of what to show


def write_page(
  prep: str | os.PathLike,
  workdir: str | os.PathLike,
  out: str | os.PathLike,
  embeddings: Mapping[str, np.ndarray],
  frames_of: FramesOf,
  reconstructions: Sequence[Reconstruction] = (),
  model: Mapping[str, Any] | None = None,
  measures: Sequence[tuple[str, str, str]] = (),
  compared: FeatureComparison | None = None,
  curve: str = "",
  settings: ReportSettings | None = None,
  config_text: str = "",
) -> pathlib.Path:
  """Writes `<out>/index.html`, a single file without outside links."""
  missing = sorted(_NEEDED - set(embeddings))
  if missing:
    raise ValueError(
      f"embeddings lack {missing}; they have {sorted(embeddings)} (written by "
      "--config.job=embed)"
    )
  if not len(embeddings["features"]):
    raise ValueError("embeddings are empty: there is nothing to report on")
  preparation = report_data.read_preparation(pathlib.Path(prep))
  losses = report_data.read_losses(pathlib.Path(workdir))
  settings = settings or ReportSettings()
  report = _Report(preparation, losses, embeddings, frames_of, settings)
  path = pathlib.Path(out) / "index.html"
  path.parent.mkdir(parents=True, exist_ok=True)
  page.write(
    path,
    "sequences.html.j2",
    settings=settings,
    is_series=report.is_series,
    whole=report.whole,
    total=len(report.features),
    frame_text=report.frame_text(),
    summary=report.summary(model or {}, measures),
    compared=compared,
    slides=report.slides(),
    slide_count=len(preparation.slides),
    examples=report.strips(report.spread(settings.examples)),
    training=report.training(),
    curve=curve,
    reconstructions=_reconstructions(reconstructions),
    maps=report.maps(),
    legend=[
      (figures.colour(n), n, size)
      for n, size in enumerate(report.clusters.sizes.tolist())
    ],
    clusters=report.cluster_sections(),
    likeness=report.neighbours(),
    config_text=config_text,
  )
  return path


class _Report:
  """The data of a report; each method is what one section shows."""

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
    self._images: dict[int, page.Image] = {}
    count = min(settings.clusters, len(self.features))
    self.clusters = clustering.kmeans(self.features, count, settings.seed)

  def frames(self, row: int) -> np.ndarray:
    return self._frames_of(int(self.index[row]), self.settings.frames)

  def strip(self, row: int, text: str) -> dict[str, Any]:
    """A labelled strip of frames; its picture is encoded once."""
    if row not in self._images:
      picture = figures.strip(self.frames(row), _FRAME_PX)
      alt = f"frames of {self.names[row]}"
      self._images[row] = page.embedded(picture, alt)
    heading = self.heading[row]
    to = f", heading {heading:.0f}°" if np.isfinite(heading) else ""
    label = f"{text} · {self.whole} {self.slide[row]}{to}"
    return {"label": label, "image": self._images[row]}

  def strips(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    return [self.strip(row, self.names[row]) for row in rows]

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
    """How large a frame is, and how frames follow one another."""
    meta = self.prep.metadata
    if self.is_series:
      height, width = meta["frame_px"]
      return (
        f"A frame has {width} × {height} pixels; frames follow one another in "
        "time, not always at equal intervals."
      )
    height, width = (round(n * meta["mpp"]) for n in meta["frame_px"])
    sentence = GEOMETRIES[meta["geometry"]].sentence
    return sentence.format(width=width, height=height)

  def summary(self, model, measures) -> dict[str, Any]:
    """What data, what model, what was measured, what was refused."""
    meta, prep = self.prep.metadata, self.prep
    # An empty slide may be listed with no sequences.
    used = {k: v for k, v in meta["slides"].items() if v["sequences"]}
    shown = list(used.values())
    troubled = {row["slide_id"] for row in prep.errors}
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
    return {
      "facts": items,
      "measures": measures,
      "errors": [[row[name] for name in errors.COLUMNS] for row in prep.errors],
      # Empty slides are a result and not an error, but they must not vanish.
      "empty": [
        (row["slide_id"], row.get("status", ""), row.get("reason", ""))
        for row in prep.table
        if row["slide_id"] not in troubled and row["slide_id"] not in used
      ],
    }

  def slides(self) -> list[dict[str, Any]]:
    """Thumbnails with tissue outline and region centres."""
    cards = []
    for slide in self.prep.slides[: self.settings.max_slides]:
      info = slide.info
      thumbnail, downsample = slide.thumbnail(_SLIDE_PX)
      picture = figures.outline_picture(
        thumbnail,
        downsample,
        info["tissue_polygons_level0"],
        info["centres_level0"],
      )
      picture = figures.scale_bar(picture, info["mpp"] * downsample)
      width, height = slide.size_mm
      alt = f"slide {slide.slide_id} with tissue outline and region centres"
      cards.append(
        {
          "name": slide.slide_id,
          "image": page.embedded(picture, alt),
          "facts": [
            f"patient {slide.patient_id}",
            *(slide.row[k] for k in ("split", "status") if slide.row.get(k)),
            f"{width:.1f} × {height:.1f} mm",
            f"{info['mpp']:.3f} µm/px ({info['mpp_origin']})",
            f"{len(info['centres_level0'])} regions",
            f"{info['sequences']} sequences",
          ],
        }
      )
    return cards

  def training(self):
    """The curves of the losses; None without a log."""
    if not self.losses:
      return None
    curves, faint = {}, []
    for name, (step, loss) in self.losses.items():
      if len(step) > 40:
        window = max(5, len(step) // 25)
        curves[f"{name} raw"] = (step, loss)
        smooth = report_data.smooth(loss, window)
        curves[f"{name}, mean of {window}"] = (step, smooth)
        faint.append(f"{name} raw")
      else:
        curves[name] = (step, loss)
    figure, (axes,) = charts.grid(1, size=(5.6, 3.4))
    charts.lines(axes, curves, faint)
    axes.set(xlabel="step (updates of the weights)", ylabel="loss")
    return page.svg(figure)

  def maps(self) -> list[dict[str, Any]]:
    """Slides with the paths of their sequences in the clusters' colours."""
    cards = []
    for slide in self.prep.slides:
      mine = self.slide == slide.slide_id
      if not mine.any() or len(cards) == self.settings.max_slides:
        continue
      numbers = self.clusters.assignment[mine]
      thumbnail, downsample = slide.thumbnail(_SLIDE_PX)
      picture = figures.cluster_picture(
        thumbnail, downsample, self.xy[mine], numbers
      )
      picture = figures.scale_bar(picture, slide.info["mpp"] * downsample)
      alt = f"cluster map of slide {slide.slide_id}"
      common = Counter(numbers.tolist()).most_common(3)
      cards.append(
        {
          "name": slide.slide_id,
          "image": page.embedded(picture, alt),
          "count": len(numbers),
          "common": [(k, n / len(numbers)) for k, n in common],
        }
      )
    return cards

  def cluster_sections(self) -> dict[str, Any]:
    """The members nearest the centre of each cluster."""
    settings, clusters = self.settings, self.clusters
    groups = self.region if settings.one_per_region else None
    members = clustering.nearest_members(clusters, settings.members, groups)
    found = []
    for number, rows in enumerate(members):
      mine = clusters.assignment == number
      slides = Counter(self.slide[mine].tolist())
      middle = [self.frames(int(r)) for r in rows[:6]]
      preview = np.stack([clip[len(clip) // 2] for clip in middle])
      found.append(
        {
          "colour": figures.colour(number),
          "count": int(mine.sum()),
          "slides": slides.most_common(3),
          "more": max(0, len(slides) - 3),
          "preview": page.embedded(
            figures.strip(preview, _FRAME_PX), f"cluster {number}"
          ),
          "strips": [
            self.strip(int(r), f"{place}. distance {clusters.distance[r]:.3g}")
            for place, r in enumerate(rows, 1)
          ],
        }
      )
    agreement = clustering.mutual_information(clusters.assignment, self.slide)
    return {"found": found, "agreement": agreement}

  def neighbours(self) -> dict[str, Any]:
    """Nearest neighbours of a few sequences, and how many share the slide."""
    rows = np.array(self.spread(self.settings.queries))
    nearest = self._nearest(rows, self.settings.neighbours)
    many = self.rng.permutation(len(self.features))[:2000]
    first = self._nearest(many, 1)
    share = np.unique(self.slide, return_counts=True)[1] / len(self.slide)
    queries = []
    for row, hits, distances in zip(
      rows.tolist(), nearest.index, nearest.distance, strict=True
    ):
      strips = [self.strip(row, "query")]
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
        text = f"{place}. distance {distance:.3g}{kin}"
        strips.append(self.strip(hit, text))
      queries.append({"name": self.names[row], "strips": strips})
    return {
      "queries": queries,
      "asked": len(many),
      "same": retrieval.share_same(first, self.slide[many], self.slide),
      "chance": float((share**2).sum()),
    }

  def _nearest(self, rows: np.ndarray, count: int) -> retrieval.Neighbours:
    return retrieval.nearest(
      self.features[rows],
      self.features,
      count,
      self.region[rows],
      self.region,
    )


def _reconstructions(
  clips: Sequence[Reconstruction],
) -> dict[str, list[dict[str, Any]]]:
  """Original, masked, reconstructed of each sequence and mask ratio."""
  found: dict[str, list[dict[str, Any]]] = {}
  for clip in clips:
    shown = (clip.original, clip.masked, clip.reconstructed)
    alt = f"original, masked, reconstructed at {clip.mask_ratio:.0%} hidden"
    image = page.embedded(figures.columns(shown, 104, 6), alt)
    found.setdefault(clip.sequence_id, []).append(
      {"clip": clip, "image": image}
    )
  return found


def _scale(mpp: float, slides: Sequence[Mapping[str, Any]]) -> list[tuple]:
  scans = sorted({round(float(slide["mpp"]), 3) for slide in slides})
  most = f" to {scans[-1]:g}" if len(scans) > 1 else ""
  origins = sorted({slide["mpp_origin"] for slide in slides})
  return [
    ("pixel size", f"{mpp:g} µm"),
    ("slides scanned at", f"{scans[0]:g}{most} µm/px"),
    ("pixel size from", ", ".join(origins)),
  ]
