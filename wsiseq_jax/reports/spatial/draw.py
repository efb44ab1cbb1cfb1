"""Pictures and charts of cells: a map with bands of distance, and curves."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import shapely
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image as Picture

from wsiseq_jax import charts
from wsiseq_jax.reports import figures
from wsiseq_jax.spatial import points
from wsiseq_jax.spatial.points import Points
from wsiseq_jax.spatial.settings import Settings
from wsiseq_jax.spatial.slide_files import COLOURS, PICTURE

MAP, CARD = "map.jpg", "card.jpg"
_CARD_PX = 330
_WINDOW, _REGION = (90, 90, 90), (20, 20, 26)
# Of bands, from the border outwards and inwards.
_NEAR, _FAR = np.array([214, 39, 40]), np.array([240, 200, 120])
_FADE = 0.45  # strength of the slide below its cells


@dataclasses.dataclass(frozen=True, eq=False)
class SlideData:
  """What a slide's folder holds."""

  folder: pathlib.Path
  info: Mapping[str, Any]  # as in its mark
  cells: Points
  near_type: np.ndarray  # of each cell; '' = none
  window: shapely.Geometry
  region: shapely.Geometry | None
  scores: pd.DataFrame
  curves: pd.DataFrame

  @classmethod
  def load(cls, folder: pathlib.Path, info: Mapping[str, Any]) -> "SlideData":
    """Reads the files of `spatial/slide_files.py`."""
    path = folder / "cells.parquet"
    shapes = pq.read_table(folder / "regions.parquet").to_pandas()
    by_name = dict(
      zip(shapes["what"], shapely.from_wkb(shapes["wkb_um"]), strict=True)
    )
    return cls(
      folder,
      info,
      points.read(path),
      pq.read_table(path, columns=["near_type"])["near_type"].to_numpy(),
      by_name["window"],
      by_name.get("regions"),
      pd.read_csv(folder / "scores.csv", keep_default_na=False),
      pq.read_table(folder / "curves.parquet").to_pandas(),
    )


def colours(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
  """The colour of each type."""
  return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def slide_map(
  data: SlideData, settings: Settings
) -> UInt8[np.ndarray, "h w 3"]:
  """Cells over the slide, with the border of regions and its bands."""
  canvas, um_per_px, origin = _canvas(data, settings)

  def rings(shape: shapely.Geometry) -> list[np.ndarray]:
    return [
      np.round(
        ((shapely.get_coordinates(r) - origin) / um_per_px - 0.5) * 16
      ).astype(np.int32)
      for r in shapely.get_rings(shapely.get_parts(shape)).tolist()
    ]

  thick = max(1, round(max(canvas.shape) / 800))
  if data.region is not None:
    wanted = settings.statistics
    count = int(wanted.border_um / wanted.band_um + 1e-9)
    # Not more lines than can be told apart; the nearest is the first band.
    numbers = np.unique(np.geomspace(1, count, 5).round().astype(int))
    for number in numbers.tolist():
      mix = number / count
      paint = tuple(np.rint(_NEAR + (_FAR - _NEAR) * mix).astype(int).tolist())
      for sign in (-1, 1):
        shape = data.region.buffer(sign * number * wanted.band_um)
        shape = shape.intersection(data.window)
        cv2.polylines(canvas, rings(shape), True, paint, thick, cv2.LINE_AA, 4)
  cv2.polylines(
    canvas, rings(data.window), True, _WINDOW, thick, cv2.LINE_AA, 4
  )
  _dots(canvas, data.cells, um_per_px, origin)
  if data.region is not None:
    for paint, wide in (((255, 255, 255), 4), (_REGION, 2)):
      shape = data.region.intersection(data.window)
      cv2.polylines(
        canvas, rings(shape), True, paint, wide * thick, cv2.LINE_AA, 4
      )
  return figures.scale_bar(canvas, um_per_px)


def _canvas(data: SlideData, settings: Settings):
  """The faded slide, or white where there is none; scale and corner in µm."""
  path = data.folder / PICTURE
  if path.is_file():
    picture = np.asarray(Picture.open(path).convert("RGB"), np.float32)
    faded = 255 - (255 - picture) * _FADE
    return faded.astype(np.uint8), data.info["um_per_px"], np.zeros(2)
  low = np.array(data.window.bounds[:2])
  size = np.array(data.window.bounds[2:]) - low
  pad = 0.02 * size.max()
  um_per_px = float((size + 2 * pad).max() / settings.report.longest_px)
  width, height = np.ceil((size + 2 * pad) / um_per_px).astype(int).tolist()
  return np.full((height, width, 3), 255, np.uint8), um_per_px, low - pad


def _dots(canvas, cells: Points, um_per_px: float, origin) -> None:
  """Each cell in the colour of its type; smaller where there are many."""
  height, width = canvas.shape[:2]
  apart = np.sqrt(height * width / max(len(cells), 1))
  radius = float(np.clip(0.22 * apart, 0.6, 4.0))
  paints = list(colours(cells.names).values())
  at = np.round(((cells.xy_um - origin) / um_per_px - 0.5) * 16)
  # Types of few cells last: they would be hidden.
  count = np.bincount(cells.type, minlength=len(cells.names))
  for kind in np.argsort(-count, kind="stable").tolist():
    for x, y in at[cells.type == kind].astype(int).tolist():
      cv2.circle(
        canvas, (x, y), round(radius * 16), paints[kind], -1, cv2.LINE_AA, 4
      )


def write(data: SlideData, settings: Settings) -> tuple[np.ndarray, Any]:
  """Writes the map and the card of a slide; returns map and card size."""
  picture = slide_map(data, settings)
  card = figures.fit(picture, _CARD_PX)
  (data.folder / MAP).write_bytes(figures.jpeg(picture, 85))
  (data.folder / CARD).write_bytes(figures.jpeg(card, 80))
  return picture, card.shape[1::-1]


# Charts.


def k_chart(curves: pd.DataFrame, names: Sequence[str]) -> Figure:
  """K of some pairs, relative to what no relation gives, in its band."""
  figure, panels = charts.grid(len(names), names, size=(3.6, 2.9))
  for axes, (_, part) in zip(panels, _by_pair(curves), strict=True):
    expected = part["expected"].where(part["expected"].notna(), part["theory"])
    _banded(axes, part["at_um"], part, expected)
    axes.axhline(1, color=charts.SOFT, linewidth=1.0, linestyle=":")
    axes.set(xlabel="distance, µm", ylabel="K / K without relation")
  return figure


def profile_chart(curves: pd.DataFrame, names: Sequence[str]) -> Figure:
  """Cells per mm² by distance to the border of regions, in its band."""
  figure, panels = charts.grid(len(names), names, size=(3.6, 2.9))
  for axes, (_, part) in zip(panels, _by_pair(curves), strict=True):
    middle = (part["at_um"] + part["to_um"]) / 2
    _banded(axes, middle, part, 1.0)
    axes.axvline(0, color=charts.INK, linewidth=1.0)
    axes.set(xlabel="inside ← µm → outside", ylabel="cells per mm²")
    axes.set_ylim(bottom=0)
  return figure


def _by_pair(curves: pd.DataFrame):
  return curves.groupby(["from", "to"], sort=False)


def _banded(axes, x, part: pd.DataFrame, unit) -> None:
  """A curve over its envelope, in units of something."""
  low, high = part["low"] / unit, part["high"] / unit
  if np.isfinite(low).any():
    axes.fill_between(x, low, high, color=charts.SOFT, alpha=0.25, linewidth=0)
    axes.plot(x, part["expected"] / unit, color=charts.SOFT, linewidth=1.2)
  tested = part["tested"].where(part["tested"].notna(), part["value"])
  axes.plot(
    x, tested / unit, color=charts.ACCENT, linewidth=2, marker="o",
    markersize=3,
  )  # fmt: skip


def groups_chart(
  pooled: Sequence[pd.DataFrame],
  names: Sequence[str],
  group_of: Mapping[str, str],
) -> Figure:
  """Curves of patients, thin, and the means of their groups."""
  figure, panels = charts.grid(len(pooled), names, size=(3.9, 3.2))
  kinds = sorted(set(group_of.values()))
  for axes, part in zip(panels, pooled, strict=True):
    table = part.pivot(
      index="patient_id", columns="at_um", values="relative"
    ).sort_index(axis=1)
    owner = np.array([group_of.get(p, "") for p in table.index])
    for number, kind in enumerate(kinds):
      rows = table.to_numpy(np.float64)[owner == kind]
      colour = f"C{number}"
      if len(table.columns) == 1:
        spread = np.linspace(-0.15, 0.15, max(len(rows), 2))[: len(rows)]
        axes.plot(number + spread, rows[:, 0], "o", color=colour, alpha=0.7)
        axes.hlines(rows.mean(), number - 0.3, number + 0.3, color=colour)
        continue
      for row in rows:
        axes.plot(table.columns, row, color=colour, linewidth=0.6, alpha=0.5)
      axes.plot(
        table.columns, rows.mean(axis=0), color=colour, linewidth=2.2,
        label=kind,
      )  # fmt: skip
    if len(table.columns) == 1:
      axes.set_xticks(range(len(kinds)), kinds, parse_math=False)
    else:
      axes.legend(frameon=False, fontsize=8)
      axes.set_xlabel("distance, µm")
    plain = part["statistic"].iloc[0].startswith("density")
    axes.set_ylabel("cells per mm²" if plain else "relative to no relation")
  return figure
