r"""Do sequences help? A drift as a sequence, against the mean of its tiles.

    python benchmarks/sequences_help.py --run=RUN --data=PREP/shards \
        --truth=SLIDES/truth

One network, that of a run of `configs/videomae.py` or `configs/latent.py`,
tells the tissue type of synthetic sequences in two ways that see the same
pixels:

- `sequence`: the frames of a drift as one clip, as it was pretrained;
- `tiles`: every frame of it alone, as a still clip, and the mean of their
  features: what is done with an encoder of tiles.

Both as they come, with a strict linear probe on frozen features (`untrained`,
`frozen`), and learned from labels: `tuned` starts from the checkpoint,
`scratch` from nothing. Beside them, the probe on the mean colour of the frames
and, with `--weights`, on the mean of features of a real encoder of tiles
(`real`, DINOv2-shaped, after `--layer` blocks; `real_encoder.py` makes the
file).

Labels are learned on the patients of the split `train`; one in five of them,
drawn by the seed, chooses penalty and epoch. Tested is on `val` and `test`,
whose patients neither pretraining nor labels have seen. Seeds change that
draw, first weights and the order of the data.

Rows already in `<work>/rows.jsonl` are not computed again. Writes
`benchmarks/results/sequences_help.json`: balanced accuracy and AUROC with 95 %
intervals over seeds, and sequence minus tiles at the same seed.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import cv2
import harness
import jax
import jax.numpy as jnp
import numpy as np
import pretrain_table
from ml_collections import ConfigDict

from data_prep import records
from data_prep.synthetic import slides
from wsiseq_jax import embed, encoders, evaluate, tasks, writers
from wsiseq_jax.data import clip_sampling, sources
from wsiseq_jax.metrics import classification
from wsiseq_jax.probe import fine_tune, linear, trained
from wsiseq_jax.probe.samples import ProbeTarget, Samples
from wsiseq_jax.probe.settings import ProbeFit
from wsiseq_jax.tasks import base

WAYS = ("tiles", "sequence")
LINEAR = ("colour", "untrained", "frozen", "real")
LEARNED = ("tuned", "scratch")
SCORES = ("balanced_accuracy", "auroc")


class Joined:
  """Records of several splits, one after the other."""

  def __init__(self, data, names):
    self.parts = [data.open(name, "data.path") for name in names]
    self.spec, self.split = self.parts[0].spec, "+".join(names)
    self.identity = "+".join(part.identity for part in self.parts)

  def __len__(self):
    return sum(map(len, self.parts))

  def record(self, index):
    """The record of a running number."""
    for part in self.parts:
      if index < len(part):
        return part.record(index)
      index -= len(part)
    raise IndexError


def tilewise(task, clip):
  """The task with another encoder: the mean over frames, each standing still.

  A record of which all stored frames show the same window gives a still clip.
  """

  def encode(params, batch, key):
    length = (batch["frame_mask"] > 0).sum(axis=1)
    if key is None:
      start = jax.vmap(lambda n: clip_sampling.centre_start(n, clip.embedded))
      start = start(length)
    else:
      keys = jax.random.split(base.stream(key, "start"), len(length))
      start = jax.vmap(
        lambda k, n: clip_sampling.one_start(k, n, clip.embedded)
      )(keys, length)
    place = jnp.arange(clip.frames) * clip.frame_step
    place = jnp.minimum(start[:, None] + place[None], length[:, None] - 1)
    stored = batch["frame_mask"].shape[1]
    still = {
      k: jnp.repeat(jnp.asarray(v), clip.frames, axis=0)
      for k, v in batch.items()
    }
    for name in ("frame_box", "frame_panel", "frame_level0_xy"):
      array = jnp.asarray(batch[name])
      at = place.reshape(place.shape + (1,) * (array.ndim - 2))
      shown = jnp.take_along_axis(array, at, axis=1)
      shown = shown.reshape(-1, 1, *array.shape[2:])
      still[name] = jnp.repeat(shown, stored, axis=1)
    still["time"] = jnp.zeros_like(still["time"])
    still["frame_mask"] = jnp.ones_like(still["frame_mask"])
    out = task.encode(params, still, key)
    return out.reshape(-1, clip.frames, out.shape[-1]).mean(axis=1)

  def embed_still(params, batch):
    shown = task.embed(params, batch)
    return {
      "features": encode(params, batch, None),
      "frame_level0_xy": shown["frame_level0_xy"],
    }

  return dataclasses.replace(task, encode=encode, embed=embed_still)


class Question:
  """The run, its records, their labels; features are computed once."""

  def __init__(self, args):
    self.args = args
    self.run = evaluate.load(
      ConfigDict(
        {
          "workdir": str(args.run),
          "checkpoint": {"path": str(args.run)},
          "data": {
            "path": str(args.data),
            "batch_size": args.batch,
            "threads": args.threads,
          },
          "mesh": {"fsdp": 1},
        }
      )
    )
    config = self.run.config
    self.clip = tasks.get(config.task).clip(config)
    self.tasks = {
      "sequence": self.run.task,
      "tiles": tilewise(self.run.task, self.clip),
    }
    data = sources.find(str(args.data), self.clip.stored)
    rest = [name for name in data.splits if name != "train"]
    self.sources = {
      "train": Joined(data, ["train"]),
      "test": Joined(data, rest),
    }
    self.labels, self.patients, self.rows = {}, {}, {}
    self._features = {}
    for role in self.sources:
      found = self._embedded("sequence", self.run.params, role)
      types = slides.sequence_types(
        args.truth, found["slide_id"], found["frame_level0_xy"]
      )
      self.rows[role] = np.flatnonzero(types >= 0)
      self.labels[role] = types[self.rows[role]].astype(np.float32)
      self.patients[role] = found["patient_id"][self.rows[role]]
      self._features["frozen", "sequence", role, 0] = found["features"]
    count = int(max(labels.max() for labels in self.labels.values())) + 1
    self.target = ProbeTarget("tissue", 0, tuple(map(str, range(count))))

  def _embedded(self, way, params, role):
    run = dataclasses.replace(self.run, task=self.tasks[way], params=params)
    return embed.embed_split(run, self.sources[role])

  def features(self, arm, way, role, seed):
    """Frozen features of all records of a role."""
    key = (arm, way, role, seed if arm == "untrained" else 0)
    if key not in self._features:
      if arm == "colour":
        found = self._frames(role, lambda f: f.reshape(len(f), -1, 3).mean(1))
      elif arm == "real":
        found = self._real(role)
      else:
        params = self.run.params
        if arm == "untrained":
          params = jax.jit(self.run.task.init)(jax.random.key(seed))
        found = self._embedded(way, params, role)["features"]
      self._features[key] = found
    return self._features[key]

  def _frames(self, role, function):
    """Mean over the middle clip's frames of what a function makes of them."""
    found = []
    source = self.sources[role]
    for i in range(len(source)):
      record = source.record(i)
      panels = records.decode_panels(record)
      start = max(len(record.frame_box) - self.clip.embedded, 0) // 2
      cut = []
      for t in start + np.arange(self.clip.frames) * self.clip.frame_step:
        x, y, w, h = np.round(record.frame_box[t]).astype(int)
        cut.append(panels[record.frame_panel[t], y : y + h, x : x + w])
      found.append(np.mean(function(np.stack(cut)), axis=0))
    return np.stack(found)

  def _real(self, role):
    file = self.args.work / f"real_{self.args.layer}_{role}.npy"
    if file.is_file():
      return np.load(file)
    encoder = encoders.load(
      {
        "name": "dinov2_small_14",
        "weights": str(self.args.weights),
        "tile_px": 224,
        "layer": self.args.layer,
      }
    )
    apply = jax.jit(encoder.apply)

    def of_frames(frames):
      size = (encoder.window_px, encoder.window_px)
      large = [cv2.resize(f, size, interpolation=cv2.INTER_CUBIC)
               for f in frames]  # fmt: skip
      return np.asarray(apply(encoder.params, np.stack(large)))

    found = self._frames(role, of_frames)
    np.save(file, found)
    return found

  def sets(self, arm, way, seed):
    """Samples to fit on, to choose by, to test on."""
    patients = np.unique(self.patients["train"])
    held = np.random.default_rng(seed).permutation(patients)
    held = held[: max(1, len(patients) // 5)]
    chooses = np.isin(self.patients["train"], held)
    found = []
    for role, rows in (
      ("train", np.flatnonzero(~chooses)),
      ("train", np.flatnonzero(chooses)),
      ("test", np.arange(len(self.rows["test"]))),
    ):
      index = self.rows[role][rows]
      features = None
      if arm in LINEAR:
        features = self.features(arm, way, role, seed)[index]
      found.append(
        Samples(
          self.labels[role][rows],
          self.patients[role][rows],
          index,
          features,
          source=self.sources[role],
        )
      )
    return tuple(found)

  def row(self, arm, way, seed):
    """Trains what is to be trained, and scores the test sequences."""
    args, begin = self.args, time.monotonic()
    sets = self.sets(arm, way, seed)
    if arm in LINEAR:
      outcome = linear.run(*sets, self.target)
    else:
      task, run = self.tasks[way], self.run
      width = fine_tune.feature_width(task, self.sources["train"], run.mesh)
      how = ProbeFit(
        lr_per_256=args.lr * 256 / args.batch,
        batch_size=args.batch,
        epochs=args.epochs,
        warmup_epochs=1,
        patience=args.patience,
      )
      outcome = trained.run(
        fine_tune.encoder_model(task, arm == "scratch", width, self.target),
        sets,
        self.target,
        how,
        fine_tune.PixelFeed(run.mesh, args.threads, 0),
        seed,
        run.mesh,
        run.params,
      )
    test = sets[2]
    scores = classification.scores(test.labels.astype(int), outcome.prediction)
    return {
      "arm": arm,
      "way": way,
      "seed": seed,
      **{name: float(scores[name][0]) for name in SCORES},
      "validation": outcome.validation,
      "chosen": dict(outcome.chosen),
      "fitted": len(sets[0]),
      "tested": len(test),
      "test_patients": len(np.unique(test.patients)),
      "seconds": round(time.monotonic() - begin, 1),
    }


def wanted(args):
  """(arm, way, seed), cheap ones first."""
  for arm in args.arms:
    for seed in range(args.seeds if arm in LINEAR else args.learned_seeds):
      for way in WAYS if arm not in ("colour", "real") else WAYS[:1]:
        yield arm, way, seed


def summarise(args, rows):
  """Means and intervals over seeds, and paired differences; prints them."""
  result = {"run": args.run.name, "arms": [], "sequence_minus_tiles": []}
  for arm in args.arms:
    mine = {
      way: {r["seed"]: r for r in rows if (r["arm"], r["way"]) == (arm, way)}
      for way in WAYS
    }
    for way, found in mine.items():
      if found:
        scores = {
          name: pretrain_table.over_seeds([r[name] for r in found.values()])
          for name in SCORES
        }
        result["arms"].append({"arm": arm, "way": way, **scores})
        pretrain_table.show([arm, way], scores)
    both = sorted(mine["tiles"].keys() & mine["sequence"].keys())
    if both:
      scores = {
        name: pretrain_table.over_seeds(
          [mine["sequence"][s][name] - mine["tiles"][s][name] for s in both]
        )
        for name in SCORES
      }
      result["sequence_minus_tiles"].append({"arm": arm, **scores})
      pretrain_table.show([arm, "sequence - tiles"], scores, sign="+")
  return {**result, "rows": rows}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ("run", "data", "truth"):
    parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
  parser.add_argument("--weights", type=pathlib.Path, help="of a ViT-S/14")
  parser.add_argument("--layer", type=int, default=6)
  parser.add_argument("--work", type=pathlib.Path, default="out/sequences_help")
  parser.add_argument("--arms", nargs="+", choices=[*LINEAR, *LEARNED])
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument(
    "--learned-seeds", type=int, default=5, help="of tuned and scratch"
  )
  parser.add_argument("--epochs", type=int, default=15)
  parser.add_argument("--patience", type=int, default=5)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--lr", type=float, default=1e-3, help="of a step")
  parser.add_argument("--threads", type=int, default=2)
  args = parser.parse_args()
  if args.arms is None:
    args.arms = [a for a in (*LINEAR, *LEARNED) if a != "real" or args.weights]
  args.work.mkdir(parents=True, exist_ok=True)
  path = args.work / "rows.jsonl"
  rows = writers.read_metrics(path)
  done = {(r["arm"], r["way"], r["seed"]) for r in rows}
  question = None
  for arm, way, seed in wanted(args):
    if (arm, way, seed) in done:
      continue
    question = question or Question(args)
    rows.append(question.row(arm, way, seed))
    with path.open("a") as file:
      file.write(json.dumps(rows[-1]) + "\n")
    print(rows[-1], flush=True)
  result = summarise(args, rows)
  harness.write_result(harness.RESULTS / "sequences_help.json", result)


if __name__ == "__main__":
  main()
