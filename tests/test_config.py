import importlib
import json

import pytest
from ml_collections import ConfigDict

from configs import contrastive as contrastive_config
from configs import videomae as videomae_config
from wsiseq_jax import config as configs
from wsiseq_jax import jobs, tasks
from wsiseq_jax.tasks import contrastive, videomae


def good():
  config = videomae_config.get_config("smoke")
  config.workdir = "out"
  return config


def message(config) -> str:
  with pytest.raises(ValueError) as caught:
    configs.validate(config, videomae.Config)
  return str(caught.value)


@pytest.mark.parametrize("preset", videomae_config.PRESETS)
def test_every_preset_is_valid_and_builds_its_model(preset):
  config = videomae_config.get_config(preset)
  config.workdir = "out"
  configs.validate(config, videomae.Config)
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
  assert "config.optim.lr_per_265 = 1.0: unknown key" in message(config)
  assert "did you mean 'lr_per_256'" in message(config)


def test_a_missing_key_has_its_default():
  config = ConfigDict(good().to_dict())
  del config.mask["kind"], config.report, config["task"]
  assert message(config).splitlines()[1:] == ["  config.task: missing"]
  config.task = "videomae"
  found = configs.validate(config, videomae.Config)
  assert (found.mask.kind, found.report.clusters) == ("tissue", 16)


@pytest.mark.parametrize(
  ("key", "value", "wanted"),
  [
    ("data.batch_size", 0, "a whole number, 1 or more"),
    ("data.image_px", (64,), "a tuple of 2, each a whole number, 1 or more"),
    ("data.image_px", (0, 224), "1 or more"),
    ("data.frames", 0, "1 or more"),
    ("data.frame_step", 0, "1 or more"),
    ("data.repeats", 0, "1 or more"),
    ("data.crop_scales", (1.5,), "a number, from 0.01 to 1"),
    ("model.size", "bsae", "one of 'tiny'"),
    ("model.patch", (2, 16), "a tuple of 3"),
    ("model.depth", -1, "0 or more"),
    ("model.dtype", "float16", "'bfloat16'"),
    ("model.remat", "all", "'full'"),
    ("model.attention_kernel", "x", "'auto'"),
    ("model.trained_grid", (8, 14), "a tuple of 3"),
    ("mask.ratio", 1.5, "a number, from 0.01 to 0.99"),
    ("optim.weight_decay", float("nan"), "a number, 0 or more"),
    (
      "mesh.sharding_rules",
      (("kernel", ("model",)),),
      "a tuple, each a tuple of 2",
    ),
    ("report.mask_ratios", (), "not empty"),
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


def test_bad_values_of_the_contrastive_task():
  config = contrastive_config.get_config("smoke")
  config.data.clips, config.model.patch = "3c8f2s", 12
  config.objective.kind, config.data.augment.crop_areas = "simclr", (0.9, 0.5)
  with pytest.raises(ValueError) as caught:
    configs.validate(config, contrastive.Config)
  text = str(caught.value)
  for words in (
    "config.workdir = ''",
    "config.data.clips = '3c8f2s': must be a string, '{n}c{f}f{s}s'",
    "config.data.augment.crop_areas = (0.9, 0.5): the first must not exceed",
    "config.model.patch = 12: must be one of 2, 4",
    "config.objective.kind = 'simclr': must be one of 'contrastive'",
  ):
    assert words in text


def test_rules_between_keys():
  config = good()
  config.optim.total_epochs = 3.0
  assert "total_steps = 12: set one of them to 0" in message(config)
  config = good()
  config.optim.total_steps = 0
  assert "total_epochs = 0 and config.optim.total_steps = 0" in message(config)
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


def differences(old, config):
  new = configs.to_dict(config)
  return configs.differences(videomae.Config, old, new)


def test_differences_leave_out_what_does_no_harm():
  old = configs.to_dict(good())
  config = good()
  config.workdir = "elsewhere"
  config.data.threads = 7
  config.data.worker_processes = 2
  config.mesh.fsdp = 8
  config.checkpoint.keep = 9
  assert differences(old, config) == []
  config.optim.b1 = 0.8
  config.data.batch_size = 4
  assert differences(old, config) == [
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
    ("segment", "mil", "own: --config=configs/mil.py"),
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


def test_a_key_that_an_old_config_lacks_had_its_default():
  config = good()
  old = configs.to_dict(config)
  del old["model"]["norm_eps"], old["wandb"], old["optim"]["b1"]
  assert differences(old, config) == []
  config.optim.b1 = 0.8
  assert differences(old, config) == [("optim.b1", 0.9, 0.8)]


def test_retired_keys_are_read_if_they_have_the_value_that_is_left():
  config = contrastive_config.get_config("smoke")
  config.workdir = "out"
  old = configs.to_dict(config)
  old["objective"]["mask_mode"] = "hidden"
  read = configs.complete(contrastive.Config, old)
  assert read.to_dict() == config.to_dict()
  old["objective"]["mask_mode"] = "seen"
  with pytest.raises(
    ValueError, match="objective.mask_mode = 'seen'.*'hidden'"
  ):
    configs.complete(contrastive.Config, old)


def test_a_checkpoint_takes_only_runtime_keys_of_the_command_line():
  old = configs.to_dict(good())
  given = good()
  given.workdir, given.data.batch_size, given.optim.b1 = "else", 2, 0.5
  given.model.attention_kernel, given.checkpoint.path = "xla", "there"
  read = configs.complete(videomae.Config, old, given)
  assert (read.workdir, read.data.batch_size, read.optim.b1) == ("else", 2, 0.9)
  assert read.model.attention_kernel == "xla"
  assert read.checkpoint.path == "there" and read.checkpoint.every_steps == 6
