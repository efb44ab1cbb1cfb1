"""Cutting clips into patches, whatever the platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.models import tokens


@pytest.mark.parametrize("patch", [(2, 8, 8), (1, 4, 16), (4, 16, 4)])
def test_moves_for_tpu_give_the_same_patches(patch):
  clips = jnp.arange(2 * 4 * 16 * 32 * 3.0).reshape(2, 4, 16, 32, 3)
  expected = tokens.patchify(clips, patch)
  np.testing.assert_array_equal(
    tokens.patchify_in_lanes(clips, patch), expected
  )


def test_platform_is_that_of_the_program():
  clips = jax.ShapeDtypeStruct((1, 2, 8, 8, 3), jnp.float32)
  cut = jax.jit(lambda x: tokens.patchify(x, (2, 8, 8)))
  for platform, has_barrier in (("cpu", False), ("tpu", True)):
    text = cut.trace(clips).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == has_barrier
