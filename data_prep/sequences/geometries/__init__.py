"""The ways in which frames lie on a slide; a new one is a file and a line."""

from collections.abc import Mapping
from typing import Any

from data_prep import runs
from data_prep.sequences.geometries.base import Centre, Geometry, Readable
from data_prep.sequences.geometries.drift import Drift
from data_prep.sequences.geometries.walk import Walk
from data_prep.sequences.geometries.zoom import Zoom

GEOMETRIES = {
  "drift": Drift,
  "walk": Walk,
  "zoom": Zoom,
}

__all__ = ["GEOMETRIES", "Centre", "Geometry", "Readable", "from_config"]


def from_config(config: Mapping[str, Any]) -> Geometry:
  """Turns micrometres into pixels and checks the settings.

  Args:
    config: the whole preparation config (`configs/prep_wsi.py`).

  Returns:
    The geometry.

  Raises:
    ValueError: naming the config key, the value and what is allowed.
  """
  runs.need(config, "mpp", config["mpp"] > 0, "um per pixel above 0")
  mpp, window_um = config["mpp"], tuple(config["sequence"]["window_um"])
  runs.need(
    config,
    "sequence.window_um",
    len(window_um) == 2 and min(window_um) >= 2 * mpp,
    f"(height, width), each at least two pixels ({2 * mpp} um)",
  )
  # Even, so that a window around a whole number starts on a pixel edge.
  window_px = tuple(2 * round(side / mpp / 2) for side in window_um)
  frames = config["sequence"]["frames"]
  runs.need(config, "sequence.frames", frames >= 1, "at least 1")
  name = config["sequence"]["geometry"]
  runs.need(
    config,
    "sequence.geometry",
    name in GEOMETRIES,
    f"one of {tuple(GEOMETRIES)}",
  )
  return GEOMETRIES[name].from_config(config, mpp, window_px, frames)
