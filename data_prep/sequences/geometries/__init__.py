"""The ways in which frames lie on a slide; a new one is a file and a line."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from data_prep.files.schema import Range, Rule
from data_prep.sequences.geometries.base import Centre, Geometry, Readable
from data_prep.sequences.geometries.drift import Drift
from data_prep.sequences.geometries.walk import Walk
from data_prep.sequences.geometries.zoom import Zoom

GEOMETRIES = {"drift": Drift, "walk": Walk, "zoom": Zoom}

DIFFERENT_DIRECTIONS = Rule(
  lambda angles: len({a % 360 for a in angles}) == len(angles),
  "different directions",
)

__all__ = [
  "GEOMETRIES",
  "Centre",
  "Geometry",
  "Readable",
  "SequenceSettings",
  "from_config",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceSettings:
  """`config.sequence`: what all geometries share, and what is some's own."""

  geometry: Literal[tuple(GEOMETRIES)] = "drift"
  # Height, width of a frame.
  window_um: Annotated[tuple[float, float], Range(above=0)] = (84.0, 84.0)
  # Between frames; walk: 0 = side by side.
  step_um: Annotated[float, Range(0)] = 2.0
  frames: Annotated[int, Range(1)] = 96
  # Counter-clockwise, 0 = to the right, 90 = up.
  headings_deg: Annotated[tuple[float, ...], DIFFERENT_DIRECTIONS] = tuple(
    45.0 * k for k in range(-4, 4)
  )
  serpentine_columns: Annotated[int, Range(0)] = 0  # walk: 0 = along headings
  zoom_factor: float = 16.0  # zoom: last over first field of view
  spacing_um: Annotated[float, Range(0)] = 0.0  # of centres; 0 = strip length
  max_centres: Annotated[int, Range(0)] = 128  # a slide; 0 = all
  # Smallest share of tissue in any frame.
  min_tissue: Annotated[float, Range(0, 1, above=0)] = 0.25
  all_headings: bool = True  # drop centres where not all are valid


def from_config(config: Mapping[str, Any]) -> Geometry:
  """Turns micrometres into pixels."""
  mpp, sequence = config["mpp"], config["sequence"]
  window_um = tuple(sequence["window_um"])
  if min(window_um) < 2 * mpp:
    raise ValueError(
      f"config.sequence.window_um = {window_um}: must be (height, width), each "
      f"at least two pixels ({2 * mpp} um)"
    )
  # Even, so that a window around a whole number starts on a pixel edge.
  window_px = tuple(2 * round(side / mpp / 2) for side in window_um)
  chosen = GEOMETRIES[sequence["geometry"]]
  return chosen.from_config(sequence, mpp, window_px)
