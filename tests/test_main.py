"""The real main.py, in processes of its own.

What a process does that trains is seen in one that imports all by itself.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from wsiseq_jax import launch


def command(python, repo_root, workdir, *more):
  return [
    python,
    str(repo_root / "main.py"),
    f"--config={repo_root}/configs/videomae.py:smoke",
    f"--config.workdir={workdir}",
    *more,
  ]


def run(python, repo_root, workdir, *more):
  return subprocess.run(
    command(python, repo_root, workdir, *more),
    cwd=repo_root,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_train_and_again(repo_root, python, tmp_path):
  """`test_readme.py` calls all other jobs."""
  trained = run(sys.executable, repo_root, tmp_path)
  assert trained.returncode == 0, trained.stderr
  assert "finished at step 12" in trained.stderr
  # Quiet by default: nothing but our own lines.
  assert "orbax" not in trained.stderr.lower()
  again = run(python, repo_root, tmp_path)
  assert again.returncode == 0
  assert "training is complete: step 12" in again.stderr


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_its_own_exit_code(
  repo_root, python, tmp_path
):
  process = subprocess.Popen(
    command(
      python,
      repo_root,
      tmp_path,
      "--config.optim.total_steps=1000000",
      "--config.eval_every_steps=0",
    ),
    cwd=repo_root,
    stderr=subprocess.PIPE,
    text=True,
  )
  metrics = tmp_path / "metrics.jsonl"
  deadline = time.monotonic() + 200
  while process.poll() is None and time.monotonic() < deadline:
    if metrics.exists() and metrics.read_text().count("\n") >= 3:
      break
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, text = process.communicate(timeout=100)
  # By this `make` and scripts do not go on to evaluate.
  assert process.returncode == launch.Stopped.CODE == 75, text
  assert "SIGTERM: saving, then stopping" in text and "stopped at step" in text
  assert [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_a_bad_value_is_one_readable_message(repo_root, python, tmp_path):
  result = run(python, repo_root, tmp_path, "--config.mask.ratio=2.0")
  assert result.returncode == 1
  last = result.stderr.strip().splitlines()[-1]
  assert "config.mask.ratio = 2.0" in last and "from 0.01 to 0.99" in last
  assert "Traceback" not in result.stderr


def test_an_unknown_key_names_the_nearest(repo_root, python, tmp_path):
  result = run(python, repo_root, tmp_path, "--config.data.bach_size=2")
  assert result.returncode != 0
  assert 'Did you mean "batch_size"' in result.stderr


def test_several_processes_are_recognised():
  assert not launch.is_distributed({})
  assert not launch.is_distributed({"SLURM_NTASKS": "4"})  # sbatch, no srun
  assert not launch.is_distributed(
    {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "batch"}
  )
  assert launch.is_distributed({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"})
  assert launch.is_distributed({"JAX_COORDINATOR_ADDRESS": "localhost:1234"})
  assert launch.is_distributed({"TPU_WORKER_HOSTNAMES": "a,b"})
  assert not launch.is_distributed({"TPU_WORKER_HOSTNAMES": "a"})


def test_second_signal_is_not_caught():
  before, term = map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))
  with launch.Preemption() as preemption:
    assert not preemption.tick()
    os.kill(os.getpid(), signal.SIGINT)
    assert preemption.tick()
    assert signal.getsignal(signal.SIGINT) == before
  assert signal.getsignal(signal.SIGTERM) == term
