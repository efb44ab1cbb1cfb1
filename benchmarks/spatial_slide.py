"""A real slide from pixels to pages: nuclei, window, regions, statistics.

  python benchmarks/spatial_slide.py --work=FOLDER        (a few minutes)

The slide is `slides/bs9_duodenum_giardiasis_he2_40x.tiff` in the folder that
`WSISEQ_DATA` names (`../shared/data` without it), a duodenal biopsy at 0.2528
um/px, 14486 x 16783 px. Its nuclei are looked for (`spatial/detector.py`); the
region is a lobule of Brunner's glands, outlined by eye on a small picture for
this script: nobody has checked it, and no finding is claimed. What the numbers
are for: it runs, how long, in how much memory, and they can be compared with
the picture in FOLDER.

`--pictures` of the script writes crops of the slide with every nucleus that was
found, to be looked at. Writes `benchmarks/results/spatial_slide.json`.
"""

import argparse
import csv
import json
import pathlib
import resource
import time

import cv2
import harness
import numpy as np

from data_prep.wsi.slides import Slide
from wsiseq_jax.spatial import points

# Corners of the lobule on a picture of 8.3915 level-0 px a pixel.
LOBULE = (
  *((395, 360), (410, 345), (525, 350), (560, 400), (568, 450), (548, 495)),
  *((575, 550), (560, 600), (500, 590), (450, 530), (385, 520), (390, 430)),
)
PICTURE_PX = 8.3915
# Middles of crops, level-0 px: crypts, glands, villi, submucosa.
CROPS = ((5600, 4400), (4000, 3600), (7900, 2600), (4300, 2500))
CROP_PX = 700


def write_region(path: pathlib.Path) -> None:
  ring = [[x * PICTURE_PX, y * PICTURE_PX] for x, y in (*LOBULE, LOBULE[0])]
  feature = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": [ring]},
    "properties": {
      "objectType": "annotation",
      "classification": {"name": "Glands", "color": [0, 120, 200]},
    },
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    json.dumps({"type": "FeatureCollection", "features": [feature]})
  )


def crops(slide: Slide, cells: points.Points, path: pathlib.Path) -> None:
  """Crops of the slide with its nuclei, two by two."""
  shown = []
  for middle in CROPS:
    picture = slide.read_region(middle, (CROP_PX, CROP_PX), slide.mpp)
    corner = np.array(middle) - CROP_PX / 2
    for x, y in cells.xy_um / slide.mpp - corner:
      if 0 <= x < CROP_PX and 0 <= y < CROP_PX:
        at = (round(x), round(y))
        cv2.circle(picture, at, 5, (20, 20, 20), -1, cv2.LINE_AA)
        cv2.circle(picture, at, 4, (255, 235, 0), -1, cv2.LINE_AA)
    shown.append(picture)
  rows = [np.hstack(shown[:2]), np.hstack(shown[2:])]
  cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--work", required=True)
  parser.add_argument("--pictures", default="")
  options = parser.parse_args()
  work = pathlib.Path(options.work)
  path = harness.real_slide()
  write_region(work / "regions" / f"{path.stem}.geojson")
  start = time.perf_counter()
  harness.call(
    *("main.py", "--config=configs/spatial.py"),
    f"--config.workdir={work / 'spatial'}",
    f"--config.data.slides={path}",
    f"--config.data.regions={work / 'regions'}",
    *("--config.regions.include=('Glands',)", "--config.data.workers=0"),
  )
  seconds = time.perf_counter() - start
  folder = work / "spatial" / "slides" / path.stem
  cells = points.read(folder / "cells.parquet")
  with open(folder / "scores.csv", newline="") as file:
    scores = list(csv.DictReader(file))
  if options.pictures:
    target = pathlib.Path(options.pictures)
    target.mkdir(parents=True, exist_ok=True)
    with Slide.open(path) as slide:
      crops(slide, cells, target / "spatial_slide.png")
  mark = json.loads((folder / "done.json").read_text())
  print(
    harness.write_result(
      harness.RESULTS / "spatial_slide.json",
      {
        **harness.machine(),
        "slide": path.name,
        "cells": len(cells),
        "window_mm2": mark["window_mm2"],
        "region_mm2": mark["region_mm2"],
        "seconds_of_the_slide": mark["seconds"],
        "seconds_with_pages": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6,
        "scores": [
          {k: v for k, v in row.items() if v and k not in ("patient_id",)}
          for row in scores
        ],
      },
    )
  )


if __name__ == "__main__":
  main()
