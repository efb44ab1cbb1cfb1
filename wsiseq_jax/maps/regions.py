"""Regions of interest out of a map of tiles, and the tiles at its two ends.

The map is drawn at an eighth of a tile a pixel, cut at a threshold, cleaned
(closing, opening, small pieces, small holes) and outlined by polygons with
holes in level-0 pixels. Lengths are in um and areas in um², so that the same
tumour gives the same region whatever the slide's resolution.
"""

import csv
import dataclasses
import io
import os

import contourpy
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from data_prep.files import atomic
from wsiseq_jax.maps import detections, heatmaps
from wsiseq_jax.maps.tile_map import TileMap

SCORES = ("probability", "contribution", "attention")
Number = int | float | np.integer | np.floating
# Pieces are joined by sides, holes by corners too, as outlines separate them.
_BY_SIDES = ndimage.generate_binary_structure(2, 1)
_BY_CORNERS = ndimage.generate_binary_structure(2, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
  """One connected region."""

  # The outline, then holes; closed, [n 2] x, y in level-0 pixels. The area
  # `sum(x_i * y_(i+1) - x_(i+1) * y_i) / 2` is positive for the outline and
  # negative for holes.
  rings: tuple[Float[np.ndarray, "_ 2"], ...]
  area_mm2: float  # of the polygon, without its holes
  mean: float  # mean of the map over the covered pixels of the region
  max: float  # largest value of the map there
  tiles: int  # number of tiles whose centre lies inside


@dataclasses.dataclass(frozen=True)
class TileScore:
  """One tile."""

  index: int  # its row in the map, and in the feature file it was made from
  xy: tuple[float, float]  # top-left corner, level-0 pixels
  score: float  # the score it was chosen by


def find_regions(
  tile_map: TileMap,
  threshold: Number = 0.5,
  *,
  smooth_um: Number = 0.0,
  close_um: Number = 0.0,
  open_um: Number = 0.0,
  min_area_um2: Number = 0.0,
  max_hole_um2: Number = 0.0,
) -> list[Region]:
  """Outlines where the probability of a slide is above a threshold."""
  settings = {
    "smooth_um": smooth_um,
    "close_um": close_um,
    "open_um": open_um,
    "min_area_um2": min_area_um2,
    "max_hole_um2": max_hole_um2,
  }
  for name, value in settings.items():
    if not value >= 0:
      raise ValueError(f"{name}={value}: must not be negative")
  mpp = detections.level0_mpp(tile_map)
  um_per_px = tile_map.in_level0().tile_size * mpp / 8
  canvas = heatmaps.draw(tile_map, um_per_px=um_per_px, smooth_um=smooth_um)
  mask = clean(
    canvas.values > threshold,
    close_px=close_um / um_per_px,
    open_px=open_um / um_per_px,
    min_area_px=min_area_um2 / um_per_px**2,
    max_hole_px=max_hole_um2 / um_per_px**2,
  )
  labels, _ = ndimage.label(mask, structure=_BY_SIDES)
  places = detections.centres(tile_map) / canvas.downsample
  column, row = np.minimum(
    np.maximum(places, 0).astype(int), np.array(labels.shape)[::-1] - 1
  ).T
  tiles = np.bincount(labels[row, column], minlength=labels.max() + 1)
  regions = []
  for number, box in enumerate(ndimage.find_objects(labels), 1):
    piece = labels[box] == number
    values = canvas.values[box][piece]
    values = values[np.isfinite(values)]
    # What closing made of nothing: no pixel of it was ever above.
    if not (values > threshold).any():
      continue
    corner = np.array([box[1].start, box[0].start], np.float64)
    rings = outline(piece)
    area = sum(signed_area(ring) for ring in rings) * um_per_px**2 / 1e6
    regions.append(
      Region(
        tuple((ring + corner) * canvas.downsample for ring in rings),
        float(area),
        float(values.mean(dtype=np.float64)),
        float(values.max()),
        int(tiles[number]),
      )
    )
  return sorted(regions, key=lambda region: -region.area_mm2)


def clean(
  mask: Bool[np.ndarray, "h w"],
  *,
  close_px: Number = 0.0,
  open_px: Number = 0.0,
  min_area_px: Number = 0.0,
  max_hole_px: Number = 0.0,
) -> Bool[np.ndarray, "h w"]:
  """Closes and opens by discs, fills small holes, drops small pieces.

  Example:
    >>> mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]]) > 0
    >>> clean(mask, min_area_px=2, max_hole_px=1).astype(int).tolist()
    [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
  """
  pad = int(np.ceil(max(close_px, open_px))) + 1
  mask = np.pad(mask, pad)
  if close_px:
    mask = ~_grown(~_grown(mask, close_px), close_px)
  if open_px:
    mask = _grown(~_grown(~mask, open_px), open_px)
  holes, count = ndimage.label(~mask, structure=_BY_CORNERS)
  small = np.bincount(holes.ravel(), minlength=count + 1) <= max_hole_px
  small[[0, holes[0, 0]]] = False
  mask |= small[holes]
  pieces, count = ndimage.label(mask, structure=_BY_SIDES)
  large = np.bincount(pieces.ravel(), minlength=count + 1) >= min_area_px
  large[0] = False
  return large[pieces][pad:-pad, pad:-pad]


def _grown(mask: np.ndarray, radius: float) -> np.ndarray:
  """Dilation by a disc."""
  if not mask.any():
    return mask
  return ndimage.distance_transform_edt(~mask) <= radius


def outline(
  piece: Bool[np.ndarray, "h w"],
) -> list[Float[np.ndarray, "_ 2"]]:
  """Outlines one piece, connected by sides, between its pixels.

  Straight edges lie exactly between pixels; corners are cut by half a pixel, so
  that stairs become slopes and no ring touches itself. The outer ring is first,
  then holes; all closed, without points on straight lines.

  Example:
    >>> rings = outline(np.ones((2, 3), bool))
    >>> len(rings), signed_area(rings[0])  # 6 less 4 corners of 1/8
    (1, 5.5)
  """
  grid = np.pad(piece.astype(np.float64), 1)
  filled = contourpy.contour_generator(
    z=grid, fill_type=contourpy.FillType.OuterOffset
  ).filled(0.5, 2.0)
  if len(filled[0]) != 1:
    raise ValueError(f"{len(filled[0])} pieces: not connected by sides")
  points, offsets = filled[0][0], filled[1][0]
  rings = []
  for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
    # Grid point i is the centre of pixel i - 1, which lies at i - 0.5.
    ring = points[start : stop - 1] - 0.5
    before = ring - np.roll(ring, 1, axis=0)
    after = np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    ring = ring[np.abs(turn) > 1e-9]
    ring = np.concatenate([ring, ring[:1]])
    if (signed_area(ring) > 0) != (not rings):
      ring = ring[::-1]
    rings.append(ring)
  return rings


def signed_area(ring: Float[np.ndarray, "_ 2"]) -> float:
  """Area of a closed ring; its sign is the sense it runs in.

  Example:
    >>> signed_area(np.array([[0., 0.], [2., 0.], [2., 1.], [0., 0.]]))
    1.0
  """
  x, y = ring[:, 0], ring[:, 1]
  return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def extreme_tiles(
  tile_map: TileMap,
  count: int,
  *,
  by: str = "probability",
  apart_um: Number = 0.0,
  lowest: bool = False,
) -> list[TileScore]:
  """The tiles with the highest or lowest scores, spread over the slide."""
  scores = _scores(tile_map, by)
  if not apart_um >= 0 or count < 0:
    raise ValueError(f"apart_um={apart_um}, count={count}: not negative")
  apart = apart_um and apart_um / detections.level0_mpp(tile_map)
  tiles = tile_map.in_level0()
  chosen = detections.suppress(
    -scores if lowest else scores,
    detections.centres(tile_map),
    apart,
    most=count,
  )
  return [
    TileScore(int(i), tuple(np.asarray(tiles.xy)[i].tolist()), float(scores[i]))
    for i in chosen
  ]


def _scores(tile_map: TileMap, by: str) -> np.ndarray:
  if by not in SCORES:
    raise ValueError(f"by={by!r}: choose {SCORES}")
  return np.asarray(getattr(tile_map, by), np.float64)


def write_csv(path: str | os.PathLike, tile_map: TileMap) -> None:
  """Writes the scores of all tiles of a slide as a table.

  Columns: slide_id, tile (row in the feature file), x, y (top-left corner) and
  side in level-0 pixels, the three scores, and the rank of the attention in the
  slide from 0 to 1 (for display only).
  """
  tiles = tile_map.in_level0()
  ranks = heatmaps.percentiles(np.asarray(tiles.attention, np.float64))
  scores = np.stack([*(_scores(tiles, name) for name in SCORES), ranks], axis=1)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(
    ("slide_id", "tile", "x", "y", "side", *SCORES, "attention_rank")
  )
  places = np.round(np.asarray(tiles.xy, np.float64), 2).tolist()
  for index, (place, row) in enumerate(
    zip(places, scores.tolist(), strict=True)
  ):
    place = [f"{v:.12g}" for v in (*place, tiles.tile_size)]
    values = [f"{v:.6g}" for v in row]
    writer.writerow((tiles.slide_id, index, *place, *values))
  with atomic.replacing(path) as draft:
    draft.write_text(text.getvalue(), encoding="utf-8")
