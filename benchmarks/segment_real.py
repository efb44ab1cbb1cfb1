r"""Segmentation from weak labels on real pictures: an anecdote, with numbers.

    python benchmarks/segment_real.py --weights=vit_s_focus.safetensors
    python benchmarks/segment_real.py --weights=... --table

Data are those of `real_pictures.py`. Two regions of BCSS, of a patient each:
trained on crops of one with a label each, tested on the other, and back; plain
class maps, the student without and with masks (`full`). Two encoders: `small`,
from scratch, and a frozen ViT-S (`real_encoder.py` makes the file), features
after four blocks. And nuclei of BreCaHAD, from a tenth of their points and from
all of them, drawn for each seed, by `small` alone.

What the numbers can say. One patient trains and one is tested: there is no
interval over patients. Means and deviations are over seeds, which differ in
first parameters, order and, of nuclei, in the points that are known. Thresholds
that masks chose were chosen in a quarter of the region that was trained on. Not
every tumour nucleus has a mark: precision is a lower bound; beside it stands
the detector without weights, on the same picture, by the same rule.

Each run is made once (`<work>/runs.jsonl`); `--table` prints what is there and
writes `benchmarks/results/segment_real.json`.
"""

import argparse
import functools
import os
import pathlib

import cv2
import harness
import nuclei
import numpy as np
import pretrain_table
import real_pictures
import segment_runs
from segment_runs import ALL_TISSUE, STAIN

from wsiseq_jax.metrics import detection
from wsiseq_jax.segment.nuclei import Detection

SCORES = ("miou", "dice", "precision", "recall", "boundary_f1", "ap50", "f1")
ENCODERS = ("small", "vit")
# Fewer epochs than `demo`: a learning rate that falls to 0 ends where it did.
EPOCHS = {"small": {"cam": 8, "student": 6}, "vit": {"cam": 3, "student": 3}}
NUCLEI = {"10 %": 0.1, "all": 1.0}
# Eight pictures: an epoch is some crops of them.
OF_NUCLEI = {
  "stages.detect.rounds": 2,
  "stages.detect.optim.epochs": 5,
  "stages.nuclei.optim.epochs": 3,
  **{f"stages.{s}.optim.steps_per_epoch": 80 for s in ("detect", "nuclei")},
}


def runs_of(args, seed):
  """All runs of a seed: title, data, preset, settings."""
  found = []
  for encoder in args.encoders:
    values = {"seed": seed}
    if encoder == "vit":
      values |= {
        "backbone.name": "encoder",
        "backbone.train": "none",
        "backbone.encoder.name": "dinov2_small_14",
        "backbone.encoder.weights": str(args.weights),
        "backbone.encoder.layer": 4,
      }
    for region in real_pictures.REGIONS:
      for method, stages in (
        ("student", ("cam", "student")),
        ("full", ("student",)),
      ):
        own = {f"stages.{s}.optim.epochs": EPOCHS[encoder][s] for s in stages}
        title = (f"bcss_{region}", encoder, method)
        found.append((title, f"bcss_{region}", method, values | own))
  for name, share in NUCLEI.items():
    values = {"seed": seed, "stages.detect.share": share, **OF_NUCLEI}
    found.append(
      (("nuclei", "small", f"points {name}"), "brecahad", "nuclei", values)
    )
  return found


def prepared(args, name):
  """Prepared pictures, made where they are not there."""
  out = args.work / "data"
  folder = out / name / "prepared"
  if not (folder / "shards").is_dir():
    if name == "brecahad":
      real_pictures.brecahad(args.data, out)
    else:
      real_pictures.bcss(args.data, out, name.removeprefix("bcss_"))
  return folder


def identity(title, method, values, seed):
  words = "_".join(title).replace(" ", "").replace("%", "")
  return segment_runs.name_of(f"{words}_{seed}", [method, values])


def shown(values):
  """Settings without the place of a file."""
  name = "backbone.encoder.weights"
  return {
    k: pathlib.Path(v).name if k == name else v for k, v in values.items()
  }


def study(args):
  """Carries out what is missing, seed by seed."""
  for seed in args.seeds:
    for title, data, method, values in runs_of(args, seed):
      carry_out = functools.partial(
        segment_runs.segment,
        preset=f"{method},demo",
        data=prepared(args, data),
        values=values,
      )
      segment_runs.once(
        args.work,
        identity(title, method, values, seed),
        {"title": title, "seed": seed, "settings": shown(values)},
        carry_out,
      )


def summary(rows):
  """Means over seeds by data, encoder, method and row."""
  of_seed = {}
  for row in rows:
    data, encoder, method = row["title"]
    for key, one in row["scores"].items():
      head = (data,) if key in (ALL_TISSUE, STAIN) else (data, encoder, method)
      name = "/".join((*head, key))
      of_seed.setdefault(name, {})[row["seed"]] = one
  aurocs = {}
  for row in rows:
    for value in row["auroc"].values():
      aurocs.setdefault("/".join(row["title"][:2]), []).append(value)
  return {
    "results": {
      key: segment_runs.over_seeds(of_seed[key], SCORES)
      for key in sorted(of_seed)
    },
    "auroc of validation crops": {
      key: pretrain_table.over_seeds(values) for key, values in aurocs.items()
    },
  }


def without_weights(data):
  """Nuclei of the test image by the detector that nobody trained."""
  (name,) = (n for n, s in real_pictures.NUCLEI.items() if s == "test")
  path = data / "brecahad"
  picture = cv2.imread(str(path / "images" / f"{name}.jpg"))
  found = nuclei.find(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), "blobs")
  mask = cv2.imread(str(path / "masks" / f"{name}.jpg"), cv2.IMREAD_GRAYSCALE)
  # All are as sure: none takes the point of another before it.
  rows = [[x / nuclei.MPP, y / nuclei.MPP, 1.0] for x, y in found]
  counts = detection.counts(
    np.array(rows), nuclei.points_of(mask), Detection().inner_px
  )
  scores = detection.scores(counts[None].astype(float))
  return {
    "points": int(counts[2]),
    "found": int(counts[1]),
    **{key: round(float(value[0]), 4) for key, value in scores.items()},
  }


def arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  data = os.environ.get("WSISEQ_DATA", harness.ROOT.parent / "shared" / "data")
  parser.add_argument("--data", type=pathlib.Path, default=data)
  parser.add_argument("--weights", type=pathlib.Path, help="of the ViT-S")
  parser.add_argument("--work", type=pathlib.Path, default="out/segment_real")
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--encoders", nargs="+", choices=ENCODERS)
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
  args = parser.parse_args()
  args.encoders = args.encoders or (ENCODERS if args.weights else ["small"])
  if "vit" in args.encoders and not args.weights:
    parser.error("--weights: the file of the ViT-S")
  args.work = args.work.resolve()
  return args


def main():
  args = arguments()
  args.work.mkdir(parents=True, exist_ok=True)
  if not args.table:
    study(args)
    return
  wanted = {
    identity(title, method, values, seed)
    for seed in args.seeds
    for title, _, method, values in runs_of(args, seed)
  }
  rows = segment_runs.table_rows(args.work, wanted)
  found = {
    **summary(rows),
    "nuclei without weights": without_weights(args.data),
    "runs": rows,
  }
  for key, scores in found["results"].items():
    pretrain_table.show([key], scores)
  for key, one in found["auroc of validation crops"].items():
    pretrain_table.show([key], {"AUROC": one})
  print("nuclei without weights", found["nuclei without weights"])
  harness.write_result(harness.RESULTS / "segment_real.json", found)


if __name__ == "__main__":
  main()
