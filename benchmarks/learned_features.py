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

import frozen_features
import harness
import numpy as np

from data_prep import records
from data_prep.synthetic import slides
from wsiseq_jax.probe import separability
from wsiseq_jax.search import clustering

MASKS = ("tissue", "tube")


def embed(work, kind, seed, steps):
  """All splits' arrays of one run, and its losses."""
  run = work / f"{kind}_{seed}_{steps}"
  arrays = frozen_features.embed(
    run,
    steps,
    "--config=configs/videomae.py:demo",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.seed={seed}",
    f"--config.mask.kind={kind}",
  )
  losses = []
  log = run / "metrics.jsonl"
  if log.exists():
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [r["train/loss"] for r in rows if "train/loss" in r]
  return arrays, losses


def types_of(work, arrays):
  """Tissue type of each sequence, -1 where it has none."""
  return slides.sequence_types(
    work / "slides" / "truth", arrays["slide_id"], arrays["frame_level0_xy"]
  )


def mean_colours(shards, sequence_ids):
  """Mean of each channel over the stored strip of a sequence."""
  found = {}
  for record in frozen_features.read_records(shards):
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
  slides.make_cohort(work / "slides", args.slides, args.patients)
  harness.call(
    "-m",
    "data_prep",
    "--config=configs/prep_wsi.py:demo",
    f"--config.slides={work / 'slides'}",
    f"--config.out={work / 'prep'}",
    good=harness.SOME_REFUSED,
  )
  rows = []

  def score(name, seed, features, arrays, losses=()):
    labels = types_of(work, arrays)
    keep = labels >= 0
    clusters = clustering.kmeans(features[keep], clusters=16, seed=seed)
    recall = separability.recalls(
      features[keep], labels[keep], arrays["patient_id"][keep]
    )
    recall = list(recall.values())
    row = {
      "features": name,
      "seed": seed,
      "nmi": clustering.mutual_information(clusters.assignment, labels[keep]),
      "balanced_accuracy": float(np.mean(recall)),
      "chance": 1 / len(recall),
      "recall": [round(r, 4) for r in recall],
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
      colours = mean_colours(work / "prep" / "shards", arrays["sequence_id"])
    score("mean colour", seed, colours, arrays)
    for kind in MASKS:
      arrays, losses = embed(work, kind, seed, args.steps)
      score(kind, seed, arrays["features"], arrays, losses)

  labels = types_of(work, arrays)
  names, counts = np.unique(labels[labels >= 0], return_counts=True)
  result = {
    "steps": args.steps,
    "slides": args.slides,
    "patients": args.patients,
    "sequences": {
      slides.texture.TISSUE_TYPES[k]: int(n)
      for k, n in zip(names, counts, strict=True)
    },
    "summary": frozen_features.summarise(rows, ("nmi", "balanced_accuracy")),
    "runs": rows,
  }
  harness.write_result(harness.RESULTS / "learned_features.json", result)


if __name__ == "__main__":
  main()
