r"""How right are the labels of pixels that stages leave to learn from?

    python benchmarks/segment_labels.py --work=out/segment_table

Takes the runs of `irn` that `segment_table.py` left in its folder, compares
labels of training pictures that show tumour with their masks, which nothing
learned from, and prints share, precision and recall of tissue that is called
foreground and background, mean, std and 95 % interval over cohorts. Beside the
stages stand class maps cut at other thresholds. Writes
`benchmarks/results/segment_labels.json`.
"""

import argparse
import pathlib

import harness
import numpy as np
import pretrain_table
import segment_runs
from absl import flags

from wsiseq_jax.segment import decide
from wsiseq_jax.segment.maps import Maps
from wsiseq_jax.segment.pictures import Pictures

STAGES = ("cam", "crf", "walk")
# Class maps as they are: scores, foreground from, background below.
CUTS = {
  "absolute, 0.5 and 0.25": ("scores", 0.5, 0.25),
  "absolute, 0.3 and 0.2": ("scores", 0.3, 0.2),
  "per image, 0.3 and 0.05": ("image_scores", 0.3, 0.05),
}


def labels_of(run, picture):
  """Labels of a training picture by name: 0, 1 and 255, not decided."""
  found = {}
  for stage in STAGES:
    maps = Maps(run / stage / "maps" / "train").read(picture.id)
    found[stage] = maps["classes"]
    if stage == "cam":
      for name, (scores, high, low) in CUTS.items():
        enlarged = decide.enlarge(maps[scores], picture.truth.shape)
        found[name] = decide.classes_of(enlarged, picture.tissue, high, low)
  return found


def quality(run, data):
  """Scores of a run's labels by name."""
  train, counts = Pictures(data, "train"), {}
  for number in np.flatnonzero(train.labels[:, 0] == 1):
    picture = train.picture(int(number))
    known = (picture.tissue > 0) & (picture.truth < decide.UNDECIDED)
    for name, labels in labels_of(run, picture).items():
      table = counts.setdefault(name, np.zeros((2, 3)))
      for truth in (0, 1):
        for at, label in enumerate((0, 1, decide.UNDECIDED)):
          table[truth, at] += (
            known & (picture.truth == truth) & (labels == label)
          ).sum()
  found = {}
  for name, table in counts.items():
    found[name] = {}
    for side, title in ((1, "foreground"), (0, "background")):
      right, called = table[side, side], table[:, side].sum()
      found[name] |= {
        f"{title} share": called / table.sum(),
        f"{title} precision": right / max(called, 1),
        f"{title} recall": right / table[side].sum(),
      }
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--work", type=pathlib.Path, default="out/segment_table")
  args = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # Grain reads them
  rows = [r for r in segment_runs.finished(args.work) if r["variant"] == "irn"]
  each = {}
  for row in rows:
    data = args.work / "data" / f"{row['pictures']}_{row['px']}_{row['seed']}"
    data = data.with_name(f"{data.name}_labelled")
    each[row["seed"]] = quality(args.work / row["name"], data)
  if not each:
    raise SystemExit(f"no finished run of irn in {args.work}")
  result = {
    name: {
      score: pretrain_table.over_seeds(
        [one[name][score] for one in each.values()]
      )
      for score in scores
    }
    for name, scores in next(iter(each.values())).items()
  }
  for name, scores in result.items():
    pretrain_table.show([name], scores)
  found = {"cohorts": sorted(each), "labels": result}
  harness.write_result(harness.RESULTS / "segment_labels.json", found)


if __name__ == "__main__":
  main()
