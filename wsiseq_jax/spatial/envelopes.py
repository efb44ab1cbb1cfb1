"""Monte-Carlo tests of whole curves, with p-values that are exact.

A curve is compared with curves simulated under a null model: complete spatial
randomness and random labels over fixed cells are here, random shifts of one
pattern over another in `shifts.py`. The test looks at all distances at once:
curves are ordered by their extreme ranks, ties broken by how often they are
extreme (extreme rank length), so there is one p-value and one band, and the
curve leaves the band where the test rejects.

Reference: Myllymäki et al., "Global envelope tests", JRSS B 2017.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from wsiseq_jax.spatial import edges, intensity, pairs, ripley, windows

ALTERNATIVES = ("two-sided", "greater", "less")


@dataclasses.dataclass(frozen=True, eq=False)
class Envelope:
  """The outcome of a global envelope test."""

  observed: Float[np.ndarray, " r"]
  low: Float[np.ndarray, " r"]  # -inf where the alternative is "greater"
  high: Float[np.ndarray, " r"]  # inf where it is "less"
  central: Float[np.ndarray, " r"]  # mean of the simulated curves
  p: float  # of the whole curve
  simulations: int


def global_envelope(
  observed: Float[np.ndarray, " r"],
  simulated: Float[np.ndarray, "s r"],
  *,
  alpha: windows.Number = 0.05,
  alternative: str = "two-sided",
) -> Envelope:
  """Tests a curve against simulated ones at all distances at once.

  Args:
    observed: the curve; where it or a simulated one has no value, that distance
      is left out and its band is NaN.
    simulated: curves under the null model, one a row.
    alpha: level of the band, at least 1 / (s + 1).
    alternative: "greater" if only curves above the null speak against it,
      "less", or "two-sided".

  Returns:
    p, the share of all s + 1 curves at least as extreme as the observed one,
    and the band: the hull of the curves whose own share is above `alpha`.

  Raises:
    ValueError: unknown alternative, a level that so few simulations cannot
      reach, no distance at which all curves have values.
  """
  if alternative not in ALTERNATIVES:
    raise ValueError(
      f"alternative is {alternative!r}, allowed: {', '.join(ALTERNATIVES)}"
    )
  curves = np.vstack([observed, simulated]).astype(np.float64)
  total = len(curves)
  if not 1 / total <= alpha < 1:
    raise ValueError(
      f"alpha is {alpha}: {total - 1} simulations allow {1 / total:.4g} to 1"
    )
  known = np.isfinite(curves).all(axis=0)
  if not known.any():
    raise ValueError("The curves have no distance at which all have a value")
  up = scipy.stats.rankdata(curves[:, known], axis=0)  # 1 is the lowest
  ranks = {"less": up, "greater": total + 1 - up}.get(
    alternative, np.minimum(up, total + 1 - up)
  )
  ranks.sort(axis=1)
  order = np.lexsort(ranks.T[::-1])
  new = np.ones(total, bool)
  new[1:] = (np.diff(ranks[order], axis=0) != 0).any(axis=1)
  # Curves at least as extreme as each: where the next group of ties begins.
  group = np.cumsum(new)
  share = np.empty(total)
  share[order] = np.searchsorted(group, group, side="right") / total

  inner = curves[share > alpha]
  low, high = np.full((2, curves.shape[1]), np.nan)
  low[known], high[known] = -np.inf, np.inf
  if alternative != "greater":
    low[known] = inner[:, known].min(axis=0)
  if alternative != "less":
    high[known] = inner[:, known].max(axis=0)
  return Envelope(
    observed=curves[0],
    low=low,
    high=high,
    central=curves[1:].mean(axis=0),
    p=float(share[0]),
    simulations=total - 1,
  )


def random_points(
  statistic: Callable[[Float[np.ndarray, "n 2"]], Float[np.ndarray, " r"]],
  points: Float[np.ndarray, "n 2"],
  window: windows.Window,
  *,
  simulations: int,
  rng: np.random.Generator,
  kernel: intensity.Kernel | None = None,
  alpha: windows.Number = 0.05,
  alternative: str = "two-sided",
) -> Envelope:
  """Complete spatial randomness: as many points, each by itself.

  Cells are never that random, and clustered cells look attracted to anything
  clustered. For two types, or cells and regions, prefer the other two models.

  Args:
    statistic: of points [n, 2], the curve; what else it needs is fixed.
    points: observed, µm.
    window: where points could be, µm.
    simulations: number of simulated curves, 999 for a p-value of 0.001.
    rng: of the draws.
    kernel: points are drawn with the density it finds; None = uniform. Density
      is estimated from the same points, which makes the test conservative.
    alpha: as in `global_envelope`.
    alternative: as in `global_envelope`.

  Returns:
    The test of the statistic.

  Raises:
    ValueError: as `global_envelope` and the statistic.
  """
  window = windows.check_window(window)

  def pattern() -> np.ndarray:
    if kernel is None:
      return windows.sample(window, len(points), rng)
    return kernel.draw(points, rng)

  drawn = [statistic(pattern()) for _ in range(simulations)]
  return global_envelope(
    statistic(points), np.array(drawn), alpha=alpha, alternative=alternative
  )


def random_labels(
  points: Float[np.ndarray, "n 2"],
  types: Int[np.ndarray, " n"],
  pair: tuple[int, int],
  window: windows.Window,
  radii: Float[np.ndarray, " r"],
  *,
  simulations: int,
  rng: np.random.Generator,
  correction: str = "translation",
  focal: int = 20_000,
  alpha: windows.Number = 0.05,
  alternative: str = "two-sided",
) -> Envelope:
  """Random labelling: types are shuffled over the cells, which stay in place.

  Asks whether cells of one type are nearer to the other type than cells at
  large are. Holes and clusters of all cells do not matter, for they stay.

  Args:
    points: all cells, [n, 2] in µm.
    types: of each cell.
    pair: the types (from, to); both may be the same.
    window: where cells could be, µm.
    radii: distances, µm.
    simulations: number of shuffles.
    rng: of the shuffles and of the focal cells.
    correction: "translation", "isotropic" or "none".
    focal: pairs are counted from so many cells of any type, drawn at random, or
      from all if there are no more. The test stays exact.
    alpha: as in `global_envelope`.
    alternative: as in `global_envelope`.

  Returns:
    The test of the cross-K, µm².

  Raises:
    ValueError: as `ripley.k` and `global_envelope`; a type without cells.
  """
  radii = ripley.check_radii(radii)
  if ripley.check_correction(correction) == "border":
    raise ValueError("Random labelling has no correction 'border'")
  window = windows.check_window(window)
  points = windows.check_points(points, window, least=2)
  types = np.asarray(types)
  for kind in pair:
    if not (types == kind).any():
      raise ValueError(f"types: no cell is of type {kind}")
  mine = np.arange(len(points))
  if len(mine) > focal:
    mine = np.sort(rng.choice(mine, focal, replace=False))
  edge = edges.make(correction, window, points[mine], radii[-1])
  i, j, ring, w = _weighted(points, mine, radii, edge)

  def curve(labels: np.ndarray) -> np.ndarray:
    here, there = labels == pair[0], labels == pair[1]
    use = here[i] & there[j]
    found = np.bincount(ring[use], w[use], len(radii)).cumsum()
    n = here[mine].sum() * there.sum() - (here & there)[mine].sum()
    return found * window.area / n if n else np.full(len(radii), np.nan)

  shuffled = [curve(rng.permutation(types)) for _ in range(simulations)]
  return global_envelope(
    curve(types), np.array(shuffled), alpha=alpha, alternative=alternative
  )


def _weighted(points, mine, radii, edge):
  """Pairs from the focal cells: both indices, ring and weight, as columns."""
  none = np.zeros(0, np.int64)
  rows = [(none, none, none, none * 1.0)]
  for block in pairs.iterate(points[mine], points, radii[-1]):
    w = np.broadcast_to(edge.weights(block), block.d2.shape)
    i, ring = mine[block.i], np.searchsorted(radii**2, block.d2)
    good = i != block.j
    rows.append((i[good], block.j[good], ring[good], w[good]))
  return tuple(np.concatenate(column) for column in zip(*rows, strict=True))
