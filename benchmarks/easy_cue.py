r"""Which rule of selection finds a cue that is easy to see?

    python benchmarks/easy_cue.py [--seeds 0 1 2]

Pictures of 64 px have a checkered square where they are positive, and all have
a striped square and a tint of their own: a cue that neither colour nor mean
tells, and a decoy. A class map (`cam`) and classifiers of cells, by each rule,
train on 4,800 of them, drawn afresh, with the `small` backbone at a stride of
8; 64 others are scored. Area under the ROC curve

- of pictures, by their logit;
- of pixels in positive pictures, and in all, by the class map as it is.

Written to `benchmarks/results/easy_cue.json`: each seed, and mean and std. What
is found here says that a rule can work at all, not what it is worth on tissue.
"""

import argparse
import functools
import itertools

import harness
import jax
import numpy as np
from sklearn.metrics import roc_auc_score

from wsiseq_jax import fit, parallel
from wsiseq_jax.models import conv
from wsiseq_jax.segment import cam, lattice
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.training import StageFit

PX, BATCH, STEPS, EPOCHS = 64, 16, 20, 15
BACKBONE = Backbone(channels=(8, 8, 12, 16, 16))
FIT = StageFit(lr=5e-3, epochs=EPOCHS, warmup_epochs=0).settings()
MESH = parallel.make_mesh(1, jax.devices()[:1])
CAM = cam.Cam(level=3)
# Rules, weight of the bag's own loss, and whose selections teach; none is its
# own.
RULES = {
  "max_max": (("max_max",), 0.0, ()),
  "max_min": (("max_min",), 0.0, ()),
  "quantile": (("quantile",), 0.0, ()),
  "max_max and max_min, taught by each": (
    ("max_max", "max_min"),
    0.0,
    ("max_max", "max_min"),
  ),
  "max_min + bag": (("max_min",), 0.5, ()),
  "quantile + bag": (("quantile",), 0.5, ()),
  "quantile, taught by max_max": (("quantile",), 0.0, ("max_max",)),
  "quantile, taught by quantile + bag": (
    ("quantile",),
    0.0,
    ("quantile + bag",),
  ),
}


def draw(rng, count):
  """Pictures, labels and masks."""
  i, j = np.mgrid[:PX, :PX]
  check = 40.0 * ((i // 3 + j // 3) % 2) - 20
  stripes = 40.0 * ((i // 3) % 2) - 20
  pixels = rng.normal(170, 12, (count, PX, PX, 3))
  pixels *= rng.uniform(0.8, 1.1, (count, 1, 1, 3))
  labels = (rng.random((count, 1)) < 0.65).astype(np.float32)
  truth = np.zeros((count, PX, PX), np.uint8)
  for row in range(count):
    kinds = ((stripes, 12, 24), (check, 16, 28))[: 1 + int(labels[row, 0])]
    for pattern, low, high in kinds:
      side = rng.integers(low, high)
      y, x = rng.integers(0, PX - side, 2)
      where = np.s_[y : y + side, x : x + side]
      pixels[row][where] += pattern[where][..., None]
      if pattern is check:
        truth[row][where] = 1
  return {
    "pixels": pixels.clip(0, 255).astype(np.uint8),
    "labels": labels,
    "truth": truth,
    "tissue": np.ones((count, PX, PX), np.uint8),
    "index": np.arange(count, dtype=np.int32),
    "mask": np.ones(count, np.float32),
  }


def put(batch):
  return jax.device_put(batch, parallel.batch_sharding(MESH))


def data_of(seed, val):
  def train(start):
    for step in itertools.count(start):
      yield put(draw(np.random.default_rng([seed, 1, step]), BATCH))

  def whole():
    yield put(val)

  return fit.Data(STEPS, train, whole)


def scores(classify, params, frozen, val):
  """Areas under the curve of pictures and pixels."""
  seen = val["pixels"], val["tissue"]
  maps, logits = jax.jit(classify)(params, frozen, *seen)
  maps = np.asarray(conv.resize(maps, (PX, PX)))[..., 0]
  has = val["labels"][:, 0] > 0
  truth = val["truth"]
  return {
    "pictures": roc_auc_score(val["labels"], logits),
    "pixels_positive": roc_auc_score(truth[has].ravel(), maps[has].ravel()),
    "pixels": roc_auc_score(truth.ravel(), maps.ravel()),
  }


def of_seed(seed):
  """Trains every method on pictures of a seed."""
  val = draw(np.random.default_rng([seed, 2]), 64)
  data, frozen = data_of(seed, val), BACKBONE.start(seed)
  validate = functools.partial(cam.validate, val["labels"])

  def fitted(model, known, first):
    trainer = fit.Trainer(model, FIT, MESH, known)
    return trainer.fit(data, validate, first).params

  taught = {}
  params = fitted(CAM.model(BACKBONE, 1), frozen, seed)
  yield "cam", scores(CAM.classify(BACKBONE), params, frozen, val)
  for number, (name, (rules, weight, teachers)) in enumerate(RULES.items()):
    stage = lattice.Lattice(
      cell_px=16, level=3, rules=rules, rounds=0, bag_weight=weight
    )
    known = {"backbone": frozen, "teachers": [taught[t] for t in teachers]}
    model = lattice.network(stage, BACKBONE, 1, rules)
    taught[name] = fitted(model, known, seed + 1000 * number)
    found = scores(stage.classify(BACKBONE), taught[name], frozen, val)
    yield f"cells, {name}", found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
  seeds = parser.parse_args().seeds
  every = {}
  for seed in seeds:
    for name, one in of_seed(seed):
      every.setdefault(name, []).append(one)
      print(seed, name, {k: round(v, 3) for k, v in one.items()}, flush=True)
    result = {
      name: {k: harness.mean_std([o[k] for o in each], 4) for k in each[0]}
      for name, each in every.items()
    }
    harness.write_result(
      harness.RESULTS / "easy_cue.json",
      {"seeds": seeds[: seeds.index(seed) + 1], "auroc": result, "runs": every},
    )


if __name__ == "__main__":
  main()
