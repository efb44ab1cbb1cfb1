"""Neighbouring windows without overlap: along headings, or in a serpentine.

No frame shows a pixel of another, so nothing can be copied. One panel a frame.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from data_prep.sequences.geometries import base


@dataclasses.dataclass(frozen=True)
class Walk(base.Geometry):
  """Windows side by side."""

  sentence: ClassVar[str] = (
    "A frame shows {width} × {height} µm of tissue; frames lie side by side "
    "and do not overlap."
  )
  step_px: float  # distance of neighbouring frames, whole pixels
  headings_deg: tuple[float, ...]  # directions of travel; () for a serpentine
  columns: int = 0  # windows in a row of a serpentine; 0 = along headings

  @classmethod
  def from_config(
    cls,
    sequence: Mapping[str, Any],
    mpp: float,
    window_px: tuple[int, int],
  ) -> base.Geometry:
    """Reads `step_um`, `serpentine_columns` and `headings_deg`."""
    step_um = sequence["step_um"]
    # Whole pixels, so that a frame is a plain cut of its strip.
    step_px = float(window_px[1] if step_um == 0 else round(step_um / mpp))
    if step_px < window_px[1]:
      raise ValueError(
        f"config.sequence.step_um = {step_um}: must be 0 (side by side) or at "
        f"least the window of {window_px[1] * mpp} um"
      )
    columns = sequence["serpentine_columns"]
    if columns and sequence["frames"] % columns:
      raise ValueError(
        f"config.sequence.serpentine_columns = {columns}: must be 0 or a "
        f"divisor of the {sequence['frames']} frames"
      )
    headings = () if columns else base.headings_from(sequence)
    return cls(mpp, window_px, sequence["frames"], step_px, headings, columns)

  @property
  def spacing_px(self) -> float:
    """The length of a straight walk."""
    return self.window_px[1] + (self.frames - 1) * self.step_px

  def heading(self, path: int) -> float:
    """Direction of travel in degrees; NaN for a serpentine."""
    return super().heading(path) if self.columns else self.headings_deg[path]

  def paths(self) -> Float[np.ndarray, "a t 2"]:
    """Frame centres along each heading, or of the block."""
    if not self.columns:
      return base.straight(self.headings_deg, self.frames, self.step_px)
    rows = self.frames // self.columns
    xy = [
      (c if r % 2 == 0 else self.columns - 1 - c, r)
      for r in range(rows)
      for c in range(self.columns)
    ]
    middle = np.array([(self.columns - 1) / 2, (rows - 1) / 2])
    return ((np.array(xy) - middle) * np.array(self.window_px[::-1]))[None]

  def cut(
    self, slide: base.Readable, centre: base.Centre
  ) -> Iterator[tuple[int, base.Panels]]:
    """Reads each path by itself: they share hardly a pixel."""
    for path, box in zip(
      centre.paths, self.extent()[list(centre.paths)], strict=True
    ):
      region, start = base.read_box(
        slide, centre.xy, tuple(box.tolist()), self.mpp
      )
      yield path, self._windows(region, start, path)

  def _windows(
    self, region: np.ndarray, start: tuple[int, int], path: int
  ) -> base.Panels:
    height, width = self.window_px
    if not self.columns:
      length = round(self.spacing_px)
      region = base.cut_strip(
        region, start, self.headings_deg[path], self.window_px, length
      )
      corners = [(round(i * self.step_px), 0) for i in range(self.frames)]
    else:
      corners = [
        (start[0] + round(x - width / 2), start[1] + round(y - height / 2))
        for x, y in self.paths()[path]
      ]
    return [
      np.ascontiguousarray(region[y : y + height, x : x + width])
      for x, y in corners
    ]
