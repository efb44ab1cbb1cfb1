"""Distance from a cell to the nearest other cell: G, also across types.

References: Baddeley and Gill, "Kaplan-Meier estimators of distance
distributions", Annals of Statistics 1997. Baddeley, Rubak, Turner, Spatial
Point Patterns, 2015, chapter 8.
"""

import numpy as np
from jaxtyping import Float
from scipy import spatial

from wsiseq_jax.spatial import ripley, windows

CORRECTIONS = ("kaplan-meier", "border", "none")


def distances(
  points: Float[np.ndarray, "n 2"],
  others: Float[np.ndarray, "m 2"] | None = None,
) -> Float[np.ndarray, " n"]:
  """Distance in µm from each point to the nearest other, exact.

  Args:
    points: [n, 2] in µm.
    others: to which, [m, 2] in µm; None is `points`, each without itself.

  Returns:
    Distances; infinite if there is no other.
  """
  if not len(points):
    return np.zeros(0)
  tree = spatial.cKDTree(points if others is None else others)
  if others is None:
    return tree.query(points, k=[2], workers=-1)[0][:, 0]
  return tree.query(points, k=1, workers=-1)[0]


def g(
  points: Float[np.ndarray, "n 2"],
  window: windows.Window,
  radii: Float[np.ndarray, " r"],
  correction: str = "kaplan-meier",
  *,
  others: Float[np.ndarray, "m 2"] | None = None,
) -> ripley.Curve:
  """G: share of cells whose nearest other cell is within a distance.

  Args:
    points: from which is looked, [n, 2] in µm.
    window: where points could be, µm.
    radii: distances in µm, increasing, the first at least 0.
    correction: "kaplan-meier" takes a neighbour farther than the border as
      unknown beyond the border, and uses all cells; "border" uses the cells
      whose border is farther than the distance; "none".
    others: points of another type, [m, 2] in µm: the cross-G to them.

  Returns:
    G. Kaplan-Meier's product is no ratio: its denominator is the number of
    points, which is what it weighs when slides are pooled.

  Raises:
    ValueError: a correction that does not exist; as `ripley.k`.
  """
  radii = ripley.check_radii(radii)
  if correction not in CORRECTIONS:
    raise ValueError(
      f"correction is {correction!r}, allowed: {', '.join(CORRECTIONS)}"
    )
  window = windows.check_window(window)
  points = windows.check_points(points, window, least=1 + (others is None))
  if others is not None:
    others = windows.check_points(others, window, name="others")
  near = distances(points, others)
  m = len(points if others is None else others)
  theory = 1 - np.exp(-m / window.area * np.pi * radii**2)
  border = windows.border_distance(window, points)
  if correction == "kaplan-meier":
    value = _kaplan_meier(near, border, radii)
    weight = np.full(len(radii), float(len(points)))
    return ripley.Curve(radii, value * weight, weight, theory)
  if correction == "none":
    border = np.full(len(points), np.inf)
  # A cell is asked about radii[:last] and has its neighbour from radii[first].
  first = np.searchsorted(radii, near, side="left")
  last = np.searchsorted(radii, border, side="right")
  size = len(radii) + 1
  asked = np.bincount(last, minlength=size)[::-1].cumsum()[::-1][1:]
  has = first < last
  steps = np.bincount(first[has], minlength=size)
  steps = steps - np.bincount(last[has], minlength=size)
  found = steps.cumsum()[:-1]
  return ripley.Curve(radii, found * 1.0, asked * 1.0, theory)


def _kaplan_meier(near, border, radii):
  """Product-limit estimate of the distribution of `near`, at the radii."""
  seen = near <= border
  times = np.sort(np.minimum(near, border))
  events, deaths = np.unique(near[seen], return_counts=True)
  at_risk = len(times) - np.searchsorted(times, events, side="left")
  left = np.concatenate([[1.0], np.cumprod(1 - deaths / at_risk)])
  return 1 - left[np.searchsorted(events, radii, side="right")]
