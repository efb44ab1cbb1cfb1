"""Cells against regions: how many, how far from the border, on which side.

Distance to the border is signed, negative inside a region. Areas are those of
the window in each zone, so a border near the window's edge needs no further
correction. A region's outline is taken as drawn: let it reach beyond the window
where the window cuts it, or the cut is taken for a border.
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.stats
import shapely
from jaxtyping import Float, Int

from wsiseq_jax.spatial import envelopes, shifts, windows

NULLS = ("shift", "uniform")
# Segments that a quarter of a circle has in a zone's outline: areas to 1e-4.
_ARC = 64
# Longer side of the raster of zones, in pixels, at least and at most; places
# that stand for the area of each zone.
_RASTER = (512, 4096)
_PLACES = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
  """Cells and area by signed distance to the border. Zones are [from, to)."""

  edges: Float[np.ndarray, " z1"]  # µm, negative inside
  counts: Int[np.ndarray, " z"]
  areas: Float[np.ndarray, " z"]  # µm²
  points: int  # in the whole window
  area: float  # of the whole window, µm²

  @property
  def per_mm2(self) -> Float[np.ndarray, " z"]:
    """Cells per mm²; NaN in a zone without area."""
    return 1e6 * _ratio(self.counts, self.areas)

  def interval(
    self, level: float = 0.95
  ) -> tuple[Float[np.ndarray, " z"], Float[np.ndarray, " z"]]:
    """Exact Poisson interval of `per_mm2`: too narrow for clustered cells."""
    tail = (1 - level) / 2
    low = scipy.stats.chi2.ppf(tail, 2 * self.counts) / 2
    high = scipy.stats.chi2.isf(tail, 2 * self.counts + 2) / 2
    low = np.where(self.counts > 0, low, 0.0)
    return 1e6 * _ratio(low, self.areas), 1e6 * _ratio(high, self.areas)


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Cells inside regions against the regions' share of the window."""

  inside: int
  points: int
  area_share: float  # of the window that regions cover
  ratio: float  # density inside over density in the window
  p: float  # two-sided
  null: str


def profile(
  points: Float[np.ndarray, "n 2"],
  region: windows.Window,
  window: windows.Window,
  edges: Float[np.ndarray, " z1"],
) -> Profile:
  """The infiltration profile: cells per mm² by signed distance to the border.

  Args:
    points: cells, [n, 2] in µm; there may be none.
    region: union of the regions, µm (`windows.union`).
    window: where cells could be, µm.
    edges: of the zones, µm, increasing, negative inside the region. A cell at a
      distance equal to an edge is in the zone that begins there.

  Returns:
    Counts and areas of each zone.

  Raises:
    ValueError: edges that do not increase, points outside the window, a region
      that does not meet the window.
  """
  edges = _check_edges(edges)
  region, window = _check_region(region, window)
  points = windows.check_points(points, window, least=0)
  distance = windows.signed_distance(region, points)
  zone = np.searchsorted(edges, distance, side="right") - 1
  zone = zone[(zone >= 0) & (zone < len(edges) - 1)]
  area = [shapely.area(part) for part in _within(region, window, edges)]
  return Profile(
    edges=edges,
    counts=np.bincount(zone, minlength=len(edges) - 1),
    areas=np.maximum(np.diff(area), 0),
    points=len(points),
    area=window.area,
  )


def profile_test(
  points: Float[np.ndarray, "n 2"],
  region: windows.Window,
  window: windows.Window,
  edges: Float[np.ndarray, " z1"],
  *,
  null: str,
  simulations: int,
  rng: np.random.Generator,
  reach: windows.Number | None = None,
  cumulative: bool = False,
  alpha: windows.Number = 0.05,
  alternative: str = "two-sided",
) -> envelopes.Envelope:
  """Does the profile differ from that of cells that ignore the regions?

  Args:
    points: cells, [n, 2] in µm.
    region: as in `profile`.
    window: as in `profile`.
    edges: as in `profile`.
    null: "shift" moves all cells together, which keeps their clusters; those
      near the window's border do not count (`shifts.py`), and density is taken
      over the area that the others could be in. "uniform" draws each cell by
      itself: clustered cells are then found coupled to anything.
    simulations: number of simulated profiles.
    rng: of the draws.
    reach: longest shift, µm; "shift" needs it. Well above the size of
      clusters.
    cumulative: test the share of cells nearer than each zone's end (the
      distribution of border distance within these zones), not the densities.
    alpha: as in `envelopes.global_envelope`.
    alternative: as in `envelopes.global_envelope`.

  Returns:
    The test of cells per mm², or of the cumulative share, zone by zone.

  Raises:
    ValueError: as `profile`, `shifts.draw` and `global_envelope`; no points.
  """
  observed = profile(points, region, window, edges)
  windows.check_points(points, window)
  if null not in NULLS:
    raise ValueError(f"null is {null!r}, allowed: {', '.join(NULLS)}")
  if null == "uniform":
    counts = _uniform(observed, simulations, rng)
    areas = np.broadcast_to(observed.areas, counts.shape)
  else:
    counts, areas = _shifted(
      points, observed, region, window, reach, simulations, rng
    )
  curves = 1e6 * _ratio(counts, areas)
  if cumulative:
    curves = np.nancumsum(curves * observed.areas, axis=1)
    curves = _ratio(curves, curves[:, -1:])
  return envelopes.global_envelope(
    curves[0], curves[1:], alpha=alpha, alternative=alternative
  )


def overlap(
  points: Float[np.ndarray, "n 2"],
  region: windows.Window,
  window: windows.Window,
  *,
  null: str,
  simulations: int = 999,
  rng: np.random.Generator | None = None,
  reach: windows.Number | None = None,
) -> Overlap:
  """Are more, or fewer, cells inside the regions than their area explains?

  Args:
    points: cells, [n, 2] in µm.
    region: as in `profile`.
    window: as in `profile`.
    null: "uniform", the exact binomial test, or "shift", as in `profile_test`.
    simulations: number of shifts.
    rng: of the shifts.
    reach: of the shifts, µm.

  Returns:
    The counts and the two-sided p.

  Raises:
    ValueError: as `profile_test`; the region covers the whole window.
  """
  far = 2 * np.hypot(*np.subtract(window.bounds[2:], window.bounds[:2]))
  edges = np.array([-far, 0.0])
  found = profile(points, region, window, edges)
  share = found.areas[0] / found.area
  if share > 1 - 1e-9:
    raise ValueError("The region covers the whole window: nothing to compare")
  if null == "uniform":
    windows.check_points(points, window)
    p = scipy.stats.binomtest(int(found.counts[0]), found.points, share).pvalue
  else:
    p = profile_test(
      points, region, window, edges,
      null=null, simulations=simulations, rng=rng, reach=reach,
    ).p  # fmt: skip
  return Overlap(
    inside=int(found.counts[0]),
    points=found.points,
    area_share=float(share),
    ratio=float(found.counts[0] / found.points / share),
    p=float(p),
    null=null,
  )


def _ratio(top, bottom) -> np.ndarray:
  """A quotient, NaN over nothing."""
  top, bottom = np.broadcast_arrays(top, bottom)
  return np.divide(
    top, bottom, where=bottom > 0, out=np.full(top.shape, np.nan)
  )


def _check_edges(edges) -> np.ndarray:
  """Edges of zones as float64."""
  edges = np.asarray(edges, np.float64)
  good = edges.ndim == 1 and len(edges) > 1 and np.isfinite(edges).all()
  if not good or (np.diff(edges) <= 0).any():
    raise ValueError(f"edges: two or more that increase, in µm; these: {edges}")
  return edges


def _check_region(region, window):
  """A region that meets its window."""
  region, window = windows.check_window(region), windows.check_window(window)
  if not region.intersects(window):
    raise ValueError(
      f"The region, within {region.bounds} µm, does not meet the window, "
      f"within {window.bounds} µm"
    )
  return region, window


def _within(region, window, edges) -> tuple[windows.Window, ...]:
  """Part of the window nearer than each edge."""
  return _zones(region, window, tuple(np.asarray(edges).tolist()))


# All types of a slide are held against the same zones, which take seconds.
@functools.lru_cache(maxsize=8)
def _zones(region, window, edges: tuple[float, ...]):
  shapely.prepare(window)
  return tuple(
    window.intersection(region.buffer(edge, quad_segs=_ARC)) for edge in edges
  )


def _uniform(observed: Profile, simulations: int, rng) -> np.ndarray:
  """Counts of uniform points: observed ones first, then simulations."""
  share = observed.areas / observed.area
  share = np.append(share, max(0.0, 1 - share.sum()))
  drawn = rng.multinomial(observed.points, share / share.sum(), simulations)
  return np.vstack([observed.counts, drawn[:, :-1]])


def _shifted(points, observed, region, window, reach, simulations, rng):
  """Counts and areas under shifts, no shift first."""
  drawn = shifts.draw(
    points, window, reach=reach, simulations=simulations, rng=rng
  )
  zones = len(observed.counts)
  label, pixel = _labels(region, window, tuple(observed.edges.tolist()))
  (x0, y0), size = window.bounds[:2], label.shape

  def zone_at(xy: np.ndarray) -> np.ndarray:
    at = np.floor((xy - (x0, y0)) / pixel).astype(int)
    good = ((at >= 0) & (at < size[::-1])).all(axis=1)
    at[~good] = 0
    return np.where(good, label[at[:, 1], at[:, 0]], zones + 1)

  places, zone = _places(label, zones, rng)
  places = (places + 0.5) * pixel + (x0, y0)
  each = np.bincount(zone, minlength=zones)
  counts, reached = [], []
  for place in drawn.places:
    there = zone_at(drawn.points + place)
    counts.append(np.bincount(there, minlength=zones + 2)[:zones])
    # The part of a zone that moved points could be in.
    seen = zone[drawn.inner.has(places - place)]
    reached.append(_ratio(np.bincount(seen, minlength=zones), each))
  areas = np.nan_to_num(np.array(reached)) * observed.areas
  return np.array(counts), areas


@functools.lru_cache(maxsize=4)
def _labels(region, window, edges: tuple[float, ...]):
  """The zone of each pixel of a raster of the window, and a pixel's side.

  The number of zones stands for the window beyond all, one more for outside.
  """
  x0, y0, x1, y1 = window.bounds
  extent, finest = max(x1 - x0, y1 - y0), np.diff(edges).min() / 16
  least, most = _RASTER
  pixel = min(max(extent / most, finest), extent / least)
  size = [math.ceil((hi - lo) / pixel) + 1 for lo, hi in ((y0, y1), (x0, x1))]
  zones = len(edges) - 1
  label = np.full(size, zones + 1, np.int16)
  label[windows.draw(window, (x0, y0), pixel, size)] = zones
  for index, part in reversed(list(enumerate(_zones(region, window, edges)))):
    if part.area > 0:
      mask = windows.draw(windows.union([part]), (x0, y0), pixel, size)
      label[mask & (label <= zones)] = index - 1 if index else zones
  return label, pixel


def _places(label, zones, rng):
  """Some pixels (x, y) of each zone, and the zone."""
  xy, zone = [np.zeros((0, 2))], [np.zeros(0, int)]
  for index in range(zones):
    flat = np.flatnonzero(label.ravel() == index)
    if len(flat) > _PLACES:
      flat = rng.choice(flat, _PLACES)
    xy.append(np.stack([flat % label.shape[1], flat // label.shape[1]], axis=1))
    zone.append(np.full(len(flat), index))
  return np.concatenate(xy), np.concatenate(zone)
