"""Rules of RPNet: by hand, and against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wsiseq_jax import parallel
from wsiseq_jax.segment import prototypes

NAN = float("nan")
# Two pictures of class 0, one of class 1, one of both, two certain negatives,
# one that nothing is known of, one that only fills the batch.
LABELS = np.array(
  [[1, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0], [NAN, NAN], [1, 0]],
  np.float32,
)
REAL = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)


partners_of = jax.jit(prototypes.draw_partners)


def draw(seed, labels=LABELS, real=REAL):
  found = partners_of(jax.random.key(seed), labels, real)
  return prototypes.Partners(*map(np.asarray, found))


def test_a_partner_is_another_picture_of_the_drawn_class():
  seen = set()
  for seed in range(30):
    found = draw(seed)
    for i, (row, shared) in enumerate(
      zip(found.row, found.shared, strict=True)
    ):
      if shared < 0:
        assert i in (4, 5, 6) and row == i
        continue
      assert row != i and LABELS[row, shared] == 1 == LABELS[i, shared]
      assert REAL[row]
      seen.add((i, int(row)))
    assert set(found.negative) <= {4, 5}
    assert found.has_negative.all()
  # Every pair that there can be is drawn.
  assert {(0, 1), (0, 3), (2, 3), (3, 0), (3, 1), (3, 2)} <= seen


def test_alone_in_its_class_a_picture_is_its_own_partner():
  found = draw(0, LABELS[2:3], REAL[:1])
  assert found.row.tolist() == [0] and found.shared.tolist() == [1]
  assert found.has_negative.tolist() == [0.0]


def test_partners_depend_on_the_key_alone_whatever_the_devices():
  spec = parallel.batch_sharding(parallel.make_mesh())
  split = partners_of(
    jax.random.key(3), jax.device_put(LABELS, spec), jax.device_put(REAL, spec)
  )
  for one, other in zip(draw(3), split, strict=True):
    np.testing.assert_array_equal(one, other)


def test_published_mask_is_where_any_channel_is_high():
  # Channels: 10 at most; 1 at most; negative throughout (at most -2).
  features = jnp.array([[[[10.0, 0, -2], [2, 0, -4], [9, 1, -3]]]])
  valid = jnp.array([[[1.0, 1, 0]]])
  found = prototypes.published_mask(features, valid)
  # -4 / -2 = 2: the negative channel is above 0.3 everywhere.
  assert found.tolist() == [[[1, 1, 0]]]
  found = prototypes.published_mask(features[..., :2], valid)
  assert found.tolist() == [[[1, 0, 0]]]


def test_cam_mask_is_of_the_shared_class_within_the_picture():
  cam = np.zeros((3, 1, 3, 2), np.float32)
  cam[..., 0] = [-1, 5, 2]
  cam[..., 1] = [4, 1, 40]
  valid = jnp.array([[[1.0, 1, 0]]] * 3)
  found = prototypes.cam_mask(jnp.array(cam), jnp.array([0, 1, -1]), valid)
  assert found.tolist() == [[[0, 1, 0]], [[1, 0, 0]], [[0, 0, 0]]]


def test_a_part_is_a_random_half():
  mask = np.zeros((1, 40, 40), np.float32)
  mask[:, :30] = 1
  part = np.asarray(prototypes.part_of(jax.random.key(0), jnp.array(mask)))
  assert set(np.unique(part)) == {0, 1}
  assert part[:, 30:].sum() == 0
  assert 0.45 < part.sum() / mask.sum() < 0.55


def test_an_empty_mask_is_like_nothing():
  features = jnp.ones((1, 2, 2, 3))
  vector = prototypes.prototype(features, jnp.zeros((1, 2, 2)))
  assert not np.any(vector)
  assert not np.any(prototypes.cosine(features, vector))
  times = prototypes.factor(jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 2)))
  assert not np.any(times)

  @jax.jit
  @jax.grad
  def slope(features):
    vector = prototypes.prototype(features, jnp.zeros((1, 2, 2)))
    return prototypes.cosine(features, vector).sum()

  assert np.isfinite(slope(jnp.zeros((1, 2, 2, 3)))).all()


def test_cosine_by_hand():
  features = jnp.array([[[[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]]]])
  found = prototypes.cosine(features, jnp.array([[0.0, 5.0]]))
  np.testing.assert_allclose(found, [[[0.8, -1.0, 0.0]]], atol=1e-6)


def slow_smooth(x):
  places = np.arange(-2, 3)
  kernel = np.exp(-(places[:, None] ** 2 + places**2) / 18)
  kernel /= kernel.sum()
  padded = np.pad(x, 2)
  found = np.zeros_like(x)
  for i, j in np.ndindex(x.shape):
    found[i, j] = (padded[i : i + 5, j : j + 5] * kernel).sum()
  return found


def slow_factor(similarity, valid):
  similarity = np.maximum(similarity, 0) * valid
  return slow_smooth(1.3 * similarity / (similarity.max() + 1e-5))


def test_factor_against_loops():
  rng = np.random.default_rng(0)
  similarity = rng.normal(size=(2, 6, 7)).astype(np.float32)
  valid = np.ones((2, 6, 7), np.float32)
  valid[1, 4:] = 0
  found = prototypes.factor(jnp.array(similarity), jnp.array(valid))
  for one, s, v in zip(found, similarity, valid, strict=True):
    np.testing.assert_allclose(one, slow_factor(s, v), atol=1e-6)
  # A map without any structure is raised to 1.3 where the Gaussian is inside.
  same = prototypes.factor(jnp.full((1, 5, 5), 0.2), jnp.ones((1, 5, 5)))
  assert abs(float(same[0, 2, 2]) - 1.3) < 1e-3


def slow_norm(cam, valid):
  cam = np.maximum(cam, 0) * valid[..., None]
  return np.maximum(cam - 1e-5, 0) / (cam.max(axis=(0, 1)) + 1e-5)


def test_disagreement_against_loops():
  rng = np.random.default_rng(1)
  one, other = rng.normal(size=(2, 8, 3, 4, 2)).astype(np.float32)
  valid = (rng.random((8, 3, 4)) < 0.8).astype(np.float32)
  found = prototypes.disagreement(
    *map(jnp.array, (one, other, LABELS, valid, REAL))
  )
  total = 0.0
  for row in range(8):
    gap = slow_norm(one[row], valid[row]) - slow_norm(other[row], valid[row])
    for c in range(2):
      if LABELS[row, c] == 1 and REAL[row]:
        total += (gap[..., c] ** 2).sum()
  assert float(found) == pytest.approx(total / (7 * 2 * 12), rel=1e-5)


def test_pictures_without_class_disagree_about_nothing():
  one = jnp.ones((2, 2, 2, 1))
  valid, real = jnp.ones((2, 2, 2)), jnp.ones(2)
  found = prototypes.disagreement(one, 0 * one, jnp.zeros((2, 1)), valid, real)
  assert float(found) == 0


def test_classification_by_hand():
  logits = jnp.array([[0.0, 2.0], [-1.0, 5.0], [9.0, 9.0]])
  labels = jnp.array([[1.0, 0.0], [0.0, NAN], [0.0, 0.0]])
  real = jnp.array([1.0, 1.0, 0.0])
  each = [np.log(2), np.log1p(np.exp(2.0)), np.log1p(np.exp(-1.0))]
  found = prototypes.classification(logits, labels, real)
  assert float(found) == pytest.approx(np.mean(each), rel=1e-6)
  nothing = prototypes.classification(logits, labels * NAN, real)
  assert float(nothing) == 0


def test_gradients():
  rng = np.random.default_rng(2)
  features = jnp.asarray(rng.normal(size=(2, 3, 3, 4)), jnp.float32)
  mask = jnp.asarray(rng.random((2, 3, 3)) < 0.5, jnp.float32)
  valid = jnp.ones((2, 3, 3))

  @jax.jit
  def re_activated(features):
    vector = prototypes.prototype(features, mask)
    likeness = prototypes.cosine(features, vector)
    return jnp.sum(jnp.sin(prototypes.factor(likeness, valid)))

  check_grads(re_activated, (features,), 1, ["rev"], atol=2e-2, rtol=2e-2)

  @jax.jit
  def gap(cam):
    return prototypes.disagreement(
      cam, cam[::-1] ** 2, jnp.ones((2, 4)), valid, jnp.ones(2)
    )

  check_grads(gap, (features,), 1, ["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)
