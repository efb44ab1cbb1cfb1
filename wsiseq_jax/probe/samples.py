"""What all probes are given and give back, and how they are compared.

A probe sees three sets of samples of one target and returns predictions of the
third. Training samples are a fraction of the labels; validation chooses (the
regularisation, k, the epoch); the test split is looked at once, by what was
chosen.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from wsiseq_jax.metrics import classification, regression


@dataclasses.dataclass(frozen=True)
class Target:
  """What is predicted.

  Attributes:
    name: its name in the data set.
    column: its place in a record's `targets`.
    classes: names of its classes; () for a number.
  """

  name: str
  column: int
  classes: tuple[str, ...]

  @property
  def outputs(self) -> int:
    """Values a head gives: one a class, or one number."""
    return len(self.classes) or 1

  @property
  def metric(self) -> str:
    """What validation maximises: AUROC of classes, R² of numbers."""
    return "auroc" if self.classes else "r2"


@dataclasses.dataclass(frozen=True)
class Samples:
  """Sequences with a known label.

  Attributes:
    labels: class numbers or numbers, f32 [n].
    patients: patient of each, [n].
    index: record of each in its split, [n].
    features: frozen features [n, d]; None for fine-tuning.
    tokens: frozen tokens {tokens [n, k, d], token_mask, token_time [n, k]}, for
      probes that pool by themselves.
  """

  labels: Float[np.ndarray, " n"]
  patients: np.ndarray
  index: Int[np.ndarray, " n"]
  features: Float[np.ndarray, "n d"] | None = None
  tokens: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, rows: np.ndarray) -> "Samples":
    """The samples of these rows."""
    features = None if self.features is None else self.features[rows]
    return Samples(
      self.labels[rows],
      self.patients[rows],
      self.index[rows],
      features,
      {name: array[rows] for name, array in self.tokens.items()},
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a probe found.

  Attributes:
    prediction: of the test samples: class probabilities [n, y], or numbers [n].
    validation: the score on validation that chose, `Target.metric`.
    chosen: what was chosen there, by name.
  """

  prediction: np.ndarray
  validation: float
  chosen: Mapping[str, float]


def scores(
  target: Target,
  labels: np.ndarray,
  prediction: np.ndarray,
  weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """All scores of a target's kind; see `classification` and `regression`."""
  if target.classes:
    return classification.scores(labels.astype(int), prediction, weights)
  return regression.scores(labels, prediction, weights)


def quality(
  target: Target, labels: np.ndarray, prediction: np.ndarray
) -> tuple[float, float]:
  """What to maximise on validation: the metric, and of equals the lower loss.

  A small validation split often gives several candidates the very same AUROC.

  Returns:
    (`Target.metric`, minus the mean log loss or squared error).
  """
  metric = float(scores(target, labels, prediction)[target.metric][0])
  if target.classes:
    own = prediction[np.arange(len(labels)), labels.astype(int)]
    return metric, float(np.log(np.maximum(own, 1e-9)).mean())
  return metric, -float(np.square(labels - prediction).mean())


def standardise(
  train: Float[np.ndarray, "n d"], *others: np.ndarray
) -> list[Float[np.ndarray, "m d"]]:
  """Scales features by the mean and deviation of the training rows alone.

  Args:
    train: rows that say mean and deviation.
    *others: rows scaled likewise.

  Returns:
    All of them, scaled; a feature that never changes becomes 0 in training.

  Example:
    >>> train, test = np.array([[1.0], [3.0]]), np.array([[5.0]])
    >>> [x.tolist() for x in standardise(train, test)]
    [[[-1.0], [1.0]], [[3.0]]]
  """
  mean = train.mean(axis=0, dtype=np.float64)
  std = train.std(axis=0, dtype=np.float64)
  scale = np.where(std > 1e-7 * np.maximum(np.abs(mean), 1e-30), std, 1.0)
  return [(x - mean) / scale for x in (train, *others)]
