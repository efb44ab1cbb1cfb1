"""A loss on all pairs of pixels of a window: what looks alike is alike.

It lives on a grid a few pixels wide, where it is a sum of shifted slices. The
original filters all pairs of a picture by a permutohedral lattice; pairs beyond
the window, which a Gaussian in space hardly weighs, are left out here.

Reference: Tang et al. 2018, "Normalized Cut Loss for Weakly-supervised CNN
Segmentation" and "On Regularized Losses for Weakly-supervised CNN
Segmentation".
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_prep.files.schema import AtLeast1, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourWindow:
  """Which pixels of a grid should be of one class, and how much."""

  stride: AtLeast1 = 4  # pixels of a picture per pixel of the grid
  reach: AtLeast1 = 5  # grid pixels to each side of the window
  # Deviations of the Gaussian: grid pixels; colour from 0 to 1.
  sigma_xy: Annotated[float, Range(above=0)] = 3.0
  sigma_rgb: Annotated[float, Range(above=0)] = 0.1


def to_grid(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b g v c"]:
  """Means of squares of `stride` pixels; both sides must be multiples of it."""
  b, h, w, c = x.shape
  squares = x.reshape(b, h // stride, stride, w // stride, stride, c)
  return squares.mean(axis=(2, 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def window_sums(
  colour: Float[Array, "b h w 3"],
  real: Float[Array, "b h w 1"],
  values: Float[Array, "b h w c"],
  window: ColourWindow,
) -> Float[Array, "b h w c"]:
  """W · values: sums over a window, weighted by likeness.

      W_pq = exp(−|rgb_p − rgb_q|² / 2 σ_rgb² − |p − q|² / 2 σ_xy²)

  for p ≠ q, both real, not further than `window.reach` in x and in y; else 0.
  W is symmetric, so its gradient is itself and needs no memory of the window.

  Args:
    colour: from 0 to 1; has no gradient.
    real: 1, or 0 for what is no pixel.
    values: what is summed.
    window: the window; its `stride` is not used.
  """
  reach = window.reach
  side = np.arange(-reach, reach + 1)
  offsets = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
  offsets = offsets.reshape(-1, 2)
  offsets = offsets[(offsets != 0).any(axis=1)]
  space = np.exp(-(offsets**2).sum(axis=1) / (2 * window.sigma_xy**2))

  def widened(x):
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

  wide = [widened(x) for x in (colour, real, values)]

  def add(total, step):
    offset, weight = step

    def shifted(x):
      start = (0, reach + offset[0], reach + offset[1], 0)
      return jax.lax.dynamic_slice(x, start, (*total.shape[:3], x.shape[3]))

    other, is_real, theirs = map(shifted, wide)
    apart = jnp.square(colour - other).sum(axis=-1, keepdims=True)
    like = jnp.exp(-apart / (2 * window.sigma_rgb**2)) * weight * is_real
    return total + like * theirs, None

  total = jnp.zeros(values.shape, jnp.float32)
  steps = jnp.asarray(offsets), jnp.asarray(space, jnp.float32)
  total, _ = jax.lax.scan(add, total, steps)
  return total * real


def _sums_forward(colour, real, values, window):
  return window_sums(colour, real, values, window), (colour, real)


def _sums_backward(window, kept, gradient):
  colour, real = kept
  return None, None, window_sums(colour, real, gradient, window)


window_sums.defvjp(_sums_forward, _sums_backward)


def cut_losses(
  share: Float[Array, "b h w k"],
  colour: Float[Array, "b h w 3"],
  real: Float[Array, "b h w 1"],
  window: ColourWindow,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Normalised cut and dense CRF of soft classes, by the same weights W.

      cut_k = y_kᵀ W (1 − y_k),   ncut = Σ_k cut_k / (1ᵀ W y_k),
      crf = Σ_k cut_k / number of pixels

  Args:
    share: probabilities y of the classes of each grid pixel.
    colour: from 0 to 1.
    real: 1, or 0 for what is no pixel.
    window: the window.

  Returns:
    Both, means over the pictures that have a pixel. The normalised cut of a
    class is from 0 to 1. A class that is nowhere costs nothing.
  """
  share = share.astype(jnp.float32) * real
  sums = window_sums(
    colour, real, jnp.concatenate([share, real], axis=-1), window
  )
  degree = sums[..., -1:]
  # The cut is over real pixels: (1 − y) of one that is not is no 1.
  cut = (share * (degree - sums[..., :-1])).sum(axis=(1, 2))
  whole = (share * degree).sum(axis=(1, 2))
  count = real.sum(axis=(1, 2, 3))
  pictures = jnp.maximum((count > 0).sum(), 1)
  ncut = (cut / (whole + 1e-5)).sum() / pictures
  crf = (cut.sum(axis=1) / jnp.maximum(count, 1)).sum() / pictures
  return ncut, crf
