"""The geometries in pixels: where the frames of a sequence lie.

No pixel is touched here; `sequences.py` cuts them.

Directions follow the reference recipe: counter-clockwise, 0 to the right, 90
up. In image coordinates (y down) heading `a` travels along
`u = (cos a, -sin a)` and the frame's own y axis is `v = (sin a, cos a)`.
Pixel i covers [i, i + 1), so a centre is a real number and a window of even
size around a whole number starts on a pixel edge. Windows are rounded to even
sizes for that: headings 0, 90, 180 and -90 are then exact flips of the slide's
pixels, and only diagonals are interpolated.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_prep import shards

GEOMETRIES = ("drift", "walk", "zoom")
SUBSAMPLINGS = ("420", "422", "444")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A geometry in pixels at the target resolution.

  Attributes:
    geometry: 'drift', 'walk' or 'zoom'.
    mpp: micrometres per pixel of the frames (of the finest for `zoom`).
    window_px: (h, w) of a frame, both even.
    step_px: distance between neighbouring frames; may be fractional.
    frames: frames in a sequence.
    headings_deg: directions of travel; empty where there is none.
    columns: windows in a row of a serpentine `walk`; 0 = along headings.
    zoom_factor: field of view of the last frame over that of the first.
    quality: JPEG quality.
    subsampling: JPEG chroma subsampling.
  """

  geometry: str
  mpp: float
  window_px: tuple[int, int]
  step_px: float
  frames: int
  headings_deg: tuple[float, ...]
  columns: int
  zoom_factor: float
  quality: int
  subsampling: str

  @property
  def strip_px(self) -> tuple[int, int]:
    """(h, w) of the strip that all frames of a heading lie in."""
    height, width = self.window_px
    return height, width + math.ceil((self.frames - 1) * self.step_px)

  @property
  def panel_px(self) -> tuple[int, int]:
    """(h, w) of a stored panel."""
    return self.strip_px if self.geometry == "drift" else self.window_px

  def layout(self, targets: int) -> shards.Layout:
    """Returns the shapes of a data set of these sequences."""
    panels = 1 if self.geometry == "drift" else self.frames
    return shards.Layout(self.frames, panels, self.panel_px, targets)

  def paths_px(self) -> Float[np.ndarray, "a t 2"]:
    """Returns frame centres relative to the region centre, for each path."""
    if self.geometry == "zoom":
      return np.zeros((1, self.frames, 2))
    if self.columns:
      return _serpentine(self.frames, self.columns, self.window_px)[None]
    along = np.arange(self.frames) * self.step_px
    return np.stack([along[:, None] * axes(a)[0] for a in self.headings_deg])


def spec_from_config(config: Mapping[str, Any]) -> Spec:
  """Turns micrometres into pixels and checks the settings.

  Args:
    config: the whole preparation config (`configs/prep_wsi.py`).

  Returns:
    The geometry.

  Raises:
    ValueError: naming the config key, the value and what is allowed.
  """
  sequence, jpeg = config["sequence"], config["jpeg"]

  def need(condition: bool, key: str, value: Any, want: str) -> None:
    if not condition:
      raise ValueError(f"config.{key} is {value!r}, want {want}")

  geometry, mpp = sequence["geometry"], config["mpp"]
  need(geometry in GEOMETRIES, "sequence.geometry", geometry, f"{GEOMETRIES}")
  need(mpp > 0, "mpp", mpp, "micrometres per pixel above 0")
  window_um = tuple(sequence["window_um"])
  need(
    len(window_um) == 2 and min(window_um) >= 2 * mpp,
    "sequence.window_um",
    window_um,
    f"(height, width), each at least two pixels ({2 * mpp} um)",
  )
  window_px = tuple(2 * round(side / mpp / 2) for side in window_um)
  frames = sequence["frames"]
  need(frames >= 1, "sequence.frames", frames, "at least 1")
  step_um = sequence["step_um"]
  headings = tuple(float(a) for a in sequence["headings_deg"])
  columns = sequence["serpentine_columns"]
  if geometry == "drift":
    need(step_um > 0, "sequence.step_um", step_um, "above 0")
    columns = 0
  step_px = step_um / mpp
  if geometry == "walk":
    # Whole pixels, so that a frame is a plain cut of its strip.
    step_px = float(window_px[1] if step_um == 0 else round(step_px))
    need(
      step_px >= window_px[1],
      "sequence.step_um",
      step_um,
      f"0 (side by side) or at least the window of {window_px[1] * mpp} um",
    )
    need(
      columns == 0 or (columns > 0 and frames % columns == 0),
      "sequence.serpentine_columns",
      columns,
      f"0 or a divisor of the {frames} frames",
    )
  if geometry == "zoom" or columns:
    headings = ()
  else:
    need(len(headings) > 0, "sequence.headings_deg", headings, "at least one")
    need(
      len({a % 360 for a in headings}) == len(headings),
      "sequence.headings_deg",
      headings,
      "different directions",
    )
  zoom_factor = sequence["zoom_factor"]
  if geometry == "zoom":
    need(zoom_factor > 1, "sequence.zoom_factor", zoom_factor, "above 1")
  need(
    jpeg["subsampling"] in SUBSAMPLINGS,
    "jpeg.subsampling",
    jpeg["subsampling"],
    f"one of {SUBSAMPLINGS}",
  )
  need(1 <= jpeg["quality"] <= 100, "jpeg.quality", jpeg["quality"], "1 to 100")
  return Spec(
    geometry=geometry,
    mpp=mpp,
    window_px=window_px,
    step_px=step_px,
    frames=frames,
    headings_deg=headings,
    columns=columns,
    zoom_factor=zoom_factor,
    quality=jpeg["quality"],
    subsampling=jpeg["subsampling"],
  )


def extent(spec: Spec) -> Float[np.ndarray, "a 4"]:
  """Returns the box around all windows of each path.

  Args:
    spec: the geometry.

  Returns:
    x0, y0, x1, y1 for each path, relative to the region centre, in pixels.
  """
  half_h, half_w = (side / 2 for side in spec.window_px)
  paths = spec.paths_px()
  upright = spec.geometry == "zoom" or bool(spec.columns)
  boxes = []
  for number, path in enumerate(paths):
    u, v = axes(0.0 if upright else spec.headings_deg[number])
    corners = [
      a * half_w * u + b * half_h * v for a in (-1, 1) for b in (-1, 1)
    ]
    points = path[:, None] + np.stack(corners)[None]
    boxes.append(np.concatenate([points.min((0, 1)), points.max((0, 1))]))
  return np.stack(boxes)


def axes(
  heading_deg: float | int,
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
  """Returns the unit vectors of travel and of the frame's y axis.

  Args:
    heading_deg: direction of travel, counter-clockwise, 0 = right.

  Returns:
    Two vectors (x, y) in image coordinates, y down.

  Example:
    >>> u, v = axes(90)
    >>> u.tolist(), v.tolist()
    ([0.0, -1.0], [1.0, 0.0])
  """
  # Exact zeros and ones for right angles, where cos() leaves 6e-17.
  quarter = {0: (1.0, 0.0), 90: (0.0, 1.0), 180: (-1.0, 0.0), 270: (0.0, -1.0)}
  angle = math.radians(heading_deg)
  cos, sin = quarter.get(heading_deg % 360, (math.cos(angle), math.sin(angle)))
  return np.array([cos, 0.0 - sin]), np.array([sin, cos])


def _serpentine(
  frames: int, columns: int, window_px: tuple[int, int]
) -> Float[np.ndarray, "t 2"]:
  """Centres of the windows of a block, every other row right to left."""
  rows = frames // columns
  xy = [
    (c if r % 2 == 0 else columns - 1 - c, r)
    for r in range(rows)
    for c in range(columns)
  ]
  middle = np.array([(columns - 1) / 2, (rows - 1) / 2])
  return (np.array(xy) - middle) * np.array([window_px[1], window_px[0]])


def zoom_mpp(spec: Spec) -> list[float]:
  """Returns the resolution of each frame of a zoom, equal ratios apart.

  Args:
    spec: a `zoom` geometry.

  Returns:
    Micrometres per pixel, finest first.
  """
  last = max(1, spec.frames - 1)
  return [spec.mpp * spec.zoom_factor ** (t / last) for t in range(spec.frames)]


def frame_time(spec: Spec) -> Float[np.ndarray, " t"]:
  """Returns the position of each frame along its sequence.

  Args:
    spec: the geometry.

  Returns:
    Micrometres travelled since the first frame; for `zoom`, the width of the
    field of view in micrometres.
  """
  if spec.geometry == "zoom":
    um = np.array(zoom_mpp(spec)) * spec.window_px[1]
  else:
    path = spec.paths_px()[0]
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    um = np.concatenate([[0.0], np.cumsum(steps)]) * spec.mpp
  return um.astype(np.float32)


def frame_panel(spec: Spec) -> Int[np.ndarray, " t"]:
  """Returns the panel of each frame: the strip, or one panel a frame.

  Args:
    spec: the geometry.

  Returns:
    Panel numbers, int32.
  """
  if spec.geometry == "drift":
    return np.zeros(spec.frames, np.int32)
  return np.arange(spec.frames, dtype=np.int32)


def frame_box(spec: Spec) -> Float[np.ndarray, "t 4"]:
  """Returns where each frame lies in its panel.

  Args:
    spec: the geometry.

  Returns:
    x, y, w, h in panel pixels, float32; x is fractional where the step is.
  """
  height, width = spec.window_px
  box = np.zeros((spec.frames, 4), np.float32)
  box[:, 2:] = width, height
  if spec.geometry == "drift":
    box[:, 0] = np.arange(spec.frames) * spec.step_px
  return box
