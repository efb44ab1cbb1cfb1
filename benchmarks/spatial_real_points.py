"""Real cells: our numbers against plain ones, and survival as an example.

  python benchmarks/spatial_real_points.py               (some minutes)

Two public sets in the folder `points` of `WSISEQ_DATA` (`../shared/data`
without it): 137 cores of 50 tumours, 283,015 cells of tumour, stroma, immune
(TIPC), and 5 cores with 12,782 cells and calls of CD3 (spatialTIME). Lengths
are pixels: neither says how large these are.

The window of a core is the convex hull of its cells, 0.5 px wider, as
spatialTIME takes it. K (CD3) and cross-K (immune to tumour) are computed a
second time here, from all distances, with nothing of this package: the border
correction by distances to the hull's lines; the translation correction by the
areas of hulls that half-planes cut; what swapped types give, once by shuffles,
as spatialTIME does, and once as the K of all cells, which is its expectation.

Survival (TIPC, 14 deaths): for each tumour, cores pooled as counts, the
concordance of five numbers with the time to death; p by shuffling tumours,
corrected for five (Benjamini and Hochberg). The set's makers do not say whether
survival was altered: an example of the work, no finding.

Writes `benchmarks/results/spatial_real_points.json`.
"""

import argparse

import harness
import numpy as np
import pandas as pd
import scipy.interpolate
import scipy.optimize
import scipy.spatial
import scipy.stats
import shapely
from tqdm import tqdm

from wsiseq_jax.metrics.concordance import concordance
from wsiseq_jax.spatial import envelopes, pooling, ripley, windows

RADII = np.arange(10.0, 61, 10)
SHUFFLES = 199
WIDER = 0.5  # than the hull, px
DATA = harness.real_slide().parents[1] / "points"


# Plain references.


def plain_border(equations, a, b, same: bool) -> np.ndarray:
  """K with the border correction; the window is convex."""
  edge = -(a @ equations[:, :2].T + equations[:, 2]).max(axis=1)
  near = scipy.spatial.distance.cdist(a, b)
  area = scipy.spatial.ConvexHull(corners(equations)).volume
  density = (len(b) - same) / area
  found = []
  for r in RADII:
    use = edge >= r
    pairs = (near[use] <= r).sum() - same * use.sum()
    found.append(pairs / (density * use.sum()) if use.any() else np.nan)
  return np.array(found)


def plain_translation(equations, a, b, same: bool) -> np.ndarray:
  """K with the translation correction; the window is convex."""
  area, overlap = covariance(equations)
  near = scipy.spatial.distance.cdist(a, b)
  if same:
    np.fill_diagonal(near, np.inf)
  i, j = np.nonzero(near <= RADII[-1])
  d = b[j] - a[i]
  r = near[i, j]
  weights = area / overlap(np.stack([r, np.arctan2(d[:, 1], d[:, 0])], 1))
  pairs = len(a) * (len(b) - same)
  return np.array([weights[r <= at].sum() * area / pairs for at in RADII])


def corners(equations) -> np.ndarray:
  """Corners of what half-planes leave; the origin must be inside."""
  middle = centre(equations)
  return scipy.spatial.HalfspaceIntersection(equations, middle).intersections


def centre(equations) -> np.ndarray:
  """The point farthest from all lines."""
  found = scipy.optimize.linprog(
    [0, 0, -1],
    A_ub=np.column_stack([equations[:, :2], np.ones(len(equations))]),
    b_ub=-equations[:, 2],
    bounds=[(None, None), (None, None), (0, None)],
  )
  return found.x[:2]


def covariance(equations):
  """Area, and the area that a lag (distance, angle) leaves."""
  middle = centre(equations)
  r = np.linspace(0, RADII[-1], 16)
  angle = np.linspace(-np.pi, np.pi, 73)
  table = np.empty((len(r), len(angle)))
  for row, length in enumerate(r):
    for column, turn in enumerate(angle):
      lag = length * np.array([np.cos(turn), np.sin(turn)])
      moved = equations.copy()
      moved[:, 2] -= equations[:, :2] @ lag
      both = np.vstack([equations, moved])
      left = scipy.spatial.HalfspaceIntersection(both, middle + lag / 2)
      hull = scipy.spatial.ConvexHull(left.intersections)
      table[row, column] = hull.volume
  overlap = scipy.interpolate.RegularGridInterpolator((r, angle), table)
  return table[0, 0], overlap


def plain_shuffles(equations, xy, is_a, rng) -> np.ndarray:
  """Mean K of a type that is shuffled over all cells."""
  area, overlap = covariance(equations)
  tree = scipy.spatial.cKDTree(xy)
  i, j = tree.query_pairs(RADII[-1], output_type="ndarray").T
  d = xy[j] - xy[i]
  r = np.hypot(*d.T)
  weights = area / overlap(np.stack([r, np.arctan2(d[:, 1], d[:, 0])], 1))
  ring = np.searchsorted(RADII, r)
  pairs = is_a.sum() * (is_a.sum() - 1) / 2
  sums = np.zeros(len(RADII))
  for _ in range(SHUFFLES):
    mixed = rng.permutation(is_a)
    use = mixed[i] & mixed[j]
    sums += np.bincount(ring[use], weights[use], len(RADII)).cumsum()
  return sums / SHUFFLES * area / pairs


# Comparisons.


def hull(xy: np.ndarray):
  """The window as polygon and as half-planes."""
  equations = scipy.spatial.ConvexHull(xy).equations
  equations[:, 2] -= WIDER
  ring = corners(equations)
  order = scipy.spatial.ConvexHull(ring).vertices
  return windows.union([shapely.Polygon(ring[order])]), equations


def difference(ours, plain) -> float:
  """The largest relative one, where both have a value."""
  known = np.isfinite(plain) & (plain > 0)
  return float(np.abs(np.asarray(ours)[known] / plain[known] - 1).max())


def check(xy, a, b, same: bool) -> dict[str, float]:
  """Our K of a core against the plain ones."""
  window, equations = hull(xy)
  others = None if same else b
  found = {
    name: ripley.k(a, window, RADII, name, others=others).value
    for name in ("border", "translation")
  }
  return {
    "border": difference(found["border"], plain_border(equations, a, b, same)),
    "translation": difference(
      found["translation"], plain_translation(equations, a, b, same)
    ),
  }


def time_cores() -> dict:
  """The five cores of spatialTIME: CD3 around CD3."""
  table = pd.read_csv(DATA / "spatialtime_cells.csv.gz")
  rng, rows = np.random.default_rng(0), []
  for name, core in tqdm(table.groupby("sample"), desc="spatialTIME"):
    xy, is_a = core[["x", "y"]].to_numpy(float), core["CD3"].to_numpy() == 1
    window, equations = hull(xy)
    test = envelopes.random_labels(
      xy, is_a.astype(int), (1, 1), window, RADII, simulations=999, rng=rng
    )
    every = ripley.k(xy, window, RADII).value
    shuffled = plain_shuffles(equations, xy, is_a, rng)
    rows.append(
      {
        "core": name,
        "cells": len(core),
        "cd3": int(is_a.sum()),
        "difference": check(xy, xy[is_a], xy[is_a], True),
        # Of 999 and of 199 shuffles, at the largest distance: both are means
        # of draws, and 17 cells are few.
        "expected_of_shuffles": difference(test.central[-1:], shuffled[-1:]),
        "expected_in_closed_form": difference(test.central[-1:], every[-1:]),
        "radii_px": RADII.tolist(),
        "clustering": (test.observed - test.central).tolist(),
        "ratio": (test.observed / test.central).tolist(),
        "p": test.p,
      }
    )
  return {"cores": rows}


def tipc() -> dict:
  """The 137 cores of TIPC: tumour around immune; survival of tumours."""
  table = pd.read_csv(DATA / "tipc_cells.csv.gz")
  worst = {"border": 0.0, "translation": 0.0}
  cross: dict[str, list] = {}
  every: dict[str, list] = {}
  compared = 0
  cores = table.groupby(["tumor", "core"], sort=False)
  for (tumour, _), core in tqdm(cores, desc="TIPC"):
    xy, kind = core[["x_px", "y_px"]].to_numpy(float), core["cell_type"]
    a = xy[(kind == "immune").to_numpy()]
    b = xy[(kind == "tumor").to_numpy()]
    window, _ = hull(xy)
    cross.setdefault(tumour, []).append(ripley.k(a, window, RADII, others=b))
    every.setdefault(tumour, []).append(ripley.k(xy, window, RADII))
    if len(a) < 20:
      continue
    compared += 1
    for name, value in check(xy, a, b, False).items():
      worst[name] = max(worst[name], value)
  counts = table.groupby(["tumor", "cell_type"]).size().unstack(fill_value=0)
  shares = counts.div(counts.sum(axis=1), axis=0)
  rows = {"immune, share of cells": shares["immune"]}
  rows["stroma, share of cells"] = shares["stroma"]
  for r in (10.0, 30.0, 60.0):
    at = int(np.flatnonzero(r == RADII)[0])
    rows[f"tumour within {r:g} px of immune, over any cell of any"] = pd.Series(
      {
        tumour: pooling.curves(cross[tumour]).value[at]
        / pooling.curves(every[tumour]).value[at]
        for tumour in cross
      }
    )
  return {
    "cores": len(cores),
    "cells": len(table),
    "cores_compared": compared,
    "largest_difference": worst,
    "survival": survival(rows),
  }


def survival(numbers: dict[str, pd.Series], shuffles: int = 9999) -> list[dict]:
  """Concordance of each number with the time to death."""
  table = pd.read_csv(DATA / "tipc_survival.csv").set_index("tumor")
  rng, rows = np.random.default_rng(0), []
  for name, values in numbers.items():
    risk = values.reindex(table.index).to_numpy()
    time, event = table["time"].to_numpy(), table["cens"].to_numpy()
    found = concordance(time, event, risk)[0]
    chance = np.array(
      [
        concordance(time, event, rng.permutation(risk))[0]
        for _ in range(shuffles)
      ]
    )
    far = np.abs(chance - 0.5) >= abs(found - 0.5) - 1e-12
    rows.append(
      {
        "number": name,
        "tumours": int(np.isfinite(risk).sum()),
        "deaths": int(event.sum()),
        "concordance": float(found),
        "p": (far.sum() + 1) / (shuffles + 1),
      }
    )
  q = scipy.stats.false_discovery_control([row["p"] for row in rows])
  return [row | {"q": float(value)} for row, value in zip(rows, q, strict=True)]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.parse_args()
  result = {
    **harness.machine(),
    "spatialtime": time_cores(),
    "tipc": tipc(),
  }
  print(
    harness.write_result(harness.RESULTS / "spatial_real_points.json", result)
  )


if __name__ == "__main__":
  main()
