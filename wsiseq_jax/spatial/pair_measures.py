"""Cells of a type against cells of a type: K, L, g, G, and the tests of K."""

import numpy as np

from wsiseq_jax.spatial import envelopes, intensity, nearest, ripley, shifts
from wsiseq_jax.spatial.points import Points
from wsiseq_jax.spatial.settings import Settings
from wsiseq_jax.spatial.slide_numbers import SlideNumbers
from wsiseq_jax.spatial.windows import Window


def radii_of(settings: Settings) -> np.ndarray:
  """Distances of pairs, from one step on."""
  wanted = settings.statistics
  count = int(wanted.reach_um / wanted.step_um + 1e-9)
  return wanted.step_um * np.arange(1, count + 1)


def even(
  found: SlideNumbers,
  points: Points,
  window: Window,
  pair: tuple[str, str],
  settings: Settings,
  rng: np.random.Generator,
) -> None:
  """K, L, g and G of a pair of types, and the test of K.

  Args:
    found: gets the rows.
    points: cells of the slide, all in the window.
    window: where cells can be, µm.
    pair: names of the types (from, to); both may be the same.
    settings: of the job.
    rng: of the test.

  Raises:
    ValueError: as the estimators and the tests.
  """
  wanted, radii = settings.statistics, radii_of(settings)
  from_xy, to_xy = (points.xy_of(name) for name in pair)
  is_same = pair[0] == pair[1]
  others = None if is_same else to_xy
  k = ripley.k(from_xy, window, radii, others=others)
  numbers = {"n_from": len(from_xy), "n_to": len(to_xy)}
  band, null = _test(points, window, pair, radii, settings, rng)
  found.curve("K", pair, radii, k.numerator, k.denominator, k.theory, band)
  at = int(np.argmin(np.abs(radii - wanted.contact_um)))
  value, expected = (
    (band.observed, band.central) if band else (k.value, k.theory)
  )
  numbers["at_um"] = float(radii[at])
  # L says the same in µm; its ranks, and so its p, are those of K.
  pairs = {
    "K": (value, expected),
    "L": (ripley.l_of(value), ripley.l_of(expected)),
  }
  for name, (value, expected) in pairs.items():
    found.score(
      name,
      pair,
      value=float(value[at]),
      expected=float(expected[at]),
      p=band.p if band else "",
      null=null,
      **numbers,
    )
  g = ripley.pair_correlation(from_xy, window, radii, others=others)
  found.curve("g", pair, radii, g.numerator, g.denominator, g.theory)
  near = nearest.g(from_xy, window, radii, others=others)
  found.curve("G", pair, radii, near.numerator, near.denominator, near.theory)
  found.score(
    "G",
    pair,
    value=float(near.value[at]),
    expected=float(near.theory[at]),
    **numbers,
  )


def uneven(
  found: SlideNumbers,
  points: Points,
  window: Window,
  pair: tuple[str, str],
  settings: Settings,
  rng: np.random.Generator,
) -> None:
  """K of a pair of types whose density differs from place to place.

  Args:
    found: gets the rows.
    points: cells of the slide, all in the window.
    window: where cells can be, µm.
    pair: names of the types (from, to); both may be the same.
    settings: of the job.
    rng: of the test.

  Raises:
    ValueError: as the estimators and the tests.
  """
  wanted, radii = settings.statistics, radii_of(settings)
  kernel = intensity.kernel(window, wanted.intensity_um)
  from_xy, to_xy = (points.xy_of(name) for name in pair)
  others = None if pair[0] == pair[1] else to_xy
  density = kernel.density(to_xy)

  def k_of(xy: np.ndarray) -> ripley.Curve:
    here = kernel.density(xy)
    there = here if others is None else density
    return ripley.k(xy, window, radii, others=others, intensity=(here, there))

  k = k_of(from_xy)
  band = envelopes.random_points(
    lambda xy: k_of(xy).value,
    from_xy,
    window,
    kernel=kernel,
    simulations=wanted.simulations,
    rng=rng,
    alpha=wanted.level,
  )
  found.curve(
    "K_inhom", pair, radii, k.numerator, k.denominator, k.theory, band
  )
  at = int(np.argmin(np.abs(radii - wanted.contact_um)))
  found.score(
    "K_inhom",
    pair,
    at_um=float(radii[at]),
    value=float(k.value[at]),
    expected=float(band.central[at]),
    p=band.p,
    null="intensity",
    n_from=len(from_xy),
    n_to=len(to_xy),
    note=f"density by a kernel of {wanted.intensity_um:g} um",
  )


def _test(points: Points, window, pair, radii, settings, rng):
  """The test of K against the null, and its name; none for a single type."""
  wanted = settings.statistics
  common = {"simulations": wanted.simulations, "rng": rng}
  common["alpha"] = wanted.level
  present = [name for name, count in points.counts().items() if count]
  if wanted.null == "uniform":
    others = None if pair[0] == pair[1] else points.xy_of(pair[1])
    band = envelopes.random_points(
      lambda xy: ripley.k(xy, window, radii, others=others).value,
      points.xy_of(pair[0]),
      window,
      **common,
    )
    return band, "uniform"
  if wanted.null == "labels" or pair[0] == pair[1]:
    # Without other cells there is nothing to swap, and that cells are not
    # strewn at random says nothing.
    if len(present) < 2:
      return None, ""
    numbers = tuple(points.names.index(name) for name in pair)
    band = envelopes.random_labels(
      points.xy_um, points.type, numbers, window, radii, **common
    )
    return band, "labels"
  band = shifts.cross_k(
    points.xy_of(pair[0]),
    points.xy_of(pair[1]),
    window,
    radii,
    reach=wanted.shift_um,
    **common,
  )
  return band, "shift"
