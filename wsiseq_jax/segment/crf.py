"""Labels mined from scores: what is surely foreground, what surely background.

Scores of the picture (`image_scores`, see `cam.py`) become labels twice, by a
high and by a low threshold, those of the original, and a dense CRF moves the
borders of both to where the colours change. Pixels that the high one leaves in
the foreground are foreground, those that even the low one leaves in the
background are background, all others are ignored. A picture that has no class
is background all over.

The CRF is a mean field over all pairs of places of the grid of scores, where a
colour is the mean of 4x4 pixels, with the same parameters in pixels as the
original:

    Q[p] ~ exp(-unary[p] + Σ_kernels weight · Σ_q k(p, q) Q[q])
    k(p, q) = K(p, q) / sqrt(Σ_r K(p, r) · Σ_r K(q, r))

with K a Gaussian of places, and one of places and colours. What the original
filters on a permutohedral lattice, at full resolution, is exact here, but for
two things: a place stands for 4x4 pixels, and pairs further apart than `window`
standard deviations along an axis are left out of the second kernel. It is
worked out for one row of tiles after the other, so that pairs are never held
all at once. With windows of 3, one label in 2,000 differs from all pairs.

References: Krähenbühl and Koltun, Efficient inference in fully connected CRFs
with Gaussian edge potentials, NIPS 2011; Ahn, Cho and Kwak, CVPR 2019.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from data_prep.files.schema import AtLeast1, NotNegative, Range, Share
from wsiseq_jax import fit, parallel
from wsiseq_jax.segment import decide, training
from wsiseq_jax.segment.stage import Reading, StageContext

STRIDE = 4  # of the grid
_TILE = 8  # places of a tile's side
_ROUNDING = 1e-4  # of distances in standard deviations
_NEVER = 1e9  # the unary of a label that a picture does not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseCrf:
  """The block `crf` of the stage; standard deviations in px of the picture."""

  # How sure a label is that goes in.
  certainty: Annotated[float, Range(0.01, 0.99)] = 0.7
  near_px: Annotated[float, Range(0.1)] = 3.0  # of the kernel of places
  near_weight: NotNegative = 3.0
  far_px: Annotated[float, Range(0.1)] = 50.0  # of places and colours
  colour: Annotated[float, Range(0.1)] = 5.0  # of 255
  far_weight: NotNegative = 10.0
  window: Annotated[float, Range(0.5)] = 3.0  # in far_px
  iterations: AtLeast1 = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crf:
  """The stage `crf`."""

  name: ClassVar[str] = "crf"
  readings: ClassVar[tuple[Reading, ...]] = (Reading("0.5", "scores", 0.5),)

  foreground: Share = 0.3  # high threshold
  background: Share = 0.05  # low one
  crf: DenseCrf = DenseCrf()

  def __post_init__(self):
    if self.background > self.foreground:
      raise ValueError(
        f"config.stages.crf.background = {self.background}: must not exceed "
        f"config.stages.crf.foreground = {self.foreground}"
      )

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Writes `classes`, to train on, and `scores` of the high threshold."""
    before = context.before(self.name)
    limits = (self.foreground, self.background)
    program = training.compiled(
      functools.partial(mine_batch, limits, self.crf, context.mesh),
      context.mesh,
    )
    for split, pictures in context.splits.items():

      def compute(batch, split=split):
        scores = context.padded_maps(before, split, batch, "image_scores")
        return program(scores, batch)

      def finish(number, found, pictures=pictures):
        size = tuple(pictures.sizes[number].tolist())
        scores = decide.cut(found["scores"], size, STRIDE)
        classes = decide.cut(found["classes"], size, STRIDE)
        classes = classes.repeat(STRIDE, axis=0).repeat(STRIDE, axis=1)
        classes = classes[: size[0], : size[1]]
        tissue = pictures.picture(number).tissue
        return {
          "scores": scores.transpose(2, 0, 1).astype(np.float16),
          "classes": np.where(tissue > 0, classes, 0).astype(np.uint8),
        }

      context.write_maps(self.name, split, compute, finish)
    return {}


def mine_batch(
  limits: tuple[float, float],
  settings: DenseCrf,
  mesh: Mesh,
  scores: Float[Array, "b y h w"],
  batch: fit.Batch,
) -> dict[str, Array]:
  """`mine` of each picture; every device its own, one after the other."""

  def one(row):
    scores, pixels, inside = row
    scores = scores.transpose(1, 2, 0)
    return mine(scores, colours(pixels), inside, *limits, settings)

  spec = PartitionSpec(parallel.BATCH_AXES)
  each = jax.shard_map(
    lambda *rows: lax.map(one, rows),
    mesh=mesh,
    in_specs=spec,
    out_specs=spec,
    check_vma=False,
  )
  known = inside(batch["size"], scores.shape[2:])
  probability, classes = each(scores, batch["pixels"], known)
  return {"scores": probability, "classes": classes}


def inside(
  size: Int[Array, "b 2"], grid: tuple[int, int]
) -> Bool[Array, "b h w"]:
  """Which places of a padded grid belong to pictures of (h, w) pixels."""
  ends = -(-size // STRIDE)
  rows = jnp.arange(grid[0])[None] < ends[:, :1]
  columns = jnp.arange(grid[1])[None] < ends[:, 1:]
  return rows[:, :, None] & columns[:, None]


def colours(pixels: UInt8[Array, "h4 w4 3"]) -> Float[Array, "h w 3"]:
  """The mean colour of each place of the grid."""
  h, w, _ = pixels.shape
  parts = (h // STRIDE, STRIDE, w // STRIDE, STRIDE, 3)
  return pixels.astype(jnp.float32).reshape(parts).mean(axis=(1, 3))


def mine(
  scores: Float[Array, "h w y"],
  colours: Float[Array, "h w 3"],
  inside: Bool[Array, "h w"],
  foreground: float,
  background: float,
  settings: DenseCrf,
) -> tuple[Float[Array, "h w y"], UInt8[Array, "h w"]]:
  """Probabilities and labels of one picture.

  Args:
    scores: of the foreground classes; a class that the picture does not have is
      0 everywhere.
    colours: mean colour of each place, 0 to 255.
    inside: where there is a picture.
    foreground: scores from here on are foreground, before the CRF.
    background: scores below it are background, before the CRF.
    settings: of the CRF.

  Returns:
    Probability of each class after the CRF, by the high threshold; classes: 0
    background, 1 .. y, 255 to be ignored.
  """
  scores = jnp.where(inside[..., None], scores.astype(jnp.float32), 0.0)
  present = jnp.concatenate([jnp.ones(1, bool), scores.max((0, 1)) > 0])

  def refined(_):
    unary = jnp.stack(
      [
        label_unary(labels_of(scores, threshold), present, settings.certainty)
        for threshold in (foreground, background)
      ]
    )
    return mean_field(unary, colours, inside, settings)

  def only_background(_):
    # One label has no alternative: nothing to be inferred.
    label = jnp.zeros(scores.shape[:2], jnp.int32)
    one = jax.nn.one_hot(label, scores.shape[2] + 1)
    return jnp.stack([one, one])

  high, low = lax.cond(present[1:].any(), refined, only_background, None)
  classes = mined(high.argmax(axis=-1), low.argmax(axis=-1))
  return high[..., 1:], classes


def labels_of(scores: Float[Array, "h w y"], threshold: float) -> Array:
  """The best class where it reaches the threshold, or else background, 0."""
  best = scores.max(axis=-1)
  return jnp.where(best >= threshold, scores.argmax(axis=-1) + 1, 0)


def mined(high: Array, low: Array) -> UInt8[Array, "..."]:
  """Labels by the labels of a high and a low threshold; 255 is to be ignored.

  Example:
    >>> mined(jnp.array([1, 0, 0]), jnp.array([1, 1, 0])).tolist()
    [1, 255, 0]
  """
  unsure = jnp.where(low > 0, decide.UNDECIDED, 0)
  return jnp.where(high > 0, high, unsure).astype(jnp.uint8)


def label_unary(
  labels: Array, present: Bool[Array, " m"], certainty: float
) -> Float[Array, "h w m"]:
  """Negative log-probability of each label, given one that may be wrong.

  Args:
    labels: [h, w], 0 .. m - 1.
    present: which labels the picture has; no other is ever inferred.
    certainty: probability of the given label; others share the rest.
  """
  others = jnp.maximum(present.sum() - 1, 1)
  wrong = -jnp.log((1 - certainty) / others)
  is_label = jax.nn.one_hot(labels, len(present), dtype=bool)
  unary = jnp.where(is_label, -math.log(certainty), wrong)
  return jnp.where(present[None, None], unary, _NEVER)


def mean_field(
  unary: Float[Array, "p h w m"],
  colours: Float[Array, "h w 3"],
  inside: Bool[Array, "h w"],
  settings: DenseCrf,
) -> Float[Array, "p h w m"]:
  """Probabilities of labels, of several problems on one picture.

  Args:
    unary: negative log-probability of each label of each of p problems.
    colours: 0 to 255.
    inside: places outside send nothing.
    settings: weights and widths.
  """
  p, h, w, m = unary.shape

  def normalised(kernel):
    total = kernel(inside.astype(jnp.float32)[..., None])
    root = jnp.where(inside[..., None], lax.rsqrt(total), 0.0)
    return lambda x: root * kernel(root * x)

  near = normalised(functools.partial(_near, settings.near_px / STRIDE))
  far = normalised(functools.partial(_far, colours, settings))

  def step(_, q):
    x = q.transpose(1, 2, 0, 3).reshape(h, w, p * m)
    message = settings.near_weight * near(x) + settings.far_weight * far(x)
    message = message.reshape(h, w, p, m).transpose(2, 0, 1, 3)
    return jax.nn.softmax(message - unary, axis=-1)

  start = jax.nn.softmax(-unary, axis=-1)
  return lax.fori_loop(0, settings.iterations, step, start)


def _near(sigma: float, x: Float[Array, "h w k"]) -> Float[Array, "h w k"]:
  """Sums over all places, weighted by a Gaussian of the distance."""

  def weights(n):
    d = jnp.arange(n)[:, None] - jnp.arange(n)[None]
    return jnp.exp(-0.5 * jnp.square(d / sigma))

  h, w, _ = x.shape
  return jnp.einsum("ij,jkc,kl->ilc", weights(h), x, weights(w))


def _far(
  colours: Float[Array, "h w 3"],
  settings: DenseCrf,
  x: Float[Array, "h w k"],
) -> Float[Array, "h w k"]:
  """Sums over places in the window, weighted by distance and colour."""
  h, w, k = x.shape
  sigma = settings.far_px / STRIDE
  reach = settings.window * sigma
  tiles = (-(-h // _TILE), -(-w // _TILE))
  whole = [n * _TILE for n in tiles]
  sides = [min(n, _TILE + 2 * math.ceil(reach)) for n in whole]

  def filled(a):  # what is added has no values, so that it counts nothing
    spare = [(0, n - s) for n, s in zip(whole, (h, w), strict=True)]
    return jnp.pad(a, (*spare, (0, 0)))

  x = filled(x)
  scaled = filled(colours) / settings.colour

  def lines(first, shape):
    """Rows, columns and colours of a window [5, n], and its values [n, k]."""
    y, x_ = (f + jnp.arange(n) for f, n in zip(first, shape, strict=True))
    y, x_ = jnp.meshgrid(y / sigma, x_ / sigma, indexing="ij")
    colour = lax.dynamic_slice(scaled, (*first, 0), (*shape, 3))
    values = lax.dynamic_slice(x, (*first, 0), (*shape, k))
    place = jnp.stack([y, x_, *jnp.moveaxis(colour, -1, 0)])
    return place.reshape(5, -1), values.reshape(-1, k)

  def windows(tile):
    first = [tile // tiles[1] * _TILE, tile % tiles[1] * _TILE]
    starts = [
      jnp.clip(f - math.ceil(reach), 0, n - s)
      for f, n, s in zip(first, whole, sides, strict=True)
    ]
    here, _ = lines(first, (_TILE, _TILE))
    return here, *lines(starts, sides)

  def sums(window):
    here, there, values = window
    d = [here[c][:, None] - there[c][None] for c in range(5)]
    near = [jnp.abs(one) <= settings.window + _ROUNDING for one in d[:2]]
    kernel = jnp.exp(-0.5 * sum(one * one for one in d))
    return jnp.where(near[0] & near[1], kernel, 0.0) @ values

  def row(first):
    # Not tile after tile: the compiler would then work out for every pair where
    # it lies in the window, which takes ten times as long as all the rest.
    each = jax.vmap(windows)(first * tiles[1] + jnp.arange(tiles[1]))
    return jax.vmap(sums)(each)

  found = lax.map(row, jnp.arange(tiles[0]))
  found = found.reshape(*tiles, _TILE, _TILE, k).transpose(0, 2, 1, 3, 4)
  return found.reshape(*whole, k)[:h, :w]
