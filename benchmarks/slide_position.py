r"""Does knowing positions along the tissue help? On real slides.

    python benchmarks/slide_position.py --slides=SLIDES --table=slides.csv

Walks of 12 windows of 51 um, side by side, are cut from every slide
at 1.06 um/px. Methods of demo size are pretrained on them, with several seeds:
blind to position (csimclr, cvrl) and told the position of each frame along the
walk in um (csimclr_te and tvrl with `model.relative_time=False`, ltn), beside
an untrained network and the mean colour of the frames.

Scores, each from features that do not know to which slide they belong:

- `duodenum_by_case`: sequences are classified by their 20 nearest neighbours
  (cosine) among sequences of *other cases* as duodenum, the one organ with
  several cases, or not; balanced accuracy, each slide counting alike (0.5 is
  chance);
- `organ_by_slide`: the same for all organs with at least two slides, with only
  the slide itself left out: slides of one case may vote for each other;
- `distance`: how well the distance between two frames of a walk (log um) is
  predicted by ridge regression from |f_i - f_j|, the difference of their
  *frame* features, which no method tells the position: R2 on cases that the
  regression was not fitted on (5 folds).

Pretraining sees all slides, without labels; all methods alike. Everything
resumes. Writes `benchmarks/results/slide_position.json`.
"""

import argparse
import csv
import json
import pathlib

import frozen_features
import harness
import numpy as np
from sklearn import linear_model, metrics, model_selection, preprocessing

from data_prep import records

AWARE = ("--config.model.relative_time=False", "--config.data.time_jitter=0.0")
METHODS = {
  "csimclr": (),
  "cvrl": (),
  "csimclr_te": AWARE,
  "tvrl": AWARE,
  "ltn": AWARE[1:],
}
NEIGHBOURS = 20
PAIRS = 40  # of frames, of each walk


def embed(work, method, seed, steps):
  """All splits' arrays of one run."""
  folder = work / f"{method}_{seed}_{steps}"
  return frozen_features.embed(
    folder,
    steps,
    f"--config=configs/contrastive.py:{method},demo",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.seed={seed}",
    "--config.data.image_px=(48,48)",
    "--config.embed.tokens=True",
    *METHODS[method],
    log=folder / "log.txt",
  )


def mean_colours(work, arrays):
  """Mean colour of each frame that was looked at, in the arrays' order."""
  found = {}
  for record in frozen_features.read_records(work / "prep" / "shards"):
    panels = records.decode_panels(record)
    found[record.sequence_id] = panels.reshape(len(panels), -1, 3).mean(1)
  rows = zip(arrays["sequence_id"], arrays["frames"], strict=True)
  return np.stack([found[str(name)][frames] for name, frames in rows])


def neighbour_score(features, organ, slide, left_out):
  """Balanced accuracy of the vote of neighbours of other groups."""
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  similarity = unit @ unit.T
  similarity[left_out[:, None] == left_out[None, :]] = -np.inf
  names = np.unique(organ)
  nearest = np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]
  votes = np.stack([(organ[nearest] == n).sum(1) for n in names], axis=1)
  # Organs with more slides must not win by number.
  share = np.array([(organ == n).mean() for n in names])
  guess = names[np.argmax(votes / share, axis=1)]
  # Each slide counts alike.
  right = {s: (guess == organ)[slide == s].mean() for s in np.unique(slide)}
  organs = {s: organ[slide == s][0] for s in right}
  return float(
    np.mean(
      [np.mean([right[s] for s in right if organs[s] == n]) for n in names]
    )
  )


def distance_score(tokens, xy_um, case):
  """R2 of log distances from differences of frame features."""
  rng = np.random.default_rng(0)
  n, t, _ = tokens.shape
  rows = np.repeat(np.arange(n), PAIRS)
  i = rng.integers(0, t, len(rows))
  j = (i + rng.integers(1, t, len(rows))) % t
  x = np.abs(tokens[rows, i] - tokens[rows, j])
  y = np.log(np.linalg.norm(xy_um[rows, i] - xy_um[rows, j], axis=1))
  guess = np.zeros(len(y))
  folds = model_selection.GroupKFold(5)
  for fit, test in folds.split(x, y, case[rows]):
    scaler = preprocessing.StandardScaler().fit(x[fit])
    ridge = linear_model.RidgeCV(np.logspace(-1, 5, 7))
    ridge.fit(scaler.transform(x[fit]), y[fit])
    guess[test] = ridge.predict(scaler.transform(x[test]))
  return float(metrics.r2_score(y, guess))


def score(name, seed, features, tokens, arrays, table):
  """A row of the result."""
  slide = arrays["slide_id"].astype(str)
  organ = np.array([table[s]["organ"] for s in slide])
  case = np.array([table[s]["patient_id"] for s in slide])
  row = {"features": name, "seed": seed, "sequences": len(slide)}
  stated = ~np.isin(organ, ("not stated", "none"))
  # One organ has several cases. It is told from all others.
  common = np.where(organ == "duodenum", "duodenum", "other")
  row["duodenum_by_case"] = neighbour_score(
    features[stated], common[stated], slide[stated], case[stated]
  )
  slides = {o: len(np.unique(slide[organ == o])) for o in np.unique(organ)}
  several = stated & np.array([slides[o] >= 2 for o in organ])
  row["organ_by_slide"] = neighbour_score(
    features[several], organ[several], slide[several], slide[several]
  )
  row["organs"] = sorted({str(o) for o in organ[several]})
  # From level 0 to um; the walk's own scale is stored with each sequence.
  um = arrays["frame_level0_xy"] * arrays["level0_mpp"][:, None, None]
  row["distance_r2"] = distance_score(tokens, um, case)
  return row


def level0_mpp(work, arrays):
  """Micrometres per level-0 pixel of each sequence's slide."""
  with (work / "prep" / "slides.csv").open() as file:
    scale = {r["slide_id"]: float(r["mpp"]) for r in csv.DictReader(file)
             if r["mpp"]}  # fmt: skip
  return np.array([scale[str(s)] for s in arrays["slide_id"]])


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--slides", required=True)
  parser.add_argument("--table", required=True)
  parser.add_argument("--work", default="out/slide_position")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=400)
  args = parser.parse_args()
  work = pathlib.Path(args.work).resolve()
  with open(args.table) as file:
    table = {row["slide_id"]: row for row in csv.DictReader(file)}
  harness.prepare_slides(
    work, args.slides, args.table,
    "--config.sequence.geometry=walk", "--config.sequence.frames=12",
    "--config.sequence.step_um=0.0", "--config.sequence.spacing_um=250.0",
    "--config.sequence.max_centres=32",
    "--config.sequence.all_headings=False",
  )  # fmt: skip
  rows = []
  for seed in range(args.seeds):
    for method, steps in [("csimclr", 0), *((m, args.steps) for m in METHODS)]:
      arrays = embed(work, method, seed, steps)
      arrays["level0_mpp"] = level0_mpp(work, arrays)
      name = method if steps else "untrained"
      if not rows:
        colour = mean_colours(work, arrays)
        rows.append(
          score("mean colour", 0, colour.mean(1), colour, arrays, table)
        )
        print(json.dumps(rows[-1]), flush=True)
      rows.append(
        score(name, seed, arrays["features"], arrays["tokens"], arrays, table)
      )
      print(json.dumps(rows[-1]), flush=True)
  keys = ("duodenum_by_case", "organ_by_slide", "distance_r2")
  summary = frozen_features.summarise(rows, keys)
  result = {"steps": args.steps, "summary": summary, "runs": rows}
  harness.write_result(harness.RESULTS / "slide_position.json", result)


if __name__ == "__main__":
  main()
