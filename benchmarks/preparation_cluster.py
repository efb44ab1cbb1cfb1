r"""Preparation by one and by two Dask workers, and the memory of each.

    python benchmarks/preparation_cluster.py --slides=SLIDES --repeats=5

The slides are named `repeats` times over under ids of their own, so that a
worker does many. They are prepared with the demo's settings, one worker and two
in turn, `rounds` times; of each the fastest run counts, its time from the first
slide begun to the last one finished (starting and stopping workers is
reported beside it). Resident memory of every worker is read from `/proc` each
time it finishes a slide.

Writes `benchmarks/results/preparation_cluster.json`: slides/s, their ratio, CPU
seconds a slide, and for each worker the memory in its second ten slides and in
its last ten. On a machine that does other things as well the ratio says little;
CPU seconds that do not grow with the second worker still do.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import harness

from configs import prep_wsi
from data_prep import cluster
from data_prep.sequences import prepare, slide_job
from data_prep.wsi import find


@dataclasses.dataclass(frozen=True)
class Done:
  """A slide: its outcome, and its process, which now has so much memory."""

  outcome: slide_job.SlideOutcome
  worker: int
  resident: int
  cpu_seconds: float
  seconds: float


def process(job: slide_job.SlideJob) -> Done:
  """Does a slide in a worker."""
  begin, start = time.process_time(), time.perf_counter()
  outcome = slide_job.process(job)
  took = time.process_time() - begin
  status = pathlib.Path("/proc/self/status").read_text()
  (line,) = [row for row in status.splitlines() if row.startswith("VmRSS")]
  return Done(
    outcome,
    os.getpid(),
    int(line.split()[1]) * 1024,
    took,
    time.perf_counter() - start,
  )


def few(rows: list) -> int:
  """Ten slides, or a third of those there are."""
  return max(1, min(10, len(rows) // 3))


def measure(slides: str, repeats: int, workers: int) -> dict:
  """One run over all slides."""
  out = pathlib.Path(tempfile.mkdtemp(prefix="preparation_cluster"))
  config = prep_wsi.get_config("demo").unlock()
  config.slides, config.out, config.workers = slides, str(out), workers
  values = config.to_dict()
  prepare.check_config(values)
  for name in ("parts", "qc"):
    (out / name).mkdir()
  entries, _ = find.find_slides(slides, "")
  jobs = []
  for number in range(repeats):
    for entry in entries:
      name = f"{entry.slide_id}_{number}"
      copy = dataclasses.replace(entry, slide_id=name, patient_id=name)
      jobs.append(slide_job.SlideJob(copy, values, {"number": number}))
  called, first, memory, refused = time.perf_counter(), None, {}, set()
  sequences, cpu_seconds = 0, 0.0
  for index, done in cluster.run(process, jobs, values):
    if isinstance(done, cluster.Died):
      raise SystemExit(f"{jobs[index].entry.slide_id}: {done.reason}")
    last = time.perf_counter()
    first = first or last - done.seconds
    problem = done.outcome.error
    if problem is not None:
      # A slide without a scale is refused early; anything else is a mistake in
      # this benchmark, whose numbers would mean nothing.
      if problem.error != "no_mpp":
        raise SystemExit(f"{problem.slide}: {problem.message}")
      refused.add(problem.slide)
    sequences += done.outcome.info.get("sequences", 0)
    cpu_seconds += done.cpu_seconds
    memory.setdefault(done.worker, []).append(done.resident)
  ended = time.perf_counter()
  shutil.rmtree(out)
  return {
    "workers": workers,
    "slides": len(jobs),
    "refused": len(refused),
    "sequences": sequences,
    "seconds": last - first,
    "start_and_stop_seconds": ended - called - (last - first),
    "slides_per_s": len(jobs) / (last - first),
    "cpu_seconds_a_slide": cpu_seconds / len(jobs),
    "memory": [
      {
        "slides": len(rows),
        "first_bytes": statistics.mean(rows[few(rows) : 2 * few(rows)]),
        "last_bytes": statistics.mean(rows[-few(rows) :]),
        "peak_bytes": max(rows),
      }
      for rows in memory.values()
    ],
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--slides", required=True)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=2)
  args = parser.parse_args()
  runs = []
  for _ in range(args.rounds):
    for workers in (1, 2):
      runs.append(measure(args.slides, args.repeats, workers))
      print(json.dumps(runs[-1]), flush=True)
  best = {
    n: max(r["slides_per_s"] for r in runs if r["workers"] == n) for n in (1, 2)
  }
  result = {
    "system": harness.system(),
    "cores": len(os.sched_getaffinity(0)),
    "slides_per_s": best,
    "ratio": best[2] / best[1],
    "load_average_at_end": harness.load_average(),
    "runs": runs,
  }
  harness.write_result(harness.RESULTS / "preparation_cluster.json", result)
  print(f"two workers do {result['ratio']:.2f} times the slides of one")


if __name__ == "__main__":
  main()
