r"""Which positions, masks and targets make pretraining learn? A grid of runs.

    python benchmarks/pretrain_study.py --data=PREP/shards --truth=SLIDES/truth
    python benchmarks/pretrain_study.py --data=... --truth=... --table

Every combination of `--positions`, `--masks`, `--ratios` and `--targets` is
trained through main.py with every seed, seed by seed, one process at a time. A
line of `<work>/runs.jsonl` is one finished run; it is not repeated, and a run
that was killed goes on from its checkpoint. Other settings are flags, or
`--config...` handed on to every run; runs that differ in any of them lie side
by side.

Targets are pixels, normalised patches, and two other objectives: `latent`
(`configs/latent.py`) on the same masks and network, and `csimclr`
(`configs/contrastive.py`), which has no masks and the network of its demo, with
patches of 8 px.

Of every run, and of its untrained network:

- `val_loss` at its own mask, on patients it was not trained on, beside
  `colour_loss`, that of painting the mean colour at the same mask; over the
  training in `curve`;
- `interpolation`: error of smoothing what is visible, relative to the mean
  colour, in pixels (`predictability.py`);
- with `--truth` (the folder of a synthetic cohort), on known tissue types:
  `nmi` of k-means (16), and `linear`, balanced accuracy of logistic regression
  on patients it was not fitted on (5 folds). `nmi_unseen` and `linear_unseen`
  are of the sequences of val and test alone, whose patients pretraining never
  saw; the regression was fitted on the others;
- with `--organs` (a table with `slide_id`, `organ` and `case_id`), balanced
  accuracy of the vote of 20 neighbours: `organ_by_slide`, among sequences of
  other slides, for organs with several slides; `organ_by_case`, among those of
  other cases, for organs with several cases.

`--table` prints mean, std and 95 % intervals (Student's t) over seeds, and
paired differences between values of `--pair` at the same seed. It writes
`benchmarks/results/<name>.json`.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import time

import frozen_features
import harness
import learned_features
import numpy as np
import predictability
import pretrain_table
import slide_position

from data_prep.files import tables
from data_prep.synthetic import slides
from wsiseq_jax import writers
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import masking, posemb
from wsiseq_jax.probe import separability
from wsiseq_jax.search import clustering

AXES = {
  "positions": posemb.POSITIONS,
  "mask": masking.KINDS,
  "ratio": (0.5, 0.75, 0.9),
  "target": ("pixels", "patches"),
}
# Where a target's other settings come from.
CONFIGS = {
  "pixels": "videomae.py:demo",
  "patches": "videomae.py:demo",
  "latent": "latent.py:demo",
  "csimclr": "contrastive.py:csimclr,demo",
}
CHOICES = {"ratio": None, "target": tuple(CONFIGS)}
_CLUSTERS = 16


def command(args, run):
  """The settings of one run, for main.py."""
  is_trained, target = run["features"] == "trained", run["target"]
  values = {
    "data.path": args.data,
    "data.image_px": f"({args.image_px},{args.image_px})",
    "data.batch_size": args.batch,
    "optim.lr_per_256": args.lr * 256 / args.batch,
    "optim.min_lr_per_256": 0.0,
    "optim.warmup_steps": args.warmup,
    "seed": run["seed"],
    "eval_every_steps": args.every if is_trained else 0,
    "log_every_steps": max(1, args.every // 4),
    "checkpoint.every_steps": args.every,
    "checkpoint.keep": 1,
  }
  if target == "csimclr":
    values |= {
      "data.clips": f"1c{args.frames}f{args.frame_step}s",
      "data.dense_step": 0,
      "model.patch": 8,
    }
  else:
    values |= {
      "data.frames": args.frames,
      "data.frame_step": args.frame_step,
      "data.repeats": args.clips,
      "model.patch": "({},{},{})".format(*args.patch),
      "model.width": args.width,
      "model.depth": args.depth,
      "model.heads": args.heads,
      "model.decoder_width": args.decoder_width,
      "model.decoder_depth": args.decoder_depth,
      "model.decoder_heads": args.decoder_heads,
      "model.positions": run["positions"],
      "mask.kind": run["mask"],
      "mask.ratio": run["ratio"],
      "mask.run_patches": args.run_patches,
    }
  if target in ("pixels", "patches"):
    values["model.normalise_target"] = target == "patches"
  return [
    f"--config=configs/{CONFIGS[target]}",
    *(f"--config.{k}={v}" for k, v in values.items()),
    *args.more,
  ]


def grid(args):
  """All runs, seed by seed; networks without training are runs as well."""
  once = set()
  for seed in args.seeds:
    for positions in args.positions:
      # Neither mask nor target reaches the weights of an untrained encoder.
      yield {
        "features": "untrained",
        "positions": positions,
        "mask": "tissue",
        "ratio": 0.5,
        "target": "pixels",
        "seed": seed,
      }
    for positions, mask, ratio, target in itertools.product(
      args.positions, args.masks, args.ratios, args.targets
    ):
      if target == "csimclr":
        # It has neither masks nor a choice of positions.
        positions, mask, ratio = "flat", "none", 0.0
        if (seed, target) in once:
          continue
        once.add((seed, target))
      yield {
        "features": "trained",
        "positions": positions,
        "mask": mask,
        "ratio": ratio,
        "target": target,
        "seed": seed,
      }


def settings(args):
  """What all runs of a call share and makes their numbers what they are."""
  names = (
    "steps batch clips width depth heads decoder_width decoder_depth "
    "decoder_heads frames frame_step image_px patch run_patches lr warmup"
  )
  shared = {name: getattr(args, name) for name in names.split()}
  data = sources.RecordSource(args.data, "train").identity
  return shared | {"data": data[:8], "more": args.more}


def name_of(run, shared):
  """Folder of a run."""
  text = json.dumps(shared, sort_keys=True).encode()
  parts = [str(value) for value in run.values()]
  return "_".join([*parts, hashlib.sha256(text).hexdigest()[:8]])


class Judge:
  """Scores features of one data set; what does not change is found once."""

  def __init__(self, args):
    self._args = args
    self._organs = {}
    if args.organs:
      for row in tables.read(args.organs).rows:
        self._organs[row.cells["slide_id"]] = row.cells
    self._share = {}

  def interpolation(self, run):
    """Error of interpolation under the run's masks, of the mean colour's."""
    args, key = self._args, (run["mask"], run["ratio"])
    if key not in self._share:
      source = sources.RecordSource(args.data, "val")
      clips = predictability.middle_clips(
        source, 48, args.frames, args.frame_step, (args.image_px,) * 2
      )
      t, h, w = args.patch
      tokens = (args.frames // t, args.image_px // h, args.image_px // w)
      spec = masking.MaskSpec(
        tokens,
        tuple(args.patch),
        kind=run["mask"],
        ratio=run["ratio"],
        run_patches=args.run_patches,
      )
      self._share[key] = predictability.of_mask(clips, spec)["relative"]
    return self._share[key]

  def features(self, arrays, features, seed):
    """All scores of the features of all sequences."""
    found = {"sequences": len(features)}
    if self._args.truth:
      found |= self._types(arrays, features, seed)
    if self._organs:
      found |= self._neighbours(arrays, features)
    return found

  def _types(self, arrays, features, seed):
    labels = slides.sequence_types(
      self._args.truth, arrays["slide_id"], arrays["frame_level0_xy"]
    )
    known = labels >= 0
    labels, features = labels[known], features[known]
    patients, split = arrays["patient_id"][known], arrays["split"][known]
    unseen = split != "train"

    def nmi(rows):
      clusters = clustering.kmeans(features[rows], _CLUSTERS, seed)
      return clustering.mutual_information(clusters.assignment, labels[rows])

    recalls = separability.recalls(features, labels, patients)
    between = separability.recalls_between(features, labels, unseen)
    return {
      "known": int(known.sum()),
      "known_unseen": int(unseen.sum()),
      "nmi": nmi(np.ones(len(labels), bool)),
      "linear": float(np.mean(list(recalls.values()))),
      "nmi_unseen": nmi(unseen),
      "linear_unseen": float(np.mean(list(between.values()))),
    }

  def _neighbours(self, arrays, features):
    slide = arrays["slide_id"].astype(str)
    rows = [self._organs[s] for s in slide]
    organ = np.array([row["organ"] for row in rows])
    case = np.array([row["case_id"] for row in rows])
    stated = ~np.isin(organ, ("", "none", "not stated"))
    found = {}
    for name, group in (("slide", slide), ("case", case)):
      count = {o: len(np.unique(group[organ == o])) for o in np.unique(organ)}
      several = stated & np.array([count[o] > 1 for o in organ])
      found[f"organ_by_{name}"] = slide_position.neighbour_score(
        features[several], organ[several], slide[several], group[several]
      )
    return found


def carry_out(args, judge, run, folder):
  """Trains, embeds and scores one run; returns its row."""
  steps = args.steps if run["features"] == "trained" else 0
  start = time.monotonic()
  arrays = frozen_features.embed(
    folder, steps, *command(args, run), log=folder / "log.txt"
  )
  row = {"seconds": round(time.monotonic() - start)}
  if steps:
    log = writers.read_metrics(folder / "metrics.jsonl")
    log = [line for line in log if "val/loss" in line]
    row["curve"] = {line["step"]: line["val/loss"] for line in log}
    row["val_loss"] = log[-1]["val/loss"]
    if run["target"] in ("pixels", "patches"):
      row["colour_loss"] = log[-1]["val/mean_colour_loss"]
      row["relative_loss"] = row["val_loss"] / row["colour_loss"]
      row["interpolation"] = judge.interpolation(run)
    else:
      row["collapse"] = {
        name: log[-1][f"val/{name}"] for name in ("feature_std", "clip_cosine")
      }
  return row | judge.features(arrays, arrays["features"], run["seed"]), arrays


def study(args):
  """Carries out what is missing."""
  judge, shared = Judge(args), settings(args)
  for run in grid(args):
    name = name_of(run, shared)
    # Read again each time: another process may share the folder.
    if any(row["name"] == name for row in read_rows(args.work)):
      continue
    print(name, flush=True)
    row, arrays = carry_out(args, judge, run, args.work / name)
    write_row(args.work, {"name": name, **run, "settings": shared, **row})
    colours = f"mean colour_{run['seed']}_{shared['data']}"
    if any(row["name"] == colours for row in read_rows(args.work)):
      continue
    features = learned_features.mean_colours(args.data, arrays["sequence_id"])
    row = {"name": colours, "features": "mean colour", "seed": run["seed"]}
    found = judge.features(arrays, features, run["seed"])
    own = {"settings": {"data": shared["data"]}}
    write_row(args.work, row | own | found)


def read_rows(work):
  """Finished runs, each once, whichever processes have written it."""
  rows = writers.read_metrics(work / "runs.jsonl")
  return list({row["name"]: row for row in rows}.values())


def write_row(work, row):
  """Adds a line, in one piece."""
  with (work / "runs.jsonl").open("a") as file:
    file.write(json.dumps(row) + "\n")
  print(
    {k: v for k, v in row.items() if k in pretrain_table.SCORES}, flush=True
  )


def arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", type=pathlib.Path, help="folder of shards")
  parser.add_argument("--truth", type=pathlib.Path, help="synthetic cohort's")
  parser.add_argument("--organs", type=pathlib.Path, help="table of slides")
  parser.add_argument("--work", type=pathlib.Path, default="out/pretrain_study")
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--pair", choices=list(AXES), default="mask")
  parser.add_argument("--name", default="pretrain_study")
  for axis, values in AXES.items():
    name = axis if axis == "positions" else f"{axis}s"
    parser.add_argument(
      f"--{name}",
      nargs="+",
      type=type(values[0]),
      choices=CHOICES.get(axis, values),
      default=list(values),
    )
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--every", type=int, default=250, help="evaluate, save")
  parser.add_argument("--batch", type=int, default=64, help="sequences a step")
  parser.add_argument("--clips", type=int, default=1, help="of a sequence")
  parser.add_argument("--width", type=int, default=96)
  parser.add_argument("--depth", type=int, default=4)
  parser.add_argument("--heads", type=int, default=4)
  parser.add_argument("--decoder-width", type=int, default=64)
  parser.add_argument("--decoder-depth", type=int, default=2)
  parser.add_argument("--decoder-heads", type=int, default=2)
  parser.add_argument("--frames", type=int, default=4)
  parser.add_argument("--frame-step", type=int, default=4)
  parser.add_argument("--image-px", type=int, default=48)
  parser.add_argument("--patch", type=int, nargs=3, default=[2, 6, 6])
  parser.add_argument("--run-patches", type=float, default=4.0)
  parser.add_argument("--lr", type=float, default=1.5e-3, help="of a step")
  parser.add_argument("--warmup", type=int, default=50)
  args, args.more = parser.parse_known_args()
  if wrong := [m for m in args.more if not m.startswith("--config.")]:
    parser.error(f"unknown: {' '.join(wrong)}")
  for name in ("data", "truth", "organs", "work"):
    if getattr(args, name):
      setattr(args, name, getattr(args, name).resolve())
  if not args.table and not args.data:
    parser.error("--data is needed")
  return args


def main():
  args = arguments()
  args.work.mkdir(parents=True, exist_ok=True)
  if args.table:
    result = pretrain_table.table(read_rows(args.work), list(AXES), args.pair)
    harness.write_result(harness.RESULTS / f"{args.name}.json", result)
  else:
    study(args)


if __name__ == "__main__":
  main()
