"""Whole runs over kinds of series: videos, arrays, shapes, units of time."""

import numpy as np
import pytest

from data_prep import records, runs
from tests.data_prep import outputs
from tests.data_prep.series import tiny_series
from wsiseq_jax.data import source


def test_frames_of_different_sizes_are_fitted_when_told(tmp_path):
  frame = tiny_series.frames(1)[0]
  tiny_series.png(tmp_path / "a.png", frame)
  tiny_series.png(tmp_path / "b.png", frame[:12, :16])
  row = {"id": "s", "file": "a.png;b.png", "times": "0;1"}
  path = tiny_series.table(tmp_path / "t.csv", [row])
  tiny_series.run(path, tmp_path / "out", image__mixed_sizes=True)
  (record,) = outputs.records_of(tmp_path / "out")[0].values()
  assert records.decode_panels(record).shape == (2, 24, 32, 3)


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
  tiny_series.run(
    path,
    tmp_path / "out",
    "video",
    sequence__max_frames=3,
    sequence__rule=rule,
  )
  found, _ = outputs.records_of(tmp_path / "out")
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
  tiny_series.run(
    tmp_path / "tables",
    tmp_path / "out",
    "tvrl_cardiac",
    images=str(tmp_path / "images"),
    targets=("LVEF (%)", "CAD:class=0|1"),
  )
  found, split_of = outputs.records_of(tmp_path / "out")
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
  tiny_series.run(
    path, tmp_path / "out", time_unit="frame", image__frame_px=(24,)
  )
  assert source.read_spec(tmp_path / "out").frame_px == (24, 48)
  assert len(outputs.records_of(tmp_path / "out")[0]) == 3


def test_days_become_years_and_calendar_years_keep_their_precision(tmp_path):
  rows = tiny_series.visits_of(tmp_path, "a", 2, years=[730000, 730000.5])
  path = tiny_series.table(tmp_path / "t.csv", rows)
  tiny_series.run(path, tmp_path / "out", time_divisor=365.25)
  (record,) = outputs.records_of(tmp_path / "out")[0].values()
  np.testing.assert_allclose(record.time, [0, 0.5 / 365.25], rtol=1e-6)


def test_the_real_ultrasound_files_become_shards(real_data, tmp_path):
  """One of each kind, cropped to what their middle shows."""
  video = next((real_data / "video").glob("lung_us*.mp4"))
  rows = [
    {"id": "lung", "file": video, "label": "A-lines"},
    {"id": "heart", "file": real_data / "video" / "examples_ybr_color.dcm",
     "label": ""},
  ]  # fmt: skip
  path = tiny_series.table(tmp_path / "t.csv", rows)
  summary = tiny_series.run(
    path,
    tmp_path / "out",
    "video",
    image__frame_px=(64, 64),
    sequence__max_frames=16,
  )
  assert summary.exit_code == runs.EXIT_GOOD
  found, _ = outputs.records_of(tmp_path / "out")
  lung, heart = found["lung"], found["heart"]
  assert lung.frames == heart.frames == 16
  assert lung.time[-1] == pytest.approx(9.91, abs=0.01)
  assert heart.time[-1] == pytest.approx(29 * 0.033333, abs=1e-4)
  assert np.isnan(heart.targets).all() and lung.targets.tolist() == [0.0]
  beating = records.decode_panels(heart).astype(int)
  assert np.abs(np.diff(beating, axis=0)).mean() > 0.5
  assert outputs.errors_of(tmp_path / "out") == [
    ("heart", "note", "missing_target")
  ]
