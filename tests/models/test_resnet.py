"""ResNet against torchvision's, and by hand."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from wsiseq_jax.data import augment
from wsiseq_jax.models import resnet
from wsiseq_jax.weights import files, tile_encoders

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "encoders"
TINY = resnet.ResNetSpec(blocks=(2, 1, 2, 1), stem_width=4, bottleneck_width=2)

apply = jax.jit(resnet.apply, static_argnums=1)
init_params = jax.jit(resnet.init_params, static_argnums=0)


@pytest.fixture(scope="module")
def expected():
  return safetensors.load_file(GOLDEN / "expected.safetensors")


@pytest.mark.parametrize("stages", [3, 4])
def test_features_equal_torchvisions(expected, stages):
  spec = dataclasses.replace(TINY, blocks=TINY.blocks[:stages])
  params = tile_encoders.resnet_params(
    files.read(
      GOLDEN / "torchvision_resnet.safetensors", "config.encoder.weights"
    ),
    spec,
  )
  tiles = jnp.asarray(expected["resnet/tiles"]) / 255.0
  pixels = augment.normalise(tiles, augment.IMAGENET_MEAN, augment.IMAGENET_STD)
  out = apply(params, spec, pixels)
  want = expected[f"resnet/layer{stages}"]
  assert out.shape == (2, spec.width) and np.abs(want).max() > 0.5
  # Largest difference seen: 1e-6.
  np.testing.assert_allclose(out, want, rtol=0, atol=2e-5)


def test_the_architecture_is_resnet_50():
  whole = resnet.kernel_shapes(resnet.PRESETS["resnet50"])
  cut = resnet.kernel_shapes(resnet.PRESETS["resnet50_trunc"])
  # 25,557,032 parameters, less the classifier and 2 for each norm's channel.
  channels = sum(shape[-1] for shape in whole.values())
  kernels = sum(int(np.prod(shape)) for shape in whole.values())
  assert kernels + 2 * channels == 25_557_032 - 2049 * 1000
  assert len(whole) == 53 and len(cut) == 43
  assert all(whole[path] == shape for path, shape in cut.items())
  assert whole["layer4/0/conv2"] == (3, 3, 512, 512)


def test_random_features_are_finite_and_differ():
  spec = dataclasses.replace(TINY, blocks=(2,))
  params = init_params(spec, jax.random.key(0))
  pixels = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
  out = np.asarray(apply(params, spec, pixels))
  assert np.isfinite(out).all() and 0.05 < out.std() < 20
  assert np.abs(out[0] - out[1]).max() > 1e-3
  half = dataclasses.replace(spec, dtype="bfloat16")
  rough = np.asarray(apply(params, half, pixels))
  assert rough.dtype == np.float32
  assert 0 < np.abs(rough - out).max() < 0.1 * np.abs(out).max()


def test_tiles_that_are_too_small_are_refused():
  with pytest.raises(ValueError, match="tile_px = 31.* needs 32"):
    resnet.apply({}, TINY, jnp.zeros((1, 31, 64, 3)))
