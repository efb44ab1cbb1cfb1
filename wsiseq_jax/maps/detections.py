"""From a map of tiles to a list of points: detections, as FROC wants them.

Non-maximum suppression: the most probable tile is a detection, tiles within a
radius of it are taken away, and so on down to a threshold. A lesion of many
tiles then gives few points, so that a false one is not counted a hundred times.

Files are those of the Camelyon16 challenge: one CSV a slide, no header, a line
a detection: probability, x, y in whole level-0 pixels. A slide without
detections has an empty file; without one the challenge's script would leave the
slide out of its false positives a slide.

Reference: MONAI, `ProbNMS` and the pathology examples: threshold 0.5, a radius
of 24 px at level 6 (373 um).
"""

import dataclasses
import math
import os
import pathlib

import numpy as np
from jaxtyping import Float, Int
from scipy import spatial

from data_prep.files import atomic
from wsiseq_jax.maps.tile_map import TileMap

THRESHOLD = 0.5
RADIUS_UM = 373.0
Number = int | float | np.integer | np.floating
# Beyond so many standard deviations a Gaussian weighs less than 1 %.
_REACH = 3.0


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
  """Points on one slide, the most probable first."""

  probability: Float[np.ndarray, " n"]  # of each point
  xy: Float[np.ndarray, "n 2"]  # x, y in level-0 pixels


def detect(
  tile_map: TileMap,
  threshold: Number = THRESHOLD,
  radius_um: Number = RADIUS_UM,
  smooth_um: Number = 0.0,
) -> Detections:
  """Finds the detections of one slide."""
  if not (radius_um >= 0 and smooth_um >= 0):
    raise ValueError(
      f"radius_um={radius_um}, smooth_um={smooth_um}: must not be negative"
    )
  probability = np.asarray(tile_map.probability, np.float64)
  if not ((probability >= 0) & (probability <= 1)).all():
    raise ValueError(
      f"slide {tile_map.slide_id!r}: probabilities go from "
      f"{probability.min():g} to {probability.max():g}, not within [0, 1]"
    )
  xy, mpp = centres(tile_map), level0_mpp(tile_map)
  probability = smooth(probability, xy, smooth_um / mpp)
  kept = suppress(probability, xy, radius_um / mpp, threshold)
  return Detections(probability[kept], xy[kept])


def centres(tile_map: TileMap) -> Float[np.ndarray, "m 2"]:
  """Centres of the tiles in level-0 pixels."""
  tiles = tile_map.in_level0()
  return np.asarray(tiles.xy, np.float64) + tiles.tile_size / 2


def level0_mpp(tile_map: TileMap) -> float:
  """Micrometres per level-0 pixel of the slide."""
  if not tile_map.level0_mpp:
    raise ValueError(
      f"slide {tile_map.slide_id!r}: its um per level-0 pixel is unknown; "
      "lengths in um need level0_mpp in the feature file"
    )
  return float(tile_map.level0_mpp)


def suppress(
  score: Float[np.ndarray, " m"],
  xy: Float[np.ndarray, "m 2"],
  radius: Number,
  threshold: Number = -np.inf,
  most: int | None = None,
) -> Int[np.ndarray, " n"]:
  """Takes the highest score, drops what is nearer than `radius`, and so on.

  Returns the numbers of at most `most` kept points, all above the threshold,
  scores descending; of equal scores the first.

  Example:
    >>> xy = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [9.0, 0.0]])
    >>> suppress(np.array([0.7, 0.9, 0.8, 0.2]), xy, 1.5, 0.1).tolist()
    [1, 3]
  """
  left = score > threshold
  tree = spatial.cKDTree(xy) if radius > 0 and len(xy) else None
  kept = []
  for number in np.argsort(-score, kind="stable").tolist():
    if len(kept) == most or not score[number] > threshold:
      break
    if not left[number]:
      continue
    kept.append(number)
    if tree is not None:
      near = np.array(tree.query_ball_point(xy[number], radius))
      apart = np.hypot(*(xy[near] - xy[number]).T)
      left[near[apart < radius]] = False
  return np.array(kept, np.int64)


def smooth(
  score: Float[np.ndarray, " m"], xy: Float[np.ndarray, "m 2"], sigma: Number
) -> Float[np.ndarray, " m"]:
  """Gaussian mean over neighbouring points, `sigma` in the unit of `xy`.

  Weights add up to one over the points that are there, so that the edge of the
  tissue is not pulled towards zero.

  Example:
    >>> xy = np.array([[0.0, 0.0], [1.0, 0.0], [50.0, 0.0]])
    >>> smooth(np.array([0.0, 1.0, 0.4]), xy, 1.0).round(3).tolist()
    [0.378, 0.622, 0.4]
  """
  if not sigma > 0 or not len(score):
    return score
  tree = spatial.cKDTree(xy)
  near = tree.sparse_distance_matrix(
    tree, _REACH * sigma, output_type="coo_matrix"
  )
  weight = np.exp(-((near.data / sigma) ** 2) / 2)
  total = np.bincount(near.row, weight, len(score))
  return np.bincount(near.row, weight * score[near.col], len(score)) / total


def write(path: str | os.PathLike, detections: Detections) -> None:
  """Writes a file of the Camelyon16 challenge, empty without detections."""
  lines = [
    f"{p:.9g},{math.floor(x)},{math.floor(y)}\n"
    for p, (x, y) in zip(
      detections.probability.tolist(), detections.xy.tolist(), strict=True
    )
  ]
  with atomic.replacing(path) as draft:
    draft.write_text("".join(lines), encoding="utf-8")


def read(path: str | os.PathLike) -> Detections:
  """Reads a file of the Camelyon16 challenge."""
  rows = []
  lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = [float(value) for value in line.split(",")]
    except ValueError:
      row = []
    if len(row) != 3 or not all(map(math.isfinite, row)):
      raise ValueError(
        f"{path}, line {number}: {line!r} is not 'probability,x,y'"
      )
    rows.append(row)
  table = np.array(rows, np.float64).reshape(-1, 3)
  return Detections(table[:, 0], table[:, 1:])
