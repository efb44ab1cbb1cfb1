"""Time of the linear probe on cached features, beside scikit-learn's own.

Features with classes are drawn, written to a file as the probe keeps them, and
read again. Then, one after the other in the same process and on the same
features:

- `probe`: what the job `probe` does for one row: reading, standardising, a path
  of up to seven penalties each starting where the last ended, choosing on
  validation, predicting the test split;
- `plain`: `LogisticRegression` of scikit-learn as it comes, once, at its own
  penalty (C = 1), on standardised float64 features;
- `grid`: the same for all penalties of the probe, each from scratch, choosing
  on validation: what a user would write instead of the probe.

    python benchmarks/linear_probe.py [--samples=100000 --width=384]

Writes `benchmarks/results/linear_probe.json`: seconds and test AUROC of each,
their ratios, and the system.
"""

import argparse
import os
import pathlib
import tempfile
import time
import warnings

import harness
import numpy as np
import sklearn
from sklearn import exceptions, linear_model

from wsiseq_jax.metrics import classification
from wsiseq_jax.probe import linear, samples
from wsiseq_jax.probe.samples import ProbeTarget, Samples


def make_split(rng, count, means, strength):
  """Features f32 [n, d] around the means of their classes, and labels."""
  labels = rng.integers(0, len(means), count)
  noise = rng.standard_normal((count, means.shape[1]), np.float32)
  # Channels of very different scale, as encoders have.
  scale = np.geomspace(0.1, 10, means.shape[1], dtype=np.float32)
  return ((strength * means[labels] + noise) * scale), labels


def as_samples(path):
  with np.load(path) as file:
    labels = file["labels"].astype(np.float32)
    rows = np.arange(len(labels))
    return Samples(labels, rows, rows, file["features"])


def auroc(labels, probability):
  return float(
    classification.scores(labels.astype(int), probability)["auroc"][0]
  )


def fit(x, labels, penalty):
  model = linear_model.LogisticRegression(C=penalty, max_iter=100)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    return model.fit(x, labels.astype(int))


def timed(function):
  start = time.perf_counter()
  result = function()
  return time.perf_counter() - start, result


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--samples", type=int, default=100_000)
  parser.add_argument("--width", type=int, default=384)
  parser.add_argument("--classes", type=int, default=10)
  parser.add_argument("--strength", type=float, default=0.15)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=harness.RESULTS / "linear_probe.json",
  )
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  means = rng.standard_normal((args.classes, args.width), np.float32)
  counts = {
    "train": args.samples, "val": args.samples // 10,
    "test": args.samples // 10,
  }  # fmt: skip
  target = ProbeTarget("class", 0, tuple(map(str, range(args.classes))))
  with tempfile.TemporaryDirectory() as folder:
    paths = {}
    for name, count in counts.items():
      x, labels = make_split(rng, count, means, args.strength)
      paths[name] = pathlib.Path(folder, f"{name}.npz")
      np.savez(paths[name], features=x, labels=labels)

    def whole_probe():
      splits = [as_samples(paths[name]) for name in counts]
      return splits, linear.run(*splits, target)

    seconds, (splits, outcome) = timed(whole_probe)
  train, validation, test = splits
  found = {
    "probe": {
      "seconds": seconds,
      "auroc": auroc(test.labels, outcome.prediction),
      "penalty": outcome.chosen["penalty"],
    }
  }

  def plain():
    x, x_test = samples.standardise(train.features, test.features)
    return fit(x, train.labels, 1.0).predict_proba(x_test)

  seconds, prediction = timed(plain)
  found["plain"] = {"seconds": seconds, "auroc": auroc(test.labels, prediction)}

  def grid():
    x, x_validation, x_test = samples.standardise(
      train.features, validation.features, test.features
    )
    best = None
    for penalty in linear.PENALTIES:
      model = fit(x, train.labels, 1 / (penalty * len(x)))
      score = auroc(validation.labels, model.predict_proba(x_validation))
      if best is None or score > best[0]:
        best = (score, model.predict_proba(x_test))
    return best[1]

  seconds, prediction = timed(grid)
  found["grid"] = {"seconds": seconds, "auroc": auroc(test.labels, prediction)}
  ratios = {
    name: round(found[name]["seconds"] / found["probe"]["seconds"], 2)
    for name in ("plain", "grid")
  }
  result = {
    "samples": counts,
    "width": args.width,
    "classes": args.classes,
    "results": found,
    "times_as_long_as_the_probe": ratios,
    "scikit_learn": sklearn.__version__,
    "system": harness.system(),
    "cpus": os.cpu_count(),
  }
  print(harness.write_result(args.out, result))


if __name__ == "__main__":
  main()
