"""A handful of pictures and a table of them, for tests."""

import csv
import pathlib

import cv2
import numpy as np

from data_prep.pictures import prepare
from data_prep.pictures.settings import PictureSettings
from data_prep.synthetic import smoke

SIZE = (40, 56)  # (h, w)


def pixels(number: int) -> np.ndarray:
  """A textured picture, tissue but for glass in the last ten columns."""
  found = smoke.texture(np.random.default_rng(number), *SIZE)
  found = found // 2 + np.array([110, 50, 90], np.uint8)
  found[:, -10:] = 243
  return found


def mask(columns: int, value: int = 1) -> np.ndarray:
  """A class in the first columns."""
  found = np.zeros(SIZE, np.uint8)
  found[:, :columns] = value
  return found


def write(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes RGB or one channel."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if picture.ndim == 3:
    picture = picture[..., ::-1]
  assert cv2.imwrite(str(path), picture)


def cohort(folder: pathlib.Path, patients: int = 6) -> list[dict[str, str]]:
  """Writes two pictures a patient, every second patient negative."""
  rows = []
  for number in range(2 * patients):
    name, is_positive = f"p{number:02d}", number // 2 % 2 == 0
    write(folder / f"{name}.png", pixels(number))
    write(folder / "masks" / f"{name}.png", mask(9 if is_positive else 0))
    rows.append(
      {
        "filename": f"{name}.png",
        "patient_id": f"patient{number // 2}",
        "split": ("train", "train", "val", "val", "test", "test")[number // 2],
        "label": "tumour" if is_positive else "normal",
        "mask": f"masks/{name}.png",
        "points": "3 4 tumour; 30 20 normal" if is_positive else "",
      }
    )
  return rows


def table(folder: pathlib.Path, rows: list[dict[str, str]]) -> pathlib.Path:
  """Writes the rows as pictures.csv."""
  path = folder / "pictures.csv"
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]), restval="")
    writer.writeheader()
    writer.writerows(rows)
  return path


def config(csv_path: pathlib.Path, out: pathlib.Path, **more) -> dict:
  """Settings of a run in this process."""
  import dataclasses

  settings = PictureSettings(
    csv=str(csv_path), out=str(out), workers=0, parts=2, mpp=1.0
  )
  return dataclasses.asdict(settings) | more


def prepared(folder: pathlib.Path, rows: list[dict[str, str]], **more):
  """Prepares the rows; the summary, and the errors by picture and code."""
  found = config(table(folder, rows), folder / "out", **more)
  summary = prepare.prepare_pictures(found)
  return summary, {(e.slide, e.error): e for e in summary.errors}
