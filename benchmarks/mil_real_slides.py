r"""Attention MIL on the real slides: neoplastic or not, by patient.

    python benchmarks/mil_real_slides.py --slides=SLIDES --table=slides.csv

Everything a user would run, in this order: `embed_tiles` (1.06 um/px), `mil`
(gated, four folds by patient, five seeds), `mil_report`. Slides that are
neither (a plant seed) are left out of the table; the slide without mpp is
refused by `embed_tiles`, and counted as a failure by `mil`.

Sixteen slides of a dozen cases from several organs: the number is an anecdote.
Writes `benchmarks/results/mil_real_slides.json`, pages in `--work`/mil/report.
"""

import argparse
import csv
import pathlib

import harness

CLASSES = ("non_neoplastic", "neoplastic")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--slides", type=pathlib.Path, required=True)
  parser.add_argument("--table", type=pathlib.Path, required=True)
  parser.add_argument("--work", type=pathlib.Path, default="out/mil_real")
  parser.add_argument("--resnet_weights", default="", help="ImageNet's, a file")
  parser.add_argument("--encoder_run", default="", help="or a run's folder")
  args = parser.parse_args()
  work = args.work.resolve()
  work.mkdir(parents=True, exist_ok=True)
  with args.table.open() as file:
    rows = [r for r in csv.DictReader(file) if r["label"] in CLASSES]
  with (work / "table.csv").open("w", newline="") as file:
    names = ("slide_id", "patient_id", "label")
    writer = csv.DictWriter(file, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
  if args.encoder_run:
    encoder = ("run", f"--config.encoder.checkpoint={args.encoder_run}")
  elif args.resnet_weights:
    encoder = (
      "resnet50_trunc",
      f"--config.encoder.weights={args.resnet_weights}",
    )
  else:
    encoder = ("resnet50_trunc", "--config.encoder.random_weights=True")
  harness.call(
    "main.py", f"--config=configs/embed_tiles.py:{encoder[0]}", encoder[1],
    f"--config.data.slides={args.slides.resolve()}",
    f"--config.workdir={work / 'tiles'}", "--config.tiles.mpp=1.06",
    *([] if args.encoder_run else ["--config.encoder.tile_px=112"]),
    good=harness.SOME_REFUSED,
  )  # fmt: skip
  harness.call(
    "main.py", "--config=configs/mil.py",
    f"--config.data.features={work / 'tiles' / 'features'}",
    f"--config.data.table={work / 'table.csv'}",
    f"--config.data.classes={CLASSES}", "--config.data.unlisted=ignore",
    f"--config.workdir={work / 'mil'}", "--config.folds.k=4",
    "--config.model.hidden=64", "--config.model.attention_width=32",
  )  # fmt: skip
  harness.call(
    "main.py", "--config=configs/mil_report.py",
    f"--config.workdir={work / 'mil'}",
    f"--config.data.slides={args.slides.resolve()}",
    good=harness.SOME_REFUSED,
  )  # fmt: skip
  with (work / "mil" / "summary.csv").open() as file:
    summary = list(csv.DictReader(file))
  with (work / "mil" / "errors.csv").open() as file:
    failures = list(csv.DictReader(file))
  result = {
    "encoder": args.encoder_run and "run" or encoder[0],
    "weights": bool(args.resnet_weights or args.encoder_run),
    "slides": len(rows),
    "cases": len({r["patient_id"] for r in rows}),
    "failures": failures,
    "summary": summary,
  }
  harness.write_result(harness.RESULTS / "mil_real_slides.json", result)


if __name__ == "__main__":
  main()
