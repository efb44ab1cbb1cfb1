"""Scores become classes: enlarged, compared with a threshold, on tissue alone.

Scores lie on a grid of stride s; its place (i, j) is the mean of the pixels s·i
.. s·i + s - 1. A grid of a picture has ceil(h / s) rows.
"""

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

UNDECIDED = 255


def cut(
  grid: Shaped[np.ndarray, "h w ..."], size: tuple[int, int], stride: int
) -> Shaped[np.ndarray, "h2 w2 ..."]:
  """The part of a padded grid that belongs to a picture of (h, w) pixels."""
  h, w = (-(-int(side) // stride) for side in size)
  return grid[:h, :w]


def enlarge(
  scores: Float[np.ndarray, "y h w"], size: tuple[int, int]
) -> Float[np.ndarray, "y h2 w2"]:
  """Scores of every pixel of a picture of (h, w), bilinear between centres.

  Example:
    >>> enlarge(np.array([[[0.0, 1.0]]]), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
  """
  height, width = size
  stride = max(-(-height // scores.shape[1]), -(-width // scores.shape[2]))
  whole = (scores.shape[2] * stride, scores.shape[1] * stride)
  return np.stack(
    [
      cv2.resize(one.astype(np.float32), whole, interpolation=cv2.INTER_LINEAR)
      for one in scores
    ]
  )[:, :height, :width]


def classes_of(
  scores: Float[np.ndarray, "y h w"],
  tissue: UInt8[np.ndarray, "h w"],
  threshold: float,
  background: float | None = None,
) -> UInt8[np.ndarray, "h w"]:
  """The class of the highest score, where it reaches a threshold.

  Args:
    scores: of every pixel, of the foreground classes.
    tissue: 1 tissue, 0 glass; glass is background.
    threshold: of the foreground.
    background: scores below it are background, those in between undecided; None
      = as the threshold.

  Returns:
    0 background, 1 .. y classes, 255 undecided.

  Example:
    >>> scores = np.array([[[0.1, 0.4, 0.9, 0.9]]])
    >>> tissue = np.array([[1, 1, 1, 0]], np.uint8)
    >>> classes_of(scores, tissue, 0.5, 0.3).tolist()
    [[0, 255, 1, 0]]
  """
  best = scores.max(axis=0)
  found = np.where(best >= threshold, scores.argmax(axis=0) + 1, 0)
  if background is not None:
    found[(best >= background) & (best < threshold)] = UNDECIDED
  return np.where(tissue > 0, found, 0).astype(np.uint8)
