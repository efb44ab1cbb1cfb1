"""What the report reads from disk: the preparation's folder and the run's log.

Everything is read from files that `data_prep` and the training loop leave
behind, so that a report can be made again years later, and of somebody else's
run.
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from wsiseq_jax import writers


@dataclasses.dataclass(frozen=True)
class PreparedSlide:
  """One finished slide of a preparation.

  Attributes:
    slide_id: its name.
    patient_id: its patient.
    info: its `slide.json`.
    row: its row of `slides.csv`, empty if it has none.
    folder: where `slide.json` and the thumbnail are.
  """

  slide_id: str
  patient_id: str
  info: Mapping[str, Any]
  row: Mapping[str, str]
  folder: pathlib.Path

  @property
  def size_mm(self) -> tuple[float, float]:
    """Width and height in millimetres."""
    width, height = self.info["level0_px"]
    return width * self.info["mpp"] / 1000, height * self.info["mpp"] / 1000

  def thumbnail(
    self, longest_px: int
  ) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """The thumbnail, at most so large, and its level-0 pixels per pixel."""
    path = self.folder / self.info["thumbnail"]
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
      raise ValueError(f"{path}: not a picture (config key report.prep)")
    scale = max(1.0, max(picture.shape[:2]) / longest_px)
    if scale > 1:
      size = [round(n / scale) for n in picture.shape[1::-1]]
      picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return picture, float(self.info["thumbnail_downsample"]) * scale


@dataclasses.dataclass(frozen=True)
class Preparation:
  """A folder written by `python -m data_prep`.

  Attributes:
    folder: the folder.
    metadata: metadata of the shards.
    table: rows of `slides.csv`, or of `series.csv` with the series' name as
      `slide_id`.
    errors: rows of `errors.csv`.
    slides: finished slides that gave a thumbnail, sorted by name.
  """

  folder: pathlib.Path
  metadata: Mapping[str, Any]
  table: Sequence[Mapping[str, str]]
  errors: Sequence[Mapping[str, str]]
  slides: Sequence[PreparedSlide]


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  with open(path, newline="", encoding="utf-8") as f:
    return list(csv.DictReader(f))


def read_preparation(folder: pathlib.Path) -> Preparation:
  """Reads what a preparation wrote beside its shards.

  Args:
    folder: output folder of `python -m data_prep` (config key report.prep).

  Returns:
    Its content.

  Raises:
    ValueError: if the folder was not written by `data_prep`.
  """
  tables = [folder / "slides.csv", folder / "series.csv"]
  tables = [path for path in tables if path.is_file()]
  if not tables or not (folder / "shards" / "metadata.json").is_file():
    name = "shards/metadata.json" if tables else "slides.csv or series.csv"
    raise ValueError(
      f"{folder} has no {name}: the config key report.prep must name the "
      "output folder of `python -m data_prep`"
    )
  table = _rows(tables[0])
  if tables[0].name == "series.csv":
    table = [row | {"slide_id": row["series_id"]} for row in table]
  by_id = {row["slide_id"]: row for row in table}
  errors = folder / "errors.csv"
  slides = []
  for path in sorted((folder / "parts").glob("*/slide.json")):
    info = json.loads(path.read_text(encoding="utf-8"))
    slide_id = info["slide_id"]
    if not (path.parent / info["thumbnail"]).is_file():
      continue
    slides.append(
      PreparedSlide(
        slide_id=slide_id,
        patient_id=info["patient_id"],
        info=info,
        row=by_id.get(slide_id, {}),
        folder=path.parent,
      )
    )
  metadata = (folder / "shards" / "metadata.json").read_text(encoding="utf-8")
  return Preparation(
    folder=folder,
    metadata=json.loads(metadata),
    table=table,
    errors=_rows(errors) if errors.is_file() else [],
    slides=slides,
  )


def read_losses(
  workdir: pathlib.Path,
) -> dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]:
  """Steps and values of every `*loss` in `<workdir>/metrics.jsonl`.

  Args:
    workdir: folder of the run.

  Returns:
    Step and loss by name, e.g. `train/loss`; empty without a log.
  """
  path = workdir / "metrics.jsonl"
  rows = writers.read_metrics(path) if path.is_file() else []
  curves: dict[str, dict[float, float]] = {}
  for row in rows:
    for name, value in row.items():
      if name.endswith("loss"):
        # A step written twice (evaluated again after a resume) counts once.
        curves.setdefault(name, {})[float(row["step"])] = float(value)
  return {
    name: (np.array(list(curve)), np.array(list(curve.values())))
    for name, curve in curves.items()
  }
