"""A task of forty lines, with state of its own, through every job."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from tests import small_run
from tests.test_train import params_of, same
from wsiseq_jax import config as configs
from wsiseq_jax import embed as embed_job
from wsiseq_jax import encoders, evaluate, launch, parallel, tasks, train
from wsiseq_jax import run as train_setup
from wsiseq_jax.tasks import base

# The toy task: a student predicts minus the centred features of a slow teacher.


def features_of(params, batch):
  panels = batch["panels"][:, 0, ::4, ::4].astype(jnp.float32) / 255
  pixels = panels.reshape(len(panels), -1)
  return jnp.tanh(pixels[:, : len(params["kernel"])] @ params["kernel"])


def loss(params, extra, batch, key, progress):
  del key, progress
  target = -features_of(extra["teacher"], batch)
  error = features_of(params, batch) - (target - extra["centre"])
  total, weight = jnp.sum(jnp.square(error)), jnp.sum(batch["mask"])
  return total / weight, ({"loss": (total, weight)}, {"target": target})


def update_extra(params, extra, aux):
  mix = functools.partial(jax.tree.map, lambda old, new: 0.5 * (old + new))
  centre = 0.5 * (extra["centre"] + aux["target"].mean(axis=0, keepdims=True))
  return {"teacher": mix(extra["teacher"], params), "centre": centre}


def embed(params, batch):
  names = ("frame_level0_xy", "time", "frame_mask")
  frames = jnp.cumsum(jnp.ones_like(batch["frame_panel"]), axis=1) - 1
  kept = {name: batch[name] for name in names}
  return {"features": features_of(params, batch), "frames": frames, **kept}


def evaluate_toy(params, extra, batch):
  value, (metrics, _) = loss(params, extra, batch, None, None)
  del value
  return metrics


def make_task(config, spec):
  del spec
  shape = (100, config.model.width)
  return base.Task(
    init=lambda key: {"kernel": jax.random.normal(key, shape) / 10},
    init_extra=lambda params: {
      "teacher": jax.tree.map(jnp.copy, params),
      "centre": jnp.zeros((1, shape[1])),
    },
    loss=loss,
    update_extra=update_extra,
    inference_params=lambda params, extra: extra["teacher"],
    evaluate=evaluate_toy,
    embed=embed,
    encode=lambda params, batch, key: features_of(params, batch),
    evaluations=lambda config: base.Evaluations({}, {"toy": evaluate_toy}),
    clips_per_record=1,
    flops=6 * shape[0] * shape[1],
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  width: int = 8
  init_from: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(configs.Experiment):
  model: Model


TOY = types.ModuleType("toy")
TOY.__dict__.update(
  Config=Config,
  resolve=lambda config: config,
  clip=lambda config: base.Clip(1, 1, (40, 40), stored=1, embedded=1),
  make_task=make_task,
)

# What it gets for this.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.shards(tmp_path_factory.mktemp("toy_data"))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  monkeypatch.setitem(tasks.TASKS, "toy", TOY)


def toy_config(workdir, data, **optim):
  config = common.base_config("toy")
  config.workdir, config.data.path = str(workdir), str(data)
  config.data.batch_size = 16
  config.optim.update({"total_steps": 6, "total_epochs": 0.0})
  config.optim.update({"warmup_steps": 1, "warmup_epochs": 0.0})
  config.optim.lr_per_256 = 0.1
  config.optim.update(optim)
  config.checkpoint.update({"every_steps": 0, "every_minutes": 0.0})
  config.log_every_steps = config.eval_every_steps = 3
  return config


def test_a_task_with_state_of_its_own_trains_resumes_and_embeds(
  data, tmp_path, monkeypatch
):
  whole = train.run(toy_config(tmp_path / "whole", data))
  teacher = np.asarray(whole.extra["teacher"]["kernel"])
  assert np.abs(teacher - whole.params["kernel"]).max() > 1e-4
  assert np.abs(np.asarray(whole.extra["centre"])).max() > 1e-4
  config = toy_config(tmp_path / "cut", data)
  with monkeypatch.context() as stopping:
    # Evaluations at step 0 and 3 tick once a batch.
    stopping.setattr(launch, "Preemption", lambda: small_run.StopAt(4 + 2))
    with pytest.raises(launch.Stopped):
      train.run(config)
  resumed = train.run(config)
  same(params_of(resumed), params_of(whole))
  same(jax.device_get(resumed.extra), jax.device_get(whole.extra))

  run = evaluate.load(config)
  np.testing.assert_array_equal(run.params["kernel"], teacher)
  result = evaluate.run(config)
  assert np.isfinite(result["loss"]["toy"])
  (_, path) = embed_job.run(config)
  with np.load(path) as arrays:
    assert arrays["features"].shape == (16, 8)
  settings = {"name": "run", "checkpoint": config.workdir}
  encoder = encoders.load(settings)
  tiles = np.zeros((2, 40, 40, 3), np.uint8)
  assert encoder.apply(encoder.params, tiles).shape == (2, 8)


def test_extra_state_is_sharded_like_its_parameters(
  data, tmp_path, monkeypatch
):
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)
  config = toy_config(tmp_path, data)
  config.mesh.fsdp = 4
  run = train_setup.prepare(config)
  wanted = run.shardings.params["kernel"]
  assert not wanted.is_fully_replicated
  assert run.shardings.extra["teacher"]["kernel"] == wanted
  assert run.shardings.extra["centre"].is_fully_replicated
  state = train_setup.first_state(run)
  assert state.extra["teacher"]["kernel"].sharding == wanted


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(
  data, tmp_path, monkeypatch, parts
):
  small_run.use_devices(monkeypatch, 4)
  whole = train.run(toy_config(tmp_path / "whole", data))
  config = toy_config(tmp_path / "parts", data, accumulate_steps=parts)
  with monkeypatch.context() as stopping:
    stopping.setattr(launch, "Preemption", lambda: small_run.StopAt(2 + 2))
    with pytest.raises(launch.Stopped):
      train.run(config)
  found = train.run(config)
  for a, b in zip(
    jax.tree.leaves((found.params, found.extra)),
    jax.tree.leaves((whole.params, whole.extra)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  undisturbed = train.run(
    toy_config(tmp_path / "calm", data, accumulate_steps=parts)
  )
  same(params_of(found), params_of(undisturbed))


def test_batch_must_divide_into_parts(data, tmp_path):
  config = toy_config(tmp_path, data, accumulate_steps=3)
  with pytest.raises(ValueError, match="batch_size = 16.*accumulate_steps = 3"):
    train_setup.prepare(config)


def test_ema_is_what_evaluation_and_embedding_use(data, tmp_path, monkeypatch):
  small_run.use_devices(monkeypatch, 1)
  config = small_run.small_config(tmp_path, data)
  config.optim.ema_decay = 0.75
  kernels, averages = [], []
  update = base.with_ema

  def watched(task, decay):
    task = update(task, decay)
    inner = task.update_extra

    def outer(params, extra, aux):
      extra = inner(params, extra, aux)
      head = lambda tree: tree["decoder"]["head"]["kernel"]  # noqa: E731
      jax.debug.callback(
        lambda p, e: (kernels.append(p), averages.append(e)),
        head(params),
        head(extra["ema"]),
      )
      return extra

    return dataclasses.replace(task, update_extra=outer)

  monkeypatch.setattr(base, "with_ema", watched)
  state = train.run(config)
  jax.effects_barrier()
  want = averages[0]
  for kernel, average in zip(kernels[1:], averages[1:], strict=True):
    want = 0.75 * want + 0.25 * kernel
    np.testing.assert_allclose(average, want, rtol=0, atol=1e-7)
  run = evaluate.load(config)
  same(jax.device_get(run.params), jax.device_get(state.extra["ema"]))
  assert np.abs(run.params["decoder"]["head"]["kernel"] - kernels[-1]).max() > 0
