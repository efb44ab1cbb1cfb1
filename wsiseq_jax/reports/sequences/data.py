"""What the report reads: the folder of the preparation, the log of the run."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_prep.files import tables as files_tables
from wsiseq_jax import writers
from wsiseq_jax.reports import figures


@dataclasses.dataclass(frozen=True)
class PreparedSlide:
  """A finished slide: `slide.json`, its row of `slides.csv`, its folder."""

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
    small = figures.fit(picture, longest_px)
    scale = max(picture.shape) / max(small.shape)
    return small, float(self.info["thumbnail_downsample"]) * scale


@dataclasses.dataclass(frozen=True)
class Preparation:
  """A folder written by `python -m data_prep`."""

  metadata: Mapping[str, Any]  # metadata of the shards
  # Rows of `slides.csv`, or of `series.csv` with the series' name as
  # `slide_id`.
  table: Sequence[Mapping[str, str]]
  errors: Sequence[Mapping[str, str]]  # rows of `errors.csv`
  # Finished slides that gave a thumbnail, sorted by name.
  slides: Sequence[PreparedSlide]


def read_preparation(folder: pathlib.Path) -> Preparation:
  """Reads what a preparation wrote beside its shards."""
  found = [folder / "slides.csv", folder / "series.csv"]
  found = [path for path in found if path.is_file()]
  metadata = folder / "shards" / "metadata.json"
  if not found or not metadata.is_file():
    name = "shards/metadata.json" if found else "slides.csv or series.csv"
    raise ValueError(
      f"{folder} has no {name}: the config key report.prep must name the "
      "output folder of `python -m data_prep`"
    )
  table = files_tables.rows_of(found[0])
  if found[0].name == "series.csv":
    table = [row | {"slide_id": row["series_id"]} for row in table]
  by_id = {row["slide_id"]: row for row in table}
  slides = []
  for path in sorted((folder / "parts").glob("*/slide.json")):
    info = json.loads(path.read_text(encoding="utf-8"))
    if (path.parent / info["thumbnail"]).is_file():
      name = info["slide_id"]
      row = by_id.get(name, {})
      slides.append(
        PreparedSlide(name, info["patient_id"], info, row, path.parent)
      )
  return Preparation(
    json.loads(metadata.read_text(encoding="utf-8")),
    table,
    files_tables.rows_of(folder / "errors.csv"),
    slides,
  )


def read_losses(
  workdir: pathlib.Path,
) -> dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]:
  """Steps and values of every `*loss` in `metrics.jsonl`; {} without a log."""
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


def smooth(values: Float[np.ndarray, " n"], window: int) -> np.ndarray:
  """Running mean over the last `window` values, fewer at the start.

  Example:
    >>> smooth(np.array([1.0, 3.0, 5.0]), 2).tolist()
    [1.0, 2.0, 4.0]
  """
  total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
  stop = np.arange(1, len(values) + 1)
  start = np.maximum(stop - window, 0)
  return (total[stop] - total[start]) / (stop - start)
