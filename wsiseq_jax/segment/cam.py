"""Class activation maps: a classifier of pictures says where it looked.

    pixels --backbone--> x [b,h,w,d] --1x1, no bias--> map [b,h,w,y]
    logit of a picture = mean of the map over tissue

The loss is the binary cross-entropy of each known label, so that a picture
without any class is what it is: a certain negative. Glass takes no part in the
logit, and never is foreground.

Maps of a picture are the mean over several scales and their mirror images. They
become scores from 0 to 1 in two ways:

    per image   ReLU, each class divided by its maximum in the picture: a score
                says nothing in a picture that is all tumour, or that has none
    absolute    d = (map - q99) / (q99 - q50),  score = (1 + d / (1 + |d|)) / 2
                with the quantiles of tissue in pictures that certainly lack the
                class. 0.5 is what 1 % of certain background exceeds, 0.25 its
                median; nothing is known of masks

The certain negatives are those of validation: the classifier has seen those of
training, where its maps are lower than they are elsewhere.

A class is dropped from a picture's map where its label says so (training
pictures), or where the classifier says so (all others, whose labels are not
looked at).

Reference: Zhou et al., Learning deep features for discriminative localization,
CVPR 2016; scales and mirror as in Ahn et al., IRN, CVPR 2019.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float

from data_prep.files import atomic
from data_prep.files.schema import FILLED, Range, Share
from wsiseq_jax import fit, launch, parallel
from wsiseq_jax.metrics import classification
from wsiseq_jax.models import conv
from wsiseq_jax.segment import decide, training
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.stage import Reading, StageContext
from wsiseq_jax.segment.training import StageFit

STRIDE = 4  # of maps
# (parameters, frozen ones, pixels, tissue) → class map of any stride [b,h,w,y],
# logits of pictures [b,y].
Classify = Callable[[Any, Any, Array, Array], tuple[Array, Array]]
_LEAST_SPREAD = 1e-3
# What the classifier should reach before its maps are worth a look.
_GOOD_AUROC = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cam:
  """The stage `cam`."""

  name: ClassVar[str] = "cam"
  readings: ClassVar[tuple[Reading, ...]] = (
    Reading("per image", "image_scores"),
    Reading("absolute", "scores", 0.5),
    Reading("absolute, chosen", "scores"),
  )

  # Which features are read: x1 .. x5, of strides 4, 4, 8, 16, 16.
  level: Literal[1, 2, 3, 4, 5] = 5
  optim: StageFit = StageFit()
  scales: Annotated[tuple[float, ...], Range(0.1, 4), FILLED] = (
    *(1.0, 0.5, 1.5, 2.0),
  )
  # Least probability of a class in a picture whose label is not known.
  gate: Share = 0.25
  quantile: Annotated[float, Range(0.51, 1)] = 0.99  # of certain negatives
  # Labels to train on: scores from here on are foreground, ...
  foreground: Share = 0.3
  background: Share = 0.2  # ... below this, background

  def __post_init__(self):
    if self.background > self.foreground:
      raise ValueError(
        f"config.stages.{self.name}.background = {self.background}: must not "
        f"exceed config.stages.{self.name}.foreground = {self.foreground}"
      )

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Trains the classifier, writes maps of all splits."""
    backbone, mesh = context.backbone, context.mesh
    frozen = backbone.start(context.seed)
    frozen = jax.device_put(frozen, parallel.replicated(mesh))
    if not context.has_params(self.name):
      self.train(context, frozen)
    params = context.params(self.name)
    params = jax.device_put(params, parallel.replicated(mesh))
    program = training.compiled(
      functools.partial(multi_scale, self.classify(backbone), self.scales), mesh
    )

    def maps_of(batch):
      return program(params, frozen, batch)

    known = self._certain_negatives(context, maps_of)
    for split in context.splits:
      context.write_maps(
        self.name, split, maps_of, self._finisher(context, split, known)
      )
    return known

  def train(self, context: StageContext, frozen: Any) -> None:
    """Fits the classifier and saves it."""
    model = self.model(context.backbone, len(context.classes))
    data = self.optim.data(context)
    labels = context.pictures("val").labels
    fit_one(
      self.name,
      context,
      fit.Trainer(model, self.optim.settings(), context.mesh, frozen),
      data,
      functools.partial(validate, labels),
      context.seed,
    )

  def model(self, backbone: Backbone, classes: int) -> fit.Model:
    """What is trained; its outputs are logits of pictures."""
    return classifier(backbone, self.level, classes)

  def classify(self, backbone: Backbone) -> Classify:
    """What says where each class is, and whether."""
    return functools.partial(classify, backbone, self.level)

  def own_scores(
    self,
    cam: Float[np.ndarray, "h w y"],
    relu: Float[np.ndarray, "h w y"],
  ) -> Float[np.ndarray, "h w y"]:
    """Scores that need no certain negatives, in `image_scores`."""
    del cam
    return per_image_scores(relu)

  def _certain_negatives(
    self, context: StageContext, maps_of
  ) -> dict[str, Any]:
    """Quantiles of the maps of each class where it certainly is not."""
    path = context.folder(self.name) / "negatives.json"
    if path.is_file():
      return json.loads(path.read_text())
    labels, values = context.pictures("val").labels, []
    for name, column in zip(context.classes, labels.T, strict=True):
      values.append([])
      if not (column == 0).any():
        raise ValueError(
          f"config.data.val_split: no picture that certainly lacks {name!r}, "
          "from which the absolute threshold could be taken"
        )
    for batch in context.whole("val"):
      found = parallel.fetch(dict(maps_of(batch)))
      index, mask = parallel.fetch((batch["index"], batch["mask"]))
      for row in np.flatnonzero(mask > 0):
        is_tissue = found["tissue"][row] >= 0.5
        for number, label in enumerate(labels[index[row]]):
          if label == 0:
            values[number].append(found["cam"][row][is_tissue][:, number])
    levels = [
      np.quantile(np.concatenate(one), (0.5, self.quantile)).tolist()
      for one in values
    ]
    known = {"median": [m for m, _ in levels], "high": [q for _, q in levels]}
    atomic.write_atomic(path, json.dumps(known))
    return known

  def _finisher(
    self, context: StageContext, split: str, known: Mapping[str, Any]
  ):
    pictures, is_train = context.pictures(split), split == "train"

    def finish(number: int, found: dict[str, np.ndarray]):
      size = tuple(pictures.sizes[number].tolist())
      label = pictures.labels[number] if is_train else None
      there = present(label, found["logits"], self.gate)
      cam, relu, tissue = (
        decide.cut(found[name], size, STRIDE)
        for name in ("cam", "relu", "tissue")
      )
      shown = there * (tissue >= 0.5)[..., None]
      scores = absolute(cam, known["median"], known["high"]) * shown
      per_image = self.own_scores(cam, relu) * shown
      maps = {
        "scores": scores.transpose(2, 0, 1).astype(np.float16),
        "image_scores": per_image.transpose(2, 0, 1).astype(np.float16),
      }
      if is_train:
        maps["classes"] = decide.classes_of(
          decide.enlarge(maps["scores"], size),
          pictures.picture(number).tissue,
          self.foreground,
          self.background,
        )
      return maps

    return finish


def fit_one(
  name: str,
  context: StageContext,
  trainer: fit.Trainer,
  data: fit.Data,
  scored: fit.Validate,
  seed: int,
) -> None:
  """Fits a classifier of pictures and saves it below a stage's name."""
  folder = context.fit_folder(name)
  fitted = trainer.fit(data, scored, seed, folder)
  context.save_params(name, fitted.params)
  folder.clear()
  auroc = fitted.history[fitted.epoch - 1]["val/auroc"]
  launch.log(f"{name}: best epoch {fitted.epoch}, AUROC {auroc:.3f}")
  if auroc < _GOOD_AUROC:
    launch.log(
      f"warning: {name}: maps of a classifier below {_GOOD_AUROC} are rarely "
      "worth a look"
    )


@functools.lru_cache(maxsize=8)
def classifier(backbone: Backbone, level: int, classes: int) -> fit.Model:
  """The classifier as the trainer wants it, the same one whenever asked for."""

  def init(key, frozen, example):
    del example
    width = backbone.widths[level - 1]
    kernel = jax.random.normal(key, (1, 1, width, classes)) * width**-0.5
    return {"backbone": backbone.learned(frozen), "head": {"kernel": kernel}}

  def apply(params, frozen, batch):
    seen = batch["pixels"], batch["tissue"]
    return classify(backbone, level, params, frozen, *seen)[1]

  def loss(params, frozen, batch, key):
    del key
    known = ~jnp.isnan(batch["labels"]) & (batch["mask"] > 0)[:, None]
    each = optax.sigmoid_binary_cross_entropy(
      apply(params, frozen, batch), jnp.nan_to_num(batch["labels"])
    )
    return (each * known).sum() / jnp.maximum(known.sum(), 1)

  return fit.Model(init, loss, apply)


def classify(
  backbone: Backbone,
  level: int,
  params: Any,
  frozen: Any,
  pixels: Array,
  tissue: Array,
) -> tuple[Float[Array, "b h w y"], Float[Array, "b y"]]:
  """A class map, and the logits of pictures."""
  all_params = {**frozen, **params["backbone"]}
  features = backbone.features(all_params, pixels)[level - 1]
  x = conv.apply(params["head"], features)
  return x, logits_of(x, shrink(tissue, x.shape[1:3]))


def logits_of(
  x: Float[Array, "b h w y"], tissue: Float[Array, "b h w"]
) -> Float[Array, "b y"]:
  """The mean of a map over tissue; 0 where there is none.

  Args:
    x: class maps.
    tissue: share of tissue in each place.
  """
  total = tissue.sum(axis=(1, 2), keepdims=True)
  share = tissue / jnp.maximum(total, 1e-6)
  return (x * share[..., None]).sum(axis=(1, 2))


def shrink(mask: Array, size: tuple[int, int]) -> Float[Array, "b h w"]:
  """The mean of a mask over the pixels of each place of a grid.

  Where places are no whole pixels, weighted by their distance.
  """
  (b, h, w), x = mask.shape, mask.astype(jnp.float32)
  if h % size[0] or w % size[1]:
    return jax.image.resize(x, (b, *size), "linear")
  parts = (b, size[0], h // size[0], size[1], w // size[1])
  return x.reshape(parts).mean(axis=(2, 4))


def validate(
  labels: Float[np.ndarray, "n y"], logits: Float[np.ndarray, "n y"]
) -> tuple[tuple[float, ...], dict[str, float]]:
  """Binary cross-entropy of known labels, the lowest is best; AUROC."""
  known = np.isfinite(labels)
  each = np.logaddexp(0, logits) - logits * np.nan_to_num(labels)
  loss = float(each[known].mean()) if known.any() else float("nan")
  areas = []
  for y, x, k in zip(labels.T, logits.T, known.T, strict=True):
    p = scipy.special.expit(x[k])
    two = np.stack([1 - p, p], axis=1)
    areas.append(classification.scores(y[k].astype(int), two)["auroc"])
  auroc = float(classification.mean_of_known(areas)[0])
  return (-loss,), {"val/loss": loss, "val/auroc": auroc}


def multi_scale(
  classify: Classify,
  scales: tuple[float, ...],
  params: Any,
  frozen: Any,
  batch: fit.Batch,
) -> dict[str, Array]:
  """Maps of whole pictures over scales and mirror images, at `STRIDE`.

  Returns:
    `cam` [b,h,w,y], their mean; `relu`, the sum of what is positive; `tissue`
    [b,h,w], its share; `logits` [b,y] of the picture at its own scale.
  """
  pixels = batch["pixels"].astype(jnp.float32)
  b, h, w, _ = pixels.shape
  grid = (h // STRIDE, w // STRIDE)
  total = relu = 0.0
  for scale in scales:
    # Sides are multiples of the coarsest stride.
    size = [max(round(side * scale / 16), 1) * 16 for side in (h, w)]
    x = jax.image.resize(pixels, (b, *size, 3), "cubic")
    both = jnp.concatenate([x, x[:, :, ::-1]]).clip(0, 255)
    tissue = jnp.concatenate([batch["tissue"], batch["tissue"][:, :, ::-1]])
    found, _ = classify(params, frozen, both, tissue)
    for one in (found[:b], found[b:, :, ::-1]):
      one = conv.resize(one, grid)
      total, relu = total + one, relu + jax.nn.relu(one)
  _, logits = classify(params, frozen, pixels, batch["tissue"])
  return {
    "cam": total / (2 * len(scales)),
    "relu": relu,
    "tissue": shrink(batch["tissue"], grid),
    "logits": logits,
  }


def absolute(
  cam: Float[np.ndarray, "h w y"], median: Any, high: Any
) -> Float[np.ndarray, "h w y"]:
  """Scores by the quantiles of certain negatives; see the module.

  Example:
    >>> absolute(np.array([[[1.0], [3.0], [5.0]]]), [1.0], [3.0])[0, :, 0]
    array([0.25, 0.5 , 0.75])
  """
  median, high = (np.asarray(v).reshape(1, 1, -1) for v in (median, high))
  d = (cam - high) / np.maximum(high - median, _LEAST_SPREAD)
  return 0.5 + 0.5 * d / (1 + np.abs(d))


def per_image_scores(
  relu: Float[np.ndarray, "h w y"],
) -> Float[np.ndarray, "h w y"]:
  """Each class divided by its maximum in the picture."""
  return relu / (relu.max(axis=(0, 1), keepdims=True) + 1e-5)


def present(
  label: Float[np.ndarray, " y"] | None,
  logits: Float[np.ndarray, " y"],
  gate: float,
) -> Float[np.ndarray, " y"]:
  """1 for classes that a picture has by its label, or else by its logits.

  Example:
    >>> present(np.array([0.0, 1.0, np.nan]), np.array([9.0, -9.0, 9.0]), 0.25)
    array([0., 1., 1.])
  """
  guessed = logits >= np.log(gate / (1 - gate)) if 0 < gate < 1 else gate == 0
  guessed = np.broadcast_to(guessed, logits.shape)
  if label is None:
    return guessed.astype(np.float64)
  return np.where(np.isnan(label), guessed, label > 0).astype(np.float64)
