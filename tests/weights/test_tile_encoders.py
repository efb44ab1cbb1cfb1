"""Files of weights: what is read, and what is refused."""

import collections
import dataclasses
import os
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import flax as safetensors_flax

from wsiseq_jax.models import resnet, tile_vit
from wsiseq_jax.weights import tile_encoders

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "encoders"
GELU = tile_vit.ViTSpec(
  patch_px=4, width=24, depth=2, heads=3, mlp_width=48, tile_px=24
)
RESNET = resnet.ResNetSpec((2, 1, 2, 1), stem_width=4, bottleneck_width=2)


@pytest.fixture
def vit():
  return tile_encoders.read(GOLDEN / "timm_gelu.pth")


@pytest.fixture
def convs():
  return tile_encoders.read(GOLDEN / "torchvision_resnet.pth")


# Files of PyTorch.


@pytest.mark.parametrize("file", ["types.pth", "types_old.pth"])
def test_number_types_and_views_of_a_torch_file(file):
  found = tile_encoders.read(GOLDEN / file)
  assert found["view"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
  assert found["transposed"].tolist()[1] == [1, 5, 9]
  assert found["parameter"].tolist() == [0.5]
  for name in ("float64", "float16", "bfloat16", "int64", "uint8", "bool"):
    assert found[name].dtype == np.dtype(name)
    assert found[name].astype(int).tolist() == [
      0,
      1,
      1 if name == "bool" else 3,
    ]


def write_torch(path, content):
  """A zip archive as torch.save makes it, of whatever pickle."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", pickle.dumps(content, protocol=2))
    archive.writestr("x/byteorder", "little")
  return path


class Evil:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_pickles_that_run_programs_are_refused(tmp_path, function):
  mark = tmp_path / "was_here"
  path = write_torch(
    tmp_path / "a.pth", {"weight": Evil(function, f"touch {mark}")}
  )
  with pytest.raises(ValueError) as error:
    tile_encoders.read(path)
  assert f".{function.__name__}. Nothing of it was run" in str(error.value)
  assert not mark.exists()


def test_old_files_are_read_as_carefully(tmp_path):
  data = (GOLDEN / "types_old.pth").read_bytes()
  path = tmp_path / "a.pth"
  path.write_bytes(data[:-3])
  with pytest.raises(ValueError, match="damaged, or no file of torch.save"):
    tile_encoders.read(path)
  mark = tmp_path / "was_here"
  evil = pickle.dumps(Evil(os.system, f"touch {mark}"))
  path.write_bytes(evil + data)
  with pytest.raises(ValueError, match=".system. Nothing of it was run"):
    tile_encoders.read(path)
  assert not mark.exists()


def test_other_objects_are_named(tmp_path):
  path = write_torch(tmp_path / "a.pt", {"args": pathlib.PurePosixPath("a")})
  with pytest.raises(ValueError, match="more than tensors: pathlib.PurePosix"):
    tile_encoders.read(path)


def hand_made(path, size, stride, offset=0, count=4, kind="FloatStorage"):
  """A file with one tensor, written opcode by opcode."""
  pid = b"(X\7\0\0\0storagectorch\n" + kind.encode() + b"\n"
  pid += b"X\1\0\0\x000X\3\0\0\0cpuK" + bytes([count]) + b"tQ"

  def packed(values):
    return b"(" + b"".join(b"K" + bytes([n]) for n in values) + b"t"

  body = b"\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
  body += pid + b"K" + bytes([offset]) + packed(size) + packed(stride)
  body += b"\x89ccollections\nOrderedDict\n)RtRs."
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", body)
    archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())
  return path


def test_a_tensor_written_by_hand(tmp_path):
  path = hand_made(tmp_path / "a.pth", (2,), (2,), offset=1)
  assert tile_encoders.read(path)["w"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
  "case",
  [
    dict(size=(5,), stride=(1,)),
    dict(size=(2,), stride=(3,), offset=1),
    dict(size=(200, 200), stride=(0, 0)),
    dict(size=(4,), stride=(1, 1)),
    dict(size=(4,), stride=(1,), count=5),
  ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, case):
  with pytest.raises(ValueError, match="more than tensors: a (tensor|storage)"):
    tile_encoders.read(hand_made(tmp_path / "a.pth", **case))


def test_files_that_are_no_weights(tmp_path):
  old = tmp_path / "old.pth"
  old.write_bytes(pickle.dumps(1) * 3)
  with pytest.raises(ValueError, match="damaged, or no file of torch.save"):
    tile_encoders.read(old)
  with pytest.raises(ValueError, match="no state dict: a dict of .'epoch'"):
    tile_encoders.read(write_torch(tmp_path / "a.pt", {"epoch": 3}))
  nested = {"epoch": 3, "model": collections.OrderedDict()}
  assert tile_encoders.read(write_torch(tmp_path / "b.pt", nested)) == {}
  broken = tmp_path / "c.safetensors"
  broken.write_bytes(b"nothing")
  with pytest.raises(ValueError, match="c.safetensors is damaged"):
    tile_encoders.read(broken)
  with pytest.raises(ValueError, match="weights = .*no such file"):
    tile_encoders.read(tmp_path / "none.pth")
  (tmp_path / "a.onnx").write_bytes(b"")
  with pytest.raises(ValueError, match="must end in .safetensors, .pth"):
    tile_encoders.read(tmp_path / "a.onnx")


def test_folders_and_bfloat16_safetensors_are_read(tmp_path):
  safetensors_flax.save_file(
    {"a": jnp.array([0.5, 3.0], jnp.bfloat16)}, tmp_path / "model.safetensors"
  )
  found = tile_encoders.read(tmp_path)["a"]
  assert found.astype(np.float32).tolist() == [0.5, 3.0]


# Whether they fit.


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
  tensors = tile_encoders.read(GOLDEN / "hf_dinov2.safetensors")
  params = tile_encoders.vit_params(tensors, GELU)
  qkv = params["blocks"]["attention"]["qkv"]
  name = "encoder.layer.1.attention.attention.value"
  np.testing.assert_array_equal(
    qkv["kernel"][1, :, 48:], tensors[f"{name}.weight"].T
  )
  np.testing.assert_array_equal(qkv["bias"][1, 48:], tensors[f"{name}.bias"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone."])
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
