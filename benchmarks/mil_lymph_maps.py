r"""Why the maps of some bag models rank tumour below everything else.

    python benchmarks/mil_lymph_maps.py --work=out/mil_lymph_nodes

Reads what `mil_lymph_nodes.py` left in its work folder, trains nothing. A tile
is unusual if its features, standardised over the cohort, are long: `length` is
their Euclidean norm. For each model, mean and deviation over seeds:

- `tile_auroc`: tumour tiles (a quarter of tumour or more) against those with
  none, by the map's probability, over all slides;
- `within_slide`: the same inside each slide with tumour, averaged;
- `with_length`: rank correlation of a tile's probability with its length inside
  a slide, averaged over slides: -1 says that a model calls the more ordinary
  tile the more suspicious;
- `length_auroc`, of the features alone: tumour tiles told by their length.

Writes `benchmarks/results/mil_lymph_maps.json`.
"""

import argparse
import json
import pathlib

import harness
import mil_lymph_scores as lymph
import numpy as np
from scipy import stats
from sklearn import metrics

from wsiseq_jax.data import tile_features
from wsiseq_jax.maps.tile_map import TileMap


def tiles_of(known, slide, features):
  """Length and kind of a slide's tiles: 1 tumour, 0 none, -1 in between."""
  share = known[slide].share(features)
  kind = np.where(share >= lymph.LEAST_TUMOUR, 1, np.where(share > 0, -1, 0))
  return np.linalg.norm(features.features, axis=1), kind


def auroc(kind, score):
  """Of tumour tiles against those with none; the others are left out."""
  use = kind >= 0
  return float(metrics.roc_auc_score(kind[use] == 1, score[use]))


def score_maps(folder, tiles):
  """Scores of one seed of one model."""
  score, kinds, within, ranks = [], [], [], []
  for slide, (length, kind) in tiles.items():
    values = TileMap.load(folder / f"{slide}.npz").probability
    score.append(values)
    kinds.append(kind)
    ranks.append(stats.spearmanr(values, length)[0])
    if (kind == 1).any() and (kind == 0).any():
      within.append(auroc(kind, values))
  return {
    "tile_auroc": auroc(np.concatenate(kinds), np.concatenate(score)),
    "within_slide": float(np.mean(within)),
    "with_length": float(np.mean(ranks)),
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--work", default="out/mil_lymph_nodes")
  args = parser.parse_args()
  work = pathlib.Path(args.work)
  known, result = lymph.read_truth(work), {}
  for name in ("resnet50_trunc_random", "sequence"):
    files = tile_features.find(work / "features" / name)
    tiles = {
      slide: tiles_of(known, slide, tile_features.read(path))
      for slide, path in files.items()
    }
    length, kind = (
      np.concatenate(x) for x in zip(*tiles.values(), strict=True)
    )
    models = {}
    for folder in sorted((work / "mil" / name).iterdir()):
      seeds = [score_maps(s / "maps", tiles) for s in folder.glob("seed_*")]
      models[folder.name] = {
        key: harness.mean_std([s[key] for s in seeds], digits=3)
        for key in seeds[0]
      }
      print(name, folder.name, json.dumps(models[folder.name]), flush=True)
    result[name] = {
      "tiles": len(kind),
      "length_auroc": round(auroc(kind, length), 3),
      "models": models,
    }
  harness.write_result(harness.RESULTS / "mil_lymph_maps.json", result)


if __name__ == "__main__":
  main()
