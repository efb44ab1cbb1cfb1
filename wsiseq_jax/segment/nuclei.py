"""Nuclei from a few points: what each pixel is said to be, and the losses.

A network first learns to see nuclei: an extended Gaussian round each annotated
point, certain background on a ring round it, nothing beyond. It then teaches
itself: what it sees clearly becomes points, what it clearly does not see
becomes background. From points, annotated and found, two coarse masks are made
without anybody's outline: cells of a Voronoi diagram, which part neighbours,
and clusters of colour, which have the shape of nuclei. A second network learns
from both.

Rules are of NumPy, SciPy and scikit-learn, a picture at a time; their results
are uint8 maps that survive rotation and nearest-neighbour scaling, so that
batches cut them as they cut masks. x, y are in pixels; whole numbers are
middles of pixels.

References:
  Qu et al. 2019, "Weakly Supervised Deep Nuclei Segmentation using Points
  Annotation in Histopathology Images"; 2020, "Weakly Supervised Deep Nuclei
  Segmentation Using Partial Points Annotation in Histopathology Images".
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8
from scipy import ndimage, spatial
from skimage import feature
from sklearn import cluster

from data_prep.files.schema import AtLeast0, AtLeast1, Range, Share
from wsiseq_jax.segment import clicks
from wsiseq_jax.segment.clicks import IGNORE

# Colours that k-means looks at; more change nothing.
_SAMPLE = 20_000
_LEVELS = 253  # of a Gaussian, as a map keeps it
# Of the mask that is made of a Voronoi label v and a cluster label c:
# 3 v + c, each 0 background, 1 nucleus, 2 not known.
_UNKNOWN = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
  """How nuclei are learned from points, and seen."""

  # Of a nucleus, pixels; beyond it, up to `outer_px`, is background.
  inner_px: Annotated[float, Range(1)] = 11.0
  outer_px: Annotated[float, Range(1)] = 22.0
  weight: Annotated[float, Range(above=0)] = 10.0  # of nuclei; background: 1
  rounds: AtLeast1 = 3  # of training; after each but the last it teaches itself
  threshold: Share = 0.35  # least height of a peak that is a nucleus
  # Peaks that become points, and what becomes background, between rounds.
  sure: Share = 0.6
  low: Share = 0.05
  apart_px: Annotated[float, Range(1)] = 6.0  # between two nuclei

  def __post_init__(self):
    if self.outer_px < self.inner_px:
      raise ValueError(
        f"config.nuclei.outer_px = {self.outer_px:g}: must be at least "
        f"inner_px, {self.inner_px:g}"
      )
    if self.sure < self.threshold:
      raise ValueError(
        f"config.nuclei.sure = {self.sure:g}: must be at least threshold, "
        f"{self.threshold:g}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlines:
  """How masks are made of points."""

  dot_px: AtLeast0 = 2  # points in Voronoi cells, dilated
  colour_scale: Annotated[float, Range(above=0)] = 10.0  # divides 0 to 255
  far_px: Annotated[float, Range(above=0)] = 20.0  # distances stop to count
  near_px: AtLeast0 = 5  # points, dilated, that background has least of
  away_px: AtLeast0 = 10  # background is further from points
  min_px: AtLeast0 = 30  # smaller objects are none
  dilate_px: AtLeast0 = 5  # of objects in each cell, then holes are filled
  erode_px: AtLeast0 = 7  # after that
  seed: int = 0  # of k-means


def inside(
  points: Float[np.ndarray, "n 2"], shape: tuple[int, int]
) -> Float[np.ndarray, "m 2"]:
  """The points of a picture: on it, no two on one pixel."""
  points = np.asarray(points, np.float64).reshape(-1, 2)
  height, width = shape
  on = np.isfinite(points).all(axis=1)
  points = points[on]
  pixels = np.rint(points)
  on = ((pixels >= 0) & (pixels < [width, height])).all(axis=1)
  _, first = np.unique(pixels[on], axis=0, return_index=True)
  return points[on][np.sort(first)]


def _pixels_of(points: Float[np.ndarray, "n 2"]) -> tuple[np.ndarray, ...]:
  """Rows and columns of points."""
  return tuple(np.rint(points[:, ::-1]).astype(int).T)


def gaussian_map(
  points: Float[np.ndarray, "n 2"],
  shape: tuple[int, int],
  settings: Detection,
  background: Bool[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "h w"]:
  """What a detector learns of a picture.

  Args:
    points: nuclei, of which some are known.
    shape: height, width.
    settings: the radii.
    background: pixels that are certainly no nucleus, wherever they are; those
      of a disc round a point count as that.

  Returns:
    `IGNORE` where nothing is known, 0 for background, and within `inner_px` of
    a point 1 to 254 for the Gaussian exp(−d²/2σ²) from 0 to 1, σ a quarter of
    `inner_px`, d the distance to the nearest point.
  """
  apart, _ = clicks.nearest(inside(points, shape), shape, settings.outer_px)
  found = np.full(shape, IGNORE, np.uint8)
  if background is not None:
    found[background] = 0
  found[apart <= settings.outer_px] = 0
  is_nucleus = apart <= settings.inner_px
  sigma = settings.inner_px / 4
  height_of = np.exp(-(apart[is_nucleus] ** 2) / (2 * sigma**2))
  found[is_nucleus] = 1 + np.rint(_LEVELS * height_of).astype(np.uint8)
  return found


def detection_loss(
  share: Float[Array, "b h w"],
  target: Integer[Array, "b h w"],
  weight: float,
) -> Float[Array, ""]:
  """Weighted mean squared error of a detector; 0 where nothing is known.

  Args:
    share: what it says, from 0 to 1.
    target: `gaussian_map`.
    weight: of pixels of nuclei; those of background weigh 1.
  """
  is_nucleus = (target > 0) & (target != IGNORE)
  heights = jnp.where(is_nucleus, (target - 1) / _LEVELS, 0.0)
  weights = jnp.where(target == IGNORE, 0.0, jnp.where(is_nucleus, weight, 1.0))
  error = weights * jnp.square(share - heights)
  return error.sum() / jnp.maximum(weights.sum(), 1.0)


def peaks(
  share: Float[np.ndarray, "h w"], threshold: float, apart_px: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
  """Nuclei that a detector sees: x, y of its maxima, and their heights."""
  share = np.asarray(share, np.float32)
  found = feature.peak_local_max(
    share,
    min_distance=max(1, round(apart_px)),
    threshold_abs=threshold,
    exclude_border=False,
  )
  return found[:, ::-1] * 1.0, share[found[:, 0], found[:, 1]]


def taught(
  points: Float[np.ndarray, "n 2"],
  share: Float[np.ndarray, "h w"],
  settings: Detection,
) -> tuple[Float[np.ndarray, "m 2"], Bool[np.ndarray, "h w"]]:
  """What a detector adds to what people said: points, and background.

  Args:
    points: people's.
    share: what it sees in the picture.
    settings: `sure`, `low` and the inner radius: what it sees nearer to a
      person's point is the same nucleus.

  Returns:
    People's points and then its own; pixels that it is sure are background.
  """
  points = inside(points, share.shape)
  found, _ = peaks(share, settings.sure, settings.apart_px)
  if len(points) and len(found):
    apart, _ = spatial.cKDTree(points).query(found)
    found = found[apart > settings.inner_px]
  return np.concatenate([points, found]), share < settings.low


def _dots(points, shape, radius: float | int) -> np.ndarray:
  """Pixels not further than `radius` from the pixel of a point."""
  if not len(points):
    return np.zeros(shape, bool)
  empty = np.ones(shape, bool)
  empty[_pixels_of(points)] = False
  return ndimage.distance_transform_edt(empty) <= radius


def cells(
  points: Float[np.ndarray, "n 2"], shape: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
  """The nearest point of each pixel, counted from 1; 0 without any."""
  number = np.zeros(shape, np.int32)
  if not len(points):
    return number
  number[_pixels_of(points)] = np.arange(1, len(points) + 1)
  _, (row, column) = ndimage.distance_transform_edt(
    number == 0, return_indices=True
  )
  return number[row, column]


def voronoi_labels(
  points: Float[np.ndarray, "n 2"],
  shape: tuple[int, int],
  settings: Outlines,
  is_negative: bool = False,
) -> UInt8[np.ndarray, "h w"]:
  """Borders of cells are background, dots round points are nuclei.

  Args:
    points: of all nuclei.
    shape: height, width.
    settings: the size of dots.
    is_negative: whether no point means no nucleus; otherwise it means that
      nothing is known.

  Returns:
    0, 1, or `IGNORE`.
  """
  points = inside(points, shape)
  found = np.full(shape, 0 if is_negative else IGNORE, np.uint8)
  if not len(points):
    return found
  found[:] = IGNORE
  found[_dots(points, shape, settings.dot_px)] = 1
  number = cells(points, shape)
  # A line of one pixel: where the cell to the right or below is another.
  found[:, :-1][number[:, :-1] != number[:, 1:]] = 0
  found[:-1][number[:-1] != number[1:]] = 0
  return found


def cluster_labels(
  pixels: UInt8[np.ndarray, "h w 3"],
  points: Float[np.ndarray, "n 2"],
  settings: Outlines,
  is_negative: bool = False,
) -> UInt8[np.ndarray, "h w"]:
  """Nuclei and background by three clusters of colour and distance to points.

  Of the clusters, that with most points is nucleus; of the others that with
  least of what is near points is background. Objects lose specks and holes, a
  Voronoi cell at a time, so that neighbours stay apart.

  Args:
    pixels: the picture.
    points: of all nuclei.
    settings: scales and sizes.
    is_negative: as in `voronoi_labels`.

  Returns:
    0, 1, or `IGNORE`.
  """
  shape = pixels.shape[:2]
  points = inside(points, shape)
  if not len(points):
    return np.full(shape, 0 if is_negative else IGNORE, np.uint8)
  group = _groups(pixels, points, settings)

  def share_of(mask):
    return np.bincount(group[mask], minlength=3) / max(mask.sum(), 1)

  nucleus = int(np.argmax(share_of(_dots(points, shape, 0))))
  near = share_of(_dots(points, shape, settings.near_px))
  near[nucleus] = np.inf
  background = int(np.argmin(near))
  objects = _cleaned(group == nucleus, cells(points, shape), settings)
  found = np.full(shape, IGNORE, np.uint8)
  is_away = ~_dots(points, shape, settings.away_px)
  found[(group == background) & is_away] = 0
  found[objects] = 1
  return found


def _groups(pixels, points, settings: Outlines) -> np.ndarray:
  """The cluster of each pixel, from 0 to 2."""
  shape = pixels.shape[:2]
  empty = np.ones(shape, bool)
  empty[_pixels_of(points)] = False
  apart = ndimage.distance_transform_edt(empty)
  features = np.concatenate(
    [
      pixels.reshape(-1, 3) / settings.colour_scale,
      np.minimum(apart, settings.far_px).reshape(-1, 1),
    ],
    axis=1,
  ).astype(np.float32)
  draw = np.random.default_rng(settings.seed)
  chosen = draw.permutation(len(features))[:_SAMPLE]
  # A picture may have fewer colours than clusters.
  few = len(np.unique(features[chosen], axis=0))
  means = cluster.KMeans(
    n_clusters=min(3, few), n_init=3, random_state=settings.seed
  ).fit(features[chosen])
  return means.predict(features).reshape(shape)


def _disc(radius: int) -> np.ndarray:
  side = np.arange(-radius, radius + 1)
  return side[:, None] ** 2 + side[None, :] ** 2 <= radius**2


def _cleaned(mask, number, settings: Outlines) -> np.ndarray:
  """Objects of a mask in each cell: no specks, no holes, a little smaller."""
  labels, count = ndimage.label(mask)
  large = np.bincount(labels.ravel(), minlength=count + 1) >= settings.min_px
  large[0] = False
  mask = large[labels]
  found = np.zeros_like(mask)
  pad = max(settings.dilate_px, settings.erode_px) + 1
  for index, box in enumerate(ndimage.find_objects(number), 1):
    if box is None:
      continue
    cell = number[box] == index
    piece = np.pad(mask[box] & cell, pad)
    if settings.dilate_px:
      piece = ndimage.binary_dilation(piece, _disc(settings.dilate_px))
    piece = ndimage.binary_fill_holes(piece)
    if settings.erode_px:
      piece = ndimage.binary_erosion(piece, _disc(settings.erode_px))
    found[box] |= piece[pad:-pad, pad:-pad] & cell
  return found


def outline_map(
  voronoi: UInt8[np.ndarray, "h w"], clusters: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w"]:
  """Both labels of each pixel as one number, from 0 to 8."""
  v, c = (np.where(x == IGNORE, _UNKNOWN, x) for x in (voronoi, clusters))
  return (3 * v + c).astype(np.uint8)


def outline_loss(
  logits: Float[Array, "b h w 2"], target: Integer[Array, "b h w"]
) -> Float[Array, ""]:
  """Mean of the cross-entropies of Voronoi and of cluster labels.

  Args:
    logits: of background and nucleus.
    target: `outline_map`, or `IGNORE`.
  """
  is_known = target != IGNORE

  def labels(part):
    return jnp.where(is_known & (part != _UNKNOWN), part, IGNORE)

  v, c = labels(target // 3), labels(target % 3)
  return (
    clicks.partial_cross_entropy(logits, v)
    + clicks.partial_cross_entropy(logits, c)
  ) / 2


def instances(
  mask: Bool[np.ndarray, "h w"],
  points: Float[np.ndarray, "n 2"],
  min_px: int = 30,
) -> Int[np.ndarray, "h w"]:
  """Parts a mask into nuclei, numbered from 1.

  A piece that holds several points is cut by their Voronoi diagram; one that
  holds none is one nucleus.

  Args:
    mask: pixels of nuclei.
    points: their centres; those beside the mask part nothing.
    min_px: smaller nuclei are left out.
  """
  labels, _ = ndimage.label(mask)
  points = inside(points, mask.shape)
  if len(points):
    points = points[labels[_pixels_of(points)] > 0]
  owner = np.zeros_like(labels)
  if len(points):
    number = cells(points, mask.shape)
    # The nearest point may be of another piece.
    piece = np.concatenate([[0], labels[_pixels_of(points)]])
    owner = np.where(piece[number] == labels, number, 0)
  pairs = np.stack([labels, owner], axis=-1)[mask]
  found = np.zeros(mask.shape, np.int64)
  if not len(pairs):
    return found
  _, inverse = np.unique(pairs, axis=0, return_inverse=True)
  sizes = np.bincount(inverse.ravel())
  kept = np.where(sizes >= min_px, np.cumsum(sizes >= min_px), 0)
  found[mask] = kept[inverse.ravel()]
  return found
