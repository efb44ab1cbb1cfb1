"""Scores of masks: overlap, boundaries, instances.

Every score is made of counts that add up over pictures, so that a bootstrap
over patients weighs pictures (`bootstrap.py`) and scores a thousand resamples
at once. A score of several pictures is therefore that of all their pixels
together, not a mean of pictures: a small lesion weighs little.

Pixels whose truth is 255 are left out; 255 in a result is background.

    IoU_c = n_cc / (row_c + column_c - n_cc),  mIoU = their mean, background
            included, over classes that truth or result has
    Dice, precision, recall of the foreground: all classes against background
    boundary F1: shares of boundary pixels of the result within `tolerance_px`
            of a true one, and of true ones near one of the result
    AP50: average precision of instances by their score, a hit where the
            intersection over union with a true one of its class, not taken
            yet, is 0.5 or more

References: Csurka et al., What is a good evaluation measure for semantic
segmentation?, BMVC 2013. Everingham et al., The PASCAL VOC challenge, 2010.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int, Real, UInt8

from wsiseq_jax.metrics.classification import ratio

NOT_KNOWN = 255
NAMES = ("miou", "dice", "precision", "recall", "boundary_f1")
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
_LEAST_IOU = 0.5  # of a hit; AP50 is named for it


def confusion(
  truth: UInt8[np.ndarray, "h w"], found: UInt8[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "k k"]:
  """Pixels by true class (rows) and found class, background first.

  Args:
    truth: 0 background, 1 .. classes, 255 not known.
    found: the result, likewise; 255 counts as background.
    classes: of the foreground.

  Example:
    >>> truth = np.array([[0, 1, 1, 255]], np.uint8)
    >>> found = np.array([[0, 1, 255, 1]], np.uint8)
    >>> confusion(truth, found, 1).tolist()
    [[1, 0], [1, 1]]
  """
  k, known = classes + 1, truth != NOT_KNOWN
  rows = truth[known].astype(np.int64)
  columns = np.where(found == NOT_KNOWN, 0, found)[known].astype(np.int64)
  return np.bincount(rows * k + columns, minlength=k * k).reshape(k, k)


def overlap(
  counts: Real[np.ndarray, "r k k"],
) -> dict[str, Float[np.ndarray, " r"]]:
  """mIoU, and Dice, precision and recall of the foreground; NaN where unknown.

  Example:
    >>> found = overlap(np.array([[[2, 1], [1, 4]]]))
    >>> {name: value.round(3).tolist() for name, value in found.items()}
    {'miou': [0.583], 'dice': [0.8], 'precision': [0.8], 'recall': [0.8]}
  """
  hits = counts[:, 1:, 1:].sum(axis=(1, 2))
  extra, missed = counts[:, 0, 1:].sum(axis=1), counts[:, 1:, 0].sum(axis=1)
  each = list(class_iou(counts).T)
  known = np.isfinite(each)
  return {
    "miou": ratio(np.where(known, each, 0.0).sum(axis=0), known.sum(axis=0)),
    "dice": ratio(2 * hits, 2 * hits + extra + missed),
    "precision": ratio(hits, hits + extra),
    "recall": ratio(hits, hits + missed),
  }


def class_iou(counts: Real[np.ndarray, "r k k"]) -> Float[np.ndarray, "r k"]:
  """Intersection over union of every class, NaN where neither has it."""
  hits = np.einsum("rkk->rk", counts)
  return ratio(hits, counts.sum(axis=1) + counts.sum(axis=2) - hits)


def boundary_counts(
  truth: UInt8[np.ndarray, "h w"],
  found: UInt8[np.ndarray, "h w"],
  tolerance_px: float | int,
) -> Int[np.ndarray, "4"]:
  """Boundary pixels: found, of them near; true, of them near.

  A boundary pixel is of the foreground and touches background inside the
  picture, by its side. Where truth is not known there are none.

  Args:
    truth: 0 background, classes, 255 not known.
    found: the result, likewise.
    tolerance_px: the largest distance that is near.
  """
  known = truth != NOT_KNOWN
  edges = []
  for classes in (found, truth):
    mask = (classes > 0) & (classes != NOT_KNOWN) & known
    inner = scipy.ndimage.binary_erosion(mask | ~known, _CROSS, border_value=1)
    edges.append(mask & ~inner)
  counts = []
  for one, other in (edges, edges[::-1]):
    near = np.zeros(0, bool)
    if other.any():
      distance = scipy.ndimage.distance_transform_edt(~other)
      near = distance[one] <= tolerance_px
    counts += [int(one.sum()), int(near.sum())]
  return np.array(counts)


def boundary_f1(counts: Real[np.ndarray, "r 4"]) -> Float[np.ndarray, " r"]:
  """F1 of `boundary_counts`; NaN where truth has no boundary.

  Example:
    >>> boundary_f1(np.array([[4, 2, 2, 2]])).round(3).tolist()
    [0.667]
  """
  found, found_near, true, true_near = counts.T
  precision = ratio(found_near, found, 0.0)
  recall = ratio(true_near, true)
  return ratio(2 * precision * recall, precision + recall, 0.0) + 0 * recall


@dataclasses.dataclass(frozen=True, eq=False)
class Matched:
  """Instances of a picture, compared with the true ones."""

  scores: Float[np.ndarray, " m"]  # of those found
  hits: Bool[np.ndarray, " m"]  # whether each is a true one
  count: int  # of the true ones


def components(classes: UInt8[np.ndarray, "h w"]) -> tuple[np.ndarray, list]:
  """Connected parts of each class, by their sides, numbered from 1.

  Returns:
    Number of every pixel, 0 where there is none, and the class of each number.
  """
  numbers, of = np.zeros(classes.shape, np.int32), []
  for name in np.unique(classes):
    if name in (0, NOT_KNOWN):
      continue
    parts, count = scipy.ndimage.label(classes == name, _CROSS)
    numbers[parts > 0] = parts[parts > 0] + len(of)
    of += [int(name)] * count
  return numbers, of


def match_instances(
  truth: UInt8[np.ndarray, "h w"],
  instances: Int[np.ndarray, "h w"],
  classes: Int[np.ndarray, " m"],
  scores: Real[np.ndarray, " m"],
) -> Matched:
  """Gives each instance, the best first, the true one it covers most.

  True instances are the connected parts of `truth`. Pixels whose truth is not
  known count for neither.

  Args:
    truth: 0 background, classes, 255 not known.
    instances: number of every pixel from 1, 0 = none.
    classes: of instances 1, 2, ...
    scores: likewise, the higher the surer.
  """
  true, true_classes = components(truth)
  found = np.where(truth == NOT_KNOWN, 0, instances)
  shape = (len(classes) + 1, len(true_classes) + 1)
  both = np.bincount(
    found.ravel().astype(np.int64) * shape[1] + true.ravel(),
    minlength=shape[0] * shape[1],
  ).reshape(shape)
  union = both.sum(axis=1)[:, None] + both.sum(axis=0)[None] - both
  iou = ratio(both, union, 0.0)[1:, 1:]
  iou[classes[:, None] != np.asarray(true_classes)[None]] = 0
  scores, hits = scores.astype(np.float64), np.zeros(len(classes), bool)
  for number in np.argsort(-scores, kind="stable"):
    if true_classes and iou[number].max() >= _LEAST_IOU:
      hits[number] = True
      iou[:, iou[number].argmax()] = 0
  return Matched(scores, hits, len(true_classes))


def average_precision(
  pictures: Sequence[Matched], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
  """Area under precision over recall of all instances, for many weightings.

  Precision at a recall is the highest at that or a higher one.

  Args:
    pictures: of `match_instances`.
    weights: of each picture.

  Returns:
    A value for each weighting, NaN where there is no true instance.

  Example:
    >>> one = Matched(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1]) > 0, 2)
    >>> average_precision([one], np.ones((1, 1))).round(4).tolist()
    [0.8333]
  """
  scores = np.concatenate([one.scores for one in pictures])
  hits = np.concatenate([one.hits for one in pictures])
  owner = np.repeat(np.arange(len(pictures)), [len(p.hits) for p in pictures])
  total = weights @ np.array([one.count for one in pictures], np.float64)
  order = np.argsort(-scores, kind="stable")
  each = weights[:, owner[order]]
  true = np.cumsum(each * hits[order], axis=1)
  precision = ratio(true, np.cumsum(each, axis=1), 0.0)
  precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
  steps = np.diff(true, prepend=0.0, axis=1)
  return ratio((steps * precision).sum(axis=1), total)


def statistics(
  counts: Int[np.ndarray, "n k k"],
  boundaries: Int[np.ndarray, "n 4"],
  instances: Sequence[Matched],
  weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
  """All scores of pictures, for many weightings; see the module.

  Args:
    counts: of `confusion`, of each picture.
    boundaries: of `boundary_counts`, likewise.
    instances: of `match_instances`, likewise; () where there are none.
    weights: of each picture.
  """
  found = overlap(np.einsum("rn,nij->rij", weights, counts))
  found["boundary_f1"] = boundary_f1(weights @ boundaries)
  if instances:
    found["ap50"] = average_precision(instances, weights)
  return found
