"""A segmentation network taught by the labels of the stage before it.

    backbone   x1 .. x5 --1x1 each--> from the coarsest on: enlarge, add the
    next finer one, 3x3 convolution --> logits [b, h/4, w/4, 1 + y] --> enlarged

A U-Net on the backbone's five maps. The loss is the cross-entropy of labelled
pixels (255 is left out), the mean over the classes of a batch of the mean over
their pixels: which share of a class was labelled says nothing of how much of it
there is. With `confidence` a pixel's loss is multiplied by how sure the network
is of its label, relative to the other pixels of the batch with that label:

    w_p = p_p(label) / mean of p(label) over pixels of that label,   no gradient

so that labels which contradict what the network learned from all others, most
of them wrong, count little. That is the idea of OEEM (Li et al., Online easy
example mining, MICCAI 2022); relative to all pixels, of any label, a class of
few would be given up.

Trained on labels that are guesses, the last epoch is kept: no mask decides
anything. With `targets='truth'`, the upper bound, it is trained on the masks
and the epoch of the highest validation mIoU is kept.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_prep.files.schema import Range
from wsiseq_jax import fit, parallel
from wsiseq_jax.metrics import segmentation
from wsiseq_jax.models import conv
from wsiseq_jax.segment import decide, training
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.stage import Reading, StageContext
from wsiseq_jax.segment.training import StageFit

STRIDE = 4  # of maps
_GROUPS = 8  # of group-norm in the decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
  """The stage `student`."""

  name: ClassVar[str] = "student"
  readings: ClassVar[tuple[Reading, ...]] = (
    Reading("0.5", "scores", 0.5),
    Reading("chosen", "scores"),
  )

  # Labels of the stage before, or masks: full supervision.
  targets: Literal["before", "truth"] = "before"
  width: Annotated[int, Range(1)] = 64  # channels of the decoder
  confidence: bool = True  # sure pixels weigh more
  optim: StageFit = StageFit()

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Trains, writes maps of all splits."""
    backbone, mesh = context.backbone, context.mesh
    frozen = backbone.start(context.seed)
    frozen = jax.device_put(frozen, parallel.replicated(mesh))
    before, is_true = context.before(self.name), self.targets == "truth"
    if not is_true and not before:
      raise ValueError(
        f"config.stages.student.targets = {self.targets!r}: there is no stage "
        "before it to learn from; take 'truth', or another config.method"
      )
    model = network(
      backbone, len(context.classes), self.width, self.confidence, is_true
    )
    targets = None if is_true else context.maps(before, "train").folder
    params = training.learned(
      context,
      self.name,
      model,
      self.optim.settings(keep="best" if is_true else "last"),
      self.optim.data(context, targets),
      validate,
      frozen,
    )
    write_scores(context, self.name, params, frozen)
    return about(context)


def about(context: StageContext) -> dict[str, Any]:
  """What has to be known of a network to use it elsewhere."""
  mpp = context.pictures("train").picture(0).mpp
  return {
    "classes": list(context.classes),
    "mpp": mpp if math.isfinite(mpp) else None,
  }


def write_scores(
  context: StageContext,
  stage: str,
  params: Any,
  frozen: Any,
  more: Callable[[str, int, np.ndarray], dict[str, np.ndarray]] | None = None,
) -> None:
  """Writes the probabilities that a network gives, of all splits.

  Those of training pictures come with classes at 0.5, to learn from. `more` is
  (split, number, scores) → further maps of a picture.
  """
  program = training.compiled(
    functools.partial(slide_scores, context.backbone), context.mesh
  )
  for split, pictures in context.splits.items():

    def finish(number, found, pictures=pictures, split=split):
      size = tuple(pictures.sizes[number].tolist())
      scores = decide.cut(found["scores"], size, STRIDE)
      scores = scores.transpose(2, 0, 1).astype(np.float16)
      maps = {"scores": scores}
      if split == "train":
        tissue = pictures.picture(number).tissue
        enlarged = decide.enlarge(scores, size)
        maps["classes"] = decide.classes_of(enlarged, tissue, 0.5)
      return maps | (more(split, number, scores) if more else {})

    context.write_maps(
      stage,
      split,
      lambda batch: program(params, frozen, batch["pixels"]),
      finish,
    )


def slide_scores(
  backbone: Backbone, params: Any, frozen: Any, pixels: Array
) -> dict[str, Float[Array, "b h w y"]]:
  """Probabilities of the foreground classes, of a stride of 4."""
  logits = grid_logits(backbone, params, frozen, pixels)
  return {"scores": jax.nn.softmax(logits)[..., 1:]}


@functools.lru_cache(maxsize=8)
def network(
  backbone: Backbone, classes: int, width: int, confidence: bool, is_true: bool
) -> fit.Model:
  """The network as the trainer wants it, the same one whenever asked for.

  Its outputs are counts of true and found classes, [b, (1 + y)²].
  """

  def init(key, frozen, example):
    del example
    return {
      "backbone": backbone.learned(frozen),
      "head": init_decoder(key, backbone.widths, classes, width),
    }

  def loss(params, frozen, batch, key):
    del key
    logits = pixel_logits(backbone, params, frozen, batch["pixels"])
    target = batch["truth"] if is_true else batch["target"]
    weight = jnp.ones(target.shape) if is_true else batch["weight"]
    weight = weight * batch["mask"][:, None, None]
    return pixel_loss(logits, target, weight, confidence, not is_true)

  def apply(params, frozen, batch):
    logits = pixel_logits(backbone, params, frozen, batch["pixels"])
    found = jnp.where(batch["tissue"] > 0, logits.argmax(axis=-1), 0)
    k = classes + 1
    # Of unknown pixels the row is 255, which is none.
    rows = jax.nn.one_hot(batch["truth"], k)
    counts = jnp.einsum("bhwi,bhwj->bij", rows, jax.nn.one_hot(found, k))
    return counts.reshape(-1, k * k)

  return fit.Model(init, loss, apply)


def init_decoder(
  key: Array, widths: tuple[int, ...], classes: int, width: int
) -> dict[str, Any]:
  """Random parameters of the decoder; the last layer starts at zero."""
  keys = iter(jax.random.split(key, 2 * len(widths)))
  params = {}
  for number, inner in enumerate(widths, start=1):
    params[f"lateral{number}"] = conv.init(
      next(keys), (1, 1, inner, width), norm=True
    )
    params[f"merge{number}"] = conv.init(
      next(keys), (3, 3, width, width), norm=True
    )
  params["out"] = {
    "kernel": jnp.zeros((1, 1, width, classes + 1)),
    "bias": jnp.zeros(classes + 1),
  }
  return params


def grid_logits(
  backbone: Backbone, params: Any, frozen: Any, pixels: Array
) -> Float[Array, "b h w k"]:
  """Logits of background and classes, of a stride of 4."""
  features = backbone.features({**frozen, **params["backbone"]}, pixels)
  head, x = params["head"], None
  for number in range(len(features), 0, -1):
    y = conv.apply(
      head[f"lateral{number}"], features[number - 1], groups=_GROUPS
    )
    if x is not None:
      y = y + conv.resize(x, y.shape[1:3])
    y = jax.nn.relu(y)
    x = conv.apply(head[f"merge{number}"], y, groups=_GROUPS)
    x = jax.nn.relu(x)
  return conv.apply(head["out"], x)


def pixel_logits(
  backbone: Backbone, params: Any, frozen: Any, pixels: Array
) -> Float[Array, "b h w k"]:
  """Logits of every pixel."""
  x = grid_logits(backbone, params, frozen, pixels)
  return conv.resize(x, pixels.shape[1:3])


def pixel_loss(
  logits: Float[Array, "b h w k"],
  target: Array,
  weight: Float[Array, "b h w"],
  confidence: bool,
  balanced: bool,
) -> Float[Array, ""]:
  """Weighted cross-entropy of labelled pixels, 0 where there is none.

  Args:
    logits: of background and classes.
    target: uint8 [b, h, w], 255 not labelled.
    weight: of each pixel.
    confidence: whether sure pixels weigh more; see the module.
    balanced: whether classes that are there count alike, or by their pixels.
  """
  logp = jax.nn.log_softmax(logits)
  of_class = jax.nn.one_hot(target, logits.shape[-1])  # none of 255
  each = -(logp * of_class).sum(axis=-1)

  def per_class(values):
    return jnp.einsum("bhw,bhwk->k", values * weight, of_class)

  amount = per_class(jnp.ones_like(each))
  loss = per_class(each)
  if confidence:
    sure = jax.lax.stop_gradient(jnp.exp(-each))
    loss = per_class(each * sure) * amount / _above0(per_class(sure))
  if balanced:
    is_there = amount > 0
    return (loss / _above0(amount)).sum() / jnp.maximum(is_there.sum(), 1)
  return loss.sum() / _above0(amount.sum())


def _above0(x: Array) -> Array:
  """A divisor."""
  return jnp.maximum(x, 1e-6)


def validate(
  counts: Float[np.ndarray, "n kk"],
) -> tuple[tuple[float, ...], dict[str, float]]:
  """MIoU and Dice of all validation pictures; NaN where none has a mask."""
  k = round(counts.shape[1] ** 0.5)
  found = segmentation.overlap(counts.sum(axis=0).reshape(1, k, k))
  miou, dice = (float(found[name][0]) for name in ("miou", "dice"))
  return (miou,), {"val/miou": miou, "val/dice": dice}
