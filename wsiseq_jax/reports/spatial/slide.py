"""The page of one slide: where its cells are, and what that says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_prep.files.errors import SlideError
from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.spatial import draw
from wsiseq_jax.reports.spatial.draw import SlideData
from wsiseq_jax.spatial.settings import Settings
from wsiseq_jax.spatial.slide_files import PICTURE

FILES = {
  "cells.parquet": "every cell: place in µm, type, score, distance to regions, "
  "type it has many neighbours of",
  "regions.parquet": "window and regions as polygons (WKB, µm)",
  "cells.geojson": "cells with significantly many neighbours of another type, "
  "for QuPath",
  "scores.csv": "every number of this page",
  "curves.parquet": "every curve with its envelope",
  draw.MAP: "the map as one picture",
}
SAID = {
  "density": "cells per mm²",
  "density_in_regions": "cells per mm² inside regions",
  "K": "neighbours within a distance (K)",
  "L": "the same in µm (L)",
  "K_inhom": "the same, for uneven density (K inhom)",
  "g": "neighbours at a distance (g)",
  "G": "share with a neighbour within a distance (G)",
  "contacts": "contacts",
  "profile": "density by distance to regions",
  "overlap": "share inside regions",
  "level_sets": "coupling by level sets",
}


def write_page(
  data: SlideData, settings: Settings, group: str
) -> dict[str, Any]:
  """Writes the page of a slide; returns what the cohort's page shows of it."""
  picture, card = draw.write(data, settings)
  slide_id = data.cells.slide_id
  tested = _crossed(data.curves, "K")
  profiles = data.curves[data.curves["statistic"] == "profile"]
  page.write(
    data.folder / "index.html",
    "spatial_slide.html.j2",
    slide_id=slide_id,
    facts=_facts(data, group),
    notes=[SlideError(*state).message for state in data.info["notes"]],
    picture=page.embedded(
      figures.fit(picture, 1400), f"cells of slide {slide_id}", 82
    ),
    legend=list(draw.colours(data.cells.names).items()),
    counts=data.cells.counts(),
    has_regions=data.region is not None,
    has_picture=(data.folder / PICTURE).is_file(),
    k_chart=_chart(draw.k_chart, tested),
    uneven_chart=_chart(draw.k_chart, _crossed(data.curves, "K_inhom")),
    profile_chart=_chart(draw.profile_chart, profiles),
    region_rows=score_rows(data.scores, ("profile", "overlap", "level_sets")),
    cell_rows=score_rows(data.scores, ("K", "K_inhom", "contacts")),
    nearest_rows=score_rows(data.scores, ("G", "L")),
    density_rows=_densities(data),
    near=_near(data),
    settings=settings,
    files={k: v for k, v in FILES.items() if (data.folder / k).is_file()},
  )
  return {"card": list(card)}


def _facts(data: SlideData, group: str) -> list[tuple[str, Any]]:
  info = data.info
  items: list[tuple[str, Any]] = [
    ("patient", data.cells.patient_id),
    ("group", group or "none"),
    ("cells", f"{len(data.cells):,}"),
    ("window", f"{info['window_mm2']:.3g} mm²"),
  ]
  if data.region is not None:
    within = data.region.intersection(data.window).area / 1e6
    items.append(("regions in it", f"{within:.3g} mm²"))
  if np.isfinite(info["mpp"]):
    items.append(("level 0", f"{info['mpp']:.4g} µm/px"))
  if info["outside"]:
    items.append(("cells outside", f"{info['outside']:,}"))
  return items


def _crossed(curves: pd.DataFrame, statistic: str) -> pd.DataFrame:
  """Curves of two types; of one where there are no others."""
  pairs = curves[curves["statistic"] == statistic]
  crossed = pairs[pairs["from"] != pairs["to"]]
  return crossed if len(crossed) else pairs


def _chart(function, curves: pd.DataFrame):
  """A chart of all pairs; None where there are none."""
  if not len(curves):
    return None
  names = [
    f"{a} around {b}" if b == "regions" else f"{a} and {b}"
    for (a, b), _ in curves.groupby(["from", "to"], sort=False)
  ]
  return {"svg": page.svg(function(curves, names)), "panels": len(names)}


def score_rows(
  scores: pd.DataFrame, statistics: Sequence[str]
) -> list[tuple[str, ...]]:
  """Rows for the template's table."""
  rows = []
  for row in scores.to_dict("records"):
    if row["statistic"] not in statistics:
      continue
    at = f"{float(row['at_um']):g} µm" if row["at_um"] != "" else ""
    rows.append(
      (
        SAID[row["statistic"]],
        row["from"],
        row["to"],
        at,
        *(digits(row[name]) for name in ("value", "expected")),
        _ratio(row),
        digits(row["p"]),
        row["note"],
      )
    )
  return rows


def _densities(data: SlideData) -> list[tuple[str, int, str, str]]:
  """Cells per mm² of each type, in the window and in the regions."""
  found = {
    (row["statistic"], row["from"]): digits(row["value"])
    for row in data.scores.to_dict("records")
  }
  return [
    (
      kind,
      count,
      found["density", kind],
      found.get(("density_in_regions", kind), "–"),
    )
    for kind, count in data.cells.counts().items()
  ]


def digits(value: Any) -> str:
  """Three digits of a number; a dash for what is unknown.

  Example:
    >>> digits("0.12345"), digits(""), digits(1234567.0)
    ('0.123', '–', '1,234,567')
  """
  if value == "" or value is None or not np.isfinite(float(value)):
    return "–"
  number = float(value)
  return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _ratio(row: Mapping[str, Any]) -> str:
  if "" in (row["value"], row["expected"]) or not float(row["expected"]):
    return "–"
  return digits(float(row["value"]) / float(row["expected"]))


def _near(data: SlideData) -> list[tuple[str, str, int, int]]:
  """How many cells of a type have significantly many of another around."""
  kinds = np.array(data.cells.names, str)[data.cells.type]
  counts = data.cells.counts()
  found = pd.Series(list(zip(kinds, data.near_type, strict=True)))
  found = found[[near != "" for _, near in found]]
  return [
    (kind, near, int(count), counts[kind])
    for (kind, near), count in sorted(found.value_counts().items())
  ]
