"""Second-order statistics: K, L and the pair correlation g, also across types.

A curve keeps its numerator and its denominator, so that fields and slides are
pooled as counts (`pooling.py`) and not as averages of ratios.

References: Ripley, "Modelling spatial patterns", JRSS B 1977. Baddeley, Rubak,
Turner, Spatial Point Patterns, 2015. Definitions agree with spatstat's Kest,
Kcross and Kinhom (renormalised, power 2).
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from wsiseq_jax.spatial import edges, windows
from wsiseq_jax.spatial.pairs import PairBlock, sum_pairs

CORRECTIONS = ("translation", "isotropic", "border", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """A function of distance that was estimated as a ratio of counts."""

  radii: Float[np.ndarray, " r"]  # µm
  numerator: Float[np.ndarray, " r"]
  denominator: Float[np.ndarray, " r"]
  theory: Float[np.ndarray, " r"]  # without any interaction

  @property
  def value(self) -> Float[np.ndarray, " r"]:
    """The estimate; NaN where nothing could be counted."""
    return np.divide(
      self.numerator,
      self.denominator,
      where=self.denominator > 0,
      out=np.full(len(self.radii), np.nan),
    )


def k(
  points: Float[np.ndarray, "n 2"],
  window: windows.Window,
  radii: Float[np.ndarray, " r"],
  correction: str = "translation",
  *,
  others: Float[np.ndarray, "m 2"] | None = None,
  intensity: tuple[np.ndarray, np.ndarray] | None = None,
  exact: bool = False,
) -> Curve:
  """Ripley's K: points within a distance of a typical one, over their density.

  Args:
    points: from which is looked, [n, 2] in µm.
    window: where points could be, µm.
    radii: distances in µm, increasing, the first at least 0.
    correction: of edges, one of `CORRECTIONS`.
    others: points of another type, [m, 2] in µm: the cross-K from `points` to
      them. None counts pairs of `points`.
    intensity: points per µm² at each of `points` and at each of `others` (or of
      `points` again): the inhomogeneous K, as of `intensity.Kernel`.
    exact: the translation correction by overlaps of polygons, one a pair: for
      some hundred points. Otherwise by a raster, within about 1e-3.

  Returns:
    K in µm², π r² where there is no interaction.

  Raises:
    ValueError: a correction that does not exist, radii that do not increase,
      too few points, points outside the window.
  """
  radii = check_radii(radii)
  check_correction(correction)
  window = windows.check_window(window)
  points, others = _check_both(points, others, window)
  second = points if others is None else others
  pairs = len(points) * (len(second) - (others is None))
  mass, other_mass = np.ones(len(points)), np.ones(len(second))
  denominator = np.full(len(radii), pairs / window.area)
  if intensity is not None:
    mass, other_mass = _masses(intensity, points, second)
    share = mass.sum() * other_mass.sum() / window.area**2
    denominator = np.full(len(radii), window.area * share)

  squares = radii**2
  size = len(radii) + 1
  if correction == "border":
    border = windows.border_distance(window, points)
    # A point may be asked about radii[: last], which its border leaves whole.
    last = np.searchsorted(radii, border, side="right")
    asked = np.bincount(last, mass, minlength=size)[::-1].cumsum()[::-1][1:]
    denominator = asked * denominator / mass.sum()

    def count(block: PairBlock) -> np.ndarray:
      first, stop = np.searchsorted(squares, block.d2), last[block.i]
      w = np.where(first < stop, mass[block.i] * other_mass[block.j], 0.0)
      return np.bincount(first, w, size) - np.bincount(stop, w, size)
  else:
    edge = edges.make(correction, window, points, radii[-1], exact)

    def count(block: PairBlock) -> np.ndarray:
      w = np.broadcast_to(edge.weights(block), block.d2.shape)
      if intensity is not None:
        w = w * mass[block.i] * other_mass[block.j]
      return np.bincount(np.searchsorted(squares, block.d2), w, size)

  found = np.zeros(size) + sum_pairs(count, points, others, radii[-1])
  return Curve(radii, found[:-1].cumsum(), denominator, np.pi * squares)


def l_of(k: Float[np.ndarray, "*r"]) -> Float[np.ndarray, "*r"]:
  """L, √(K/π) in µm: r without interaction, with a variance nearly constant."""
  return np.sqrt(k / np.pi)


def pair_correlation(
  points: Float[np.ndarray, "n 2"],
  window: windows.Window,
  radii: Float[np.ndarray, " r"],
  correction: str = "translation",
  *,
  others: Float[np.ndarray, "m 2"] | None = None,
  bandwidth: windows.Number | None = None,
  exact: bool = False,
) -> Curve:
  """Pair correlation g: density of points at a distance, over their density.

  An Epanechnikov kernel over the pairs' distances; each pair is divided by its
  own distance ("d" of spatstat's pcf), which has less bias near 0. Nothing
  corrects the kernel at distance 0: below one bandwidth g is too low.

  Args:
    points: from which is looked, [n, 2] in µm.
    window: where points could be, µm.
    radii: distances in µm, increasing, the first at least 0.
    correction: "translation", "isotropic" or "none".
    others: points of another type, [m, 2] in µm, as in `k`.
    bandwidth: half the kernel's width in µm; Stoyan's rule, 0.15 / √(density of
      the points looked at), by default.
    exact: as in `k`.

  Returns:
    g, 1 where there is no interaction. Pairs at distance 0 have no g: left out.

  Raises:
    ValueError: as `k`; a bandwidth that is not positive.
  """
  radii = check_radii(radii)
  if check_correction(correction) == "border":
    raise ValueError("The pair correlation has no correction 'border'")
  window = windows.check_window(window)
  points, others = _check_both(points, others, window)
  m = len(points if others is None else others)
  h = 0.15 / np.sqrt(m / window.area) if bandwidth is None else bandwidth
  if not h > 0:
    raise ValueError(f"bandwidth is {bandwidth}, allowed: above 0 µm")
  reach = radii[-1] + h
  edge = edges.make(correction, window, points, reach, exact)
  size = len(radii) + 1

  # The kernel is a polynomial in d, 3/(4h) (1 - (r - d)²/h²): the sums over
  # pairs of w, w d and w d² within h of each radius give it at every radius.
  def moments(block: PairBlock) -> np.ndarray:
    d = np.sqrt(block.d2)
    w = edge.weights(block) / np.where(d > 0, d, np.inf)
    first = np.searchsorted(radii, d - h, side="right")
    stop = np.searchsorted(radii, d + h, side="left")
    return np.stack(
      [
        np.bincount(first, w * power, size) - np.bincount(stop, w * power, size)
        for power in (1.0, d, block.d2)
      ]
    )

  found = np.zeros((3, size)) + sum_pairs(moments, points, others, reach)
  s0, s1, s2 = found[:, :-1].cumsum(axis=1)
  kernel = 0.75 / h * (s0 - (radii**2 * s0 - 2 * radii * s1 + s2) / h**2)
  pairs = len(points) * (m - (others is None))
  denominator = np.full(len(radii), 2 * np.pi * pairs / window.area)
  return Curve(radii, kernel, denominator, np.ones(len(radii)))


def check_radii(radii: Any) -> Float[np.ndarray, " r"]:
  """Radii as float64, increasing from 0 or more."""
  radii = np.asarray(radii, np.float64)
  good = radii.ndim == 1 and len(radii) and np.isfinite(radii).all()
  if not good or radii[0] < 0 or radii[-1] <= 0 or (np.diff(radii) <= 0).any():
    raise ValueError(f"radii increase from 0 or more, in µm; these: {radii}")
  return radii


def check_correction(correction: str) -> str:
  """The name of an edge correction that exists."""
  if correction not in CORRECTIONS:
    raise ValueError(
      f"correction is {correction!r}, allowed: {', '.join(CORRECTIONS)}"
    )
  return correction


def _check_both(points, others, window):
  """Both sets of points, with as many as a pair needs."""
  if others is None:
    return windows.check_points(points, window, least=2), None
  points = windows.check_points(points, window)
  return points, windows.check_points(others, window, name="others")


def _masses(intensity, points, second):
  """1 / intensity of each point, with the shapes checked."""
  for values, of in zip(intensity, (points, second), strict=True):
    if np.shape(values) != (len(of),) or not (np.asarray(values) > 0).all():
      raise ValueError(
        f"intensity: one positive value for each of {len(of)} points"
      )
  return tuple(1 / np.asarray(v, np.float64) for v in intensity)
