"""TransMIL: tiles on their grid, Nyström attention, and the whole in NumPy."""

import dataclasses
import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.models import mil
from wsiseq_jax.models.mil import grid
from wsiseq_jax.models.mil import nystrom as mil_nystrom

E, HEADS = 8, 2
CONFIG = mil.configure(
  "transmil", width=5, outputs=2, hidden=E, heads=HEADS, landmarks=64
)


def close(got, want, atol=1e-5):
  np.testing.assert_allclose(got, want, atol=atol, rtol=1e-4)


# ---- the grid


def test_z_order_keeps_squares_together():
  row, column = np.divmod(np.arange(64), 8)
  place = np.asarray(grid.z_order(jnp.asarray(column), jnp.asarray(row)))
  assert sorted(place) == list(range(64))
  # The first 16 are the square of 4 × 4.
  assert set(zip(row[place < 16], column[place < 16], strict=True)) == {
    (r, c) for r in range(4) for c in range(4)
  }
  far = grid.z_order(jnp.array([65534, 65535]), jnp.array([65534, 0]))
  assert far.tolist() == [2**32 - 4, 2**32 - 1]


def test_cells_of_tiles():
  grid_xy = jnp.array([[2.5, 7.0], [2.9999, 8.2], [4.0, 7.0], [-9.0, -9.0]])
  mask = jnp.array([True, True, True, False])
  found = grid.cells(grid_xy, mask)
  assert found[:3].tolist() == [[0, 0], [1, 1], [2, 0]]


def dense(x, row, column, kernels, biases):
  """x + convolutions over the whole canvas, cell by cell."""
  canvas = np.zeros((row.max() + 7, column.max() + 7, x.shape[1]))
  canvas[row + 3, column + 3] = x
  out = x + sum(biases)
  for kernel in kernels:
    reach = len(kernel) // 2
    for i, (r, c) in enumerate(zip(row + 3, column + 3, strict=True)):
      around = canvas[r - reach : r + reach + 1, c - reach : c + reach + 1]
      out[i] += (around * kernel).sum(axis=(0, 1))
  return out


def ppeg_parts(seed=0):
  rng = np.random.default_rng(seed)
  kernels = [rng.normal(size=(s, s, E)) for s in (7, 5, 3)]
  biases = [rng.normal(size=E) for _ in range(3)]
  named = {f"kernel{len(k)}": jnp.asarray(k, jnp.float32) for k in kernels}
  for k, b in zip(kernels, biases, strict=True):
    named[f"bias{len(k)}"] = jnp.asarray(b, jnp.float32)
  return kernels, biases, named


@functools.cache
def run_ppeg():
  graph = nnx.split(grid.Ppeg(E, nnx.Rngs(0)), nnx.Param)[0]

  @jax.jit
  def run(params, x, column, row, mask):
    places = jnp.where(mask, grid.z_order(column, row), grid.NOWHERE)
    order = jnp.argsort(places)
    module = nnx.merge(graph, params)
    out = module(x[order], places[order])
    back = jnp.argsort(order)
    return out[back], module.alone(x)

  return run


def tissue(count=40, seed=1):
  """Different cells of a ragged area, one of them far away."""
  rng = np.random.default_rng(seed)
  row, column = np.divmod(rng.permutation(90)[:count], 9)
  row[0], column[0] = 30, 21
  return rng.normal(size=(count, E)), row, column


def test_ppeg_is_three_convolutions_of_the_canvas():
  x, row, column = tissue()
  kernels, biases, params = ppeg_parts()
  mask = np.ones(len(x), bool)
  inputs = jnp.asarray(x, jnp.float32), jnp.asarray(column), jnp.asarray(row)
  found, alone = run_ppeg()(params, *inputs, mask)
  close(found, dense(x, row, column, kernels, biases))
  # The tile that is far away has no neighbours.
  close(found[0], alone[0])
  # Padded tiles lie nowhere, though they have a cell.
  mask[20:] = False
  found, _ = run_ppeg()(params, *inputs, mask)
  part = dense(x[:20], row[:20], column[:20], kernels, biases)
  close(found[:20], part)


def test_tiles_that_share_a_cell_are_averaged():
  x, row, column = tissue(40)
  row[1], column[1] = row[2], column[2]
  kernels, biases, params = ppeg_parts()
  found, _ = run_ppeg()(
    params,
    jnp.asarray(x, jnp.float32),
    jnp.asarray(column),
    jnp.asarray(row),
    np.ones(40, bool),
  )
  mean = x[1:].copy()
  mean[1] = x[1:3].mean(axis=0)
  want = dense(
    np.concatenate([x[:1], mean[1:]]),
    np.delete(row, 1),
    np.delete(column, 1),
    kernels,
    biases,
  )
  close(np.delete(np.asarray(found), [1, 2], axis=0), np.delete(want, 1, 0))
  # Both get the same added.
  close(found[1] - x[1], found[2] - x[2])
  close(found[1] - x[1], want[1] - x[1:3].mean(axis=0))


def test_gradient_of_the_convolution():
  """The backward pass is written by hand; against that of shifted canvases."""
  x, row, column = tissue(12, seed=3)
  place = jnp.sort(grid.z_order(jnp.asarray(column), jnp.asarray(row)))
  kernel = np.random.default_rng(4).normal(size=(49, E)).astype(np.float32)
  weight = np.random.default_rng(5).normal(size=(12, E)).astype(np.float32)
  table = grid.neighbours(place)
  x = jnp.asarray(x, jnp.float32)

  def by_hand(x, kernel):
    return jnp.sum(weight * grid.convolve(x, kernel, table))

  def plain(x, kernel):
    parts = jnp.concatenate([x, jnp.zeros((1, E))])[table]
    return jnp.einsum("me,ke,kme->", weight, kernel, parts)

  got = jax.jit(jax.grad(by_hand, (0, 1)))(x, kernel)
  want = jax.jit(jax.grad(plain, (0, 1)))(x, kernel)
  for a, b in zip(got, want, strict=True):
    close(a, b, atol=1e-4)


# ---- Nyström attention


def attention_of(cfg):
  """Random parameters, and what all tokens and the first one get."""
  rng = np.random.default_rng(2)
  module = nnx.eval_shape(
    lambda: mil_nystrom.NystromAttention(cfg, nnx.Rngs(0))
  )
  graph, shapes = nnx.split(module, nnx.Param)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(scale=0.5, size=x.shape), jnp.float32),
    nnx.to_pure_dict(shapes),
  )

  @jax.jit
  def run(params, x, valid):
    module = nnx.merge(graph, params)
    return module(x, valid, None), *module.first_token(x, valid, None)

  return params, run


def normed(p, x):
  x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
  return x * np.asarray(p["scale"]) + np.asarray(p["bias"])


def heads(p, x):
  return (x @ np.asarray(p["kernel"], np.float64)).reshape(len(x), HEADS, -1)


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def convolved(v, kernel):
  padded = np.pad(v, ((16, 16), (0, 0), (0, 0)))
  return sum(
    np.asarray(kernel)[t][None, :, None] * padded[t : t + len(v)]
    for t in range(33)
  )


def nystrom(p, x, landmarks, iterations=None):
  """In NumPy; the true pseudo-inverse where no iterations are named."""
  x = normed(p["norm"], x)
  q, k, v = (heads(p[n], x) for n in ("query", "key", "value"))
  q = q / np.sqrt(q.shape[-1])
  out = np.zeros_like(v)
  share = np.zeros(len(x))
  used = min(landmarks, len(x))
  segment = np.arange(len(x)) * used // len(x)
  for h in range(HEADS):
    ql, kl = (
      np.stack([a[segment == s, h].mean(axis=0) for s in range(used)])
      for a in (q, k)
    )
    outer, inner = softmax(q[:, h] @ kl.T), softmax(ql @ kl.T)
    if iterations is None:
      z = np.linalg.pinv(inner)
    else:
      one = np.eye(used)
      z = inner.T / (inner.sum(axis=0).max() * inner.sum(axis=1).max())
      for _ in range(iterations):
        xz = inner @ z
        z = z @ (13 * one - xz @ (15 * one - xz @ (7 * one - xz))) / 4
    weights = outer @ z @ softmax(ql @ k[:, h].T)
    out[:, h] = weights @ v[:, h]
    share += weights[0] / HEADS
  out = (out + convolved(v, p["kernel"])).reshape(len(x), -1)
  w, b = (np.asarray(p["out"][n], np.float64) for n in ("kernel", "bias"))
  return out @ w + b, share


@pytest.mark.parametrize("landmarks, chunk", [(6, 8), (64, 4096)])
def test_nystrom_against_numpy(landmarks, chunk):
  """More tokens than landmarks, in chunks; and the other way round."""
  cfg = dataclasses.replace(CONFIG, landmarks=landmarks, chunk_tiles=chunk)
  p, run = attention_of(cfg)
  x = np.random.default_rng(3).normal(size=(27, E))
  want, share = nystrom(p, x, landmarks, cfg.pinv_iterations)
  padded = np.concatenate([x, np.full((5, E), 3.0)]).astype(np.float32)
  valid = np.arange(32) < 27
  found, first, weights = run(p, jnp.asarray(padded), jnp.asarray(valid))
  close(found[:27], want, atol=1e-4)
  close(weights[:27], share, atol=1e-4)
  assert not np.any(weights[27:])
  close(first[0], found[0])


def test_nystrom_is_exact_where_every_token_is_a_landmark():
  """As far as the pseudo-inverse has converged."""
  cfg = dataclasses.replace(CONFIG, pinv_iterations=30)
  p, run = attention_of(cfg)
  # Queries and keys alike and far apart: a matrix that can be inverted.
  p["query"]["kernel"] = p["key"]["kernel"] = 2.0 * jnp.eye(E)
  x = np.random.default_rng(8).normal(size=(4, E))
  y = normed(p["norm"], x)
  q, k, v = (heads(p[n], y) for n in ("query", "key", "value"))
  exact = softmax(np.einsum("nhc,mhc->hnm", q, k) / np.sqrt(E // HEADS))
  assert np.linalg.cond(exact).max() < 200
  out = np.einsum("hnm,mhc->nhc", exact, v) + convolved(v, p["kernel"])
  want = out.reshape(4, E) @ np.asarray(p["out"]["kernel"])
  want = want + np.asarray(p["out"]["bias"])
  close(nystrom(p, x, 64)[0], want)
  found, _, weights = run(p, jnp.asarray(x, jnp.float32), jnp.ones(4, bool))
  close(found, want, atol=1e-3)
  close(weights, exact[:, 0].mean(axis=0), atol=1e-3)


def test_pseudo_inverse_of_matrices_with_empty_rows():
  rng = np.random.default_rng(0)
  x = np.zeros((2, 5, 5))
  x[:, :3, :3] = softmax(3 * rng.normal(size=(2, 3, 3)) + 4 * np.eye(3))
  found = mil_nystrom.pseudo_inverse(jnp.asarray(x, jnp.float32), 12)
  close(found, np.linalg.pinv(x), atol=1e-4)


def test_convolution_along_a_sequence_longer_than_a_block():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(33, HEADS)).astype(np.float32)
  run = jax.jit(mil_nystrom.convolve_sequence)
  for count in (300, 3):
    v = rng.normal(size=(count, HEADS, 3)).astype(np.float32)
    padded = np.pad(v, ((16, 16), (0, 0), (0, 0)))
    close(run(padded, kernel), convolved(v, kernel), atol=1e-4)


# ---- the model


def test_the_model_against_numpy():
  """Tokens in the order of the Z-curve, both layers and PPEG between."""
  x, row, column = tissue(14, seed=6)
  x = x[:, :5]
  cfg = dataclasses.replace(CONFIG, landmarks=6)
  rng = np.random.default_rng(11)
  shapes = jax.eval_shape(lambda: mil.init(jax.random.key(0), cfg))
  p = jax.tree.map(
    lambda v: rng.normal(scale=0.4, size=v.shape).astype(np.float32), shapes
  )
  order = np.argsort(
    grid.z_order(
      jnp.asarray(column - column.min()), jnp.asarray(row - row.min())
    )
  )
  h = np.maximum(x @ p["embed"]["kernel"] + p["embed"]["bias"], 0)[order]
  tokens = np.concatenate([p["cls_token"][None], h])
  tokens = tokens + nystrom(p["first"], tokens, 6, 6)[0]
  position = p["position"]
  tiles = dense(
    tokens[1:],
    row[order],
    column[order],
    [position[f"kernel{s}"] for s in (7, 5, 3)],
    [position[f"bias{s}"] for s in (7, 5, 3)],
  )
  tokens = np.concatenate([tokens[:1], tiles])
  more, share = nystrom(p["second"], tokens, 6, 6)
  last = normed(p["norm"], (tokens + more)[:1])[0]
  want = last @ p["classifier"]["kernel"] + p["classifier"]["bias"]
  share = np.maximum(share[1:], 0)

  bag = mil.Bag(
    jnp.asarray(x, jnp.float32),
    jnp.ones(14, bool),
    jnp.asarray(np.stack([column, row], axis=1) + 5.0, jnp.float32),
  )
  bag = mil.pad(bag, 17)
  bag = bag.replace(features=bag.features.at[14:].set(7.0))
  found = jax.jit(lambda bag: mil.apply(p, cfg, bag))(bag)
  close(found.logits, want, atol=1e-4)
  attention = np.zeros(14)
  attention[order] = share / share.sum()
  close(found.attention[:14, 0], attention, atol=1e-4)
