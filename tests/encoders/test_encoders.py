"""Encoders from configs: weights, fingerprints, refusals, and our own runs."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors import numpy as safetensors

from data_prep.synthetic import smoke
from tests import clip_run, small_run
from wsiseq_jax import checkpoint, encoders, tasks
from wsiseq_jax import config as configs
from wsiseq_jax.data import augment, loader
from wsiseq_jax.data import source as sources
from wsiseq_jax.encoders import encoder as encoder_module
from wsiseq_jax.models import resnet, tile_vit
from wsiseq_jax.state import TrainState

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "encoders"
TINY_VIT = tile_vit.ViTSpec(
  patch_px=4, width=24, depth=2, heads=3, mlp_width=48, tile_px=24
)
TINY_RESNET = resnet.ResNetSpec((1, 1), stem_width=4, bottleneck_width=2)
VIT = dict(name="vit_small_16", weights=str(GOLDEN / "timm_gelu.safetensors"))
RANDOM = dict(name="resnet50", random_weights=True, tile_px=32)


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
  monkeypatch.setitem(tile_vit.PRESETS, "vit_small_16", TINY_VIT)
  monkeypatch.setitem(resnet.PRESETS, "resnet50", TINY_RESNET)


@pytest.fixture(scope="module")
def expected():
  return safetensors.load_file(GOLDEN / "expected.safetensors")


def test_features_of_uint8_tiles_equal_timms(expected):
  encoder = encoders.load(ConfigDict(VIT))
  assert (encoder.name, encoder.width) == ("vit_small_16", 24)
  assert encoder.tile_px == encoder.window_px == 24
  assert encoder.weights == f"file {VIT['weights']}"
  out = jax.jit(encoder.apply)(encoder.params, expected["tiles_24"])
  assert out.dtype == jnp.float32
  want = expected["timm_gelu/24/class"]
  np.testing.assert_allclose(out, want, rtol=0, atol=2e-5)


def test_another_tile_size_resamples_positions(expected):
  encoder = encoders.load({**VIT, "tile_px": 32, "pooling": "class_mean"})
  assert (encoder.width, encoder.window_px) == (48, 32)
  out = jax.jit(encoder.apply)(encoder.params, expected["tiles_32"])
  want = [expected[f"timm_gelu/32/{part}"] for part in ("class", "mean")]
  np.testing.assert_allclose(out, np.concatenate(want, 1), rtol=0, atol=2e-5)


def test_fingerprints_tell_what_is_computed(tmp_path):
  one = encoders.load(RANDOM)
  again = encoders.load({**RANDOM, "seed": 0})
  assert one.fingerprint == again.fingerprint
  assert one.weights == "random, seed 0" and one.width == 16
  changes = (
    {"seed": 1}, {"tile_px": 36}, {"dtype": "bfloat16"},
    {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)},
  )  # fmt: skip
  others = [encoders.load({**RANDOM, **c}).fingerprint for c in changes]
  others += [
    encoders.load({**VIT, **c}).fingerprint
    for c in ({}, {"pooling": "mean"}, {"tile_px": 32})
  ]
  assert len({one.fingerprint, *others}) == 9
  moved = tmp_path / "elsewhere.safetensors"
  moved.write_bytes(pathlib.Path(VIT["weights"]).read_bytes())
  same = {**VIT, "weights": str(moved), "attention_kernel": "xla"}
  assert encoders.load(same).fingerprint == others[5]


def test_normalisation_is_part_of_the_encoder():
  tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  encoder = encoders.load({**RANDOM, "mean": (0.1, 0.2, 0.3)})
  assert encoder.mean == (0.1, 0.2, 0.3)
  assert encoder.std == augment.IMAGENET_STD
  pixels = (tiles / 255.0 - np.array(encoder.mean)) / np.array(encoder.std)
  apply = jax.jit(resnet.apply, static_argnums=1)
  np.testing.assert_allclose(
    jax.jit(encoder.apply)(encoder.params, tiles),
    apply(encoder.params, TINY_RESNET, jnp.asarray(pixels, jnp.float32)),
    atol=1e-5,
  )
  with pytest.raises(ValueError, match=r"windows of float32\[2, 32, 32, 3\]"):
    encoder_module.check_windows(jnp.zeros((2, 32, 32, 3)), 32)
  with pytest.raises(ValueError, match=r"encoder of uint8\[b, 32, 32, 3\]"):
    encoder.apply(encoder.params, tiles[:, :30])


def test_matrices_are_kept_in_the_compute_dtype():
  encoder = encoders.load({**VIT, "dtype": "bfloat16"})
  attention = encoder.params["blocks"]["attention"]
  assert attention["qkv"]["kernel"].dtype == jnp.bfloat16
  assert attention["qkv"]["bias"].dtype == jnp.float32
  assert encoder.params["pos_embed"].dtype == jnp.float32


@pytest.mark.parametrize(
  "change, message",
  [
    ({"pooling": "max"}, "encoder.pooling = 'max': must be one of"),
    ({"name": "resnet18"}, "encoder.name = 'resnet18': must be one of 'resnet"),
    ({"weigths": "a"}, "encoder.weigths = 'a': unknown key; did you mean 'we"),
    ({"weights": ""}, "encoder.weights = '' and .*random_weights = False"),
    ({"random_weights": True}, "random_weights = True: name a file"),
    (
      {"weights": "none.safetensors"},
      "weights = 'none.safe.*no such file",
    ),
    ({"name": "vit_base_16"}, "name = 'vit_base_16': weights do not fit"),
    ({"name": "resnet50"}, "another encoder .timm., no ResNet"),
    ({"tile_px": 30}, "tile_px = 30: must be a multiple"),
    ({"layer": 3}, "layer = 3: vit_small_16 has 2 blocks"),
    ({"trained_px": 32}, r"pos_embed is \(1, 37, 24\), wants \(1, 65, 24\)"),
    ({"std": (0.1, 0.2, 0.0)}, "std = .*: must be above 0"),
    ({"mean": (0.5,)}, "mean = .*: must be a tuple.*none or three"),
    (
      {"checkpoint": "a"},
      "checkpoint = 'a': is for config.encoder.name = 'run",
    ),
    ({"name": "run"}, "weights = .*: is decided by the run"),
    ({"name": "run", "weights": ""}, "checkpoint = '': no checkpoint there"),
  ],
)
def test_configs_that_cannot_be(change, message):
  with pytest.raises(ValueError, match=message):
    encoders.load({**VIT, **change})


def test_keys_of_vits_mean_nothing_to_a_resnet():
  with pytest.raises(ValueError, match="pooling = 'mean': means nothing to a"):
    encoders.load({**RANDOM, "pooling": "mean"})
  with pytest.raises(ValueError, match="tile_px = 4: resnet50 needs 8"):
    encoders.load({**RANDOM, "tile_px": 4})


@pytest.mark.parametrize("layer", [1, 2])
def test_features_after_a_block_are_those_of_fewer_blocks(expected, layer):
  whole = encoders.load(VIT)
  cut = encoders.load({**VIT, "layer": layer})
  tiles = expected["tiles_24"]
  spec = dataclasses.replace(TINY_VIT, depth=layer)
  blocks = jax.tree.map(lambda leaf: leaf[:layer], whole.params["blocks"])
  pixels = augment.normalise(jnp.asarray(tiles) / 255.0, whole.mean, whole.std)
  want = tile_vit.apply({**whole.params, "blocks": blocks}, spec, pixels)
  out = jax.jit(cut.apply)(cut.params, tiles)
  np.testing.assert_allclose(out, want, rtol=0, atol=2e-5)
  # The last block is the whole net, and the same features.
  is_whole = layer == TINY_VIT.depth
  assert (cut.fingerprint == whole.fingerprint) == is_whole
  assert cut.weights.endswith(f"after block {layer} of 2")
  if not is_whole:
    assert np.abs(out - jax.jit(whole.apply)(whole.params, tiles)).max() > 0.1


# Encoders of sequences.


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that was never trained: its folder, task and parameters."""

  folder: pathlib.Path
  task: tasks.base.Task
  params: dict
  setup: Any

  def config(self, **changes):
    return {"name": "run", "checkpoint": str(self.folder), **changes}


def write_run(folder, config):
  """Saves a checkpoint of fresh parameters, as training would."""
  module = tasks.get(config.task)
  config = module.resolve(config)
  spec = sources.read_spec(config.data.path)
  task = module.make_task(config, spec)
  params = jax.jit(task.init)(jax.random.key(3))
  with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    checkpoints.save(
      TrainState(jnp.int32(7), params, {"none": jnp.zeros(1)}),
      {"position": 0},
      {
        "config": configs.to_dict(config),
        "fingerprint": spec.fingerprint,
      },
    )
  return Run(folder, task, params, module.make_setup(config, spec))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  """Strips with a window of 32 px that drifts by 4 px a frame."""
  return smoke.make_shards(tmp_path_factory.mktemp("shards"), window_px=32)


@pytest.fixture(scope="module")
def videomae_run(tmp_path_factory, shards):
  folder = tmp_path_factory.mktemp("videomae")
  return write_run(folder, small_run.small_config(folder, shards))


@pytest.fixture(scope="module")
def contrastive_run(tmp_path_factory, shards):
  """One that is told the time, counted from the first frame of a clip."""
  folder = tmp_path_factory.mktemp("csimclr_te")
  config = clip_run.small_config("csimclr_te", folder, shards)
  config.model.relative_time = True
  return write_run(folder, config)


def random_windows(count, px):
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (count, px, px, 3), np.uint8)


def test_a_still_clip_shows_the_tile_in_every_frame(videomae_run):
  encoder = encoders.load(videomae_run.config())
  assert (encoder.tile_px, encoder.window_px, encoder.width) == (32, 32, 32)
  assert "task videomae, step 7" in encoder.weights and encoder.mpp is None
  tiles = random_windows(2, 32)
  setup = videomae_run.setup
  pixels = augment.normalise(
    jnp.asarray(tiles) / 255.0, encoder.mean, encoder.std
  )
  clips = jnp.tile(pixels[:, None], (1, 8, 1, 1, 1))
  encoded, _ = jax.jit(lambda p: setup.merge(p).encode(clips))(
    videomae_run.params
  )
  out = jax.jit(encoder.apply)(encoder.params, tiles)
  np.testing.assert_allclose(out, encoded.mean(axis=1), atol=1e-5)
  assert np.abs(out[0] - out[1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["videomae", "contrastive"])
def test_a_drift_shows_what_a_stored_strip_does(
  videomae_run, contrastive_run, shards, kind
):
  run = videomae_run if kind == "videomae" else contrastive_run
  encoder = encoders.load(run.config(frames=8 if kind == "videomae" else 4))
  # Frames lie 4 px apart (every second one is taken, of four), 1 um a px.
  reach = 7 * 4 if kind == "videomae" else 3 * 2 * 4
  assert encoder.window_px == 32 + reach and encoder.mpp == 1.0
  source = sources.RecordSource(shards, "train")
  batch = loader.stack([loader.load(source, i) for i in range(2)])
  want = jax.jit(lambda p, b: run.task.encode(p, b, None))(run.params, batch)
  # The middle clip of the strip, in the middle of noise.
  first = (12 - (8 if kind == "videomae" else 7)) // 2
  windows = random_windows(2, encoder.window_px)
  top = (encoder.window_px - 32) // 2
  strip = batch["panels"][:, 0, :, 4 * first : 4 * first + 32 + reach]
  windows[:, top : top + 32] = strip
  out = jax.jit(encoder.apply)(encoder.params, windows)
  np.testing.assert_allclose(out, want, atol=1e-5)


def test_time_passes_in_a_drift_and_stands_in_a_still_clip(contrastive_run):
  still = encoders.load(contrastive_run.config())
  drift = encoders.load(contrastive_run.config(frames=4))
  assert len({still.fingerprint, drift.fingerprint}) == 2
  tile = np.full((1, 32, 32, 3), 200, np.uint8)
  window = np.full((1, drift.window_px, drift.window_px, 3), 200, np.uint8)
  # All frames look alike: only the time between them differs.
  apart = np.abs(
    np.asarray(jax.jit(drift.apply)(drift.params, window))
    - np.asarray(jax.jit(still.apply)(still.params, tile))
  )
  assert apart.max() > 1e-3


def test_larger_tiles_are_resized_to_the_frames_of_the_run(videomae_run):
  encoder = encoders.load(videomae_run.config(tile_px=64, frames=8))
  assert (encoder.tile_px, encoder.window_px) == (64, 64 + 56)
  assert encoder.mpp == 0.5


def test_runs_that_cannot_be(videomae_run, tmp_path):
  with pytest.raises(ValueError, match="frames = 3: must be 1 .* or 8"):
    encoders.load(videomae_run.config(frames=3))
  with pytest.raises(ValueError, match="encoder.data = .*not there"):
    encoders.load(videomae_run.config(frames=8, data=str(tmp_path)))
  other = smoke.make_shards(tmp_path / "other", window_px=36)
  with pytest.raises(ValueError, match="other shards than those of the run"):
    encoders.load(videomae_run.config(frames=8, data=str(other)))
  with pytest.raises(ValueError, match="dtype = 'float32': is decided by the"):
    encoders.load(videomae_run.config(dtype="float32"))
