import jax
import numpy as np
import pytest
from flax import nnx

from wsiseq_jax.models.rngs import Rngs


@pytest.mark.parametrize("seed", [3, jax.random.key(5)])
def test_keys_are_those_of_flax(seed):
  ours, theirs = Rngs(seed), nnx.Rngs(params=seed)
  for _ in range(3):
    a, b = ours.params(), theirs.params()
    np.testing.assert_array_equal(*map(jax.random.key_data, (a, b)))
  layers = [nnx.Linear(2, 3, rngs=rngs) for rngs in (ours, theirs)]
  np.testing.assert_array_equal(*(layer.kernel[...] for layer in layers))
