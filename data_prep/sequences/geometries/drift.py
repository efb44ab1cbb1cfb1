"""A window slides from a centre along a heading in small steps.

The frames overlap almost entirely, so the sequence is stored as ONE strip with
one box a frame. The strip is turned so that travel is along +x: in every
sequence the tissue drifts to the left, whatever the heading.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from data_prep import shards
from data_prep.sequences.geometries import base


@dataclasses.dataclass(frozen=True)
class Drift(base.Geometry):
  """Overlapping windows along headings; `step_px` may be fractional."""

  sentence: ClassVar[str] = (
    "A frame shows {width} × {height} µm of tissue; neighbouring frames "
    "overlap: a window slides over the slide."
  )
  step_px: float
  headings_deg: tuple[float, ...]

  @classmethod
  def from_config(
    cls,
    sequence: Mapping[str, Any],
    mpp: float,
    window_px: tuple[int, int],
  ) -> base.Geometry:
    """Reads `step_um` and `headings_deg`."""
    step_um = sequence["step_um"]
    if step_um <= 0:
      raise ValueError(f"config.sequence.step_um = {step_um}: must be above 0")
    headings = base.headings_from(sequence)
    return cls(mpp, window_px, sequence["frames"], step_um / mpp, headings)

  @property
  def strip_px(self) -> tuple[int, int]:
    """(h, w) of the strip that all frames of a heading lie in."""
    height, width = self.window_px
    return height, width + math.ceil((self.frames - 1) * self.step_px)

  @property
  def spacing_px(self) -> float:
    """The length of the strip, as in the reference."""
    return self.strip_px[1]

  def heading(self, path: int) -> float:
    """Direction of travel in degrees."""
    return self.headings_deg[path]

  def paths(self) -> Float[np.ndarray, "a t 2"]:
    """Frame centres along each heading."""
    return base.straight(self.headings_deg, self.frames, self.step_px)

  def layout(self) -> shards.Layout:
    """One strip holds all frames."""
    return shards.Layout(self.frames, 1, self.strip_px)

  def frame_panel(self) -> Int[np.ndarray, " t"]:
    """The strip, for every frame."""
    return np.zeros(self.frames, np.int32)

  def frame_box(self) -> Float[np.ndarray, "t 4"]:
    """Boxes along the strip; x is fractional where the step is."""
    box = super().frame_box()
    box[:, 0] = np.arange(self.frames) * self.step_px
    return box

  def cut(
    self, slide: base.Readable, centre: base.Centre
  ) -> Iterator[tuple[int, base.Panels]]:
    """Reads once for all paths, which share most of their pixels."""
    extent = self.extent()[list(centre.paths)]
    box = (*extent[:, :2].min(0).tolist(), *extent[:, 2:].max(0).tolist())
    region, start = base.read_box(slide, centre.xy, box, self.mpp)
    for path in centre.paths:
      yield (
        path,
        [
          base.cut_strip(
            region,
            start,
            self.headings_deg[path],
            self.window_px,
            self.strip_px[1],
          )
        ],
      )
