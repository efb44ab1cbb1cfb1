"""Shapes of metastases on the plan of a synthetic lymph node.

Each is drawn again until its extent is what its kind should have.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from data_prep.synthetic.lymph.texture import GERMINAL

# Major axis in um: least and most, by kind of lesion.
EXTENT_UM = {"macro": (550, 1050), "micro": (290, 460), "itc": (25, 180)}


def distance(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
  """Distance to what is not in the mask, in pixels; the border is outside.

  Example:
    >>> distance(np.ones((3, 3), bool)).tolist()[1]
    [1.0, 2.0, 1.0]
  """
  padded = np.pad(mask, 1).astype(np.uint8)
  exact = cv2.DIST_MASK_PRECISE
  return cv2.distanceTransform(padded, cv2.DIST_L2, exact)[1:-1, 1:-1]


def _largest(mask):
  """The largest piece, with its holes filled."""
  parts, count = ndimage.label(mask)
  if count > 1:
    mask = parts == np.bincount(parts[parts > 0]).argmax()
  return ndimage.binary_fill_holes(mask)


def major_axis(mask: Bool[np.ndarray, "h w"]) -> float:
  """Major axis of the ellipse with the mask's second moments, in pixels.

  Example:
    >>> round(major_axis(np.ones((1, 101), bool)))  # a line, not an ellipse
    117
  """
  y, x = np.nonzero(mask)
  spread = np.linalg.eigvalsh(np.cov(np.stack([x, y]), bias=True))
  return float(4 * np.sqrt(max(spread[-1], 0.0)))


def find(plan, kind: str) -> Bool[np.ndarray, "h w"] | None:
  """Draws one lesion of the extent that its kind should have."""
  low, high = EXTENT_UM[kind]
  for attempt in range(60):
    # Small ones lie beside follicles, a large one grows over them.
    room = plan.room & ((kind == "macro") | (plan.types != GERMINAL))
    draw = _streak if kind == "micro" else _mass
    mask = draw(plan, kind, room, 0.99**attempt)
    if mask is None or mask.sum() * plan.um**2 < 300:
      continue
    if low <= major_axis(mask) * plan.um <= high:
      return mask
  return None


def _mass(plan, kind, room, shrink):
  """Macrometastases and single clusters: irregular discs."""
  rng = plan.rng
  if kind == "macro":
    radius = shrink * rng.uniform(290, 430)
    place = plan.pick(room & (plan.depth > min(0.5 * radius, 140)))
    rough = 0.14
  else:
    radius, rough = rng.uniform(16, 48), 0.2
    place = plan.pick(room)
  if place is None:
    return None
  mask = plan.disc(*place, radius, rough) & room
  return _largest(mask) if mask.any() else None


def _streak(plan, kind, room, shrink):
  """Micrometastases: along the sinus below the capsule, or in the cortex."""
  rng, um = plan.rng, plan.um
  place = plan.pick(room & (plan.depth > 45) & (plan.depth < 260))
  if place is None:
    return None
  smooth = cv2.GaussianBlur(plan.depth, (0, 0), 30 / um)
  line, point = [], np.array(place, float)
  turn = np.pi / 2 * rng.choice((-1, 1))
  for _ in range(round(shrink * rng.uniform(300, 400) / 12)):
    x, y = point.astype(int)
    if not (2 < x < plan.shape[1] - 3 and 2 < y < plan.shape[0] - 3):
      break
    line.append((x, y))
    across = smooth[y, x + 2] - smooth[y, x - 2]
    down = smooth[y + 2, x] - smooth[y - 2, x]
    turn += rng.normal(0, 0.07)
    angle = np.arctan2(down, across) + turn
    point += np.array([np.cos(angle), np.sin(angle)]) * 12 / um
  path = np.ones(plan.shape, np.uint8)
  cv2.polylines(path, [np.array(line, np.int32)], False, 0, 1)
  apart = distance(path > 0) * um
  width = rng.uniform(34, 52) * (1 + 0.22 * plan.noise(30))
  mask = (apart < width) & room
  return _largest(mask) if mask.any() else None
