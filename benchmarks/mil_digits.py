"""Bags of handwritten digits: is a 9 inside, and which one is it?

The classic test of attention MIL, with what scikit-learn brings along: 1,797
digits of 8x8 pixels. A bag has about ten digits, N(10, 2²), and is positive if
one of them is a 9; half of the bags are. 200 bags train, 100 validate, 200
test. Digits are parted first, half of each class to training, a sixth to
validation and a third to test, so that no picture is on both sides; within a
part a picture may be in several bags. Features are the 64 pixels, from 0 to 1;
the model's own first layer is all the encoder there is.

Validation chooses the epoch, and among the rates below the learning rate, for
each model by its mean validation loss over the seeds; the test bags are looked
at once, with what was chosen. Five seeds draw other digits, bags and starts.

Scores on the test bags: AUROC of bags; AUROC of single digits (9 or not), of
all of them and of those in positive bags alone (`inside`), by attention,
contribution and the probability of the digit by itself. Attention adds up to 1
in every bag, also without a 9: across bags it says less than inside them.

    python benchmarks/mil_digits.py [--models=gated,attention]

Writes `benchmarks/results/mil_digits.json`.
"""

import argparse
import os
import pathlib
import platform
import tempfile
import time

import harness
import jax
import numpy as np
from sklearn import datasets, metrics

from wsiseq_jax.data import tile_features
from wsiseq_jax.data.bags import Bags
from wsiseq_jax.mil.trainer import BagFitSettings, BagTrainer
from wsiseq_jax.models import mil

PARTS = {"train": 200, "val": 100, "test": 200}
SHARES = {"train": 1 / 2, "val": 1 / 6, "test": 1 / 3}
RATES = (3e-4, 1e-3, 3e-3)
WANTED = 9


def part_digits(labels, rng):
  """Rows of digits of each part; every class in the same shares."""
  found = {name: [] for name in PARTS}
  for digit in range(10):
    rows = rng.permutation(np.flatnonzero(labels == digit))
    cuts = np.cumsum([round(s * len(rows)) for s in SHARES.values()])[:-1]
    for name, mine in zip(found, np.split(rows, cuts), strict=True):
      found[name].append(mine)
  return {name: np.concatenate(rows) for name, rows in found.items()}


def draw_bag(rows, labels, is_positive, rng):
  """Rows of digits of one bag."""
  size = max(1, round(rng.normal(10, 2)))
  if not is_positive:
    return rng.choice(rows[labels[rows] != WANTED], size)
  while True:  # drawn at random, until there is one
    bag = rng.choice(rows, size)
    if (labels[bag] == WANTED).any():
      return bag


def write_bags(folder, seed):
  """Feature files; slide ids by part, bag labels, digit labels by slide."""
  pictures, labels = datasets.load_digits(return_X_y=True)
  pictures = (pictures / 16).astype(np.float32)
  rng = np.random.default_rng(seed)
  parts = part_digits(labels, rng)
  ids, bag_labels, digits = {}, {}, {}
  for name, count in PARTS.items():
    ids[name] = [f"{name}{i:03d}" for i in range(count)]
    bag_labels[name] = (np.arange(count) % 2).astype(float)[:, None]
    for slide_id, label in zip(ids[name], bag_labels[name][:, 0], strict=True):
      rows = draw_bag(parts[name], labels, label > 0, rng)
      digits[slide_id] = labels[rows] == WANTED
      xy = np.stack([np.arange(len(rows)), 0 * rows], axis=1) * 8.0
      tiles = tile_features.TileFeatures(slide_id, pictures[rows], xy, 8.0)
      tile_features.write(folder / f"{slide_id}.h5", tiles)
  return ids, bag_labels, digits


def auroc(truth, score):
  return float(metrics.roc_auc_score(truth, score))


def run_seed(name, rate, data, seed, epochs):
  """Trains one model; returns it with its lowest validation loss."""
  bags, ids, labels, _ = data
  model = mil.configure(name, width=bags.width)
  settings = BagFitSettings(lr=rate, epochs=epochs)
  trainer = BagTrainer(model, "binary", settings)
  fitted = trainer.fit(
    bags, ids["train"], labels["train"], ids["val"], labels["val"], seed
  )
  return trainer, fitted, fitted.history[fitted.epoch - 1][1]


def score(trainer, fitted, data):
  """Scores of a chosen model on the test bags."""
  bags, ids, labels, digits = data
  params = trainer.put(fitted.params)
  logits = trainer.logits(params, bags, ids["test"])[:, 0]
  truth, positive = [], []
  maps = {"attention": [], "contribution": [], "probability": []}
  for slide_id, label in zip(ids["test"], labels["test"][:, 0], strict=True):
    (output,) = trainer.explain([params], bags, bags.read(slide_id))
    truth.append(digits[slide_id])
    positive.append(np.full(len(digits[slide_id]), label > 0))
    maps["attention"].append(output.attention[:, 0])
    maps["contribution"].append(output.contribution[:, 0])
    maps["probability"].append(output.instance_logits[:, 0])
  truth, positive = np.concatenate(truth), np.concatenate(positive)
  found = {"bags": auroc(labels["test"][:, 0], logits), "epoch": fitted.epoch}
  for kind, values in maps.items():
    values = np.concatenate(values)
    found[f"digits_{kind}"] = auroc(truth, values)
    found[f"inside_{kind}"] = auroc(truth[positive], values[positive])
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--models", default="gated,attention")
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--epochs", type=int, default=100)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=harness.RESULTS / "mil_digits.json",
  )
  args = parser.parse_args()
  start = time.perf_counter()
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    data = []
    for seed in range(args.seeds):
      place = pathlib.Path(folder, str(seed))
      place.mkdir()
      ids, labels, digits = write_bags(place, seed)
      bags = Bags(str(place), [s for part in ids.values() for s in part])
      data.append((bags, ids, labels, digits))
    for name in args.models.split(","):
      tried = {}
      for rate in RATES:
        tried[rate] = [
          run_seed(name, rate, one, seed, args.epochs)
          for seed, one in enumerate(data)
        ]
      losses = {
        rate: float(np.mean([t[2] for t in each]))
        for rate, each in tried.items()
      }
      best = min(losses, key=losses.get)
      rows = [
        score(trainer, fitted, one)
        for (trainer, fitted, _), one in zip(tried[best], data, strict=True)
      ]
      found[name] = {
        "lr": best,
        "validation_loss": {f"{rate:g}": v for rate, v in losses.items()},
        "seeds": rows,
        **{
          key: harness.mean_std([row[key] for row in rows]) for key in rows[0]
        },
      }
      line = ", ".join(
        f"{key} {harness.show(found[name][key])}" for key in rows[0]
      )
      print(f"{name} (lr {best:g}): {line}", flush=True)
  system = {
    "cpu": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
  }
  result = {
    "bags": PARTS,
    "rates": RATES,
    "seeds": args.seeds,
    "models": found,
    "seconds": round(time.perf_counter() - start, 1),
    "system": system,
  }
  harness.write_result(args.out, result)


if __name__ == "__main__":
  main()
