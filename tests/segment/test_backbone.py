"""Backbones: shapes, golden parameters, what learns, and bad settings."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.files import schema
from wsiseq_jax import encoders, parallel
from wsiseq_jax.models import resnet, tile_vit
from wsiseq_jax.segment import backbone as backbones
from wsiseq_jax.segment import cam, student
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.weights import files, tile_encoders

SMALL = Backbone(channels=(8, 8, 8, 8, 8))
RESNETS = {
  norm: Backbone(name="resnet50", random_weights=True, norm=norm)
  for norm in ("fixed", "group")
}
MODELS = {
  "cam_small": (Backbone(), lambda b: cam.classifier(b, 3, 2)),
  "cam_resnet50_fixed": (
    Backbone(name="resnet50", random_weights=True, norm="fixed", train="late"),
    lambda b: cam.classifier(b, 5, 2),
  ),
  "cam_resnet50_group": (
    RESNETS["group"],
    lambda b: cam.classifier(b, 5, 2),
  ),
  "student_small": (
    Backbone(),
    lambda b: student.network(b, 2, 64, True, False),
  ),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_golden_file(name, repo_root):
  backbone, make = MODELS[name]
  key = jax.random.key(0)
  frozen = jax.eval_shape(backbone.init, key)
  found = jax.eval_shape(lambda f: make(backbone).init(key, f, None), frozen)
  lines = [
    f"{parallel.path_name(path)} {leaf.dtype}{list(leaf.shape)}"
    for path, leaf in jax.tree.leaves_with_path(found)
  ]
  text = "\n".join(lines) + "\n"
  path = repo_root / "tests" / "golden" / f"segment_{name}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  assert text == path.read_text(), f"UPDATE_GOLDEN=1 rewrites {path.name}"


@pytest.mark.parametrize("backbone", [SMALL, *RESNETS.values()])
def test_strides_and_widths(backbone):
  pixels = jax.ShapeDtypeStruct((2, 96, 64, 3), np.uint8)
  params = jax.eval_shape(backbone.init, jax.random.key(0))
  maps = jax.eval_shape(backbone.features, params, pixels)
  for x, stride, width in zip(
    maps, backbones.STRIDES, backbone.widths, strict=True
  ):
    assert x.shape == (2, 96 // stride, 64 // stride, width)
    assert x.dtype == np.float32


def test_pixels_may_be_bytes_or_numbers():
  params = SMALL.start(0)
  pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
  features = jax.jit(SMALL.features)
  one = features(params, jnp.asarray(pixels))
  two = features(params, jnp.asarray(pixels, jnp.float32))
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("train", ["all", "late", "none"])
def test_only_what_learns_has_a_gradient(train):
  backbone = Backbone(channels=(4, 4, 4, 4, 4), train=train)
  frozen = backbone.start(0)
  learned = backbone.learned(frozen)
  names = set(frozen) if train == "all" else {"block4", "block5"}
  assert set(learned) == (set() if train == "none" else names)
  pixels = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3)) * 255

  def total(frozen, learned):
    maps = backbone.features({**frozen, **learned}, pixels)
    return sum(jnp.square(x).mean() for x in maps)

  of_frozen, of_learned = jax.jit(jax.grad(total, (0, 1)))(frozen, learned)
  for name in frozen:
    size = sum(float(abs(g).sum()) for g in jax.tree.leaves(of_frozen[name]))
    assert size == 0, name
  for name, grads in of_learned.items():
    assert all(float(abs(g).sum()) > 0 for g in jax.tree.leaves(grads)), name


def test_group_norm_takes_the_place_of_a_files_batch_norm(repo_root):
  spec = resnet.ResNetSpec(
    blocks=(2, 1, 2, 1), stem_width=4, bottleneck_width=2
  )
  path = repo_root / "tests/golden/encoders/torchvision_resnet.safetensors"
  tensors = files.read(str(path), "weights")
  kept = tile_encoders.resnet_params(tensors, spec, keep_norm=True)
  one = kept["layer1/0/conv2"]
  assert set(one) == {"kernel", "scale", "offset"}
  theirs = tensors["layer1.0.bn2.weight"]
  np.testing.assert_array_equal(one["scale"], theirs)
  np.testing.assert_array_equal(one["offset"], tensors["layer1.0.bn2.bias"])
  kept = jax.tree.map(jnp.asarray, kept)
  pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  maps = jax.eval_shape(
    lambda x: resnet.maps(kept, spec, x, (1, 2, 2, 1)), pixels
  )
  assert maps[-1].shape == (1, 4, 4, 4 * 2 * 8)


def tiny_vit(patch_px):
  return tile_vit.ViTSpec(patch_px, 8, 1, 2, 16, tile_px=4 * patch_px)


def test_a_vits_map_is_its_patches_and_takes_any_size():
  spec = tiny_vit(16)
  params = jax.jit(tile_vit.init_params, static_argnums=0)(
    spec, jax.random.key(0)
  )
  patch_map = jax.jit(tile_vit.patch_map, static_argnums=1)
  tiles = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
  mean = jax.jit(tile_vit.apply, static_argnums=1)(params, _pooled(spec), tiles)
  found = patch_map(params, spec, tiles)
  np.testing.assert_allclose(found.mean(axis=(1, 2)), mean, atol=1e-5)
  wide = patch_map(params, spec, tiles[:, :32].repeat(2, axis=2))
  assert wide.shape == (2, 2, 8, 8)
  with pytest.raises(ValueError, match="multiples of the patches of 16 px"):
    tile_vit.patch_map(params, spec, tiles[:, :40])


def _pooled(spec):
  return dataclasses.replace(spec, pooling="mean")


@pytest.mark.parametrize("patch_px", [14, 16])
def test_any_tile_encoder_is_a_backbone(monkeypatch, patch_px):
  monkeypatch.setitem(tile_vit.PRESETS, "vit_small_16", tiny_vit(patch_px))
  settings = encoders.Settings(
    name="vit_small_16", random_weights=True, seed=patch_px
  )
  backbone = Backbone(name="encoder", encoder=settings, train="none")
  pixels = jnp.full((1, 64, 96, 3), 200, jnp.uint8)
  maps = backbone.features(backbone.start(0), pixels)
  assert [x.shape[1:3] for x in maps] == [
    (64 // s, 96 // s) for s in backbones.STRIDES
  ]
  assert backbone.widths == (8,) * 5


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"name": "resnet"}, "config.backbone.name = 'resnet': must be one of"),
    ({"name": "resnet50"}, "weights = '', .*name a file of weights, or ask"),
    ({"weights": "a.pth"}, "are for config.backbone.name = 'resnet50'"),
    ({"norm": "fixed"}, "norm = 'fixed': is for config.backbone.name = 'res"),
    (
      {"encoder": {"name": "phikon"}},
      "encoder.name = 'phikon', ...: is for config.backbone.name = 'encoder'",
    ),
    ({"name": "encoder", "train": "late"}, "learns as a whole or not at all"),
    ({"channels": (8, 8)}, "channels = .*a tuple of 5"),
  ],
)
def test_bad_settings_are_named(values, words):
  with pytest.raises(ValueError, match=words):
    schema.build(Backbone, values, "config.backbone")


def test_a_missing_file_of_weights_is_named(tmp_path):
  backbone = Backbone(name="resnet50", weights=str(tmp_path / "none.pth"))
  for ask in (lambda: backbone.start(0), lambda: backbone.fingerprint):
    with pytest.raises(ValueError, match="config.backbone.weights"):
      ask()
