"""Two processes on this machine, through the real main.py.

One story in several tests, because starting processes is most of the time:
a run of two processes loses one of them, is started again, gets a SIGTERM, and
is finished by one process alone. It must end as a run that nothing disturbed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests import small_run
from wsiseq_jax import embed, evaluate, launch, writers
from wsiseq_jax.data import loader

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS, BATCH, RECORDS = 40, 8, 32
# Parameters cut over both processes, so that checkpoints are put together.
MESH = (
  "--config.mesh.fsdp=2",
  "--config.mesh.sharding_rules=(('blocks/.*kernel',(None,None,'fsdp')),)",
)


class Launcher:
  """Starts main.py as one process of two devices, or two of one device."""

  def __init__(self, python, root, folder):
    self.python, self.root, self.folder = python, root, folder
    self.data = small_run.shards(folder / "data")

  def command(self, workdir, *more):
    return [
      self.python,
      str(self.root / "tests" / "multiprocess" / "recorded_main.py"),
      f"--config={self.root}/configs/videomae.py:smoke",
      f"--config.workdir={workdir}",
      f"--config.data.path={self.data}",
      f"--config.data.batch_size={BATCH}",
      "--config.data.threads=1",
      f"--config.optim.total_steps={STEPS}",
      "--config.eval_every_steps=10",
      "--config.checkpoint.every_steps=10",
      "--config.checkpoint.keep=9",
      "--config.log_every_steps=4",
      *more,
    ]

  def wait(self, running, logs):
    """Exit codes; after four minutes a failure that says who waits where."""
    deadline = time.monotonic() + 240
    for process in running:
      try:
        process.wait(max(0, deadline - time.monotonic()))
      except subprocess.TimeoutExpired:
        for other in running:
          if other.poll() is None:
            other.send_signal(signal.SIGUSR1)  # see recorded_main.py
        time.sleep(2)
        codes = [other.poll() for other in running]
        texts = [log.read_text() for log, _ in logs]
        pytest.fail("\n".join(map(str, [codes, *texts])))
    return [process.returncode for process in running]

  def run(self, name, workdir, *more, processes=2, **changes):
    """Exit codes, texts and records read, one of each a process.

    `changes` are environment variables of the last process alone.
    """
    with contextlib.ExitStack() as stack:
      # Held, so that no other program is given it before JAX's server binds it:
      # process 0 would end with an error, process 1 wait for its server.
      held = stack.enter_context(socket.socket())
      held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
      held.bind(("localhost", 0))
      address = f"localhost:{held.getsockname()[1]}"
      running, logs = [], []
      for i in range(processes):
        log, record = (
          self.folder / f"{name}_{i}.{kind}" for kind in ("log", "record")
        )
        environ = os.environ | {
          "JAX_PLATFORMS": "cpu",
          "JAX_NUM_CPU_DEVICES": str(2 // processes),
          "PYTHONPATH": str(self.root),
          "RECORD": str(record),
          # One process needs no time to be disturbed in.
          "READ_SECONDS": "0.02" if processes > 1 else "0",
        }
        if processes > 1:
          environ |= {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(i),
          }
        if i == processes - 1:
          environ |= changes
        process = subprocess.Popen(
          self.command(workdir, *more),
          cwd=self.root,
          env=environ,
          stdout=stack.enter_context(log.open("w")),
          stderr=subprocess.STDOUT,
        )
        stack.callback(process.kill)
        running.append(process)
        logs.append((log, record))
      codes = self.wait(running, logs)
    texts = [log.read_text() for log, _ in logs]
    reads = [
      [tuple(line.split()) for line in record.read_text().splitlines()]
      if record.exists()
      else []
      for _, record in logs
    ]
    reads = [[int(i) for s, i in read if s == "train"] for read in reads]
    return codes, texts, reads


@pytest.fixture(scope="module")
def launcher(python, repo_root, tmp_path_factory):
  return Launcher(python, repo_root, tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def undisturbed(launcher):
  """The workdir of one process that nothing disturbs."""
  workdir = launcher.folder / "calm"
  codes, texts, _ = launcher.run("calm", workdir, *MESH, processes=1)
  assert codes == [0], texts[0]
  return workdir


@pytest.fixture(scope="module")
def story(launcher):
  """What the three runs in the same workdir said, and the workdir."""
  workdir = launcher.folder / "rough"

  def run(name, *more, **changes):
    return launcher.run(name, workdir, *MESH, *more, **changes)

  # Each process reads four records a step, up to three steps ahead: these are
  # of steps 18 and 19, and the signal comes before step 16 at the earliest.
  lost = run("lost", TROUBLE="fail:73")
  stopped = run("stopped", TROUBLE=f"sigterm:{4 * 9 + 1}")
  finished = run("finished", processes=1)
  return workdir, lost, stopped, finished


def stored(workdir):
  loaded = ocp.load_checkpointables(
    workdir / "checkpoints" / str(STEPS), {"params": None, "opt_state": None}
  )
  return [np.asarray(leaf) for leaf in jax.tree.leaves(loaded)]


def lines(workdir):
  return [
    {k: v for k, v in row.items() if k != "train/clips_per_second"}
    for row in writers.read_metrics(workdir / "metrics.jsonl")
  ]


def expected_reads(start, rows):
  """Records that a process with these rows of the batch reads from a step."""
  return [
    int(i)
    for step in range(start, STEPS)
    for i in loader.batch_indices(RECORDS, 0, BATCH, step)[rows]
  ]


def step_of(text, phrase):
  return int(text.split(phrase)[1].split()[0].strip(";"))


def test_an_error_in_one_process_ends_both(story):
  _, (codes, texts, reads), _, _ = story
  assert all(code != 0 for code in codes)
  assert "RuntimeError: trouble on demand" in texts[1]
  # Each has read its own half of every batch.
  for read, rows in zip(reads, (slice(0, 4), slice(4, 8)), strict=True):
    assert len(read) >= 64
    assert read == expected_reads(0, rows)[: len(read)]


def test_sigterm_to_one_saves_the_same_step_in_both(story):
  workdir, _, (codes, texts, reads), _ = story
  assert codes == [launch.Stopped.CODE] * 2, texts
  # The evaluation of step 10 stands in the main process's metrics alone.
  assert "resuming at step 10" in texts[0]
  step = step_of(texts[0], "stopped at step ")
  assert 16 <= step < STEPS
  for read, rows in zip(reads, (slice(0, 4), slice(4, 8)), strict=True):
    assert read == expected_reads(10, rows)[: len(read)]
    assert len(read) >= 4 * (step - 10)
  assert (workdir / "checkpoints" / str(step)).is_dir()
  names = {p.name for p in (workdir / "checkpoints").iterdir()}
  assert not [name for name in names if "tmp" in name]


def test_one_process_goes_on_in_the_same_order(story):
  _, _, (_, before, _), (codes, texts, reads) = story
  assert codes == [0], texts
  step = step_of(before[0], "stopped at step ")
  assert f"resuming at step {step}" in texts[0]
  assert reads == [expected_reads(step, slice(None))]


def test_the_end_is_that_of_an_undisturbed_run(story, undisturbed):
  """Bit for bit: two devices either way, and a + b is b + a."""
  workdir = story[0]
  for left, right in zip(stored(workdir), stored(undisturbed), strict=True):
    np.testing.assert_array_equal(left, right)
  assert lines(workdir) == lines(undisturbed)


@pytest.fixture(scope="module")
def one_process_config(launcher, undisturbed):
  config = small_run.small_config(launcher.folder / "alone", launcher.data)
  config.checkpoint.path = str(undisturbed)
  config.report.mask_ratios = (0.5,)
  return config


def test_evaluate(launcher, undisturbed, one_process_config, monkeypatch):
  workdir = launcher.folder / "jobs"
  options = (
    "--config.job=evaluate",
    f"--config.checkpoint.path={undisturbed}",
    "--config.report.mask_ratios=(0.5,)",
    *MESH,
  )
  codes, texts, _ = launcher.run("evaluate", workdir, *options)
  assert codes == [0, 0], texts
  found = json.loads((workdir / "evaluation.json").read_text())
  small_run.use_devices(monkeypatch, 2)
  wanted = evaluate.run(one_process_config)
  assert found["step"] == STEPS and found["records"] == 16
  assert set(found["loss"]) == {"0.5", "0.75"}
  for ratio, loss in wanted["loss"].items():
    assert found["loss"][ratio] == pytest.approx(loss, rel=1e-6)


def test_embed(launcher, undisturbed, one_process_config, monkeypatch):
  workdir = launcher.folder / "jobs"
  options = (
    "--config.job=embed",
    f"--config.checkpoint.path={undisturbed}",
    *MESH,
  )
  codes, texts, _ = launcher.run("embed", workdir, *options)
  assert codes == [0, 0], texts
  small_run.use_devices(monkeypatch, 2)
  for path in embed.run(one_process_config):
    with (
      np.load(path) as wanted,
      np.load(workdir / "embeddings" / path.name) as found,
    ):
      assert set(found.files) == set(wanted.files)
      np.testing.assert_array_equal(found["index"], wanted["index"])
      np.testing.assert_array_equal(found["sequence_id"], wanted["sequence_id"])
      np.testing.assert_allclose(
        found["features"], wanted["features"], atol=2e-6
      )


def test_a_bad_value_ends_both_with_the_message(launcher):
  codes, texts, _ = launcher.run(
    "bad", launcher.folder / "bad", "--config.mask.ratio=2.0"
  )
  assert all(code != 0 for code in codes)
  assert "config.mask.ratio = 2.0: must be a number" in texts[0] + texts[1]
  assert "Traceback" not in texts[0] + texts[1]


def test_sigterm_ends_a_job_that_saves_nothing(launcher, undisturbed):
  """JAX catches SIGTERM for those who ask it; `embed` does not."""
  workdir = launcher.folder / "ended"
  codes, _, _ = launcher.run(
    "ended",
    workdir,
    "--config.job=embed",
    f"--config.checkpoint.path={undisturbed}",
    TROUBLE="sigterm:2",
  )
  assert codes[1] == -signal.SIGTERM and codes[0] != 0
  assert not (workdir / "embeddings" / "train.npz").exists()
