"""The drawn cohort of labelled pictures: its shape, and that truth is true."""

import hashlib

import cv2
import numpy as np
import pytest

from data_prep.files import tables
from data_prep.synthetic import optics, pictures


def drawn(number, is_positive=True, px=64, mpp=1.0):
  stain, light = optics.patient_stain(0, number)
  rng = np.random.default_rng(number)
  return pictures.draw(rng, px, mpp, is_positive, stain, light)


def test_the_cohort_has_the_shape_of_the_clinical_one():
  rows = pictures.plan(6406, seed=1)
  count = {True: 0, False: 0}
  patients = {True: set(), False: set()}
  for name, _, has_tumour, _, pictures_of in rows:
    patients[has_tumour].add(name)
    count[has_tumour] += pictures_of
  assert (len(patients[True]), len(patients[False])) == (17, 32)
  assert abs(count[True] - 4232) < 20 and abs(count[False] - 2174) < 20
  # Every split has patients of both kinds.
  assert {(split, kind) for _, split, kind, _, _ in rows} == {
    (split, kind)
    for split in ("train", "val", "test")
    for kind in (True, False)
  }
  # However small, each patient has a picture.
  assert all(row[-1] >= 1 for row in pictures.plan(49, seed=0))


def test_truth_is_what_is_drawn():
  covers = []
  for number in range(24):
    one = drawn(number)
    assert one.truth.any() and one.points.dtype == np.float32
    assert not one.truth[one.tissue == 0].any()
    x, y = np.rint(one.points[:, :2]).astype(int).T
    np.testing.assert_array_equal(one.truth[y, x], one.points[:, 2])
    covers.append(one.truth[one.tissue > 0].mean())
    # Nuclei are darker than what is around them.
    red = one.pixels[..., 0].astype(float)
    assert red[y, x].mean() < red[one.tissue > 0].mean() - 10
  assert min(covers) < 0.15 and max(covers) == 1
  assert not drawn(0, is_positive=False).truth.any()


def test_patients_differ_more_than_pictures():
  def colour(patient, seed):
    stain, light = optics.patient_stain(0, patient)
    rng = np.random.default_rng(seed)
    one = pictures.draw(rng, 64, 1.0, False, stain, light)
    return one.pixels[one.tissue > 0].mean(0)

  means = np.array(
    [[colour(p, 10 * p + i) for i in range(6)] for p in range(6)]
  )
  within = means.std(1).mean()
  between = means.mean(1).std(0).mean()
  assert between > within / 2


def test_the_same_call_writes_the_same_bytes(tmp_path):
  def digest(folder):
    data = [p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()]
    return hashlib.sha256(b"".join(data)).hexdigest()

  table = pictures.make_cohort(tmp_path / "a", pictures=49, px=32)
  rows = tables.rows_of(table)
  assert len(rows) >= 49
  first = rows[0]
  mask = cv2.imread(str(tmp_path / "a" / first["mask"]), cv2.IMREAD_UNCHANGED)
  assert mask.max() == int(first["tumour"]) == 1
  pictures.make_cohort(tmp_path / "b", pictures=49, px=32)
  assert digest(tmp_path / "a") == digest(tmp_path / "b")
  changed = table.stat().st_mtime_ns
  pictures.make_cohort(tmp_path / "a", pictures=49, px=32)
  assert table.stat().st_mtime_ns == changed


def test_wrong_settings_are_refused(tmp_path):
  with pytest.raises(ValueError, match="px=33: want an even number"):
    pictures.make_cohort(tmp_path, px=33)
  with pytest.raises(ValueError, match="want one a patient, 49 or more"):
    pictures.make_cohort(tmp_path, pictures=48)
