"""The jobs `mil` and `mil_predict` on small bags, for every head and preset."""

import csv
import json
import pathlib

import jax
import numpy as np
import pytest

from configs import mil as mil_configs
from tests import small_run
from wsiseq_jax.mil import (
  bags,
  fit,
  job,
  predict,
  results,
  scores,
  settings,
  synthetic,
)
from wsiseq_jax.mil.tile_map import TileMap
from wsiseq_jax.models import mil_config

# Of eight devices one divides three bags.
QUICK = {"batch_size": 3}


def make(workdir, preset="smoke", data=None, **blocks):
  """A smoke config on bags that are shared."""
  config = mil_configs.get_config(preset)
  config.workdir = str(workdir)
  config.data.update(QUICK)
  if data is not None:
    features, table = data
    config.data.update({"features": str(features), "table": str(table)})
  for name, values in blocks.items():
    if isinstance(values, dict):
      config[name].update(values)
    else:
      config[name] = values
  return config


def table(path):
  with path.open() as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return synthetic.write(tmp_path_factory.mktemp("bags"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
  """A finished job, and the summary it returned."""
  config = make(tmp_path_factory.mktemp("run"), data=data)
  return config, job.mil(config)


def folder_of(finished):
  return pathlib.Path(finished[0].workdir)


def test_scores_and_tables(finished):
  folder = folder_of(finished)
  of = {(r["of"], r["metric"]): r for r in finished[1]}
  assert of["model", "auroc"]["mean"] > 0.9
  assert of["model", "auroc"]["predictions"] == 2  # seeds
  row = of["ensemble", "accuracy"]
  assert row["low"] <= row["mean"] <= row["high"]
  assert (row["slides"], row["cases"], row["failures"]) == (32, 16, 1)
  lines = table(folder / "predictions.csv")
  assert list(lines[0]) == [
    "slide_id", "case_id", "repeat", "fold", "seed", "split", "label",
    "status", "threshold", "p_normal", "p_tumour",
  ]  # fmt: skip
  # Every slide is tested once by each seed, and validates in some models.
  tests = [r for r in lines if r["split"] == "test"]
  assert len(tests) == 2 * 32 and len(lines) > len(tests)
  slides = table(folder / "predictions_slide.csv")
  assert len(slides) == 32 and {r["models"] for r in slides} == {"2"}
  mine = [float(r["p_tumour"]) for r in tests if r["slide_id"] == "slide07"]
  row = next(r for r in slides if r["slide_id"] == "slide07")
  assert float(row["p_tumour"]) == pytest.approx(np.mean(mine), abs=1e-5)
  assert float(row["std_p_tumour"]) == pytest.approx(np.std(mine), abs=1e-5)
  said = float(row["p_tumour"]) >= float(row["threshold"])
  assert row["predicted"] == ("normal", "tumour")[said]
  metrics = table(folder / "metrics.csv")
  assert {(r["fold"], r["seed"]) for r in metrics} == {
    ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"), ("all", "0"), ("all", "1"),
    ("all", "all"),
  }  # fmt: skip
  assert "1 slides have no tissue" in (folder / "summary.md").read_text()
  for name in ("roc.png", "calibration.png"):
    assert (folder / name).read_bytes()[:4] == b"\x89PNG"


def test_numbers_of_metrics_are_those_of_predictions(finished):
  folder = folder_of(finished)
  lines = [
    r for r in table(folder / "predictions.csv")
    if r["split"] == "test" and r["seed"] == "1"
  ]  # fmt: skip
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
    {"slide_id": "slide00", "status": "no_tissue", "reason": "it has no tile"}
  ]
  assert not (folder / "maps" / "slide00.npz").exists()


def test_maps_are_the_predictions_taken_apart(finished):
  folder = folder_of(finished)
  assert len(list((folder / "maps").glob("*.npz"))) == 31
  one = TileMap.load(folder / "maps" / "slide07.npz")
  assert (one.case_id, one.label, one.class_name) == (
    "case03", "tumour", "tumour",
  )  # fmt: skip
  assert one.attention.sum() == pytest.approx(1, abs=1e-5)
  assert one.probability.min() >= 0 and one.probability.max() <= 1
  # Contributions of the additive model sum to the logit, in each of its models.
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
  plain = fit.Trainer.fit

  def counted(self, *args, **kwargs):
    calls.append(args[-1])
    return plain(self, *args, **kwargs)

  monkeypatch.setattr(fit.Trainer, "fit", counted)
  job.mil(config)
  assert calls == [0]
  assert before == {name: (folder / name).read_bytes() for name in names}
  assert mask.stat().st_mtime_ns == written
  job.mil(config)
  assert calls == [0]


def test_what_a_model_depends_on_is_in_its_stamp(finished, data, tmp_path):
  config = make(tmp_path, data=data)
  run = results.Run(0, 0, 0)
  old = job.stamp(job.prepare(finished[0]), run)
  prepared = job.prepare(config)
  assert job.stamp(prepared, run) == old  # not on where it lies
  assert job.stamp(prepared, results.Run(0, 0, 1)) != old
  for block, key, value in (
    ("optim", "lr", 1e-4), ("model", "hidden", 16), ("data", "batch_size", 1),
  ):  # fmt: skip
    config = make(tmp_path, data=data)
    config[block][key] = value
    assert job.stamp(job.prepare(config), run) != old, key


@pytest.fixture(scope="module")
def others(tmp_path_factory):
  """Other slides, of other cases."""
  features, path = synthetic.write(
    tmp_path_factory.mktemp("others"), cases=6, seed=1
  )
  lines = path.read_text().replace("case", "new", 0).splitlines()
  lines[1:] = [line.replace("case", "new") for line in lines[1:]]
  for file in sorted(features.glob("*.h5")):
    file.rename(file.with_name(file.name.replace("slide", "other")))
  text = "\n".join(line.replace("slide0", "other0") for line in lines)
  path.write_text(text.replace("slide1", "other1") + "\n")
  return features, path


def apply(workdir, models, data, label="label", **changes):
  config = make(workdir, data=data, **changes)
  config.data.label = label
  config.job = "mil_predict"
  config.predict.models = str(models)
  return predict.mil_predict(config), config


def test_models_on_other_slides(finished, others, tmp_path):
  models = folder_of(finished)
  # The model's shape comes from the workdir, whatever the config says.
  summary, _ = apply(tmp_path, models, others, model={"hidden": 7})
  of = {(r["of"], r["metric"]): r for r in summary}
  assert of["ensemble", "auroc"]["mean"] > 0.85
  assert of["model", "auroc"]["predictions"] == 4
  assert of["model", "auroc"]["slides"] == 12
  rows = table(tmp_path / "predictions_slide.csv")
  assert {r["models"] for r in rows} == {"4"}
  assert rows[0]["status"] == "no_tissue"
  assert len(list((tmp_path / "maps").glob("*.npz"))) == 11
  # Without a table: the same predictions, no scores.
  folder = tmp_path / "bare"
  summary, _ = apply(folder, models, (others[0], ""), maps={"write": False})
  assert summary == [] and not (folder / "summary.csv").exists()
  bare = table(folder / "predictions_slide.csv")
  assert [r["p_tumour"] for r in bare] == [r["p_tumour"] for r in rows]
  assert {r["label"] for r in bare} == {""}


def test_slides_that_were_trained_on_are_not_scored(finished, data, tmp_path):
  summary, _ = apply(tmp_path, folder_of(finished), data, maps={"write": False})
  assert summary == []
  assert len(table(tmp_path / "predictions_slide.csv")) == 32


def test_models_that_cannot_be_applied(finished, others, data, tmp_path):
  models = folder_of(finished)
  with pytest.raises(ValueError, match="is not the workdir of a finished job"):
    apply(tmp_path, tmp_path, others)
  with pytest.raises(ValueError, match="is the workdir of the models"):
    apply(models, models, others)
  with pytest.raises(ValueError, match="know the classes .*'normal'.*also has"):
    apply(tmp_path, models, others, label="kind")


HEADS = {
  "multiclass": ("kind", "auroc", 0.6),
  "multilabel": ("mark,spot", "auroc", 0.4),
  "regression": ("amount", "r2", 0.3),
  "survival": ("time,event", "concordance", 0.6),
}


@pytest.mark.parametrize("head", HEADS)
def test_other_heads(head, data, tmp_path):
  label, metric, least = HEADS[head]
  # The smallest model compiles fastest.
  preset = "smoke" if head == "multiclass" else "mean,smoke"
  config = make(tmp_path, preset, data, head=head, seeds=(0,))
  config.data.label = label
  if head == "survival":
    config.data.batch_size = 5
  summary = job.mil(config)
  of = {(r["of"], r["class"], r["metric"]): r for r in summary}
  assert of["model", "", metric]["mean"] > least
  rows = table(tmp_path / "predictions_slide.csv")
  assert len(rows) == 32
  failed = rows[0]
  assert failed["status"] == "no_tissue"
  one = TileMap.load(tmp_path / "maps" / "slide07.npz")
  assert 0 <= one.probability.min() <= one.probability.max() <= 1
  if head == "multiclass":
    assert ("model", "c", "auroc") in of
    p = [float(failed[f"p_{name}"]) for name in "abc"]
    assert sum(p) == pytest.approx(1, abs=1e-5) and max(p) < 0.8
    assert one.class_name == rows[7]["predicted"]
  if head == "multilabel":
    assert of["model", "mark", "auroc"]["mean"] > 0.9
    assert rows[0]["label"] == "0;" and failed["threshold_mark"]
  if head == "regression":
    assert of["model", "", "mae"]["mean"] < 1.5
    assert np.isnan(one.threshold) and one.class_name == "amount"
  if head == "survival":
    # Risks are in deviations of the validation slides; the prior is their mean.
    assert float(failed["value"]) == 0
    assert rows[7]["label"].split(";")[1] == "1"


@pytest.mark.parametrize("preset", mil_configs.PRESETS)
def test_presets_are_valid(preset):
  config = mil_configs.get_config(preset)
  config.workdir = "w"
  if not preset.endswith("smoke"):
    config.data.update({"features": "f", "table": "t"})
  settings.validate(config)
  assert settings.model_config(config, 16, 1).name == config.model.name


@pytest.fixture(scope="module")
def few(data):
  return bags.Bags(str(data[0]), ["slide01", "slide02", "slide03"], "ignore")


@pytest.mark.parametrize("name", mil_configs.MODELS)
@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_every_model_goes_through_a_step(name, head, few):
  """Traced, not compiled: that takes up to ten seconds each."""
  config = mil_configs.get_config(f"{name},smoke")
  config.data.update(QUICK)
  model = settings.model_config(config, few.width, 1 + 2 * (head != "binary"))
  trainer = fit.Trainer(model, head, job.training_settings(config))
  batch = next(few.batches(list(few.status), 3))
  put = trainer._put(batch, np.zeros((3, 1), np.float32))
  key = jax.random.key(0)
  params, slots = jax.eval_shape(trainer._programs.start, key)
  new, _, loss = jax.eval_shape(
    trainer._programs.step, params, slots, *put, np.float32(1), key
  )
  assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(
    lambda x: x.shape, params
  )
  assert loss.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(mil_configs.MODELS) - {"additive"}))
def test_every_model_trains(name, data, tmp_path):
  config = make(
    tmp_path, f"{name},smoke", data, seeds=(0,), optim={"epochs": 1}
  )
  prepared = job.prepare(config)
  result = job.train(prepared, prepared.runs[0])
  assert np.isfinite(result.predicted["test"].values).all()
  assert np.isfinite(result.history).all()


@pytest.mark.parametrize(
  "block, key, value, words",
  [
    ("optim", "lr", -1.0, "optim.lr = -1.0"),
    ("data", "unlisted", "skip", "'error', 'ignore'"),
    ("folds", "k", 1, "folds.k = 1: must be a whole number, 2"),
    ("folds", "val_share", 0.8, "folds.val_share"),
    ("data", "table", "", "data.table = ''"),
    ("data", "features", "", "data.features = ''"),
    ("predict", "models", "m", "is for config.job = 'mil_predict'"),
    ("model", "name", "abmil", "'additive', 'gated'"),
  ],
)
def test_bad_values_are_named(block, key, value, words):
  config = mil_configs.get_config()
  config.workdir = "w"
  config.data.update({"features": "f", "table": "t"})
  config[block][key] = value
  with pytest.raises(ValueError, match=words):
    settings.validate(config)


def test_presets_are_all_models():
  assert mil_configs.MODELS == mil_config.MODELS


def test_another_config_is_told_apart(tmp_path):
  config = small_run.small_config(tmp_path, "synthetic")
  with pytest.raises(ValueError, match="--config=configs/mil.py"):
    settings.validate(config)


def test_class_of_maps_must_exist(data, tmp_path):
  config = make(tmp_path, data=data, maps={"class_name": "tumor"})
  with pytest.raises(ValueError, match=r"'tumor': classes are \('normal', 'tu"):
    job.mil(config)


# Thresholds and scores by hand.


def test_youden():
  labels = np.array([0, 0, 1, 0, 1, 1.0])
  p = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
  # 3/3 + 2/3 at 0.25, as 2/3 + 3/3 at 0.45, which is nearer to a half.
  assert scores.youden(labels, p) == pytest.approx(0.45)
  assert scores.youden(labels, 1 - p) == pytest.approx(0.4)
  assert np.isnan(scores.youden(np.ones(3), p[:3]))
  with_unknown = np.append(labels, np.nan), np.append(p, 0.0)
  assert scores.youden(*with_unknown) == pytest.approx(0.45)


def test_thresholds_of_one_class():
  labels, p = np.zeros((3, 1)), np.full((3, 2), 0.5)
  found, is_chosen = job.thresholds("binary", labels, p)
  assert found.tolist() == [0.5, 0.5] and not is_chosen
  found, is_chosen = job.thresholds("multiclass", labels, p)
  assert np.isnan(found).all() and is_chosen


def test_decisions_by_own_thresholds():
  labels = np.array([[1.0], [1.0], [0.0], [0.0]])
  p = np.array([0.6, 0.6, 0.3, 0.3])
  values = np.stack([1 - p, p], axis=1)
  threshold = np.array([0.5, 0.7, 0.2, 0.4])[:, None].repeat(2, axis=1)
  found = scores.scores("binary", labels, values, threshold)
  wanted = {"sensitivity": 0.5, "specificity": 0.5, "auroc": 1.0, "ece": 0.35}
  for name, value in wanted.items():
    assert found[name][0] == pytest.approx(value), name
  # Twice the first slide, and nothing of the third.
  weights = np.array([[2.0, 1.0, 0.0, 1.0]])
  found = scores.scores("binary", labels, values, threshold, weights)
  assert found["sensitivity"][0] == pytest.approx(2 / 3)
  assert found["specificity"][0] == 1


def test_labels_that_nobody_knows_are_left_out():
  labels = np.array([[1.0, np.nan], [0.0, np.nan], [np.nan, 1.0]])
  values = np.array([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4]])
  half = np.full((3, 2), 0.5)
  found = scores.by_class("multilabel", labels, values, half)
  assert found[0]["auroc"][0] == 1 and found[0]["accuracy"][0] == 1
  assert np.isnan(found[1]["auroc"][0]) and found[1]["accuracy"][0] == 0
  # The mean over labels that have a value.
  assert scores.scores("multilabel", labels, values, half)["auroc"][0] == 1


def test_map_in_micrometres(tmp_path):
  one = TileMap(
    "s", "c", np.array([[100.0, 50.0]]), 100.0, "um", 0.25, None,
    *(np.ones(1, np.float32),) * 3, "yes", 0.5, float("nan"), None,
  )  # fmt: skip
  one.save(tmp_path / "s.npz")
  back = TileMap.load(tmp_path / "s.npz").in_level0()
  assert back.xy.tolist() == [[400.0, 200.0]] and back.tile_size == 400
  assert back.label is None and back.level0_size is None
  (tmp_path / "x.npz").write_bytes(b"nothing")
  with pytest.raises(ValueError, match="x.npz is no map of tiles"):
    TileMap.load(tmp_path / "x.npz")
  unknown = TileMap(**{**vars(one), "level0_mpp": None})
  with pytest.raises(ValueError, match="slide 's': .* level0_mpp is unknown"):
    unknown.in_level0()


def test_saved_models_come_back(finished):
  folder = folder_of(finished) / "models"
  run = results.find(folder)[0]
  saved = json.loads((folder / f"{run.name}.json").read_text())
  found = results.load(folder, run)
  assert found.epoch == saved["epoch"] and run == results.Run(0, 0, 0)
  params = results.load_params(folder, run)
  assert params["tile"]["embed"]["kernel"].shape == (synthetic.WIDTH, 32)
