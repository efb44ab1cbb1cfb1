"""The cross-K of a million cells to 200 um: time and memory, against others.

  python benchmarks/cross_k.py --python=INTERPRETER      (a quarter of an hour)

Uniform cells, 4,000 per mm², in a square with a round hole, two types of equal
number, 40 distances of 5 um. Ours (`spatial/ripley.py`) corrects for edges by
translation. INTERPRETER is a Python that has pointpats and squidpy; neither
corrects for edges, and both go through all pairs of the slide, so that they are
run as far as a few minutes allow:

  pointpats   `k`, the only K it has: of all cells, without types
  squidpy     `gr.co_occurrence`, counts of each two types within distances,
              the same counts as of the cross-K; compiled before it is timed

Each run is a process of its own, one after the other. Of the others the CPU
time at a million cells is foretold from their largest run, as the square of the
number of cells; the two largest runs say whether that holds.

Writes `benchmarks/results/cross_k.json`.
"""

import argparse
import functools
import json
import resource
import sys
import time

import harness
import numpy as np

PER_MM2 = 4000.0
RADII = np.arange(5.0, 201, 5.0)
SIZES = {
  "ours": (60_000, 100_000, 300_000, 1_000_000),
  "pointpats": (2_500, 5_000, 10_000),
  "squidpy": (15_000, 30_000, 60_000),
}
MILLION = 1_000_000


def ours(xy, window):
  from wsiseq_jax.spatial import ripley

  def run():
    return ripley.k(xy[::2], window, RADII, others=xy[1::2])

  return run, lambda curve: float(np.abs(curve.value / curve.theory - 1).max())


def pointpats(xy, window):
  import pointpats

  return functools.partial(pointpats.k, xy, support=RADII), lambda found: None


def squidpy(xy, window):
  import anndata
  import pandas as pd
  import squidpy as sq

  def run(places=xy):
    names = np.where(np.arange(len(places)) % 2, "b", "a")
    table = anndata.AnnData(
      np.zeros((len(places), 1), np.float32),
      obs=pd.DataFrame({"type": pd.Categorical(names)}),
      obsm={"spatial": places},
    )
    table.obs_names = table.obs_names.astype(str)
    interval = np.append(0.0, RADII).astype(np.float32)
    return sq.gr.co_occurrence(table, "type", interval=interval, copy=True)

  run(xy[:200])
  return run, lambda found: None


def worker(program: str, count: int) -> dict:
  """One run: seconds, CPU seconds, peak memory before it and after."""
  import shapely

  rng = np.random.default_rng(0)
  side = (count / PER_MM2) ** 0.5 * 1000
  hole = shapely.Point(0.4 * side, 0.5 * side).buffer(0.1 * side)
  window = shapely.box(0, 0, side, side) - hole
  xy = rng.uniform(0, side, (int(count * 1.1), 2))
  xy = xy[shapely.contains_xy(window, xy)][:count]
  run, error = globals()[program](xy, window)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  start, cpu = time.perf_counter(), time.process_time()
  found = run()
  seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  return {
    "program": program,
    "cells": len(xy),
    "seconds": seconds,
    "cpu_seconds": cpu,
    "peak_gb": after,
    "peak_gb_before": before,
    "largest_error": error(found),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--python", help="interpreter with pointpats and squidpy")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    harness.say_result(worker(**json.loads(options.worker)))
    return
  if not options.python:
    parser.error("name an interpreter: --python")
  runs = []
  for program, sizes in SIZES.items():
    python = sys.executable if program == "ours" else options.python
    for count in sizes:
      variant = {"program": program, "count": count}
      runs.append(variant | harness.run_variant(__file__, python, variant))
      print(runs[-1], flush=True)
  harness.write_result(
    harness.RESULTS / "cross_k.json",
    {
      **harness.machine(),
      "load": harness.load_average(),
      "runs": runs,
      **summary(runs),
    },
  )


def summary(runs: list[dict]) -> dict:
  """Growth of each program, and what a million cells cost it."""
  million, growth = {}, {}
  for program in SIZES:
    cells, cpu = np.array(
      [[r["cells"], r["cpu_seconds"]] for r in runs if r["program"] == program]
    ).T
    # The exponent of the number of cells between the two largest runs.
    steps = np.diff(np.log(cpu)) / np.diff(np.log(cells))
    growth[program] = float(steps[-1])
    power = 1 if program == "ours" else 2
    million[program] = float(cpu[-1] * (MILLION / cells[-1]) ** power)
  best = min(million["pointpats"], million["squidpy"])
  cpu = {(run["program"], run["count"]): run["cpu_seconds"] for run in runs}
  return {
    "growth": growth,
    "cpu_seconds_at_a_million": million,
    "times_faster_than_squidpy_at_60000": (
      cpu["squidpy", 60_000] / cpu["ours", 60_000]
    ),
    "times_faster_at_a_million": best / million["ours"],
  }


if __name__ == "__main__":
  main()
