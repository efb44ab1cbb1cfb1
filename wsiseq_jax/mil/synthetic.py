"""Small bags with a known answer, for `configs/mil.py:smoke` and for tests.

A third of the tiles of a positive slide are shifted along the first channel; a
case has two slides of one label. One slide has no tile, as pale slides have.
"""

import csv
import pathlib

import numpy as np

from wsiseq_jax.data import tile_features

WIDTH, TILE = 8, 256.0


def make_tiles(
  slide_id: str, is_positive: bool, rng: np.random.Generator, tiles: int
) -> tile_features.TileFeatures:
  """A slide: tiles on a square grid, the first third of them telling."""
  features = rng.standard_normal((tiles, WIDTH)).astype(np.float32)
  if is_positive:
    features[: -(-tiles // 3), 0] += 4.0
  side = int(np.ceil(np.sqrt(max(tiles, 1))))
  number = np.arange(tiles)
  xy = np.stack([number % side, number // side], axis=1) * TILE
  return tile_features.TileFeatures(
    slide_id,
    features,
    xy.astype(np.float64),
    TILE,
    mpp=0.5,
    level0_mpp=0.5,
    level0_size=(int(side * TILE), int(side * TILE)),
    encoder="synthetic",
  )


def write(
  folder: pathlib.Path, cases: int = 16, seed: int = 0
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes feature files and a table with labels of every target type."""
  features = folder / "features"
  features.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  rows = []
  for number in range(2 * cases):
    case, slide_id = number // 2, f"slide{number:02d}"
    positive = case % 2 == 1
    count = int(rng.integers(3, 40)) if number else 0
    tiles = make_tiles(slide_id, positive, rng, count)
    tile_features.write(features / f"{slide_id}.h5", tiles)
    rows.append(
      {
        "slide_id": slide_id,
        "patient_id": f"case{case:02d}",
        "label": "tumour" if positive else "normal",
        "kind": "c" if positive else "ab"[case // 2 % 2],
        "mark": int(positive),
        "spot": case // 2 % 2 if case % 5 else "",
        "amount": f"{3.0 * positive + rng.normal(0, 0.2):.3f}",
        "time": f"{(2.0 if positive else 8.0) + rng.uniform(0, 2):.3f}",
        "event": int(positive or case % 4 == 0),
      }
    )
  table = folder / "table.csv"
  with table.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  return features, table
