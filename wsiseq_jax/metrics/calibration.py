"""Expected calibration error and reliability tables.

Samples are sorted into bins of equal width, [0, 0.1), [0.1, 0.2), …, by their
probability. The error is the distance between the share of positives and the
mean probability of a bin, averaged over bins by how many are in them:

    ECE = Σ_b n_b / n · | observed_b − predicted_b |

On few samples it overstates the error of a good model, since a bin of five
cannot have a share of 0.93: compare only models scored on the same slides.

Two classes: probability of the second against how often it is true. Several
classes: that of the class which was predicted against how often that is right
(`top_label`).

Reference: Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Reliability:
  """The bins that hold anything, from low to high probability."""

  count: Int[np.ndarray, " k"]  # how many are in each bin
  predicted: Float[np.ndarray, " k"]  # their mean probability
  observed: Float[np.ndarray, " k"]  # the share of them that came true


def assign(
  probability: Float[np.ndarray, " n"], bins: int
) -> Int[np.ndarray, " n"]:
  """The bin of each probability.

  Returns:
    Numbers from 0 to bins - 1; a bin may be empty.

  Raises:
    ValueError: no bin, or a probability outside [0, 1].

  Example:
    >>> assign(np.array([0.0, 0.1, 0.5, 1.0]), 2).tolist()
    [0, 0, 1, 1]
  """
  probability = np.asarray(probability, np.float64)
  if bins < 1:
    raise ValueError(f"{bins} bins: must be at least 1")
  if not ((probability >= 0) & (probability <= 1)).all():
    raise ValueError(
      "probabilities must lie in [0, 1], found "
      f"{probability.min():g} to {probability.max():g}"
    )
  return np.minimum((probability * bins).astype(np.int64), bins - 1)


def ece(
  outcomes: Float[np.ndarray, " n"] | Int[np.ndarray, " n"],
  probability: Float[np.ndarray, " n"],
  bins: int = 10,
  weights: Float[np.ndarray, "r n"] | None = None,
) -> Float[np.ndarray, " r"]:
  """Expected calibration error, for many weightings at once.

  Returns:
    One value for each row of weights, NaN where all of them are 0.
  """
  probability = np.asarray(probability, np.float64)
  if weights is None:
    weights = np.ones((1, len(probability)))
  inside = assign(probability, bins)[:, None] == np.arange(bins)
  # n_b |observed - predicted| is the absolute sum of differences in the bin.
  gap = (np.asarray(outcomes, np.float64) - probability)[:, None] * inside
  total = weights.sum(axis=1)
  error = np.abs(weights @ gap).sum(axis=1)
  return np.where(total > 0, error / np.where(total > 0, total, 1.0), np.nan)


def reliability(
  outcomes: Float[np.ndarray, " n"] | Int[np.ndarray, " n"],
  probability: Float[np.ndarray, " n"],
  bins: int = 10,
) -> Reliability:
  """Mean probability and share of positives in each bin that holds anything.

  Example:
    >>> r = reliability(np.array([0, 1, 1]), np.array([0.2, 0.3, 0.9]), 2)
    >>> r.count.tolist(), r.predicted.tolist(), r.observed.tolist()
    ([2, 1], [0.25, 0.9], [0.5, 1.0])
  """
  number = assign(probability, bins)
  count = np.bincount(number, minlength=bins)
  kept = count > 0
  mean = [
    np.bincount(number, np.asarray(values, np.float64), bins)[kept]
    / count[kept]
    for values in (probability, outcomes)
  ]
  return Reliability(count[kept], mean[0], mean[1])


def top_label(
  labels: Int[np.ndarray, " n"], probability: Float[np.ndarray, "n y"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """Of several classes: whether the predicted one is right, and how sure.

  Returns:
    Outcomes (1 = right), and the probability of the predicted class.

  Example:
    >>> p = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    >>> [x.tolist() for x in top_label(np.array([1, 2]), p)]
    [[0, 1], [0.5, 0.8]]
  """
  guess = probability.argmax(axis=1)
  return (guess == labels).astype(np.int64), probability.max(axis=1)
