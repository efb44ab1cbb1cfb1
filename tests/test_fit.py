"""THE trainer on a linear model: what it keeps, and how it is interrupted."""

import dataclasses
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_run
from wsiseq_jax import fit, launch, parallel, writers

SETTINGS = fit.FitSettings(lr=0.1, epochs=6, warmup_epochs=1, patience=0)
PER_EPOCH = 3


def loss(params, frozen, batch, key):
  noise = 0.01 * jax.random.normal(key, batch["x"].shape)
  out = (batch["x"] + noise) @ params["kernel"] * frozen
  return jnp.square(out - batch["y"]).mean()


MODEL = fit.Model(
  init=lambda key, frozen, example: {"kernel": jax.random.normal(key, (4, 1))},
  loss=loss,
  apply=lambda params, frozen, batch: batch["x"] @ params["kernel"],
)


def batch_of(seed, count=16):
  x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
  return x, x @ np.array([[1.0], [2.0], [0.0], [-1.0]], np.float32)


def train_batches(step):
  for number in itertools.count(step):
    x, y = batch_of(number)
    yield {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def val_batches():
  """Samples 7 … 0, the second batch half filled."""
  x, _ = batch_of(999, 8)
  for rows, real in ([7, 6, 5, 4, 3], 5), ([2, 1, 0, 0, 0], 3):
    yield {
      "x": jnp.asarray(x[rows]),
      "index": jnp.array(rows),
      "mask": (jnp.arange(5) < real) * 1.0,
    }


DATA = fit.Data(PER_EPOCH, train_batches, val_batches)


def validate(outputs):
  error = float(np.square(outputs - batch_of(999, 8)[1]).mean())
  return (-error,), {"val/error": error}


def trainer(settings=SETTINGS):
  mesh = parallel.make_mesh(1, jax.devices()[:1])
  return fit.Trainer(MODEL, settings, mesh, jnp.float32(1))


def folder(path, stop_at=1000, inputs="a"):
  return fit.FitFolder(path / "one", inputs, small_run.StopAt(stop_at - 1))


@pytest.fixture(scope="module")
def undisturbed():
  return trainer().fit(DATA, validate, seed=0)


def assert_same(found, undisturbed):
  assert found.history == undisturbed.history
  assert (found.epoch, found.score) == (undisturbed.epoch, undisturbed.score)
  np.testing.assert_array_equal(
    found.params["kernel"], undisturbed.params["kernel"]
  )


def test_the_best_epoch_is_kept(undisturbed):
  errors = [row["val/error"] for row in undisturbed.history]
  assert undisturbed.epoch == int(np.argmin(errors)) + 1
  outputs = trainer().predict(undisturbed.params, val_batches())
  assert outputs.shape == (8, 1)
  assert validate(outputs)[0] == undisturbed.score == (-min(errors),)


def test_the_first_of_equal_epochs_is_kept_and_patience_ends():
  scores = iter([0.1, 0.5, 0.5, 0.4, 0.9, 0.9])
  settings = dataclasses.replace(SETTINGS, patience=2)
  found = trainer(settings).fit(
    DATA, lambda outputs: ((next(scores),), {}), seed=0
  )
  assert found.epoch == 2 and len(found.history) == 4


def test_no_finite_score_is_an_error():
  with pytest.raises(ValueError, match="no validation score is finite"):
    trainer().fit(DATA, lambda outputs: ((float("nan"),), {}), seed=0)


def test_metrics_are_written(tmp_path, undisturbed):
  trainer().fit(DATA, validate, 0, folder(tmp_path))
  rows = writers.read_metrics(tmp_path / "one" / "metrics.jsonl")
  assert [row.pop("step") for row in rows] == [3, 6, 9, 12, 15, 18]
  assert rows == undisturbed.history
  assert set(rows[0]) == {"train/loss", "train/lr", "val/error"}
  assert list((tmp_path / "one" / "tensorboard").glob("events.out.*"))
  # A fit of an instant is not saved.
  assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("ticks", [1, 4, 9])
def test_stopped_before_any_step_it_goes_on_bit_for_bit(
  ticks, tmp_path, undisturbed
):
  with pytest.raises(launch.Stopped) as error:
    trainer().fit(DATA, validate, 0, folder(tmp_path, ticks))
  assert error.value.code == 75
  steps = []

  def counted(step):
    steps.append(step)
    return train_batches(step)

  data = dataclasses.replace(DATA, train=counted)
  where = folder(tmp_path)
  assert_same(trainer().fit(data, validate, 0, where), undisturbed)
  assert steps == [ticks - 1]
  rows = writers.read_metrics(tmp_path / "one" / "metrics.jsonl")
  assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18]
  where.clear()
  assert not list(tmp_path.rglob("*.npz"))


def test_killed_between_epochs_it_goes_on_bit_for_bit(
  tmp_path, undisturbed, monkeypatch
):
  monkeypatch.setattr(fit, "SAVE_EVERY_SECONDS", 0.0)
  calls = itertools.count(1)

  def dying(outputs):
    if next(calls) == 4:
      raise KeyboardInterrupt
    return validate(outputs)

  with pytest.raises(KeyboardInterrupt):
    trainer().fit(DATA, dying, 0, folder(tmp_path))
  calls = itertools.count(5)
  found = trainer().fit(DATA, dying, 0, folder(tmp_path))
  assert_same(found, undisturbed)
  assert next(calls) == 5 + 3  # three epochs were not computed again


def test_the_state_of_another_fit_is_not_resumed(tmp_path, undisturbed):
  with pytest.raises(launch.Stopped):
    trainer().fit(DATA, validate, 1, folder(tmp_path, 7, inputs="b"))
  found = trainer().fit(DATA, validate, 0, folder(tmp_path))
  assert_same(found, undisturbed)


def test_sigterm_saves_and_is_given_back(tmp_path, undisturbed):
  before = signal.getsignal(signal.SIGTERM)

  def killing(outputs):
    os.kill(os.getpid(), signal.SIGTERM)
    return validate(outputs)

  where = fit.FitFolder(tmp_path / "one", "a", launch.Preemption())
  with pytest.raises(launch.Stopped):
    trainer().fit(DATA, killing, 0, where)
  assert signal.getsignal(signal.SIGTERM) == before
  assert_same(trainer().fit(DATA, validate, 0, folder(tmp_path)), undisturbed)


def test_one_program_serves_all_learning_rates_and_seeds(undisturbed):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name)
  )
  for seed, lr in ((1, 0.1), (2, 0.3)):
    other = dataclasses.replace(SETTINGS, lr=lr)
    trainer(other).fit(DATA, validate, seed)
  assert not [name for name in compiled if "backend_compile" in name]


def test_learning_rates():
  settings = dataclasses.replace(SETTINGS, lr=1.0, epochs=3)
  # Two steps up, then half a cosine to 0 over four.
  wanted = [0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0]
  np.testing.assert_allclose(fit.learning_rates(settings, 2), wanted, atol=1e-4)


def test_standardisation():
  assert fit.standardisation(np.array([1.0, 3.0])) == (2.0, 1.0)
  assert fit.standardisation(np.array([5.0, 5.0])) == (5.0, 1.0)
