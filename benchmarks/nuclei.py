"""Does the nucleus detector find nuclei? Precision and recall on points.

  python benchmarks/nuclei.py            (about a minute)

BreCaHAD (`brecahad/` in the folder that `WSISEQ_DATA` names, `../shared/data`
without it): breast carcinoma at 40x, discs on tumour nuclei. The middle of each
disc is a point. Images do not say their scale; 0.25 um/px is assumed. A
detection and a point belong together where they are at most 6 um apart, each to
one other, as many as possible.

What the numbers can say: **not every nucleus has a mark**. Nuclei of stroma and
lymphocytes have none, and many of the tumour have none either, so precision
against these points is a lower bound, far below the truth. Recall is fair. To
say something of precision, the same detector runs on drawn slides, all of whose
cells are known (`data_prep/synthetic/cells.py`).

Settings of the detector were chosen on the images 10015 and 10022, which are
reported as `chosen_on`; what counts are 10011 and 10026, `tested_on`. The other
method, which could win: Otsu's threshold on the same haematoxylin, the middles
of connected pieces of at least 8 um².

Writes `benchmarks/results/nuclei.json`, and with --pictures=FOLDER the images
with points and detections, and 80 detections of the tested images drawn at
random, each in the middle of a small picture: what precision is can be seen
there.
"""

import argparse
import os
import pathlib
import tempfile
import time

import cv2
import harness
import numpy as np
from scipy import ndimage, optimize, spatial

from data_prep.synthetic import cells as synthetic
from data_prep.wsi import tissue
from data_prep.wsi.slides import Slide
from wsiseq_jax.spatial import detector

MPP, REACH_UM, DISC_PX = 0.25, 6.0, 41
CHOSEN_ON, TESTED_ON = ("10015", "10022"), ("10011", "10026")
METHODS = ("blobs", "otsu")


def points_of(mask: np.ndarray) -> np.ndarray:
  """Middles of discs of one size, also of those that touch; x, y in pixels."""
  padded = np.pad(mask > 127, DISC_PX, mode="edge")
  depth = cv2.distanceTransform(
    padded.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
  )
  labels, count = ndimage.label(depth > DISC_PX / 2 - 2)
  middles = ndimage.center_of_mass(depth, labels, range(1, count + 1))
  xy = np.array(middles).reshape(-1, 2)[:, ::-1] - DISC_PX + 0.5
  inside = (xy >= 0) & (xy <= mask.shape[::-1])
  return xy[inside.all(axis=1)]


def matched(found: np.ndarray, points: np.ndarray) -> int:
  """Pairs of detections and points, um, at most `REACH_UM` apart."""
  if not len(found) or not len(points):
    return 0
  distance = spatial.distance.cdist(found, points)
  cost = np.where(distance <= REACH_UM, distance, 1e6)
  rows, columns = optimize.linear_sum_assignment(cost)
  return int((cost[rows, columns] < 1e6).sum())


def small(picture: np.ndarray, mpp: float) -> np.ndarray:
  """A picture at the detector's scale."""
  return cv2.resize(
    picture, None, fx=MPP / mpp, fy=MPP / mpp, interpolation=cv2.INTER_AREA
  )


def find(picture: np.ndarray, method: str) -> np.ndarray:
  """Nuclei of a picture, x, y in um."""
  settings = detector.Detector()
  stain = detector.haematoxylin(small(picture, settings.mpp))
  if method == "blobs":
    strength = float(np.percentile(stain, 99))
    xy, _ = detector.blobs(stain, settings, strength)
    return xy * settings.mpp
  grey = np.clip(stain / np.percentile(stain, 99.9) * 255, 0, 255)
  cut, _ = cv2.threshold(
    grey.astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU
  )
  _, _, facts, middles = cv2.connectedComponentsWithStats(
    (grey > cut).astype(np.uint8)
  )
  large = facts[1:, cv2.CC_STAT_AREA] * settings.mpp**2 >= 8
  return (middles[1:][large] + 0.5) * settings.mpp


def scores(pairs: int, found: int, points: int) -> dict:
  """Precision, recall and F1 of counts."""
  precision, recall = pairs / max(found, 1), pairs / max(points, 1)
  return {
    "points": points,
    "found": found,
    "precision": precision,
    "recall": recall,
    "f1": 2 * pairs / max(found + points, 1),
  }


def draw(picture, found, points) -> np.ndarray:
  """Points as green rings, detections as dots."""
  out = picture.copy()
  for x, y in points / MPP:
    cv2.circle(out, (round(x), round(y)), DISC_PX // 2, (0, 160, 0), 2)
  for x, y in found / MPP:
    cv2.circle(out, (round(x), round(y)), 5, (255, 255, 255), -1)
    cv2.circle(out, (round(x), round(y)), 4, (220, 30, 30), -1)
  return out


def sheet(crops: list[np.ndarray], path: pathlib.Path) -> None:
  """Small pictures, ten in a row."""
  rows = [np.hstack(crops[i : i + 10]) for i in range(0, len(crops), 10)]
  cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


def crop(picture: np.ndarray, xy: np.ndarray, side: int = 80) -> np.ndarray:
  """What is around a place, with a dot on it."""
  half = side // 2
  wide = np.pad(picture, ((half, half), (half, half), (0, 0)), mode="edge")
  x, y = (int(v) for v in xy)
  out = wide[y : y + side, x : x + side].copy()
  cv2.circle(out, (half, half), 3, (255, 255, 0), -1)
  return out


def on_images(folder: pathlib.Path, pictures: str) -> dict:
  """Scores of both methods on both sets of images."""
  results: dict = {}
  rng, crops = np.random.default_rng(0), []
  for part, names in (("chosen_on", CHOSEN_ON), ("tested_on", TESTED_ON)):
    counts = {method: np.zeros(3, int) for method in METHODS}
    seconds = dict.fromkeys(METHODS, 0.0)
    for name in names:
      picture = cv2.imread(str(folder / "images" / f"{name}.jpg"))
      picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
      mask = cv2.imread(
        str(folder / "masks" / f"{name}.jpg"), cv2.IMREAD_GRAYSCALE
      )
      points = points_of(mask) * MPP
      for method in METHODS:
        start = time.perf_counter()
        found = find(picture, method)
        seconds[method] += time.perf_counter() - start
        pairs = matched(found, points)
        counts[method] += pairs, len(found), len(points)
        if pictures and method == "blobs":
          path = pathlib.Path(pictures) / f"nuclei_{name}.png"
          path.parent.mkdir(parents=True, exist_ok=True)
          shown = draw(picture, found, points)
          cv2.imwrite(str(path), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
          if part == "tested_on":
            some = rng.choice(len(found), 40, replace=False)
            crops += [crop(picture, xy) for xy in found[some] / MPP]
    results[part] = {
      method: {
        **scores(*counts[method].tolist()),
        "seconds_an_image": seconds[method] / len(names),
      }
      for method in METHODS
    }
    results[part]["images"] = list(names)
  if crops:
    sheet(crops, pathlib.Path(pictures) / "nuclei_sheet.png")
  return results


def on_drawn(slides: int = 2) -> dict:
  """Scores on drawn slides, all of whose cells are known, slide reader in."""
  counts, seconds = np.zeros(3, int), 0.0
  with tempfile.TemporaryDirectory() as folder:
    made = synthetic.make_cohort(folder, patients=slides)
    for path in sorted(made.parent.glob("*.tiff")):
      table = (made.parent / "cells" / f"{path.stem}.csv").read_text()
      rows = [line.split(",")[:2] for line in table.splitlines()[1:]]
      with Slide.open(path) as slide:
        points = np.array(rows, float) * slide.mpp
        thumbnail, downsample = slide.thumbnail(300)
        mask = tissue.tissue_mask(thumbnail, mpp=slide.mpp * downsample)
        start = time.perf_counter()
        cells, _ = detector.detect(slide, mask, downsample, detector.Detector())
        seconds += time.perf_counter() - start
      pairs = matched(cells.xy, points)
      counts += pairs, len(cells.xy), len(points)
  return {**scores(*counts.tolist()), "seconds_a_slide": seconds / slides}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  data = os.environ.get("WSISEQ_DATA", harness.ROOT.parent / "shared" / "data")
  parser.add_argument("--data", default=str(data))
  parser.add_argument("--pictures", default="")
  options = parser.parse_args()
  folder = pathlib.Path(options.data) / "brecahad"
  result = {
    "assumed_mpp": MPP,
    "reach_um": REACH_UM,
    "detector": vars(detector.Detector()),
    "brecahad": on_images(folder, options.pictures),
    "drawn": on_drawn(),
  }
  print(harness.write_result(harness.RESULTS / "nuclei.json", result))


if __name__ == "__main__":
  main()
