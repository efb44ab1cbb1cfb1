"""What motion-aligned tubes do to the features, on slides whose truth is known.

Synthetic slides carry their tissue types, which differ by structure while
their mean colours overlap. Encoders of demo size are pretrained with masks
that follow the tissue and with tubes fixed in the image, and compared with an
untrained encoder and with the mean colour of the clip:

- `nmi`: k-means (k = 16) of L2-normalised features against tissue types;
- `balanced_accuracy`: logistic regression on standardised features, tested on
  patients it was not fitted on (5 folds grouped by patient).

The label of a sequence is the commonest tissue type under its frame centres;
sequences on which fewer than 60 % of the centres agree are left out. All kinds
see the same sequences. Seeds change initialisation, masks, order of the data
and k-means; the slides stay.

    python benchmarks/learned_features.py --work=out/learned_features

Everything resumes: finished runs are not repeated. Writes
`benchmarks/results/learned_features.json`.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

from data_prep import records, synthetic
from wsiseq_jax.data import source as sources
from wsiseq_jax.evals import clustering

ROOT = pathlib.Path(__file__).resolve().parents[1]
MASKS = ("tissue", "tube")


def call(*arguments):
  """Runs a command of the README in the checkout; 3 = slides refused."""
  done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False)
  if done.returncode not in (0, 3):
    raise SystemExit(f"{' '.join(arguments)} failed ({done.returncode})")


def embed(work, kind, seed, steps):
  """Trains (0 steps: not at all) and embeds; returns all splits' arrays."""
  run = work / f"{kind}_{seed}_{steps}"
  common = [
    "main.py",
    "--config=configs/videomae.py:demo",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.workdir={run}",
    f"--config.seed={seed}",
    f"--config.mask.kind={kind}",
    f"--config.optim.total_steps={max(steps, 1)}",
  ]
  if not steps:
    # One step at a rate of 0 leaves the weights as they were initialised.
    common += [
      "--config.optim.warmup_steps=0",
      "--config.optim.lr_per_256=0.0",
      "--config.optim.min_lr_per_256=0.0",
    ]
  call(*common)
  call(*common, "--config.job=embed")
  parts = []
  for path in sorted((run / "embeddings").glob("*.npz")):
    with np.load(path) as file:
      parts.append({k: file[k] for k in file.files})
  joined = {
    k: np.concatenate([p[k] for p in parts])
    for k in parts[0]
    if parts[0][k].ndim
  }
  order = np.argsort(joined["sequence_id"])
  losses = []
  log = run / "metrics.jsonl"
  if log.exists():
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
  return {k: v[order] for k, v in joined.items()}, losses


def labels_of(arrays, truth_folder):
  """Tissue type of each sequence; -1 where fewer than 60 % of frames agree."""
  frames = np.full(arrays["frame_level0_xy"].shape[:2], -1)
  for slide in np.unique(arrays["slide_id"]):
    truth = synthetic.Truth.load(truth_folder / f"{slide}.npz")
    for i in np.flatnonzero(arrays["slide_id"] == slide):
      frames[i] = truth.tissue_type(arrays["frame_level0_xy"][i])
  return clustering.majority_label(frames, least_share=0.6)


def mean_colours(work, sequence_ids):
  """Mean of each channel over the stored strip of a sequence."""
  found = {}
  folder = work / "prep" / "shards"
  for split in sources.split_names(folder):
    source = sources.RecordSource(folder, split)
    for i in range(len(source)):
      record = source.record(i)
      panels = records.decode_panels(record)
      found[record.sequence_id] = panels.reshape(-1, 3).mean(axis=0)
  return np.stack([found[str(name)] for name in sequence_ids])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--work", default="out/learned_features")
  parser.add_argument("--slides", type=int, default=18)
  parser.add_argument("--patients", type=int, default=12)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=500)
  args = parser.parse_args()
  work = pathlib.Path(args.work).resolve()
  synthetic.make_cohort(work / "slides", args.slides, args.patients)
  call(
    "-m",
    "data_prep",
    "--config=configs/prep_wsi.py:demo",
    f"--config.slides={work / 'slides'}",
    f"--config.out={work / 'prep'}",
  )
  rows = []

  def score(name, seed, features, arrays, losses=()):
    labels = labels_of(arrays, work / "slides" / "truth")
    keep = labels >= 0
    clusters = clustering.kmeans(features[keep], clusters=16, seed=seed)
    linear = clustering.linear_separability(
      features[keep], labels[keep], arrays["patient_id"][keep]
    )
    row = {
      "features": name,
      "seed": seed,
      "nmi": clustering.mutual_information(clusters.assignment, labels[keep]),
      "balanced_accuracy": linear.balanced_accuracy,
      "chance": linear.chance,
      "recall": [round(r, 4) for r in linear.recall],
      "sequences": int(keep.sum()),
      "first_loss": losses[0] if len(losses) else None,
      "last_loss": losses[-1] if len(losses) else None,
    }
    rows.append(row)
    print(json.dumps(row), flush=True)

  for seed in range(args.seeds):
    arrays, _ = embed(work, "tissue", seed, 0)
    score("untrained", seed, arrays["features"], arrays)
    if seed == 0:
      colours = mean_colours(work, arrays["sequence_id"])
    score("mean colour", seed, colours, arrays)
    for kind in MASKS:
      arrays, losses = embed(work, kind, seed, args.steps)
      score(kind, seed, arrays["features"], arrays, losses)

  summary = {}
  for name in dict.fromkeys(r["features"] for r in rows):
    mine = [r for r in rows if r["features"] == name]
    summary[name] = {
      key: {
        "mean": round(float(np.mean([r[key] for r in mine])), 4),
        "std": round(float(np.std([r[key] for r in mine], ddof=1)), 4)
        if len(mine) > 1
        else None,
      }
      for key in ("nmi", "balanced_accuracy")
    }
    print(name, summary[name])
  labels = labels_of(arrays, work / "slides" / "truth")
  names, counts = np.unique(labels[labels >= 0], return_counts=True)
  result = {
    "steps": args.steps,
    "slides": args.slides,
    "patients": args.patients,
    "sequences": {
      synthetic.texture.TISSUE_TYPES[k]: int(n)
      for k, n in zip(names, counts, strict=True)
    },
    "summary": summary,
    "runs": rows,
  }
  out = ROOT / "benchmarks" / "results" / "learned_features.json"
  out.parent.mkdir(exist_ok=True)
  out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
