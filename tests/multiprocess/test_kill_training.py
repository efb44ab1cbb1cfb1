"""SIGKILL in the middle of training; benchmarks/kill_training.py does more."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests import small_run

STEPS = 90


def command(python, repo_root, workdir, data, threads):
  return [
    python,
    str(repo_root / "main.py"),
    f"--config={repo_root}/configs/videomae.py:smoke",
    f"--config.workdir={workdir}",
    f"--config.data.path={data}",
    f"--config.data.threads={threads}",
    f"--config.optim.total_steps={STEPS}",
    "--config.checkpoint.every_steps=10",
    "--config.log_every_steps=1",
    "--config.eval_every_steps=0",
  ]


def arrays(workdir):
  loaded = ocp.load_checkpointables(
    workdir / "checkpoints" / str(STEPS), {"params": None, "opt_state": None}
  )
  import jax

  return [np.asarray(leaf) for leaf in jax.tree.leaves(loaded)]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigkill_leaves_no_trace(repo_root, python, tmp_path):
  data = small_run.shards(tmp_path / "data")
  calm, rough = tmp_path / "calm", tmp_path / "rough"
  quiet = dict(cwd=repo_root, stderr=subprocess.DEVNULL)
  subprocess.run(command(python, repo_root, calm, data, 2), check=True, **quiet)

  real = command(sys.executable, repo_root, rough, data, 1)
  process = subprocess.Popen(real, **quiet)
  metrics = rough / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while process.poll() is None and time.monotonic() < deadline:
    # Past the second checkpoint, between two of them.
    if metrics.exists() and metrics.read_text().count("\n") >= 25:
      break
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  written = metrics.read_text()
  assert written.count("\n") < STEPS
  subprocess.run(
    command(python, repo_root, rough, data, 3), check=True, **quiet
  )

  for left, right in zip(arrays(calm), arrays(rough), strict=True):
    np.testing.assert_array_equal(left, right)
  lines = metrics.read_text().splitlines()
  assert len(lines) == STEPS
