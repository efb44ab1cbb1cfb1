"""The random walk as 256 sparse steps, against squaring the dense matrix.

  python benchmarks/random_walk.py                    (ten minutes)

A crop of 512 px is a grid of 128x128 at a stride of 4; the matrix of its pairs
has 16,384² entries, 1.07 GB in float32, and its 256th power takes eight
squarings. One squaring is timed, in NumPy and its BLAS, on all cores; the total
is eight times that, without making the matrix and applying it. The sparse walk
is timed whole, affinities included, on the same machine in the same run. Both
are the fastest of several, because other processes share the machine. The
matrix is the one of the walk; its entries do not matter for the time.

A crop of 2,048 px, a grid of 512x512, runs in a process of its own, for its
memory.

Writes `benchmarks/results/random_walk.json`.
"""

import argparse
import json
import resource
import time

import harness
import numpy as np

RADIUS, BETA, STEPS, SQUARINGS = 5, 10.0, 256, 8
SIDES = {"512 px": 128, "2048 px": 512}
REPEATS = 5


def inputs(side):
  """A map of scores and a boundary."""
  rng = np.random.default_rng(0)
  boundary = rng.uniform(0, 0.4, (side, side)).astype(np.float32)
  return rng.uniform(0, 1, (1, side, side)).astype(np.float32), boundary


def sparse(side):
  """Seconds of a walk, and the largest memory of this process."""
  import jax

  from wsiseq_jax.segment import random_walk

  start_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  scores, boundary = jax.device_put(inputs(side))

  def once():
    start = time.perf_counter()
    found = random_walk.walk(scores, boundary, RADIUS, BETA, STEPS)
    found.block_until_ready()
    return time.perf_counter() - start

  compiled = once()
  seconds = [once() for _ in range(REPEATS)]
  peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "grid": [side, side],
    "seconds": round(min(seconds), 4),
    "seconds_median": round(sorted(seconds)[REPEATS // 2], 4),
    "first_call_with_compilation": round(compiled, 2),
    "peak_gb": round(peak_kb / 2**20, 3),
    "peak_gb_before": round(start_kb / 2**20, 3),
  }


def dense(side):
  """Seconds of squaring the matrix once."""
  rng = np.random.default_rng(0)
  matrix = rng.random((side**2, side**2), np.float32)
  product = np.empty_like(matrix)
  start = time.perf_counter()
  np.matmul(matrix, matrix, out=product)
  seconds = time.perf_counter() - start
  return {
    "matrix_gb": round(matrix.nbytes / 1e9, 2),
    "seconds_of_a_squaring": round(seconds, 1),
    "gflop_per_second": round(2 * side**6 / seconds / 1e9, 1),
    "seconds": round(SQUARINGS * seconds, 1),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    asked = json.loads(options.worker)
    harness.say_result(
      {"sparse": sparse, "dense": dense}[asked["way"]](asked["side"])
    )
    return

  def run(way, side):
    found = harness.run_variant(
      __file__, harness.sys.executable, {"way": way, "side": side},
      PYTHONPATH=str(harness.ROOT),
    )  # fmt: skip
    if "failed" in found:
      raise SystemExit(f"{way} of {side}: {found['failed']}")
    return found

  result = {
    "machine": {**harness.machine(), "cpu": harness.cpu_name()},
    "load": harness.load_average(),
    "radius": RADIUS,
    "beta": BETA,
    "steps": STEPS,
    "sparse": {name: run("sparse", side) for name, side in SIDES.items()},
    "dense": {"512 px": run("dense", SIDES["512 px"])},
  }
  # Once more, since the machine may have been busy; the slower one counts.
  again = run("sparse", SIDES["512 px"])
  times = [result["sparse"]["512 px"]["seconds_median"]]
  times.append(again["seconds_median"])
  result["sparse"]["512 px again"] = again
  result["times_faster"] = round(
    result["dense"]["512 px"]["seconds"] / max(times)
  )
  path = harness.RESULTS / "random_walk.json"
  print(harness.write_result(path, result))


if __name__ == "__main__":
  main()
