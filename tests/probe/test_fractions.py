import numpy as np
import pytest

from wsiseq_jax.probe import fractions

# 200 patients of one to five sequences, a tenth of them of class 1.
RNG = np.random.default_rng(0)
OF_PATIENT = (np.arange(200) % 10 == 0).astype(int)
PATIENTS = np.repeat(np.arange(200), RNG.integers(1, 6, 200))
LABELS = OF_PATIENT[PATIENTS]


def patients_of(fraction, seed, labels=LABELS, classes=2):
  rows = fractions.choose(labels, PATIENTS, classes, fraction, seed)
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


def test_a_fraction_of_nothing_is_refused():
  with pytest.raises(ValueError, match="config.probe.fractions: 0.0"):
    fractions.choose(LABELS, PATIENTS, 2, 0.0, 0)
