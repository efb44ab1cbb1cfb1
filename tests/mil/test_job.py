"""The job `mil` on small bags, for every head."""

import itertools
import json
import shutil

import h5py
import numpy as np
import pytest

from configs import mil as mil_configs
from data_prep.files import done
from tests import small_run
from tests.mil.small_job import folder_of, make, table
from wsiseq_jax import launch, writers
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.mil import job, one_fold, results, settings, synthetic
from wsiseq_jax.mil.trainer import BagTrainer


def test_scores_and_tables(finished):
  folder = folder_of(finished)
  of = {(r["of"], r["metric"]): r for r in finished[1]}
  assert of["model", "auroc"]["mean"] > 0.9
  assert of["model", "auroc"]["predictions"] == 2  # seeds
  row = of["ensemble", "accuracy"]
  assert row["low"] <= row["mean"] <= row["high"]
  assert (row["slides"], row["patients"], row["failures"]) == (32, 16, 1)
  lines = table(folder / "predictions.csv")
  assert list(lines[0]) == [
    "slide_id",
    "patient_id",
    "repeat",
    "fold",
    "seed",
    "split",
    "label",
    "status",
    "scored",
    "threshold",
    "p_normal",
    "p_tumour",
  ]
  # Every slide is tested once by each seed, and validates in some models.
  tests = [r for r in lines if r["split"] == "test"]
  assert len(tests) == 2 * 32 and len(lines) > len(tests)
  # Failures too, and no slide that only validated.
  assert all((r["scored"] == "1") == (r["split"] == "test") for r in lines)
  slides = table(folder / "predictions_slide.csv")
  assert len(slides) == 32 and {r["models"] for r in slides} == {"2"}
  assert {r["scored"] for r in slides} == {"1"}
  mine = [float(r["p_tumour"]) for r in tests if r["slide_id"] == "slide07"]
  row = next(r for r in slides if r["slide_id"] == "slide07")
  assert float(row["p_tumour"]) == pytest.approx(np.mean(mine), abs=1e-5)
  assert float(row["std_p_tumour"]) == pytest.approx(np.std(mine), abs=1e-5)
  said = float(row["p_tumour"]) >= float(row["threshold"])
  assert row["predicted"] == ("normal", "tumour")[said]
  metrics = table(folder / "metrics.csv")
  assert {(r["fold"], r["seed"]) for r in metrics} == {
    ("0", "0"),
    ("0", "1"),
    ("1", "0"),
    ("1", "1"),
    ("all", "0"),
    ("all", "1"),
    ("all", "all"),
  }
  assert "1 slides have no tissue" in (folder / "summary.md").read_text()
  for name in ("roc.png", "calibration.png"):
    assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_numbers_of_metrics_are_those_of_predictions(finished):
  folder = folder_of(finished)
  lines = [
    r
    for r in table(folder / "predictions.csv")
    if r["split"] == "test" and r["seed"] == "1"
  ]
  truth = np.array([r["label"] == "tumour" for r in lines])
  p = np.array([float(r["p_tumour"]) for r in lines])
  said = p >= [float(r["threshold"]) for r in lines]
  wanted = {
    "accuracy": (said == truth).mean(),
    "sensitivity": said[truth].mean(),
    "specificity": 1 - said[~truth].mean(),
    "auroc": np.mean(
      [(a > b) + 0.5 * (a == b) for a in p[truth] for b in p[~truth]]
    ),
  }
  found = {
    r["metric"]: float(r["value"])
    for r in table(folder / "metrics.csv")
    if (r["fold"], r["seed"]) == ("all", "1")
  }
  for name, value in wanted.items():
    assert found[name] == pytest.approx(value, abs=1e-5), name


def test_a_slide_without_tissue_gets_the_prior(finished):
  folder = folder_of(finished)
  lines = table(folder / "predictions.csv")
  rows = [r for r in lines if r["slide_id"] == "slide00"]
  assert rows and {r["status"] for r in rows} == {"no_tissue"}
  splits = table(folder / "splits.csv")
  labels = {r["slide_id"]: r["label"] for r in lines}
  for row in rows:
    train = [
      labels[s["slide_id"]]
      for s in splits
      if s["fold"] == row["fold"] and s["split"] == "train"
    ]
    share = train.count("tumour") / len(train)
    assert float(row["p_tumour"]) == pytest.approx(share, abs=1e-5)
  assert table(folder / "errors.csv") == [
    {
      "slide_id": "slide00",
      "stage": "features",
      "code": "no_tissue",
      "message": "it has no tile",
      "place": "",
    }
  ]
  assert not (folder / "maps" / "slide00.npz").exists()


def test_maps_are_the_predictions_taken_apart(finished):
  folder = folder_of(finished)
  assert len(list((folder / "maps").glob("*.npz"))) == 31
  one = TileMap.load(folder / "maps" / "slide07.npz")
  assert (one.patient_id, one.label, one.class_name) == (
    "case03",
    "tumour",
    "tumour",
  )
  assert one.attention.sum() == pytest.approx(1, abs=1e-5)
  assert one.probability.min() >= 0 and one.probability.max() <= 1
  # Contributions of the model sum to the logit, in each of its models.
  tests = [
    results.load(folder / "models", run).predicted["test"]
    for run in results.find(folder / "models")
  ]
  p = [
    test.values[test.ids.index("slide07"), 1]
    for test in tests
    if "slide07" in test.ids
  ]
  assert len(p) == 2
  logit = np.mean([np.log(x / (1 - x)) for x in p])
  assert one.contribution.sum() == pytest.approx(logit, abs=1e-3)
  assert one.slide_probability == pytest.approx(np.mean(p), abs=1e-5)
  # A third of the tiles tells; they come first.
  third = -(-len(one.xy) // 3)
  assert one.probability[:third].mean() > one.probability[third:].mean() + 0.2
  assert one.level0_mpp == 0.5 and one.in_level0() is one


def test_only_what_is_missing_is_computed_and_nothing_changes(
  finished, monkeypatch
):
  folder, config = folder_of(finished), finished[0]
  names = ("predictions.csv", "metrics.csv", "summary.csv", "summary.md")
  before = {name: (folder / name).read_bytes() for name in names}
  mask = folder / "maps" / "slide07.npz"
  written = mask.stat().st_mtime_ns
  # As if the run had been killed before the JSON of a model was written.
  (folder / "models" / "repeat0_fold1_seed0.json").unlink()
  calls = []
  plain = BagTrainer.fit

  def counted(self, *args, **kwargs):
    calls.append(args[5])
    return plain(self, *args, **kwargs)

  monkeypatch.setattr(BagTrainer, "fit", counted)
  job.run(config)
  assert calls == [0]
  assert before == {name: (folder / name).read_bytes() for name in names}
  assert mask.stat().st_mtime_ns == written
  job.run(config)
  assert calls == [0]


def test_a_job_that_was_stopped_goes_on_bit_for_bit(
  finished, data, tmp_path, monkeypatch
):
  config = make(tmp_path, data=data)
  ticks = itertools.count(1)
  monkeypatch.setattr(
    launch.Preemption, "tick", lambda self: next(ticks) == 200
  )
  with pytest.raises(launch.Stopped):
    job.run(config)
  states = list((tmp_path / "models").rglob("state.npz"))
  assert len(states) == 1
  job.run(config)
  whole = folder_of(finished)
  for name in ("predictions.csv", "metrics.csv", "summary.csv"):
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
  assert not states[0].exists()
  # The same rows as if nothing had happened, a folder a model.
  for folder in (tmp_path / "models").glob("*_seed?"):
    name = f"models/{folder.name}/metrics.jsonl"
    rows = writers.read_metrics(tmp_path / name)
    assert rows == writers.read_metrics(whole / name) and rows
    assert set(rows[0]) == {"step", "train/loss", "train/lr", "val/loss"}


def test_what_a_model_depends_on(finished, data, tmp_path):
  def made_from(config, run=results.FoldRun(0, 0, 0)):  # noqa: B008
    return done.digest(one_fold.inputs(job.prepare(config), run))

  old = made_from(finished[0])
  config = make(tmp_path, data=data)
  assert made_from(config) == old  # not on where it lies
  assert made_from(config, results.FoldRun(0, 0, 1)) != old
  for block, key, value in (
    ("optim", "lr", 1e-4),
    ("model", "hidden", 16),
    ("data", "batch_size", 1),
  ):
    config = make(tmp_path, data=data)
    config[block][key] = value
    assert made_from(config) != old, key


def test_features_that_turn_out_unreadable_are_failures(data, tmp_path):
  features = tmp_path / "features"
  shutil.copytree(data[0], features)
  with h5py.File(features / "slide05.h5", "r+") as file:
    file["features"][1, 0] = np.nan
  config = make(
    tmp_path / "run",
    "mean,smoke",
    (features, data[1]),
    seeds=(0,),
    optim={"epochs": 2},
  )
  job.run(config)
  for _ in range(2):  # also where all models are done
    rows = table(tmp_path / "run" / "errors.csv")
    assert [r["slide_id"] for r in rows] == ["slide00", "slide05"]
    assert "slide05.h5" in rows[1]["message"] and "NaN" in rows[1]["message"]
    said = table(tmp_path / "run" / "predictions_slide.csv")
    assert {r["slide_id"] for r in said if r["status"] != "ok"} == {
      "slide00",
      "slide05",
    }
    assert job.run(config)


def test_saved_models_come_back(finished):
  folder = folder_of(finished) / "models"
  run = results.find(folder)[0]
  saved = json.loads((folder / f"{run.name}.json").read_text())
  found = results.load(folder, run)
  assert found.epoch == saved["epoch"] and run == results.FoldRun(0, 0, 0)
  params = results.load_params(folder, run)
  assert params["tile"]["embed"]["kernel"].shape == (synthetic.WIDTH, 32)


TARGETS = {
  "multiclass": ("kind", "auroc", 0.6),
  "multilabel": ("mark,spot", "auroc", 0.4),
  "regression": ("amount", "r2", 0.3),
  "survival": ("time,event", "concordance", 0.6),
}


@pytest.mark.parametrize("target_type", TARGETS)
def test_other_target_types(target_type, data, tmp_path):
  label, metric, least = TARGETS[target_type]
  # The smallest model compiles fastest.
  preset = "smoke" if target_type == "multiclass" else "mean,smoke"
  config = make(tmp_path, preset, data, target_type=target_type, seeds=(0,))
  config.data.label = label
  if target_type == "survival":
    config.data.batch_size = 5
  summary = job.run(config)
  of = {(r["of"], r["class"], r["metric"]): r for r in summary}
  assert of["model", "", metric]["mean"] > least
  rows = table(tmp_path / "predictions_slide.csv")
  assert len(rows) == 32
  failed = rows[0]
  assert failed["status"] == "no_tissue"
  one = TileMap.load(tmp_path / "maps" / "slide07.npz")
  assert 0 <= one.probability.min() <= one.probability.max() <= 1
  if target_type == "multiclass":
    assert ("model", "c", "auroc") in of
    p = [float(failed[f"p_{name}"]) for name in "abc"]
    assert sum(p) == pytest.approx(1, abs=1e-5) and max(p) < 0.8
    assert one.class_name == rows[7]["predicted"]
  if target_type == "multilabel":
    assert of["model", "mark", "auroc"]["mean"] > 0.9
    assert rows[0]["label"] == "0;" and failed["threshold_mark"]
  if target_type == "regression":
    assert of["model", "", "mae"]["mean"] < 1.5
    assert np.isnan(one.threshold) and one.class_name == "amount"
  if target_type == "survival":
    # Risks are in std of the validation slides; the prior is their mean.
    assert float(failed["value"]) == 0
    assert rows[7]["label"].split(";")[1] == "1"


@pytest.mark.parametrize("preset", mil_configs.presets())
def test_presets_are_valid(preset):
  config = mil_configs.get_config(preset)
  config.workdir = "w"
  if not preset.endswith("smoke"):
    config.data.update({"features": "f", "table": "t"})
  asked = settings.read(config)
  assert asked.model_config(16, 2).name == config.model.name


@pytest.mark.parametrize(
  "block, key, value, words",
  [
    ("optim", "lr", -1.0, "optim.lr = -1.0"),
    ("data", "unlisted", "skip", "'error', 'ignore'"),
    ("folds", "k", 1, "folds.k = 1: must be a whole number, 2 or more"),
    ("folds", "val_share", 0.8, "folds.val_share"),
    ("data", "table", "", "data.table = ''"),
    ("data", "features", "", "data.features = ''"),
    ("predict", "models", "m", "is for config.job = 'mil_predict'"),
    ("model", "name", "abmil", "'gated', 'attention'"),
    ("optim", "class_weights", "rare", "'none', 'balanced'"),
  ],
)
def test_bad_values_are_named(block, key, value, words):
  config = mil_configs.get_config()
  config.workdir = "w"
  config.data.update({"features": "f", "table": "t"})
  config[block][key] = value
  with pytest.raises(ValueError, match=words):
    settings.read(config)


def test_class_weights_want_classes():
  config = mil_configs.get_config("smoke")
  config.workdir, config.optim.class_weights = "w", "balanced"
  settings.read(config)
  config.target_type = "survival"
  with pytest.raises(ValueError, match="'balanced'.*'survival' has no classes"):
    settings.read(config)


def test_a_field_of_another_model_is_refused(data, tmp_path):
  config = make(tmp_path, data=data)
  with config.unlocked():
    config.model.instance_tiles = 4
  with pytest.raises(ValueError, match=r"'gated' has no such.*attention_width"):
    job.run(config)


def test_another_config_is_told_apart(tmp_path):
  config = small_run.small_config(tmp_path, "synthetic")
  with pytest.raises(ValueError, match="--config=configs/mil.py"):
    settings.read(config)


def test_class_of_maps_must_exist(data, tmp_path):
  config = make(tmp_path, data=data, maps={"class_name": "tumor"})
  with pytest.raises(ValueError, match=r"'tumor': classes are \('normal', 'tu"):
    job.run(config)
