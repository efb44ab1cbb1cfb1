r"""Heads of bag models: what logits mean, and what is lost by being wrong.

    head            logits        labels          predict
    Binary          [b 1]         [b] 0, 1        probability of 1, [b 1]
    Multiclass      [b y]         [b] 0 … y − 1   probabilities [b y]
    Multilabel      [b y]         [b y] 0, 1      probabilities [b y]
    Regression      [b y]         [b y]           values in the labels' unit
    Survival        [b 1]         [b 2]           logarithm of the hazard ratio

Labels [b] may be [b 1], and the other way round. NaN is a label that is not
known: it adds nothing to the loss. Nor does a slide of weight 0 (`weights`), by
which batches are padded. `loss` is a mean over the slides with a known label,
f32; `losses` are those of single slides, which survival has not. What a label
adds is multiplied by its `label_weights`, shape of the labels; the mean is
still one over slides, not over weights.

`predict` maps logits of any leading shape, so that the logits of tiles become
maps of probabilities by the same function. `onehot` is what
`mil.auxiliary_loss` wants to be told.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from wsiseq_jax.models.mil import clam

TIES = ("efron", "breslow")


def _column(labels: Any, outputs: int) -> Array:
  """Labels [b y]; [b] is taken for [b 1]."""
  labels = jnp.asarray(labels, jnp.float32)
  if labels.ndim == 1:
    labels = labels[:, None]
  if labels.ndim != 2 or labels.shape[1] != outputs:
    raise ValueError(
      f"labels of shape {labels.shape}: must be (b, {outputs}) for this head"
    )
  return labels


class _Separate:
  """What heads share whose slides are judged one by one."""

  def loss(
    self,
    logits: Float[Array, "b y"],
    labels: Any,
    weights: Float[Array, " b"] | None = None,
    label_weights: Any = None,
  ) -> Float[Array, ""]:
    """Mean over the slides with a known label; 0 if there is none.

    Raises:
      ValueError: Labels have not the shape that the head wants.
    """
    labels = jnp.asarray(labels, jnp.float32)
    known = ~jnp.isnan(labels.reshape(len(logits), -1)).all(axis=1)
    weight = known.astype(jnp.float32)
    weight = weight if weights is None else weight * weights
    total = jnp.sum(weight)
    each = self.losses(logits, labels, label_weights)
    each = jnp.where(weight > 0, each, 0.0)
    return jnp.sum(weight * each) / jnp.where(total > 0, total, 1.0)

  def _mean_of_known(self, logits, labels, label_weights, function):
    labels = _column(labels, logits.shape[1])
    known = ~jnp.isnan(labels)
    each = function(logits, jnp.where(known, labels, 0.0))
    if label_weights is not None:
      each = each * _column(label_weights, logits.shape[1])
    total = jnp.sum(jnp.where(known, each, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(known, axis=1), 1)


@dataclasses.dataclass(frozen=True)
class Multilabel(_Separate):
  """Classes that do not exclude each other, each with a logit.

  Attributes:
    outputs: Classes.

  Example:
    >>> head = Multilabel(2)
    >>> labels = jnp.array([[1.0, jnp.nan]])
    >>> round(float(head.loss(jnp.zeros((1, 2)), labels)), 4)  # log 2
    0.6931
  """

  outputs: int

  def losses(
    self, logits: Float[Array, "b y"], labels: Any, label_weights: Any = None
  ) -> Float[Array, " b"]:
    """Mean cross-entropy of a slide's known labels; 0 if none is."""
    return self._mean_of_known(
      logits, labels, label_weights, optax.sigmoid_binary_cross_entropy
    )

  def predict(self, logits: Float[Array, "*b y"]) -> Float[Array, "*b y"]:
    """Probability of each class."""
    return jax.nn.sigmoid(logits)

  def onehot(self, labels: Any) -> Float[Array, "b y"]:
    """The labels themselves."""
    return _column(labels, self.outputs)


@dataclasses.dataclass(frozen=True)
class Binary(Multilabel):
  """One class against its absence, with one logit."""

  outputs: int = 1


@dataclasses.dataclass(frozen=True)
class Multiclass(_Separate):
  """Classes that exclude each other, one logit each.

  Attributes:
    outputs: Classes.

  Example:
    >>> head = Multiclass(3)
    >>> round(float(head.loss(jnp.zeros((1, 3)), jnp.array([2.0]))), 4)  # log 3
    1.0986
  """

  outputs: int

  def losses(
    self, logits: Float[Array, "b y"], labels: Any, label_weights: Any = None
  ) -> Float[Array, " b"]:
    """−log probability of the right class; 0 if it is not known."""
    labels = _column(labels, 1)[:, 0]
    known = ~jnp.isnan(labels)
    index = jnp.where(known, labels, 0.0).astype(jnp.int32)
    each = clam.cross_entropy(logits, index)
    if label_weights is not None:
      each = each * _column(label_weights, 1)[:, 0]
    return jnp.where(known, each, 0.0)

  def predict(self, logits: Float[Array, "*b y"]) -> Float[Array, "*b y"]:
    """Probability of each class."""
    return jax.nn.softmax(logits, axis=-1)

  def onehot(self, labels: Any) -> Float[Array, "b y"]:
    """1 for the class of a slide, 0 for the others; NaN if not known."""
    labels = _column(labels, 1)
    row = (labels == jnp.arange(self.outputs)[None]).astype(jnp.float32)
    return jnp.where(jnp.isnan(labels), jnp.nan, row)


@dataclasses.dataclass(frozen=True)
class Regression(_Separate):
  """Numbers, learned in units of their deviation.

      loss = mean of (logit − (label − mean) / deviation)²

  Attributes:
    outputs: Numbers.
    mean: Of the training labels.
    deviation: Of the training labels, in their unit.

  Raises:
    ValueError: At construction, if `deviation` is not positive.

  Example:
    >>> head = Regression(1, mean=50.0, deviation=10.0)
    >>> float(head.loss(jnp.array([[1.0]]), jnp.array([80.0])))
    4.0
    >>> head.predict(jnp.array([[1.0]])).tolist()
    [[60.0]]
  """

  outputs: int = 1
  mean: float = 0.0
  deviation: float = 1.0

  def __post_init__(self):
    if not self.deviation > 0:
      raise ValueError(
        f"a deviation of {self.deviation}: the labels of the training slides "
        "must differ"
      )

  def losses(
    self, logits: Float[Array, "b y"], labels: Any, label_weights: Any = None
  ) -> Float[Array, " b"]:
    """Mean squared error of a slide's known numbers, in deviations²."""
    return self._mean_of_known(
      logits,
      labels,
      label_weights,
      lambda x, label: jnp.square(x - (label - self.mean) / self.deviation),
    )

  def predict(self, logits: Float[Array, "*b y"]) -> Float[Array, "*b y"]:
    """Values in the unit of the labels."""
    return self.mean + self.deviation * logits

  def onehot(self, labels: Any) -> Float[Array, "b y"]:
    """NaN: a number says nothing about classes."""
    return jnp.full((len(labels), self.outputs), jnp.nan)


@dataclasses.dataclass(frozen=True)
class Survival:
  r"""Cox's proportional hazards: one logit, the logarithm of the hazard ratio.

  Negative partial log-likelihood over the slides of a batch, by number of
  events. With η the logits, R(t) the slides whose time is t or later, and D(t)
  those that have an event at t, in any order k = 0 … |D| − 1,

      Σ_t Σ_k [ log( Σ_{R(t)} exp η − (k / |D|) Σ_{D(t)} exp η ) − η_k ]

  which is Efron's treatment of ties; Breslow's has no second sum. A batch of
  one slide has no loss: use batches as large as can be.

  Labels are (time, event), event 1 or 0 (censored at that time); a slide with a
  NaN, or of weight 0, is in no risk set. Weights are not graded here.

  Attributes:
    ties: 'efron' or 'breslow'.

  Raises:
    ValueError: At construction, if `ties` is unknown.

  Example:
    >>> labels = jnp.array([[1.0, 1.0], [2.0, 0.0]])
    >>> round(float(Survival().loss(jnp.zeros((2, 1)), labels)), 4)  # log 2
    0.6931

  Reference: Cox, JRSS B 1972; Efron, JASA 1977; Breslow, Biometrics 1974.
  """

  ties: str = "efron"
  outputs: int = 1

  def __post_init__(self):
    if self.ties not in TIES:
      raise ValueError(
        f"config.head.ties = {self.ties!r}: must be one of {TIES}"
      )
    if self.outputs != 1:
      raise ValueError(f"survival has one logit, not {self.outputs}")

  def loss(
    self,
    logits: Float[Array, "b 1"],
    labels: Any,
    weights: Float[Array, " b"] | None = None,
  ) -> Float[Array, ""]:
    """Mean over events; 0 if there is none."""
    labels = jnp.asarray(labels, jnp.float32)
    counts = ~jnp.any(jnp.isnan(labels), axis=1)
    if weights is not None:
      counts = counts & (weights > 0)
    time = jnp.where(counts, labels[:, 0], -jnp.inf)
    event = counts & (labels[:, 1] > 0)
    score = jnp.where(counts, logits[:, 0].astype(jnp.float32), 0.0)
    at_risk = (time[None] >= time[:, None]) & counts[None]
    share = at_risk.astype(jnp.float32)
    if self.ties == "efron":
      tied = (time[None] == time[:, None]) & event[None] & event[:, None]
      rank = jnp.sum(jnp.tril(tied, -1), axis=1)
      number = jnp.maximum(jnp.sum(tied, axis=1), 1)
      share = share - tied * (rank / number)[:, None]
    # Rows of no event may be empty, and would have no finite gradient.
    share = jnp.where(event[:, None], share, 1.0)
    risk = jax.nn.logsumexp(
      jnp.broadcast_to(score[None], share.shape), axis=1, b=share
    )
    total = jnp.sum(jnp.where(event, risk - score, 0.0))
    return total / jnp.maximum(jnp.sum(event), 1)

  def predict(self, logits: Float[Array, "*b 1"]) -> Float[Array, "*b 1"]:
    """The logarithm of the hazard ratio: the higher, the earlier."""
    return logits

  def onehot(self, labels: Any) -> Float[Array, "b 1"]:
    """NaN: a time says nothing about classes."""
    return jnp.full((len(labels), 1), jnp.nan)


HEADS: dict[str, Any] = {
  "binary": Binary,
  "multiclass": Multiclass,
  "multilabel": Multilabel,
  "regression": Regression,
  "survival": Survival,
}


def concordance(
  time: Float[np.ndarray, " n"],
  event: Any,
  risk: Float[np.ndarray, " n"],
  weights: Float[np.ndarray, "r n"] | None = None,
) -> Float[np.ndarray, " r"]:
  """Harrell's concordance index.

  The share of comparable pairs in which who has the event first has the higher
  risk; equal risks count half. Two patients can be compared if the earlier time
  is an event, or if both times are equal and one of the two is an event, which
  then counts as the earlier. Two events at one time are not compared.

  Args:
    time: Of event or censoring.
    event: 1 event, 0 censored, `[n]`.
    risk: Predicted; the higher, the earlier.
    weights: Of patients, one row a resample; all 1 by default. A pair weighs
      the product of its two.

  Returns:
    One value for each row of weights; NaN where no pair can be compared.

  Example:
    >>> time, event = np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1])
    >>> concordance(time, event, np.array([0.5, 0.9, 0.1])).tolist()
    [0.5]

  Reference: Harrell et al., Evaluating the yield of medical tests, JAMA 1982.
  """
  event = np.asarray(event).astype(bool)
  if weights is None:
    weights = np.ones((1, len(time)))
  won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
  for i in np.flatnonzero(event):
    later = (time > time[i]) | ((time == time[i]) & ~event)
    score = (risk[i] > risk) + 0.5 * (risk[i] == risk)
    won += weights[:, i] * (weights @ (later * score))
    pairs += weights[:, i] * (weights @ later.astype(np.float64))
  return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)
