"""Which methods see how fast something changes, and which only how it looks.

Synthetic subjects (`data_prep.synthetic.series`) have labels that one picture
shows (`last_size`, `shape`, `texture`: appearance) and labels for which one
must know how much time passed between pictures (`growth_rate`, `growth`: rate).
Every method is pretrained on the training subjects without labels, with
several seeds; frozen features are then probed for all labels:

- `linear`: ridge or logistic regression on the features;
- `pooling`: the protocol of the TVRL paper, a new class token in the frozen
  temporal encoder and a linear head (methods with a temporal encoder);
- `attentive`: one learned query over frozen tokens (MAE);
- `supervised`: the same network trained on the labels from nothing: with the
  network of cSimCLR, blind to time, and with that of cSimCLR-TE.

Besides, two ceilings computed from the truth itself: what regression can make
of the sizes in the pictures without and with their times.

    python benchmarks/series_targets.py --work=out/series_targets

Everything resumes: finished runs are not repeated. Writes
`benchmarks/results/series_targets.json`: for each method, label and probe the
score of each seed, mean, standard deviation and a 95 % interval (Student's t
over seeds), and the differences between methods that know time and those that
do not, paired by seed. Scores: R2 for numbers, AUROC for classes.
"""

import argparse
import concurrent.futures
import csv
import itertools
import json
import pathlib

import frozen_features
import growth_r2
import harness
import numpy as np
from scipy import stats

from data_prep.synthetic import series

METHODS = {
  "cvrl": "configs/contrastive.py:cvrl,demo",
  "ltn": "configs/contrastive.py:ltn,demo",
  "csimclr": "configs/contrastive.py:csimclr,demo",
  "csimclr_te": "configs/contrastive.py:csimclr_te,demo",
  "tvrl": "configs/contrastive.py:tvrl,demo",
  "clm": "configs/contrastive.py:clm,demo",
  "mae": "configs/videomae.py:series,demo",
}
KNOW_TIME = ("csimclr_te", "tvrl")
# Also probed as they were initialised.
UNTRAINED = ("csimclr", "csimclr_te")
RATE = ("growth_rate", "growth")
APPEARANCE = ("last_size", "shape", "texture")
# What whole networks are trained for, which takes longest.
SUPERVISED = ("growth_rate", "last_size")
METRICS = {
  "growth_rate": "r2",
  "last_size": "r2",
  "growth": "auroc",
  "shape": "auroc",
  "texture": "auroc",
}


def run_one(work, name, method, seed, steps, is_slow, more):
  """Trains one method with one seed, and probes it; returns its scores."""
  folder = work / f"{name}_{seed}"
  train = [
    "main.py",
    f"--config={METHODS[method]}",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.workdir={folder / 'run'}",
    f"--config.seed={seed}",
    f"--config.optim.total_steps={max(steps, 1)}",
    *more,
  ]
  if not steps:
    train += frozen_features.UNTRAINED
  harness.call(*train, log=folder / "log.txt")
  pooled = "attentive" if method == "mae" else "pooling"
  rows = probe(work, name, seed, tuple(METRICS), ("linear",))
  if is_slow:
    rows += probe(work, name, seed, tuple(METRICS), (pooled,))
  if is_slow and not steps:
    rows += probe(work, name, seed, SUPERVISED, ("supervised",))
  log = folder / "run" / "metrics.jsonl"
  lines = [json.loads(line) for line in log.read_text().splitlines()]
  return rows, {"features": name, "seed": seed, **monitors(lines)}


def probe(work, name, seed, targets, kinds):
  """Scores of one checkpoint on some labels."""
  folder = work / f"{name}_{seed}"
  out = folder / "_".join(("probe", *kinds))
  harness.call(
    "main.py",
    "--config=configs/probe.py",
    f"--config.data.path={work / 'prep' / 'shards'}",
    f"--config.checkpoint.path={folder / 'run' / 'checkpoints'}",
    f"--config.workdir={out}",
    f"--config.probe.targets={targets}",
    f"--config.probe.kinds={kinds}",
    "--config.probe.fractions=(1.0,)",
    f"--config.probe.seeds=({seed},)",
    "--config.probe.resamples=200",
    "--config.fine_tune.epochs=20",
    "--config.fine_tune.warmup_epochs=2",
    "--config.data.threads=1",
    log=folder / "log.txt",
  )
  rows = []
  with (out / "probe.csv").open() as file:
    for row in csv.DictReader(file):
      if row["metric"] == METRICS[row["target"]]:
        rows.append(
          {
            "features": name,
            "seed": seed,
            "target": row["target"],
            "probe": row["probe"],
            "score": float(row["value"]),
          }
        )
  return rows


def monitors(lines):
  """First and last value of what training logged about loss and collapse."""
  found = {}
  for key in sorted(set().union(*lines)):
    values = [line[key] for line in lines if key in line]
    if key.startswith("train/") and isinstance(values[0], float):
      found[key.removeprefix("train/")] = [values[0], values[-1]]
  return found


def summarise(values):
  """Mean, deviation and 95 % interval over seeds."""
  values = np.asarray(values, float)
  mean, n = float(values.mean()), len(values)
  if n < 2:
    return {"mean": round(mean, 4), "seeds": n}
  std = float(values.std(ddof=1))
  half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5
  return {
    "mean": round(mean, 4),
    "std": round(std, 4),
    "low": round(mean - half, 4),
    "high": round(mean + half, 4),
    "seeds": n,
  }


def ceilings(count):
  """R2 of the growth rate from true sizes, without and with times."""
  subjects = series.make_subjects(count, seed=0)
  return {
    "time_blind_r2": growth_r2.time_blind_r2(subjects),
    "time_aware_r2": growth_r2.time_aware_r2(subjects),
  }


def tables(rows):
  """Scores by features, label and probe, and paired differences."""
  scores = {}
  for row in rows:
    key = (row["probe"], row["target"], row["features"])
    scores.setdefault(key, {})[row["seed"]] = row["score"]
  summary = {}
  for (probe, target, name), found in sorted(scores.items()):
    block = summary.setdefault(probe, {}).setdefault(target, {})
    block[name] = summarise(list(found.values()))
  differences = {}
  for (probe, target, name), mine in sorted(scores.items()):
    if name not in KNOW_TIME:
      continue
    # MAE has no temporal encoder: its attentive probe stands opposite.
    others = {
      other: scores.get((probe, target, other))
      or scores.get(("attentive", target, other))
      for other in METHODS
      if other not in (*KNOW_TIME, "clm")
    }
    blind = scores.get(("supervised", target, "untrained csimclr"))
    others["supervised, blind to time"] = blind
    for other, theirs in others.items():
      shared = sorted(set(mine) & set(theirs or ()))
      if shared:
        differences.setdefault(probe, {}).setdefault(target, {})[
          f"{name} - {other}"
        ] = summarise([mine[s] - theirs[s] for s in shared])
  return summary, differences


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--work", default="out/series_targets")
  parser.add_argument("--subjects", type=int, default=2000)
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument(
    "--slow_seeds",
    type=int,
    default=5,
    help="seeds that also get the pooling probe and the supervised networks",
  )
  parser.add_argument("--methods", nargs="*", default=list(METHODS))
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument(
    "--set", nargs="*", default=[], help="more --config.x=y for contrastive"
  )
  args = parser.parse_args()
  work = pathlib.Path(args.work).resolve()
  harness.call(
    "-m", "data_prep.synthetic.series",
    f"--out={work / 'series'}", f"--subjects={args.subjects}",
    log=work / "log.txt",
  )  # fmt: skip
  harness.call(
    "-m", "data_prep",
    "--config=configs/prep_series.py:demo",
    f"--config.csv={work / 'series' / 'series.csv'}",
    f"--config.out={work / 'prep'}", "--config.workers=0",
    log=work / "log.txt",
  )  # fmt: skip
  jobs = []
  for seed, method in itertools.product(range(args.seeds), args.methods):
    more = [] if method == "mae" else args.set
    is_slow = seed < args.slow_seeds
    jobs.append((work, method, method, seed, args.steps, is_slow, more))
    if method in UNTRAINED:
      name = f"untrained {method}"
      jobs.append((work, name, method, seed, 0, is_slow, more))
  known = ceilings(args.subjects)
  print(known, flush=True)
  rows, training = [], []
  with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
    for job, (found, curve) in zip(
      jobs, pool.map(lambda job: run_one(*job), jobs), strict=True
    ):
      rows += found
      training.append(curve)
      best = {(r["target"], r["probe"]): round(r["score"], 3) for r in found}
      print(job[1], job[3], best, flush=True)
      write(args, known, rows, training)


def write(args, known, rows, training):
  """Writes the result of what is finished."""
  summary, differences = tables(rows)
  result = {
    "subjects": args.subjects,
    "steps": args.steps,
    "settings": args.set,
    "rate_targets": RATE,
    "appearance_targets": APPEARANCE,
    "metrics": METRICS,
    "ceilings": known,
    "summary": summary,
    "differences": differences,
    "runs": rows,
    "training": training,
  }
  harness.write_result(harness.RESULTS / "series_targets.json", result)


if __name__ == "__main__":
  main()
