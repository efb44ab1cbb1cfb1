import numpy as np
import pytest

from tests.spatial import shapes
from wsiseq_jax.spatial import intensity, ripley, windows


def test_intensity_against_all_pairs():
  window = shapes.block()
  rng = np.random.default_rng(0)
  points = windows.sample(window, 300, rng)
  sigma = 60.0
  found = intensity.Kernel(window, sigma).density(points)
  d = shapes.all_distances(points)
  kernel = np.exp(-(d**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
  grid = np.stack(np.meshgrid(*2 * [np.arange(2.5, 1000, 5)]), -1).reshape(
    -1, 2
  )
  grid = grid[windows.inside(window, grid)]
  to_grid = shapes.all_distances(points, grid)
  mass = np.exp(-(to_grid**2) / (2 * sigma**2)).sum(axis=1) * 25
  expected = kernel.sum(axis=1) / (mass / (2 * np.pi * sigma**2))
  np.testing.assert_allclose(found, expected, rtol=0.05)
  assert abs((found / expected).mean() - 1) < 2e-3


def test_inhomogeneous_k_takes_out_a_gradient():
  window = shapes.block()
  rng = np.random.default_rng(0)
  points = windows.sample(window, 6000, rng)
  points = points[rng.uniform(0, 1000, 6000) < points[:, 0]]
  radii = np.array([20.0, 40.0])
  flat = ripley.k(points, window, radii)
  at = intensity.Kernel(window, 100).density(points)
  bent = ripley.k(points, window, radii, intensity=(at, at))
  assert (flat.value / flat.theory > 1.2).all()
  np.testing.assert_allclose(bent.value / bent.theory, 1, atol=0.08)


def test_points_are_drawn_with_the_density_of_the_given_ones():
  window = shapes.block()
  rng = np.random.default_rng(0)
  points = windows.sample(window, 4000, rng)
  points = points[rng.uniform(0, 1000, 4000) < points[:, 0]]
  kernel = intensity.Kernel(window, 80.0)
  drawn = kernel.draw(points, rng)
  assert len(drawn) == len(points) and windows.inside(window, drawn).all()
  edges = np.linspace(0, 1000, 6)
  for axis in (0, 1):
    given, found = (
      np.histogram(xy[:, axis], edges)[0] for xy in (points, drawn)
    )
    # The kernel smooths a little; without its correction 200 were missing.
    np.testing.assert_allclose(found, given, atol=70)


def test_wrong_bandwidths():
  window = shapes.block()
  points = np.array([[10.0, 10.0], [900.0, 900.0], [12.0, 10.0]])
  with pytest.raises(ValueError, match="1 of 3 points have no other"):
    intensity.Kernel(window, 20).density(points)
  with pytest.raises(ValueError, match="sigma is 0, allowed"):
    intensity.Kernel(window, 0)
  with pytest.raises(ValueError, match="four pixels"):
    intensity.Kernel(window, 0.1)
