"""Whole runs over what is missing, damaged or wrong: a row for each."""

import subprocess
import sys

import numpy as np
import pytest

from data_prep import runs, shards
from data_prep.series import prepare as series
from tests.data_prep import outputs
from tests.data_prep.series import tiny_series


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  return tiny_series.cohort(tmp_path_factory.mktemp("cohort"))


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
  summary = tiny_series.run(
    path, out, "video", fps=10.0, targets=("grade:number",), parts=3
  )
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  assert outputs.errors_of(out) == [
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
  found, _ = outputs.records_of(out)
  assert sorted(found) == ["good", "visit", "whole"]
  # The visits that are left keep their places in time.
  assert found["visit"].frame_mask.sum() == 2
  assert np.isnan(found["good"].targets) and np.isnan(found["whole"].targets)
  # The rows are there after a run that had nothing to do, too.
  before = outputs.errors_of(out)
  summary = tiny_series.run(
    path, out, "video", fps=10.0, targets=("grade:number",), parts=3
  )
  assert not summary.changed and outputs.errors_of(out) == before


def test_missing_visits_and_times_keep_the_others(tmp_path):
  """The visit whose file is gone leaves a gap in time, not a shift."""
  rows = tiny_series.visits_of(tmp_path, "a", 4, years=[1, 2, 4, 8])
  (tmp_path / "a_1.png").unlink()
  rows[2]["file"] = ""
  path = tiny_series.table(tmp_path / "t.csv", rows)
  summary = tiny_series.run(path, tmp_path / "out")
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  (record,) = outputs.records_of(tmp_path / "out")[0].values()
  assert record.time.tolist() == [0, 7]
  assert outputs.errors_of(tmp_path / "out") == [
    ("a", "find", "missing_file"),
    ("a", "note", "missing_visit"),
  ]


def test_a_history_without_its_own_visit_is_none(tmp_path):
  rows = tiny_series.visits_of(tmp_path, "a", 4, years=[1, 2, 4, 8])
  for row, grade in zip(rows, (1, 2, 3, 4), strict=True):
    row["grade"] = grade
  (tmp_path / "a_1.png").unlink()
  data = (tmp_path / "a_2.png").read_bytes()
  (tmp_path / "a_2.png").write_bytes(data[:70])
  path = tiny_series.table(tmp_path / "t.csv", rows)
  tiny_series.run(
    path, tmp_path / "out", sequences="history", targets=("grade:number",)
  )
  found, _ = outputs.records_of(tmp_path / "out")
  assert {i: r.targets.tolist() for i, r in found.items()} == {
    "a/n1": [1.0],
    "a/n4": [4.0],
  }
  assert found["a/n4"].time.tolist()[:2] == [0, 7]
  assert found["a/n4"].frame_mask.sum() == 2


def test_nothing_gives_times(tmp_path):
  np.save(tmp_path / "a.npy", tiny_series.frames(2))
  path = tiny_series.table(tmp_path / "t.csv", [{"id": "a"}])
  summary = tiny_series.run(path, tmp_path / "out")
  assert summary.exit_code == runs.EXIT_NOTHING
  assert outputs.errors_of(tmp_path / "out") == [("a", "times", "no_times")]
  assert not (tmp_path / "out" / "shards").exists()
  assert (
    tiny_series.run(path, tmp_path / "out", "video", fps=4.0).exit_code == 0
  )
  (record,) = outputs.records_of(tmp_path / "out")[0].values()
  assert record.time.tolist() == [0, 0.25]


def test_a_full_disk_costs_one_part_and_is_tried_again(
  cohort, tmp_path, monkeypatch
):
  write_part = shards.write_part

  def full(path, made, layout):
    if path.parent.name.startswith("val"):
      raise OSError(28, "No space left on device")
    return write_part(path, made, layout)

  monkeypatch.setattr(shards, "write_part", full)
  summary = tiny_series.run(cohort / "visits.csv", tmp_path / "out")
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  assert {e[1:] for e in outputs.errors_of(tmp_path / "out")} == {
    ("write", "disk_full")
  }
  monkeypatch.undo()
  assert tiny_series.run(cohort / "visits.csv", tmp_path / "out").exit_code == 0
  assert len(outputs.records_of(tmp_path / "out")[0]) == 12


CRASH = """
import ast, os, sys
sys.path.insert(0, sys.argv[1])
from data_prep.series import files as series_files
read = series_files.read
def crashing(path, *more, **named):
  if "s05" in path:
    os.kill(os.getpid(), 11)
  return read(path, *more, **named)
series_files.read = crashing
if __name__ == "__main__":
  from data_prep.series import prepare
  config = ast.literal_eval(sys.argv[2])
  sys.exit(prepare.prepare_series(config).exit_code)
"""


@pytest.mark.multiprocess
def test_a_crashing_library_costs_one_series(cohort, tmp_path, repo_root):
  script = tmp_path / "crash.py"
  script.write_text(CRASH)
  out = tmp_path / "out"
  config = tiny_series.config_of(cohort / "visits.csv", out, workers=2, parts=1)
  command = [sys.executable, script, repo_root, repr(config)]
  done = subprocess.run([str(c) for c in command], cwd=repo_root, check=False)
  assert done.returncode == runs.EXIT_SOME_FAILED
  assert outputs.errors_of(out) == [("s05", "process", "worker_died")]
  found, _ = outputs.records_of(out)
  assert len(found) == 11 and "s05" not in found
  # It may have been the memory: the next run tries again.
  assert tiny_series.run(cohort / "visits.csv", out, parts=1).exit_code == 0
  assert len(outputs.records_of(out)[0]) == 12


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
