r"""Regions of breast cancer: tumour found from labels of crops alone.

    python benchmarks/mil_bcss.py --bcss=folder with 1008.jpg, 1015.jpg, masks

Two regions of BCSS (Amgad et al. 2019, about 0.25 um/px) with tumour masks.
Tiles of 128 px are encoded; bags are crops of 3 x 3 tiles, and a model is only
told of each crop whether it has tumour: yes if the mask fills more than half of
one of its tiles, no if the mask leaves all of them free; other crops are left
out. One region trains (the left 70 % of its columns; the right 30 % are for
validation, crops across the border are left out), the other one is tested, and
the other way round. Five seeds.

Scores of the tested region's tiles, tumour more than half against not: AUROC
and average precision of the probability of a tile by itself. Beside them
logistic regression that is told the label of every *tile* of the training
region: what weak labels cost. Features are standardised by the training region.

There are two patients here: this is an anecdote.
"""

import argparse
import pathlib
import tempfile

import harness
import jax
import numpy as np
from PIL import Image
from sklearn import linear_model, metrics

from wsiseq_jax import encoders
from wsiseq_jax.data import tile_features
from wsiseq_jax.data.bags import Bags
from wsiseq_jax.mil.trainer import BagFitSettings, BagTrainer
from wsiseq_jax.models import mil

REGIONS = ("1008", "1015")
TILE, CROP = 128, 3
MODELS = ("gated", "attention", "instance", "mean", "max")


def read_region(folder, name):
  """Tiles uint8 [rows columns 128 128 3] and their share of tumour."""
  picture = np.asarray(Image.open(folder / f"{name}.jpg").convert("RGB"))
  mask = np.asarray(Image.open(folder / f"{name}_tumor_mask.png")) > 0
  rows, columns = (side // TILE for side in mask.shape)
  picture = picture[: rows * TILE, : columns * TILE]
  mask = mask[: rows * TILE, : columns * TILE]
  tiles = picture.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
  share = mask.reshape(rows, TILE, columns, TILE).mean((1, 3))
  return tiles, share


def features_of(tiles, encoder):
  """One vector a tile, [rows columns d]."""
  rows, columns = tiles.shape[:2]
  flat = tiles.reshape(-1, *tiles.shape[2:])
  if encoder is None:  # mean and deviation of colour
    flat = flat.reshape(len(flat), -1, 3).astype(np.float32)
    found = np.concatenate([flat.mean(1), flat.std(1)], axis=1)
  else:
    program = jax.jit(encoder.apply)
    size = 32
    padded = np.pad(flat, ((0, -len(flat) % size), *(((0, 0),) * 3)))
    parts = [
      np.asarray(program(encoder.params, padded[i : i + size]))
      for i in range(0, len(padded), size)
    ]
    found = np.concatenate(parts)[: len(flat)]
  return found.reshape(rows, columns, -1)


def crops(share, first, last):
  """(row, column, label) of crops between two columns."""
  found = []
  for row in range(share.shape[0] - CROP + 1):
    for column in range(first, last - CROP + 1):
      inside = share[row : row + CROP, column : column + CROP]
      if inside.max() > 0.5 or inside.max() == 0:
        found.append((row, column, float(inside.max() > 0.5)))
  return found


def write_bags(folder, features, share):
  """Feature files of the training region's crops; ids and labels by part."""
  border = round(0.7 * share.shape[1])
  ids, labels = {}, {}
  for part, ends in (("train", (0, border)), ("val", (border, share.shape[1]))):
    ids[part], labels[part] = [], []
    for row, column, label in crops(share, *ends):
      slide_id = f"{part}_{row}_{column}"
      inside = features[row : row + CROP, column : column + CROP]
      y, x = np.mgrid[:CROP, :CROP].reshape(2, -1) * float(TILE)
      tile_features.write(
        folder / f"{slide_id}.h5",
        tile_features.TileFeatures(
          slide_id,
          inside.reshape(CROP * CROP, -1).astype(np.float32),
          np.stack([x, y], axis=1),
          float(TILE),
        ),
      )
      ids[part].append(slide_id)
      labels[part].append([label])
    labels[part] = np.array(labels[part])
  return ids, labels


def scores(truth, score):
  return {
    "auroc": float(metrics.roc_auc_score(truth, score)),
    "ap": float(metrics.average_precision_score(truth, score)),
  }


def one_direction(train, test, regions, features, seeds):
  """Scores of all models trained on one region and tested on the other."""
  shares = {name: regions[name][1] for name in REGIONS}
  known = features[train].reshape(-1, features[train].shape[-1])
  mean, std = known.mean(0), known.std(0)
  scaled = {
    name: (features[name] - mean) / np.maximum(std, 1e-6) for name in REGIONS
  }
  width = known.shape[1]
  truth = shares[test].ravel() > 0.5
  tested = scaled[test].reshape(-1, width).astype(np.float32)
  told = linear_model.LogisticRegression(C=0.01, max_iter=2000).fit(
    scaled[train].reshape(-1, width), shares[train].ravel() > 0.5
  )
  rows = [
    {"model": "told every tile", "seed": 0}
    | scores(truth, told.decision_function(tested))
  ]
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    ids, labels = write_bags(folder, scaled[train], shares[train])
    y, x = np.mgrid[: shares[test].shape[0], : shares[test].shape[1]]
    xy = np.stack([x.ravel(), y.ravel()], axis=1) * float(TILE)
    tile_features.write(
      folder / "test.h5",
      tile_features.TileFeatures("test", tested, xy, float(TILE)),
    )
    bags = Bags(str(folder), [*ids["train"], *ids["val"], "test"])
    for name in MODELS:
      small = {"hidden": 64, "attention_width": 32}
      small = {k: v for k, v in small.items() if k in mil.settings(name)}
      model = mil.configure(name, width=width, **small)
      trainer = BagTrainer(model, "binary", BagFitSettings(lr=1e-3, epochs=40))
      for seed in range(seeds):
        fitted = trainer.fit(
          bags, ids["train"], labels["train"], ids["val"], labels["val"], seed
        )
        params = trainer.put(fitted.params)
        (output,) = trainer.explain([params], bags, bags.read("test"))
        found = scores(truth, output.instance_logits[:, 0])
        rows.append({"model": name, "seed": seed} | found)
  counts = {part: [int(v.sum()), len(v)] for part, v in labels.items()}
  return rows, {"crops with tumour, of all": counts, "share": truth.mean()}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--bcss", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--resnet_weights", default="", help="ImageNet's, a file")
  args = parser.parse_args()
  regions = {name: read_region(args.bcss, name) for name in REGIONS}
  resnet = encoders.load(
    {
      "name": "resnet50_trunc",
      "weights": args.resnet_weights,
      "random_weights": not args.resnet_weights,
      "tile_px": TILE,
    }
  )
  how = "ImageNet" if args.resnet_weights else "random weights"
  result, table = {}, []
  for title, encoder in (
    ("mean and deviation of colour", None),
    (f"resnet50_trunc, {how}", resnet),
  ):
    features = {n: features_of(regions[n][0], encoder) for n in REGIONS}
    for train, test in (REGIONS, REGIONS[::-1]):
      rows, about = one_direction(train, test, regions, features, args.seeds)
      result[f"{title}; {train} to {test}"] = {"about": about, "rows": rows}
      for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        cells = [
          f"{np.mean([r[key] for r in mine]):.3f} ± "
          f"{np.std([r[key] for r in mine], ddof=len(mine) > 1):.3f}"
          for key in ("auroc", "ap")
        ]
        table.append((title, f"{train} to {test}", name, *cells))
        print(" | ".join(table[-1]), flush=True)
  text = {
    "seeds": args.seeds,
    "table": table,
    "runs": result,
    "system": harness.system(),
  }
  harness.write_result(harness.RESULTS / "mil_bcss.json", text)


if __name__ == "__main__":
  main()
