"""Spatial tests where the truth is known: chance, planted attraction, clusters.

  python benchmarks/spatial_null.py                     (a quarter of an hour)

Simulated cells in irregular windows of about 0.6 mm² with holes, one of two
pieces; regions are discs in them. Of each test that `spatial` does:

  chance     patterns under its own null model: p must be uniform. P-values come
             in steps of 1 / (simulations + 1), of contacts, which doubles the
             smaller tail, of twice that; they are spread evenly within steps
             and held against the uniform law (Kolmogorov and Smirnov).
  clusters   two types that cluster, each by itself: shifts must reject at their
             level; uniform points, which take each cell for independent, do not
             keep it, and that is shown.
  planted    attraction of known size within 20 um of cells or of regions: it
             must be found again within a tenth.
  threshold  the share of patterns of chance whose highest level set is above
             the universal threshold, against what its tails predict.

Writes `benchmarks/results/spatial_null.json`.
"""

import argparse
import math
from collections.abc import Callable

import harness
import numpy as np
import scipy.stats
import shapely
from tqdm import tqdm

from wsiseq_jax.spatial import (
  border,
  contacts,
  envelopes,
  level_sets,
  ripley,
  shifts,
  windows,
)

RADII = np.arange(10.0, 61, 10)
EDGES = np.arange(-40.0, 81, 20)
REACH = 200.0  # of shifts, um
SIMULATIONS = 39
LEVEL = 0.05
ZONES, WIDTH = 15, 10.0  # of level sets


def blob(rng, middle, radius: float) -> windows.Window:
  """A wavy outline."""
  angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
  wave = sum(
    rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 6))
    for k in range(2, 8)
  )
  reach = radius * (1 + wave)
  ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
  return shapely.make_valid(shapely.Polygon(ring + middle))


def make_windows() -> list[tuple[windows.Window, windows.Window]]:
  """Four windows with holes, each with three regions."""
  rng = np.random.default_rng(0)
  found = []
  for number in range(4):
    parts = [blob(rng, (500, 500), 470)]
    if number == 3:
      parts = [blob(rng, (400, 400), 360), blob(rng, (1300, 500), 300)]
    whole = windows.union(parts)
    holes = [blob(rng, at, 45) for at in windows.sample(whole, 3, rng)]
    window = windows.union([whole - shapely.union_all(holes)])
    inner = windows.union([window.buffer(-60)])
    discs = [
      shapely.Point(at).buffer(size)
      for at, size in zip(
        windows.sample(inner, 3, rng), rng.uniform(50, 90, 3), strict=True
      )
    ]
    found.append((window, windows.union(discs)))
  return found


def clusters(window, rng, size: int = 200) -> np.ndarray:
  """Cells in clumps of 15 um, 12 clumps in the window."""
  centres = windows.sample(window, 12, rng)
  points = centres[rng.integers(0, 12, size)] + rng.normal(0, 15, (size, 2))
  return points[windows.inside(window, points)]


def cross_k(window, points, others) -> np.ndarray:
  return ripley.k(points, window, RADII, others=others).value


def uniform_k(window, region, rng) -> float:
  points = windows.sample(window, 150, rng)
  return envelopes.random_points(
    lambda p: ripley.k(p, window, RADII).value, points, window,
    simulations=SIMULATIONS, rng=rng,
  ).p  # fmt: skip


def labels_k(window, region, rng) -> float:
  """Types strewn over clustered cells."""
  cells = clusters(window, rng, 400)
  types = rng.permutation(np.arange(len(cells)) % 2)
  return envelopes.random_labels(
    cells, types, (0, 1), window, RADII, simulations=SIMULATIONS, rng=rng
  ).p


def labels_contacts(window, region, rng) -> float:
  cells = clusters(window, rng, 400)
  types = rng.permutation(np.arange(len(cells)) % 2)
  edges = contacts.neighbours(cells, "delaunay", longest=30.0)
  test = contacts.enrichment(edges, types, 2, simulations=SIMULATIONS, rng=rng)
  return float(test.p[0, 1])


def shift_k(window, region, rng) -> float:
  """Two types that cluster, independently."""
  return shifts.cross_k(
    clusters(window, rng), clusters(window, rng), window, RADII,
    reach=REACH, simulations=SIMULATIONS, rng=rng,
  ).p  # fmt: skip


def naive_k(window, region, rng) -> float:
  """The same, by uniform points."""
  points, others = clusters(window, rng), clusters(window, rng)
  return envelopes.random_points(
    lambda p: cross_k(window, p, others), points, window,
    simulations=SIMULATIONS, rng=rng,
  ).p  # fmt: skip


def shift_profile(window, region, rng) -> float:
  """Clusters that ignore the regions."""
  return border.profile_test(
    clusters(window, rng), region, window, EDGES,
    null="shift", reach=REACH, simulations=SIMULATIONS, rng=rng,
  ).p  # fmt: skip


def naive_profile(window, region, rng) -> float:
  return border.profile_test(
    clusters(window, rng), region, window, EDGES,
    null="uniform", simulations=SIMULATIONS, rng=rng,
  ).p  # fmt: skip


def uniform_profile(window, region, rng) -> float:
  return border.profile_test(
    windows.sample(window, 600, rng), region, window, EDGES,
    null="uniform", simulations=SIMULATIONS, rng=rng,
  ).p  # fmt: skip


# Test, and the steps its p-values come in; 0 for patterns that are not of the
# test's own null model.
TESTS: dict[str, tuple[Callable, int]] = {
  "K, uniform points": (uniform_k, 1),
  "cross-K, swapped types": (labels_k, 1),
  "contacts, swapped types": (labels_contacts, 2),
  "cross-K, shifts, clustered types": (shift_k, 1),
  "cross-K, uniform points, clustered types": (naive_k, 0),
  "profile, uniform points": (uniform_profile, 1),
  "profile, shifts, clustered cells": (shift_profile, 1),
  "profile, uniform points, clustered cells": (naive_profile, 0),
}


def share(hits: int, of: int) -> dict[str, float]:
  """A share with its exact 95 % interval."""
  found = scipy.stats.binomtest(hits, of).proportion_ci(0.95)
  return {
    "share": hits / of,
    "low": float(found.low),
    "high": float(found.high),
  }


def calibration(places, patterns: int) -> list[dict]:
  rows = []
  for name, (function, steps) in TESTS.items():
    rng = np.random.default_rng(1)
    # What the naive tests do needs no thousand patterns.
    count = patterns if steps else patterns // 5
    p = np.array(
      [
        function(*places[i % len(places)], rng)
        for i in tqdm(range(count), desc=name)
      ]
    )
    spread = p - rng.uniform(0, max(steps, 1) / (SIMULATIONS + 1), count)
    rows.append(
      {
        "test": name,
        "own_null": steps > 0,
        "patterns": count,
        "rejected": share(int((p <= LEVEL).sum()), count),
        "ks_p": float(scipy.stats.kstest(spread, "uniform").pvalue),
      }
    )
    print(rows[-1], flush=True)
  return rows


def threshold(places, patterns: int) -> dict:
  """Level sets of uniform points."""
  rng, tops, small, scores = np.random.default_rng(2), 0, 0, []
  for i in tqdm(range(patterns), desc="level sets"):
    window, region = places[i % len(places)]
    points = windows.sample(window, 4000, rng)
    found = level_sets.coupling(
      level_sets.levels(
        points, region, window, width=WIDTH, distance=ZONES * WIDTH
      )
    )
    tops += bool(found.significant.any())
    small += found.log10_p <= math.log10(LEVEL)
    scores.append(found.score)
  limit = math.sqrt(2 * math.log(ZONES))
  return {
    "patterns": patterns,
    "zones": ZONES,
    "above": share(tops, patterns),
    "predicted": ZONES * float(scipy.stats.norm.sf(limit)),
    "mean_score": float(np.mean(scores)),
    "variance_of_score": float(np.var(scores)),
    "p_below_0.05": share(small, patterns),
  }


def planted(places, patterns: int) -> list[dict]:
  """Attraction within 20 um: what is found over what was planted."""
  rng = np.random.default_rng(3)
  found: dict[str, list[float]] = {
    "cells near regions, profile": [],
    "cells near regions, level sets": [],
    "cells near cells, cross-K": [],
  }
  profile, levels, pairs = found.values()
  reach = np.array([10.0, 20.0])
  for i in tqdm(range(patterns), desc="planted"):
    window, region = places[i % len(places)]
    band = windows.union([window.intersection(region.buffer(20) - region)])
    points = np.vstack(
      [windows.sample(window, 600, rng), windows.sample(band, 100, rng)]
    )
    near = border.profile(points, region, window, np.array([0, 20, 120.0]))
    far = near.counts[1] / near.areas[1]
    profile.append((near.counts[0] - far * near.areas[0]) / 100)
    score = level_sets.levels(points, region, window, width=20, distance=160)
    coupling = level_sets.coupling(score)
    levels.append(coupling.corrected_association * score.points / 100)
    cells = windows.sample(window, 100, rng)
    angle, far = rng.uniform(0, 2 * np.pi, 100), 20 * rng.uniform(0, 1, 100)
    others = cells + np.stack([far * np.cos(angle), far * np.sin(angle)], 1)
    others = np.vstack([others, windows.sample(window, 300, rng)])
    # Some of those planted lie outside: that is what edges are corrected for.
    others = others[windows.inside(window, others)]
    k = ripley.k(cells, window, reach, others=others).value[1]
    more = (k - np.pi * 20**2) * len(others) / window.area
    pairs.append(more * 100 / 100)
  return [
    {
      "planted": name,
      "patterns": patterns,
      "found_over_planted": float(np.mean(values)),
      "standard_error": float(scipy.stats.sem(values)),
      "of_one_pattern": float(np.std(values, ddof=1)),
    }
    for name, values in found.items()
  ]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--patterns", type=int, default=1000)
  options = parser.parse_args()
  places = make_windows()
  result = {
    **harness.machine(),
    "simulations": SIMULATIONS,
    "windows_mm2": [window.area / 1e6 for window, _ in places],
    "left_by_shifts": [
      window.buffer(-REACH / 2).area / window.area for window, _ in places
    ],
    "planted": planted(places, options.patterns // 4),
    "threshold": threshold(places, options.patterns),
    "tests": calibration(places, options.patterns),
  }
  harness.write_result(harness.RESULTS / "spatial_null.json", result)


if __name__ == "__main__":
  main()
