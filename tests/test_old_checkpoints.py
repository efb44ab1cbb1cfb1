"""Runs of older code (`golden/old_runs`) do with today's code what they did."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest

from configs import contrastive as contrastive_config
from configs import probe as probe_config
from configs import videomae as videomae_config
from data_prep.synthetic import smoke
from wsiseq_jax import encoders, jobs
from wsiseq_jax.data import loader

OLD = pathlib.Path(__file__).parent / "golden" / "old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text())
# Keys that a config made before they existed lacks.
YOUNGER = (
  "wandb",
  "report.queries",
  "optim.eps",
  "model.attention_kernel",
  "model.init_from",
  "mask.run_patches",
  "objective.prediction_start",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return smoke.make_shards(tmp_path_factory.mktemp("data"))


def config_of(name, workdir, data):
  """The config that the README of the old runs names."""
  if name == "contrastive":
    config = contrastive_config.get_config("tvrl,smoke")
  else:
    config = videomae_config.get_config("smoke")
    for prefix in ("", "decoder_"):
      for key, value in (("width", 16), ("depth", 1), ("heads", 2)):
        config.model[prefix + key] = value
  config.workdir = str(workdir)
  config.data.path = str(data)
  config.checkpoint.every_minutes = 0.0
  return config


def run_of(folder, name, without=()):
  """A copy of an old run, some keys deleted from its config."""
  shutil.copytree(OLD / name, folder, dirs_exist_ok=True)
  path = folder / "checkpoints" / "6" / "meta" / "data.json"
  meta = json.loads(path.read_text())
  for key in without:
    *parents, last = key.split(".")
    block = meta["config"]
    for parent in parents:
      block = block.get(parent, {})
    block.pop(last, None)
  path.write_text(json.dumps(meta))
  return folder


def numpy_order(count, seed, epoch):
  return np.random.default_rng([seed, epoch]).permutation(count)


def close(found, expected, rtol=1e-5):
  np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_run_is_evaluated_embedded_and_resumed(
  name, tmp_path, data, monkeypatch
):
  run = run_of(tmp_path, name, YOUNGER)
  config, expected = config_of(name, run, data), EXPECTED[name]
  for job in ("evaluate", "embed"):
    config.job = job
    jobs.run(config)
  measured = json.loads((run / "evaluation.json").read_text())
  for metric, means in expected["evaluation"].items():
    for kind, value in means.items():
      close(measured[metric][kind], value)
  features = np.load(run / "embeddings" / "val.npz")["features"]
  close(features[:2], expected["features"])

  config.job = "train"
  # The records of its last steps, in the order of that time.
  monkeypatch.setattr(loader, "epoch_order", numpy_order)
  jobs.run(config)
  assert (run / "checkpoints" / "12" / "params").is_dir()
  logged = {}
  for line in (run / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    logged.setdefault(row["step"], {}).update(row)
  for step, key, value in expected["resumed"]:
    close(logged[step][key], value, rtol=1e-4)


@pytest.mark.parametrize("without", [(), YOUNGER], ids=["as_it_is", "older"])
@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_run_encodes_tiles(name, without, tmp_path):
  run = run_of(tmp_path, name, without)
  encoder = encoders.load({"name": "run", "checkpoint": str(run)})
  tiles = np.arange(2 * 32 * 32 * 3) * 7919 % 256
  tiles = tiles.astype(np.uint8).reshape(2, 32, 32, 3)
  close(encoder.apply(encoder.params, tiles), EXPECTED[name]["tile_features"])


@pytest.mark.parametrize("name", EXPECTED)
def test_an_old_run_is_probed(name, tmp_path):
  config = probe_config.get_config("quick")
  config.workdir = str(tmp_path / "probe")
  config.data.path = str(smoke.make_labelled_shards(tmp_path / "labels"))
  config.data.update({"batch_size": 16, "threads": 2})
  config.checkpoint.path = str(run_of(tmp_path / "run", name, YOUNGER))
  config.probe.update(
    {"targets": ("kind", "level"), "kinds": ("linear",), "resamples": 10}
  )
  config.probe.update({"fractions": (1.0,), "seeds": (0,)})
  jobs.run(config)
  with (tmp_path / "probe" / "probe.csv").open(newline="") as file:
    rows = {f"{r['target']} {r['metric']}": r for r in csv.DictReader(file)}
  for measure, value in EXPECTED[name]["linear_probe"].items():
    close(float(rows[measure]["value"]), value)
