"""The job `segment`: every method, its tables, its stops and its bad input."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from configs import segment as segment_config
from tests import small_run
from tests.segment import small_job
from wsiseq_jax import launch
from wsiseq_jax.segment import job, scoring, settings
from wsiseq_jax.segment.methods import METHODS
from wsiseq_jax.segment.pictures import Pictures

CHAIN = "student,smoke"


@pytest.fixture(scope="module")
def finished(smoke_run):
  return smoke_run("student")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_at_smoke_size(method, smoke_run):
  folder = smoke_run(method)
  found = {(r["stage"], r["reading"]) for r in small_job.rows(folder)}
  chain = settings.read(small_job.config(folder, f"{method},smoke")).chain()
  for stage in chain:
    assert {(stage.name, r.name) for r in stage.readings} <= found
  assert {("all tissue", ""), ("stain", "chosen")} <= found


def test_the_table_says_where_thresholds_come_from(finished):
  rows = small_job.rows(finished)
  assert {r["split"] for r in rows} == {"test"}
  test = Pictures("synthetic", "test")
  assert {r["pictures"] for r in rows} == {str(len(test))}
  assert {r["patients"] for r in rows} == {str(len(set(test.patient_ids)))}
  of = {(r["stage"], r["reading"], r["metric"]): r for r in rows}
  fixed, chosen = of["cam", "absolute", "dice"], of["student", "chosen", "dice"]
  assert fixed["threshold_from"] == "fixed, no mask was looked at"
  assert float(fixed["threshold"]) == 0.5
  assert chosen["threshold_from"] == "masks of validation"
  for row in rows:
    if row["value"]:  # else nothing was found
      value, low, high = (float(row[k]) for k in ("value", "low", "high"))
      assert low - 1e-6 <= value <= high + 1e-6, row
  assert float(of["all tissue", "", "recall"]["value"]) > 0.99
  text = (finished / "segmentation.md").read_text()
  assert "No threshold was chosen on this split" in text
  assert text.count("\n| ") == 8  # heading, two baselines, three, two


def test_patients_add_up(finished):
  rows = small_job.rows(finished, "segmentation_patients.csv")
  test = Pictures("synthetic", "test")
  mine = [r for r in rows if r["stage"] == "student" and r["metric"] == "miou"]
  ids, counts = np.unique(test.patient_ids, return_counts=True)
  assert {r["patient_id"]: int(r["pictures"]) for r in mine} == dict(
    zip(ids, counts.tolist(), strict=True)
  )


def test_maps_of_pictures(finished):
  train = Pictures("synthetic", "train")
  context = job.prepare(small_job.config(finished, CHAIN))
  maps = context.maps("cam", "train")
  for number, picture_id in enumerate(train.ids):
    one = maps.read(picture_id)
    h, w = train.sizes[number]
    assert one["scores"].shape == (1, h // 4, w // 4)
    assert one["scores"].dtype == np.float16
    assert one["classes"].shape == (h, w)
    if not train.labels[number].any():  # a certain negative
      assert not one["scores"].any() and not one["classes"].any()
  assert "classes" not in context.maps("cam", "test").read(
    Pictures("synthetic", "test").ids[0]
  )
  facts = context.facts("cam")
  assert facts["high"][0] > facts["median"][0]


def arrays(folder):
  return {
    str(path.relative_to(folder)): np.load(path)
    for path in sorted(folder.rglob("*.npz"))
  }


def test_a_chain_that_is_stopped_again_and_again_ends_the_same(
  finished, tmp_path, monkeypatch
):
  config, preemption = small_job.config(tmp_path, CHAIN), launch.Preemption
  # In the classifier's training, in its maps, before the student's first step.
  for ticks in (5, 18, 9):
    stop = functools.partial(small_run.StopAt, ticks)
    monkeypatch.setattr(launch, "Preemption", stop)
    with pytest.raises(launch.Stopped):
      job.run(config)
  assert (tmp_path / "cam" / "done.json").is_file()
  assert not (tmp_path / "segmentation.csv").exists()
  monkeypatch.setattr(launch, "Preemption", preemption)
  job.run(config)
  for name in ("segmentation.csv", "student/params.safetensors"):
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
  ours, theirs = arrays(tmp_path), arrays(finished)
  assert ours.keys() == theirs.keys() and len(ours) > 100
  for name, one in ours.items():
    for key in one.files:
      np.testing.assert_array_equal(one[key], theirs[name][key])


class Blind(Pictures):
  """Pictures of which nobody has drawn masks."""

  def picture(self, index):
    one = super().picture(index)
    return dataclasses.replace(one, truth=np.full_like(one.truth, 255))


def test_without_masks_nothing_is_chosen_and_nothing_is_scored(
  finished, tmp_path, capsys
):
  asked = settings.read(small_job.config(finished, CHAIN))
  context = job.prepare(small_job.config(tmp_path, CHAIN))
  for name in ("cam", "student"):
    (tmp_path / name).symlink_to(finished / name)
  val, test = (Blind("synthetic", name) for name in ("val", "test"))
  blind = dataclasses.replace(context, splits={**context.splits, "val": val})
  rows = scoring.write(blind, asked.chain(), asked.scores)
  assert {(r["stage"], r["reading"]) for r in rows} == {
    ("all tissue", ""),
    ("cam", "absolute"),
    ("student", "0.5"),
  }
  assert "are left out" in capsys.readouterr().err
  blind = dataclasses.replace(context, splits={**context.splits, "test": test})
  assert scoring.write(blind, asked.chain(), asked.scores) == []
  assert "nothing is scored" in capsys.readouterr().err


def test_done_stages_are_not_done_again(finished, capsys):
  before = (finished / "cam" / "done.json").stat().st_mtime_ns
  rows = job.run(small_job.config(finished, CHAIN))
  said = capsys.readouterr().err
  assert "cam: done" in said and "student: done" in said
  assert (finished / "cam" / "done.json").stat().st_mtime_ns == before
  assert len(rows) == len(small_job.rows(finished))


def test_another_setting_starts_a_stage_and_all_after_it_again(
  finished, tmp_path
):
  folder = tmp_path / "copy"
  for name in ("cam", "student"):
    (folder / name).mkdir(parents=True)
    mark = json.loads((finished / name / "done.json").read_text())
    mark["inputs"] = mark["inputs"] if name == "cam" else "another"
    (folder / name / "done.json").write_text(json.dumps(mark))
    begun = (finished / name / "begun.json").read_text()
    (folder / name / "begun.json").write_text(begun.replace('"in', '"no'))
    (folder / name / "old.txt").write_text("of a run before")
  config = small_job.config(folder, CHAIN)
  with pytest.raises(ValueError, match="no maps of picture"):
    job.run(config)  # the classifier is said to be done, and its maps are gone
  assert (folder / "cam" / "old.txt").exists()
  assert not (folder / "student" / "old.txt").exists()


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"method": "camm"}, "config.method = 'camm': must be one of 'cam'"),
    ({"method": "full"}, r"config.stages.cam: config.method = 'full' has"),
    ({"stages.cam.gate": 2.0}, "config.stages.cam.gate = 2.0: must be"),
    ({"data.path": ""}, "config.data.path = '': must be a string, not empty"),
    (
      {"data.test_split": "val"},
      "three different splits; thresholds are not chosen where",
    ),
    ({"data.crops.crop_px": 8}, "config.data.crops.crop_px = 8: must be"),
    ({"data.val_split": "vall"}, "config.data.val_split = 'vall'"),
    ({"scores.resamples": 1}, "config.scores.resamples = 1: must be"),
    ({"backbone.norm": "fixed"}, "config.backbone.norm = 'fixed'"),
  ],
)
def test_bad_configs_are_named(values, words, tmp_path):
  config = small_job.config(tmp_path, "cam,smoke")
  with config.unlocked():
    config.update_from_flattened_dict(values)
  with pytest.raises(ValueError, match=words):
    job.run(config)


def test_the_student_needs_a_teacher(tmp_path):
  config = small_job.config(tmp_path, "full,smoke")
  config.stages.student.targets = "before"
  with pytest.raises(ValueError, match="no stage before it to learn from"):
    job.run(config)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_a_config(method, tmp_path):
  for kind in ("", ",plain", ",demo", ",smoke"):
    config = segment_config.get_config(f"{method}{kind}")
    config.workdir, config.data.path = str(tmp_path), "PICTURES"
    if kind == ",plain":
      config.backbone.random_weights = True
    chain = settings.read(config).chain()
    assert [stage.name for stage in chain] == list(METHODS[method])


def test_presets():
  assert segment_config.get_config().method == "cam"
  with pytest.raises(ValueError, match="did you mean 'student'"):
    segment_config.get_config("studnt")
