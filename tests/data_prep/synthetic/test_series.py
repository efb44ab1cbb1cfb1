"""The longitudinal set: rates need time, and the pictures show the truth."""

import csv
import math

import cv2
import numpy as np
import pytest

from benchmarks import growth_r2
from data_prep.series import prepare
from data_prep.synthetic import series as synthetic_series
from tests.data_prep.series import tiny_series
from wsiseq_jax.data import source

SUBJECTS = synthetic_series.make_subjects(600, seed=0)


def test_rates_follow_from_sizes_and_times_and_not_from_sizes_alone():
  blind = growth_r2.time_blind_r2(SUBJECTS)
  aware = growth_r2.time_aware_r2(SUBJECTS)
  print(f"R2 of the growth rate: {blind:.3f} without times, {aware:.3f} with")
  assert blind < 0.25
  assert aware > 0.99


def test_rate_is_independent_of_what_else_a_subject_is():
  rates = np.log([s.rate for s in SUBJECTS])
  others = {
    "span": [math.log(s.times[-1]) for s in SUBJECTS],
    "visits": [len(s.times) for s in SUBJECTS],
    "start": [s.start for s in SUBJECTS],
    "contrast": [s.contrasts[-1] - s.contrasts[0] for s in SUBJECTS],
    "shape": [synthetic_series.SHAPES.index(s.shape) for s in SUBJECTS],
  }
  for name, values in others.items():
    # Three standard errors of a correlation of nothing.
    assert abs(np.corrcoef(rates, values)[0, 1]) < 3 / 600**0.5, name


def test_visits_are_irregular_and_spans_vary_more_than_rates():
  spans = np.array([s.times[-1] for s in SUBJECTS])
  assert spans.max() / spans.min() > 10
  assert {len(s.times) for s in SUBJECTS} == set(range(6, 13))
  ratios = [np.diff(s.times).max() / np.diff(s.times).min() for s in SUBJECTS]
  assert np.median(ratios) > 2.5 and max(ratios) < 5.1
  assert all(s.times[0] == 0 for s in SUBJECTS)


def test_classes_are_balanced():
  labels = [s.labels() for s in SUBJECTS]
  for name, classes in (("growth", 2), ("shape", 3), ("texture", 3)):
    values, counts = np.unique([x[name] for x in labels], return_counts=True)
    assert len(values) == classes
    assert (counts == 600 // classes).all(), name
  slow = [s.rate for s in SUBJECTS if s.labels()["growth"] == "slow"]
  fast = [s.rate for s in SUBJECTS if s.labels()["growth"] == "fast"]
  assert max(slow) < min(fast)


@pytest.mark.parametrize("shape", synthetic_series.SHAPES)
def test_pictures_show_the_size_of_the_truth(shape):
  """All shapes of one radius have one area."""
  times = (0.0, 2.0, 5.0, 9.0)
  subject = synthetic_series.Subject(
    "s", shape, "rings", 1.2, 5.0, 0.0, 0.3, times, seed=8
  )
  pictures = synthetic_series.draw(subject, 96)[..., 0]
  for picture, size in zip(pictures, subject.sizes, strict=True):
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.5).astype(float)
    # Half way from the background to the middle of the object.
    level = (np.median(smooth[:, :12]) + smooth[44:52, 44:52].mean()) / 2
    radius = math.sqrt((smooth > level).sum() / math.pi) / 2
    assert radius == pytest.approx(size, rel=0.08)


def test_subjects_look_like_themselves():
  one, other = SUBJECTS[:2]
  assert synthetic_series.draw(one).shape == (len(one.times), 48, 48, 1)
  assert synthetic_series.draw(one, 32, color=True).shape[1:] == (32, 32, 3)
  np.testing.assert_array_equal(
    synthetic_series.draw(one), synthetic_series.draw(one)
  )
  # The background stays the subject's from visit to visit.
  corner = synthetic_series.draw(one)[:, :10, :10, 0].astype(float)
  theirs = synthetic_series.draw(other)[:, :10, :10, 0].astype(float)
  mean = cv2.GaussianBlur(corner.mean(0), (0, 0), 1).ravel()
  assert np.abs(corner[0] - corner[-1]).mean() < 15
  assert abs(mean.mean() - theirs.mean()) > 1


@pytest.mark.parametrize("arrays", [False, True])
def test_prepared_as_the_manual_says(tmp_path, arrays):
  arguments = [f"--out={tmp_path}", "--subjects=9", "--seed=3"]
  synthetic_series.main(arguments + ["--arrays"] * arrays)
  with open(tmp_path / "truth.csv", newline="") as file:
    truth = list(csv.DictReader(file))
  subjects = synthetic_series.make_subjects(9, 3)
  assert len(truth) == sum(len(s.times) for s in subjects)
  config = tiny_series.config_of(
    tmp_path / "series.csv", tmp_path / "out", "demo", image__frame_px=(48, 48)
  )
  assert prepare.prepare_series(config).exit_code == 0
  spec = source.read_spec(tmp_path / "out")
  assert spec.target_names == (
    "last_size", "shape", "texture", "growth_rate", "growth",
  )  # fmt: skip
  assert spec.target_classes["growth"] == ("slow", "fast")
  reader = source.RecordSource(tmp_path / "out", "train")
  record = reader.record(0)
  (subject,) = [s for s in subjects if s.name == record.patient_id]
  real = len(subject.times)
  assert record.frame_mask.sum() == real
  np.testing.assert_allclose(record.time[:real], subject.times, atol=2e-4)
  assert record.targets[0] == pytest.approx(subject.sizes[-1], abs=1e-3)
  assert record.targets[3] == pytest.approx(subject.rate, abs=1e-3)
  growth = spec.target_classes["growth"][int(record.targets[4])]
  assert growth == subject.labels()["growth"]
