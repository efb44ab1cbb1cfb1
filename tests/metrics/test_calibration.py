"""Calibration error and tables by hand."""

import numpy as np
import pytest

from wsiseq_jax.metrics import calibration

# Bins of 0.25: {0.1, 0.2}, {0.3}, {}, {0.8, 0.9, 1.0}.
P = np.array([0.1, 0.2, 0.3, 0.8, 0.9, 1.0])
Y = np.array([0, 1, 0, 1, 1, 0])


def test_ece_by_hand():
  # Gaps: |1 - 0.3| / 6, |0 - 0.3| / 6, |2 - 2.7| / 6.
  wanted = (0.7 + 0.3 + 0.7) / 6
  assert calibration.ece(Y, P, 4)[0] == pytest.approx(wanted)


def test_weights_are_repetitions():
  weights = np.array([[1, 2, 0, 3, 1, 1], [0, 0, 0, 0, 0, 0]], float)
  rows = np.repeat(np.arange(6), weights[0].astype(int))
  found = calibration.ece(Y, P, 4, weights=weights)
  assert found[0] == pytest.approx(calibration.ece(Y[rows], P[rows], 4)[0])
  assert np.isnan(found[1])


def test_calibrated_is_zero_and_certain_but_wrong_is_one():
  assert calibration.ece(np.array([0, 1]), np.array([0.5, 0.5]))[0] == 0
  assert calibration.ece(np.array([0, 1]), np.array([1.0, 0.0]))[0] == 1


def test_table():
  table = calibration.reliability(Y, P, 4)
  assert table.count.tolist() == [2, 1, 3]
  assert table.predicted == pytest.approx([0.15, 0.3, 0.9])
  assert table.observed == pytest.approx([0.5, 0.0, 2 / 3])


def test_edges_belong_to_the_upper_bin_and_one_to_the_last():
  edges = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
  assert calibration.assign(edges, 4).tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(
  "p, bins, words",
  [
    ([0.5], 0, "0 bins"),
    ([1.5], 4, r"\[0, 1\], found 1.5"),
    ([np.nan], 4, r"\[0, 1\]"),
  ],
)
def test_bad_values(p, bins, words):
  with pytest.raises(ValueError, match=words):
    calibration.ece(np.array([1]), np.array(p), bins)
