"""The level-set score of G-SODA and Spatiopath. Off by default.

Patent note: the application US 2023/0237664 A1, "Method for detecting spatial
coupling", claims the comparison of actual with expected numbers of points
between level sets of the distance to objects' borders. Whether it was granted,
and where, was not checked: whoever turns this on decides that. Profiles with
Monte-Carlo tests (`border.py`) answer the same question and are older.

Regions A, points B, both in the window; Ω is the window outside A. Zone i holds
what is `i * width` to `(i + 1) * width` µm from A. Under complete spatial
randomness its count is binomial, which clustered cells are not.

References: Lagache et al., Nature Communications 2018 (SODA). Mukherjee et al.,
IEEE Signal Processing Letters 2020 (G-SODA). Benimam et al., Nature
Communications 2025 (Spatiopath).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from wsiseq_jax.spatial import border, windows


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
  """Counts of one field or slide, which add up over several."""

  counts: Int[np.ndarray, " z"]
  areas: Float[np.ndarray, " z"]  # µm²
  distances: Float[np.ndarray, " z"]  # summed over the points of each zone, µm
  points: int  # outside A
  area: float  # of Ω, µm²


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
  """Scores of zones and indices of coupling."""

  score: Float[np.ndarray, " z"]  # about N(0, 1) without coupling; NaN: no area
  threshold: float  # √(2 ln zones): no 5 % test, decide by the p-value
  significant: Bool[np.ndarray, " z"]  # score above the threshold
  probability: Float[np.ndarray, " z"]  # that a point of the zone is coupled
  accumulation: float  # ACI, share of points in any zone
  significant_accumulation: float  # SAI, share in significant zones
  association: float  # ASI, share of coupled points
  corrected_association: float  # ASI over the share of Ω that could not hide it
  distance: float  # mean of coupled points, µm; NaN without any
  log10_p: float  # of the largest score, Bonferroni over zones


def levels(
  points: Float[np.ndarray, "n 2"],
  region: windows.Window,
  window: windows.Window,
  *,
  width: windows.Number = 10.0,
  distance: windows.Number = 400.0,
) -> Levels:
  """Counts and areas of the zones around regions.

  Args:
    points: [n, 2] in µm; those inside regions are left out.
    region: union of the regions A, µm.
    window: where points could be, µm.
    width: of a zone, µm.
    distance: that zones reach to, µm; the last is whole.

  Returns:
    What `coupling` needs.

  Raises:
    ValueError: width or distance not positive; as `border.profile`; regions
      that leave nothing of the window.
  """
  if not width > 0 or not distance > 0:
    raise ValueError(
      f"width is {width}, distance is {distance}, allowed: above 0 µm"
    )
  zones = math.ceil(distance / width)
  edges = np.arange(zones + 1) * float(width)
  found = border.profile(points, region, window, edges)
  far = windows.signed_distance(region, np.asarray(points, np.float64))
  far = far[far >= 0]
  near = far[far < edges[-1]]
  zone = np.searchsorted(edges, near, side="right") - 1
  outside = window.difference(region).area
  if not outside > 0:
    raise ValueError("The regions cover the whole window: nothing is outside")
  return Levels(
    counts=found.counts,
    areas=found.areas,
    distances=np.bincount(zone, near, zones),
    points=len(far),
    area=outside,
  )


def pool(fields: Sequence[Levels]) -> Levels:
  """Fields of a slide, or slides of a patient, as one.

  Raises:
    ValueError: none, or of different numbers of zones.
  """
  if len({len(field.counts) for field in fields}) != 1:
    raise ValueError("Pooling needs one or more fields with the same zones")
  names = [field.name for field in dataclasses.fields(Levels)]
  return Levels(**{n: sum(getattr(f, n) for f in fields) for n in names})


def coupling(found: Levels) -> Coupling:
  """Score, indices and p-value of zones.

  Raises:
    ValueError: there are no points outside the regions, or no zone has area.
  """
  n, omega, area = found.points, found.area, found.areas
  if not n:
    raise ValueError("There are no points outside the regions")
  here = area > 1e-9 * omega
  zones = int(here.sum())
  if not zones:
    raise ValueError("No zone has any area in the window")
  increment = found.counts * omega / n
  spread = np.sqrt(np.maximum(area * (omega - area), 0) / n)
  score = np.divide(
    increment - area,
    spread,
    where=here & (spread > 0),
    out=np.full(len(area), np.nan),
  )
  threshold = math.sqrt(2 * math.log(zones))
  significant = score > threshold
  probability = np.where(
    significant, 1 - area / np.where(significant, increment, 1.0), 0.0
  )
  coupled = float((probability * found.counts).sum())
  hidden = 1 - found.areas[significant].sum() / omega
  top = np.nanmax(score) if np.isfinite(score).any() else 0.0
  log10_p = (math.log(zones) + scipy.stats.norm.logsf(top)) / math.log(10)
  return Coupling(
    score=score,
    threshold=threshold,
    significant=significant,
    probability=probability,
    accumulation=float(found.counts.sum() / n),
    significant_accumulation=float(found.counts[significant].sum() / n),
    association=coupled / n,
    corrected_association=coupled / n / hidden if hidden > 0 else float("nan"),
    distance=(
      float((probability * found.distances).sum() / coupled)
      if coupled
      else float("nan")
    ),
    log10_p=min(0.0, float(log10_p)),
  )
