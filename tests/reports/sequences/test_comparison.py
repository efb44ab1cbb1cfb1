"""Trained features beside untrained ones and mean colour."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from configs import videomae
from data_prep.synthetic import slides, smoke
from wsiseq_jax import embed, evaluate
from wsiseq_jax import run as train_setup
from wsiseq_jax.reports.sequences import comparison, job, text

OLD = pathlib.Path(__file__).parents[2] / "golden" / "old_runs"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """Of a trained run that was embedded."""
  folder = tmp_path_factory.mktemp("comparison")
  shutil.copytree(OLD / "videomae", folder / "run")
  config = videomae.get_config("smoke").unlock()
  for prefix in ("", "decoder_"):
    for key, value in (("width", 16), ("depth", 1), ("heads", 2)):
      config.model[prefix + key] = value
  config.workdir = str(folder / "run")
  config.data.path = str(smoke.make_shards(folder / "data"))
  embed.run(config)
  return config


def stored(config):
  run = evaluate.load(config)
  arrays, opened = job.read_embeddings(run, pathlib.Path(config.workdir))
  return run, opened, arrays


def truth_of(folder, arrays, glass=()):
  """Left and right half of each slide are of two types; some are glass."""
  folder.mkdir()
  x, y = arrays["frame_level0_xy"].reshape(-1, 2).max(axis=0).astype(int) + 1
  cells = np.zeros((y, x), np.int8)
  for slide in np.unique(arrays["slide_id"]):
    mine = arrays["frame_level0_xy"][arrays["slide_id"] == slide][..., 0]
    cells[:] = np.arange(x)[None] > np.median(mine)
    if slide in glass:
      cells[:] = -1
    truth = slides.Truth(
      str(slide), cells, np.zeros_like(cells), (), downsample=1, mpp=1.0
    )
    truth.save(folder / f"{slide}.npz")
  return str(folder)


# Two points are no sixteen clusters.
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_rows_by_hand(config, tmp_path):
  run, opened, arrays = stored(config)
  run.config.unlock().report.truth = truth_of(tmp_path / "truth", arrays)
  known = slides.sequence_types(
    run.config.report.truth, arrays["slide_id"], arrays["frame_level0_xy"]
  )
  # Features that are the types: the best that there is.
  arrays["features"] = np.eye(2, 16, dtype=np.float32)[np.maximum(known, 0)]
  found = comparison.compare(run, opened, arrays)
  assert [row[0] for row in found.rows] == [
    "trained", "untrained", "mean colour",
  ]  # fmt: skip
  assert found.rows[0][1:] == (pytest.approx(1), 1.0)
  assert all(0 <= value <= 1 for row in found.rows for value in row[1:])
  assert found.known == (known >= 0).sum() and found.types == 2
  assert found.patients == len(np.unique(arrays["patient_id"][known >= 0]))
  assert found.verdict.startswith("Training brought features above")


def test_untrained_is_the_run_before_its_first_step(config):
  run, opened, _ = stored(config)
  prepared = train_setup.prepare(run.config)
  first = train_setup.first_state(prepared).params
  features = comparison.untrained_features(run, opened)
  assert len(features) == len(opened)
  fresh = dataclasses.replace(run, params=first)
  wanted = embed.embed_split(fresh, opened[0][0])["features"]
  np.testing.assert_allclose(features[: len(wanted)], wanted, atol=1e-6)


def test_verdict_needs_both_measures_above_both_others():
  rows = [
    ("trained", 0.4, 0.7),
    ("untrained", 0.3, 0.8),
    ("mean colour", 0.0, 0.0),
  ]
  found = comparison.FeatureComparison(rows, 10, 3, 2)
  assert found.verdict == "Training did not bring features above untrained."


def test_truth_of_other_slides_is_refused(config, tmp_path):
  run, opened, arrays = stored(config)
  (tmp_path / "truth").mkdir()
  run.config.unlock().report.truth = str(tmp_path / "truth")
  with pytest.raises(ValueError, match="config.report.truth.*nothing of slide"):
    comparison.compare(run, opened, arrays)
  run.config.report.truth = ""
  assert comparison.compare(run, opened, arrays) is None


def test_one_patient_is_not_enough(config, tmp_path):
  run, opened, arrays = stored(config)
  patients = arrays["patient_id"]
  others = np.unique(arrays["slide_id"][patients != patients[0]])
  run.config.unlock().report.truth = truth_of(
    tmp_path / "truth", arrays, glass=others
  )
  with pytest.raises(ValueError, match="1 patients with known tissue types"):
    comparison.compare(run, opened, arrays)


def test_loss_against_mean_colour_is_said_at_the_mask_of_training(config):
  result = {
    "split": "val",
    "records": 4,
    "step": 6,
    "trained_mask_ratio": 0.75,
    "loss": {"0.5": 0.1, "0.75": 0.3},
    "mean_colour_loss": {"0.5": 0.2, "0.75": 0.4},
  }
  measures = text.of(config).measures(result)
  name, value, meaning = measures[0]
  assert (name, value) == ("loss against mean colour on val", "0.75")
  assert "(0.75)" in meaning and len(measures) == 3
