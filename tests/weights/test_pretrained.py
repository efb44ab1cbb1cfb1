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
from wsiseq_jax.weights import hf_videomae, pretrained

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
PRETRAINING = ("videomae_square", "videomae_rectangle")
EVERY = (*PRETRAINING, "videomae_classification")
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 1, 3)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 1, 3)
# Largest differences seen: 7e-7 in the logits, 3e-6 in tokens of size 10.
TOLERANCE = 2e-5


def load_golden(name):
  found = pretrained.load(GOLDEN / name)
  expected = safetensors.load_file(GOLDEN / name / "expected.safetensors")
  # PyTorch has channels before rows.
  pixels = jnp.asarray(expected["pixels"].transpose(0, 1, 3, 4, 2))
  return found, expected, pixels


def build(config, params):
  abstract = nnx.eval_shape(lambda: videomae.VideoMAE(config, nnx.Rngs(0)))
  graphdef, _ = nnx.split(abstract, nnx.Param)
  return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def rows(mask):
  return jnp.asarray(np.stack([np.flatnonzero(row) for row in mask]))


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
@pytest.mark.parametrize("name", PRETRAINING)
def test_outputs_and_loss_equal_hugging_face(name, kernel):
  found, expected, pixels = load_golden(name)
  config = dataclasses.replace(found.config, attention_kernel=kernel)
  model = build(config, found.params)
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


def test_encoder_of_a_fine_tuned_model_has_no_final_norm():
  found, expected, pixels = load_golden("videomae_classification")
  assert found.kind == "classification" and not found.config.final_norm
  assert "norm" not in found.params["encoder"]
  encoder = nnx.eval_shape(lambda: videomae.Encoder(found.config, nnx.Rngs(0)))
  encoder = nnx.merge(
    nnx.graphdef(encoder), jax.tree.map(jnp.asarray, found.params["encoder"])
  )
  patches = videomae.patchify(pixels, found.config.patch)
  tokens, _ = encoder(patches, None)
  np.testing.assert_allclose(
    tokens, expected["all_tokens"], rtol=0, atol=TOLERANCE
  )
  # The head normalises after pooling, with PyTorch's default epsilon.
  head = found.params["head"]
  pooled = np.asarray(videomae.pool_features(tokens))
  centred = pooled - pooled.mean(1, keepdims=True)
  normed = centred / np.sqrt(centred.var(1, keepdims=True) + 1e-5)
  normed = normed * head["norm"]["scale"][None] + head["norm"]["bias"][None]
  logits = normed @ head["linear"]["kernel"] + head["linear"]["bias"][None]
  np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_export_equals_the_original_file_bit_for_bit(name, tmp_path):
  found = pretrained.load(GOLDEN / name)
  pretrained.save(tmp_path, found.config, found.params, found.kind)
  written = (tmp_path / "model.safetensors").read_bytes()
  assert written == (GOLDEN / name / "model.safetensors").read_bytes()
  ours = json.loads((tmp_path / "config.json").read_text())
  theirs = json.loads((GOLDEN / name / "config.json").read_text())
  assert ours.pop("qkv_bias") == theirs["qv_bias"]
  assert ours == {key: theirs[key] for key in ours}
  again = pretrained.load(tmp_path)
  assert again.config == found.config


def test_encoder_alone_round_trips(tmp_path):
  found = pretrained.load(GOLDEN / "videomae_square")
  pretrained.save(tmp_path, found.config, found.params, "model")
  names = set(safetensors.load_file(tmp_path / "model.safetensors"))
  assert "embeddings.patch_embeddings.projection.weight" in names
  assert not any(n.startswith(("decoder", "videomae.")) for n in names)
  again = pretrained.load(tmp_path / "model.safetensors")
  assert again.kind == "model" and set(again.params) == {"encoder"}
  jax.tree.map(
    np.testing.assert_array_equal,
    again.params["encoder"],
    found.params["encoder"],
  )


def test_rules_name_every_parameter_exactly_once():
  config = videomae.VideoMAEConfig(**videomae.SIZES["tiny"])
  model = videomae.VideoMAE(config, nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  tensors = pretrained.params_to_hf(params, config)
  back = pretrained.params_from_hf(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  assert sum(t.size for t in tensors.values()) == sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )


def test_weights_that_do_not_fit_are_all_listed():
  found = pretrained.load(GOLDEN / "videomae_square")
  tensors = pretrained.params_to_hf(found.params, found.config)
  del tensors["decoder.norm.bias"]
  del tensors["videomae.encoder.layer.2.attention.attention.q_bias"]
  tensors["videomae.extra"] = np.zeros(3, np.float32)
  tensors["mask_token"] = np.zeros((1, 1, 7), np.float32)
  with pytest.raises(ValueError) as error:
    pretrained.params_from_hf(tensors, found.config)
  text = str(error.value)
  assert "4 problems" in text
  assert "missing: decoder.norm.bias" in text
  assert "missing: videomae.encoder.layer.2.attention.attention.q_bias" in text
  assert "unexpected: videomae.extra" in text
  assert "shape: mask_token is (1, 1, 7), wants (1, 1, 24)" in text


def test_parameters_that_do_not_fit_are_not_written(tmp_path):
  found = pretrained.load(GOLDEN / "videomae_square")
  params = dict(found.params)
  del params["decoder"]
  with pytest.raises(ValueError, match="missing: decoder/mask_token"):
    pretrained.save(tmp_path / "out", found.config, params)
  assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match="'teacher' is not one of"):
    pretrained.save(tmp_path / "out", found.config, found.params, "teacher")


@pytest.mark.parametrize(
  "prefix", ["_orig_mod.", "module.", "module._orig_mod."]
)
def test_wrapper_prefixes_and_new_bias_names_are_read(prefix):
  found = pretrained.load(GOLDEN / "videomae_square")
  tensors = {}
  for name, tensor in safetensors.load_file(
    GOLDEN / "videomae_square" / "model.safetensors"
  ).items():
    name = name.replace("q_bias", "query.bias").replace("v_bias", "value.bias")
    tensors[prefix + name] = tensor
  params = pretrained.params_from_hf(tensors, found.config)
  jax.tree.map(np.testing.assert_array_equal, params, found.params)
  tensors["mask_token"] = tensors[f"{prefix}mask_token"]
  with pytest.raises(ValueError, match="two tensors are called mask_token"):
    pretrained.params_from_hf(tensors, found.config)


def test_init_from_resamples_positions_for_another_grid():
  name = GOLDEN / "videomae_square"
  found = pretrained.load(name)
  wanted = dataclasses.replace(
    found.config, frames=8, image_px=(32, 64), dtype="bfloat16", norm_eps=1e-6
  )
  config, params = pretrained.init_from(name, wanted)
  assert config.trained_grid == (2, 4, 4) and config.grid == (4, 4, 8)
  assert config.dtype == "bfloat16" and config.norm_eps == 1e-12
  jax.tree.map(np.testing.assert_array_equal, params, found.params)
  table = posemb.position_table(config.grid, 48, config.trained_grid)
  assert table.shape == (128, 48)
  with pytest.raises(ValueError, match="model.trained_grid"):
    hf_videomae.config_to_hf(config)
  same, _ = pretrained.init_from(name, found.config)
  assert same == found.config


def test_init_from_names_the_keys_that_disagree():
  found = pretrained.load(GOLDEN / "videomae_square")
  wanted = dataclasses.replace(found.config, depth=4, decoder_heads=3)
  with pytest.raises(ValueError) as error:
    pretrained.init_from(GOLDEN / "videomae_square", wanted)
  assert "model.depth=4, file 3" in str(error.value)
  assert "model.decoder_heads=3, file 2" in str(error.value)
  assert "width" not in str(error.value)
  with pytest.raises(ValueError, match="VideoMAEForVideoClassification"):
    pretrained.init_from(GOLDEN / "videomae_classification", found.config)


def test_files_that_are_not_there_are_named(tmp_path):
  with pytest.raises(ValueError, match="model.safetensors"):
    pretrained.load(tmp_path)
  source = GOLDEN / "videomae_square" / "model.safetensors"
  shutil.copy(source, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="config.json"):
    pretrained.load(tmp_path)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"qkv_bias": False}, "qkv_bias"),
    ({"qv_bias": False}, "qkv_bias"),
    ({"hidden_act": "relu"}, "'relu' is not 'gelu'"),
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
@pytest.mark.parametrize("name", EVERY)
def test_hugging_face_reads_our_export(name, tmp_path):
  """Export, reload with PyTorch, same outputs; needs the `parity` extra."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  found, expected, _ = load_golden(name)
  pretrained.save(tmp_path, found.config, found.params, found.kind)
  maker = getattr(transformers, hf_videomae.KINDS[found.kind])
  model, info = maker.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info.values()), info
  pixels = torch.from_numpy(expected["pixels"])
  inputs = {}
  if found.kind == "pretraining":
    inputs["bool_masked_pos"] = torch.from_numpy(expected["mask"])
  with torch.no_grad():
    logits = model.eval()(pixels, **inputs).logits.numpy()
  np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-6)
  pretrained.save(tmp_path, found.config, found.params, "model")
  encoder = transformers.VideoMAEModel.from_pretrained(tmp_path).eval()
  with torch.no_grad():
    tokens = encoder(pixels).last_hidden_state.numpy()
  np.testing.assert_allclose(tokens, expected["all_tokens"], rtol=0, atol=1e-5)
