r"""Losses of bag models: what logits mean, and what being wrong costs.

    target type     logits        labels          logits are
    binary          [b 1]         [b] 0, 1        log odds of 1
    multiclass      [b y]         [b] 0 … y − 1   log probabilities + constant
    multilabel      [b y]         [b y] 0, 1      log odds
    regression      [b y]         [b y]           standardised values
    survival        [b 1]         [b 2]           log hazard ratio

Labels [b] may be [b 1], and the other way round. NaN is an unknown label: it
adds nothing to the loss. Nor does a slide of weight 0, which pads a batch.
`loss` is the mean over slides with a known label, f32. `label_weights`, shape
of the labels, multiply what a label adds; the mean still divides by slides.

`onehot` is the label that `mil.auxiliary_loss` takes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from wsiseq_jax.models.mil import clam


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


class _SlideLoss:
  """Target types whose loss is a mean over single slides."""

  def loss(
    self,
    logits: Float[Array, "b y"],
    labels: Any,
    weights: Float[Array, " b"] | None = None,
    label_weights: Any = None,
  ) -> Float[Array, ""]:
    """Mean over the slides with a known label; 0 if there is none.

    Raises:
      ValueError: Labels have another shape than the target type needs.
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
class Multilabel(_SlideLoss):
  """Classes that do not exclude each other, each with a logit.

  Example:
    >>> head = Multilabel(2)
    >>> labels = jnp.array([[1.0, jnp.nan]])
    >>> round(float(head.loss(jnp.zeros((1, 2)), labels)), 4)  # log 2
    0.6931
  """

  outputs: int  # classes

  def losses(
    self, logits: Float[Array, "b y"], labels: Any, label_weights: Any = None
  ) -> Float[Array, " b"]:
    """Mean cross-entropy of a slide's known labels; 0 if none is."""
    return self._mean_of_known(
      logits, labels, label_weights, optax.sigmoid_binary_cross_entropy
    )

  def onehot(self, labels: Any) -> Float[Array, "b y"]:
    """The labels themselves."""
    return _column(labels, self.outputs)


@dataclasses.dataclass(frozen=True)
class Binary(Multilabel):
  """One class against its absence, with one logit."""

  outputs: int = 1


@dataclasses.dataclass(frozen=True)
class Multiclass(_SlideLoss):
  """Classes that exclude each other, one logit each.

  Example:
    >>> head = Multiclass(3)
    >>> round(float(head.loss(jnp.zeros((1, 3)), jnp.array([2.0]))), 4)  # log 3
    1.0986
  """

  outputs: int  # classes

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

  def onehot(self, labels: Any) -> Float[Array, "b y"]:
    """1 for the class of a slide, 0 for the others; NaN if not known."""
    labels = _column(labels, 1)
    row = (labels == jnp.arange(self.outputs)[None]).astype(jnp.float32)
    return jnp.where(jnp.isnan(labels), jnp.nan, row)


@dataclasses.dataclass(frozen=True)
class Regression(_SlideLoss):
  """Standardised numbers: mean squared error.

  Example:
    >>> float(Regression().loss(jnp.array([[1.0]]), jnp.array([3.0])))
    4.0
  """

  outputs: int = 1  # numbers

  def losses(
    self, logits: Float[Array, "b y"], labels: Any, label_weights: Any = None
  ) -> Float[Array, " b"]:
    """Mean squared error of a slide's known numbers."""
    return self._mean_of_known(
      logits, labels, label_weights, lambda x, label: jnp.square(x - label)
    )

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

  which is Efron's treatment of ties. A batch of one slide has no loss: use
  batches as large as can be.

  Labels are (time, event), event 1 or 0 (censored at that time); a slide with a
  NaN, or of weight 0, is in no risk set. Weights are not graded here.

  Raises:
    ValueError: At construction, if there is more than one logit.

  Example:
    >>> labels = jnp.array([[1.0, 1.0], [2.0, 0.0]])
    >>> round(float(Survival().loss(jnp.zeros((2, 1)), labels)), 4)  # log 2
    0.6931

  Reference: Cox, JRSS B 1972; Efron, JASA 1977.
  """

  outputs: int = 1

  def __post_init__(self):
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
    tied = (time[None] == time[:, None]) & event[None] & event[:, None]
    rank = jnp.sum(jnp.tril(tied, -1), axis=1)
    number = jnp.maximum(jnp.sum(tied, axis=1), 1)
    share = at_risk.astype(jnp.float32) - tied * (rank / number)[:, None]
    # Rows of no event may be empty, and would have no finite gradient.
    share = jnp.where(event[:, None], share, 1.0)
    risk = jax.nn.logsumexp(
      jnp.broadcast_to(score[None], share.shape), axis=1, b=share
    )
    total = jnp.sum(jnp.where(event, risk - score, 0.0))
    return total / jnp.maximum(jnp.sum(event), 1)

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
