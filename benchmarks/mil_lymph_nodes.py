r"""Which bag model finds metastases, with which features, from slide labels.

    python benchmarks/mil_lymph_nodes.py --work=out/mil_lymph_nodes

Slides of lymph nodes are drawn (`data_prep/synthetic/lymph/nodes.py`: 60
slides of 40 patients, 24 with tumour, micrometastases cover about 1 % of the
tissue), cut into tiles of 112 um, and every preset of `configs/mil.py`
learns from the
labels of slides alone: folds grouped by patient, five seeds. Features:

- `resnet50_trunc, random weights`: a network that has seen nothing; with
  `--resnet_weights=FILE` `resnet50_trunc, ImageNet weights`;
- `sequence encoder`: csimclr of demo size, trained without labels on drift
  sequences of *other* slides, drawn with another seed (with cross-validation
  every slide of the cohort is a test slide once), or `--encoder_run=WORKDIR`;
- `mean colour`: red, green and blue of a tile, `gated` only. Colours of
  tumour and of benign tissue overlap: near chance;
- `truth`: the share of a tile that is tumour, no model: what can be reached;
- `chance`: a random number for each tile.

`told every tile` is no bag model but a logistic regression of the features that
is given the labels of tiles: the rest of the way is the weak label's.

Features are standardised channel by channel over all tiles of the cohort, no
labels involved: random weights give channels of very different sizes.

Scores, each of all slides by models that did not know them, mean and deviation
over seeds:

- slide AUROC, and the same of macro, micro and itc slides against the normal;
- FROC by the definition of Camelyon16 (`wsiseq_jax/metrics/froc.py`), on
  masks of 2.4 um a pixel, from what tiles say by themselves (`probability` of
  the maps),
  points by non-maximum suppression of 170 um without a threshold;
- tile AUROC: tiles with at least a quarter of tumour against those with none.

Besides, how well tumour tiles are told by a logistic regression that is given
the labels of tiles, on patients it has not seen: by the features above, by mean
colour and its squares, and by texture that knows no colour (random filters and
gradients of grey tiles of mean 0 and deviation 1).

Everything resumes. Writes `benchmarks/results/mil_lymph_nodes.json` and, with
the table, `.md` beside it.
"""

import argparse
import dataclasses
import os
import pathlib
import time

import harness
import mil_lymph_scores as lymph
import numpy as np

from configs import embed_tiles as embed_config
from configs import mil as mil_config
from data_prep.synthetic.lymph import nodes
from wsiseq_jax import encoders
from wsiseq_jax.data import tile_features
from wsiseq_jax.encoders import embed_tiles
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.mil import job, one_fold, results, write_maps
from wsiseq_jax.models import mil

TILE_UM = 112.0
SEQUENCE_MPP = 2.0
# With one output additive is gated.
MODELS = [name for name in mil.MODELS if name != "additive"]


def pretrain(work, slides, steps):
  """A sequence encoder from slides that are not in the cohort; its workdir."""
  nodes.make_cohort(work / "other_slides", slides, seed=1)
  harness.call(
    "-m", "data_prep", "--config=configs/prep_wsi.py:demo",
    f"--config.slides={work / 'other_slides'}",
    f"--config.out={work / 'prep'}", f"--config.mpp={SEQUENCE_MPP}",
    f"--config.sequence.window_um=({TILE_UM},{TILE_UM})",
    "--config.sequence.step_um=8.0", "--config.sequence.frames=8",
    "--config.sequence.headings_deg=(0.0,90.0)",
    f"--config.sequence.spacing_um={TILE_UM}",
    "--config.sequence.max_centres=64",
    log=work / "pretraining.txt", good=harness.SOME_REFUSED,
  )  # fmt: skip
  side = round(TILE_UM / SEQUENCE_MPP)
  harness.call(
    "main.py", "--config=configs/contrastive.py:csimclr,demo",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.workdir={work / 'encoder'}",
    f"--config.data.image_px=({side},{side})", "--config.model.patch=8",
    "--config.data.time_jitter=0.0", f"--config.optim.total_steps={steps}",
    f"--config.optim.warmup_steps={steps // 24}",
    log=work / "pretraining.txt",
  )  # fmt: skip
  return work / "encoder"


def embed(work, name, mpp, encoder):
  """Feature files of the cohort by one encoder; their folder."""
  config = embed_config.get_config("")
  config.workdir = str(work / "raw" / name)
  config.data.update(
    {"slides": str(work / "slides"), "batch_size": 32, "threads": 2}
  )
  config.tiles.mpp = mpp
  config.tissue.thumbnail_px = 512
  print(embed_tiles.embed_slides(config, encoders.load(encoder)).text)
  return work / "raw" / name / "features"


def standardise(folder, target):
  """Copies of feature files whose channels have mean 0 and deviation 1."""
  files = tile_features.find(folder)
  if target.is_dir() and set(tile_features.find(target)) == set(files):
    return target
  target.mkdir(parents=True, exist_ok=True)
  read = {name: tile_features.read(path) for name, path in files.items()}
  everything = np.concatenate([tiles.features for tiles in read.values()])
  everything = everything.astype(np.float64)
  mean, std = everything.mean(0), everything.std(0)
  for name, tiles in read.items():
    # A channel that is the same everywhere stays 0.
    new = (tiles.features - mean) / np.maximum(std, 1e-6 + 1e-3 * abs(mean))
    tile_features.write(
      target / f"{name}.h5",
      dataclasses.replace(tiles, features=new.astype(np.float32)),
    )
  return target


def experiment(args, work, known, name, features, preset):
  """Trains one preset on one kind of features; the scores of each seed."""
  folder = work / "mil" / name / preset
  config = mil_config.get_config(preset)
  config.workdir = str(folder)
  config.data.update(
    {
      "features": str(features),
      "table": str(work / "slides" / "slides.csv"),
      "classes": ("normal", "tumor"),
      "threads": 2,
      # A slide has at most 17 x 17 tiles: one program for all.
      "smallest_bucket": 17 * 17,
    }
  )
  # Small: 36 training slides, and two cores.
  small = {"hidden": 64, "attention_width": 32, "landmarks": 32}
  small = {k: v for k, v in small.items() if k in config.model}
  config.model.update({**small, "remat": "none"})
  config.optim.update(
    {"lr": 1e-3, "epochs": args.epochs, "patience": 8, "warmup_epochs": 1}
  )
  config.folds.k = args.folds
  config.seeds = tuple(range(args.seeds))
  all_runs = job.prepare(config)
  for run in all_runs.runs:
    inputs = one_fold.inputs(all_runs, run)
    if not results.is_done(folder / "models", run, inputs):
      one_fold.train(all_runs, run)
  found = [results.load(folder / "models", run) for run in all_runs.runs]
  scores = []
  for seed in config.seeds:
    mine = [result for result in found if result.run.seed == seed]
    # Maps of the job are means over seeds; here each seed has its own.
    place = folder / f"seed_{seed}"
    place.mkdir(exist_ok=True)
    write_maps.write(
      place, all_runs.cohort, all_runs.bags, all_runs.trainer, mine,
      folder / "models", "tumor",
    )  # fmt: skip
    probability = {
      slide: float(values[-1])
      for result in mine
      for slide, values in zip(
        result.predicted["test"].ids,
        result.predicted["test"].values,
        strict=True,
      )
    }
    tile_maps = {
      path.stem: TileMap.load(path) for path in (place / "maps").glob("*.npz")
    }
    scores.append(lymph.score(known, probability, tile_maps))
  return scores


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--work", default="out/mil_lymph_nodes")
  parser.add_argument("--slides", type=int, default=60)
  parser.add_argument("--folds", type=int, default=4)
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--epochs", type=int, default=30)
  parser.add_argument("--models", nargs="*", default=MODELS)
  parser.add_argument("--resnet_weights", default="", help="ImageNet's, a file")
  parser.add_argument(
    "--encoder_run", default="", help="workdir of a trained sequence encoder"
  )
  parser.add_argument("--pretrain_slides", type=int, default=20)
  parser.add_argument("--pretrain_steps", type=int, default=600)
  parser.add_argument("--out", default=harness.RESULTS / "mil_lymph_nodes.json")
  args = parser.parse_args()
  work = pathlib.Path(args.work).resolve()
  nodes.make_cohort(work / "slides", args.slides, seed=0)
  known = lymph.read_truth(work)
  resnet = {"name": "resnet50_trunc", "tile_px": round(TILE_UM)}
  resnet |= (
    {"weights": args.resnet_weights}
    if args.resnet_weights
    else {"random_weights": True}
  )
  what = "ImageNet" if args.resnet_weights else "random"
  resnet_name = f"resnet50_trunc, {what} weights"
  run = args.encoder_run or pretrain(
    work, args.pretrain_slides, args.pretrain_steps
  )
  raw = {
    resnet_name: embed(work, f"resnet50_trunc_{what}", 1.0, resnet),
    "sequence encoder": embed(
      work, "sequence", SEQUENCE_MPP,
      {"name": "run", "checkpoint": str(run)},
    ),
  }  # fmt: skip
  colour, texture = lymph.describe_tiles(work, raw[resnet_name])
  raw["mean colour"] = colour
  features = {
    name: standardise(folder, work / "features" / folder.parent.name)
    for name, folder in raw.items()
  }
  result = {
    "slides": args.slides,
    "tumour_slides": sum(k.row["label"] == "tumor" for k in known.values()),
    "folds": args.folds,
    "seeds": args.seeds,
    "epochs": args.epochs,
    "tile_um": TILE_UM,
    "detections_apart_um": lymph.RADIUS_UM,
    "tiles": sum(
      tile_features.header(p).tiles for p in tile_features.find(colour).values()
    ),
    "probe_auroc": lymph.probe_tiles(known, features, texture),
    "system": harness.system(),
    "cpus": os.cpu_count(),
    "rows": [
      {
        "features": "truth",
        "model": "none",
        "scores": lymph.summarise([lymph.oracle(known, colour)]),
      },
      {
        "features": "chance",
        "model": "none",
        "scores": lymph.summarise(
          [lymph.chance(known, colour, seed) for seed in range(args.seeds)]
        ),
      },
    ],
  }
  print(result["probe_auroc"], flush=True)
  for name, folder in features.items():
    told = lymph.summarise([lymph.told_every_tile(known, folder)])
    result["rows"].append(
      {"features": name, "model": "told every tile", "scores": told}
    )
    print(name, "told every tile", told, flush=True)
  for name, folder in features.items():
    models = ["gated"] if name == "mean colour" else args.models
    for preset in models:
      start, cpu = time.monotonic(), time.process_time()
      scores = experiment(args, work, known, folder.name, folder, preset)
      row = {
        "features": name,
        "model": preset,
        "scores": lymph.summarise(scores),
        "seeds": scores,
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
      }
      result["rows"].append(row)
      print(name, preset, row["scores"], row["cpu_seconds"], flush=True)
      out = pathlib.Path(args.out)
      harness.write_result(out, result)
      out.with_suffix(".md").write_text(lymph.table(result["rows"]))
  print(lymph.table(result["rows"]))


if __name__ == "__main__":
  main()
