"""The probes that scikit-learn fits: linear and k-NN."""

import numpy as np
import pytest
from sklearn import linear_model, neighbors

from wsiseq_jax.probe import knn, linear, samples
from wsiseq_jax.probe.samples import ProbeTarget, Samples

NUMBER = ProbeTarget("age", 0, ())
CLASS = ProbeTarget("grade", 0, ("low", "high"))
THREE = ProbeTarget("organ", 0, ("a", "b", "c"))


def make(count, seed, target=CLASS, width=6, noise=0.5):
  """Features of which the first two tell the label."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, width))
  signal = x[:, 0] - 2 * x[:, 1] + noise * rng.normal(size=count)
  labels = 40 + 10 * signal
  if target.classes:
    edges = np.quantile(signal, np.arange(1, target.outputs) / target.outputs)
    labels = np.searchsorted(edges, signal)
  return Samples(
    labels.astype(np.float32),
    np.arange(count),
    np.arange(count),
    (5 + 3 * x).astype(np.float32),
  )


def sets(target, noise=0.5):
  return [
    make(n, s, target, noise=noise) for n, s in ((200, 0), (80, 1), (60, 2))
  ]


@pytest.mark.parametrize("target", [CLASS, THREE])
def test_logistic_regression_is_scikit_learn_s(target, monkeypatch):
  monkeypatch.setattr(linear, "PENALTIES", (0.01,))
  train, validation, test = sets(target)
  outcome = linear.run(train, validation, test, target)
  mean, std = train.features.mean(axis=0), train.features.std(axis=0)
  # C is for the sum of losses, the penalty for their mean.
  model = linear_model.LogisticRegression(C=1 / (0.01 * 200), tol=1e-8)
  model.fit((train.features - mean) / std, train.labels.astype(int))
  wanted = model.predict_proba((test.features - mean) / std)
  np.testing.assert_allclose(outcome.prediction, wanted, atol=2e-3)
  assert outcome.chosen == {"penalty": 0.01}


def test_ridge_regression_by_its_formula(monkeypatch):
  monkeypatch.setattr(linear, "PENALTIES", (0.1,))
  train, validation, test = sets(NUMBER)
  outcome = linear.run(train, validation, test, NUMBER)
  x, x_test = samples.standardise(train.features, test.features)
  y = (train.labels - train.labels.mean()) / train.labels.std()
  w = np.linalg.solve(x.T @ x / 200 + 0.1 * np.eye(6), x.T @ y / 200)
  wanted = x_test @ w * train.labels.std() + train.labels.mean()
  np.testing.assert_allclose(outcome.prediction, wanted, rtol=1e-5)


def test_validation_chooses_the_penalty_and_test_does_not():
  train, validation, test = sets(NUMBER, noise=3.0)
  outcome = linear.run(train, validation, test, NUMBER)
  quality = {}
  for penalty in linear.PENALTIES:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(linear, "PENALTIES", (penalty,))
      found = linear.run(train, validation, validation, NUMBER)
      quality[penalty] = found.validation
  best = max(quality, key=quality.get)
  assert outcome.chosen["penalty"] == best
  assert outcome.validation == pytest.approx(quality[best])
  # Test labels that say the contrary of everything change nothing.
  liar = Samples(-test.labels, test.patients, test.index, test.features)
  again = linear.run(train, validation, liar, NUMBER)
  np.testing.assert_array_equal(again.prediction, outcome.prediction)


def test_test_features_do_not_change_the_scaling():
  train, validation, test = sets(NUMBER)
  whole = linear.run(train, validation, test, NUMBER).prediction
  part = test.take(np.arange(5))
  few = linear.run(train, validation, part, NUMBER).prediction
  np.testing.assert_allclose(few, whole[:5], rtol=1e-6)


def test_a_class_without_training_samples_has_probability_0():
  train, validation, test = sets(THREE)
  train = train.take(np.flatnonzero(train.labels != 1))
  for probe in (linear, knn):
    prediction = probe.run(train, validation, test, THREE).prediction
    assert prediction.shape == (60, 3) and (prediction[:, 1] == 0).all()
    np.testing.assert_allclose(prediction.sum(axis=1), 1, rtol=1e-6)


def test_one_class_cannot_be_fitted():
  train, validation, test = sets(CLASS)
  train = train.take(np.flatnonzero(train.labels == 1))
  with pytest.raises(ValueError, match="'grade': all 100 .* of class 'high'"):
    linear.run(train, validation, test, CLASS)


def test_equal_numbers_predict_that_number():
  train, validation, test = sets(NUMBER)
  one = train.take(np.zeros(1, int))
  for probe in (linear, knn):
    prediction = probe.run(one, validation, test, NUMBER).prediction
    np.testing.assert_allclose(prediction, one.labels[0], rtol=1e-6)


def test_a_feature_that_never_changes_is_harmless():
  train, validation, test = sets(CLASS)
  for split in (train, validation, test):
    split.features[:, 3] = 7.0
  test.features[0, 3] = 1e6  # but once, where nobody trained
  outcome = linear.run(train, validation, test, CLASS)
  assert np.isfinite(outcome.prediction).all() and outcome.validation > 0.9


def test_neighbours_are_scikit_learn_s(monkeypatch):
  monkeypatch.setattr(knn, "COUNTS", (5,))
  monkeypatch.setattr(knn, "TEMPERATURES", (1e6,))  # all votes alike
  train, validation, test = sets(THREE)
  outcome = knn.run(train, validation, test, THREE)
  model = neighbors.KNeighborsClassifier(5, metric="cosine")
  model.fit(train.features, train.labels.astype(int))
  wanted = model.predict_proba(test.features)
  np.testing.assert_allclose(outcome.prediction, wanted, atol=1e-4)
  assert outcome.chosen == {"k": 5.0, "temperature": 1e6}


def test_near_neighbours_weigh_more():
  similarity = np.array([[0.9, 0.8]])
  found = knn.vote(similarity, np.array([[1, 0]]), 2, 0.1, classes=2)
  weight = np.exp(0.9 / 0.1) / (np.exp(0.9 / 0.1) + np.exp(0.8 / 0.1))
  np.testing.assert_allclose(found, [[1 - weight, weight]])


def test_fewer_samples_than_neighbours():
  train, validation, test = sets(CLASS)
  few = train.take(np.array([0, 1, 2]))
  outcome = knn.run(few, validation, test, CLASS)
  assert outcome.chosen["k"] in (1.0, 3.0)


def test_equal_scores_are_told_apart_by_the_loss():
  labels = np.array([0.0, 1.0])
  bold = np.array([[0.9, 0.1], [0.1, 0.9]])
  timid = np.array([[0.6, 0.4], [0.4, 0.6]])
  assert samples.quality(CLASS, labels, bold) > samples.quality(
    CLASS, labels, timid
  )
  assert samples.quality(CLASS, labels, bold)[0] == 1.0
