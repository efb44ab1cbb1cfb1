"""Losses on clicks: values by hand, a slow reference, gradients, odd inputs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from wsiseq_jax import parallel
from wsiseq_jax.segment import clicks

IGNORE = clicks.IGNORE
NEAR = clicks.ColourWindow(stride=1, reach=2, sigma_xy=1.5, sigma_rgb=0.3)


def discs(points, size=4, radius=1.0):
  points = jnp.asarray([points], jnp.float32).reshape(1, -1, 3)
  return np.asarray(clicks.disc_labels(points, size, size, radius)[0])


def test_a_disc_is_the_pixels_whose_middle_is_near():
  # Whole numbers are middles of pixels.
  found = discs([[1, 1, 2]])
  want = np.full((4, 4), IGNORE)
  want[1, :3] = want[:3, 1] = 2
  assert found.tolist() == want.tolist()


def test_the_nearest_click_wins_and_a_tie_is_nobodys():
  found = discs([[0, 0, 1], [2, 0, 0]], radius=2.0)[0]
  assert found.tolist() == [1, IGNORE, 0, 0]


def test_equal_clicks_agree_and_contradicting_ones_say_nothing():
  assert discs([[1, 1, 1]] * 2)[1, 1] == 1
  twice = discs([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
  assert (twice == IGNORE).all()


def test_padding_and_odd_places_are_no_clicks():
  for point in ([1, 1, -1], [math.nan, 1, 1], [math.inf, 1, 1]):
    assert (discs([point]) == IGNORE).all()
  assert (discs([]) == IGNORE).all()
  # Outside, a disc reaches in by what it covers.
  assert discs([[-1, 0, 1]])[0].tolist() == [1, *[IGNORE] * 3]
  assert (discs([[-9, 0, 1]]) == IGNORE).all()


def test_partial_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[[[0.25, 0.75], [0.5, 0.5], [0.1, 0.9]]]]))
  labels = jnp.array([[[1, 0, IGNORE]]])
  want = -(math.log(0.75) + math.log(0.5)) / 2
  found = clicks.partial_cross_entropy(logits, labels)
  np.testing.assert_allclose(found, want, rtol=1e-6)


def test_no_known_pixel_costs_and_teaches_nothing():
  labels = jnp.full((1, 2, 2), IGNORE)
  value, slope = jax.value_and_grad(clicks.partial_cross_entropy)(
    jnp.ones((1, 2, 2, 3)), labels
  )
  assert value == 0 and not np.asarray(slope).any()


def test_image_loss_by_hand():
  share = jnp.array([[[[0.2, 0.8, 0.0], [0.9, 0.1, 0.0], [0, 1.0, 0.0]]]])
  real = jnp.array([[[True, True, False]]])  # the third is padding
  labels = jnp.array([[1.0, math.nan]])
  np.testing.assert_allclose(
    clicks.image_loss(share, labels, real), -math.log(0.8), rtol=1e-5
  )
  labels = jnp.array([[0.0, math.nan]])
  np.testing.assert_allclose(
    clicks.image_loss(share, labels, real), -math.log(0.2), rtol=1e-5
  )
  unknown = jnp.full((1, 2), math.nan)
  assert clicks.image_loss(share, unknown, real) == 0
  assert clicks.image_loss(share, labels, jnp.zeros_like(real)) == 0


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
  sums = clicks.window_sums(colour, real, share, NEAR)
  ncut, crf = clicks.cut_losses(share, colour, real, NEAR)
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
  near = clicks.ColourWindow(reach=2, sigma_xy=1.0, sigma_rgb=0.3)
  hard = jnp.array([[[[1.0, 0], [0, 1]]]])
  one = jnp.ones((1, 1, 2, 1))
  grey = jnp.full((1, 1, 2, 3), 0.5)
  ncut, crf = clicks.cut_losses(hard, grey, one, near)
  # W = exp(-1/2) between them; each class is cut from all it touches.
  np.testing.assert_allclose([ncut, crf], [2.0, math.exp(-0.5)], rtol=1e-4)
  parted = jnp.array([[[[0.0] * 3, [1.0] * 3]]])
  _, crf = clicks.cut_losses(hard, parted, one, near)
  assert crf < 1e-6


def test_one_class_everywhere_and_no_pixel_cost_nothing():
  share, colour, real = example()
  one = jnp.zeros_like(share).at[..., 0].set(1.0)
  for args in ((one, colour, real), (share, colour, 0 * real)):
    np.testing.assert_allclose(clicks.cut_losses(*args, NEAR), 0, atol=1e-6)


def test_gradients_of_cuts():
  share, colour, real = example(1, (1, 4, 4))

  @jax.jit
  def value(share):
    ncut, crf = clicks.cut_losses(share, colour, real, NEAR)
    return ncut + 3 * crf

  check_grads(value, (share,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def batch_of(seed=0, rows=8, side=16):
  """Pictures: certain negative, padded, without clicks, filling."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, (rows, 2)).astype(np.float32)
  labels[0] = 0
  labels[1] = [1, math.nan]
  points = rng.uniform(0, side, (rows, 3, 3)).astype(np.float32)
  points[..., 2] = rng.integers(-1, 3, (rows, 3))
  points[2, :, 2] = -1
  size = np.full((rows, 2), side, np.int32)
  size[3] = [8, 12]
  found = {
    "pixels": rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
    "labels": labels,
    "tissue": (rng.random((rows, side, side)) < 0.9).astype(np.uint8),
    "points": points,
    "size": size,
    "mask": np.array([1] * (rows - 1) + [0], np.float32),
  }
  return {name: jnp.asarray(value) for name, value in found.items()}


def logits_of(seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(8, 16, 16, 3)), jnp.float32)


SETTINGS = clicks.ClickLoss(
  radius_px=2.0, crf=0.01, window=clicks.ColourWindow(stride=4, reach=2)
)


def test_certain_background():
  batch = batch_of()
  found = np.asarray(clicks.certain_background(batch))
  tissue = np.asarray(batch["tissue"])
  assert found[0].all()  # every label is 0
  assert (found[1] == (tissue[1] == 0)).all()  # one is not known
  assert not found[3, 8:].any() and not found[3, :, 12:].any()  # padding
  assert not found[-1].any()  # fills the batch


@jax.jit
def loss_and_slope(logits, batch):
  return jax.value_and_grad(clicks.loss)(logits, batch, SETTINGS)


def test_loss_is_the_sum_of_its_parts():
  batch, logits = batch_of(), logits_of()

  @jax.jit
  def by_parts(logits, batch):
    real = clicks.real_pixels(batch)
    discs = clicks.disc_labels(batch["points"], 16, 16, SETTINGS.radius_px)
    discs = jnp.where(real, discs, IGNORE)
    glass = clicks.certain_background(batch) & (discs == IGNORE)
    share = clicks.to_grid(jax.nn.softmax(logits), 4)
    colour = clicks.to_grid(batch["pixels"] / 255, 4)
    whole = clicks.to_grid(real[..., None] * 1.0, 4) == 1
    ncut, crf = clicks.cut_losses(share, colour, whole * 1.0, SETTINGS.window)
    return (
      clicks.partial_cross_entropy(logits, discs),
      clicks.partial_cross_entropy(logits, jnp.where(glass, 0, IGNORE)),
      0.1 * clicks.image_loss(share, batch["labels"], whole[..., 0]),
      0.1 * ncut,
      0.01 * crf,
    )

  parts = np.asarray(by_parts(logits, batch))
  assert (parts > 0).all()
  found, _ = loss_and_slope(logits, batch)
  np.testing.assert_allclose(found, parts.sum(), rtol=1e-5)


def test_what_fills_the_batch_and_padding_do_not_count():
  batch = batch_of()
  logits = logits_of()
  want, _ = loss_and_slope(logits, batch)
  logits = logits.at[-1].mul(7.0).at[3, 8:].set(5.0)
  found, slope = loss_and_slope(logits, batch)
  np.testing.assert_allclose(found, want, rtol=1e-6)
  slope = np.asarray(slope)
  assert not slope[-1].any() and not slope[3, 8:].any()
  assert not slope[3, :, 12:].any()


def test_loss_and_gradient_on_eight_devices_are_those_on_one():
  batch = batch_of()
  logits = logits_of(2)
  want, slope = loss_and_slope(logits, batch)
  rows = parallel.batch_sharding(parallel.make_mesh())
  assert rows.num_devices == 8
  found, slopes = loss_and_slope(*jax.device_put((logits, batch), rows))
  np.testing.assert_allclose(found, want, rtol=1e-5)
  np.testing.assert_allclose(slopes, slope, rtol=1e-3, atol=1e-7)


def test_a_batch_without_any_knowledge_has_a_finite_gradient():
  batch = batch_of()
  batch |= {"mask": 0 * batch["mask"]}
  value, slope = loss_and_slope(jnp.ones((8, 16, 16, 3)), batch)
  assert value == 0 and np.isfinite(slope).all()
