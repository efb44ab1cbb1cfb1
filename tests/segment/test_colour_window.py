"""Losses on a window of pixels: by a dense matrix, by hand, gradients."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from wsiseq_jax.segment.colour_window import (
  ColourWindow,
  cut_losses,
  window_sums,
)

NEAR = ColourWindow(stride=1, reach=2, sigma_xy=1.5, sigma_rgb=0.3)


def example(seed=0, shape=(2, 5, 6), classes=3):
  rng = np.random.default_rng(seed)
  share = rng.dirichlet(np.ones(classes), shape).astype(np.float32)
  colour = rng.random((*shape, 3), np.float32)
  real = (rng.random((*shape, 1)) < 0.8).astype(np.float32)
  return jnp.asarray(share), jnp.asarray(colour), jnp.asarray(real)


def weights(colour, real, near):
  """W as a dense matrix, pair by pair, of one picture."""
  h, w = real.shape[:2]
  found = np.zeros((h * w, h * w))
  for p, q in itertools.product(range(h * w), repeat=2):
    (r, c), (s, d) = divmod(p, w), divmod(q, w)
    if p == q or max(abs(r - s), abs(c - d)) > near.reach:
      continue
    if not (real[r, c, 0] and real[s, d, 0]):
      continue
    apart = ((colour[r, c] - colour[s, d]) ** 2).sum()
    space = (r - s) ** 2 + (c - d) ** 2
    found[p, q] = math.exp(
      -apart / (2 * near.sigma_rgb**2) - space / (2 * near.sigma_xy**2)
    )
  return found


def test_window_sums_and_cuts_are_those_of_the_dense_matrix():
  share, colour, real = example()
  sums = window_sums(colour, real, share, NEAR)
  ncut, crf = cut_losses(share, colour, real, NEAR)
  want_ncut, want_crf = [], []
  for b in range(len(share)):
    w = weights(*(np.asarray(x[b], np.float64) for x in (colour, real)), NEAR)
    flat = np.asarray(share[b], np.float64).reshape(-1, 3)
    np.testing.assert_allclose(
      np.asarray(sums[b]).reshape(-1, 3), w @ flat, rtol=1e-4, atol=1e-5
    )
    one = np.asarray(real[b]).reshape(-1)
    cut = [y @ w @ (1 - y) for y in (flat * one[:, None]).T]
    whole = [w.sum(axis=1) @ y for y in flat.T]
    want_ncut.append(sum(a / b for a, b in zip(cut, whole, strict=True)))
    want_crf.append(sum(cut) / one.sum())
  np.testing.assert_allclose(ncut, np.mean(want_ncut), rtol=1e-4)
  np.testing.assert_allclose(crf, np.mean(want_crf), rtol=1e-4)


def test_the_cut_of_two_pixels_by_hand():
  # Black and white are worlds apart; two greys are one thing.
  near = ColourWindow(reach=2, sigma_xy=1.0, sigma_rgb=0.3)
  hard = jnp.array([[[[1.0, 0], [0, 1]]]])
  one = jnp.ones((1, 1, 2, 1))
  grey = jnp.full((1, 1, 2, 3), 0.5)
  ncut, crf = cut_losses(hard, grey, one, near)
  # W = exp(-1/2) between them; each class is cut from all it touches.
  np.testing.assert_allclose([ncut, crf], [2.0, math.exp(-0.5)], rtol=1e-4)
  parted = jnp.array([[[[0.0] * 3, [1.0] * 3]]])
  _, crf = cut_losses(hard, parted, one, near)
  assert crf < 1e-6


def test_one_class_everywhere_and_no_pixel_cost_nothing():
  share, colour, real = example()
  one = jnp.zeros_like(share).at[..., 0].set(1.0)
  for args in ((one, colour, real), (share, colour, 0 * real)):
    np.testing.assert_allclose(cut_losses(*args, NEAR), 0, atol=1e-6)


def test_gradients_of_cuts():
  share, colour, real = example(1, (1, 4, 4))

  @jax.jit
  def value(share):
    ncut, crf = cut_losses(share, colour, real, NEAR)
    return ncut + 3 * crf

  check_grads(value, (share,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
