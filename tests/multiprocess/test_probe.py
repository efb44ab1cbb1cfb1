"""The job `probe` in two processes says what one process says."""

import os
import socket
import subprocess
import sys

import pytest

from data_prep.synthetic import smoke
from tests import small_run
from wsiseq_jax import train

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def start(root, address, count, number, log, *flags):
  environ = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(2 // count),
    "PYTHONPATH": str(root),
  }
  if count > 1:
    environ |= {
      "JAX_COORDINATOR_ADDRESS": address,
      "JAX_NUM_PROCESSES": str(count),
      "JAX_PROCESS_ID": str(number),
    }
  return subprocess.Popen(
    [sys.executable, str(root / "main.py"), *flags],
    cwd=root,
    env=environ,
    stdout=log.open("w"),
    stderr=subprocess.STDOUT,
  )


def test_two_processes_probe_as_one(repo_root, tmp_path):
  data = smoke.make_labelled_shards(tmp_path / "data")
  config = small_run.small_config(tmp_path / "run", data)
  config.optim.update({"total_steps": 2, "warmup_steps": 0})
  config.data.batch_size = 8
  train.run(config)
  found = {}
  for count in (1, 2):
    workdir = tmp_path / f"probe{count}"
    with socket.socket() as held:
      held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
      held.bind(("localhost", 0))
      address = f"localhost:{held.getsockname()[1]}"
      flags = (
        f"--config={repo_root}/configs/probe.py:quick",
        f"--config.workdir={workdir}",
        f"--config.checkpoint.path={tmp_path / 'run'}",
        f"--config.data.path={data}",
        "--config.data.batch_size=8",
        "--config.probe.targets=('kind',)",
        "--config.probe.kinds=('knn','attentive','fine_tune')",
        "--config.probe.fractions=(1.0,)",
        "--config.probe.seeds=(0,)",
        "--config.probe.resamples=10",
        *(
          f"--config.{block}.{key}={value}"
          for block in ("head", "fine_tune")
          for key, value in (("epochs", 2), ("batch_size", 8))
        ),
      )
      logs = [tmp_path / f"{count}_{i}.log" for i in range(count)]
      running = [
        start(repo_root, address, count, i, log, *flags)
        for i, log in enumerate(logs)
      ]
      codes = [process.wait(240) for process in running]
      assert codes == [0] * count, "\n".join(log.read_text() for log in logs)
    lines = (workdir / "probe.csv").read_text().splitlines()[1:]
    found[count] = {
      tuple(line.split(",")[:5]): float(line.split(",")[5]) for line in lines
    }
    name = workdir / "runs" / "0_kind-attentive-1-0" / "metrics.jsonl"
    assert len(name.read_text().splitlines()) == 2
  assert found[1].keys() == found[2].keys()
  assert found[2] == pytest.approx(found[1], abs=1e-3)
