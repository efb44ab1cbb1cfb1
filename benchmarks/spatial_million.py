"""The job `spatial` on large tables of cells: time and memory of a slide.

  python benchmarks/spatial_million.py --work=FOLDER       (ten minutes)

Uniform cells, 4,000 per mm², of four types, one of them in twelve wavy regions;
no picture, so that nothing but statistics is timed: ten pairs of types with 199
random labellings, four profiles with 199 shifts, contacts, the neighbours of
every cell; the settings are those of a user who sets none. One process for each
size, one after the other; memory is the largest of its life.

Writes `benchmarks/results/spatial_million.json`.
"""

import argparse
import json
import pathlib
import resource
import time

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIZES = (100_000, 300_000, 1_000_000)
PER_MM2, REGIONS = 4000.0, 12


def make(folder: pathlib.Path, count: int) -> None:
  """Writes a table of cells and the regions of a slide."""
  rng = np.random.default_rng(0)
  side = (count / PER_MM2) ** 0.5 * 1000
  xy = rng.uniform(0, side, (count, 2))
  inside, features = np.zeros(count, bool), []
  angle = np.linspace(0, 2 * np.pi, 1500)
  for _ in range(REGIONS):
    middle, radius = rng.uniform(0.15 * side, 0.85 * side, 2), 0.05 * side
    wave = sum(
      0.15 / k * rng.normal() * np.cos(k * angle + rng.uniform(0, 6))
      for k in range(2, 30)
    )
    reach = radius * (1 + wave)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None] + middle
    ring[-1] = ring[0]
    features.append(
      {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
        "properties": {"classification": {"name": "Tumor"}},
      }
    )
    inside |= np.hypot(*(xy - middle).T) < radius
  others = rng.choice(["stroma", "immune", "other"], count, p=[0.6, 0.2, 0.2])
  table = {"x_um": xy[:, 0], "y_um": xy[:, 1]}
  table["type"] = np.where(inside, "tumour", others)
  for name in ("cells", "regions"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.table(table), folder / "cells" / "big.parquet")
  text = json.dumps({"type": "FeatureCollection", "features": features})
  (folder / "regions" / "big.geojson").write_text(text)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--work", required=True)
  options = parser.parse_args()
  results = []
  for count in SIZES:
    folder = pathlib.Path(options.work) / str(count)
    make(folder, count)
    start = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    harness.call(
      *("main.py", "--config=configs/spatial.py"),
      f"--config.workdir={folder / 'out'}",
      f"--config.data.cells={folder / 'cells'}",
      f"--config.data.regions={folder / 'regions'}",
      "--config.cells.unit=um",
      # Regions are in pixels, of 1 um here.
      *("--config.cells.mpp=1.0", "--config.data.workers=0"),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    results.append(
      {
        "cells": count,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": after.ru_utime - used.ru_utime,
        # Sizes rise, so that the largest so far is that of this one.
        "peak_gb": after.ru_maxrss / 1e6,
      }
    )
    print(results[-1], flush=True)
  result = {**harness.machine(), "load": harness.load_average()}
  harness.write_result(
    harness.RESULTS / "spatial_million.json", {**result, "slides": results}
  )


if __name__ == "__main__":
  main()
