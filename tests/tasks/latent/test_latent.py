"""Latent prediction: loss, teacher and signs of collapse, by hand."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import main
from configs import latent as latent_config
from tests import clip_run, small_run
from tests.test_train import params_of, same
from wsiseq_jax import config as configs
from wsiseq_jax import evaluate, launch, optim, parallel, train, writers
from wsiseq_jax import run as train_setup
from wsiseq_jax import state as states
from wsiseq_jax.data import augment
from wsiseq_jax.data import source as sources
from wsiseq_jax.models import flops, masking, videomae
from wsiseq_jax.tasks import latent
from wsiseq_jax.tasks.latent import losses


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.shards(tmp_path_factory.mktemp("latent_data"))


def small_config(workdir, data):
  config = latent_config.get_config("smoke")
  config.workdir, config.data.path = str(workdir), str(data)
  config.optim.total_steps = 6
  config.checkpoint.update({"every_steps": 0, "every_minutes": 0.0})
  config.log_every_steps = 2
  config.eval_every_steps = 0
  return config


@pytest.fixture(scope="module")
def scene(data):
  """A setup, parameters, another teacher, clips of four records, a mask."""
  config = small_config(data / "none", data)
  setup = latent.make_setup(config, sources.RecordSource(data, "train").spec)
  task = latent.make_task(config, sources.RecordSource(data, "train").spec)
  params = task.init(jax.random.key(1))
  teacher = task.init(jax.random.key(2))["encoder"]
  batch = clip_run.first_records(data, 4)
  clips = augment.centre_clips(batch, setup.clips)
  mask = masking.make_mask(
    jax.random.key(3), clips.shift_px, clips.panel, setup.mask
  )
  return setup, params, teacher, clips, mask


def measure(setup, params, teacher, clips, mask, weight):
  return jax.jit(lambda p, t, w: losses.measure(setup, p, t, clips, mask, w))(
    params, teacher, weight
  )


def test_loss_against_numpy(scene):
  setup, params, teacher, clips, mask = scene
  weight = jnp.array([1.0, 1.0, 0.0, 1.0])
  found = measure(setup, params, teacher, clips, mask, weight)
  network = setup.merge(params)
  prediction, _ = network(
    clips.pixels, mask.visible, mask.decode, clips.shift_px
  )
  prediction = np.asarray(prediction)
  seer = setup.merge({**params, "encoder": teacher})
  whole = np.asarray(seer.encode(clips.pixels, None, clips.shift_px)[0])
  assert prediction.shape == (4, setup.mask.decoded, setup.model.width)
  total = trivial = count = 0.0
  for i in (0, 1, 3):
    target = np.stack([(v - v.mean()) / np.sqrt(v.var() + 1e-5)
                       for v in whole[i]])  # fmt: skip
    mean = target[np.asarray(mask.visible[i])].mean(axis=0)
    for row, n in zip(prediction[i], np.asarray(mask.decode[i]), strict=True):
      total += np.abs(row - target[n]).mean()
      trivial += np.abs(mean - target[n]).mean()
      count += 1
  np.testing.assert_allclose(found["loss"], (total, count), rtol=1e-5)
  np.testing.assert_allclose(
    found["mean_feature_loss"], (trivial, count), rtol=1e-5
  )


def test_no_gradient_reaches_the_teacher(scene):
  setup, params, teacher, clips, mask = scene

  def loss(params, teacher):
    weight = jnp.ones(4)
    total, n = losses.measure(setup, params, teacher, clips, mask, weight)[
      "loss"
    ]
    return total / n

  ours, theirs = jax.jit(jax.grad(loss, (0, 1)))(params, teacher)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(theirs))
  # The student, which only sees the visible tokens, and the predictor learn.
  for name in ("encoder", "decoder"):
    assert any(np.any(leaf) for leaf in jax.tree.leaves(ours[name]))


def test_hidden_pixels_reach_the_target_alone(scene):
  """What the student is given must not tell what it is asked for."""
  setup, params, teacher, clips, mask = scene
  visible = np.asarray(masking.is_visible(mask, setup.mask))
  for axis, size in enumerate(setup.model.patch, start=1):
    visible = visible.repeat(size, axis)
  pixels = jnp.where(visible[..., None], clips.pixels, 0.0)
  network = setup.merge(params)
  a, b = (
    network(p, mask.visible, mask.decode, clips.shift_px)[0]
    for p in (clips.pixels, pixels)
  )
  np.testing.assert_array_equal(a, b)


def test_teacher_by_hand(scene):
  teacher = latent.setup.Teacher(decay=0.5, decay_end=0.9)
  setup = dataclasses.replace(scene[0], teacher=teacher)
  params = {"encoder": {"w": jnp.array([10.0])}, "decoder": {}}
  extra = {"teacher": {"w": jnp.array([0.0])}}
  # Progress 0 keeps half; 0.5 keeps 0.7.
  for progress, want in ((0.0, 5.0), (0.5, 0.7 * 5 + 0.3 * 10)):
    aux = {"progress": jnp.full((3,), progress)}
    extra = latent.update_extra(setup, params, extra, aux)
    np.testing.assert_allclose(extra["teacher"]["w"], [want], rtol=1e-6)


def collapse_of(scene, change):
  setup, params, teacher, clips, mask = scene
  found = measure(setup, params, change(teacher), clips, mask, jnp.ones(4))
  return {name: float(s / n) for name, (s, n) in found.items()}


def test_collapse_shows(scene):
  alive = collapse_of(scene, lambda teacher: teacher)
  assert alive["feature_std"] > 1e-3 and alive["clip_cosine"] < 0.9999

  def blind(teacher):
    """Sees positions and no pixels: tokens differ, and tell nothing."""
    patch = jax.tree.map(jnp.zeros_like, teacher["patch"])
    return {**teacher, "patch": patch}

  collapsed = collapse_of(scene, blind)
  assert collapsed["feature_std"] < 1e-5
  assert collapsed["clip_cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_run_resumes_bit_for_bit_and_embeds_with_the_teacher(
  data, tmp_path, monkeypatch
):
  small_run.use_devices(monkeypatch, 1)
  whole = train.run(small_config(tmp_path / "whole", data))
  config = small_config(tmp_path / "cut", data)
  with monkeypatch.context() as stopping:
    stopping.setattr(launch, "Preemption", lambda: small_run.StopAt(4))
    with pytest.raises(launch.Stopped):
      train.run(config)
  resumed = train.run(config)
  same(params_of(resumed), params_of(whole))
  same(jax.device_get(resumed.extra), jax.device_get(whole.extra))
  run = evaluate.load(config)
  teacher = jax.device_get(whole.extra["teacher"])
  same(jax.device_get(run.params["encoder"]), teacher)
  student = whole.params["encoder"]["patch"]["kernel"]
  assert np.abs(student - teacher["patch"]["kernel"]).max() > 1e-5


@pytest.mark.slow
def test_eight_devices_agree_with_one(data, tmp_path, monkeypatch):
  monkeypatch.setattr(parallel, "FSDP_MIN_ELEMENTS", 256)
  found = []
  for devices, fsdp in ((1, 1), (8, 4)):
    config = small_config(tmp_path / str(devices), data)
    config.optim.total_steps = 3
    config.mesh.fsdp = fsdp
    with monkeypatch.context() as few:
      small_run.use_devices(few, devices)
      state = train.run(config)
    rows = writers.read_metrics(tmp_path / str(devices) / "metrics.jsonl")
    found.append((state, [row["train/loss"] for row in rows]))
  (one, losses_one), (many, losses_many) = found
  np.testing.assert_allclose(losses_many, losses_one, rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves((many.params, many.extra)),
    jax.tree.leaves((one.params, one.extra)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_smoke_through_every_job(data, tmp_path, monkeypatch):
  small_run.use_devices(monkeypatch, 1)
  config = latent_config.get_config("smoke")
  config.workdir = str(tmp_path)
  for job in ("train", "evaluate", "embed"):
    config.job = job
    main.run(config)
  last = writers.read_metrics(tmp_path / "metrics.jsonl")[-1]
  assert last["step"] == 12 and np.isfinite(last["val/loss"])
  assert last["val/feature_std"] > 0
  with np.load(tmp_path / "embeddings" / "val.npz") as arrays:
    assert np.ptp(arrays["features"], axis=0).max() > 0


def test_flops_by_hand():
  model = videomae.VideoMAEConfig(
    frames=4, image_px=(32, 32), patch=(2, 8, 8), width=32, depth=2, heads=2,
    mlp_width=64, decoder_width=16, decoder_depth=1, decoder_heads=2,
    decoder_mlp_width=32, latent=True,
  )  # fmt: skip
  n, k, m, d, e, p = 32, 8, 24, 32, 16, 2 * 8 * 8 * 3

  def stack(tokens, width, depth, mlp):
    return depth * (
      8 * tokens * width**2
      + 4 * tokens**2 * width
      + 4 * tokens * width * mlp
    )  # fmt: skip

  embed = 2 * k * p * d
  forward = embed + stack(k, d, 2, 64) + 2 * k * d * e
  forward += stack(k + m, e, 1, 32) + 2 * m * e * d
  teacher = 2 * n * p * d + stack(n, d, 2, 64)
  expected = 3 * forward - embed + teacher
  assert flops.latent_step_flops(model, k, m) == expected


def test_paths_shapes_types_and_shardings(repo_root):
  config = latent_config.get_config("base")
  model = latent.videomae.model_config(config)
  tx = optim.make_optimizer(config.optim, lambda step: 1e-3)
  abstract = states.abstract_state(
    lambda key: latent.videomae.init_params(model, key), tx, latent.init_extra
  )
  shardings = states.state_shardings(abstract, parallel.make_mesh(8))
  text = states.describe(abstract, shardings)
  path = repo_root / "tests" / "golden" / "params_latent.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  assert text == path.read_text(), f"UPDATE_GOLDEN=1 rewrites {path.name}"


@pytest.mark.parametrize(
  ("block", "key", "value", "words"),
  [
    ("optim", "ema_decay", 0.9, "config.optim.ema_decay = 0.9.*'latent'"),
    ("teacher", "decay_end", 0.5, "decay_end = 0.5.*teacher.decay = 0.996"),
    ("teacher", "decay", 1.5, "config.teacher.decay"),
  ],
)
def test_bad_settings_are_named(block, key, value, words):
  config = latent_config.get_config("smoke")
  config.workdir = "somewhere"
  config[block][key] = value
  with pytest.raises(ValueError, match=words):
    configs.validate(config, latent.Config)


def test_weights_of_another_task_are_refused(repo_root, data, tmp_path):
  config = small_config(tmp_path, data)
  runs = repo_root / "tests" / "golden" / "old_runs"
  config.model.init_from = str(runs / "videomae")
  with pytest.raises(ValueError, match="run of task 'videomae'.*'latent'"):
    train_setup.prepare(config)


@pytest.mark.parametrize("preset", latent_config.PRESETS)
def test_presets_are_valid(preset):
  config = latent_config.get_config(preset)
  config.workdir = "somewhere"
  configs.validate(config, latent.Config)
