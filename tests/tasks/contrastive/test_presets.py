"""Every method's smoke run through the real `main`: train, and the jobs after.

In this process, for imports are a third of such a run; `test_main.py` starts
others.
"""

import json

import numpy as np
import pytest

import main
from configs import contrastive as contrastive_config
from configs import prep_series
from configs import videomae as videomae_config
from data_prep.series import prepare as data_series
from data_prep.synthetic import series as synthetic_series
from tests import small_run
from wsiseq_jax import launch
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import clip_encoder


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  small_run.use_devices(monkeypatch, 1)


def run(config, job="train"):
  config.job = job
  main.run(config)


def rows(workdir, name):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [row for row in map(json.loads, lines) if name in row]


@pytest.mark.slow
@pytest.mark.parametrize("method", contrastive_config.METHODS)
def test_smoke(method, tmp_path):
  config = contrastive_config.get_config(f"{method},smoke")
  config.workdir = str(tmp_path)
  run(config)
  losses = rows(tmp_path, "train/loss")
  assert losses[-1]["step"] == 12
  assert all(np.isfinite(row["train/loss"]) for row in losses)
  # Drift shards: position in micrometres is the time.
  saved = json.loads((tmp_path / "config.json").read_text())["model"]
  assert (saved["time_shortest"], saved["time_longest"]) == (2, 20000)
  assert losses[-1]["train/used_records"] == 1
  assert losses[-1]["train/feature_rank"] > 1
  predicts = method in ("tvrl", "clm")
  assert ("train/prediction_loss" in losses[-1]) == predicts


def test_plain_smoke_is_that_of_tvrl():
  plain = contrastive_config.get_config("smoke")
  assert (
    plain.to_dict() == contrastive_config.get_config("tvrl,smoke").to_dict()
  )


def test_the_demos_have_encoders_of_one_size():
  """MAE's is the frame encoder of the contrastive methods."""
  series = videomae_config.get_config("series,demo")
  other = contrastive_config.get_config("tvrl,demo")
  size = {name: series.model[name] for name in ("width", "depth", "heads")}
  assert size == clip_encoder.SIZES[other.model.size]
  assert series.data.image_px == other.data.image_px
  assert series.data.batch_size == other.data.batch_size
  assert series.optim.total_steps == other.optim.total_steps


@pytest.fixture(scope="module")
def series(tmp_path_factory):
  """A small prepared set of series, padded to the longest."""
  folder = tmp_path_factory.mktemp("series")
  raw = folder / "raw"
  subjects = synthetic_series.make_subjects(24, seed=0)
  synthetic_series.write(raw, subjects, 32, False, True)
  config = prep_series.get_config("smoke").to_dict()
  config["csv"] = str(raw / synthetic_series.TABLE)
  config["out"] = str(folder / "prep")
  assert data_series.prepare_series(config).exit_code == 0
  return folder / "prep"


@pytest.mark.slow
def test_series_from_training_to_the_report(
  series, tmp_path, monkeypatch, capsys
):
  """Years, padded series, dense clips; all jobs, and no hidden patches."""
  config = contrastive_config.get_config("tvrl,smoke")
  config.workdir = str(tmp_path)
  data = series / "shards"
  config.data.update(
    {
      "path": str(data),
      "clips": "1c4f1s",
      "dense_step": 2,
      "batch_size": 4,
    }
  )
  # Of two validation records one frame at least is hidden.
  config.objective.mask_ratio = 0.5
  run(config)
  saved = json.loads((tmp_path / "config.json").read_text())["model"]
  assert (saved["time_shortest"], saved["time_longest"]) == (0.1, 100)
  run(config, "embed")
  with np.load(tmp_path / "embeddings" / "train.npz") as arrays:
    count = len(sources.RecordSource(data, "train"))
    assert arrays["features"].shape == (count, 16)
    assert np.isfinite(arrays["features"]).all()
  page = tmp_path / "report" / "index.html"
  with monkeypatch.context() as other:  # of several processes one writes
    other.setattr(launch, "is_main", lambda: False)
    run(config, "report")
  assert not page.parent.exists()
  run(config, "report")
  assert "contrastive_loss on val" not in page.read_text()
  run(config, "evaluate")
  result = json.loads((tmp_path / "evaluation.json").read_text())
  last = rows(tmp_path, "val/loss")[-1]
  for name in ("contrastive_loss", "prediction_loss", "clip_cosine"):
    wanted = last[f"val/{name}"]
    assert result[name]["fixed views"] == pytest.approx(wanted, rel=1e-5)
  # New measures are news: the page is made again, and then left as it is.
  run(config, "report")
  page = page.read_text()
  capsys.readouterr()
  run(config, "report")
  assert "up to date" in capsys.readouterr().err
  for section in ("clusters", "neighbours", "training", "sequences"):
    assert f'id="{section}"' in page
  # Neither pictures of hidden patches, nor slides to draw maps on.
  for section in ("reconstructions", "slides", "maps"):
    assert f'id="{section}"' not in page
  assert "log(2 B - 1)" in page and "mean colour" not in page
  assert "contrastive_loss on val" in page
