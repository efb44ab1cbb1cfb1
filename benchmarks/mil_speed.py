r"""A bag of 100,000 tiles: forward and backward, against the same in PyTorch.

    python benchmarks/mil_speed.py --python=PYTHON_WITH_TORCH
    python benchmarks/mil_speed.py --variants=jax_gated,jax_transmil \
        --out=mil_speed_transmil

One bag of features 1024 wide, gated attention as CLAM and ABMIL have it
(embedding of 512, attention of 256, dropout 0.25), binary cross-entropy, f32,
on the CPU. `forward` is without dropout and gradient; `step` is loss and
gradient of all parameters, with dropout; no optimiser in either.

    jax_gated                 `wsiseq_jax/models/mil/__init__.py`
    jax_whole                 jax_gated, all tiles in one chunk, nothing
                              recomputed: what chunks are for
    torch_gated               the same written plainly in PyTorch
    jax_transmil              TransMIL of the paper's size (8 heads, 256
                              landmarks), tiles in rows of a square

Features are equal in all, and parameters but for TransMIL, whose are drawn by
`mil.init`; so must be the logits (`value` of `forward`). Each variant runs in a
process of its own, in turn, and all `--rounds` times over; seconds are the
median of a round's steps, of which again the median. Memory is the most that
the process ever had (`ru_maxrss`), and how much that is above what it had
before the first call, when features were there already; what the compiler takes
is in both.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import time

import harness
import numpy as np

WIDTH, HIDDEN, ATTENTION = 1024, 512, 256
VARIANTS = ("jax_gated", "jax_whole", "torch_gated")
PARTS = ("forward", "step")


def make_features(tiles: int) -> np.ndarray:
  """Features [m d], at an address that JAX takes over without a copy."""
  memory = np.empty(4 * tiles * WIDTH + 64, np.uint8)
  start = -memory.ctypes.data % 64
  values = memory[start:][: 4 * tiles * WIDTH].view(np.float32)
  values = values.reshape(tiles, WIDTH)
  rng = np.random.default_rng(0)
  for first in range(0, tiles, 4096):
    rows = values[first : first + 4096]
    rng.standard_normal(rows.shape, np.float32, out=rows)
  return values


def make_params() -> dict:
  """Parameters as `mil.init` has them."""
  rng = np.random.default_rng(1)

  def layer(inner, outer):
    kernel = rng.normal(scale=inner**-0.5, size=(inner, outer))
    return {
      "kernel": kernel.astype(np.float32),
      "bias": rng.normal(scale=0.1, size=outer).astype(np.float32),
    }

  return {
    "tile": {"embed": layer(WIDTH, HIDDEN), "classifier": layer(HIDDEN, 1)},
    "value": layer(HIDDEN, ATTENTION),
    "gate": layer(HIDDEN, ATTENTION),
    "score": layer(ATTENTION, 1),
  }


def measure(run, steps: int) -> dict:
  """Median seconds of a call, and memory."""
  with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
  seconds = []
  for _ in range(steps + 1):
    started = time.perf_counter()
    value = run()
    seconds.append(time.perf_counter() - started)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {
    "seconds": statistics.median(seconds[1:]),
    "peak_bytes": peak,
    "above_bytes": peak - before,
    "value": value,
  }


def measure_jax(options) -> dict:
  """Ours."""
  import jax
  import jax.numpy as jnp

  from wsiseq_jax.models import mil
  from wsiseq_jax.models.mil import heads

  kind = options.variant.split("_")[1]
  is_whole = kind == "whole"
  sizes = {} if kind == "transmil" else {"attention_width": ATTENTION}
  config = mil.configure(
    "gated" if is_whole else kind,
    width=WIDTH,
    hidden=HIDDEN,
    **sizes,
    chunk_tiles=options.tiles if is_whole else options.chunk,
    remat="none" if is_whole else "dots",
  )
  features = jnp.asarray(make_features(options.tiles))
  tiles = len(features)
  side = math.isqrt(tiles - 1) + 1
  grid_xy = np.stack(np.divmod(np.arange(tiles), side)[::-1], axis=1)
  bag = mil.Bag(
    features, jnp.ones(tiles, bool), jnp.asarray(grid_xy, jnp.float32)
  )
  if kind == "transmil":
    params = mil.init(jax.random.key(1), config)
  else:
    params = jax.tree.map(jnp.asarray, make_params())
  head, label = heads.Binary(), jnp.ones((1, 1))

  def forward(params, bag, key):
    return mil.apply(params, config, bag).logits[0]

  def loss(params, bag, key):
    logits = mil.apply(params, config, bag, key).logits
    return head.loss(logits[None], label)

  function = forward if options.part == "forward" else jax.value_and_grad(loss)
  function, key = jax.jit(function), jax.random.key(0)

  def run():
    found = jax.block_until_ready(function(params, bag, key))
    return float(found if options.part == "forward" else found[0])

  return {**measure(run, options.steps), "jax": jax.__version__}


def measure_torch(options) -> dict:
  """PyTorch, written as one would."""
  import torch
  from torch import nn

  def layer(p):
    inner, outer = p["kernel"].shape
    made = nn.Linear(inner, outer)
    with torch.no_grad():
      made.weight.copy_(torch.from_numpy(p["kernel"].T))
      made.bias.copy_(torch.from_numpy(p["bias"]))
    return made

  class Gated(nn.Module):
    def __init__(self, p):
      super().__init__()
      drop = nn.Dropout(0.25)
      self.embed = nn.Sequential(layer(p["tile"]["embed"]), nn.ReLU(), drop)
      self.value = nn.Sequential(layer(p["value"]), nn.Tanh(), drop)
      self.gate = nn.Sequential(layer(p["gate"]), nn.Sigmoid(), drop)
      self.score = layer(p["score"])
      self.classifier = layer(p["tile"]["classifier"])

    def forward(self, x):
      h = self.embed(x)
      score = self.score(self.value(h) * self.gate(h))
      attention = torch.softmax(score, dim=0)
      return self.classifier(attention.T @ h)[0]

  model = Gated(make_params())
  features = torch.from_numpy(make_features(options.tiles))
  label = torch.ones(1)

  def forward():
    with torch.inference_mode():
      return model(features).item()

  def step():
    model.zero_grad(set_to_none=True)
    loss = nn.functional.binary_cross_entropy_with_logits(
      model(features), label
    )
    loss.backward()
    return loss.item()

  is_forward = options.part == "forward"
  model.train(not is_forward)
  found = measure(forward if is_forward else step, options.steps)
  return {**found, "torch": torch.__version__}


def summarise(rounds: list[dict]) -> dict:
  """Medians over rounds."""
  good = [r for r in rounds if "failed" not in r]
  if not good:
    return rounds[0]
  return {
    "seconds": round(statistics.median(r["seconds"] for r in good), 3),
    "seconds_of_rounds": [round(r["seconds"], 3) for r in good],
    "peak_GB": round(max(r["peak_bytes"] for r in good) / 1e9, 2),
    "above_GB": round(max(r["above_bytes"] for r in good) / 1e9, 2),
    "value": good[0]["value"],
    **{k: good[0][k] for k in ("jax", "torch") if k in good[0]},
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tiles", type=int, default=100_000)
  parser.add_argument("--chunk", type=int, default=4096, help="tiles at once")
  parser.add_argument("--variants", default=",".join(VARIANTS))
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--steps", type=int, default=3, help="of each round")
  parser.add_argument("--python", default=sys.executable, help="with torch")
  parser.add_argument(
    "--out", default="mil_speed", help="name of the JSON file"
  )
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    more = argparse.Namespace(**json.loads(options.worker))
    is_torch = more.variant.startswith("torch")
    harness.say_result((measure_torch if is_torch else measure_jax)(more))
    return
  variants = options.variants.split(",")
  rounds = {(v, part): [] for v in variants for part in PARTS}
  for _ in range(options.rounds):
    for variant, part in rounds:
      is_torch = variant.startswith("torch")
      more = {
        "variant": variant, "part": part, "tiles": options.tiles,
        "chunk": options.chunk, "steps": options.steps,
      }  # fmt: skip
      result = harness.run_variant(
        __file__,
        options.python if is_torch else sys.executable,
        more,
        JAX_PLATFORMS="cpu",
      )
      rounds[variant, part].append(result)
      print(variant, part, result, flush=True)
  results = {
    variant: {part: summarise(rounds[variant, part]) for part in PARTS}
    for variant in variants
  }
  result = {
    "tiles": options.tiles,
    "width": WIDTH,
    "features_GB": round(4e-9 * options.tiles * WIDTH, 2),
    "array_m_hidden_GB": round(4e-9 * options.tiles * HIDDEN, 2),
    "chunk_tiles": options.chunk,
    "steps": options.steps,
    "results": results,
    "load_average_at_end": harness.load_average(),
    "machine": harness.machine(),
  }
  path = harness.RESULTS / f"{options.out}.json"
  print(harness.write_result(path, result))


if __name__ == "__main__":
  main()
