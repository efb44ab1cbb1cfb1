r"""Labelled pictures of the real data: regions of BCSS, nuclei of BreCaHAD.

    python benchmarks/real_pictures.py --out=OUT [--data=../shared/data]

Each is a folder that `config.data.path` takes:

- `OUT/bcss_1008`, `OUT/bcss_1015`: crops of 64 um of the region trained on (its
  lower three quarters), validation crops (its upper quarter), both half
  overlapping, and test crops of the other region, side by side. A crop is
  positive if tumour covers 2 % of it, negative if the mask leaves it free;
  others are left out. All have their mask. Validation is of the same patient
  as training: thresholds may be chosen there, and are not reported there.
  Larger crops have next to no negatives.
- `OUT/brecahad`: quarters of the images with tumour nuclei as points. 10015 and
  10022 train: there the settings of the detector without weights were chosen
  too (`benchmarks/nuclei.py`). 10026 is for validation, 10011 for testing. The
  mask is the published discs; not every nucleus has one.

BCSS is CC0 (Amgad et al. 2019), BreCaHAD CC BY 4.0 (Aksac et al. 2019). Two
patients, four images: whatever comes out of them is an anecdote.
"""

import argparse
import dataclasses
import os
import pathlib

import cv2
import harness
import nuclei
import numpy as np

from data_prep.files import atomic, tables
from data_prep.pictures import prepare, records
from data_prep.pictures.settings import PictureSettings

REGIONS = ("1008", "1015")
CROP_UM, CROP_MPP, SOURCE_MPP = 64, 0.5, 0.25
POSITIVE = 0.02  # share of a crop
NUCLEI = {"10015": "train", "10022": "train", "10026": "val", "10011": "test"}


def bcss(
  data: pathlib.Path,
  out: pathlib.Path,
  trained_on: str,
  mpp: float = CROP_MPP,
) -> pathlib.Path:
  """Prepares crops of both regions; trains on one, tests the other.

  Args:
    data: folder with `bcss/`.
    out: where to write.
    trained_on: '1008' or '1015'.
    mpp: of the crops.

  Returns:
    The folder that `config.data.path` takes.
  """
  folder = out / f"bcss_{trained_on}"
  rows, side = [], round(CROP_UM / mpp)
  for name in REGIONS:
    pixels, mask = _region(data / "bcss", name, mpp)
    border = mask.shape[0] // 4
    plans = {"test": (0, mask.shape[0], side)}
    if name == trained_on:
      plans = {
        "train": (border, mask.shape[0], side // 2),
        "val": (0, border, side // 2),
      }
    for split, (top, bottom, step) in plans.items():
      for y in range(top, bottom - side + 1, step):
        for x in range(0, mask.shape[1] - side + 1, step):
          box = np.s_[y : y + side, x : x + side]
          share = mask[box].mean()
          if 0 < share < POSITIVE:
            continue
          row = _write(folder, f"{name}_x{x}_y{y}", pixels[box], mask[box])
          rows.append(
            row
            | {
              # A patient has one split; this one is cut in two, see above.
              "patient_id": f"{name}_{split}",
              "split": split,
              "tumour": int(share > 0),
            }
          )
  return _prepare(folder, rows, mpp)


def brecahad(data: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  """Prepares quarters of the images with points on tumour nuclei.

  Args:
    data: folder with `brecahad/`.
    out: where to write.

  Returns:
    The folder that `config.data.path` takes.
  """
  folder, rows = out / "brecahad", []
  for name, split in NUCLEI.items():
    pixels = _read(data / "brecahad/images" / f"{name}.jpg")
    discs = cv2.imread(str(data / "brecahad/masks" / f"{name}.jpg"), 0)
    points = nuclei.points_of(discs) - 0.5  # centres of pixels are whole here
    height, width = (side // 2 for side in discs.shape)
    for number in range(4):
      y, x = number // 2 * height, number % 2 * width
      box = np.s_[y : y + height, x : x + width]
      one = points - (x, y)
      inside = records.inside(one, (height, width))
      one = one[inside]
      row = _write(folder, f"{name}_{number}", pixels[box], discs[box] > 127)
      rows.append(
        row
        | {
          "patient_id": name,
          "split": split,
          "tumour": int(inside.any()),
          "points": "; ".join(f"{a:.1f} {b:.1f} tumour" for a, b in one),
        }
      )
  return _prepare(folder, rows, SOURCE_MPP)


def _read(path: pathlib.Path) -> np.ndarray:
  return cv2.imread(str(path))[..., ::-1]


def _region(
  folder: pathlib.Path, name: str, mpp: float
) -> tuple[np.ndarray, np.ndarray]:
  """Pixels and tumour of a region at the resolution of the crops."""
  shrink = round(mpp / SOURCE_MPP)
  pixels = _read(folder / f"{name}.jpg")
  mask = cv2.imread(
    str(folder / f"{name}_tumor_mask.png"), cv2.IMREAD_GRAYSCALE
  )
  size = mask.shape[1] // shrink, mask.shape[0] // shrink
  small = (mask > 0).astype(np.float32)
  return (
    cv2.resize(
      np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA
    ),
    cv2.resize(small, size, interpolation=cv2.INTER_AREA) >= 0.5,
  )


def _write(
  folder: pathlib.Path, name: str, pixels: np.ndarray, mask: np.ndarray
) -> dict[str, str]:
  """Writes image and mask; the cells that name them."""
  for place in ("images", "masks"):
    (folder / place).mkdir(parents=True, exist_ok=True)
  png = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1]
  row = {"filename": f"images/{name}.png", "mask": f"masks/{name}.png"}
  atomic.write_atomic(folder / row["filename"], png.tobytes())
  atomic.write_atomic(folder / row["mask"], records.png(mask.astype(np.uint8)))
  return row


def _prepare(
  folder: pathlib.Path, rows: list[dict], mpp: float
) -> pathlib.Path:
  table = folder / "pictures.csv"
  columns = ("filename", "patient_id", "split", "tumour", "mask", "points")
  tables.write(table, columns, rows)
  settings = PictureSettings(
    csv=str(table),
    out=str(folder / "prepared"),
    classes=("tumour",),
    mpp=mpp,
    parts=1,
    workers=0,
  )
  summary = prepare.prepare_pictures(dataclasses.asdict(settings))
  print(summary.text)
  return folder / "prepared"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True)
  data = os.environ.get("WSISEQ_DATA", harness.ROOT.parent / "shared" / "data")
  parser.add_argument("--data", type=pathlib.Path, default=data)
  options = parser.parse_args()
  for name in REGIONS:
    bcss(options.data, options.out, name)
  brecahad(options.data, options.out)


if __name__ == "__main__":
  main()
