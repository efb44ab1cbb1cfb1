r"""Speed of another checkout against this one: nothing may become slower.

    git worktree add ../before COMMIT
    python benchmarks/compare_trees.py ../before

Four benchmarks run in both checkouts in turn, `--rounds` times over: a training
step of `small` (batch 4), the loader on one thread, cutting sequences out of a
real slide, and a bag of 100,000 tiles. Of each the best of the rounds is taken
on either side, because whatever else the machine does only slows. Results that
the benchmarks write into a checkout are those of the last round.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import harness

# Name -> arguments, file of results, way to the number, whether more is better.
BENCHMARKS = {
  "pretrain_step, clips/s": (
    ("pretrain_step.py", "--sizes=small", "--batches=4", "--steps=4")
    + ("--variants=jax", "--out=compare_step"),
    "compare_step.json",
    ("results", "small", "jax", "clips_per_s"),
    True,
  ),
  "loader, clips/s": (
    ("loader.py", "--rounds=3"),
    "loader_synthetic.json",
    ("strip_clips_per_s",),
    True,
  ),
  "preparation, ms a sequence": (
    ("preparation.py", "--baseline-centres=1", "--result={results}/cut.json"),
    "cut.json",
    ("ours_ms_per_sequence_median",),
    False,
  ),
  "mil_speed step, s": (
    ("mil_speed.py", "--variants=jax_gated", "--rounds=1", "--out=compare_mil"),
    "compare_mil.json",
    ("results", "jax_gated", "step", "seconds"),
    False,
  ),
}


def measure(tree: pathlib.Path, name: str) -> float:
  """The number of a benchmark in a checkout."""
  arguments, file, way, _ = BENCHMARKS[name]
  results = tree / "benchmarks" / "results"
  script, *rest = (word.format(results=results) for word in arguments)
  subprocess.run(
    [sys.executable, str(tree / "benchmarks" / script), *rest],
    cwd=tree,
    env={**os.environ, "PYTHONPATH": str(tree)},
    stdout=subprocess.DEVNULL,
    check=True,
  )
  number = json.loads((results / file).read_text())
  for key in way:
    number = number[key]
  return float(number)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("before", type=pathlib.Path, help="the other checkout")
  parser.add_argument("--rounds", type=int, default=3)
  options = parser.parse_args()
  trees = {"before": options.before.resolve(), "after": harness.ROOT}
  found = {name: {side: [] for side in trees} for name in BENCHMARKS}
  for number in range(options.rounds):
    # Each side goes first in every second round.
    sides = list(trees)[:: -1 if number % 2 else 1]
    for name in BENCHMARKS:
      for side in sides:
        found[name][side].append(measure(trees[side], name))
        print(name, side, found[name][side][-1], flush=True)
  result = {}
  for name, values in found.items():
    more = BENCHMARKS[name][-1]
    before, after = (
      (max if more else min)(values[side]) for side in ("before", "after")
    )
    speed = after / before if more else before / after
    result[name] = {**values, "speed_after_over_before": round(speed, 3)}
  result["load_average_at_end"] = harness.load_average()
  result["machine"] = harness.machine()
  print(harness.write_result(harness.RESULTS / "compare_trees.json", result))


if __name__ == "__main__":
  main()
