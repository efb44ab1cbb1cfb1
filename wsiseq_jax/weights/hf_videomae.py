"""Hugging Face's VideoMAE: weights and `config.json`, read and written.

What `VideoMAEForPreTraining` saves, encoder and decoder. Where the two
implementations differ:

- The epsilon of the decoder's last LayerNorm is fixed to 1e-5 there, and 1e-12
  is the default elsewhere; the original code has 1e-6 everywhere. Loading takes
  the file's. On export a decoder epsilon other than 1e-5 is lost, which changes
  predictions by some 1e-6 of their size: said in the log.
- Biases of query and value are called `q_bias` and `v_bias` in files, but
  `query.bias` and `value.bias` in the state dict of recent releases. Both are
  read; files are written as Hugging Face writes them.
- Position tables are not stored. A model on another grid than the one of its
  weights resamples them here; Hugging Face cannot, so that such a model is not
  exported.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
from absl import logging
from flax import nnx, traverse_util
from safetensors import numpy as safetensors

from data_prep.files import atomic
from wsiseq_jax.models import videomae
from wsiseq_jax.models.rngs import Rngs
from wsiseq_jax.models.videomae import VideoMAEConfig
from wsiseq_jax.weights import files, fill
from wsiseq_jax.weights.fill import WeightRule, affine

KEY = "config.model.init_from"


def _block(layer: str, path: str) -> tuple[WeightRule, ...]:
  inner = f"{layer}.attention.attention"
  return (
    *affine(f"{layer}.layernorm_before", f"{path}/attention_norm"),
    WeightRule(
      f"{inner}.query.weight", f"{path}/attention/query/kernel", "linear"
    ),
    WeightRule(f"{inner}.q_bias", f"{path}/attention/query/bias"),
    WeightRule(f"{inner}.key.weight", f"{path}/attention/key/kernel", "linear"),
    WeightRule(
      f"{inner}.value.weight", f"{path}/attention/value/kernel", "linear"
    ),
    WeightRule(f"{inner}.v_bias", f"{path}/attention/value/bias"),
    *affine(
      f"{layer}.attention.output.dense", f"{path}/attention/out", "linear"
    ),
    *affine(f"{layer}.layernorm_after", f"{path}/mlp_norm"),
    *affine(f"{layer}.intermediate.dense", f"{path}/mlp/up", "linear"),
    *affine(f"{layer}.output.dense", f"{path}/mlp/down", "linear"),
  )


RULES = (
  *affine(
    "videomae.embeddings.patch_embeddings.projection", "encoder/patch", "patch"
  ),
  *_block("videomae.encoder.layer.{i}", "encoder/blocks"),
  *affine("videomae.layernorm", "encoder/norm"),
  WeightRule("encoder_to_decoder.weight", "decoder/project/kernel", "linear"),
  WeightRule("mask_token", "decoder/mask_token", "token"),
  *_block("decoder.decoder_layers.{i}", "decoder/blocks"),
  *affine("decoder.norm", "decoder/norm"),
  *affine("decoder.head", "decoder/head", "linear"),
)
_NEW_BIAS = re.compile(r"\.(q)uery\.bias$|\.(v)alue\.bias$")

# (key of config.json, our field, what Hugging Face assumes if it is left out).
_FIELDS = (
  ("num_frames", "frames", 16),
  ("num_channels", "channels", 3),
  ("hidden_size", "width", 768),
  ("num_hidden_layers", "depth", 12),
  ("num_attention_heads", "heads", 12),
  ("intermediate_size", "mlp_width", 3072),
  ("decoder_hidden_size", "decoder_width", 384),
  ("decoder_num_hidden_layers", "decoder_depth", 4),
  ("decoder_num_attention_heads", "decoder_heads", 6),
  ("decoder_intermediate_size", "decoder_mlp_width", 1536),
  ("norm_pix_loss", "normalise_target", True),
  ("layer_norm_eps", "norm_eps", 1e-12),
)
# The only values of these that this model has.
_FIXED = dict(hidden_act="gelu", qkv_bias=True, use_mean_pooling=False)
_DECODER_NORM_EPS = 1e-5


def config_from_hf(hf: dict[str, Any]) -> VideoMAEConfig:
  """Translates a Hugging Face `config.json`.

  Example:
    >>> config_from_hf({"image_size": [32, 48], "num_frames": 8}).grid
    (4, 2, 3)
  """
  # Named qkv_bias in published files, qv_bias in recent releases.
  given = hf | {"qkv_bias": hf.get("qv_bias", hf.get("qkv_bias", True))}
  for key, wanted in _FIXED.items():
    if given.get(key, wanted) != wanted:
      raise ValueError(
        f"config.json: {key} = {given[key]!r}, but only {wanted!r} is supported"
      )
  px, size = hf.get("patch_size", 16), hf.get("image_size", 224)
  if not isinstance(px, int):
    raise ValueError(f"config.json: patch_size = {px} must be one number")
  return VideoMAEConfig(
    **{field: hf.get(key, default) for key, field, default in _FIELDS},
    image_px=(size, size) if isinstance(size, int) else tuple(size),
    patch=(hf.get("tubelet_size", 2), px, px),
    decoder_norm_eps=_DECODER_NORM_EPS,
  )


def config_to_hf(config: VideoMAEConfig) -> dict[str, Any]:
  """Translates a configuration into a Hugging Face `config.json`.

  Example:
    >>> config_to_hf(VideoMAEConfig())["hidden_size"]
    384
  """
  if config.patch[1] != config.patch[2]:
    raise ValueError(
      f"config.model.patch = {config.patch}: Hugging Face's VideoMAE has "
      "square patches"
    )
  if config.trained_grid not in (None, config.grid):
    raise ValueError(
      f"config.model.trained_grid = {config.trained_grid} differs from the "
      f"grid {config.grid}: Hugging Face's VideoMAE cannot resample positions"
    )
  if config.decoder_norm_eps != _DECODER_NORM_EPS:
    logging.info(
      "export: Hugging Face fixes the epsilon of the decoder's last LayerNorm "
      "to %g; this model has %g",
      _DECODER_NORM_EPS,
      config.decoder_norm_eps,
    )
  h, w = config.image_px
  return dict(
    architectures=["VideoMAEForPreTraining"],
    model_type="videomae",
    dtype="float32",
    image_size=h if h == w else [h, w],
    patch_size=config.patch[1],
    tubelet_size=config.patch[0],
    **{key: getattr(config, field) for key, field, _ in _FIELDS},
    **_FIXED,
  )


def params_from_hf(
  tensors: dict[str, np.ndarray], config: VideoMAEConfig
) -> dict[str, Any]:
  """Turns Hugging Face tensors into our parameters, checking every one."""
  tensors = {
    _NEW_BIAS.sub(r".\1\2_bias", name): tensor
    for name, tensor in fill.strip(tensors).items()
  }
  what = "VideoMAEForPreTraining"
  flat = fill.fill(tensors, RULES, _shapes(config), what, _patch(config))
  return traverse_util.unflatten_dict(flat, sep="/")


def params_to_hf(
  params: dict[str, Any], config: VideoMAEConfig
) -> dict[str, np.ndarray]:
  """Turns our parameters into Hugging Face tensors."""
  return fill.unfill(params, RULES, _shapes(config), _patch(config))


def _patch(config: VideoMAEConfig) -> tuple[int, ...]:
  return (*config.patch, config.channels)


def _shapes(config: VideoMAEConfig) -> dict[str, tuple[int, ...]]:
  model = nnx.eval_shape(lambda: videomae.VideoMAE(config, Rngs(0)))
  return fill.shapes_of(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def read_config(place: files.Place) -> VideoMAEConfig:
  """The model of a checkpoint, from the `config.json` beside its weights."""
  file = files.find(place, KEY, "config.json").with_name("config.json")
  return config_from_hf(json.loads(file.read_text()))


def load(place: files.Place) -> tuple[VideoMAEConfig, dict[str, Any]]:
  """Reads a checkpoint.

  Args:
    place: The weights, or their folder, `config.json` beside them; may lie at
      Hugging Face, see `files.find`.

  Returns:
    Configuration and parameters, a nested dict of float32 arrays.

  Raises:
    ValueError: The files are not there, or do not fit each other.
  """
  config = read_config(place)
  tensors = files.read(place, KEY)
  if not any(name.endswith("encoder_to_decoder.weight") for name in tensors):
    raise ValueError(
      f"{KEY} = {str(place)!r} has no decoder; wanted: VideoMAEForPreTraining"
    )
  return config, params_from_hf(tensors, config)


def save(folder: Any, config: VideoMAEConfig, params: dict[str, Any]) -> None:
  """Writes a checkpoint that Hugging Face's `from_pretrained` reads.

  Args:
    folder: Receives `model.safetensors` and `config.json`.
    config: The model.
    params: Its parameters.

  Raises:
    ValueError: Hugging Face cannot express the model, or parameters do not fit
      it.
  """
  text = json.dumps(config_to_hf(config), indent=2) + "\n"
  tensors = params_to_hf(params, config)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  # `from_pretrained` refuses files without this mark.
  safetensors.save_file(
    tensors, folder / "model.safetensors", metadata={"format": "pt"}
  )
  atomic.write_atomic(folder / "config.json", text)


def settle(place: files.Place, config: VideoMAEConfig) -> VideoMAEConfig:
  """The model to train from a checkpoint's weights; reads no weights.

  Frames and image size may differ from the checkpoint's: position tables are
  then resampled from its grid. Everything that shapes a parameter must agree.

  Args:
    place: See `load`.
    config: The model that is asked for.

  Returns:
    The same, with the checkpoint's epsilons and, if grids differ, its grid as
    `trained_grid`.

  Raises:
    ValueError: Naming the config keys that disagree.
  """
  found = read_config(place)
  free = (
    *("frames", "image_px", "normalise_target", "trained_grid"),
    *("norm_eps", "decoder_norm_eps", "dtype", "remat", "attention_kernel"),
  )
  differing = [
    f"config.model.{field.name} = {getattr(config, field.name)}, file "
    f"{getattr(found, field.name)}"
    for field in dataclasses.fields(config)
    if field.name not in free
    and getattr(config, field.name) != getattr(found, field.name)
  ]
  if differing:
    raise ValueError(
      f"{KEY} = {str(place)!r} is another model: " + "; ".join(differing)
    )
  trained_grid = None
  if found.grid != config.grid:
    trained_grid = found.grid
    logging.info(
      "%s was trained on grid %s (t, h, w), this model has %s: position tables "
      "will be resampled",
      *(place, found.grid, config.grid),
    )
  return dataclasses.replace(
    config,
    norm_eps=found.norm_eps,
    decoder_norm_eps=found.decoder_norm_eps,
    trained_grid=trained_grid,
  )
