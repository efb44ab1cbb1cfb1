r"""Speed of a contrastive training step, by method.

    python benchmarks/contrastive_step.py                # sizes that fit a GPU
    python benchmarks/contrastive_step.py --batch=4 --rounds=2

The training step of `train.py` as it runs: two views of each record are cut
out of strips of 336 x 1096 px, turned, relit and blurred, encoded frame by
frame and in time, compared with all of the batch; backward; AdamW; on a batch
that lies on the device. Full-size presets: ViT-S, two views of 8 frames of
128 x 128 px; on a CPU float32 instead of bfloat16, in huge pages.

Each method runs in a process of its own, all of them in turn, `--rounds` times
over; of each round's steps the median is taken, of the rounds the median again.

    clips/s = 2 · records of a batch / seconds of a step
    MFU     = model FLOPs of a step / (seconds · measured matmul rate)

Model FLOPs are those of `flops.contrastive_step_flops`; the matmul rate is that
of `pretrain_step.py`. Writes `contrastive_step_<backend>.json`.
"""

import argparse
import json
import sys

import harness
import pretrain_step

METHODS = ("csimclr", "cvrl", "csimclr_te", "tvrl", "ltn", "clm")


def measure(options) -> dict:
  """The step of one method."""
  import jax
  from absl import flags as absl_flags

  absl_flags.FLAGS.mark_as_parsed()
  from configs import contrastive
  from wsiseq_jax.tasks import contrastive as task

  config = contrastive.get_config(options.method)
  config.workdir = "."
  config.data.batch_size = options.batch
  if jax.default_backend() == "cpu":
    config.model.dtype = "float32"
  run, step, state, batch = pretrain_step.ready(task.resolve(config))

  def one():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  seconds = pretrain_step.median_seconds(one, options.steps)
  return {
    "seconds": seconds,
    "peak_bytes": pretrain_step.peak_bytes(),
    "flops_per_clip": run.task.flops,
    "clips": options.batch * run.task.clips_per_record,
  }


def summarise(rounds: list[dict], rate: float) -> dict:
  """Medians over rounds, and what follows from them."""
  first = next((r for r in rounds if "failed" not in r), None)
  if first is None:
    return rounds[0]
  clips, flops = first["clips"], first["flops_per_clip"]
  found = pretrain_step.summarise(rounds, clips, flops, rate)
  return {"GFLOP_per_clip": round(flops / 1e9, 2), **found}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=int, default=128, help="records a step")
  parser.add_argument("--methods", nargs="*", default=list(METHODS))
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--steps", type=int, default=4, help="of each round")
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    more = argparse.Namespace(**json.loads(options.worker))
    matmul = more.method == "matmul"
    harness.say_result(
      pretrain_step.measure_matmul(more) if matmul else measure(more)
    )
    return

  def variant(method):
    more = {"method": method, "batch": options.batch, "steps": options.steps}
    return harness.run_variant(
      __file__, sys.executable, more, **pretrain_step.HUGE_PAGES
    )

  device = variant("matmul")
  if "failed" in device:
    raise SystemExit(f"no device: {device['failed']}")
  rounds = {method: [] for method in options.methods}
  for _ in range(options.rounds):
    for method, found in rounds.items():
      found.append(variant(method))
      print(method, found[-1], flush=True)
  result = {
    "device": device,
    "records_a_step": options.batch,
    "steps": options.steps,
    "methods": {
      method: summarise(found, device["flops_per_s"])
      for method, found in rounds.items()
    },
    "load_average_at_end": harness.load_average(),
    "machine": harness.machine(),
  }
  name = f"contrastive_step_{device['backend']}.json"
  print(harness.write_result(harness.RESULTS / name, result))


if __name__ == "__main__":
  main()
