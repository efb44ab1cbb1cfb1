"""Losses on clicks: values by hand, a slow reference, gradients, odd inputs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from wsiseq_jax import parallel
from wsiseq_jax.segment import clicks
from wsiseq_jax.segment.colour_window import ColourWindow, cut_losses, to_grid

IGNORE = clicks.IGNORE


def discs(points, size=4, radius=1.0):
  points = np.asarray(points, np.float32).reshape(-1, 3)
  return clicks.disc_labels(points, (size, size), radius)


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


def test_odd_places_are_no_clicks():
  for point in ([math.nan, 1, 1], [1, math.inf, 1]):
    assert (discs([point]) == IGNORE).all()
  assert (discs([]) == IGNORE).all()
  # Outside, a disc reaches in by what it covers.
  assert discs([[-1, 0, 1]])[0].tolist() == [1, *[IGNORE] * 3]
  assert (discs([[-9, 0, 1]]) == IGNORE).all()


def test_discs_are_those_of_a_slow_loop():
  rng = np.random.default_rng(0)
  points = np.concatenate(
    [rng.uniform(-2, 22, (30, 2)), rng.integers(0, 3, (30, 1))], axis=1
  ).astype(np.float32)
  found = clicks.disc_labels(points, (18, 20), 2.5)
  for row, column in itertools.product(range(18), range(20)):
    apart = np.hypot(points[:, 0] - column, points[:, 1] - row)
    near = apart.argmin()
    want = points[near, 2] if apart[near] <= 2.5 else IGNORE
    assert found[row, column] == want


def test_chosen_clicks_are_the_same_for_good():
  points = np.array([[i, 0, i % 2] for i in range(9)], np.float32)
  found = clicks.chosen(points, 2, "a", 0)
  assert sorted(found[:, 2].tolist()) == [0, 0, 1, 1]
  assert (clicks.chosen(points, 2, "a", 0) == found).all()
  others = [clicks.chosen(points, 2, name, 0) for name in "bcde"]
  assert any((other != found).any() for other in others)
  assert len(clicks.chosen(points, 0, "a", 0)) == 9
  assert len(clicks.chosen(points[:0], 2, "a", 0)) == 0
  assert len(clicks.chosen(points, 50, "a", 0)) == 9


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


def batch_of(seed=0, rows=8, side=16):
  """Pictures: certain negative, padded, without clicks, filling."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, (rows, 2)).astype(np.float32)
  labels[0] = 0
  labels[1] = [1, math.nan]
  target = rng.choice(
    [0, 1, 2, IGNORE], (rows, side, side), p=[0.05] * 3 + [0.85]
  )
  target[2] = IGNORE
  size = np.full((rows, 2), side, np.int32)
  size[3] = [8, 12]
  found = {
    "pixels": rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
    "labels": labels,
    "tissue": (rng.random((rows, side, side)) < 0.9).astype(np.uint8),
    "target": target.astype(np.uint8),
    "size": size,
    "mask": np.array([1] * (rows - 1) + [0], np.float32),
  }
  return {name: jnp.asarray(value) for name, value in found.items()}


def logits_of(seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(8, 16, 16, 3)), jnp.float32)


SETTINGS = clicks.ClickLoss(crf=0.01, window=ColourWindow(stride=4, reach=2))


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
    discs = jnp.where(real, batch["target"], IGNORE)
    glass = clicks.certain_background(batch) & (discs == IGNORE)
    share = to_grid(jax.nn.softmax(logits), 4)
    colour = to_grid(batch["pixels"] / 255, 4)
    whole = to_grid(real[..., None] * 1.0, 4) == 1
    ncut, crf = cut_losses(share, colour, whole * 1.0, SETTINGS.window)
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
