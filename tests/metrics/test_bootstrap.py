import numpy as np
import pytest

from wsiseq_jax.metrics import bootstrap


def mean_of(y):
  return lambda w: {"mean": (w * y).sum(axis=1) / w.sum(axis=1)}


def test_patients_are_drawn_whole():
  patients = np.repeat(["a", "b", "c", "d"], [1, 2, 3, 10])
  weights = bootstrap.patient_weights(patients, 200, seed=0)
  assert weights.shape == (200, 16)
  for name in "abcd":
    mine = weights[:, patients == name]
    assert (mine == mine[:, :1]).all()
  # As many patients as there are, with replacement: not as many sequences.
  first = [np.flatnonzero(patients == n)[0] for n in "abcd"]
  assert (weights[:, first].sum(axis=1) == 4).all()
  assert weights.max() > 1 and len(set(weights.sum(axis=1).tolist())) > 5
  np.testing.assert_array_equal(
    weights, bootstrap.patient_weights(patients, 200, seed=0)
  )


def test_interval_is_that_of_patients_not_of_sequences():
  """Copies of a patient's sequence must not make the interval narrower."""
  rng = np.random.default_rng(0)
  y = rng.normal(size=25)
  patients = np.arange(25)
  once = bootstrap.intervals(mean_of(y), patients)["mean"]
  copied = bootstrap.intervals(
    mean_of(np.repeat(y, 16)), np.repeat(patients, 16)
  )
  assert copied["mean"] == pytest.approx(once)
  # As sequences of patients of their own they would.
  wrong = bootstrap.intervals(mean_of(np.repeat(y, 16)), np.arange(25 * 16))
  ratio = (once[1] - once[0]) / (wrong["mean"][1] - wrong["mean"][0])
  assert 3 < ratio < 5  # √16


def test_interval_of_a_mean_is_that_of_the_textbook():
  y = np.random.default_rng(1).normal(size=400)
  low, high = bootstrap.intervals(mean_of(y), np.arange(400), 4000)["mean"]
  half = 1.96 * y.std() / 20
  assert abs(low - (y.mean() - half)) < 0.15 * half
  assert abs(high - (y.mean() + half)) < 0.15 * half


def test_blocks_change_nothing(monkeypatch):
  y, patients = np.arange(30.0), np.arange(30) // 3
  whole = bootstrap.intervals(mean_of(y), patients, 100)
  monkeypatch.setattr(bootstrap, "BLOCK_WEIGHTS", 30 * 7)
  assert bootstrap.intervals(mean_of(y), patients, 100) == whole


def test_unknown_resamples_are_left_out():
  y = np.array([0.0, 1.0])

  def statistics(w):
    both = (w > 0).all(axis=1)
    return {
      "some": np.where(both, (w * y).sum(axis=1), np.nan),
      "none": np.full(len(w), np.nan),
    }

  found = bootstrap.intervals(statistics, np.array([0, 1]), 50)
  assert found["some"] == (1.0, 1.0)
  assert np.isnan(found["none"]).all()


def test_one_patient_has_no_interval():
  y = np.arange(5.0)
  found = bootstrap.intervals(mean_of(y), np.array(["a"] * 5), 20)
  assert np.isnan(found["mean"]).all()
