"""Files of tile encoders: whether they fit."""

import dataclasses
import pathlib

import numpy as np
import pytest

from wsiseq_jax.models import resnet, tile_vit
from wsiseq_jax.weights import files, tile_encoders

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "encoders"
GELU = tile_vit.ViTSpec(
  patch_px=4, width=24, depth=2, heads=3, mlp_width=48, tile_px=24
)
RESNET = resnet.ResNetSpec((2, 1, 2, 1), stem_width=4, bottleneck_width=2)


@pytest.fixture
def vit():
  return files.read(GOLDEN / "timm_gelu.safetensors", "config.encoder.weights")


@pytest.fixture
def convs():
  return files.read(
    GOLDEN / "torchvision_resnet.safetensors", "config.encoder.weights"
  )


def test_vit_weights_that_do_not_fit_are_all_listed(vit):
  del vit["norm.bias"]
  del vit["blocks.1.attn.qkv.bias"]
  vit["extra"] = np.zeros(3, np.float32)
  vit["blocks.0.mlp.fc1.weight"] = np.zeros((48, 7), np.float32)
  vit["blocks.0.ls1.gamma"][3] = np.nan
  vit["head.weight"] = np.zeros((1000, 24), np.float32)
  with pytest.raises(ValueError) as error:
    tile_encoders.vit_params(vit, GELU)
  text = str(error.value)
  assert "names of timm, 5 problems" in text
  assert "missing: norm.bias" in text
  assert "missing: blocks.1.attn.qkv.bias" in text
  assert "unexpected: extra" in text
  assert "shape: blocks.0.mlp.fc1.weight is (48, 7), wants (48, 24)" in text
  assert "not finite: blocks.0.ls1.gamma" in text


def test_switches_of_the_model_must_be_those_of_the_file(vit):
  plain = dataclasses.replace(GELU, layer_scale=False, qkv_bias=False)
  with pytest.raises(ValueError) as error:
    tile_encoders.vit_params(vit, plain)
  assert "unexpected: blocks.1.ls2.gamma" in str(error.value)
  assert "unexpected: blocks.0.attn.qkv.bias" in str(error.value)
  with pytest.raises(ValueError, match="missing: reg_token"):
    tile_encoders.vit_params(vit, dataclasses.replace(GELU, registers=1))
  gated = dataclasses.replace(GELU, mlp="swiglu")
  with pytest.raises(ValueError, match=r"fc1.weight is \(48, 24\), wants .96"):
    tile_encoders.vit_params(vit, gated)


def test_positions_are_resampled_only_where_asked_for(vit):
  params = tile_encoders.vit_params(vit, GELU)
  np.testing.assert_array_equal(params["pos_embed"], vit["pos_embed"][0, 1:])
  np.testing.assert_array_equal(
    params["prefix"], vit["cls_token"][0] + vit["pos_embed"][0, :1]
  )
  with pytest.raises(ValueError) as error:
    tile_encoders.vit_params(vit, dataclasses.replace(GELU, tile_px=32))
  assert "pos_embed is (1, 37, 24), wants (1, 65, 24)" in str(error.value)
  assert "trained_px = 32 says that positions are those of 64" in str(
    error.value
  )
  asked = dataclasses.replace(GELU, tile_px=32, trained_px=24)
  params = tile_encoders.vit_params(vit, asked)
  assert params["pos_embed"].shape == (64, 24)


def test_query_key_and_value_are_put_side_by_side():
  tensors = files.read(
    GOLDEN / "hf_dinov2.safetensors", "config.encoder.weights"
  )
  params = tile_encoders.vit_params(tensors, GELU)
  qkv = params["blocks"]["attention"]["qkv"]
  name = "encoder.layer.1.attention.attention.value"
  np.testing.assert_array_equal(
    qkv["kernel"][1, :, 48:], tensors[f"{name}.weight"].T
  )
  np.testing.assert_array_equal(qkv["bias"][1, 48:], tensors[f"{name}.bias"])


@pytest.mark.parametrize("prefix", ["module.", "teacher.backbone."])
def test_prefixes_of_wrappers_are_stripped(vit, prefix):
  wrapped = {prefix + name: tensor for name, tensor in vit.items()}
  params = tile_encoders.vit_params(wrapped, GELU)
  assert params["norm"]["bias"].tolist() == vit["norm.bias"].tolist()
  wrapped["norm.bias"] = vit["norm.bias"]
  with pytest.raises(ValueError, match="two tensors are called norm.bias"):
    tile_encoders.vit_params(wrapped, GELU)


def test_resnet_weights_that_do_not_fit_are_all_listed(convs):
  del convs["layer2.0.bn3.running_var"]
  convs["layer1.0.conv1.weight"] = np.zeros((2, 4, 3, 3), np.float32)
  convs["layer4.1.conv1.weight"] = np.zeros((16, 64, 1, 1), np.float32)
  with pytest.raises(ValueError) as error:
    tile_encoders.resnet_params(convs, RESNET)
  text = str(error.value)
  assert "names of torchvision, 3 problems" in text
  assert "missing: layer2.0.bn3.running_var" in text
  assert "unexpected: layer4.1.conv1.weight" in text
  assert "conv1.weight is (2, 4, 3, 3), wants (2, 4, 1, 1)" in text


def test_weights_of_another_kind_are_said_to_be(vit, convs):
  with pytest.raises(ValueError, match=r"another encoder \(timm\), no ResNet"):
    tile_encoders.resnet_params(vit, RESNET)
  with pytest.raises(ValueError, match=r"encoder \(torchvision\), no ViT"):
    tile_encoders.vit_params(convs, GELU)
  with pytest.raises(ValueError, match="1 tensors begin with .'a.b'"):
    tile_encoders.vit_params({"a.b": np.zeros(1)}, GELU)
