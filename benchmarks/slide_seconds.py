r"""CPU seconds of one slide, from its file to its finished folder.

    python benchmarks/slide_seconds.py         (real slide, about a minute)

A slide costs something before its first sequence (thumbnail, tissue mask,
choosing centres) and after its last (pictures), and then so much a sequence.
The unit of work, `slide_job.process` at the defaults of `configs/prep_wsi.py`,
is run with few centres and with all of them in turn; the line through the two
medians gives both parts:

    seconds = seconds_a_slide + seconds_a_sequence · sequences

Seconds are those of the process (`time.process_time`), one thread: what else
the machine does moves them little.

Writes `benchmarks/results/slide_seconds.json`.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import harness

from configs import prep_wsi
from data_prep.sequences import prepare, slide_job
from data_prep.wsi import find

FEW = 4


def seconds(slide: str, centres: int) -> tuple[int, float]:
  """Does the slide; returns its sequences and the CPU seconds it took."""
  config = prep_wsi.get_config().unlock()
  config.slides, config.sequence.max_centres = slide, centres
  with tempfile.TemporaryDirectory() as out:
    config.out = out
    values = config.to_dict()
    prepare.check_config(values)
    for name in ("parts", "qc"):
      (pathlib.Path(out) / name).mkdir()
    (entry,), _ = find.find_slides(slide, "")
    job = slide_job.make_job(entry, values)
    begin = time.process_time()
    outcome = slide_job.process(job)
    took = time.process_time() - begin
  if outcome.error is not None:
    raise SystemExit(f"{slide}: {outcome.error.message}")
  return outcome.info["sequences"], took


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--slide", default=str(harness.real_slide()))
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  seconds(args.slide, FEW)  # loads libraries and the file; not counted
  runs = {FEW: [], 0: []}
  counts = {}
  for _ in range(args.rounds):
    for centres, found in runs.items():
      counts[centres], took = seconds(args.slide, centres)
      found.append(took)
  few, whole = (statistics.median(runs[centres]) for centres in (FEW, 0))
  slope = (whole - few) / (counts[0] - counts[FEW])
  result = {
    "slide": pathlib.Path(args.slide).name,
    "system": harness.system(),
    "sequences": list(counts.values()),
    "cpu_seconds": [round(few, 3), round(whole, 3)],
    "cpu_seconds_of_rounds": [
      [round(value, 3) for value in found] for found in runs.values()
    ],
    "seconds_a_slide": round(few - slope * counts[FEW], 3),
    "seconds_a_sequence": round(slope, 5),
    "load_average_at_end": harness.load_average(),
  }
  print(harness.write_result(harness.RESULTS / "slide_seconds.json", result))


if __name__ == "__main__":
  main()
