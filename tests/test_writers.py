"""Metrics files, progress, and a fake Weights & Biases."""

import io
import json
import sys
import types

import pytest

from tests import small_run
from wsiseq_jax import config as configs
from wsiseq_jax import tasks, train, writers


def write(path, rows, tail=""):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def test_a_resume_drops_later_lines_and_half_lines(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [{"step": s, "train/loss": s / 10} for s in (2, 4, 6)]
  write(path, rows, tail='{"step": 8, "tra')
  writer = writers.MetricWriter(tmp_path, resume_step=4)
  assert writer.has(4, "train/loss") and not writer.has(6, "train/loss")
  writer.scalars(6, {"train/loss": 0.5})
  writer.close()
  steps = [row["step"] for row in writers.read_metrics(path)]
  assert steps == [2, 4, 6]
  assert writers.read_metrics(path)[-1] == {"step": 6, "train/loss": 0.5}
  assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
  with pytest.raises(ValueError, match="metrics.jsonl:2: not JSON"):
    writers.read_metrics(path)


def test_no_file_means_no_lines(tmp_path):
  assert writers.read_metrics(tmp_path / "none.jsonl") == []


def test_picture(tmp_path):
  rows = [{"step": s, "train/loss": 1 / (s + 1)} for s in range(30)]
  rows.append({"step": 29, "val/loss": 0.5})
  writers.plot_loss(rows, tmp_path / "loss.png")
  assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
  writers.plot_loss([], tmp_path / "none.png")
  assert not (tmp_path / "none.png").exists()


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_redraws_in_a_terminal():
  stream = Terminal()
  progress = writers.Progress(10, stream=stream)
  progress.message("a message")
  progress.show(10, {"loss": "0.4"})
  progress.close()
  text = stream.getvalue()
  assert "a message\n" in text
  last = text.rsplit("\r", 1)[1]
  assert "100%" in last and "10/10" in last and "loss=0.4" in last
  assert text.endswith("\n")


def test_progress_is_whole_lines_in_a_log(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr(writers, "LINE_EVERY_SECONDS", 0.0)
  progress = writers.Progress(100, start=10, stream=stream)
  progress.show(20, {"loss": "0.5"})
  progress.message("step 20: val/loss 0.7")
  progress.show(40, {"loss": "0.4"})
  progress.close()
  text = stream.getvalue()
  assert "\r" not in text and "\x1b" not in text and "\n\n" not in text
  lines = text.splitlines()
  for place in (10, 20, 40):
    assert any(f"{place}/100" in line for line in lines)
  assert "loss=0.5" in lines[1] and lines[2] == "step 20: val/loss 0.7"


def test_progress_is_sparse_in_a_log():
  stream = io.StringIO()
  progress = writers.Progress(1000, stream=stream)
  for step in range(1, 1000):
    progress.show(step, {})
  assert len(stream.getvalue().splitlines()) == 1
  progress.close()
  assert "999/1000" in stream.getvalue().splitlines()[-1]


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


def wandb_config(tmp_path):
  config = small_run.small_config(tmp_path / "run", tmp_path / "data")
  (tmp_path / "run").mkdir(exist_ok=True)
  config.wandb.update({"project": "slides", "group": "first"})
  return config


def test_what_the_library_is_told(tmp_path, runs):
  config = wandb_config(tmp_path)
  sink = writers.WandbSink(config)
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
  writers.WandbSink(config)
  assert runs[1].said["id"] == runs[0].said["id"]
  config.workdir = str(tmp_path)
  writers.WandbSink(config)
  assert runs[2].said["id"] != runs[0].said["id"]


def test_without_the_library(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match="'slides': needs the package wandb"):
    writers.WandbSink(wandb_config(tmp_path))


def test_it_is_not_imported_unasked(tmp_path):
  config = small_run.small_config(tmp_path, tmp_path)
  assert config.wandb.project == ""
  assert "wandb" not in sys.modules


def test_a_checkpoint_from_before_can_be_used(tmp_path):
  config = small_run.small_config(tmp_path, tmp_path)
  saved = configs.to_dict(config)
  del saved["wandb"]
  kind = tasks.get(config.task).Config
  merged = configs.complete(kind, saved, config)
  assert merged.wandb.project == ""
  assert not configs.differences(kind, saved, configs.to_dict(config))


@pytest.mark.slow
def test_a_training_sends_its_lines(tmp_path, runs):
  data = small_run.shards(tmp_path / "data")
  config = wandb_config(tmp_path)
  config.data.path = str(data)
  config.optim.update({"total_steps": 2, "warmup_steps": 0})
  config.log_every_steps = 1
  train.run(config)
  steps = [step for step, values in runs[0].logged if "train/loss" in values]
  assert steps == [1, 2] and runs[0].is_finished
