"""Which labels are given: targets, patients, fractions."""

import csv

import numpy as np
import pytest

from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import ProbeTarget

CLASS = ProbeTarget("grade", 0, ("low", "high"))
NUMBER = ProbeTarget("age", 1, ())

# 200 patients of one to five sequences, a tenth of them of class 1.
RNG = np.random.default_rng(0)
OF_PATIENT = (np.arange(200) % 10 == 0).astype(int)
PATIENTS = np.repeat(np.arange(200), RNG.integers(1, 6, 200))
LABELS = OF_PATIENT[PATIENTS]


def patients_of(fraction, seed, labels=LABELS, classes=2):
  rows = samples.choose_fraction(labels, PATIENTS, classes, fraction, seed)
  assert (np.diff(rows) > 0).all()
  return set(PATIENTS[rows].tolist()), rows


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_patients_are_kept_whole_and_stratified(fraction, seed):
  kept, rows = patients_of(fraction, seed)
  np.testing.assert_array_equal(
    rows, np.flatnonzero(np.isin(PATIENTS, [*kept]))
  )
  ones = sum(OF_PATIENT[p] for p in kept)
  wanted = {0.01: (2, 1), 0.1: (18, 2), 0.5: (90, 10)}[fraction]
  assert (len(kept) - ones, ones) == wanted


@pytest.mark.parametrize("classes", [2, 0])
def test_small_fractions_are_part_of_large_ones(classes):
  labels = LABELS if classes else np.sin(PATIENTS.astype(float))
  for seed in range(5):
    sets = [
      patients_of(f, seed, labels, classes)[0] for f in (0.01, 0.1, 0.5, 1.0)
    ]
    for small, large in zip(sets, sets[1:], strict=False):
      assert small < large
    assert len(sets[-1]) == 200


def test_five_seeds_are_five_choices():
  kept = [frozenset(patients_of(0.1, seed)[0]) for seed in range(5)]
  assert len(set(kept)) == 5
  assert kept[0] == patients_of(0.1, 0)[0]


def test_numbers_are_stratified_by_fifths():
  kept, _ = patients_of(0.1, 0, PATIENTS.astype(float), classes=0)
  count = np.bincount(np.array([*kept]) // 40, minlength=5)
  assert count.tolist() == [4, 4, 4, 4, 4]


def test_no_class_is_missing_from_any_fraction():
  """Class 2 is nobody's commonest, and is in one patient in forty."""
  labels = LABELS.copy()
  first = np.flatnonzero(np.diff(PATIENTS, prepend=-1))
  many = [r for r in first if (PATIENTS == PATIENTS[r]).sum() > 2]
  labels[many[::20]] = 2
  for seed in range(10):
    for fraction in (0.005, 0.1):
      _, rows = patients_of(fraction, seed, labels, 3)
      assert set(labels[rows].tolist()) == {0, 1, 2}


SPLITS = {
  # Columns: grade, age; -1 stands for unknown.
  "train": ([[0, 1], [1, 2], [1, -1]], "aab"),
  "val": ([[0, 1], [1, 5]], "cd"),
  "test": ([[0, 3], [-1, 3]], "ef"),
}


def read(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def labels():
  def table(rows):
    rows = np.array(rows, np.float32)
    return np.where(rows < 0, np.nan, rows)

  return {
    role: (table(rows), np.array(list(p))) for role, (rows, p) in SPLITS.items()
  }


def test_unknown_labels_are_counted_by_target_and_split(tmp_path):
  path = tmp_path / "labels.csv"
  samples.write_counts(path, (CLASS, NUMBER), labels())
  found = {
    (r["target"], r["split"]): (r["sequences"], r["patients"], r["unknown"])
    for r in read(path)
  }
  assert found["grade", "train"] == ("3", "2", "0")
  assert found["age", "train"] == ("2", "1", "1")
  assert found["grade", "test"] == ("1", "1", "1")
  assert {r["kind"] for r in read(path)} == {"2 classes", "number"}


def test_targets_without_two_values_in_a_split():
  known = labels()
  with pytest.raises(
    ValueError, match="'grade' is the same .*, 'low' in the te"
  ):
    samples.usable((CLASS,), known, must=True)
  with pytest.raises(ValueError, match="'age' is the same everywhere, 3"):
    samples.usable((CLASS, NUMBER), known, must=False)
  known["test"][0][1] = [1, 7]
  assert samples.usable((CLASS, NUMBER), known, False) == (CLASS, NUMBER)
  known["val"][0][:, 1] = np.nan
  with pytest.raises(ValueError, match="'age' is unknown .* in the val split"):
    samples.usable((CLASS, NUMBER), known, must=True)


def test_what_cannot_be_probed_is_left_out_with_a_word(capsys):
  known = labels()
  known["test"][0][1, 0] = 1
  assert samples.usable((CLASS, NUMBER), known, must=False) == (CLASS,)
  assert "left out: 'age' is the same everywhere, 3" in capsys.readouterr().err
