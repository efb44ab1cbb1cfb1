"""Regions from sparse clicks: what a network that saw a few discs is told.

Four things are known of a picture: the class of pixels round each click; that
glass, and all of a certain negative, is background; which classes are somewhere
in it; and that pixels which look alike and lie near each other are mostly of
one class (`colour_window.py`).

References:
  Tang et al. 2018, "Normalized Cut Loss for Weakly-supervised CNN
  Segmentation".
  Bearman et al. 2016, "What's the Point: Semantic Segmentation with Point
  Supervision": the most probable pixel of a class speaks for the picture.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from data_prep.files.schema import AtLeast0, AtLeast1, NotNegative, Range
from wsiseq_jax import fit, launch, parallel
from wsiseq_jax.segment import student, training
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.colour_window import (
  ColourWindow,
  cut_losses,
  to_grid,
)
from wsiseq_jax.segment.stage import Reading, StageContext
from wsiseq_jax.segment.training import StageFit

# A pixel of which nobody knows the class; in `truth` and `target` too.
IGNORE = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickLoss:
  """The loss of a network on clicks: its parts and their weights."""

  background: NotNegative = 1.0  # certain background: glass, negatives
  image: NotNegative = 0.1  # classes of the whole picture
  ncut: NotNegative = 0.1  # normalised cut
  crf: NotNegative = 0.0  # dense CRF
  window: ColourWindow = ColourWindow()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clicks:
  """The stage `clicks`: the network of `student.py`, taught by clicks."""

  name: ClassVar[str] = "clicks"
  readings: ClassVar[tuple[Reading, ...]] = (
    Reading("0.5", "scores", 0.5),
    Reading("chosen", "scores"),
  )

  radius_px: Annotated[float, Range(1)] = 4.0  # of the disc round a click
  # Clicks of each class of a picture that are used, drawn for good; 0 = all.
  most: AtLeast0 = 0
  loss: ClickLoss = ClickLoss()
  width: AtLeast1 = 64  # channels of the decoder
  optim: StageFit = StageFit()

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Draws discs, trains, writes maps of all splits."""
    discs = context.maps(f"{self.name}/discs", "train")
    pictures = context.pictures("train")
    clicked = 0
    for number, picture_id in enumerate(pictures.ids):
      if not discs.has(picture_id):
        one = pictures.picture(number)
        points = chosen(one.points, self.most, one.id, context.seed)
        found = disc_labels(points, one.size, self.radius_px)
        discs.write(picture_id, classes=found, points=points)
      clicked += len(discs.read(picture_id)["points"])
    if not clicked:
      raise ValueError(
        f"config.data.path: none of the {len(pictures)} training pictures has "
        "a point; the stage 'clicks' learns from points (column `points` of "
        "the table of pictures)"
      )
    launch.log(f"{self.name}: {clicked} clicks on {len(pictures)} pictures")
    frozen = context.backbone.start(context.seed)
    frozen = jax.device_put(frozen, parallel.replicated(context.mesh))
    params = training.learned(
      context,
      self.name,
      network(context.backbone, len(context.classes), self.width, self.loss),
      self.optim.settings(keep="last"),
      self.optim.data(context, discs.folder),
      student.validate,
      frozen,
    )
    student.write_scores(context, self.name, params, frozen)
    return {"clicks": clicked, **student.about(context)}


@functools.lru_cache(maxsize=8)
def network(
  backbone: Backbone, classes: int, width: int, settings: ClickLoss
) -> fit.Model:
  """The student's network with the loss of clicks."""
  model = student.network(backbone, classes, width, False, False)

  def of_clicks(params, frozen, batch, key):
    del key
    logits = student.pixel_logits(backbone, params, frozen, batch["pixels"])
    return loss(logits, batch, settings)

  return dataclasses.replace(model, loss=of_clicks)


def nearest(
  points: Float[np.ndarray, "n d"], shape: tuple[int, int], reach: float
) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
  """How far the nearest point is from each pixel, and which it is.

  Args:
    points: x, y, and whatever else. Whole numbers are middles of pixels.
    shape: height, width.
    reach: what is further away is not looked at.

  Returns:
    Distances, infinite beyond `reach`; numbers in `points`, the first of
    equally near ones, and -1 beyond.
  """
  height, width = shape
  apart = np.full(shape, np.inf)
  number = np.full(shape, -1)
  for index, (x, y) in enumerate(points[:, :2].tolist()):
    if not (math.isfinite(x) and math.isfinite(y)):
      continue
    rows = np.arange(max(0, int(y - reach)), min(height, int(y + reach) + 2))
    columns = np.arange(max(0, int(x - reach)), min(width, int(x + reach) + 2))
    if not (len(rows) and len(columns)):
      continue
    here = np.hypot(rows[:, None] - y, columns[None, :] - x)
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    is_nearer = (here < apart[box]) & (here <= reach)
    apart[box][is_nearer] = here[is_nearer]
    number[box][is_nearer] = index
  return apart, number


def disc_labels(
  points: Float[np.ndarray, "n 3"], shape: tuple[int, int], radius_px: float
) -> UInt8[np.ndarray, "h w"]:
  """Classes of the pixels round clicks.

  A pixel whose middle lies within `radius_px` of a click has the class of the
  nearest one; of two classes equally near, none.

  Args:
    points: x, y and class. A click outside counts as far as its disc reaches
      in.
    shape: height, width.
    radius_px: of the discs.

  Returns:
    A class, or `IGNORE`.
  """
  best = np.full(shape, np.inf)
  found = np.full(shape, IGNORE, np.uint8)
  for kind in np.unique(points[:, 2]).tolist():
    apart, _ = nearest(points[points[:, 2] == kind], shape, radius_px)
    found[apart < best] = int(kind)
    found[(apart == best) & np.isfinite(apart)] = IGNORE
    best = np.minimum(best, apart)
  return found


def chosen(
  points: Float[np.ndarray, "n 3"], most: int, picture_id: str, seed: int
) -> Float[np.ndarray, "m 3"]:
  """At most so many clicks of each class, the same ones for good; 0 = all."""
  if not most:
    return points
  words = hashlib.sha256(f"{seed} {picture_id}".encode()).digest()
  order = np.random.default_rng(list(words)).permutation(len(points))
  kept = [
    index[:most]
    for kind in np.unique(points[:, 2])
    for index in [order[points[order, 2] == kind]]
  ]
  return points[np.sort(np.concatenate([*kept, []]).astype(int))]


def real_pixels(batch: Mapping[str, Array]) -> Bool[Array, "b h w"]:
  """Which pixels are of a picture: not its padding, not a row that fills."""
  height, width = batch["pixels"].shape[1:3]
  size = batch["size"][:, :, None, None]
  rows = jnp.arange(height)[None, :, None]
  columns = jnp.arange(width)[None, None, :]
  inside = (rows < size[:, 0]) & (columns < size[:, 1])
  return inside & (batch["mask"] > 0)[:, None, None]


def certain_background(batch: Mapping[str, Array]) -> Bool[Array, "b h w"]:
  """Glass, and all pixels of pictures whose every label is 0."""
  is_negative = (batch["labels"] == 0).all(axis=1)  # NaN is not 0
  found = is_negative[:, None, None] | (batch["tissue"] == 0)
  return found & real_pixels(batch)


def partial_cross_entropy(
  logits: Float[Array, "b h w k"], labels: Integer[Array, "b h w"]
) -> Float[Array, ""]:
  """Mean cross-entropy of the pixels that have a class; 0 if none has.

  The mean is over all of the batch: a picture without clicks adds nothing.

  Args:
    logits: of every class.
    labels: a class, or `IGNORE`.
  """
  known = labels != IGNORE
  chosen = jnp.where(known, labels, 0)[..., None]
  log_share = jax.nn.log_softmax(logits.astype(jnp.float32))
  log_share = jnp.take_along_axis(log_share, chosen, axis=-1)[..., 0]
  return -jnp.where(known, log_share, 0).sum() / jnp.maximum(known.sum(), 1)


def image_loss(
  share: Float[Array, "b h w k"],
  labels: Float[Array, "b y"],
  real: Bool[Array, "b h w"],
) -> Float[Array, ""]:
  """Binary cross-entropy of a picture's classes, by their likeliest pixel.

  Args:
    share: probability of each class; the first is background.
    labels: 0 or 1 of the others; NaN = not known, left out.
    real: pixels that count.

  Returns:
    Mean over the known labels of pictures that have a pixel; 0 without any.
  """
  most = jnp.where(real[..., None], share[..., 1:], 0).max(axis=(1, 2))
  most = jnp.clip(most.astype(jnp.float32), 1e-6, 1 - 1e-6)
  known = ~jnp.isnan(labels) & real.any(axis=(1, 2))[:, None]
  labels = jnp.where(known, labels, 0)
  loss = -labels * jnp.log(most) - (1 - labels) * jnp.log1p(-most)
  return jnp.where(known, loss, 0).sum() / jnp.maximum(known.sum(), 1)


def loss(
  logits: Float[Array, "b h w k"],
  batch: Mapping[str, Array],
  settings: ClickLoss,
) -> Float[Array, ""]:
  """The loss of a batch of `wsiseq_jax/segment/pictures.py`.

  Args:
    logits: of background and the foreground classes, for every pixel.
    batch: `pixels`, `labels`, `tissue`, `size`, `mask`, and the discs round
      clicks as `target`.
    settings: the weights.
  """
  real = real_pixels(batch)
  clicked = jnp.where(real, batch["target"], IGNORE)
  # Whoever clicked on glass meant it.
  certain = certain_background(batch) & (clicked == IGNORE)
  total = partial_cross_entropy(logits, clicked)
  if settings.background:
    total += settings.background * partial_cross_entropy(
      logits, jnp.where(certain, 0, IGNORE)
    )
  window = settings.window
  share = to_grid(jax.nn.softmax(logits.astype(jnp.float32)), window.stride)
  # A square with a pixel of padding is none.
  whole = to_grid(real[..., None].astype(jnp.float32), window.stride) == 1
  if settings.image:
    total += settings.image * image_loss(share, batch["labels"], whole[..., 0])
  if settings.ncut or settings.crf:
    colour = to_grid(batch["pixels"].astype(jnp.float32) / 255, window.stride)
    ncut, crf = cut_losses(share, colour, whole.astype(jnp.float32), window)
    total += settings.ncut * ncut + settings.crf * crf
  return total
