"""Tiny bag models with random parameters, compiled once for all tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from wsiseq_jax.models import mil

D, TILES = 6, 21
# Chunks of 8 and a rest.
SMALL = {
  "hidden": 8,
  "attention_width": 4,
  "top_tiles": 3,
  "extremes": 2,
  "mlp_hidden": (6, 5),
  "instance_tiles": 4,
  "query_width": 4,
  "heads": 2,
  "landmarks": 6,
  "chunk_tiles": 8,
}


def config(name, **changes):
  # Chunks within transmil are tested with it: many programs to compile.
  if name == "transmil":
    changes.setdefault("chunk_tiles", 64)
  mine = {k: v for k, v in SMALL.items() if k in mil.settings(name)}
  return mil.configure(name, **{"width": D, "outputs": 3, **mine, **changes})


@functools.cache
def params_of(cfg):
  """Random biases too: they start at zero, where a wrong one does nothing."""
  rng = np.random.default_rng(7)
  shapes = jax.eval_shape(lambda: mil.init(jax.random.key(0), cfg))
  return jax.tree.map(
    lambda x: rng.normal(scale=0.4, size=x.shape).astype(np.float32), shapes
  )


@functools.cache
def forward(cfg):
  params = params_of(cfg)
  return jax.jit(lambda bag: mil.apply(params, cfg, bag))


@functools.cache
def auxiliary(cfg):
  params = params_of(cfg)
  return jax.jit(
    lambda output, onehot: mil.auxiliary_loss(params, cfg, output, onehot)
  )


def bag_of(tiles=TILES, seed=0):
  rng = np.random.default_rng(seed)
  place = rng.permutation(40)[:tiles]
  return mil.Bag(
    jnp.asarray(rng.normal(size=(tiles, D)), jnp.float32),
    jnp.ones(tiles, bool),
    jnp.asarray(np.stack([place % 8, place // 8], axis=1), jnp.float32),
  )


def with_garbage(bag, size):
  """Padded to a size, with content where it is not real."""
  padded = mil.pad(bag, size)
  garbage = ~padded.mask[:, None]
  return padded.replace(
    features=jnp.where(garbage, 7.0, padded.features),
    grid_xy=jnp.where(garbage, 3.0, padded.grid_xy),
  )


def close(got, want, **more):
  np.testing.assert_allclose(got, want, **{"atol": 1e-5, "rtol": 1e-5, **more})
