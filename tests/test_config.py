import importlib
import json

import pytest
from ml_collections import ConfigDict

from configs import videomae as videomae_config
from wsiseq_jax import config as configs
from wsiseq_jax import jobs, tasks
from wsiseq_jax.tasks import videomae


def good():
  config = videomae_config.get_config("smoke")
  config.workdir = "out"
  return config


def message(config) -> str:
  with pytest.raises(ValueError) as caught:
    configs.validate(config, videomae.CHECKS)
  return str(caught.value)


@pytest.mark.parametrize("preset", videomae_config.PRESETS)
def test_every_preset_is_valid_and_builds_its_model(preset):
  config = videomae_config.get_config(preset)
  config.workdir = "out"
  configs.validate(config, videomae.CHECKS)
  model = videomae.model_config(config)
  assert model.grid[0] == config.data.frames // model.patch[0]
  assert model.patch == tuple(config.model.patch)


def test_presets_carry_the_published_recipe():
  base = videomae_config.get_config("")
  assert base.model.size == "base"
  assert (base.optim.lr_per_256, base.optim.weight_decay) == (1e-3, 0.05)
  assert (base.optim.b1, base.optim.b2) == (0.9, 0.95)
  assert (base.optim.warmup_epochs, base.optim.total_epochs) == (20, 200)
  assert (base.data.frames, base.data.frame_step, base.data.repeats) == (
    16,
    4,
    4,
  )
  giant = videomae_config.get_config("giant")
  assert giant.optim.clip_norm == 0.02
  assert videomae.model_config(giant).tokens == 2048


def test_unknown_preset_names_the_nearest():
  with pytest.raises(ValueError, match="'bsae'.*did you mean 'base'"):
    videomae_config.get_config("bsae")


def test_unknown_key_names_the_nearest():
  config = good()
  with config.unlocked():
    config.optim.lr_per_265 = 1.0
  assert "config.optim.lr_per_265: unknown key" in message(config)
  assert "did you mean optim.lr_per_256" in message(config)


def test_missing_key():
  config = ConfigDict(good().to_dict())
  del config.mask["ratio"]
  assert "config.mask.ratio: missing" in message(config)


@pytest.mark.parametrize(
  ("key", "value", "wanted"),
  [
    ("data.batch_size", 0, "a whole number, 1 or more"),
    ("data.image_px", (64,), "a tuple of 2 whole numbers"),
    ("model.size", "bsae", "one of 'tiny'"),
    ("mask.ratio", 1.5, "a number from 0.01 to 0.99"),
    ("optim.weight_decay", float("nan"), "a number from 0 upwards"),
    ("mesh.sharding_rules", (("kernel", ("model",)),), "'data' or 'fsdp'"),
    ("report.mask_ratios", (), "a tuple of numbers"),
  ],
)
def test_bad_value_names_key_value_and_what_is_wanted(key, value, wanted):
  config = ConfigDict(good().to_dict())
  block, name = key.split(".")
  with config.ignore_type():
    config[block][name] = value
  text = message(config)
  assert f"config.{key} = {value!r}" in text
  assert wanted in text


def test_rules_between_keys():
  config = good()
  config.optim.total_epochs = 3.0
  assert "total_steps = 12: set one of them to 0" in message(config)
  config = good()
  config.optim.total_steps = 0
  assert "how long shall it train?" in message(config)
  config = good()
  config.optim.min_lr_per_256 = 1.0
  assert "must not exceed" in message(config)
  config = good()
  config.workdir = ""
  assert "config.workdir" in message(config)


def test_all_problems_are_reported_at_once():
  config = good()
  config.data.threads = 0
  config.checkpoint.keep = 0
  text = message(config)
  assert "data.threads" in text and "checkpoint.keep" in text


def test_json_round_trip_keeps_tuples():
  config = good()
  back = configs.from_dict(json.loads(configs.to_json(config)))
  assert back.to_dict() == config.to_dict()
  assert back.is_locked
  assert isinstance(back.data.image_px, tuple)


def test_duration_in_epochs_rounds_once():
  block = ConfigDict({"total_steps": 0, "total_epochs": 3.0})
  # 3 epochs of 10 records at 4 a step: 7.5 steps.
  assert configs.duration_steps(block, "total", 10, 4) == 8
  block.total_epochs = 0.0
  block.total_steps = 5
  assert configs.duration_steps(block, "total", 10, 4) == 5


def test_differences_leave_out_what_does_no_harm():
  old = configs.to_dict(good())
  config = good()
  config.workdir = "elsewhere"
  config.data.threads = 7
  config.data.worker_processes = 2
  config.mesh.fsdp = 8
  config.checkpoint.keep = 9
  assert configs.differences(old, configs.to_dict(config)) == []
  config.optim.b1 = 0.8
  config.data.batch_size = 4
  assert configs.differences(old, configs.to_dict(config)) == [
    ("data.batch_size", 8, 4),
    ("optim.b1", 0.9, 0.8),
  ]


def test_unknown_task_names_the_nearest():
  with pytest.raises(ValueError, match="config.task = 'videomea'.*'videomae'"):
    tasks.get("videomea")


@pytest.mark.parametrize(
  ("module", "job", "words"),
  [
    ("videomae", "embed_tiles", "own: --config=configs/embed_tiles.py"),
    ("videomae", "mil_report", "own: --config=configs/mil_report.py"),
    ("mil", "embed_tiles", "own: --config=configs/embed_tiles.py"),
    ("mil", "train", "such as --config=configs/videomae.py"),
    ("probe", "evaluate", "such as --config=configs/videomae.py"),
    ("mil", "mill", "did you mean 'mil'"),
  ],
)
def test_job_of_another_config(module, job, words):
  config = importlib.import_module(f"configs.{module}").get_config("smoke")
  jobs.check(config)
  config.job = job
  with pytest.raises(ValueError, match=words):
    jobs.check(config)
