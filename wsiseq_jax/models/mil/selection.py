r"""Instances that stand for their bag: rules by which a bag's label teaches.

    rule       bag with the class            bag certainly without it
    max_max    highest → 1                   highest → 0
    max_min    highest → 1                   lowest → 0
    quantile   highest share `top` → 1,      all → 0
               lowest share `bottom` → 0

All others teach nothing. Selection is anew at every step, by the scores that
the step itself has, and each class by itself; a label that is not known selects
none. The loss of a bag is the mean binary cross-entropy of what was selected.

`quantile` is the rule of Lerousseau et al., Weakly supervised multiple instance
learning histopathological tumor segmentation, MICCAI 2020. `max_max` and
`max_min` are in the manner of CAMEL (Xu et al., ICCV 2019): both take the
strongest instance of a positive bag. What they take of a negative one is our
reading of their names: the paper's text on it was not at hand. `max_max` then
learns from the hardest negative, `max_min` from the easiest.

As a bag model, `selection` is a classifier of tiles. The slide's logit is the
mean of the highest share `top` of the logits, or the highest one for the other
two rules.

    loss = 0.5 · bag's loss + 0.5 · loss of the selected tiles

Deviation: the papers have no loss of the bag (`auxiliary_weight=1`). Without it
a classifier that begins at random and selects by `quantile` or `max_min` may
call anything tumour: what it took for the highest tiles confirms it, and nobody
looks at the highest tiles of negative bags.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from data_prep.files.schema import Range
from wsiseq_jax.models.mil import bag as mil_bag
from wsiseq_jax.models.mil.attention import Embedding, weighted_sum
from wsiseq_jax.models.mil.bag import Bag, MilOutput
from wsiseq_jax.models.mil.pooling import PoolingConfig

RULES = ("quantile", "max_max", "max_min")


def ranks(
  scores: Float[Array, "m y"], mask: Array
) -> tuple[Int[Array, "m y"], Int[Array, "m y"]]:
  """Place of each instance from the top and from the bottom, 0 the first.

  Padded instances come after all others in both.

  Example:
    >>> scores = jnp.array([[5.0], [1.0], [3.0], [9.0]])
    >>> high, low = ranks(scores, jnp.array([True, True, True, False]))
    >>> high[:, 0].tolist(), low[:, 0].tolist()
    ([0, 2, 1, 3], [2, 0, 1, 3])
  """
  places = jnp.arange(scores.shape[0])
  values = jnp.where(mask[:, None], -scores, jnp.inf)
  order = jnp.argsort(values, axis=0).T
  high = jax.vmap(lambda o: jnp.zeros_like(places).at[o].set(places))(order).T
  # Not sorted again: of equal scores none is the first in both.
  low = jnp.where(mask[:, None], jnp.sum(mask) - 1 - high, high)
  return high, low


def count_of(share: float, instances: Int[Array, ""]) -> Int[Array, ""]:
  """How many instances a share is: rounded down, at least one.

  Example:
    >>> int(count_of(0.2, jnp.array(14))), int(count_of(0.2, jnp.array(3)))
    (2, 1)
  """
  # 0.29 of 100 is 28.999999 in floats.
  return jnp.maximum(jnp.floor(share * instances + 1e-4).astype(jnp.int32), 1)


def select(
  scores: Float[Array, "m y"],
  labels: Float[Array, " y"],
  mask: Array,
  rule: str,
  top: float = 0.2,
  bottom: float = 0.2,
) -> tuple[Float[Array, "m y"], Float[Array, "m y"]]:
  """Labels of the instances of a bag, from the bag's label and their scores.

  An instance that is among both the highest and the lowest (of a small bag)
  counts as one of the highest.

  Args:
    scores: higher is more of the class; nothing is differentiated.
    labels: of the bag: 1, 0, NaN = not known.
    mask: which instances are real, bool [m].
    rule: one of `RULES`.
    top: share of the highest, rule `quantile`.
    bottom: share of the lowest, rule `quantile`.

  Returns:
    Labels, 0 or 1, and how much each instance counts, 0 or 1.
  """
  high, low = ranks(lax.stop_gradient(scores), mask)
  tiles = jnp.sum(mask)
  real = jnp.broadcast_to(mask[:, None], scores.shape)
  is_top, is_bottom = high == 0, jnp.zeros_like(real)
  if rule == "quantile":
    is_top = high < count_of(top, tiles)
    is_bottom = low < jnp.where(bottom > 0, count_of(bottom, tiles), 0)
    of_negative = real
  else:
    of_negative = high == 0 if rule == "max_max" else low == 0
  has, lacks = ((labels == value)[None, :] for value in (1, 0))
  label = (has & is_top).astype(jnp.float32)
  chosen = (has & (is_top | is_bottom)) | (lacks & of_negative)
  return label, (chosen & real).astype(jnp.float32)


def selected_loss(
  logits: Float[Array, "m y"],
  labels: Float[Array, "m y"],
  weights: Float[Array, "m y"],
) -> Float[Array, ""]:
  """Mean cross-entropy of the selected instances of a bag.

  Every class of which any is selected weighs alike, whatever their number.

  Example:
    >>> zeros = jnp.zeros((2, 2))
    >>> chosen = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> round(float(selected_loss(zeros, zeros, chosen)), 4)  # log 2
    0.6931
  """
  each = (jax.nn.softplus(logits) - labels * logits) * weights
  count = jnp.sum(weights, axis=0)
  of_class = jnp.sum(each, axis=0) / jnp.maximum(count, 1)
  return jnp.sum(of_class) / jnp.maximum(jnp.sum(count > 0), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig(PoolingConfig):
  """`selection`."""

  rule: Literal[RULES] = "quantile"
  top: Annotated[float, Range(0, 1, above=0)] = 0.2
  bottom: Annotated[float, Range(0, 1)] = 0.2
  # Of the selected tiles; the slide's own loss has the rest of 1.
  auxiliary_weight: Annotated[float, Range(0, 1)] = 0.5

  def __post_init__(self):
    if self.top + self.bottom > 1:
      raise ValueError(
        f"config.model.top = {self.top}, config.model.bottom = {self.bottom}: "
        "their sum must not exceed 1"
      )


class Selection(mil_bag.MilModel):
  """`selection`."""

  def __init__(self, config: SelectionConfig, rngs: nnx.Rngs):
    self.tile = Embedding(config, config.outputs, rngs)
    self.config = config

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag; `aux` holds which tiles are real."""
    config = self.config
    logits = self.tile.logits_of(bag, key, config)
    high, _ = ranks(lax.stop_gradient(logits), bag.mask)
    share = config.top if config.rule == "quantile" else 0.0
    is_top = high < count_of(share, jnp.sum(bag.mask))
    is_top = (is_top & bag.mask[:, None]).astype(jnp.float32)
    weights = is_top / jnp.maximum(jnp.sum(is_top, axis=0, keepdims=True), 1)
    return weighted_sum(weights, logits).replace(aux={"real": bag.mask})

  def auxiliary(
    self, output: MilOutput, onehot: Float[Array, " y"]
  ) -> Float[Array, ""]:
    """The loss of the selected tiles of a bag."""
    config, logits = self.config, output.instance_logits
    real = output.aux["real"]
    labels, weights = select(
      logits, onehot, real, config.rule, config.top, config.bottom
    )
    return selected_loss(logits, labels, weights)
