"""Times as vectors: by hand, and what must not happen to them."""

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.models import time_embedding as embedding


def test_values_by_hand():
  # Rates 1/2 and 1/2 * (2/200)^(1/2) = 1/20.
  found = embedding.sinusoid(jnp.array([3.0, -1.0]), 4, 2.0, 200.0)
  wanted = [
    [np.cos(1.5), np.cos(0.15), np.sin(1.5), np.sin(0.15)],
    [np.cos(0.5), np.cos(0.05), -np.sin(0.5), -np.sin(0.05)],
  ]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_reference_for_frames():
  found = embedding.sinusoid(jnp.array(7.0), 384, *embedding.periods("frame"))
  rate = np.exp(-np.log(100) * np.arange(192) / 192)
  wanted = np.concatenate([np.cos(7 * rate), np.sin(7 * rate)])
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_time_is_not_cut_to_whole_numbers():
  """A jittered frame 2 is 1.99, and that is nearer to 2 than to 1."""
  one, almost, two = (
    np.asarray(embedding.sinusoid(jnp.array(t), 64, 1.0, 100.0))
    for t in (1.0, 1.99, 2.0)
  )
  assert np.linalg.norm(almost - two) < 0.05 * np.linalg.norm(one - two)
  assert not np.array_equal(almost, one)


@pytest.mark.parametrize(
  ("unit", "near", "far"),
  [("year", 0.1, 8.0), ("s", 0.02, 3.0), ("um", 2.0, 8000.0)],
)
def test_each_unit_tells_its_short_and_its_long_times_apart(unit, near, far):
  """Neighbours differ, and so do times that lie as far apart as they get."""
  span = embedding.periods(unit)

  def vector(t):
    return np.asarray(embedding.sinusoid(jnp.array(t), 64, *span))

  assert np.linalg.norm(vector(0.0) - vector(near)) > 0.3
  # The slowest half has not come round: far times are not taken for near ones.
  assert np.linalg.norm(vector(far) - vector(far / 2)) > 1.0
  rates = far / np.array(span[1])
  assert rates < 1


def test_micrometres_are_not_read_as_years():
  assert embedding.periods("um")[1] > 100 * embedding.periods("year")[1]


def test_periods_can_be_chosen():
  assert embedding.periods("um", 4.0, 500.0) == (4.0, 500.0)
  with pytest.raises(ValueError, match=r"time_longest = 1 .*time_shortest = 2"):
    embedding.periods("um", longest=1.0)
  with pytest.raises(ValueError, match="time_unit = 'week'.*'year'"):
    embedding.periods("week")


def test_learned_layers_follow():
  module = embedding.TimeEmbedding(8, 1.0, 100.0, True, nnx.Rngs(0))
  raw = embedding.sinusoid(jnp.array([2.0]), 8, 1.0, 100.0)
  hidden = raw @ module.first.kernel[...]
  hidden = hidden / (1 + jnp.exp(-hidden))
  wanted = hidden @ module.second.kernel[...]
  np.testing.assert_allclose(module(jnp.array([2.0])), wanted, atol=1e-5)
  plain = embedding.TimeEmbedding(8, 1.0, 100.0, False, nnx.Rngs(0))
  np.testing.assert_array_equal(plain(jnp.array([2.0])), raw)


def test_odd_widths_are_refused():
  with pytest.raises(ValueError, match="even width, not 7"):
    embedding.TimeEmbedding(7, 1.0, 100.0, True, nnx.Rngs(0))
