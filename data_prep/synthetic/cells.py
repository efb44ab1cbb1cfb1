"""Small slides with cells whose places are known, for spatial statistics.

Each slide has a piece of tissue with a hole, nests of tumour, and three kinds
of cells: `tumour` in the nests, `stroma` and `immune` around them. In patients
of the group `attracted` half of the immune cells lie within 20 µm of a nest; in
those of the group `free` they lie anywhere in the stroma. Whatever asks who
sits where has to find this, and nothing else.

    python -m data_prep.synthetic.cells --out=CELLS --patients=12

Written to the folder: a slide of each patient, `slides.csv` (its column `label`
is the group), `cells/<slide_id>.csv` (x and y in level-0 pixels, type),
`regions/<slide_id>.geojson` (the nests, as QuPath writes them), `truth.json`.
The same call writes the same bytes, and a second one does nothing.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from data_prep.files import atomic, tables
from data_prep.files.done import Done
from data_prep.synthetic.slides import write_pyramid

GROUPS = ("attracted", "free")
KINDS = ("tumour", "stroma", "immune")
REACH_UM = 20.0  # how near to a nest attracted cells lie
SHARE = 0.5  # of the immune cells that are attracted
_VERSION = 1
_PER_MM2 = {"tumour": 2500.0, "stroma": 900.0, "immune": 500.0}
_APART_UM = {"tumour": 7.0, "stroma": 6.0, "immune": 6.0}
_RADIUS_UM = {"tumour": 4.5, "stroma": 3.0, "immune": 3.0}
_MARGIN_UM = 60.0  # of glass
# Colours of what is drawn, RGB.
_GLASS, _STROMA, _NEST = (244, 243, 245), (232, 176, 206), (214, 158, 202)
_NUCLEUS = {
  "tumour": (112, 70, 150),
  "stroma": (122, 78, 152),
  "immune": (78, 46, 122),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  """What is where on a slide; masks have a pixel for each µm."""

  tissue: Bool[np.ndarray, "h w"]  # with nests, without the hole
  nests: Bool[np.ndarray, "h w"]  # of tumour
  # By kind, x, y in µm.
  cells: dict[str, Float[np.ndarray, "_ 2"]]


def scene(
  rng: np.random.Generator, size_um: tuple[int, int], is_attracted: bool
) -> Scene:
  """Draws where tissue, nests and cells of a slide are."""
  width, height = size_um
  shape, centre = (height, width), (width / 2, height / 2)
  reach = min(width, height) / 2 - _MARGIN_UM
  stretch = np.array([width / height, 1.0])
  tissue = _blob(rng, shape, centre, reach, 0.06, stretch)
  hole = _blob(rng, shape, _around(rng, centre, 0.72 * reach, stretch), 65, 0.1)
  nests = np.zeros(shape, bool)
  turn = rng.uniform(0, 2 * np.pi)
  for number in range(3):
    angle = turn + number * 2 * np.pi / 3
    offset = np.array([np.cos(angle), np.sin(angle)]) * 0.48 * reach * stretch
    radius = rng.uniform(0.16, 0.22) * reach
    nests |= _blob(rng, shape, centre + offset, radius, 0.12)
  tissue &= ~hole
  nests &= tissue
  stroma = tissue & ~nests
  near = stroma & (ndimage.distance_transform_edt(~nests) <= REACH_UM)
  taken = np.zeros((0, 2))
  cells = {}
  for kind in KINDS:
    area = nests if kind == "tumour" else stroma
    count = rng.poisson(_PER_MM2[kind] * area.sum() / 1e6)
    drawn = rng.binomial(count, SHARE) if kind == "immune" else 0
    drawn = drawn if is_attracted else 0
    places = np.concatenate(
      [_draw(rng, near, drawn), _draw(rng, area, count - drawn)]
    )
    cells[kind] = _apart(places, taken, _APART_UM[kind])
    taken = np.concatenate([taken, cells[kind]])
  return Scene(tissue, nests, cells)


def _around(rng, centre, radius, stretch) -> np.ndarray:
  angle = rng.uniform(0, 2 * np.pi)
  return centre + radius * np.array([np.cos(angle), np.sin(angle)]) * stretch


def _blob(rng, shape, centre, radius, wave, stretch=(1.0, 1.0)) -> np.ndarray:
  """A disc with a wavy border."""
  y, x = np.indices(shape) + 0.5
  x, y = (x - centre[0]) / stretch[0], (y - centre[1]) / stretch[1]
  angle, border = np.arctan2(y, x), 1.0
  for k in range(2, 7):
    border = border + wave * rng.normal() / k * np.cos(
      k * angle + rng.uniform(0, 2 * np.pi)
    )
  return np.hypot(x, y) < radius * border


def _draw(rng, area: np.ndarray, count: int) -> np.ndarray:
  """Points drawn uniformly in a mask of µm."""
  rows, columns = np.nonzero(area)
  chosen = rng.integers(0, len(rows), count)
  corner = np.stack([columns[chosen], rows[chosen]], axis=1)
  return corner + rng.uniform(0, 1, (count, 2))


def _apart(places: np.ndarray, taken: np.ndarray, least: float) -> np.ndarray:
  """Drops points too near to another: cells have a size."""
  # A grid of the least distance: neighbours are in the nine cells around.
  grid: dict[tuple[int, int], list[np.ndarray]] = {}

  def near(point):
    column, row = (point // least).astype(int).tolist()
    for c in range(column - 1, column + 2):
      for r in range(row - 1, row + 2):
        yield from grid.get((c, r), ())

  def put(point):
    grid.setdefault(tuple((point // least).astype(int).tolist()), []).append(
      point
    )

  for point in taken:
    put(point)
  kept = []
  for point in places:
    if all(np.hypot(*(other - point)) >= least for other in near(point)):
      put(point)
      kept.append(point)
  return np.array(kept).reshape(-1, 2)


def paint(
  rng: np.random.Generator, found: Scene, mpp: float
) -> UInt8[np.ndarray, "h w 3"]:
  """Draws a scene as a picture of stained tissue."""
  height, width = (round(n / mpp) for n in found.tissue.shape)

  def large(mask):
    picture = cv2.resize(mask.astype(np.float32), (width, height))
    return cv2.GaussianBlur(picture, (0, 0), 1.5 / mpp)[..., None]

  picture = np.full((height, width, 3), _GLASS, np.float32)
  for mask, colour in ((found.tissue, _STROMA), (found.nests, _NEST)):
    share = large(mask)
    picture = picture * (1 - share) + np.float32(colour) * share
  fibres = cv2.GaussianBlur(
    rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 2 / mpp
  )
  picture += fibres[..., None] / fibres.std() * 5 * large(found.tissue)
  for kind, places in found.cells.items():
    for x, y in places / mpp:
      axes = _RADIUS_UM[kind] / mpp * rng.uniform(0.85, 1.15, 2)
      shade = rng.uniform(0.9, 1.1)
      centre = (round(x * 16 - 8), round(y * 16 - 8))
      cv2.ellipse(
        picture,
        centre,
        tuple(np.round(axes * 16).astype(int).tolist()),
        rng.uniform(0, 180),
        0,
        360,
        tuple(shade * c for c in _NUCLEUS[kind]),
        -1,
        cv2.LINE_AA,
        4,
      )
  picture = cv2.GaussianBlur(picture, (0, 0), 0.5 / mpp)
  picture += rng.normal(0, 2.5, picture.shape).astype(np.float32)
  return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def make_cohort(
  folder: str | pathlib.Path,
  patients: int = 12,
  seed: int = 0,
  mpp: float = 0.5,
  size_um: tuple[int, int] = (1100, 850),
) -> pathlib.Path:
  """Writes slides with cells and regions, and returns their table.

  Args:
    folder: the folder.
    patients: how many, with a slide each; every second one is attracted.
    seed: of all draws.
    mpp: µm per level-0 pixel.
    size_um: width and height of a slide.

  Raises:
    ValueError: fewer than two patients.
  """
  if patients < 2:
    raise ValueError(f"patients={patients}: want two or more (make_cohort)")
  folder = pathlib.Path(folder)
  settings = {
    "version": _VERSION,
    "patients": patients,
    "seed": seed,
    "mpp": mpp,
    "size_um": list(size_um),
  }
  table = folder / "slides.csv"
  stage = Done(folder / "cohort.json", settings)
  if stage.read() is not None:
    return table
  stage.clear()
  for name in ("cells", "regions"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  rows, truth, files = [], {}, [table]
  for number in range(patients):
    group = GROUPS[number % 2]
    slide_id = f"cells_{number:02d}"
    rng = np.random.default_rng([seed, 7, number])
    found = scene(rng, size_um, group == GROUPS[0])
    path = folder / f"{slide_id}.tiff"
    write_pyramid(path, paint(rng, found, mpp), mpp)
    files.append(path)
    files.append(_write_cells(folder, slide_id, found, mpp))
    files.append(_write_regions(folder, slide_id, found, mpp))
    rows.append(
      {
        "slide_id": slide_id,
        "filename": path.name,
        "patient_id": f"patient_{number:02d}",
        "label": group,
      }
    )
    truth[slide_id] = _truth(found, group)
  tables.write(table, list(rows[0]), rows)
  text = json.dumps(truth, indent=1, sort_keys=True)
  atomic.write_atomic(folder / "truth.json", text + "\n")
  stage.write(settings, [*files, folder / "truth.json"])
  return table


def _write_cells(folder, slide_id, found: Scene, mpp) -> pathlib.Path:
  path = folder / "cells" / f"{slide_id}.csv"
  rows = [
    {"x_px": round(x / mpp, 2), "y_px": round(y / mpp, 2), "type": kind}
    for kind, places in found.cells.items()
    for x, y in places.tolist()
  ]
  tables.write(path, ("x_px", "y_px", "type"), rows)
  return path


def _write_regions(folder, slide_id, found: Scene, mpp) -> pathlib.Path:
  path = folder / "regions" / f"{slide_id}.geojson"
  contours, _ = cv2.findContours(
    np.kron(found.nests.astype(np.uint8), np.ones((4, 4), np.uint8)),
    cv2.RETR_EXTERNAL,
    cv2.CHAIN_APPROX_NONE,
  )
  features = []
  for number, contour in enumerate(contours):
    ring = cv2.approxPolyDP(contour, 1.0, True)[:, 0] + 0.5
    ring = np.round(np.vstack([ring, ring[:1]]) / 4 / mpp, 2).tolist()
    features.append(
      {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
          "objectType": "annotation",
          "name": f"nest {number + 1}",
          "classification": {"name": "Tumor", "color": [200, 0, 0]},
        },
      }
    )
  collection = {"type": "FeatureCollection", "features": features}
  atomic.write_atomic(path, json.dumps(collection))
  return path


def _truth(found: Scene, group: str) -> dict[str, Any]:
  """What a perfect analysis would find."""
  outside = ndimage.distance_transform_edt(~found.nests)
  immune = found.cells["immune"].astype(int)
  near = outside[immune[:, 1], immune[:, 0]] <= REACH_UM
  stroma = found.tissue & ~found.nests
  return {
    "group": group,
    "cells": {kind: len(places) for kind, places in found.cells.items()},
    "tissue_mm2": float(found.tissue.sum() / 1e6),
    "nests_mm2": float(found.nests.sum() / 1e6),
    "immune_near": float(near.mean()),
    "area_near": float((stroma & (outside <= REACH_UM)).sum() / stroma.sum()),
  }


def main(argv: list[str] | None = None) -> None:
  """Command line: `python -m data_prep.synthetic.cells --out=OUT`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.synthetic.cells",
    description="Makes small slides with cells whose places are known.",
  )
  parser.add_argument("--out", required=True, help="output folder")
  parser.add_argument("--patients", type=int, default=12)
  parser.add_argument("--seed", type=int, default=0)
  options = vars(parser.parse_args(argv))
  print(make_cohort(options.pop("out"), **options))


if __name__ == "__main__":
  main()
