"""Outlines, areas and choices counted by hand."""

import csv

import numpy as np
import pytest
from scipy import ndimage

from data_prep.wsi import annotations
from wsiseq_jax.maps import regions
from wsiseq_jax.maps.tile_map import TileMap


def grid(rows, side=80.0, mpp=0.5, **other):
  """Tiles side by side; a cell of None has no tile."""
  cells = [
    (x * side, y * side, p)
    for y, row in enumerate(rows)
    for x, p in enumerate(row)
    if p is not None
  ]
  table = np.array(cells, np.float64).reshape(-1, 3)
  probability = table[:, 2].astype(np.float32)
  values = dict(
    slide_id="s", patient_id="c", xy=table[:, :2], tile_size=side,
    unit="level0_px", level0_mpp=mpp,
    level0_size=(int(len(rows[0]) * side), int(len(rows) * side)),
    attention=probability / max(probability.sum(), 1e-6),
    probability=probability, contribution=-probability, class_name="tumour",
    slide_probability=0.9, threshold=0.5, label=None,
  )  # fmt: skip
  return TileMap(**{**values, **other})


# Pixels are an eighth of a tile, 5 um: a tile is 64 of them, 0.0016 mm².
CUT = 1 / 8 / 64  # of a tile, at each corner


def test_a_block_of_tiles():
  found = regions.find_regions(
    grid([[0.1, 0.1, 0.1], [0.1, 0.75, 1.0], [0.1, 0.1, 0.1]])
  )
  assert len(found) == 1
  region = found[0]
  assert region.tiles == 2
  assert region.area_mm2 == pytest.approx(0.0016 * (2 - 4 * CUT))
  assert (region.mean, region.max) == (0.875, 1.0)
  (ring,) = region.rings
  assert ring[0].tolist() == ring[-1].tolist() and len(ring) == 9
  # Level-0 pixels: tiles from 80 to 240, corners cut by 5.
  assert ring.min(0).tolist() == [80, 80] and ring.max(0).tolist() == [240, 160]
  assert [85.0, 80.0] in ring.tolist() and [80.0, 85.0] in ring.tolist()
  assert regions.signed_area(ring) > 0


def test_a_hole_is_a_ring_that_runs_the_other_way():
  found = regions.find_regions(grid([[0.9] * 3, [0.9, 0.1, 0.9], [0.9] * 3]))
  outer, hole = found[0].rings
  assert regions.signed_area(outer) > 0 > regions.signed_area(hole)
  assert hole.min(0).tolist() == [80, 80] and hole.max(0).tolist() == [160, 160]
  # Cuts shrink the outside and the hole alike.
  assert found[0].area_mm2 == pytest.approx(0.0016 * 8)
  assert found[0].tiles == 8 and found[0].mean == pytest.approx(0.9)
  filled = regions.find_regions(
    grid([[0.9] * 3, [0.9, 0.1, 0.9], [0.9] * 3]), max_hole_um2=1600
  )
  assert len(filled[0].rings) == 1 and filled[0].tiles == 9
  assert filled[0].mean == pytest.approx((8 * 0.9 + 0.1) / 9)


def test_corners_do_not_join():
  found = regions.find_regions(grid([[0.9, 0.1], [0.1, 0.8]]))
  assert [r.max for r in found] == [pytest.approx(0.9), pytest.approx(0.8)]
  assert [len(r.rings) for r in found] == [1, 1]
  # A ring of tiles that touches itself at a corner: inside is a hole, or not,
  # but no ring may touch itself.
  rows = [[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.9, 0.9, 0.1]]
  (curl,) = regions.find_regions(grid(rows))
  for ring in curl.rings:
    assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1
  assert curl.area_mm2 == pytest.approx(0.0016 * 7, rel=0.01)


def test_the_largest_first_and_small_ones_dropped():
  rows = [[0.9, 0.1, 0.7, 0.7], [0.1, 0.1, 0.1, 0.1]]
  assert [r.tiles for r in regions.find_regions(grid(rows))] == [2, 1]
  # A tile is 64 pixels of 25 um².
  kept = regions.find_regions(grid(rows), min_area_um2=1600)
  assert [r.tiles for r in kept] == [2, 1]
  kept = regions.find_regions(grid(rows), min_area_um2=1601)
  assert [r.tiles for r in kept] == [2]
  assert regions.find_regions(grid(rows), threshold=0.95) == []


def test_closing_bridges_and_opening_cuts():
  rows = [[0.9, 0.1, 0.9], [0.9, 0.1, 0.9], [0.9, 0.1, 0.9]]
  assert len(regions.find_regions(grid(rows))) == 2
  # The gap is 40 um: discs of 15 um do not span it, discs of 25 um do.
  assert len(regions.find_regions(grid(rows), close_um=15)) == 2
  (one,) = regions.find_regions(grid(rows), close_um=25)
  assert one.max == pytest.approx(0.9) and one.tiles > 6
  bridge = [[0.9, 0.1, 0.9], [0.9, 0.9, 0.9], [0.9, 0.1, 0.9]]
  assert len(regions.find_regions(grid(bridge), open_um=15)) == 1
  bridge = [[0.9] * 3, [0.1, 0.9, 0.1], [0.9] * 3]
  wide = regions.find_regions(grid(bridge), open_um=25)
  assert [r.tiles for r in wide] == []  # nothing is 50 um wide
  wider = grid([[0.9] * 5] * 2 + [[0.1, 0.1, 0.9, 0.1, 0.1]] + [[0.9] * 5] * 2)
  assert len(regions.find_regions(wider)) == 1
  assert [r.tiles for r in regions.find_regions(wider, open_um=25)] == [10, 10]


def test_gaps_between_tiles():
  """Closing may cross what no tile covers; the mean does not know it."""
  rows = [[0.9, None, 0.9]]
  assert len(regions.find_regions(grid(rows))) == 2
  (one,) = regions.find_regions(grid([*rows] * 3), close_um=25)
  assert one.mean == pytest.approx(0.9) and one.tiles == 6
  assert regions.find_regions(grid([[None, None]])) == []


def test_outlines_give_the_mask_back():
  rng = np.random.default_rng(0)
  mask = rng.random((40, 50)) < 0.6
  labels, count = ndimage.label(mask)
  for number in range(1, count + 1):
    piece = labels == number
    rings = regions.outline(piece)
    # Cut corners do not reach the centres of pixels.
    np.testing.assert_array_equal(annotations.fill(rings, piece.shape), piece)
    for ring in rings:
      assert len(np.unique(ring[:-1], axis=0)) == len(ring) - 1
  assert count > 5
  with pytest.raises(ValueError, match="2 pieces"):
    regions.outline(np.array([[True, False, True]]))


@pytest.mark.parametrize(
  "name", ["smooth_um", "close_um", "open_um", "min_area_um2", "max_hole_um2"]
)
def test_negative_lengths(name):
  with pytest.raises(ValueError, match=f"{name}=-1"):
    regions.find_regions(grid([[0.9]]), **{name: -1})


def test_top_and_bottom_tiles():
  tiles = grid([[0.5, 0.9, 0.8, 0.2, 0.7, 0.1]])
  top = regions.extreme_tiles(tiles, 3)
  assert [t.index for t in top] == [1, 2, 4]
  assert top[0].xy == (80, 0) and top[0].score == pytest.approx(0.9)
  # Tiles are 40 um apart: one per neighbourhood of 50 um.
  spread = regions.extreme_tiles(tiles, 3, apart_um=50)
  assert [t.index for t in spread] == [1, 4]
  bottom = regions.extreme_tiles(tiles, 2, lowest=True, apart_um=50)
  assert [t.index for t in bottom] == [5, 3]
  # Contributions here are the negative probabilities.
  against = regions.extreme_tiles(tiles, 1, by="contribution", lowest=True)
  assert against[0].index == 1 and against[0].score < 0
  assert len(regions.extreme_tiles(tiles, 99)) == 6
  assert regions.extreme_tiles(grid([[None]]), 3) == []


def test_bad_choices():
  tiles = grid([[0.5]], mpp=None)
  assert len(regions.extreme_tiles(tiles, 1)) == 1
  with pytest.raises(ValueError, match="its um per level-0 pixel is unknown"):
    regions.extreme_tiles(tiles, 1, apart_um=10)
  with pytest.raises(ValueError, match="by='rank'"):
    regions.extreme_tiles(tiles, 1, by="rank")
  with pytest.raises(ValueError, match="count=-1"):
    regions.extreme_tiles(tiles, -1)


def test_table_of_scores(tmp_path):
  path = tmp_path / "s.csv"
  um = grid([[0.25, 0.75]], side=40.0, unit="um", level0_size=(160, 80))
  regions.write_csv(path, um)
  with path.open() as file:
    rows = list(csv.DictReader(file))
  assert rows == [
    {"slide_id": "s", "tile": "0", "x": "0", "y": "0", "side": "80",
     "probability": "0.25", "contribution": "-0.25", "attention": "0.25",
     "attention_rank": "0.25"},
    {"slide_id": "s", "tile": "1", "x": "80", "y": "0", "side": "80",
     "probability": "0.75", "contribution": "-0.75", "attention": "0.75",
     "attention_rank": "0.75"},
  ]  # fmt: skip
  assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
