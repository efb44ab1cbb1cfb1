"""Random keys of a network's layers."""

import jax
from flax import nnx
from jaxtyping import Array, Key


class Rngs(nnx.Rngs):
  """The keys of `nnx.Rngs(params=seed)`, counted by Python.

  Flax counts in an array. While JAX traces, each layer then looks through all
  that was traced before it: that was a tenth of the time in which a small
  training starts.
  """

  def __init__(self, seed: Key[Array, ""] | int):
    is_key = isinstance(seed, jax.Array)
    self.params = _Stream(seed if is_key else jax.random.key(seed))


class _Stream:
  def __init__(self, key):
    self._key, self._count = key, 0

  def __call__(self):
    key = jax.random.fold_in(self._key, self._count)
    self._count += 1
    return key
