"""InfoNCE, frame prediction and monitors, against sums written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsiseq_jax.tasks.contrastive import losses

INFO_NCE = jax.jit(losses.info_nce, static_argnums=2)
MONITORS = jax.jit(losses.monitors)


def mean(pair):
  return float(pair[0]) / float(pair[1])


def contrast(projected, weight=None, temperature=0.1):
  projected = jnp.asarray(projected, jnp.float32)
  weight = jnp.ones(len(projected)) if weight is None else jnp.asarray(weight)
  return INFO_NCE(projected, weight, temperature)


def slow_info_nce(projected, temperature):
  """Row by row, with loops: views [2b, p], partners are 2i and 2i + 1."""
  views = projected.reshape(-1, projected.shape[-1]).astype(np.float64)
  views = (views - views.mean(axis=0)) / views.std(axis=0)
  views /= np.linalg.norm(views, axis=1, keepdims=True)
  total, ranks = [], []
  for i, view in enumerate(views):
    partner = i ^ 1
    cosine = views @ view
    others = [k for k in range(len(views)) if k != i]
    exponent = np.exp(cosine[others] / temperature)
    total.append(np.log(exponent.sum()) - cosine[partner] / temperature)
    ranks.append(1 + sum(cosine[k] >= cosine[partner] for k in others) - 1)
  return np.mean(total), np.array(ranks)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_is_the_sum_over_all_other_views(temperature):
  projected = np.random.default_rng(0).normal(size=(5, 2, 3)) * 4
  out = contrast(projected, temperature=temperature)
  wanted, ranks = slow_info_nce(projected, temperature)
  assert mean(out["contrastive_loss"]) == pytest.approx(wanted, rel=1e-5)
  assert mean(out["rank"]) == pytest.approx(ranks.mean())
  assert mean(out["top1"]) == pytest.approx((ranks <= 1).mean())
  assert mean(out["top5"]) == pytest.approx((ranks <= 5).mean())
  assert float(out["rank"][1]) == 10  # rows


def test_info_nce_by_hand():
  # Partners are equal, records opposite: -1/T + log(e^{1/T} + 2 e^{-1/T}).
  views = np.array([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])
  out = contrast(views, temperature=0.5)
  wanted = -2 + np.log(np.exp(2) + 2 * np.exp(-2))
  assert mean(out["contrastive_loss"]) == pytest.approx(wanted, rel=1e-6)


def test_a_collapsed_model_is_last_and_not_first():
  out = contrast(np.ones((3, 2, 4)))
  assert mean(out["contrastive_loss"]) == pytest.approx(np.log(5), rel=1e-6)
  assert mean(out["rank"]) == 5
  assert mean(out["top1"]) == 0


def test_records_that_do_not_count_are_neither_rows_nor_negatives():
  projected = np.random.default_rng(1).normal(size=(4, 2, 3))
  weight = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
  out = contrast(projected, weight)
  alone = contrast(projected[[0, 2, 3]])
  for name in out:
    assert mean(out[name]) == pytest.approx(mean(alone[name]), rel=1e-5), name

  def loss(projected):
    pair = contrast(projected, weight)
    return losses.mean_of(pair["contrastive_loss"])

  slope = jax.grad(loss)(jnp.asarray(projected, jnp.float32))
  assert float(jnp.abs(slope[1]).max()) == 0
  assert float(jnp.abs(slope[0]).max()) > 0


def test_views_forget_what_all_have_in_common():
  projected = np.random.default_rng(2).normal(size=(6, 2, 3))
  moved = 100 + 0.01 * projected
  same = [mean(contrast(x)["contrastive_loss"]) for x in (projected, moved)]
  assert same[0] == pytest.approx(same[1], rel=0.02)


def test_gradients_are_numbers_where_nothing_is_left():
  def loss(projected, weight):
    out = INFO_NCE(projected, weight, 0.1)
    return losses.mean_of(out["contrastive_loss"])

  for views, weight in (
    (jnp.zeros((3, 2, 4)), jnp.ones(3)),
    (jnp.ones((3, 2, 4)), jnp.zeros(3)),
  ):
    value, slope = jax.value_and_grad(loss)(views, weight)
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(slope)).all()


def test_cosine_loss_counts_chosen_frames_only():
  prediction = jnp.array([[[3.0, 4.0], [1.0, 0.0], [0.0, 5.0]]])
  target = jnp.array([[[4.0, 3.0], [-2.0, 0.0], [7.0, 0.0]]])
  total, weight = losses.cosine_loss(
    prediction, target, jnp.array([[1.0, 1.0, 0.0]])
  )
  assert float(total) == pytest.approx(-(24 / 25) + 1)
  assert float(weight) == 2


def test_a_batch_without_hidden_frames_costs_nothing():
  frames = jnp.ones((2, 3, 4))
  pair = losses.cosine_loss(frames, frames, jnp.zeros((2, 3)))
  assert float(losses.mean_of(pair)) == 0.0


def test_monitors_by_hand():
  clips = jnp.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [9.0, 9.0]])
  frames = jnp.array(
    [
      [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
      [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
      [[0.0, 2.0], [0.0, 1.0], [5.0, 5.0]],
      [[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]],
    ]
  )
  mask = jnp.array([[1.0, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]])
  out = MONITORS(clips, frames, mask, jnp.array([1.0, 1, 1, 0]))
  # Unit clips (1,0), (0,1), (0,1): pairs 0, 0, 1.
  assert mean(out["clip_cosine"]) == pytest.approx(1 / 3)
  # Deviation of (1,0,0) and of (0,1,1) is sqrt(2)/3; times sqrt(2).
  assert mean(out["feature_std"]) == pytest.approx(2 / 3)
  # They differ along one line.
  assert mean(out["feature_rank"]) == pytest.approx(1)
  # Neighbours: 0, 0 in the first; 1 in the second; 1 in the third.
  assert mean(out["neighbour_cosine"]) == pytest.approx(2 / 4)
  # Frames of different records: sums (2,1), (2,0), (0,2) of 3, 2, 2 frames;
  # products 4, 2, 0 over 6 + 6 + 4 pairs.
  assert mean(out["frame_cosine"]) == pytest.approx(6 / 16)


def test_monitors_of_spread_features():
  clips = jax.random.normal(jax.random.key(0), (512, 64))
  frames = jax.random.normal(jax.random.key(1), (512, 2, 64))
  out = MONITORS(clips, frames, jnp.ones((512, 2)), jnp.ones(512))
  assert mean(out["feature_std"]) == pytest.approx(1, abs=0.02)
  # 64 directions; 512 samples let it look like 64 / (1 + 64 / 512).
  assert mean(out["feature_rank"]) == pytest.approx(56.9, rel=0.02)
  for name in ("clip_cosine", "frame_cosine", "neighbour_cosine"):
    assert mean(out[name]) == pytest.approx(0, abs=0.02), name


def test_monitors_have_no_gradient():
  def total(clips):
    out = MONITORS(clips, jnp.ones((3, 2, 4)), jnp.ones((3, 2)), jnp.ones(3))
    return sum(pair[0] for pair in out.values())

  slope = jax.grad(total)(jax.random.normal(jax.random.key(0), (3, 4)))
  assert float(jnp.abs(slope).max()) == 0


def test_total_loss_mixes_means():
  contrast = {"contrastive_loss": (jnp.array(8.0), jnp.array(4.0))}
  prediction = (jnp.array(-3.0), jnp.array(6.0))
  weight = jnp.array(0.25)
  total = losses.total_loss(contrast, prediction, weight)
  assert float(total) == pytest.approx(0.75 * 2 + 0.25 * -0.5)
  assert float(losses.total_loss(contrast, None, weight)) == 2


def test_prediction_counts_after_a_part_of_training():
  found = [
    float(losses.switched_weight(jnp.array(p), 0.5, 0.3))
    for p in (0.0, 0.5, 0.501, 1.0)
  ]
  assert found == pytest.approx([0, 0, 0.3, 0.3])
