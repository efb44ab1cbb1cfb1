r"""Kills a training run at random moments; its end must not show it.

    python benchmarks/kill_training.py [--kills=5] [--seed=0]

Trains `:smoke` (longer) once undisturbed. Then runs the same command in another
folder, sends SIGKILL after a random time, starts it again, and so on; each
start uses another number of loader threads, some of them worker processes. In
the end the digests of all parameters and optimiser slots, and the metrics apart
from the clock, must be equal. Results go to benchmarks/results/.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import harness

STEPS = 1200


def command(workdir: pathlib.Path, data: pathlib.Path, loaders) -> list[str]:
  threads, processes = loaders
  return [
    sys.executable,
    str(harness.ROOT / "main.py"),
    f"--config={harness.ROOT}/configs/videomae.py:smoke",
    f"--config.workdir={workdir}",
    f"--config.data.path={data}",
    f"--config.optim.total_steps={STEPS}",
    "--config.checkpoint.every_steps=15",
    "--config.log_every_steps=4",
    "--config.eval_every_steps=100",
    f"--config.data.threads={threads}",
    f"--config.data.worker_processes={processes}",
  ]


def digest(workdir: pathlib.Path) -> str:
  """sha256 of the last checkpoint's arrays, read without the training code."""
  import jax
  import numpy as np
  from orbax.checkpoint import v1 as ocp

  total = hashlib.sha256()
  step = workdir / "checkpoints" / str(STEPS)
  parts = ocp.load_checkpointables(step, {"params": None, "opt_state": None})
  for path, leaf in jax.tree.leaves_with_path(parts):
    array = np.asarray(leaf)
    total.update(f"{path} {array.shape} {array.dtype}".encode())
    total.update(array.tobytes())
  return total.hexdigest()


def metrics(workdir: pathlib.Path) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  for row in rows:
    row.pop("train/clips_per_second", None)
  return rows


def last_checkpoint(workdir: pathlib.Path) -> int:
  folder = workdir / "checkpoints"
  if not folder.is_dir():
    return 0
  return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()),
             default=0)  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=5)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  from data_prep.synthetic import smoke

  rng = random.Random(options.seed)
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    data = smoke.make_shards(scratch / "data")
    calm, rough = scratch / "calm", scratch / "rough"
    started = time.monotonic()
    subprocess.run(command(calm, data, (2, 0)), check=True, cwd=harness.ROOT)
    seconds = time.monotonic() - started
    moments = []
    # A kill that hits start-up or compilation is a kill too.
    while len(moments) < options.kills:
      loaders = rng.choice([(1, 0), (4, 0), (2, 1), (1, 2)])
      process = subprocess.Popen(
        command(rough, data, loaders), cwd=harness.ROOT, start_new_session=True
      )
      delay = rng.uniform(0.15, 0.5) * seconds
      try:
        process.wait(timeout=delay)
        sys.exit("the run ended before its kill: raise STEPS")
      except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
      moments.append(
        {
          "seconds": round(delay, 2),
          "threads, processes": loaders,
          "last checkpoint": last_checkpoint(rough),
        }
      )
      print(f"killed: {moments[-1]}", flush=True)
    subprocess.run(command(rough, data, (3, 0)), check=True, cwd=harness.ROOT)
    result = {
      "steps": STEPS,
      "kills": moments,
      "digest_undisturbed": digest(calm),
      "digest_killed": digest(rough),
      "metrics_equal": metrics(calm) == metrics(rough),
      "machine": harness.machine(),
    }
  result["identical"] = (
    result["digest_undisturbed"] == result["digest_killed"]
    and result["metrics_equal"]
  )
  print(harness.write_result(harness.RESULTS / "kill_training.json", result))
  sys.exit(0 if result["identical"] else 1)


if __name__ == "__main__":
  main()
