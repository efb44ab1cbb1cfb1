import numpy as np
import pytest
import shapely

from tests.spatial import shapes
from wsiseq_jax.spatial import ripley, windows

RADII = np.linspace(0, 80, 17)


@pytest.fixture(scope="module", params=["block", "pieces"])
def field(request):
  window = getattr(shapes, request.param)()
  rng = np.random.default_rng(1)
  return window, windows.sample(window, 400, rng)


def circle_share(window, points, i, d):
  """Share of circles inside a window, from polygons of 4,096 corners."""
  rings = [
    shapely.Point(xy).buffer(r, quad_segs=1024).exterior
    for xy, r in zip(points[i], d, strict=True)
  ]
  return shapely.length(shapely.intersection(rings, window)) / (2 * np.pi * d)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("correction", ripley.CORRECTIONS)
def test_k_against_all_pairs(field, correction, cross):
  window, points = field
  first, second = (
    (points[:100], points[100:]) if cross else (points[:200], None)
  )
  found = ripley.k(
    first, window, RADII, correction, others=second, exact=True
  ).value
  other = first if second is None else second
  d = shapes.all_distances(first, second)
  per = len(other) - (second is None)
  i, j = np.nonzero(d <= RADII[-1])
  w = np.ones(len(i))
  if correction == "translation":
    w = window.area / windows.set_covariance(window, other[j] - first[i])
  if correction == "isotropic":
    w = 1 / circle_share(window, first, i, d[i, j])
  if correction == "border":
    border = windows.border_distance(window, first)
    expected = [
      (d[border >= r] <= r).sum() / (border >= r).sum() * window.area / per
      for r in RADII
    ]
  else:
    expected = [
      window.area / (len(first) * per) * w[d[i, j] <= r].sum() for r in RADII
    ]
  np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_raster_translation_is_close_to_the_exact_one(field):
  window, points = field
  exact = ripley.k(points[:200], window, RADII, exact=True).value[2:]
  quick = ripley.k(points[:200], window, RADII).value[2:]
  np.testing.assert_allclose(quick, exact, rtol=1e-3)


def test_k_of_four_points_by_hand():
  points = np.array([[1.0, 5.0], [4.0, 1.0], [4.0, 5.0], [9.0, 9.0]])
  window = shapely.box(0, 0, 10, 10)
  curve = ripley.k(points, window, np.array([3.0, 4.0, 5.0]), "none")
  # Distances 5, 3, 4 between the first three: each counts in both orders, and
  # a distance equal to a radius counts.
  np.testing.assert_allclose(curve.value, np.array([2, 4, 6]) * 100 / (4 * 3))
  np.testing.assert_allclose(ripley.l_of(curve.value) ** 2 * np.pi, curve.value)


def test_points_in_one_place_are_pairs_at_distance_zero():
  points = np.array([[5.0, 5.0], [5.0, 5.0], [1.0, 1.0]])
  window = shapely.box(0, 0, 10, 10)
  curve = ripley.k(points, window, np.array([0.0, 1.0]), "none")
  np.testing.assert_allclose(curve.numerator, [2, 2])


def test_many_points_in_one_cell_are_cut_into_blocks():
  rng = np.random.default_rng(0)
  points = rng.normal(500, 2, (3000, 2))
  window = shapely.box(0, 0, 1000, 1000)
  curve = ripley.k(points, window, RADII[1:4], "none")
  d = shapes.all_distances(points)
  expected = [(d <= r).sum() for r in RADII[1:4]]
  np.testing.assert_array_equal(curve.numerator, expected)


@pytest.mark.parametrize("correction", ripley.CORRECTIONS)
def test_inhomogeneous_k_with_a_constant_intensity_is_k(field, correction):
  window, points = field
  flat = np.full(len(points), 3.7)
  plain = ripley.k(points, window, RADII, correction)
  inhomogeneous = ripley.k(
    points, window, RADII, correction, intensity=(flat, flat)
  )
  # Its denominator counts n² pairs, that of K n (n - 1).
  n = len(points)
  np.testing.assert_allclose(
    inhomogeneous.value, plain.value * (n - 1) / n, atol=1e-9
  )


def test_inhomogeneous_k_weighs_pairs():
  points = np.array([[1.0, 1.0], [2.0, 1.0], [9.0, 9.0]])
  window = shapely.box(0, 0, 10, 10)
  at = np.array([0.5, 0.25, 1.0])
  curve = ripley.k(points, window, np.array([1.0]), "none", intensity=(at, at))
  # Two ordered pairs of weight 2 * 4; renormalised by (|W| / (2 + 4 + 1))².
  assert curve.value[0] == pytest.approx(2 * 8 / 100 * (100 / 7) ** 2)


@pytest.mark.parametrize("correction", ["none", "isotropic", "translation"])
def test_pair_correlation_against_all_pairs(field, correction):
  window, points = field
  points, h = points[:150], 9.0
  found = ripley.pair_correlation(
    points, window, RADII, correction, bandwidth=h, exact=True
  ).value
  d = shapes.all_distances(points)
  i, j = np.nonzero(d <= RADII[-1] + h)
  w = np.ones(len(i))
  if correction == "translation":
    w = window.area / windows.set_covariance(window, points[j] - points[i])
  if correction == "isotropic":
    w = 1 / circle_share(window, points, i, d[i, j])
  x = (RADII[:, None] - d[i, j]) / h
  kernel = np.where(np.abs(x) < 1, 0.75 / h * (1 - x**2), 0)
  expected = (kernel * w / d[i, j]).sum(axis=1)
  expected *= window.area / (2 * np.pi * len(points) * (len(points) - 1))
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-12)


def test_wrong_settings_name_what_is_allowed():
  window = shapes.block()
  points = windows.sample(window, 5, np.random.default_rng(0))
  with pytest.raises(ValueError, match="'torus', allowed: translation, iso"):
    ripley.k(points, window, RADII, "torus")
  with pytest.raises(ValueError, match="at least 2"):
    ripley.k(points[:1], window, RADII)
  with pytest.raises(ValueError, match="radii increase"):
    ripley.k(points, window, RADII[::-1])
  with pytest.raises(ValueError, match="others: there are 0"):
    ripley.k(points, window, RADII, others=points[:0])
  with pytest.raises(ValueError, match="no correction 'border'"):
    ripley.pair_correlation(points, window, RADII, "border")
  with pytest.raises(ValueError, match="bandwidth is 0"):
    ripley.pair_correlation(points, window, RADII, bandwidth=0)
  with pytest.raises(ValueError, match="one positive value for each of 5"):
    ripley.k(points, window, RADII, intensity=(np.ones(4), np.ones(5)))
