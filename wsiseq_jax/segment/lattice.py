r"""A lattice of instances: cells of a picture, labelled from the bag's label.

    pixels --cut--> cells [b·n·m, s, s, 3] --backbone, mean, head--> [b,n,m,y]

A cell sees nothing but itself, so that its logit is its own. What teaches it is
selection (`models/mil/selection.py` has the rules):

1. for each of `rules`, a classifier of cells is trained that selects by its own
   scores, anew at every step;
2. for each of `rounds`, a fresh one is trained on what those before it select,
   and do not change any more: those of 1 in the first round, the last one after
   that. Each of them selects by each of `round_rules`, or by its own rule where
   there are none; all selections count alike.

    rules max_max, round_rules quantile    the default
    rules max_max, max_min, none           in the manner of CAMEL
    rules quantile, rounds 0               Lerousseau

A classifier that starts at random and selects by `quantile` or `max_min` is
free to call anything tumour: what it took for the highest cells confirms it.
The hardest negatives of `max_max` contradict it; so does the cross-entropy of
the bag's logit, which has `bag_weight` of the loss of classifiers that select
for themselves; 0 is as published (`benchmarks/easy_cue.py`).

A bag is a picture, with its label, or `bag='slide'` (labels of slides alone):
all cells of `bag_pictures` pictures of one slide, whose label is the highest of
theirs. Cells with less than half tissue are in no bag. The logit of a picture
is that of its strongest cell, or the mean of the share `top`.

Scores are probabilities of cells, and logits against those of certain negatives
as in `cam`; both enlarged to pixels. CAMEL trains its segmentation network on
labels of cells: that is the stage `student`.

Reference: Xu et al., CAMEL, ICCV 2019; Lerousseau et al., MICCAI 2020.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float, Int

from data_prep.files.schema import (
  DIFFERENT,
  FILLED,
  AtLeast0,
  AtLeast1,
  Range,
  Rule,
  Share,
)
from wsiseq_jax import fit, parallel
from wsiseq_jax.models import conv
from wsiseq_jax.models.mil import selection
from wsiseq_jax.segment import cam, cuts
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.pictures import Pictures
from wsiseq_jax.segment.stage import Reading, StageContext

# Share of tissue that a cell needs.
_TISSUE = 0.5
# Of what a seed of training draws, beside crops: the order of slides.
_SLIDES = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lattice(cam.Cam):
  """The stage `lattice`: thresholds and maps are those of `cam`."""

  name: ClassVar[str] = "lattice"
  readings: ClassVar[tuple[Reading, ...]] = (
    Reading("probability", "image_scores", 0.5),
    Reading("absolute", "scores", 0.5),
    Reading("absolute, chosen", "scores"),
  )

  scales: Annotated[tuple[float, ...], Range(0.1, 4), FILLED] = (1.0,)
  cell_px: Annotated[
    int, Range(16), Rule(lambda s: s % 16 == 0, "a multiple of 16")
  ] = 32
  rules: Annotated[tuple[Literal[selection.RULES], ...], FILLED, DIFFERENT] = (
    "max_max",
  )
  rounds: AtLeast0 = 1
  round_rules: Annotated[tuple[Literal[selection.RULES], ...], DIFFERENT] = (
    "quantile",
  )
  bag_weight: Share = 0.5  # of the bag's own loss
  top: Annotated[float, Range(0, 1, above=0)] = 0.2  # of rule `quantile`
  bottom: Annotated[float, Range(0, 1)] = 0.2
  bag: Literal["picture", "slide"] = "picture"
  bag_pictures: AtLeast1 = 8  # of a slide, in a bag

  def __post_init__(self):
    super().__post_init__()
    if self.top + self.bottom > 1:
      raise ValueError(
        f"config.stages.lattice.top = {self.top}, config.stages.lattice.bottom "
        f"= {self.bottom}: their sum must not exceed 1"
      )

  def train(self, context: StageContext, frozen: Any) -> None:
    """Fits all classifiers of cells and saves the last one."""
    size = context.crops.batch_size
    if self.bag == "slide" and size % self.bag_pictures:
      raise ValueError(
        f"config.stages.lattice.bag_pictures = {self.bag_pictures}: must "
        f"divide config.data.crops.batch_size = {size}"
      )
    first = [f"{self.name}/{rule}" for rule in self.rules]
    for number, name in enumerate(first):
      mine = (self.rules[number],)
      self._fit_one(context, frozen, name, number, mine, ())
    last = first
    for number in range(self.rounds):
      name = f"{self.name}/round{number + 1}"
      rules = self.round_rules or self.rules
      pairs = list(itertools.product(rules, last))
      if not self.round_rules and number == 0:
        pairs = list(zip(rules, last, strict=True))
      mine, teachers = zip(*pairs, strict=True)
      self._fit_one(context, frozen, name, len(first) + number, mine, teachers)
      last = [name]
    context.save_params(self.name, context.params(last[-1]))

  def _fit_one(self, context, frozen, name, number, rules, teachers) -> None:
    """Fits one classifier of cells, unless that is done."""
    if context.has_params(name):
      return
    known = {
      "backbone": frozen,
      "teachers": [context.params(one) for one in teachers],
    }
    known = jax.device_put(known, parallel.replicated(context.mesh))
    model = network(self, context.backbone, len(context.classes), rules)
    trainer = fit.Trainer(model, self.optim.settings(), context.mesh, known)
    # Each begins at parameters of its own.
    seed = context.seed + 1000 * number
    validate = functools.partial(self.validate, context.pictures("val"))
    data = self.data(context)
    cam.fit_one(name, context, trainer, data, validate, seed)

  def data(self, context: StageContext) -> fit.Data:
    """Batches of crops; those of a bag stand together."""
    order = None
    if self.bag == "slide":
      order = functools.partial(
        slides_of_step,
        context.pictures("train").slide_ids,
        context.crops.batch_size // self.bag_pictures,
        self.bag_pictures,
        context.seed,
      )
    return self.optim.data(context, order=order)

  def validate(
    self, val: Pictures, logits: Float[np.ndarray, "n y"]
  ) -> tuple[tuple[float, ...], dict[str, float]]:
    """Scores bags; a slide's logit and label are its pictures' highest."""
    labels = val.labels
    if self.bag == "slide":
      groups = np.unique(val.slide_ids, return_inverse=True)[1]
      labels, logits = (
        np.stack([x[groups == g].max(axis=0) for g in range(groups.max() + 1)])
        for x in (labels, logits)
      )
    return cam.validate(labels, logits)

  def classify(self, backbone: Backbone) -> cam.Classify:
    """Logits of cells, enlarged to the maps' stride, and of pictures."""

    def found(params, frozen, pixels, tissue):
      cells, real = cells_of(self, backbone, params, frozen, pixels, tissue)
      rules = self.round_rules if self.rounds else ()
      logits = strongest(cells, real, self.share_of(rules or self.rules))
      sides = pixels.shape[1:3]
      whole = [n * self.cell_px // cam.STRIDE for n in cells.shape[1:3]]
      maps = conv.resize(cells, tuple(whole))
      maps = maps[:, : sides[0] // cam.STRIDE, : sides[1] // cam.STRIDE]
      return maps, logits

    return found

  def share_of(self, rules: tuple[str, ...]) -> float:
    """The share of cells whose mean is a bag's logit; 0 is the strongest."""
    return self.top if "quantile" in rules else 0.0

  def own_scores(
    self,
    cam: Float[np.ndarray, "h w y"],
    relu: Float[np.ndarray, "h w y"],
  ) -> Float[np.ndarray, "h w y"]:
    """Probabilities of cells."""
    del relu
    return scipy.special.expit(cam)


@functools.lru_cache(maxsize=16)
def network(
  config: Lattice, backbone: Backbone, classes: int, rules: tuple[str, ...]
) -> fit.Model:
  """A classifier of cells as the trainer wants it.

  Its frozen parameters are `backbone`, where all training starts, and
  `teachers`, one for each of `rules`, or none: it then selects for itself.
  """
  classify = config.classify(backbone)

  def init(key, frozen, example):
    del example
    width = backbone.widths[config.level - 1]
    kernel = jax.random.normal(key, (width, classes)) * width**-0.5
    return {
      "backbone": backbone.learned(frozen["backbone"]),
      "head": {"kernel": kernel, "bias": jnp.zeros(classes)},
    }

  def read(params, frozen, batch):
    seen = batch["pixels"], batch["tissue"]
    cells, real = cells_of(config, backbone, params, frozen["backbone"], *seen)
    return as_bags(config, cells), as_bags(config, real[..., None])[..., 0] > 0

  def loss(params, frozen, batch, key):
    del key
    cells, real = read(params, frozen, batch)
    weight = batch["mask"][:, None]
    labels = jnp.where(weight > 0, batch["labels"], jnp.nan)
    if config.bag == "slide":
      labels = labels.reshape(-1, config.bag_pictures, labels.shape[1])
      labels = labels.max(axis=1)
    of_bag = jnp.isfinite(labels).any(axis=1)
    scores = [read(one, frozen, batch)[0] for one in frozen["teachers"]]
    scores = scores or [cells]
    total = 0.0
    for rule, score in zip(rules, scores, strict=True):
      select = functools.partial(
        selection.select, rule=rule, top=config.top, bottom=config.bottom
      )
      chosen = jax.vmap(select)(score, labels, real)
      each = jax.vmap(selection.selected_loss)(cells, *chosen)
      total += jnp.sum(each * of_bag) / jnp.maximum(jnp.sum(of_bag), 1)
    total = total / len(rules)
    if frozen["teachers"]:
      return total
    logits = strongest(cells[:, None], real[:, None], config.share_of(rules))
    known = jnp.isfinite(labels)
    each = optax.sigmoid_binary_cross_entropy(logits, jnp.nan_to_num(labels))
    whole = jnp.sum(each * known) / jnp.maximum(jnp.sum(known), 1)
    return config.bag_weight * whole + (1 - config.bag_weight) * total

  def apply(params, frozen, batch):
    seen = batch["pixels"], batch["tissue"]
    return classify(params, frozen["backbone"], *seen)[1]

  return fit.Model(init, loss, apply)


def cut_cells(x: Float[Array, "b h w c"], side: int) -> Array:
  """Cuts pictures into squares, row by row; zeros fill the last ones up.

  Returns:
    [b, n, m, side, side, c].

  Example:
    >>> cut_cells(jnp.arange(6.0).reshape(1, 2, 3, 1), 2)[0, 0, :, 0, :, 0]
    Array([[0., 1.],
           [2., 0.]], dtype=float32)
  """
  b, h, w, c = x.shape
  n, m = -(-h // side), -(-w // side)
  x = jnp.pad(x, ((0, 0), (0, n * side - h), (0, m * side - w), (0, 0)))
  return x.reshape(b, n, side, m, side, c).swapaxes(2, 3)


def cells_of(
  config: Lattice,
  backbone: Backbone,
  params: Any,
  frozen: Any,
  pixels: Array,
  tissue: Array,
) -> tuple[Float[Array, "b n m y"], Float[Array, "b n m"]]:
  """Logits of cells, and 1 for those that have enough tissue."""
  side = config.cell_px
  cells = cut_cells(pixels.astype(jnp.float32), side)
  b, n, m = cells.shape[:3]
  features = backbone.features(
    {**frozen, **params["backbone"]}, cells.reshape(-1, side, side, 3)
  )[config.level - 1]
  head = params["head"]
  logits = features.mean(axis=(1, 2)) @ head["kernel"] + head["bias"][None]
  size = pixels.shape[1:3]
  if tissue.shape[1:3] != size:  # of another scale
    tissue = cam.shrink(tissue, size)
  share = cut_cells(tissue.astype(jnp.float32)[..., None], side)
  real = (share.mean(axis=(3, 4, 5)) >= _TISSUE).astype(jnp.float32)
  return logits.reshape(b, n, m, -1), real


def as_bags(config: Lattice, cells: Float[Array, "b n m y"]) -> Array:
  """All cells of a bag in a row, [bags, cells, y]."""
  together = config.bag_pictures if config.bag == "slide" else 1
  b, n, m, y = cells.shape
  return cells.reshape(b // together, together * n * m, y)


def strongest(
  cells: Float[Array, "b n m y"], real: Array, share: float
) -> Float[Array, "b y"]:
  """Mean of the strongest cells of each class, at least one; 0 of no cell."""
  rows, classes = cells.shape[0], cells.shape[-1]
  flat = cells.reshape(rows, -1, classes)
  mask = real.reshape(rows, -1) > 0

  def of_one(scores, mask):
    high, _ = selection.ranks(scores, mask)
    top = (high < selection.count_of(share, jnp.sum(mask))) & mask[:, None]
    return jnp.sum(scores * top, axis=0) / jnp.maximum(jnp.sum(top, axis=0), 1)

  return jax.vmap(of_one)(flat, mask)


def slides_of_step(
  slide_ids: Sequence[str], slides: int, each: int, seed: int, step: int
) -> Int[np.ndarray, " b"]:
  """Which pictures a step sees: some of each of a few slides, side by side.

  A function of seed and step. Slides are drawn alike, whatever they have;
  pictures of a slide that has too few are drawn again.
  """
  of_slide: Mapping[str, list[int]] = {}
  for number, slide in enumerate(slide_ids):
    of_slide.setdefault(slide, []).append(number)
  names, found = sorted(of_slide), []
  for place in range(slides):
    u = cuts.uniform(seed + _SLIDES, step * slides + place)
    rng = np.random.Generator(np.random.PCG64(int(u[1] * 2**53)))
    members = of_slide[names[int(u[0] * len(names))]]
    found += rng.choice(members, each, replace=len(members) < each).tolist()
  return np.array(found)
