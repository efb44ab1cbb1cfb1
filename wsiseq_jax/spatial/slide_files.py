"""The files of one slide: its cells, polygons, numbers, cells for QuPath."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import shapely
from jaxtyping import Float, UInt8

from data_prep.files import atomic, tables
from data_prep.wsi import qc
from wsiseq_jax.maps import geojson
from wsiseq_jax.spatial import (
  local,
  measures,
  points,
  slide_numbers,
  windows,
)
from wsiseq_jax.spatial.placing import Place
from wsiseq_jax.spatial.points import Points
from wsiseq_jax.spatial.settings import Settings
from wsiseq_jax.spatial.windows import Window

PICTURE = "thumbnail.jpg"
_OCTAGON = np.stack(
  [np.cos(np.arange(9) * np.pi / 4), np.sin(np.arange(9) * np.pi / 4)], axis=1
)
_CELL_UM = 4.0  # radius of a cell as QuPath is given it
# Of types, RGB, in the order of their names; also on the pages.
COLOURS = tuple(
  tuple(round(255 * v) for v in colour)
  for colour in matplotlib.colormaps["tab10"].colors
)


def write(
  folder: pathlib.Path,
  place: Place,
  cells: Points,
  window: Window,
  region: Window | None,
  measured: slide_numbers.SlideNumbers,
  thumbnail: UInt8[np.ndarray, "h w 3"] | None,
  settings: Settings,
) -> list[pathlib.Path]:
  """Writes all files of a slide but the page.

  Args:
    folder: of the slide.
    place: where its pixels are.
    cells: those in the window.
    window: where cells can be, µm.
    region: union of the regions, µm; None = none.
    measured: the numbers.
    thumbnail: the slide's picture; None without a slide.
    settings: of the job.

  Returns:
    What was written.

  Raises:
    OSError: the disk is full, or not writable.
  """
  distance = np.full(len(cells), np.nan)
  if region is not None:
    distance = windows.signed_distance(region, cells.xy_um)
  near = _significant(cells, settings)
  paths = {
    name: folder / name
    for name in (
      *("cells.parquet", "regions.parquet", "cells.geojson"),
      *("scores.csv", "curves.parquet"),
    )
  }
  points.write(
    paths["cells.parquet"],
    cells,
    {
      "distance_um": distance.astype(np.float32),
      "near_type": near["near_type"].to_numpy(str),
      "near_q": near["near_q"].to_numpy(np.float32),
    },
  )
  shapes = [("window", window)]
  shapes += [("regions", region)] if region is not None else []
  frame = pd.DataFrame(
    {
      "slide_id": cells.slide_id,
      "what": [what for what, _ in shapes],
      "area_mm2": [shape.area / 1e6 for _, shape in shapes],
      "wkb_um": [shapely.to_wkb(shape) for _, shape in shapes],
    }
  )
  write_frame(paths["regions.parquet"], frame)
  geojson.write(
    paths["cells.geojson"],
    _features(cells, near, distance, place, settings),
  )
  tables.write(paths["scores.csv"], slide_numbers.SCORES, measured.scores)
  write_frame(
    paths["curves.parquet"],
    pd.DataFrame(measured.curves, columns=list(slide_numbers.CURVES)),
  )
  if thumbnail is not None:
    paths[PICTURE] = folder / PICTURE
    atomic.write_atomic(paths[PICTURE], qc.jpeg(thumbnail))
  return list(paths.values())


def write_frame(path: str | os.PathLike, frame: pd.DataFrame) -> None:
  """Writes a table as Parquet, whole or not at all."""
  with atomic.replacing(path) as draft:
    frame.to_parquet(draft, compression="zstd", index=False)


def _significant(cells: Points, settings: Settings) -> pd.DataFrame:
  """For each cell the type it has significantly many neighbours of.

  Of several types that with the smallest q; '' and 1 where there is none.
  """
  found = pd.DataFrame(
    {"near_type": np.full(len(cells), ""), "near_q": np.ones(len(cells))}
  )
  kinds, wanted = measures.chosen_types(cells, settings), settings.statistics
  ordered = {
    pair
    for a, b in measures.pairs_of(kinds, settings)
    for pair in ((a, b), (b, a))
    if a != b
  }
  names, q = np.array(found["near_type"], object), found["near_q"].to_numpy()
  q = q.copy()
  for pair in sorted(ordered):
    numbers = tuple(cells.names.index(name) for name in pair)
    near = local.neighbours(cells.xy_um, cells.type, numbers, wanted.near_um)
    better = (near.q <= wanted.level) & (near.q < q[near.cell])
    names[near.cell[better]] = pair[1]
    q[near.cell[better]] = near.q[better]
  return pd.DataFrame({"near_type": names, "near_q": q})


def _features(
  cells: Points,
  near: pd.DataFrame,
  distance: Float[np.ndarray, " n"],
  place: Place,
  settings: Settings,
) -> Sequence[dict[str, Any]]:
  """Significant cells as detections of QuPath, the smallest q first."""
  if not np.isfinite(place.mpp):
    return []
  names, q = near["near_type"].to_numpy(str), near["near_q"].to_numpy()
  chosen = np.flatnonzero(names != "")
  chosen = chosen[np.argsort(q[chosen], kind="stable")]
  return [
    geojson.cell_feature(
      cells.slide_id,
      int(index),
      (cells.xy_um[index] + _CELL_UM * _OCTAGON) / place.mpp - place.bounds_xy,
      f"{cells.names[cells.type[index]]} near {names[index]}",
      COLOURS[cells.type[index] % len(COLOURS)],
      {
        "q": float(q[index]),
        "x um": float(cells.xy_um[index, 0]),
        "y um": float(cells.xy_um[index, 1]),
      }
      | (
        {"Distance to regions um": float(distance[index])}
        if np.isfinite(distance[index])
        else {}
      ),
    )
    for index in chosen[: settings.report.max_geojson].tolist()
  ]
