"""The job `probe` on a tiny encoder and labels that brightness tells."""

import csv
import dataclasses
import functools
import itertools
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import probe as probe_configs
from data_prep import targets
from data_prep.synthetic import smoke
from tests import small_run, tfds_sets
from wsiseq_jax import embed, evaluate, launch, train, writers
from wsiseq_jax.probe import fine_tune, knn, linear, settings
from wsiseq_jax.probe import job as probe
from wsiseq_jax.probe.samples import frozen_features


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return smoke.make_labelled_shards(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, data):
  """A VideoMAE that took two steps."""
  workdir = tmp_path_factory.mktemp("run")
  config = small_run.small_config(workdir, data)
  config.optim.update({"total_steps": 2, "warmup_steps": 0})
  config.data.batch_size = 8
  train.run(config)
  return workdir


def make(workdir, data, checkpoint, **more) -> ConfigDict:
  config = probe_configs.get_config("quick")
  config.workdir = str(workdir)
  config.data.path = str(data)
  config.data.update({"batch_size": 16, "threads": 2})
  config.checkpoint.path = str(checkpoint)
  config.probe.update(
    {
      "targets": ("kind", "level"),
      "fractions": (0.25, 1.0),
      "seeds": (0, 1),
      "resamples": 50,
    }
  )
  for key, value in more.items():
    config.probe[key] = value
  return config


def table(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_rows_tables_and_resuming(tmp_path, data, checkpoint, monkeypatch):
  config = make(tmp_path, data, checkpoint, targets=("kind", "level", "rare"))
  calls = []
  compute = embed.embed_split

  def counted(*args):
    calls.append(args[1].split)
    return compute(*args)

  monkeypatch.setattr(embed, "embed_split", counted)
  summary = probe.run(config)
  # Brightness is in any encoder's features.
  of = {
    (r["target"], r["probe"], r["fraction"], r["metric"]): r for r in summary
  }
  assert of["kind", "linear", 1.0, "auroc"]["mean"] > 0.95
  assert of["kind", "knn", 0.25, "accuracy"]["mean"] > 0.8
  assert of["level", "linear", 1.0, "r2"]["mean"] > 0.8
  row = of["level", "linear", 1.0, "mae"]
  assert row["low"] <= row["mean"] <= row["high"]
  assert row["seeds"] == 1 and np.isnan(row["std"])
  assert of["level", "linear", 0.25, "mae"]["seeds"] == 2
  rows = table(tmp_path / "probe.csv")
  assert list(rows[0]) == [
    "target", "probe", "fraction", "seed", "metric", "value",
  ]  # fmt: skip
  few = {
    r["metric"]: float(r["value"])
    for r in rows
    if (r["target"], r["probe"], r["fraction"], r["seed"])
    == ("kind", "linear", "0.25", "1")
  }
  assert few["train_patients"] == 6 and few["train_sequences"] == 12
  assert "## kind" in (tmp_path / "probe.md").read_text()
  assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"
  # A third of the patients have no label `rare`: counted, and not used.
  counts = {
    (r["target"], r["split"]): r for r in table(tmp_path / "labels.csv")
  }
  assert counts["rare", "train"]["unknown"] == "16"
  assert counts["rare", "train"]["patients"] == "16"
  assert of["rare", "linear", 1.0, "auroc"]["test_patients"] == 8

  # Once a split, whatever the number of targets and probes.
  assert calls == ["train", "val", "test"]
  for module in (linear, knn):
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("again"))
  again = probe.run(config)
  assert calls == ["train", "val", "test"] and str(again) == str(summary)


def test_only_what_is_new_is_computed(tmp_path, data, checkpoint, monkeypatch):
  config = make(tmp_path, data, checkpoint, targets=("kind",), kinds=("knn",))
  probe.run(config)
  calls = []
  run = knn.run

  def counted(train, *rest):
    calls.append(len(train))
    return run(train, *rest)

  monkeypatch.setattr(knn, "run", counted)
  config.probe.seeds = (0, 1, 2)
  probe.run(config)
  assert calls == [12]
  monkeypatch.setitem(probe.VERSIONS, "linear", 99)
  probe.run(config)
  assert calls == [12]
  monkeypatch.setitem(probe.VERSIONS, "knn", 99)
  probe.run(config)
  assert len(calls) == 1 + 4  # three seeds at a quarter, one with all labels


def test_a_corrected_label_is_seen_and_embeds_nothing(
  tmp_path, data, checkpoint, monkeypatch
):
  folder = tmp_path / "data" / "shards"
  shutil.copytree(data, folder)
  config = make(
    tmp_path / "p", folder, checkpoint, targets=("kind",), kinds=("knn",)
  )
  config.probe.fractions = (1.0,)
  probe.run(config)
  before = table(tmp_path / "p" / "probe.csv")
  monkeypatch.setattr(embed, "embed_split", lambda *_: pytest.fail("again"))
  file = folder / targets.FILE
  found = targets.TargetTable.from_json(file.read_text())
  # Every test patient has the next class.
  rows = {
    name: ((row[0] + name.startswith("test")) % 3, *row[1:])
    for name, row in found.rows.items()
  }
  changed = targets.TargetTable(found.targets, rows)
  file.write_text(changed.to_json())
  probe.run(config)
  assert table(tmp_path / "p" / "probe.csv") != before


def test_a_job_that_was_stopped_goes_on_bit_for_bit(
  tmp_path, data, checkpoint, monkeypatch
):
  def run(name):
    config = make(
      tmp_path / name, data, checkpoint, targets=("level",),
      kinds=("attentive",), fractions=(1.0,), seeds=(0,),
    )  # fmt: skip
    config.head.update({"epochs": 4, "warmup_epochs": 0, "batch_size": 16})
    probe.run(config)
    return (tmp_path / name / "probe.csv").read_bytes()

  whole = run("calm")
  ticks = itertools.count(1)
  monkeypatch.setattr(launch.Preemption, "tick", lambda self: next(ticks) == 25)
  with pytest.raises(launch.Stopped) as error:
    run("rough")
  assert error.value.code == 75
  folder = tmp_path / "rough" / "runs" / "1_level-attentive-1-0"
  assert (folder / "state.npz").exists()
  assert run("rough") == whole
  assert not (folder / "state.npz").exists()
  rows = writers.read_metrics(folder / "metrics.jsonl")
  assert [row["step"] for row in rows] == [10, 20, 30, 40]
  assert set(rows[0]) == {"step", "train/loss", "train/lr", "val/r2"}


def test_another_checkpoint_has_other_features(
  tmp_path, data, checkpoint, monkeypatch
):
  """Same workdir, same data: nothing of the first checkpoint is used again."""
  config = make(tmp_path, data, checkpoint, targets=("kind",), kinds=("knn",))
  config.probe.fractions = (1.0,)
  probe.run(config)
  calls = []
  compute = embed.embed_split
  monkeypatch.setattr(
    embed, "embed_split", lambda *a: calls.append(1) or compute(*a)
  )
  load = evaluate.load

  def other(*args, **kwargs):
    run = load(*args, **kwargs)
    # As if the workdir of training had been trained anew, to the same step.
    return dataclasses.replace(run, identity="other")

  monkeypatch.setattr(evaluate, "load", other)
  probe.run(config)
  assert len(calls) == 3
  assert len(list((tmp_path / "features").glob("*.npz"))) == 6
  probe.run(config)
  assert len(calls) == 3


def test_tokens_are_computed_where_features_alone_were_kept(
  tmp_path, data, checkpoint
):
  config = make(tmp_path, data, checkpoint, targets=("kind",), kinds=("knn",))
  job = probe.prepare(config)
  few = frozen_features(job.run, job.splits["val"], tmp_path, tokens=False)
  assert "tokens" not in few
  more = frozen_features(job.run, job.splits["val"], tmp_path, tokens=True)
  assert more["tokens"].shape[:2] == (18, 4)
  np.testing.assert_array_equal(few["features"], more["features"])
  again = frozen_features(job.run, job.splits["val"], tmp_path, tokens=False)
  assert "tokens" not in again and len(list(tmp_path.rglob("*.npz"))) == 1


def test_features_that_are_no_numbers_are_refused(
  tmp_path, data, checkpoint, monkeypatch
):
  job = probe.prepare(make(tmp_path, data, checkpoint))
  broken = {
    "features": np.array([[0.0], [np.nan]]),
    "sequence_id": np.array(["good", "bad"]),
  }
  monkeypatch.setattr(embed, "embed_split", lambda *_: broken)
  with pytest.raises(ValueError, match="of 1 of 2 sequences of 'val' .* bad"):
    frozen_features(job.run, job.splits["val"], tmp_path, tokens=False)


def test_picture_sets_of_tfds(tmp_path, checkpoint):
  folder = tfds_sets.write(tfds_sets.PatchCamelyon, tmp_path / "tfds")
  config = make(tmp_path, "", checkpoint, targets=(), kinds=("linear",))
  config.data.update(
    {
      "path": f"tfds:{folder}/patch_camelyon",
      "val_split": "validation",
    }
  )
  summary = probe.run(config)
  of = {(r["fraction"], r["metric"]): r for r in summary}
  assert of[1.0, "auroc"]["mean"] == 1.0
  assert of[1.0, "auroc"]["test_sequences"] == 16
  # Half black, half blue: each a patient of its own, a quarter of each kept.
  few = [
    float(r["value"])
    for r in table(tmp_path / "probe.csv")
    if (r["fraction"], r["metric"]) == ("0.25", "train_patients")
  ]
  assert few == [8, 8]


def test_seeds_choose_other_patients(tmp_path, data, checkpoint):
  job = probe.prepare(make(tmp_path, data, checkpoint))
  rows = [r for r in probe.all_rows(job) if r.kind == "knn"][:2]
  assert [r.seed for r in rows] == [0, 1] and rows[0].fraction == 0.25
  a, b = (set(job.sets(row)[0].patients.tolist()) for row in rows)
  assert a != b and len(a) == len(b) == 6


@pytest.mark.parametrize(
  "change, words",
  [
    ({"targets": ("constant",)}, "'constant' is the same everywhere, 7"),
    ({"targets": ("knd",)}, r"\('knd',\): the data has \['kind'"),
    ({"kinds": ("pooling",)}, "'pooling' needs a temporal encoder"),
  ],
)
def test_what_cannot_be_probed(tmp_path, data, checkpoint, change, words):
  with pytest.raises(ValueError, match=words):
    probe.run(make(tmp_path, data, checkpoint, **change))


def test_a_patient_in_two_splits_is_refused(tmp_path, data, checkpoint):
  config = make(tmp_path, data, checkpoint)
  config.data.test_split = "train"
  with pytest.raises(ValueError, match="train_split and config.data.test_spl"):
    probe.run(config)


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("probe.kinds", ("linnear",), "probe.kinds = .*'linear', 'knn'"),
    ("probe.seeds", (1, 1), "probe.seeds = .*different"),
    ("probe.fractions", (0.0, 1.0), "probe.fractions"),
    ("head.lr_of", ("age",), "head.lr_of = .*'age'"),
  ],
)
def test_bad_values_are_named(key, value, words):
  config = probe_configs.get_config()
  config.workdir, config.data.path = "w", "d"
  block, name = key.split(".")
  config[block][name] = value
  with pytest.raises(ValueError, match=words):
    settings.validate(config)


def test_a_training_config_is_no_probe_config(tmp_path, data):
  with pytest.raises(ValueError, match="--config=configs/probe.py"):
    probe.run(small_run.small_config(tmp_path, data))


@pytest.mark.parametrize("preset", probe_configs.PRESETS)
def test_presets_are_valid(preset):
  config = probe_configs.get_config(preset)
  config.workdir = "w"
  config.data.path = "d"
  settings.validate(config)


def test_rates_do_not_compound(tmp_path, data, checkpoint, monkeypatch):
  """Three numbers in a row: each learns at the rate of its own name."""
  config = make(
    tmp_path, data, checkpoint,
    kinds=("attentive",), targets=("level", "kind", "rare"),
    fractions=(1.0,), seeds=(0,),
  )  # fmt: skip
  config.head.update(
    {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "lr_of": ("kind=0.5",)}
  )
  probe.run(config)
  rates = {
    r["target"]: float(r["value"])
    for r in table(tmp_path / "probe.csv")
    if r["metric"] == "chosen_lr"
  }
  plain = 1e-3 * 16 / 256
  assert rates == pytest.approx(
    {"level": plain, "kind": 0.5 * 16 / 256, "rare": plain}, rel=1e-4
  )


@pytest.mark.slow
def test_fine_tuning_learns_and_starts_where_it_should(
  tmp_path, data, checkpoint, monkeypatch
):
  config = make(
    tmp_path, data, checkpoint,
    kinds=("fine_tune", "supervised"), targets=("kind",), fractions=(1.0,),
    seeds=(0,),
  )  # fmt: skip
  config.fine_tune.update(
    {
      "epochs": 6, "warmup_epochs": 1, "batch_size": 16, "lr_per_256": 0.05,
      "patience": 0,
    }
  )  # fmt: skip
  starts = []
  make_model = fine_tune.encoder_model

  def spied(*args):
    model = make_model(*args)

    def init(key, frozen, example):
      params = model.init(key, frozen, example)
      jax.debug.callback(
        lambda a, b: starts.append(bool(np.array_equal(a, b))),
        jax.tree.leaves(params["encoder"])[-1],
        jax.tree.leaves(frozen)[-1],
      )
      return params

    return dataclasses.replace(model, init=init)

  monkeypatch.setattr(fine_tune, "encoder_model", spied)
  summary = probe.run(config)
  jax.effects_barrier()
  assert starts == [True, False]
  found = {r["probe"]: r["mean"] for r in summary if r["metric"] == "auroc"}
  assert found["fine_tune"] > 0.8 and found["supervised"] > 0.6


def test_encoding_without_a_key_is_what_is_embedded(data, checkpoint):
  config = probe_configs.get_config()
  config.workdir = str(checkpoint)
  config.data.path = str(data)
  config.data.batch_size = 8
  run = evaluate.load(config)
  from wsiseq_jax.data import loader
  from wsiseq_jax.data import source as sources

  source = sources.RecordSource(data, "val")
  batch = loader.stack([loader.load(source, i) for i in range(4)])
  batch = jax.tree.map(jax.numpy.asarray, batch)
  out = jax.jit(run.task.embed)(run.params, batch)
  encode = jax.jit(run.task.encode)
  same = encode(run.params, batch, None)
  np.testing.assert_allclose(same, out["features"], atol=1e-5)
  assert out["tokens"].shape == (4, 4, 32)
  np.testing.assert_allclose(
    out["tokens"].mean(axis=1), out["features"], atol=1e-5
  )
  other = encode(run.params, batch, jax.random.key(0))
  assert not np.allclose(same, other, atol=1e-4)
  slope = jax.jit(jax.grad(lambda p: run.task.encode(p, batch, None).sum()))
  grads = slope(run.params)
  assert functools.reduce(
    lambda a, g: a or bool(np.any(g)), jax.tree.leaves(grads), False
  )
