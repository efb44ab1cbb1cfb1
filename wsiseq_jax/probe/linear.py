"""The strict linear probe: frozen features, one linear map, nothing else.

Features are standardised by the training samples. Classes: multinomial logistic
regression; numbers: ridge regression. Both with an L2 penalty λ per sample,

    mean loss + λ/2 ‖W‖²,

chosen on validation from a fixed list, from strong to weak, which ends early
after two values in a row that were worse. λ is per sample, so that the list
means the same at 1 % and at 100 % of the labels. scikit-learn does the fitting;
both problems are convex, hence there is nothing random about the result.
"""

import warnings

import numpy as np
from jaxtyping import Float
from sklearn import exceptions, linear_model

from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import ProbeOutcome, ProbeTarget, Samples

# From strong to weak: each fit starts where the one before ended.
PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
# Enough for all but the weakest penalties on separable classes, where more
# steps only drive probabilities towards 0 and 1.
_STEPS = 100
_PATIENCE = 2


def run(
  train: Samples, validation: Samples, test: Samples, target: ProbeTarget
) -> ProbeOutcome:
  """Fits for every penalty, chooses on validation, predicts the test samples.

  Returns:
    The outcome; `chosen` has the `penalty`.

  Raises:
    ValueError: all training samples are of one class.
  """
  x, x_validation, x_test = samples.standardise(
    train.features, validation.features, test.features
  )
  fit = _logistic if target.classes else _ridge
  best, worse = None, 0
  for penalty, predict in fit(x, train.labels, target):
    quality = samples.quality(target, validation.labels, predict(x_validation))
    worse += 1
    if best is None or quality > best[0]:
      best, worse = (quality, penalty, predict(x_test)), 0
    if worse == _PATIENCE:
      break
  quality, penalty, prediction = best
  return ProbeOutcome(prediction, quality[0], {"penalty": penalty})


def _logistic(
  x: Float[np.ndarray, "n d"], labels: np.ndarray, target: ProbeTarget
):
  found = np.unique(labels.astype(int))
  if len(found) < 2:
    raise ValueError(
      f"target {target.name!r}: all {len(labels)} training sequences are of "
      f"class {target.classes[found[0]]!r}"
    )
  # Half the memory, twice the speed; more digits would not change a score.
  x = x.astype(np.float32)
  model = linear_model.LogisticRegression(
    max_iter=_STEPS, tol=1e-4, warm_start=True
  )

  def predict(rows):
    # A class without training samples has probability 0.
    probability = np.zeros((len(rows), len(target.classes)))
    probability[:, found] = model.predict_proba(rows.astype(np.float32))
    return probability

  for penalty in PENALTIES:
    model.set_params(C=1 / (penalty * len(x)))
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
      model.fit(x, labels.astype(int))
    yield penalty, predict


def _ridge(
  x: Float[np.ndarray, "n d"], labels: np.ndarray, target: ProbeTarget
):
  del target
  mean, std = labels.mean(), max(float(labels.std()), 1e-12)
  for penalty in PENALTIES:
    model = linear_model.Ridge(alpha=penalty * len(x))
    model.fit(x, (labels - mean) / std)
    yield penalty, lambda rows, model=model: model.predict(rows) * std + mean
