"""Whole runs: folders of images and videos with a table become shards."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data_prep import prepare, records, series, series_job, shards
from tests.data_prep import tiny_series
from wsiseq_jax.data import loader, source


def run(csv_path, out, preset="", **changes):
  config = tiny_series.config_of(csv_path, out, preset, **changes)
  return series.prepare_series(config)


def read_all(out):
  """All records of a data set by sequence id, and the split of each."""
  found, split_of = {}, {}
  for split in source.split_names(out):
    reader = source.RecordSource(out, split)
    for index in range(len(reader)):
      record = reader.record(index)
      found[record.sequence_id] = record
      split_of[record.sequence_id] = split
  return found, split_of


def errors_of(out):
  with open(out / "errors.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert all(row["message"] for row in rows)
  return sorted((r["slide"], r["stage"], r["error"]) for r in rows)


def contents(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob("*"))
    if p.is_file()
  }


def visits_of(folder, name, count, years=None, **labels):
  """Pictures of one subject and their rows."""
  pixels = tiny_series.frames(count)
  years = years or [2000.5 + i * (i + 1) / 2 for i in range(count)]
  return [
    {
      "subject": name,
      "file": tiny_series.png(folder / f"{name}_{i}.png", picture),
      "time": year,
      **labels,
    }
    for i, (picture, year) in enumerate(zip(pixels, years, strict=True))
  ]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  """Twelve subjects with 2 to 5 visits."""
  folder = tmp_path_factory.mktemp("cohort")
  rows = []
  for i in range(12):
    labels = {"size": 1.5 * i, "sick": "yes" if i % 3 else "no"}
    rows += visits_of(folder, f"s{i:02d}", 2 + i % 4, **labels)
  tiny_series.table(folder / "visits.csv", rows)
  return folder


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
  out = tmp_path_factory.mktemp("whole")
  return out, run(cohort / "visits.csv", out)


def test_visits_become_padded_sequences(whole):
  out, summary = whole
  assert summary.exit_code == prepare.EXIT_GOOD and summary.changed
  found, split_of = read_all(out)
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
  with open(out / "series.csv", newline="") as file:
    rows = {row["series_id"]: row for row in csv.DictReader(file)}
  assert len(rows) == 12
  assert rows["s01"]["frames"] == "3" and rows["s01"]["status"] == "done"
  assert errors_of(out) == []
  sheet = cv2.imread(str(out / "qc" / "contact_sheet.jpg"))
  assert sheet.shape[0] > 12 * 80 and sheet.std() > 20
  assert "12 sequences of 5 frames, 24 x 32 px" in summary.text
  assert "sick: class, no | yes" in summary.text


def test_second_call_touches_nothing_and_another_place_has_the_same_bytes(
  whole, cohort, tmp_path
):
  out, _ = whole
  before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
  summary = run(cohort / "visits.csv", out)
  assert not summary.changed and "finished already" in summary.text
  assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
  shutil.copytree(cohort, tmp_path / "moved")
  run(tmp_path / "moved" / "visits.csv", tmp_path / "out")
  assert contents(out / "shards") == contents(tmp_path / "out" / "shards")
  assert contents(out / "qc") == contents(tmp_path / "out" / "qc")


def test_interrupted_work_is_found_and_finished(whole, cohort, tmp_path):
  out = tmp_path / "out"
  shutil.copytree(whole[0], out)
  names = sorted(p.name for p in (out / "parts").iterdir())
  (out / "parts" / names[0] / "part.json").unlink()
  (out / "parts" / names[1] / "sequences.array_record").unlink()
  (out / "parts" / names[2] / "part.json").write_text('{"half')
  (out / "parts" / names[0] / "x.array_record.tmp-12").write_bytes(b"half")
  shutil.rmtree(out / "shards")
  summary = run(cohort / "visits.csv", out)
  assert summary.exit_code == prepare.EXIT_GOOD
  assert contents(out / "shards") == contents(whole[0] / "shards")
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
  run(folder / "visits.csv", out)
  assert len(done) == 1
  record = read_all(out)[0]["s04"]
  assert records.decode_panels(record)[1].min() > 200
  # A new subject joins a part; nobody changes the split.
  with open(folder / "visits.csv", "a") as file:
    rows = visits_of(folder, "new", 2)
    file.writelines(f"new,{r['file']},{r['time']},,\n" for r in rows)
  before = json.loads((out / "splits.json").read_text())["patients"]
  done.clear()
  run(folder / "visits.csv", out)
  after = json.loads((out / "splits.json").read_text())["patients"]
  assert len(done) == 1 and set(after) - set(before) == {"new"}
  assert {name: after[name] for name in before} == before
  assert len(read_all(out)[0]) == 13


def test_every_bad_input_has_its_row_and_nothing_else_is_lost(tmp_path):
  folder, out = tmp_path, tmp_path / "out"
  good = tiny_series.frames(4)
  noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
  np.save(folder / "good.npy", good)
  np.save(folder / "empty.npy", good[:0])
  np.save(folder / "five.npy", np.zeros((4, 24, 32, 5), np.uint8))
  np.save(folder / "holes.npy", np.where(good > 30, np.nan, good * 1.0))
  np.save(folder / "flat.npy", np.full((4, 24, 32), 300, np.uint16))
  np.save(folder / "few.npy", good)
  tiny_series.video(folder / "whole.mp4", noise)
  data = (folder / "whole.mp4").read_bytes()
  (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
  middle = data.index(b"mdat") + len(data) // 3
  zeroed = data[:middle] + bytes(3000) + data[middle + 3000 :]
  (folder / "zeroed.mp4").write_bytes(zeroed)
  tiny_series.png(folder / "small.png", good[0, :12, :16])
  tiny_series.png(folder / "grey.png", good[0])
  tiny_series.png(folder / "colour.png", tiny_series.frames(1, channels=3)[0])
  (folder / "broken.png").write_bytes((folder / "grey.png").read_bytes()[:60])
  names = {
    "sizes": "grey.png;small.png",
    "colours": "grey.png;colour.png",
    "visit": "grey.png;broken.png;none.png;grey.png",
    "gone": "gone.npy",
    "few": "few.npy",
  }
  files = ("good", "empty", "five", "holes", "flat")
  names |= {name: f"{name}.npy" for name in files}
  names |= {name: f"{name}.mp4" for name in ("whole", "cut", "zeroed")}
  rows = [
    {
      "id": name,
      "file": file,
      "times": "0;1;2" if name == "few" else "",
      "grade": {"good": "", "whole": "n.k.", "five": "2"}.get(name, "1"),
    }
    for name, file in names.items()
  ]
  path = tiny_series.table(folder / "t.csv", rows)
  summary = run(
    path, out, "video", fps=10.0, targets=("grade:number",), parts=3
  )
  assert summary.exit_code == prepare.EXIT_SOME_FAILED
  assert errors_of(out) == [
    ("colours", "image", "channels_differ"),
    ("cut", "open", "damaged_video"),
    ("empty", "read", "empty_series"),
    ("few", "times", "times_count"),
    ("five", "read", "too_many_channels"),
    ("flat", "image", "no_contrast"),
    ("gone", "find", "missing_file"),
    ("good", "note", "missing_target"),
    ("holes", "image", "nan_pixels"),
    ("sizes", "image", "sizes_differ"),
    ("visit", "find", "missing_file"),
    ("visit", "read", "damaged_file"),
    ("whole", "target", "bad_target"),
    ("zeroed", "read", "damaged_video"),
  ]
  found, _ = read_all(out)
  assert sorted(found) == ["good", "visit", "whole"]
  # The visits that are left keep their places in time.
  assert found["visit"].frame_mask.sum() == 2
  assert np.isnan(found["good"].targets) and np.isnan(found["whole"].targets)
  # The rows are there after a run that had nothing to do, too.
  before = errors_of(out)
  summary = run(
    path, out, "video", fps=10.0, targets=("grade:number",), parts=3
  )
  assert not summary.changed and errors_of(out) == before


def test_frames_of_different_sizes_are_fitted_when_told(tmp_path):
  frame = tiny_series.frames(1)[0]
  tiny_series.png(tmp_path / "a.png", frame)
  tiny_series.png(tmp_path / "b.png", frame[:12, :16])
  row = {"id": "s", "file": "a.png;b.png", "times": "0;1"}
  path = tiny_series.table(tmp_path / "t.csv", [row])
  run(path, tmp_path / "out", image__mixed_sizes=True)
  (record,) = read_all(tmp_path / "out")[0].values()
  assert records.decode_panels(record).shape == (2, 24, 32, 3)


def test_missing_visits_and_times_keep_the_others(tmp_path):
  """The visit whose file is gone leaves a gap in time, not a shift."""
  rows = visits_of(tmp_path, "a", 4, years=[1, 2, 4, 8])
  (tmp_path / "a_1.png").unlink()
  rows[2]["file"] = ""
  path = tiny_series.table(tmp_path / "t.csv", rows)
  summary = run(path, tmp_path / "out")
  assert summary.exit_code == prepare.EXIT_SOME_FAILED
  (record,) = read_all(tmp_path / "out")[0].values()
  assert record.time.tolist() == [0, 7]
  assert errors_of(tmp_path / "out") == [
    ("a", "find", "missing_file"),
    ("a", "note", "missing_visit"),
  ]


def test_a_history_without_its_own_visit_is_none(tmp_path):
  rows = visits_of(tmp_path, "a", 4, years=[1, 2, 4, 8])
  for row, grade in zip(rows, (1, 2, 3, 4), strict=True):
    row["grade"] = grade
  (tmp_path / "a_1.png").unlink()
  data = (tmp_path / "a_2.png").read_bytes()
  (tmp_path / "a_2.png").write_bytes(data[:70])
  path = tiny_series.table(tmp_path / "t.csv", rows)
  run(path, tmp_path / "out", sequences="history", targets=("grade:number",))
  found, _ = read_all(tmp_path / "out")
  assert {i: r.targets.tolist() for i, r in found.items()} == {
    "a/n1": [1.0],
    "a/n4": [4.0],
  }
  assert found["a/n4"].time.tolist()[:2] == [0, 7]
  assert found["a/n4"].frame_mask.sum() == 2


@pytest.mark.parametrize(
  ("rule", "want"),
  [
    ("last", {"v": [0.6, 0.7, 0.8]}),
    ("subsample", {"v": [0, 0.4, 0.8]}),
    (
      "windows",
      {"v/f0": [0, 0.1, 0.2], "v/f3": [0.3, 0.4, 0.5], "v/f6": [0.6, 0.7, 0.8]},
    ),
  ],
)
def test_long_videos_are_cut_by_rule(tmp_path, rule, want):
  pixels = tiny_series.frames(9, (24, 32), 3)
  tiny_series.video(tmp_path / "v.mp4", pixels, fps=10)
  path = tiny_series.table(tmp_path / "t.csv", [{"id": "v", "file": "v.mp4"}])
  run(
    path,
    tmp_path / "out",
    "video",
    sequence__max_frames=3,
    sequence__rule=rule,
  )
  found, _ = read_all(tmp_path / "out")
  got = {i: r.time.round(3).tolist() for i, r in found.items()}
  assert got == {i: pytest.approx(times, abs=2e-3) for i, times in want.items()}
  for record in found.values():
    level = records.decode_panels(record).mean(axis=(1, 2, 3))
    shown = pixels[(record.time * 10).round().astype(int)].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(level, shown, atol=4)


def test_the_reference_arrays_as_they_are(tmp_path):
  """`<eid>.npy` of [t, h, w] and a table for each split."""
  (tmp_path / "images").mkdir()
  (tmp_path / "tables").mkdir()
  for split, eids in (("train", ("11", "12")), ("val", ("21",))):
    rows = [{"eid": e, "LVEF (%)": 50 + int(e), "CAD": 0} for e in eids]
    tiny_series.table(tmp_path / "tables" / f"{split}.csv", rows)
    for eid in eids:
      np.save(tmp_path / "images" / f"{eid}.npy", tiny_series.frames(6))
  run(
    tmp_path / "tables",
    tmp_path / "out",
    "tvrl_cardiac",
    images=str(tmp_path / "images"),
    targets=("LVEF (%)", "CAD:class=0|1"),
  )
  found, split_of = read_all(tmp_path / "out")
  assert split_of == {"11": "train", "12": "train", "21": "val"}
  assert found["12"].targets.tolist() == [62.0, 0.0]
  assert found["12"].time.tolist() == [0, 1, 2, 3, 4, 5]
  spec = source.read_spec(tmp_path / "out")
  assert spec.time_unit == "frame"
  assert spec.target_classes == {"CAD": ("0", "1")}


def test_short_side_follows_the_commonest_shape(tmp_path):
  for name, size in (("a", (48, 96)), ("b", (48, 96)), ("c", (64, 64))):
    np.save(tmp_path / f"{name}.npy", tiny_series.frames(2, size))
  path = tiny_series.table(tmp_path / "t.csv", [{"id": n} for n in "abc"])
  run(path, tmp_path / "out", time_unit="frame", image__frame_px=(24,))
  assert source.read_spec(tmp_path / "out").frame_px == (24, 48)
  assert len(read_all(tmp_path / "out")[0]) == 3


def test_nothing_gives_times(tmp_path):
  np.save(tmp_path / "a.npy", tiny_series.frames(2))
  path = tiny_series.table(tmp_path / "t.csv", [{"id": "a"}])
  summary = run(path, tmp_path / "out")
  assert summary.exit_code == prepare.EXIT_NOTHING
  assert errors_of(tmp_path / "out") == [("a", "times", "no_times")]
  assert not (tmp_path / "out" / "shards").exists()
  assert run(path, tmp_path / "out", "video", fps=4.0).exit_code == 0
  (record,) = read_all(tmp_path / "out")[0].values()
  assert record.time.tolist() == [0, 0.25]


def test_days_become_years_and_calendar_years_keep_their_precision(tmp_path):
  rows = visits_of(tmp_path, "a", 2, years=[730000, 730000.5])
  path = tiny_series.table(tmp_path / "t.csv", rows)
  run(path, tmp_path / "out", time_divisor=365.25)
  (record,) = read_all(tmp_path / "out")[0].values()
  np.testing.assert_allclose(record.time, [0, 0.5 / 365.25], rtol=1e-6)


def test_a_full_disk_costs_one_part_and_is_tried_again(
  cohort, tmp_path, monkeypatch
):
  write_part = shards.write_part

  def full(path, made, layout):
    if path.parent.name.startswith("val"):
      raise OSError(28, "No space left on device")
    return write_part(path, made, layout)

  monkeypatch.setattr(shards, "write_part", full)
  summary = run(cohort / "visits.csv", tmp_path / "out")
  assert summary.exit_code == prepare.EXIT_SOME_FAILED
  assert {e[1:] for e in errors_of(tmp_path / "out")} == {
    ("write", "disk_full")
  }
  monkeypatch.undo()
  assert run(cohort / "visits.csv", tmp_path / "out").exit_code == 0
  assert len(read_all(tmp_path / "out")[0]) == 12


CRASH = """
import os, sys
sys.path.insert(0, sys.argv[1])
from data_prep import series_files
read = series_files.read
def crashing(path, *more, **named):
  if "s05" in path:
    os.kill(os.getpid(), 11)
  return read(path, *more, **named)
series_files.read = crashing
if __name__ == "__main__":
  from tests.data_prep import test_series
  summary = test_series.run(sys.argv[2], sys.argv[3], workers=2, parts=1)
  sys.exit(summary.exit_code)
"""


@pytest.mark.multiprocess
def test_a_crashing_library_costs_one_series(cohort, tmp_path, repo_root):
  script = tmp_path / "crash.py"
  script.write_text(CRASH)
  out = tmp_path / "out"
  command = [sys.executable, script, repo_root, cohort / "visits.csv", out]
  done = subprocess.run([str(c) for c in command], cwd=repo_root, check=False)
  assert done.returncode == prepare.EXIT_SOME_FAILED
  assert errors_of(out) == [("s05", "process", "worker_died")]
  found, _ = read_all(out)
  assert len(found) == 11 and "s05" not in found
  # It may have been the memory: the next run tries again.
  assert run(cohort / "visits.csv", out, parts=1).exit_code == 0
  assert len(read_all(out)[0]) == 12


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("csv", ""),
    ("out", ""),
    ("parts", 0),
    ("layout", "rows"),
    ("sequences", "visits"),
    ("time_unit", "um"),
    ("time_divisor", 0.0),
    ("fps", -1.0),
    ("sequence__rule", "first"),
    ("sequence__min_frames", 0),
    ("image__frame_px", (1, 2, 3)),
    ("image__fit", "stretch"),
    ("image__window", (5, 5)),
    ("image__percentiles", (50.0, 150.0)),
    ("jpeg__quality", 0),
    ("jpeg__subsampling", "411"),
    ("splits", {"train": 0.5}),
  ],
)
def test_bad_settings_name_their_key(tmp_path, key, value):
  config = tiny_series.config_of("t.csv", tmp_path / "out")
  *groups, last = key.split("__")
  place = config
  for group in groups:
    place = place[group]
  place[last] = value
  with pytest.raises(ValueError, match=f"config.{key.replace('__', '.')}"):
    series.prepare_series(config)
  assert not (tmp_path / "out").exists()


@pytest.mark.multiprocess
def test_command_line(whole, cohort, repo_root, tmp_path):
  def call(*arguments):
    return subprocess.run(
      [sys.executable, "-m", "data_prep", *arguments],
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
  assert contents(whole[0] / "shards") == contents(tmp_path / "out" / "shards")
  done = call(f"{config}:tvrl", "--config.csv=x")
  assert done.returncode == 2 and "tvrl_oct" in done.stderr
  done = call(config, "--config.csv=none.csv", "--config.out=x")
  assert done.returncode == 2 and "none.csv" in done.stderr
  assert "Traceback" not in done.stderr


def test_the_real_ultrasound_files_become_shards(real_data, tmp_path):
  """One of each kind, cropped to what their middle shows."""
  video = next((real_data / "video").glob("lung_us*.mp4"))
  rows = [
    {"id": "lung", "file": video, "label": "A-lines"},
    {"id": "heart", "file": real_data / "video" / "examples_ybr_color.dcm",
     "label": ""},
  ]  # fmt: skip
  path = tiny_series.table(tmp_path / "t.csv", rows)
  summary = run(
    path,
    tmp_path / "out",
    "video",
    image__frame_px=(64, 64),
    sequence__max_frames=16,
  )
  assert summary.exit_code == prepare.EXIT_GOOD
  found, _ = read_all(tmp_path / "out")
  lung, heart = found["lung"], found["heart"]
  assert lung.frames == heart.frames == 16
  assert lung.time[-1] == pytest.approx(9.91, abs=0.01)
  assert heart.time[-1] == pytest.approx(29 * 0.033333, abs=1e-4)
  assert np.isnan(heart.targets).all() and lung.targets.tolist() == [0.0]
  beating = records.decode_panels(heart).astype(int)
  assert np.abs(np.diff(beating, axis=0)).mean() > 0.5
  assert errors_of(tmp_path / "out") == [("heart", "note", "missing_target")]
