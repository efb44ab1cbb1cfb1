"""Whole runs: folders of images and videos with a table become shards."""

import json
import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from data_prep import records, runs
from data_prep.series import job as series_job
from tests.data_prep import outputs
from tests.data_prep.series import tiny_series
from wsiseq_jax.data import loader, source


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  return tiny_series.cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
  out = tmp_path_factory.mktemp("whole")
  return out, tiny_series.run(cohort / "visits.csv", out)


def test_visits_become_padded_sequences(whole):
  out, summary = whole
  assert summary.exit_code == runs.EXIT_GOOD and summary.changed
  found, split_of = outputs.records_of(out)
  assert len(found) == 12 and set(split_of.values()) == {"train", "val", "test"}
  record = found["s01"]  # 3 visits of at most 5
  assert record.slide_id == record.patient_id == "s01"
  assert record.frame_mask.tolist() == [1, 1, 1, 0, 0]
  assert record.frame_panel.tolist() == [0, 1, 2, 2, 2]
  np.testing.assert_allclose(record.time, [0, 1, 3, 3, 3])
  assert (record.frame_box == [0, 0, 32, 24]).all()
  assert np.isnan(record.frame_level0_xy).all() and np.isnan(record.mpp)
  panels = records.decode_panels(record)
  want = tiny_series.frames(3)[..., None].repeat(3, axis=-1)
  assert np.abs(panels[:3].astype(int) - want).max() <= 3
  assert (panels[3:] == 0).all()
  assert record.targets.tolist() == [1.5, 1.0]
  assert found["s03"].frame_mask.sum() == 5 and found["s03"].targets[1] == 0.0


def test_metadata_follows_the_contract(whole):
  out, _ = whole
  spec = source.read_spec(out)
  assert (spec.geometry, spec.time_unit) == ("series", "year")
  assert (spec.frames, spec.panels) == (5, 5)
  assert spec.frame_px == spec.panel_px == (24, 32)
  assert spec.target_names == ("size", "sick")
  assert spec.target_classes == {"sick": ("no", "yes")}
  slides = spec.metadata["slides"]
  assert slides["s01"]["frames"] == 3 and slides["s01"]["time_span"] == 3
  assert {s["split"] for s in slides.values()} == {"train", "val", "test"}
  text = (out / "shards" / "metadata.json").read_text()
  assert str(out) not in text and "visits.csv" not in text


def test_batches_carry_the_mask(whole):
  reader = source.RecordSource(whole[0], "train")
  batches = loader.train_batches(
    reader, seed=0, batch_size=4, start_step=0, stop_step=1
  )
  with loader.closing(batches):
    batch = next(batches)
  assert batch["frame_mask"].shape == (4, 5)
  for row in range(4):
    want = reader.record(int(batch["index"][row])).frame_mask
    np.testing.assert_array_equal(batch["frame_mask"][row], want)


def test_tables_and_picture_for_people(whole):
  out, summary = whole
  rows = {row["series_id"]: row for row in outputs.rows(out / "series.csv")}
  assert len(rows) == 12
  assert rows["s01"]["frames"] == "3" and rows["s01"]["status"] == "done"
  assert outputs.errors_of(out) == []
  sheet = cv2.imread(str(out / "qc" / "contact_sheet.jpg"))
  assert sheet.shape[0] > 12 * 80 and sheet.std() > 20
  assert "12 sequences of 5 frames, 24 x 32 px" in summary.text
  assert "sick: class, no | yes" in summary.text


def test_second_call_touches_nothing_and_another_place_has_the_same_bytes(
  whole, cohort, tmp_path
):
  out, _ = whole
  before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
  summary = tiny_series.run(cohort / "visits.csv", out)
  assert not summary.changed and "finished already" in summary.text
  assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
  shutil.copytree(cohort, tmp_path / "moved")
  tiny_series.run(tmp_path / "moved" / "visits.csv", tmp_path / "out")
  assert outputs.contents(out / "shards") == outputs.contents(
    tmp_path / "out" / "shards"
  )
  assert outputs.contents(out / "qc") == outputs.contents(
    tmp_path / "out" / "qc"
  )


def test_interrupted_work_is_found_and_finished(whole, cohort, tmp_path):
  out = tmp_path / "out"
  shutil.copytree(whole[0], out)
  names = sorted(p.name for p in (out / "parts").iterdir())
  (out / "parts" / names[0] / "part.json").unlink()
  (out / "parts" / names[1] / "sequences.array_record").unlink()
  (out / "parts" / names[2] / "part.json").write_text('{"half')
  (out / "parts" / names[0] / "x.array_record.tmp-12").write_bytes(b"half")
  shutil.rmtree(out / "shards")
  summary = tiny_series.run(cohort / "visits.csv", out)
  assert summary.exit_code == runs.EXIT_GOOD
  assert outputs.contents(out / "shards") == outputs.contents(
    whole[0] / "shards"
  )
  assert not list(out.rglob("*.tmp-*"))


def test_only_what_changed_is_done_again(whole, cohort, tmp_path, monkeypatch):
  folder, out = tmp_path / "in", tmp_path / "out"
  shutil.copytree(cohort, folder)
  shutil.copytree(whole[0], out)
  done = []
  process = series_job.process
  monkeypatch.setattr(
    series_job, "process", lambda job: done.append(job.name) or process(job)
  )
  tiny_series.png(folder / "s04_1.png", 255 - tiny_series.frames(1)[0])
  tiny_series.run(folder / "visits.csv", out)
  assert len(done) == 1
  record = outputs.records_of(out)[0]["s04"]
  assert records.decode_panels(record)[1].min() > 200
  # A new subject joins a part; nobody changes the split.
  with open(folder / "visits.csv", "a") as file:
    rows = tiny_series.visits_of(folder, "new", 2)
    file.writelines(f"new,{r['file']},{r['time']},,\n" for r in rows)
  before = json.loads((out / "splits.json").read_text())["patients"]
  done.clear()
  tiny_series.run(folder / "visits.csv", out)
  after = json.loads((out / "splits.json").read_text())["patients"]
  assert len(done) == 1 and set(after) - set(before) == {"new"}
  assert {name: after[name] for name in before} == before
  assert len(outputs.records_of(out)[0]) == 13


@pytest.mark.multiprocess
def test_command_line(whole, cohort, repo_root, python, tmp_path):
  def call(*arguments):
    return subprocess.run(
      [python, "-m", "data_prep", *arguments],
      cwd=repo_root,
      env={**os.environ, "COLUMNS": "80"},
      capture_output=True,
      text=True,
      check=False,
    )

  config = "--config=configs/prep_series.py"
  done = call(
    config,
    f"--config.csv={cohort / 'visits.csv'}",
    f"--config.out={tmp_path / 'out'}",
    "--config.workers=2",
    "--config.parts=2",
    "--config.image.frame_px=(24,32)",
  )
  assert done.returncode == 0, done.stderr
  assert "12 sequences" in done.stdout
  assert outputs.contents(whole[0] / "shards") == outputs.contents(
    tmp_path / "out" / "shards"
  )
  done = call(f"{config}:tvrl", "--config.csv=x")
  assert done.returncode == 2 and "tvrl_oct" in done.stderr
  done = call(config, "--config.csv=none.csv", "--config.out=x")
  assert done.returncode == 2 and "none.csv" in done.stderr
  assert "Traceback" not in done.stderr
