import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors

from wsiseq_jax.models import posemb, videomae
from wsiseq_jax.tasks.videomae import losses
from wsiseq_jax.weights import hf_videomae

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
PRETRAINING = ("videomae_square", "videomae_rectangle")
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 1, 3)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 1, 3)
# Largest differences seen: 7e-7 in the logits, 3e-6 in tokens of size 10.
TOLERANCE = 2e-5


def load_golden(name):
  config, params = hf_videomae.load(GOLDEN / name)
  expected = safetensors.load_file(GOLDEN / name / "expected.safetensors")
  # PyTorch has channels before rows.
  pixels = jnp.asarray(expected["pixels"].transpose(0, 1, 3, 4, 2))
  return config, params, expected, pixels


def build(config, params):
  abstract = nnx.eval_shape(lambda: videomae.VideoMAE(config, nnx.Rngs(0)))
  graphdef, _ = nnx.split(abstract, nnx.Param)
  return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def rows(mask):
  return jnp.asarray(np.stack([np.flatnonzero(row) for row in mask]))


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
@pytest.mark.parametrize("name", PRETRAINING)
def test_outputs_and_loss_equal_hugging_face(name, kernel):
  config, params, expected, pixels = load_golden(name)
  config = dataclasses.replace(config, attention_kernel=kernel)
  model = build(config, params)
  visible, decode = rows(~expected["mask"]), rows(expected["mask"])
  prediction, out = model(pixels, visible, decode)
  np.testing.assert_allclose(
    prediction, expected["logits"], rtol=0, atol=TOLERANCE
  )
  np.testing.assert_allclose(
    out["encoder/tokens"], expected["visible_tokens"], rtol=0, atol=TOLERANCE
  )
  tokens, _ = model.encode(pixels)
  np.testing.assert_allclose(
    tokens, expected["all_tokens"], rtol=0, atol=TOLERANCE
  )
  patches = videomae.patchify(pixels * STD + MEAN, config.patch)
  target = losses.normalised_patch_target(patches)
  target = videomae.take_tokens(target, decode)
  total, weight = losses.masked_mse(prediction, target, jnp.ones(decode.shape))
  assert abs(float(total / weight) - float(expected["loss"])) < 1e-5


@pytest.mark.parametrize("name", PRETRAINING)
def test_export_equals_the_original_file_bit_for_bit(name, tmp_path):
  config, params = hf_videomae.load(GOLDEN / name)
  hf_videomae.save(tmp_path, config, params)
  written = (tmp_path / "model.safetensors").read_bytes()
  assert written == (GOLDEN / name / "model.safetensors").read_bytes()
  ours = json.loads((tmp_path / "config.json").read_text())
  theirs = json.loads((GOLDEN / name / "config.json").read_text())
  assert ours.pop("qkv_bias") == theirs["qv_bias"]
  assert ours == {key: theirs[key] for key in ours}
  assert hf_videomae.load(tmp_path)[0] == config


def test_rules_name_every_parameter_exactly_once():
  config = videomae.VideoMAEConfig(**videomae.SIZES["tiny"])
  model = videomae.VideoMAE(config, nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  tensors = hf_videomae.params_to_hf(params, config)
  back = hf_videomae.params_from_hf(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  assert sum(t.size for t in tensors.values()) == sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )


def test_weights_that_do_not_fit_are_all_listed():
  config, params = hf_videomae.load(GOLDEN / "videomae_square")
  tensors = hf_videomae.params_to_hf(params, config)
  del tensors["decoder.norm.bias"]
  del tensors["videomae.encoder.layer.2.attention.attention.q_bias"]
  tensors["videomae.extra"] = np.zeros(3, np.float32)
  tensors["mask_token"] = np.zeros((1, 1, 7), np.float32)
  with pytest.raises(ValueError) as error:
    hf_videomae.params_from_hf(tensors, config)
  text = str(error.value)
  assert "4 problems" in text
  assert "missing: decoder.norm.bias" in text
  assert "missing: videomae.encoder.layer.2.attention.attention.q_bias" in text
  assert "unexpected: videomae.extra" in text
  assert "shape: mask_token is (1, 1, 7), wants (1, 1, 24)" in text


def test_parameters_that_do_not_fit_are_not_written(tmp_path):
  config, params = hf_videomae.load(GOLDEN / "videomae_square")
  del params["decoder"]
  with pytest.raises(ValueError, match="decoder/mask_token is missing"):
    hf_videomae.save(tmp_path / "out", config, params)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "prefix", ["_orig_mod.", "module.", "module._orig_mod."]
)
def test_wrapper_prefixes_and_new_bias_names_are_read(prefix):
  config, params = hf_videomae.load(GOLDEN / "videomae_square")
  tensors = {}
  for name, tensor in safetensors.load_file(
    GOLDEN / "videomae_square" / "model.safetensors"
  ).items():
    name = name.replace("q_bias", "query.bias").replace("v_bias", "value.bias")
    tensors[prefix + name] = tensor
  again = hf_videomae.params_from_hf(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  tensors["mask_token"] = tensors[f"{prefix}mask_token"]
  with pytest.raises(ValueError, match="two tensors are called mask_token"):
    hf_videomae.params_from_hf(tensors, config)


def test_init_from_resamples_positions_for_another_grid():
  name = GOLDEN / "videomae_square"
  found = hf_videomae.read_config(name)
  wanted = dataclasses.replace(
    found, frames=8, image_px=(32, 64), dtype="bfloat16", norm_eps=1e-6
  )
  config = hf_videomae.settle(name, wanted)
  assert config.trained_grid == (2, 4, 4) and config.grid == (4, 4, 8)
  assert config.dtype == "bfloat16" and config.norm_eps == 1e-12
  table = posemb.position_table(config.grid, 48, config.trained_grid)
  assert table.shape == (128, 48)
  with pytest.raises(ValueError, match="model.trained_grid"):
    hf_videomae.config_to_hf(config)
  assert hf_videomae.settle(name, found) == found


def test_init_from_names_the_keys_that_disagree():
  found = hf_videomae.read_config(GOLDEN / "videomae_square")
  wanted = dataclasses.replace(found, depth=4, decoder_heads=3)
  with pytest.raises(ValueError) as error:
    hf_videomae.settle(GOLDEN / "videomae_square", wanted)
  assert "config.model.depth = 4, file 3" in str(error.value)
  assert "config.model.decoder_heads = 3, file 2" in str(error.value)
  assert "width" not in str(error.value)


def test_files_that_are_not_there_are_named(tmp_path):
  with pytest.raises(ValueError, match="model.safetensors"):
    hf_videomae.load(tmp_path)
  source = GOLDEN / "videomae_square" / "model.safetensors"
  shutil.copy(source, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="config.json"):
    hf_videomae.load(tmp_path)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"qkv_bias": False}, "qkv_bias"),
    ({"qv_bias": False}, "qkv_bias"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu', but only 'gelu'"),
    ({"use_mean_pooling": True}, "use_mean_pooling = True"),
    ({"patch_size": [16, 8]}, "patch_size"),
    ({"image_size": 100}, "does not divide"),
  ],
)
def test_hugging_face_configs_that_cannot_be(change, message):
  with pytest.raises(ValueError, match=message):
    hf_videomae.config_from_hf(change)


def test_defaults_of_hugging_face_are_videomae_base():
  config = hf_videomae.config_from_hf({"use_mean_pooling": False})
  base = videomae.VideoMAEConfig(**videomae.SIZES["base"])
  assert config == dataclasses.replace(
    base, norm_eps=1e-12, decoder_norm_eps=1e-5
  )
  with pytest.raises(ValueError, match="square patches"):
    hf_videomae.config_to_hf(dataclasses.replace(base, patch=(2, 16, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_hugging_face_reads_our_export(name, tmp_path):
  """Export, reload with PyTorch, same outputs; needs the `parity` extra."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config, params, expected, _ = load_golden(name)
  hf_videomae.save(tmp_path, config, params)
  maker = transformers.VideoMAEForPreTraining
  model, info = maker.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info.values()), info
  pixels = torch.from_numpy(expected["pixels"])
  mask = torch.from_numpy(expected["mask"])
  with torch.no_grad():
    logits = model.eval()(pixels, bool_masked_pos=mask).logits.numpy()
  np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-6)
