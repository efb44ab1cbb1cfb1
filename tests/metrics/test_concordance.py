"""Concordance against pairs counted by hand."""

import numpy as np
from sklearn import metrics

from wsiseq_jax.metrics.concordance import concordance


def test_concordance_by_hand():
  time = np.array([1.0, 2.0, 2.0, 2.0, 4.0])
  event = np.array([1, 1, 0, 1, 0])
  risk = np.array([5.0, 3.0, 4.0, 3.0, 3.0])
  # From the first: four pairs, all won. From the second: the third (censored at
  # its time, lost) and the fifth (tied, a half); the fourth has its event at
  # the same time and is not compared. From the fourth likewise.
  found = concordance(time, event, risk)
  np.testing.assert_allclose(found, [(4 + 0.5 + 0.5) / 8])
  assert concordance(time, event, -time)[0] > 0.85
  # A resample without the third, and with the fifth twice.
  weights = np.array([[1.0, 1.0, 0.0, 1.0, 2.0]])
  found = concordance(time, event, risk, weights)
  np.testing.assert_allclose(found, [(1 + 1 + 2 + 1 + 1) / (4 + 2 + 2)])
  assert np.isnan(concordance(time, np.zeros(5), risk)).all()


def test_concordance_without_censoring_is_an_area():
  """Of two times: the share of pairs in the right order is the AUROC."""
  rng = np.random.default_rng(0)
  time = rng.integers(1, 3, 40).astype(float)
  risk = rng.integers(0, 6, 40).astype(float)
  found = concordance(time, np.ones(40), risk)
  np.testing.assert_allclose(found, [metrics.roc_auc_score(time == 1, risk)])
