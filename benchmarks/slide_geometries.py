r"""Does every contrastive method learn on every geometry of slide sequences?

    python benchmarks/slide_geometries.py --slides=SLIDES --table=slides.csv

Drift, walk and zoom sequences are cut from real slides at 1.06 um/px, and each
method is trained on each at demo size, with um in the place of time (for zoom
the side of the field of view). From the training log of each run, first and
last lines, which are means over `log_every_steps` steps: the loss, how often
the right partner comes first among all of the batch (`top1`; 1 in 64 or so by
chance), and the monitors of collapse. `learned` says whether the last line's
loss is below the first's by more than 5 %, and `collapsed` whether features of
different records have become one and the same (`clip_cosine` above 0.9999).

Everything resumes. Writes `benchmarks/results/slide_geometries.json`.
"""

import argparse
import json
import pathlib

import harness

METHODS = ("csimclr", "cvrl", "csimclr_te", "tvrl", "ltn", "clm")
# Positions are exact, and counted from a record's first frame.
ON_SLIDES = ("--config.data.time_jitter=0.0", "--config.data.image_px=(48,48)")
GEOMETRIES = {
  "drift": (),
  "walk": (
    "--config.sequence.geometry=walk",
    "--config.sequence.frames=12",
    "--config.sequence.step_um=0.0",
    "--config.sequence.spacing_um=250.0",
    "--config.sequence.all_headings=False",
  ),
  "zoom": (
    "--config.sequence.geometry=zoom",
    "--config.sequence.frames=8",
    "--config.sequence.zoom_factor=8.0",
    "--config.sequence.spacing_um=60.0",
    "--config.sequence.max_centres=128",
  ),
}
MONITORS = ("loss", "top1", "clip_cosine", "frame_cosine", "feature_std")


def prepare(work, slides, table, options):
  """Cuts the sequences of a geometry; returns how many."""
  harness.prepare_slides(work, slides, table, *options)
  info = json.loads((work / "prep/shards/dataset_info.json").read_text())
  return sum(
    int(length) for split in info["splits"] for length in split["shardLengths"]
  )


def train(work, method, steps):
  """First and last of what one run's log says of training."""
  folder = work / method
  harness.call(
    "main.py",
    f"--config=configs/contrastive.py:{method},demo",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.workdir={folder}",
    f"--config.optim.total_steps={steps}",
    f"--config.log_every_steps={max(steps // 8, 1)}",
    *ON_SLIDES,
    log=work / "log.txt",
  )
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  lines = [line for line in lines if "train/loss" in line]
  found = {
    key: [lines[0][f"train/{key}"], lines[-1][f"train/{key}"]]
    for key in MONITORS
  }
  first, last = found["loss"]
  found["learned"] = last < 0.95 * first
  found["collapsed"] = found["clip_cosine"][1] > 0.9999
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--slides", required=True)
  parser.add_argument("--table", required=True)
  parser.add_argument("--work", default="out/slide_geometries")
  parser.add_argument("--steps", type=int, default=200)
  args = parser.parse_args()
  result = {"steps": args.steps, "geometries": {}}
  for geometry, options in GEOMETRIES.items():
    work = pathlib.Path(args.work).resolve() / geometry
    count = prepare(work, args.slides, args.table, options)
    runs = {}
    result["geometries"][geometry] = {"sequences": count, "runs": runs}
    for method in METHODS:
      runs[method] = train(work, method, args.steps)
      print(geometry, method, json.dumps(runs[method]), flush=True)
      harness.write_result(harness.RESULTS / "slide_geometries.json", result)


if __name__ == "__main__":
  main()
