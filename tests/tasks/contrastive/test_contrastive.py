"""What the contrastive task asks of its model, and what must not leak."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import contrastive as contrastive_config
from data_prep.synthetic import smoke
from tests import clip_run
from tests.clip_run import params_of, setup_of
from wsiseq_jax import config as configs
from wsiseq_jax.data import source as sources
from wsiseq_jax.data import views
from wsiseq_jax.tasks import contrastive

RECORDS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return smoke.make_shards(tmp_path_factory.mktemp("contrastive"))


@pytest.fixture(scope="module")
def batch(data):
  return clip_run.first_records(data, RECORDS)


@functools.partial(jax.jit, static_argnums=0)
def terms(setup, params, batch, seed):
  keys = jax.random.split(jax.random.key(seed), len(batch["mask"]))
  seen = views.sample_views(batch, keys, setup.views)
  return contrastive.objective_terms(
    setup, params, seen, batch["mask"], keys, setup.time_jitter
  )[0]


def means(metrics):
  return {k: float(s) / max(float(w), 1e-9) for k, (s, w) in metrics.items()}


def test_hidden_frames_are_hidden_from_the_comparison_too(data, batch):
  """With all frames hidden, clips have nothing left to differ in."""
  setup = setup_of(data, objective__mask_ratio=1.0)
  found = means(terms(setup, params_of(setup), batch, 0))
  blind = np.log(2 * RECORDS - 1)
  assert abs(found["contrastive_loss"] - blind) < 1e-4


def test_without_hidden_frames_nothing_is_predicted(data, batch):
  setup = setup_of(data, objective__mask_ratio=0.0)
  metrics = terms(setup, params_of(setup), batch, 0)
  assert float(metrics["prediction_loss"][1]) == 0
  task_loss, _ = loss_of(setup, batch, 1.0)
  assert np.isfinite(task_loss)


@functools.partial(jax.jit, static_argnums=0)
def _loss(setup, params, batch, seed, progress):
  return contrastive.loss(
    setup, params, {}, batch, jax.random.key(seed), progress
  )


def loss_of(setup, batch, progress, seed=0):
  loss, (metrics, _) = _loss(
    setup, params_of(setup), batch, seed, jnp.asarray(progress, jnp.float32)
  )
  return float(loss), means(metrics)


def test_prediction_counts_from_half_of_training_on(data, batch):
  setup = setup_of(data)
  before, metrics = loss_of(setup, batch, 0.5)
  assert before == pytest.approx(metrics["contrastive_loss"], rel=1e-5)
  after, metrics = loss_of(setup, batch, 0.6)
  wanted = 0.5 * metrics["contrastive_loss"] + 0.5 * metrics["prediction_loss"]
  assert after == pytest.approx(wanted, rel=1e-5)
  assert metrics["loss"] == pytest.approx(after)


def test_draws_follow_the_key(data, batch):
  setup = setup_of(data)
  first, same, other = (loss_of(setup, batch, 0.0, s)[0] for s in (0, 0, 1))
  assert first == same != other


def test_seeds_differ_in_parameters(data):
  setup = setup_of(data)
  one, two = params_of(setup, 1234), params_of(setup, 2345)
  kernels = [
    (a, b)
    for (path, a), b in zip(
      jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True
    )
    if "kernel" in jax.tree_util.keystr(path)
  ]
  assert len(kernels) > 10
  assert all(float(jnp.abs(a - b).max()) > 0 for a, b in kernels)


def test_records_that_fill_up_a_batch_count_nothing(data, batch):
  setup = setup_of(data)
  params = params_of(setup)
  filled = {**batch, "mask": batch["mask"].at[4:].set(0)}
  # Other content under the same keys.
  other = {
    k: v.at[4:].set(v[:2]) if k not in ("mask", "index") else v
    for k, v in filled.items()
  }
  found, wanted = (means(terms(setup, params, b, 0)) for b in (filled, other))
  for name, value in wanted.items():
    assert found[name] == pytest.approx(value, rel=1e-5), name


def test_padding_changes_nothing(data, batch):
  """Panels, boxes and times of padded frames may hold anything."""
  for method in ("tvrl", "ltn", "clm"):
    setup = setup_of(data, method)
    params = params_of(setup)
    short = {**batch, "frame_mask": batch["frame_mask"].at[:, 8:].set(0)}
    other = {
      **short,
      "frame_box": short["frame_box"].at[:, 8:, :2].set(1.0),
      "time": short["time"].at[:, 8:].set(1e5),
    }
    found, wanted = (terms(setup, params, b, 0) for b in (short, other))
    for name, value in wanted.items():
      np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_times_are_not_cut_to_whole_numbers(data, batch):
  setup = setup_of(data, "csimclr_te", model__time_shortest=0.1)
  params = params_of(setup)
  scale = [{**batch, "time": batch["time"] / 40}, dict(batch)]
  # Steps of 0.1; as whole numbers all of them would be 0.
  whole = {**scale[0], "time": jnp.floor(scale[0]["time"])}
  real, cut = (
    means(terms(setup, params, b, 0))["contrastive_loss"]
    for b in (scale[0], whole)
  )
  assert abs(real - cut) > 1e-3


def test_noise_on_times_is_drawn_anew_for_each_view(data, batch):
  """Else a clip's own times would tell which view belongs to which."""
  setup = dataclasses.replace(
    setup_of(data, "csimclr_te", model__time_shortest=0.1), time_jitter=1.0
  )
  still = dataclasses.replace(setup, time_jitter=0.0)
  params = params_of(setup)
  a, b = (
    means(terms(s, params, batch, 0))["contrastive_loss"]
    for s in (setup, still)
  )
  assert abs(a - b) > 1e-3


# LTN.


def test_ltn_moves_by_a_time_that_is_not_zero(data, batch):
  setup = setup_of(data, "ltn")
  keys = jax.random.split(jax.random.key(0), RECORDS)
  seen = views.sample_views(batch, keys, setup.views)
  interval = seen.time[:, 1, 0] - seen.time[:, 0, 0]
  assert bool((interval != 0).all()) and not setup.model.relative_time
  assert means(terms(setup, params_of(setup), batch, 0))["used_records"] == 1


def test_ltn_leaves_out_records_without_two_clips(data, batch):
  setup = setup_of(data, "ltn")
  # A clip spans 7 frames: of 7 there is one only.
  short = {**batch, "frame_mask": batch["frame_mask"].at[:2, 7:].set(0)}
  found = means(terms(setup, params_of(setup), short, 0))
  assert found["used_records"] == pytest.approx(4 / 6)
  # Distinct clips at one time leave nothing to move by.
  stopped = {**batch, "time": jnp.zeros_like(batch["time"])}
  found = means(terms(setup, params_of(setup), stopped, 0))
  assert found["used_records"] == 0 and np.isfinite(found["contrastive_loss"])


def test_ltn_depends_on_the_time_between_its_clips(data, batch):
  setup = setup_of(data, "ltn")
  assert not setup.model.uses_time  # only the shift knows it
  params = params_of(setup)
  later = {**batch, "time": 3 * batch["time"]}
  a, b = (
    means(terms(setup, params, x, 0))["contrastive_loss"]
    for x in (batch, later)
  )
  assert abs(a - b) > 1e-4
  blind = setup_of(data, "cvrl")
  params = params_of(blind)
  a, b = (
    means(terms(blind, params, x, 0))["contrastive_loss"]
    for x in (batch, later)
  )
  assert a == b


def test_methods_have_the_clips_they_need():
  for size in ("", ",demo", ",smoke"):
    for method in contrastive_config.METHODS:
      config = contrastive_config.get_config(method + size)
      config.workdir = "out"
      configs.validate(config, contrastive.Config)
      assert config.data.clips[0] == "2" or method not in ("cvrl", "ltn")
      knows = method in ("csimclr_te", "tvrl", "clm")
      assert config.model.time_embedding == knows
      assert config.model.relative_time == (method != "ltn")


# Embedding.


def task_of(data, method="tvrl", dense_step=0):
  config = clip_run.small_config(method, data / "none", data)
  config.data.dense_step = dense_step
  return contrastive.make_task(config, sources.read_spec(data))


def test_encode_without_a_key_and_pool_are_the_embedding(data, batch):
  task = task_of(data)
  params = task.init(jax.random.key(0))
  out = jax.jit(task.embed)(params, batch)
  assert out["features"].shape == (RECORDS, 16)
  assert out["tokens"].shape == (RECORDS, 4, 16)
  assert out["token_mask"].shape == out["token_time"].shape == (RECORDS, 4)
  encoded = jax.jit(lambda p, b: task.encode(p, b, None))(params, batch)
  np.testing.assert_allclose(encoded, out["features"], atol=1e-6)
  pooled = task.pool(
    params,
    out["tokens"],
    out["token_mask"],
    out["token_time"],
    params["temporal"]["cls_token"],
  )
  np.testing.assert_allclose(pooled, out["features"], atol=1e-5)
  random = jax.jit(task.encode)(params, batch, jax.random.key(1))
  assert float(jnp.abs(random - out["features"]).max()) > 1e-4


def test_dense_features_are_the_mean_over_all_windows(data, batch):
  task = task_of(data, dense_step=2)
  params = task.init(jax.random.key(0))
  short = {**batch, "frame_mask": batch["frame_mask"].at[0, 9:].set(0)}
  found = jax.jit(task.embed)(params, short)["features"]
  network = setup_of(data).merge(params)
  everything = jnp.tile(jnp.arange(12)[None], (RECORDS, 1))
  pixels, time = views.whole_frames(short, everything, setup_of(data).views)
  frames = network.encode_frames(pixels)

  def window(start):
    chosen = slice(start, start + 7, 2)
    mask = jnp.ones((RECORDS, 4), bool)
    return network.temporal(frames[:, chosen], time[:, chosen], mask)[0]

  windows = [window(start) for start in (0, 2, 4)]
  np.testing.assert_allclose(found[1:], sum(windows)[1:] / 3, atol=1e-5)
  # Of nine real frames two windows fit.
  np.testing.assert_allclose(found[0], sum(windows[:2])[0] / 2, atol=1e-5)


def test_evaluation_has_fixed_views(data, batch):
  setup = setup_of(data)
  run = jax.jit(functools.partial(contrastive.evaluate, setup))
  params = params_of(setup)
  first = means(run(params, {}, batch))
  turned = {k: v[::-1] for k, v in batch.items()}
  for name, value in means(run(params, {}, turned)).items():
    assert value == pytest.approx(first[name], rel=1e-4), name


# Fitting data and model.


def test_the_unit_of_time_chooses_the_periods(data):
  """Slides: micrometres along the tissue take the place of time."""
  config = clip_run.small_config("csimclr_te", data / "none", data)
  assert sources.read_spec(data).time_unit == "um"
  resolved = contrastive.resolve(config)
  assert resolved.model.time_shortest == 2
  assert resolved.model.time_longest == 20000
  with config.unlocked():
    config.model.time_longest = 500.0
  assert contrastive.resolve(config).model.time_longest == 500


@pytest.mark.parametrize(
  ("method", "changes", "text"),
  [
    ("tvrl", {"data__clips": "1c8f2s"}, "spans 15 stored frames; .* has 12"),
    (
      "tvrl",
      {"data__clips": "1c4f2s", "data__strict_half": True},
      "spans 7 stored frames; the data has 6 in each half",
    ),
    ("cvrl", {"data__clips": "2c12f1s"}, "two different ones need one more"),
    ("ltn", {"data__clips": "1c4f2s"}, "'navigation'.*needs two different"),
    (
      "tvrl",
      {"data__augment__crop_areas": (0.9, 0.5)},
      r"augment\.crop_areas = \(0\.9, 0\.5\)",
    ),
  ],
)
def test_what_does_not_fit_is_named(data, method, changes, text):
  with pytest.raises(ValueError, match=text):
    setup_of(data, method, **changes)
