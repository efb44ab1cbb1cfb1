"""Vision transformers against timm's and Hugging Face's, and by hand."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors

from wsiseq_jax.data import augment
from wsiseq_jax.models import tile_vit
from wsiseq_jax.weights import files, tile_encoders

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "encoders"
TINY = tile_vit.ViTSpec(
  patch_px=4, width=24, depth=2, heads=3, mlp_width=48, tile_px=24,
  trained_px=24, pooling="class_mean",
)  # fmt: skip
GATED = dataclasses.replace(TINY, mlp="swiglu", mlp_width=24)
CASES = {
  "timm_gelu.safetensors": TINY,
  "timm_swiglu_registers.safetensors": dataclasses.replace(GATED, registers=2),
  "timm_plain.safetensors": dataclasses.replace(
    GATED, registers=2, qkv_bias=False, layer_scale=False
  ),
  "hf_vit.safetensors": dataclasses.replace(
    TINY, layer_scale=False, norm_eps=1e-12
  ),
  "hf_dinov2.safetensors": TINY,
  "hf_dinov2_registers.safetensors": dataclasses.replace(
    GATED, mlp_width=32, registers=3, qkv_bias=False
  ),
}

apply = jax.jit(tile_vit.apply, static_argnums=1)
init_params = jax.jit(tile_vit.init_params, static_argnums=0)


@pytest.fixture(scope="module")
def expected():
  return safetensors.load_file(GOLDEN / "expected.safetensors")


def pixels_of(expected, px):
  tiles = jnp.asarray(expected[f"tiles_{px}"]) / 255.0
  return augment.normalise(tiles, TINY.mean, TINY.std)


# At 24 px positions are used as they are, at 16 and 32 px they are resampled.
@pytest.mark.parametrize(
  "file, px",
  [(file, 24) for file in CASES]
  + [("timm_plain.safetensors", 16), ("hf_dinov2.safetensors", 16)]
  + [("hf_dinov2_registers.safetensors", 16), ("hf_vit.safetensors", 32)]
  + [("timm_gelu.safetensors", 32), ("timm_swiglu_registers.safetensors", 32)],
)
def test_features_equal_those_of_the_library(expected, file, px):
  spec = dataclasses.replace(CASES[file], tile_px=px)
  params = tile_encoders.vit_params(
    files.read(GOLDEN / file, "config.encoder.weights"), spec
  )
  out = apply(params, spec, pixels_of(expected, px))
  name = f"{file.split('.')[0]}/{px}"
  want = [expected[f"{name}/{part}"] for part in ("class", "mean")]
  # Largest differences seen: 2e-6; 8e-6 where positions are resampled.
  np.testing.assert_allclose(
    out, np.concatenate(want, axis=1), rtol=0, atol=2e-5
  )


def test_registers_are_no_patches():
  spec = dataclasses.replace(TINY, registers=2, depth=1)
  params = init_params(spec, jax.random.key(0))
  pixels = jax.random.normal(jax.random.key(1), (2, 24, 24, 3))
  graphdef = nnx.graphdef(
    nnx.eval_shape(lambda: tile_vit.TileViT(spec, nnx.Rngs(0)))
  )
  both, out = jax.jit(lambda p: nnx.merge(graphdef, p)(pixels))(params)
  assert out["registers"].shape == (2, 2, 24)
  assert out["patches"].shape == (2, 36, 24)
  np.testing.assert_array_equal(both[:, :24], out["class"])
  mean = np.asarray(out["patches"]).mean(axis=1)
  np.testing.assert_allclose(both[:, 24:], mean, atol=1e-6)
  one = dataclasses.replace(spec, pooling="mean")
  np.testing.assert_allclose(apply(params, one, pixels), mean, atol=1e-6)


def test_bfloat16_is_near_float32(expected):
  params = init_params(TINY, jax.random.key(0))
  half = dataclasses.replace(TINY, dtype="bfloat16")
  exact = apply(params, TINY, pixels_of(expected, 24))
  rough = apply(params, half, pixels_of(expected, 24))
  assert rough.dtype == jnp.float32
  assert 0 < float(jnp.abs(exact - rough).max()) < 0.15


# Numbers of parameters as published, with two for each channel of LayerScale.
@pytest.mark.parametrize(
  "name, millions",
  [
    ("vit_small_16", 21.6657), ("vit_base_16", 85.80), ("vit_large_16", 303.35),
    ("dinov2_small_14", 22.06), ("dinov2_base_14", 86.58),
    ("dinov2_large_14_reg4", 304.37), ("dinov2_giant_14", 1136.48),
    ("uni2_h", 681.4), ("virchow", 631.2), ("virchow2", 631.2),
    ("h_optimus_0", 1134.8), ("gigapath", 1134.9),
  ],
)  # fmt: skip
def test_presets_have_the_size_of_their_models(name, millions):
  spec = tile_vit.PRESETS[name]
  # The file's positions, not those resampled.
  spec = dataclasses.replace(spec, tile_px=spec.trained_px or spec.tile_px)
  shapes = jax.eval_shape(
    lambda key: tile_vit.init_params(spec, key), jax.random.key(0)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
  assert count == pytest.approx(millions, rel=2e-4)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"tile_px": 30}, "tile_px = 30: must be a multiple of the patches of 4"),
    ({"tile_px": 0}, "tile_px = 0"),
    ({"trained_px": 10}, "trained_px = 10"),
    ({"heads": 5}, "a width of 24 for 5 heads"),
  ],
)
def test_specs_that_cannot_be(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)


def test_tiles_of_another_size_are_refused():
  params = init_params(TINY, jax.random.key(0))
  with pytest.raises(ValueError, match=r"tile_px = 24: .* \(24, 28\)"):
    tile_vit.apply(params, TINY, jnp.zeros((1, 24, 28, 3)))
