"""The numbers of one slide: cells against cells, cells against regions.

Rows of scores say one thing each: a statistic of a pair of types, what chance
would give, and p. Curves keep numerator and denominator, from which those of a
patient are pooled.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.files.errors import SlideError
from wsiseq_jax.spatial import (
  border,
  contacts,
  level_sets,
  pair_measures,
  windows,
)
from wsiseq_jax.spatial.points import Points
from wsiseq_jax.spatial.settings import Settings
from wsiseq_jax.spatial.slide_numbers import SlideNumbers
from wsiseq_jax.spatial.windows import Window

REGION = "regions"


def measure(
  points: Points,
  window: Window,
  region: Window | None,
  settings: Settings,
) -> SlideNumbers:
  """Computes everything of one slide.

  Args:
    points: its cells, all in the window.
    window: where cells can be, µm.
    region: union of the regions, µm; None = none.
    settings: of the job.

  Returns:
    Rows of scores and curves. A statistic that a slide has too few cells for
    is a note, and no row.
  """
  found = SlideNumbers(points.slide_id, points.patient_id)
  # The order of slides does not matter to their numbers.
  rng = np.random.default_rng(settings.statistics.seed)
  counts, least = points.counts(), settings.cells.min_cells
  _counts(found, points, window, region)
  for kind, count in counts.items():
    if count < least:
      found.notes.append(
        SlideError(
          f"{count} cells of type {kind!r}, fewer than config.cells.min_cells "
          f"= {least}: nothing but their number is given",
          "statistics",
          "too_few_cells",
        )
      )
  kinds = chosen_types(points, settings)
  for pair in pairs_of(kinds, settings):
    _tried(found, pair, pair_measures.even, points, window, pair, settings, rng)
    if settings.statistics.intensity_um:
      _tried(
        found, pair, pair_measures.uneven, points, window, pair, settings, rng
      )
  _tried(found, ("cells", "cells"), _contacts, points, kinds, settings, rng)
  for kind in kinds if region is not None else ():
    pair = (kind, REGION)
    _tried(found, pair, _regions, points, window, region, kind, settings, rng)
  return found


def chosen_types(points: Points, settings: Settings) -> tuple[str, ...]:
  """The types that are frequent enough, the most frequent first."""
  counts = points.counts()
  named = {name for pair in settings.statistics.pairs for name in pair}
  good = [
    kind
    for kind in sorted(counts, key=lambda kind: (-counts[kind], kind))
    if counts[kind] >= settings.cells.min_cells
  ]
  most = settings.statistics.max_types
  return tuple(k for k in good if k in named) if named else tuple(good[:most])


def pairs_of(
  kinds: tuple[str, ...], settings: Settings
) -> list[tuple[str, str]]:
  """The pairs to compare: those that were named, or all."""
  if settings.statistics.pairs:
    return [
      pair
      for pair in settings.statistics.pairs
      if pair[0] in kinds and pair[1] in kinds
    ]
  ordered = sorted(kinds)
  return [(a, b) for i, a in enumerate(ordered) for b in ordered[i:]]


def edges_of(settings: Settings) -> np.ndarray:
  """Ends of the bands of distance to the border, on both sides."""
  wanted = settings.statistics
  count = int(wanted.border_um / wanted.band_um + 1e-9)
  return wanted.band_um * np.arange(-count, count + 1)


def _tried(
  found: SlideNumbers,
  pair: tuple[str, str],
  function: Callable,
  *arguments: Any,
) -> None:
  """One statistic that cannot be had costs no other."""
  try:
    function(found, *arguments)
  except ValueError as error:
    found.notes.append(
      SlideError(f"{pair[0]} and {pair[1]}: {error}", "statistics", "no_value")
    )


def _counts(found, points: Points, window, region) -> None:
  """Cells per mm² of the window, and of the regions."""
  areas = [("density", window)]
  if region is not None:
    areas.append(("density_in_regions", window.intersection(region)))
  for name, area in areas:
    for kind in points.names:
      xy = points.xy_of(kind)
      inside = int(windows.inside(area, xy).sum()) if area.area else 0
      found.curve(
        name,
        (kind, ""),
        np.zeros(1),
        np.array([float(inside)]),
        np.array([area.area / 1e6]),
        np.full(1, np.nan),
      )
      density = inside / (area.area / 1e6) if area.area else np.nan
      found.score(name, (kind, ""), value=density, n_from=inside)


def _contacts(found, points: Points, kinds, settings, rng) -> None:
  """Contacts of types in the Delaunay graph, against shuffled types."""
  if len(kinds) < 2:
    return
  wanted = settings.statistics
  edges = contacts.neighbours(
    points.xy_um, "delaunay", longest=wanted.contact_um
  )
  test = contacts.enrichment(
    edges,
    points.type,
    len(points.names),
    simulations=wanted.simulations,
    rng=rng,
  )
  for pair in pairs_of(kinds, settings):
    a, b = (points.names.index(name) for name in pair)
    observed, expected = float(test.observed[a, b]), float(test.expected[a, b])
    found.curve(
      "contacts",
      pair,
      np.zeros(1),
      np.array([observed]),
      np.array([expected]),
      np.ones(1),
    )
    found.score(
      "contacts",
      pair,
      at_um=wanted.contact_um,
      value=observed,
      expected=expected,
      p=float(test.p[a, b]),
      null="labels",
      note=f"z = {test.z[a, b]:.3g}",
    )


def _regions(found, points: Points, window, region, kind, settings, rng):
  """Infiltration profile and overlap of a type, against shifted cells."""
  wanted, edges = settings.statistics, edges_of(settings)
  xy, pair = points.xy_of(kind), (kind, REGION)
  shifts = {
    "null": "shift",
    "simulations": wanted.simulations,
    "rng": rng,
    "reach": wanted.shift_um,
  }
  # Bands deeper than the regions, or beyond the window, have no area.
  there = np.flatnonzero(border.profile(xy, region, window, edges).areas > 0)
  edges = edges[there[0] : there[-1] + 2]
  profile = border.profile(xy, region, window, edges)
  band = border.profile_test(
    xy, region, window, edges, alpha=wanted.level, **shifts
  )
  mm2 = profile.areas / 1e6
  density = np.full(len(mm2), profile.points / (profile.area / 1e6))
  found.curve(
    "profile", pair, edges[:-1], profile.counts.astype(float), mm2, density,
    band, edges[1:],
  )  # fmt: skip
  first = int(np.searchsorted(edges[:-1], 0.0))
  found.score(
    "profile",
    pair,
    at_um=float(edges[first]),
    value=float(band.observed[first]),
    expected=float(band.central[first]),
    p=band.p,
    null="shift",
    n_from=profile.points,
    n_to="",
  )
  overlap = border.overlap(xy, region, window, **shifts)
  found.curve(
    "overlap",
    pair,
    np.zeros(1),
    np.array([float(overlap.inside)]),
    np.array([float(overlap.points)]),
    np.array([overlap.area_share]),
  )
  found.score(
    "overlap",
    pair,
    value=overlap.inside / overlap.points,
    expected=overlap.area_share,
    p=overlap.p,
    null="shift",
    n_from=overlap.points,
  )
  if wanted.level_sets:
    _levels(found, xy, region, window, pair, settings)


def _levels(found, xy, region, window, pair, settings) -> None:
  """Counts between level sets; only where the config asks for them."""
  wanted = settings.statistics
  levels = level_sets.levels(
    xy, region, window, width=wanted.band_um, distance=wanted.border_um
  )
  coupling = level_sets.coupling(levels)
  edges = wanted.band_um * np.arange(len(levels.counts) + 1)
  found.curve(
    "level_sets",
    pair,
    edges[:-1],
    levels.counts.astype(float),
    levels.areas * levels.points / levels.area,
    np.ones(len(levels.counts)),
    None,
    edges[1:],
  )
  found.score(
    "level_sets",
    pair,
    value=coupling.association,
    expected=0.0,
    p=float(10**coupling.log10_p),
    null="uniform",
    n_from=levels.points,
    note=f"ASI; mean distance {coupling.distance:.3g} um, log10 p "
    f"{coupling.log10_p:.3g}",
  )
