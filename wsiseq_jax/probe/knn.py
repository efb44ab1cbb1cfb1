"""k nearest neighbours by cosine similarity: a probe that learns nothing.

    vote of neighbour i   exp(s_i / τ),   s_i = cosine similarity

Probabilities are the normalised votes by class; a number is the mean of the
neighbours' weighted alike. k and the temperature τ are chosen on validation.

Reference: Wu et al., "Unsupervised feature learning via non-parametric instance
discrimination", CVPR 2018 (k = 200, τ = 0.07).
"""

import numpy as np
from jaxtyping import Float, Int
from sklearn import neighbors, preprocessing

from wsiseq_jax.probe import samples
from wsiseq_jax.probe.samples import ProbeOutcome, ProbeTarget, Samples

COUNTS = (1, 3, 5, 10, 20, 50, 200)
TEMPERATURES = (0.02, 0.07, 0.2, 1.0)


def run(
  train: Samples, validation: Samples, test: Samples, target: ProbeTarget
) -> ProbeOutcome:
  """Chooses k and temperature on validation, predicts the test samples.

  Returns:
    The outcome; `chosen` has `k` and `temperature`.
  """
  gallery = preprocessing.normalize(train.features)
  most = min(max(COUNTS), len(gallery))
  index = neighbors.NearestNeighbors(n_neighbors=most, algorithm="brute")
  index.fit(gallery)
  classes = len(target.classes)

  def nearest(queries: Samples):
    distance, rows = index.kneighbors(preprocessing.normalize(queries.features))
    # Of unit vectors: |a - b|² = 2 - 2 cos.
    return 1 - distance**2 / 2, train.labels[rows]

  near = nearest(validation)
  best = None
  for k in sorted({min(k, most) for k in COUNTS}):
    for temperature in TEMPERATURES:
      prediction = vote(*near, k, temperature, classes)
      quality = samples.quality(target, validation.labels, prediction)
      if best is None or quality > best[0]:
        best = (quality, k, temperature)
  quality, k, temperature = best
  prediction = vote(*nearest(test), k, temperature, classes)
  chosen = {"k": float(k), "temperature": temperature}
  return ProbeOutcome(prediction, quality[0], chosen)


def vote(
  similarity: Float[np.ndarray, "q k"],
  labels: Float[np.ndarray, "q k"] | Int[np.ndarray, "q k"],
  k: int,
  temperature: float,
  classes: int,
) -> np.ndarray:
  """What the first k neighbours say.

  Example:
    >>> s = np.array([[1.0, 1.0, 0.0]])
    >>> vote(s, np.array([[1, 0, 1]]), 2, 0.07, classes=2).tolist()
    [[0.5, 0.5]]
    >>> vote(s, np.array([[4.0, 2.0, 9.0]]), 2, 0.07, classes=0).tolist()
    [3.0]
  """
  similarity, labels = similarity[:, :k], labels[:, :k]
  # The nearest has weight 1; small temperatures would overflow otherwise.
  weight = np.exp((similarity - similarity[:, :1]) / temperature)
  weight /= weight.sum(axis=1, keepdims=True)
  if not classes:
    return (weight * labels).sum(axis=1)
  is_class = labels[:, :, None] == np.arange(classes)
  return (weight[:, :, None] * is_class).sum(axis=1)
