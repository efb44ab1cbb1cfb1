"""Weights & Biases, with a module in its place that keeps what it is told."""

import sys
import types

import pytest

from tests import small_run
from wsiseq_jax import config as configs
from wsiseq_jax import evaluate, train, wandb_sink, writers


class FakeRun:
  def __init__(self, **said):
    self.said, self.logged, self.is_finished = said, [], False

  def log(self, values, step):
    self.logged.append((step, values))

  def finish(self):
    self.is_finished = True


@pytest.fixture
def runs(monkeypatch):
  made = []

  def init(**said):
    made.append(FakeRun(**said))
    return made[-1]

  fake = types.ModuleType("wandb")
  fake.init = init
  monkeypatch.setitem(sys.modules, "wandb", fake)
  return made


def config_of(tmp_path):
  config = small_run.small_config(tmp_path / "run", tmp_path / "data")
  (tmp_path / "run").mkdir(exist_ok=True)
  config.wandb.update({"project": "slides", "group": "first"})
  return config


def test_what_the_library_is_told(tmp_path, runs):
  config = config_of(tmp_path)
  sink = wandb_sink.WandbSink(config)
  said = runs[0].said
  assert (said["project"], said["group"], said["entity"]) == (
    "slides", "first", None,
  )  # fmt: skip
  assert said["name"] == "run" and said["resume"] == "allow"
  assert said["config"]["optim.total_steps"] == 6
  writer = writers.MetricWriter(tmp_path / "run", 0, (sink,))
  writer.scalars(2, {"train/loss": 0.5})
  writer.close()
  assert runs[0].logged == [(2, {"train/loss": 0.5})] and runs[0].is_finished
  # A resumed training is the same run; another workdir is another.
  wandb_sink.WandbSink(config)
  assert runs[1].said["id"] == runs[0].said["id"]
  config.workdir = str(tmp_path)
  wandb_sink.WandbSink(config)
  assert runs[2].said["id"] != runs[0].said["id"]


def test_without_the_library(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match="'slides': needs the package wandb"):
    wandb_sink.WandbSink(config_of(tmp_path))


def test_it_is_not_imported_unasked(tmp_path):
  config = small_run.small_config(tmp_path, tmp_path)
  assert config.wandb.project == ""
  assert "wandb" not in sys.modules


def test_a_checkpoint_from_before_can_be_used(tmp_path):
  config = small_run.small_config(tmp_path, tmp_path)
  saved = configs.to_dict(config)
  del saved["wandb"]
  merged = evaluate._merge(saved, config)
  assert merged.wandb.project == ""
  assert not configs.differences(saved, configs.to_dict(config))


@pytest.mark.slow
def test_a_training_sends_its_lines(tmp_path, runs):
  data = small_run.shards(tmp_path / "data")
  config = config_of(tmp_path)
  config.data.path = str(data)
  config.optim.update({"total_steps": 2, "warmup_steps": 0})
  config.log_every_steps = 1
  train.train(config)
  steps = [step for step, values in runs[0].logged if "train/loss" in values]
  assert steps == [1, 2] and runs[0].is_finished
