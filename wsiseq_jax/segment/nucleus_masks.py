"""Masks of nuclei from their centres: two coarse labels, and a network.

From points two masks are made without anybody's outline: cells of a Voronoi
diagram, which part neighbours, and clusters of colour, which have the shape of
nuclei. A network learns from both. Its mask is parted into nuclei by the
centres that the detector found.

Reference: Qu et al. 2019, "Weakly Supervised Deep Nuclei Segmentation using
Points Annotation in Histopathology Images". There the dense CRF comes in a
second training at a tenth of the rate; here, if `crf` is not 0, from the start.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8
from scipy import ndimage
from sklearn import cluster

from data_prep.files.schema import AtLeast0, AtLeast1, NotNegative, Range
from wsiseq_jax import fit, launch, parallel
from wsiseq_jax.segment import clicks, decide, student, training
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.clicks import IGNORE
from wsiseq_jax.segment.colour_window import (
  ColourWindow,
  cut_losses,
  to_grid,
)
from wsiseq_jax.segment.nuclei import inside, pixels_of
from wsiseq_jax.segment.stage import Reading, StageContext
from wsiseq_jax.segment.training import StageFit

# Colours that k-means looks at; more change nothing.
_SAMPLE = 10_000
# Of the map that is made of a Voronoi label v and a cluster label c:
# 3 v + c, each 0 background, 1 nucleus, 2 not known.
_UNKNOWN = 2


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nuclei:
  """The stage `nuclei`: masks of the nuclei that the stage before found."""

  name: ClassVar[str] = "nuclei"
  readings: ClassVar[tuple[Reading, ...]] = (
    Reading("0.5", "scores", 0.5),
    Reading("chosen", "scores"),
  )
  has_instances: ClassVar[bool] = True

  outlines: Outlines = Outlines()
  crf: NotNegative = 0.0  # weight of the dense CRF; 0.001 to 0.005 in the paper
  window: ColourWindow = ColourWindow(reach=4, sigma_xy=2.25)
  width: AtLeast1 = 64  # channels of the decoder
  optim: StageFit = StageFit()

  def run(self, context: StageContext) -> Mapping[str, Any]:
    """Makes labels, trains, writes masks and nuclei of all splits."""
    if len(context.classes) != 1:
      raise ValueError(
        f"config.data.path: has the classes {context.classes}; the stage "
        "'nuclei' wants one, nucleus"
      )
    before = context.before(self.name)
    labels = context.maps(f"{self.name}/labels", "train")
    pictures = context.pictures("train")
    for number, picture_id in enumerate(pictures.ids):
      if labels.has(picture_id):
        continue
      one = pictures.picture(number)
      points = context.maps(before, "train").read(picture_id)["taught"]
      is_negative = not len(one.points) and bool((one.labels == 0).all())
      v = voronoi_labels(points, one.size, self.outlines, is_negative)
      c = cluster_labels(one.pixels, points, self.outlines, is_negative)
      labels.write(picture_id, classes=outline_map(v, c))
    launch.log(f"{self.name}: labels of {len(pictures)} pictures are made")
    frozen = context.backbone.start(context.seed)
    frozen = jax.device_put(frozen, parallel.replicated(context.mesh))
    params = training.learned(
      context,
      self.name,
      network(context.backbone, self.width, self.crf, self.window),
      self.optim.settings(keep="last"),
      self.optim.data(context, labels.folder),
      student.validate,
      frozen,
    )

    def parted(split, number, scores):
      maps = context.maps(before, split)
      points = maps.read(context.pictures(split).ids[number])["points"]
      size = tuple(context.pictures(split).sizes[number].tolist())
      share = decide.enlarge(scores, size)[0]
      found = instances(share > 0.5, points[:, :2], self.outlines.min_px)
      count = int(found.max(initial=0))
      return {
        "instances": found.astype(np.int32),
        "instance_classes": np.ones(count, np.int32),
        "instance_scores": np.asarray(
          ndimage.mean(share, found, np.arange(1, count + 1)), np.float32
        ).reshape(count),
      }

    student.write_scores(context, self.name, params, frozen, parted)
    return student.about(context)


@functools.lru_cache(maxsize=8)
def network(
  backbone: Backbone, width: int, crf: float, window: ColourWindow
) -> fit.Model:
  """The student's network with the losses of Voronoi and cluster labels."""
  model = student.network(backbone, 1, width, False, False)

  def loss(params, frozen, batch, key):
    del key
    logits = student.pixel_logits(backbone, params, frozen, batch["pixels"])
    real = clicks.real_pixels(batch)
    total = outline_loss(logits, jnp.where(real, batch["target"], IGNORE))
    if crf:
      share = to_grid(jax.nn.softmax(logits), window.stride)
      whole = to_grid(real[..., None].astype(jnp.float32), window.stride) == 1
      colour = to_grid(batch["pixels"].astype(jnp.float32) / 255, window.stride)
      whole = whole.astype(jnp.float32)
      total += crf * cut_losses(share, colour, whole, window)[1]
    return total

  return dataclasses.replace(model, loss=loss)


def _dots(points, shape, radius: float | int) -> np.ndarray:
  """Pixels not further than `radius` from the pixel of a point."""
  if not len(points):
    return np.zeros(shape, bool)
  empty = np.ones(shape, bool)
  empty[pixels_of(points)] = False
  return ndimage.distance_transform_edt(empty) <= radius


def cells(
  points: Float[np.ndarray, "n 2"], shape: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
  """The nearest point of each pixel, counted from 1; 0 without any."""
  number = np.zeros(shape, np.int32)
  if not len(points):
    return number
  number[pixels_of(points)] = np.arange(1, len(points) + 1)
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
  empty[pixels_of(points)] = False
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
    n_clusters=min(3, few), n_init=1, max_iter=50, random_state=settings.seed
  ).fit(features[chosen])
  return means.predict(features).reshape(shape)


def _disc(radius: int) -> np.ndarray:
  side = np.arange(-radius, radius + 1)
  disc = side[:, None] ** 2 + side[None, :] ** 2 <= radius**2
  return disc.astype(np.uint8)


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
    if not piece.any():
      continue
    piece = cv2.dilate(piece.astype(np.uint8), _disc(settings.dilate_px))
    piece = ndimage.binary_fill_holes(piece).astype(np.uint8)
    piece = cv2.erode(piece, _disc(settings.erode_px)) > 0
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
    points = points[labels[pixels_of(points)] > 0]
  owner = np.zeros_like(labels)
  if len(points):
    number = cells(points, mask.shape)
    # The nearest point may be of another piece.
    piece = np.concatenate([[0], labels[pixels_of(points)]])
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
