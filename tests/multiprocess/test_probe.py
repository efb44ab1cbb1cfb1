"""The job `probe` in two processes, stopped in the middle, and in one."""

import csv
import pathlib

import pytest

from configs import probe as probe_configs
from data_prep.synthetic import smoke
from tests import small_run
from tests.multiprocess import processes
from wsiseq_jax import launch, train
from wsiseq_jax.probe import job

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
RECORDED = pathlib.Path(__file__).with_name("recorded_main.py")
EPOCHS = 8


def scores(workdir):
  with (workdir / "probe.csv").open() as file:
    return {
      tuple(row.values())[:5]: float(row["value"])
      for row in csv.DictReader(file)
    }


def test_two_processes_stop_go_on_and_probe_as_one(
  repo_root, python, tmp_path, monkeypatch
):
  data = smoke.make_labelled_shards(tmp_path / "data")
  config = small_run.small_config(tmp_path / "run", data)
  config.optim.update({"total_steps": 2, "warmup_steps": 0})
  config.data.batch_size = 8
  train.run(config)

  config = probe_configs.get_config("quick")
  config.checkpoint.path, config.data.path = str(tmp_path / "run"), str(data)
  config.data.batch_size = 8
  config.probe.update(
    {"targets": ("kind",), "kinds": ("knn", "attentive", "fine_tune")}
  )
  config.probe.update({"fractions": (1.0,), "seeds": (0,), "resamples": 10})
  config.head.update({"epochs": 2, "batch_size": 8})
  config.fine_tune.update({"epochs": EPOCHS, "batch_size": 8, "patience": 0})
  flags = [f"--config={repo_root}/configs/probe.py:quick"]
  flags += [
    f"--config.{block}.{key}={value}"
    for block in ("checkpoint", "data", "probe", "head", "fine_tune")
    for key, value in config[block].items()
    if value != probe_configs.get_config("quick")[block][key]
  ]
  workdir = tmp_path / "two"
  flags.append(f"--config.workdir={workdir}")
  # The last of two reads 24 records for features, and four a step from then on;
  # one step takes long enough for the signal to be seen before the last one.
  codes, said = processes.run(
    python,
    tmp_path / "stopped",
    2,
    *flags,
    program=RECORDED,
    environ={"RECORD": str(tmp_path / "record"), "READ_SECONDS": "0.02"},
    last={"TROUBLE": "sigterm:32"},
  )
  assert codes == [launch.Stopped.CODE] * 2, said
  assert "fine_tune-1-0: stopped at step" in said
  codes, said = processes.run(python, tmp_path / "resumed", 2, *flags)
  assert codes == [0, 0], said
  assert "3 rows, 2 of them done" in said and "resuming at step" in said
  for name, epochs in (("attentive", 2), ("fine_tune", EPOCHS)):
    metrics = workdir / "runs" / f"0_kind-{name}-1-0" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == epochs

  small_run.use_devices(monkeypatch, 2)
  config.workdir = str(tmp_path / "one")
  job.run(config)
  assert scores(workdir) == pytest.approx(scores(tmp_path / "one"), abs=1e-3)
