"""Against golden values of R's spatstat (`tests/golden/spatstat/`)."""

import json

import numpy as np
import pytest
import shapely

from wsiseq_jax.spatial import nearest, ripley, windows

NAMES = ("rectangles", "star", "pieces")


@pytest.fixture(scope="module", params=NAMES)
def case(request, repo_root):
  folder = repo_root / "tests/golden/spatstat"
  drawn = json.loads((folder / "points.json").read_text())[request.param]
  golden = json.loads((folder / "spatstat.json").read_text())
  rings = [
    shapely.Polygon(np.stack([ring["x"], ring["y"]], axis=1))
    for ring in drawn["rings"]
  ]
  window = rings[0]
  for ring in rings[1:]:  # outlines and holes do not overlap
    window = window.symmetric_difference(ring)
  points = np.array(drawn["points"])
  return {
    "window": windows.check_window(window),
    "points": points,
    "types": np.array(drawn["types"]),
    "radii": np.array(golden["radii"]),
    "bandwidth": golden["bandwidth"],
    "golden": golden["cases"][request.param],
  }


def agree(found, expected):
  """Within 1e-6, where spatstat has a value."""
  expected = np.array(expected, np.float64)
  known = np.isfinite(expected)
  assert known.sum() >= len(expected) // 2
  np.testing.assert_allclose(found[known], expected[known], 1e-6, 1e-9)


def test_window_and_border(case):
  assert case["window"].area == pytest.approx(case["golden"]["area"])
  found = windows.border_distance(case["window"], case["points"])
  agree(found, case["golden"]["border"])


@pytest.mark.parametrize("correction", ripley.CORRECTIONS)
def test_k_and_cross_k(case, correction):
  window, radii, golden = case["window"], case["radii"], case["golden"]
  exact = correction == "translation"
  found = ripley.k(case["points"], window, radii, correction, exact=exact).value
  if correction == "border":  # its density there is n / area, ours n - 1
    found = found * (len(case["points"]) - 1) / len(case["points"])
  agree(found, golden["k"][correction])
  first, second = (case["points"][case["types"] == t] for t in (0, 1))
  found = ripley.k(first, window, radii, correction, others=second, exact=exact)
  agree(found.value, golden["cross_k"][correction])


def test_l(case):
  found = ripley.k(case["points"], case["window"], case["radii"], "isotropic")
  agree(ripley.l_of(found.value), case["golden"]["l"]["isotropic"])


@pytest.mark.parametrize("correction", ["translation", "isotropic"])
def test_pair_correlation(case, correction):
  found = ripley.pair_correlation(
    case["points"],
    case["window"],
    case["radii"],
    correction,
    bandwidth=case["bandwidth"],
    exact=True,
  ).value
  agree(found, case["golden"]["pcf"][correction])


@pytest.mark.parametrize("correction", ["border", "kaplan-meier"])
def test_g_and_cross_g(case, correction):
  window, radii, golden = case["window"], case["radii"], case["golden"]
  agree(
    nearest.g(case["points"], window, radii, correction).value,
    golden["g"][correction],
  )
  first, second = (case["points"][case["types"] == t] for t in (0, 1))
  agree(
    nearest.g(first, window, radii, correction, others=second).value,
    golden["cross_g"][correction],
  )


@pytest.mark.parametrize("correction", ["border", "isotropic"])
def test_inhomogeneous_k(case, correction):
  points, window = case["points"], case["window"]
  at = np.linspace(1, 2, len(points)) * len(points) / window.area
  found = ripley.k(
    points, window, case["radii"], correction, intensity=(at, at)
  )
  found = found.value
  if correction == "border":
    # A ratio of sums over the first points needs the mean of 1 / intensity of
    # the others alone; spatstat's normpower of 2 divides by it twice.
    found = found / ((1 / at).sum() / window.area)
  agree(found, case["golden"]["inhomogeneous_k"][correction])
