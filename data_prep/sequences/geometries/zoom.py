"""One centre at a growing field of view: context in place of time."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from data_prep.sequences.geometries import base


@dataclasses.dataclass(frozen=True)
class Zoom(base.Geometry):
  """Frames of equal size; the last shows `factor` times the first's field."""

  sentence: ClassVar[str] = (
    "From left to right the field of view grows round one centre."
  )
  factor: float

  @classmethod
  def from_config(
    cls,
    sequence: Mapping[str, Any],
    mpp: float,
    window_px: tuple[int, int],
  ) -> base.Geometry:
    """Reads `zoom_factor`."""
    factor = sequence["zoom_factor"]
    if factor <= 1:
      raise ValueError(
        f"config.sequence.zoom_factor = {factor}: must be above 1"
      )
    return cls(mpp, window_px, sequence["frames"], factor)

  @property
  def spacing_px(self) -> float:
    """The width of the finest frame."""
    return self.window_px[1]

  def frame_mpp(self) -> list[float]:
    """Micrometres per pixel of each frame, finest first, equal ratios apart."""
    last = max(1, self.frames - 1)
    return [self.mpp * self.factor ** (t / last) for t in range(self.frames)]

  def paths(self) -> Float[np.ndarray, "a t 2"]:
    """All frames have the same centre."""
    return np.zeros((1, self.frames, 2))

  def time(self) -> Float[np.ndarray, " t"]:
    """The width of the field of view in micrometres."""
    um = np.array(self.frame_mpp()) * self.window_px[1]
    return um.astype(np.float32)

  def cut(
    self, slide: base.Readable, centre: base.Centre
  ) -> Iterator[tuple[int, base.Panels]]:
    """Reads each frame; white beyond the edge keeps a border's context."""
    size = self.window_px[::-1]
    yield 0, [slide.read_region(centre.xy, size, m) for m in self.frame_mpp()]
