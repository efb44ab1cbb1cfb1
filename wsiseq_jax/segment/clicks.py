"""Regions from sparse clicks: what a network that saw a few discs is told.

Four things are known of a picture: the class of pixels round each click; that
glass, and all of a certain negative, is background; which classes are somewhere
in it; and that pixels which look alike and lie near each other are mostly of
one class. The last is a loss on all pairs of pixels of a window, on a grid a
few pixels wide, where it is a sum of shifted slices. The original filters all
pairs of a picture by a permutohedral lattice; pairs beyond the window, which a
Gaussian in space hardly weighs, are left out here.

References:
  Tang et al. 2018, "Normalized Cut Loss for Weakly-supervised CNN Segmentation"
  and "On Regularized Losses for Weakly-supervised CNN Segmentation".
  Bearman et al. 2016, "What's the Point: Semantic Segmentation with Point
  Supervision": the most probable pixel of a class speaks for the picture.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from data_prep.files.schema import AtLeast1, NotNegative, Range

# A pixel of which nobody knows the class; in `truth` and `target` too.
IGNORE = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourWindow:
  """Which pixels of a grid should be of one class, and how much."""

  stride: AtLeast1 = 4  # pixels of a picture per pixel of the grid
  reach: AtLeast1 = 5  # grid pixels to each side of the window
  # Deviations of the Gaussian: grid pixels; colour from 0 to 1.
  sigma_xy: Annotated[float, Range(above=0)] = 3.0
  sigma_rgb: Annotated[float, Range(above=0)] = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickLoss:
  """The loss of a network on clicks: its parts and their weights."""

  radius_px: Annotated[float, Range(1)] = 4.0  # of the disc round a click
  background: NotNegative = 1.0  # certain background: glass, negatives
  image: NotNegative = 0.1  # classes of the whole picture
  ncut: NotNegative = 0.1  # normalised cut
  crf: NotNegative = 0.0  # dense CRF
  window: ColourWindow = ColourWindow()


def disc_labels(
  points: Float[Array, "b p 3"], height: int, width: int, radius_px: float
) -> Int[Array, "b h w"]:
  """Classes of the pixels round clicks.

  A pixel whose middle lies within `radius_px` of a click has the class of the
  nearest one; of two classes equally near, none.

  Args:
    points: x, y and class. Whole numbers are middles of pixels. What has a
      negative class or no finite place is no click. Clicks outside count as far
      as their disc reaches in.
    height: rows of the picture.
    width: its columns.
    radius_px: of the discs.

  Returns:
    A class, or `IGNORE`.
  """
  y = jnp.arange(height)[None, :, None]
  x = jnp.arange(width)[None, None, :]

  def nearer(best, point):
    apart, chosen = best
    px, py, kind = (v[:, None, None] for v in point.T)
    is_click = jnp.isfinite(px + py) & (kind >= 0)
    there = jnp.where(is_click, (x - px) ** 2 + (y - py) ** 2, jnp.inf)
    kind = jnp.where(is_click, kind, IGNORE).astype(jnp.int32)
    is_tie = (there == apart) & (kind != chosen)
    chosen = jnp.where(there < apart, kind, jnp.where(is_tie, IGNORE, chosen))
    return (jnp.minimum(apart, there), chosen), None

  shape = (len(points), height, width)
  start = jnp.full(shape, jnp.inf), jnp.full(shape, IGNORE, jnp.int32)
  (apart, chosen), _ = jax.lax.scan(nearer, start, points.swapaxes(0, 1))
  return jnp.where(apart <= radius_px**2, chosen, IGNORE)


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


def to_grid(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b g v c"]:
  """Means of squares of `stride` pixels; both sides must be multiples of it."""
  b, h, w, c = x.shape
  squares = x.reshape(b, h // stride, stride, w // stride, stride, c)
  return squares.mean(axis=(2, 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def window_sums(
  colour: Float[Array, "b h w 3"],
  real: Float[Array, "b h w 1"],
  values: Float[Array, "b h w c"],
  window: ColourWindow,
) -> Float[Array, "b h w c"]:
  """W · values: sums over a window, weighted by likeness.

      W_pq = exp(−|rgb_p − rgb_q|² / 2 σ_rgb² − |p − q|² / 2 σ_xy²)

  for p ≠ q, both real, not further than `window.reach` in x and in y; else 0.
  W is symmetric, so its gradient is itself and needs no memory of the window.

  Args:
    colour: from 0 to 1; has no gradient.
    real: 1, or 0 for what is no pixel.
    values: what is summed.
    window: the window; its `stride` is not used.
  """
  reach = window.reach
  side = np.arange(-reach, reach + 1)
  offsets = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
  offsets = offsets.reshape(-1, 2)
  offsets = offsets[(offsets != 0).any(axis=1)]
  space = np.exp(-(offsets**2).sum(axis=1) / (2 * window.sigma_xy**2))

  def widened(x):
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

  wide = [widened(x) for x in (colour, real, values)]

  def add(total, step):
    offset, weight = step

    def shifted(x):
      start = (0, reach + offset[0], reach + offset[1], 0)
      return jax.lax.dynamic_slice(x, start, (*total.shape[:3], x.shape[3]))

    other, is_real, theirs = map(shifted, wide)
    apart = jnp.square(colour - other).sum(axis=-1, keepdims=True)
    like = jnp.exp(-apart / (2 * window.sigma_rgb**2)) * weight * is_real
    return total + like * theirs, None

  total = jnp.zeros(values.shape, jnp.float32)
  steps = jnp.asarray(offsets), jnp.asarray(space, jnp.float32)
  total, _ = jax.lax.scan(add, total, steps)
  return total * real


def _sums_forward(colour, real, values, window):
  return window_sums(colour, real, values, window), (colour, real)


def _sums_backward(window, kept, gradient):
  colour, real = kept
  return None, None, window_sums(colour, real, gradient, window)


window_sums.defvjp(_sums_forward, _sums_backward)


def cut_losses(
  share: Float[Array, "b h w k"],
  colour: Float[Array, "b h w 3"],
  real: Float[Array, "b h w 1"],
  window: ColourWindow,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Normalised cut and dense CRF of soft classes, by the same weights W.

      cut_k = y_kᵀ W (1 − y_k),   ncut = Σ_k cut_k / (1ᵀ W y_k),
      crf = Σ_k cut_k / number of pixels

  Args:
    share: probabilities y of the classes of each grid pixel.
    colour: from 0 to 1.
    real: 1, or 0 for what is no pixel.
    window: the window.

  Returns:
    Both, means over the pictures that have a pixel. The normalised cut of a
    class is from 0 to 1. A class that is nowhere costs nothing.
  """
  share = share.astype(jnp.float32) * real
  sums = window_sums(
    colour, real, jnp.concatenate([share, real], axis=-1), window
  )
  degree = sums[..., -1:]
  # The cut is over real pixels: (1 − y) of one that is not is no 1.
  cut = (share * (degree - sums[..., :-1])).sum(axis=(1, 2))
  whole = (share * degree).sum(axis=(1, 2))
  count = real.sum(axis=(1, 2, 3))
  pictures = jnp.maximum((count > 0).sum(), 1)
  ncut = (cut / (whole + 1e-5)).sum() / pictures
  crf = (cut.sum(axis=1) / jnp.maximum(count, 1)).sum() / pictures
  return ncut, crf


def loss(
  logits: Float[Array, "b h w k"],
  batch: Mapping[str, Array],
  settings: ClickLoss,
) -> Float[Array, ""]:
  """The loss of a batch of `wsiseq_jax/segment/pictures.py`.

  Args:
    logits: of background and the foreground classes, for every pixel.
    batch: `pixels`, `labels`, `tissue`, `size`, `points`, `mask`.
    settings: radius and weights.
  """
  height, width = logits.shape[1:3]
  real = real_pixels(batch)
  clicked = disc_labels(batch["points"], height, width, settings.radius_px)
  clicked = jnp.where(real, clicked, IGNORE)
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
