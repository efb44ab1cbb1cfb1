"""The mean field against all pairs of places, and the rule for labels."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.segment import crf

# Narrow enough to matter on pictures of twenty places.
SETTINGS = {
  "near_px": 5.0, "far_px": 20.0, "colour": 12.0, "far_weight": 4.0,
  "iterations": 4,
}  # fmt: skip


def picture(h=11, w=19, seed=0):
  """Two colours with noise, the border slanted."""
  rng = np.random.default_rng(seed)
  right = np.arange(w)[None] > 6 + np.arange(h)[:, None] / 2
  colours = np.where(right[..., None], 180.0, 120.0)
  return right, (colours + rng.normal(0, 5, (h, w, 3))).astype(np.float32)


def all_pairs(unary, colours, inside, settings):
  """Probabilities of one problem, pair by pair."""
  h, w, m = unary.shape
  places = [p for p in np.ndindex(h, w) if inside[p]]
  n = len(places)
  near, far = np.zeros((n, n)), np.zeros((n, n))
  s_near, s_far = settings.near_px / 4, settings.far_px / 4
  for i, p in enumerate(places):
    for j, q in enumerate(places):
      dy, dx = p[0] - q[0], p[1] - q[1]
      near[i, j] = np.exp(-(dy * dy + dx * dx) / (2 * s_near**2))
      if max(abs(dy), abs(dx)) <= settings.window * s_far:
        d = colours[p].astype(np.float64) - colours[q]
        far[i, j] = np.exp(
          -(dy * dy + dx * dx) / (2 * s_far**2)
          - (d @ d) / (2 * settings.colour**2)
        )
  for kernel in (near, far):
    total = kernel.sum(axis=1)
    kernel /= np.sqrt(np.outer(total, total))
  rows = np.array([unary[p] for p in places], np.float64)

  def softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)

  q = softmax(-rows)
  for _ in range(settings.iterations):
    message = settings.near_weight * near @ q + settings.far_weight * far @ q
    q = softmax(message - rows)
  found = np.zeros((h, w, m))
  for place, one in zip(places, q, strict=True):
    found[place] = one
  return found


@pytest.mark.parametrize("window", [100.0, 0.8])
def test_the_mean_field_is_that_of_all_pairs(window):
  settings = crf.DenseCrf(**SETTINGS, window=window)
  _, colours = picture()
  rng = np.random.default_rng(1)
  inside = np.ones(colours.shape[:2], bool)
  inside[:, -2:] = False
  unary = rng.uniform(0, 2, (2, *inside.shape, 3)).astype(np.float32)
  found = crf.mean_field(
    jnp.asarray(unary), jnp.asarray(colours), jnp.asarray(inside), settings
  )
  for one, expected in zip(np.asarray(found), unary, strict=True):
    expected = all_pairs(expected, colours, inside, settings)
    np.testing.assert_allclose(one[inside], expected[inside], atol=1e-5)


def test_the_unary_by_hand():
  labels = jnp.array([[0, 2]])
  found = crf.label_unary(labels, jnp.array([True, False, True, True]), 0.7)
  np.testing.assert_allclose(found[0, 0, 0], -np.log(0.7), rtol=1e-6)
  np.testing.assert_allclose(found[0, 0, 2], -np.log(0.15), rtol=1e-6)
  np.testing.assert_allclose(found[0, 1, 2], -np.log(0.7), rtol=1e-6)
  assert found[0, 0, 1] == found[0, 1, 1] == 1e9


def mine(scores, colours, inside=None, **settings):
  if inside is None:
    inside = np.ones(scores.shape[:2], bool)
  arrays = (jnp.asarray(a) for a in (scores, colours, inside))
  return crf.mine(*arrays, 0.5, 0.25, crf.DenseCrf(**{**SETTINGS, **settings}))


def test_a_wrong_corner_is_put_right_by_its_colour():
  right, colours = picture()
  scores = np.where(right, 0.9, 0.05)[..., None].astype(np.float32)
  scores[:3, :3] = 0.9  # on the left
  probability, classes = mine(scores, colours)
  np.testing.assert_array_equal(classes, right)
  assert probability.shape == (11, 19, 1)
  assert probability[0, 0, 0] < 0.2 and probability[5, 17, 0] > 0.8


def test_scores_between_the_thresholds_are_ignored():
  right, colours = picture()
  scores = np.where(right, 0.9, 0.3)[..., None].astype(np.float32)
  _, classes = mine(scores, colours)
  np.testing.assert_array_equal(classes, np.where(right, 1, 255))


def test_labels_are_those_of_the_thresholds_where_the_crf_weighs_nothing():
  # Of two classes the higher one; from the threshold on, not above it.
  scores = np.array([[[0.5, 0.2], [0.1, 0.25], [0.2, 0.2], [0.6, 0.7]]])
  found, classes = mine(
    scores.astype(np.float32),
    np.zeros((1, 4, 3), np.float32),
    near_weight=0.0,
    far_weight=0.0,
  )
  assert classes.tolist() == [[1, 255, 0, 2]]
  np.testing.assert_allclose(found[0, 0], [0.7, 0.15], rtol=1e-5)


def test_a_picture_without_a_class_is_background():
  _, colours = picture()
  probability, classes = mine(np.zeros((11, 19, 2), np.float32), colours)
  assert not np.asarray(classes).any() and not np.asarray(probability).any()


def test_padding_changes_nothing():
  right, colours = picture()
  scores = np.where(right, 0.9, 0.3)[..., None].astype(np.float32)
  alone, _ = mine(scores, colours)
  room = ((0, 6), (0, 5), (0, 0))
  inside = np.pad(np.ones(right.shape, bool), room[:2])
  padded, _ = mine(
    np.pad(scores, room, constant_values=0.9), np.pad(colours, room), inside
  )
  np.testing.assert_allclose(padded[:11, :19], alone, atol=1e-5)


def test_a_class_that_the_picture_does_not_have_is_never_found():
  right, colours = picture()
  scores = np.where(right[..., None], [0.9, 0.0], [0.1, 0.0])
  probability, classes = mine(scores.astype(np.float32), colours)
  assert set(np.unique(classes)) == {0, 1}
  assert not np.asarray(probability[..., 1]).any()
