r"""Speed of a pretraining step, against VideoMAE of `transformers` on PyTorch.

    python benchmarks/pretrain_step.py                          # on a GPU
    python benchmarks/pretrain_step.py --sizes=small --batches=4 --rounds=3

`jax` is the training step of `train.py` as it runs: cutting clips out of strips
of 336 x 1096 px, masks, forward, backward, AdamW, on a batch that lies on the
device. PyTorch's variants get clips and masks ready made and do forward,
backward and (fused) AdamW: `eager` attention, `sdpa` attention, and `sdpa`
under `torch.compile`. `jax_model` is ours with just that work. Same sizes, 16 x
224 x 224 px, the preset's mask ratio, float32 parameters; on a
GPU bfloat16 matrix products (autocast in PyTorch), on a CPU float32.

Each variant runs in a process of its own, all of them in turn, `--rounds` times
over; of each round's steps the median is taken, of the rounds the median again.
Variants of PyTorch need the extra `parity` and are left out, with a word, where
it is not installed (`--python` names an interpreter that has it).

On a CPU, large buffers lie in huge pages for all variants alike (`HUGE_PAGES`,
as `make demo` has it; `--pages=small` measures without).

    clips/s = clips of a batch / seconds of a step
    MFU     = model FLOPs of a step / (seconds · measured matmul rate)

Model FLOPs are those of `wsiseq_jax/models/flops.py`: 3 · forward − the patch
embedding's unused gradient, matrix products only. The matmul rate is that of
8192³ in bfloat16 (2048³ in float32 on a CPU), measured in this run. Peak memory
is that of the device, or on a CPU of the process.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time

import harness

TORCH = ("torch_eager", "torch_sdpa", "torch_compile")
VARIANTS = ("jax", "jax_model", *TORCH)
# Each step asks the system for its buffers anew. In pages of 4 kB that is
# hundreds of thousands of page faults a step, 0.3 s of a core.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def median_seconds(step, steps: int) -> float:
  """Median seconds of a call; `step` waits for its result."""
  for _ in range(2):
    step()
  seconds = []
  for _ in range(steps):
    started = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds)


def peak_of_process() -> int:
  """Most memory this process ever had, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_matmul(options) -> dict:
  """FLOP/s of a large matrix product."""
  import jax
  import jax.numpy as jnp

  is_gpu = jax.default_backend() == "gpu"
  n, dtype = (8192, jnp.bfloat16) if is_gpu else (2048, jnp.float32)
  a, b = jax.random.normal(jax.random.key(0), (2, n, n)).astype(dtype)
  product = jax.jit(jnp.matmul)
  seconds = median_seconds(
    lambda: jax.block_until_ready(product(a, b)), 2 * options.steps
  )
  device = jax.devices()[0]
  return {
    "flops_per_s": 2 * n**3 / seconds,
    "device": device.device_kind,
    "backend": device.platform,
    "jax": jax.__version__,
  }


def ready(config):
  """A resolved config's run, training step, first state, and a batch.

  All on one device; the records are noise in the shape of the drift recipe's.
  """
  import jax
  import numpy as np

  from wsiseq_jax import run as train_setup
  from wsiseq_jax import train
  from wsiseq_jax.data import loader
  from wsiseq_jax.tpu import aot

  source, devices = aot.ReferenceRecords(), jax.devices()[:1]
  run = train_setup.build(config, source, None, devices)
  row = loader.load(source, 0)
  noise = np.random.default_rng(0)
  row["panels"] = noise.integers(0, 256, row["panels"].shape, np.uint8)
  batch = loader.stack([row] * config.data.batch_size)
  return (
    run,
    train.make_train_step(run),
    train_setup.first_state(run),
    jax.device_put(batch, devices[0]),
  )


def peak_bytes() -> int:
  """Most memory in use so far: of the device, on a CPU of the process."""
  import jax

  memory = jax.devices()[0].memory_stats() or {}
  return memory.get("peak_bytes_in_use", peak_of_process())


def measure_jax(options) -> dict:
  """Our own step."""
  import jax
  from absl import flags

  flags.FLAGS.mark_as_parsed()
  from configs import videomae
  from wsiseq_jax.tasks import videomae as task

  config = videomae.get_config("base")
  config.model.size = options.size
  is_gpu = jax.default_backend() == "gpu"
  config.workdir = "."
  config.data.batch_size, config.data.repeats = options.batch, 1
  config.model.dtype = "bfloat16" if is_gpu else "float32"
  if options.remat:
    config.model.remat = options.remat
  run, step, state, batch = ready(task.resolve(config))
  if options.variant == "jax_model":
    step, batch = model_step(run, batch)

  def one():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  seconds = median_seconds(one, options.steps)
  setup = task.make_setup(run.config, run.source.spec)
  return {
    "seconds": seconds,
    "peak_bytes": peak_bytes(),
    "flops_per_clip": run.task.flops,
    "visible": setup.mask.visible,
  }


def model_step(run, batch):
  """A step that gets clips and masks ready made, and these."""
  import jax
  import optax

  from wsiseq_jax.data import augment
  from wsiseq_jax.models import masking
  from wsiseq_jax.tasks import videomae as task
  from wsiseq_jax.tasks.videomae import losses

  setup = task.make_setup(run.config, run.source.spec)

  @jax.jit
  def prepare(batch):
    key = jax.random.key(0)
    clips = augment.sample_clips(batch, key, setup.clips)
    mask = masking.make_mask(key, clips.shift_px, clips.panel, setup.mask)
    return clips, mask, batch["mask"]

  def loss(params, ready):
    total, weight = losses.masked_loss(setup, params, *ready)
    return total / weight

  def step(state, ready):
    value, grads = jax.value_and_grad(loss)(state.params, ready)
    updates, slots = run.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, opt_state=slots), value

  return jax.jit(step, donate_argnums=0), prepare(batch)


def measure_torch(options) -> dict:
  """VideoMAE of `transformers`."""
  import torch
  import transformers

  size = options.sizes_of_model
  config = transformers.VideoMAEConfig(
    hidden_size=size["width"],
    num_hidden_layers=size["depth"],
    num_attention_heads=size["heads"],
    intermediate_size=size["mlp_width"],
    decoder_hidden_size=size["decoder_width"],
    decoder_num_hidden_layers=size["decoder_depth"],
    decoder_num_attention_heads=size["decoder_heads"],
    decoder_intermediate_size=size["decoder_mlp_width"],
  )
  config._attn_implementation = (
    "eager" if options.variant == "torch_eager" else "sdpa"
  )
  is_gpu = torch.cuda.is_available()
  device = "cuda" if is_gpu else "cpu"
  torch.backends.cuda.matmul.allow_tf32 = True
  model = transformers.VideoMAEForPreTraining(config).to(device).train()
  adam = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
  run = torch.compile(model) if options.variant == "torch_compile" else model
  shape = (options.batch, 16, 3, 224, 224)
  pixels = torch.randn(shape, device=device)
  hidden = torch.ones(options.batch, 1568, dtype=torch.bool, device=device)
  seen = torch.randperm(1568, device=device)[: options.visible]
  hidden[:, seen] = False

  def one():
    with torch.autocast(device, torch.bfloat16, enabled=is_gpu):
      loss = run(pixels, hidden).loss
    loss.backward()
    adam.step()
    adam.zero_grad(set_to_none=True)
    loss.item()

  seconds = median_seconds(one, options.steps)
  memory = torch.cuda.max_memory_allocated() if is_gpu else peak_of_process()
  return {
    "seconds": seconds,
    "peak_bytes": memory,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }


def work(text: str) -> None:
  """What the process of a variant does."""
  more = json.loads(text)
  options = argparse.Namespace(**more)
  kind = options.variant.split("_")[0]
  measure = {
    "matmul": measure_matmul,
    "jax": measure_jax,
    "torch": measure_torch,
  }[kind]
  harness.say_result(measure(options))


def summarise(rounds: list[dict], batch: int, flops: float, rate: float):
  """Medians over rounds, and what follows from them."""
  good = [r for r in rounds if "failed" not in r]
  if not good:
    return rounds[0]
  seconds = statistics.median(r["seconds"] for r in good)
  return {
    "clips_per_s": round(batch / seconds, 2),
    "seconds": round(seconds, 4),
    "seconds_of_rounds": [round(r["seconds"], 4) for r in good],
    "mfu": round(flops * batch / seconds / rate, 3),
    "peak_GB": round(max(r["peak_bytes"] for r in good) / 1e9, 2),
    **{k: good[0][k] for k in ("torch", "transformers") if k in good[0]},
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", default="small,base,large,huge")
  parser.add_argument("--batches", default="64,48,32,24", help="one a size")
  parser.add_argument("--variants", default=",".join(VARIANTS))
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--steps", type=int, default=10, help="of each round")
  parser.add_argument("--remat", default="", help="instead of the preset's")
  parser.add_argument("--pages", choices=("huge", "small"), default="huge")
  parser.add_argument("--python", default=sys.executable, help="with torch")
  parser.add_argument("--out", default="", help="name of the JSON file")
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    work(options.worker)
    return
  from wsiseq_jax.models.videomae import SIZES

  variants = options.variants.split(",")
  common = {"steps": options.steps, "remat": options.remat}
  environ = HUGE_PAGES if options.pages == "huge" else {}
  device = harness.run_variant(
    __file__, sys.executable, {**common, "variant": "matmul"}, **environ
  )
  if "failed" in device:
    raise SystemExit(f"no device: {device['failed']}")
  print(f"{device['device']}: {device['flops_per_s'] / 1e12:.2f} TFLOP/s")
  results = {}
  sizes, batches = options.sizes.split(","), options.batches.split(",")
  for size, batch in zip(sizes, map(int, batches), strict=True):
    rounds = {variant: [] for variant in variants}
    flops, visible = 0.0, 160
    for _ in range(options.rounds):
      for variant in variants:
        is_torch = variant in TORCH
        more = {
          **common, "variant": variant, "size": size, "batch": batch,
          "sizes_of_model": SIZES[size], "visible": visible,
        }  # fmt: skip
        python = options.python if is_torch else sys.executable
        result = harness.run_variant(__file__, python, more, **environ)
        rounds[variant].append(result)
        flops = result.get("flops_per_clip", flops)
        visible = result.get("visible", visible)
        print(size, variant, result, flush=True)
    table = {
      variant: summarise(rounds[variant], batch, flops, device["flops_per_s"])
      for variant in variants
    }
    rates = {v: row["clips_per_s"] for v, row in table.items() if "mfu" in row}
    best = max((r for v, r in rates.items() if v in TORCH), default=None)
    for ours in set(rates) - set(TORCH) if best else ():
      table[f"{ours}_over_best_torch"] = round(rates[ours] / best, 3)
    results[size] = {
      "batch": batch, "visible_tokens": visible,
      "model_GFLOP_per_clip": round(flops / 1e9, 2), **table,
    }  # fmt: skip
  result = {
    "device": device,
    "steps": options.steps,
    "pages": options.pages,
    "results": results,
    "load_average_at_end": harness.load_average(),
    "machine": harness.machine(),
  }
  name = options.out or f"pretrain_step_{device['backend']}"
  print(harness.write_result(harness.RESULTS / f"{name}.json", result))


if __name__ == "__main__":
  main()
