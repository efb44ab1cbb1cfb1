"""What the sections of the report share: data, choices, clusters, strips."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.page import escape
from wsiseq_jax.search import clustering

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


class Report:
  """The data of a report and what its sections choose and draw alike."""

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


def left_out(count: int, most: int) -> str:
  """Says how many of `count` slides are shown, if not all."""
  if count <= most:
    return ""
  return f"{most} of {count} slides are shown."
