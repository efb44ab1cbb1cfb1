"""The random walk by its definition: a matrix of all pairs of pixels."""

import numpy as np


def affinity(boundary, p, q):
  """One minus the highest boundary at most a pixel off the line p-q."""
  (py, px), (qy, qx) = p, q
  dy, dx = qy - py, qx - px
  return 1 - max(
    boundary[y, x]
    for y in range(min(py, qy), max(py, qy) + 1)
    for x in range(min(px, qx), max(px, qx) + 1)
    if abs(dy * (x - px) - dx * (y - py)) / np.hypot(dy, dx) < 1
  )


def transition(boundary, radius=5, beta=10):
  """The matrix [pixels, pixels], float64; its columns sum to one."""
  places = list(np.ndindex(boundary.shape))
  matrix = np.eye(len(places))
  for i, p in enumerate(places):
    for j, q in enumerate(places[:i]):
      if np.hypot(p[0] - q[0], p[1] - q[1]) < radius:
        matrix[i, j] = matrix[j, i] = affinity(boundary, p, q) ** beta
  return matrix / matrix.sum(axis=0, keepdims=True)


def walk(scores, boundary, radius=5, beta=10, squarings=8):
  """Scores [k, h, w] after 2**squarings steps."""
  matrix = transition(boundary, radius, beta)
  for _ in range(squarings):
    matrix = matrix @ matrix
  return (scores.reshape(len(scores), -1) @ matrix).reshape(scores.shape)
