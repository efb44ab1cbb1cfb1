r"""CLAM: attention pooling that tells tiles of high and low attention apart.

`clam_sb` has one attention map, `clam_mb` one for each class, whose logit is
that class' own classifier on its own pooled feature: gated attention as in
`attention.py`, in which the classifiers commute with the sum.

For each class c there is a linear layer from a tile's embedding to two logits.
On a slide of class c the B tiles of highest attention (in map c) are labelled
1, the B of lowest attention 0; the loss is their mean. On a slide of another
class no tile is labelled, unless `subtyping`: there the B of highest attention
are labelled 0, and the sum over classes is divided by their number.

    loss = 0.7 · bag's loss + 0.3 · instance loss

Which tiles are chosen is constant; gradients reach the embedding and the layers
of two, not the attention.

Deviations: B = min(8, tiles // 2), so that no tile is labelled twice; a single
tile is not labelled. The chosen tiles are embedded a second time, with dropout
of its own, so that embeddings of all tiles need not be kept.
One logit stands for two classes: `clam_mb` has two maps then, its logit is that
of class 1 minus that of class 0 (the softmax over two is the sigmoid of that),
its attention that of class 1. Labels that do not exclude each other are summed
over. Dropout in the classifier: none, as in the original.

Reference: Lu et al., Data-efficient and weakly supervised computational
pathology on whole-slide images, Nature Biomedical Engineering 2021.
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
from wsiseq_jax.models.mil.attention import (
  AttentionConfig,
  AttentionMil,
  weighted_sum,
)
from wsiseq_jax.models.mil.bag import Bag, MilOutput
from wsiseq_jax.models.mil.config import Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClamConfig(AttentionConfig):
  """`clam_sb` and `clam_mb`."""

  # B: that many tiles of highest and of lowest attention, at most half of the
  # bag.
  instance_tiles: Count = 8
  # Of these tiles, 'svm' (smooth top-1) or 'cross_entropy'.
  instance_loss: Literal["svm", "cross_entropy"] = "svm"
  subtyping: bool = False  # whether classes exclude each other in every tile
  # Of the instance loss; the bag's loss has the rest of 1.
  auxiliary_weight: Annotated[float, Range(0, 1)] = 0.3

  @property
  def classes(self) -> int:
    """Classes that are told apart: one logit stands for two."""
    return max(2, self.outputs)


class Clam(AttentionMil):
  """`clam_sb`, and `clam_mb` if `is_multi`."""

  def __init__(
    self, config: ClamConfig, rngs: nnx.Rngs, *, is_multi: bool = False
  ):
    branches = {"maps": config.classes, "outputs": config.classes}
    super().__init__(config, rngs, **(branches if is_multi else {}))
    self.is_difference = is_multi and config.outputs == 1
    shape = (config.classes, config.hidden, 2)
    init = nnx.initializers.xavier_uniform(batch_axis=0)
    self.instance_kernel = nnx.Param(init(rngs.params(), shape))
    self.instance_bias = nnx.Param(jnp.zeros((config.classes, 2)))

  def __call__(self, bag: Bag, key: Key[Array, ""] | None) -> MilOutput:
    """Reads a bag; `aux` holds the tiles of the instance loss."""
    keys = mil_bag.split_key(key, 3)
    attention, logits = self.read(bag, keys[0])
    aux = self._extreme_tiles(bag, attention, keys[1:])
    output = weighted_sum(attention, logits)
    if self.is_difference:
      output = jax.tree.map(lambda x: x[..., 1:] - x[..., :1], output)
      output = output.replace(attention=attention[:, 1:])
    return output.replace(aux=aux)

  def _extreme_tiles(self, bag, attention, keys):
    """Embeddings of the chosen tiles, and which of them count."""
    count = self.config.instance_tiles
    attention = lax.stop_gradient(attention)
    found = {}
    kinds = (("high", attention), ("low", -attention))
    for (name, values), key in zip(kinds, keys, strict=True):
      chosen = mil_bag.top_k_indices(values, bag.mask, count)
      rows = jnp.take(bag.features, chosen, axis=0)
      found[name] = self.tile(rows, key).astype(jnp.float32)
    tiles = jnp.minimum(count, jnp.sum(bag.mask) // 2)
    found["counts"] = jnp.arange(found["high"].shape[1]) < tiles
    return found

  def auxiliary(
    self, output: MilOutput, onehot: Float[Array, " y"]
  ) -> Float[Array, ""]:
    """The instance loss of a bag."""
    config, aux = self.config, output.aux
    if config.outputs == 1:
      onehot = jnp.concatenate([1 - onehot, onehot])
    loss = smooth_svm if config.instance_loss == "svm" else cross_entropy

    def labelled(tiles, target):
      """Summed loss of each class' tiles [c k e], all labelled `target`."""
      tiles = jnp.broadcast_to(tiles, (config.classes, *tiles.shape[1:]))
      logits = jnp.einsum("cke,cez->ckz", tiles, self.instance_kernel[...])
      logits = logits + self.instance_bias[...][:, None]
      each = loss(logits, jnp.full(logits.shape[:2], target))
      return jnp.where(aux["counts"][None], each, 0.0).sum(axis=1)

    tiles = jnp.maximum(jnp.sum(aux["counts"]), 1)
    inside = labelled(aux["high"], 1) + labelled(aux["low"], 0)
    total = jnp.sum(jnp.where(onehot == 1, inside / (2 * tiles), 0.0))
    if not config.subtyping:
      return total
    outside = labelled(aux["high"], 0) / tiles
    total = total + jnp.sum(jnp.where(onehot == 0, outside, 0.0))
    return total / config.classes


def cross_entropy(
  logits: Float[Array, "*b y"], labels: Int[Array, "*b"]
) -> Float[Array, "*b"]:
  """−log softmax of the right class.

  Example:
    >>> loss = cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))
    >>> round(float(loss[0]), 4)  # log 4
    1.3863
  """
  chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def smooth_svm(
  logits: Float[Array, "*b y"],
  labels: Int[Array, "*b"],
) -> Float[Array, "*b"]:
  r"""The smooth top-1 SVM loss.

      log Σ_j exp(s_j + 1{j≠y} − s_y)

  Deviation: CLAM takes the maximum instead where scores are far apart; a
  logarithm of a sum that subtracts its maximum needs no such case.

  Example:
    >>> loss = smooth_svm(jnp.array([[2.0, 1.0]]), jnp.array([0]))
    >>> round(float(loss[0]), 4)  # log 2: the margin is just kept
    0.6931

  Reference: Berrada, Zisserman, Kumar, Smooth loss functions for deep top-k
  classification, ICLR 2018.
  """
  right = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)
  raised = logits + (1 - right) - chosen
  return jax.nn.logsumexp(raised, axis=-1)
