"""How Hugging Face writes VideoMAE: names, layouts and `config.json`.

`RULES` is the whole mapping of weights, one row a parameter, used in both
directions by `pretrained.py`, which is where to start reading.
"""

import re
from typing import Any

import numpy as np
from absl import logging

from wsiseq_jax.models import videomae

KINDS = {
  "pretraining": "VideoMAEForPreTraining",
  "model": "VideoMAEModel",
  "classification": "VideoMAEForVideoClassification",
}

# (name in the file, our path, layout). `{i}` is the layer; `{base}` is
# "videomae." where the encoder is part of a larger model.
_BLOCK_RULES = (
  ("layernorm_before.weight", "attention_norm/scale", "same"),
  ("layernorm_before.bias", "attention_norm/bias", "same"),
  ("attention.attention.query.weight", "attention/query/kernel", "linear"),
  ("attention.attention.q_bias", "attention/query/bias", "same"),
  ("attention.attention.key.weight", "attention/key/kernel", "linear"),
  ("attention.attention.value.weight", "attention/value/kernel", "linear"),
  ("attention.attention.v_bias", "attention/value/bias", "same"),
  ("attention.output.dense.weight", "attention/out/kernel", "linear"),
  ("attention.output.dense.bias", "attention/out/bias", "same"),
  ("layernorm_after.weight", "mlp_norm/scale", "same"),
  ("layernorm_after.bias", "mlp_norm/bias", "same"),
  ("intermediate.dense.weight", "mlp/up/kernel", "linear"),
  ("intermediate.dense.bias", "mlp/up/bias", "same"),
  ("output.dense.weight", "mlp/down/kernel", "linear"),
  ("output.dense.bias", "mlp/down/bias", "same"),
)
_PATCH = "{base}embeddings.patch_embeddings.projection"
RULES = (
  (f"{_PATCH}.weight", "encoder/patch/kernel", "cube"),
  (f"{_PATCH}.bias", "encoder/patch/bias", "same"),
  *(
    (f"{{base}}encoder.layer.{{i}}.{name}", f"encoder/blocks/{path}", layout)
    for name, path, layout in _BLOCK_RULES
  ),
  ("{base}layernorm.weight", "encoder/norm/scale", "same"),
  ("{base}layernorm.bias", "encoder/norm/bias", "same"),
  ("encoder_to_decoder.weight", "decoder/project/kernel", "linear"),
  ("mask_token", "decoder/mask_token", "token"),
  *(
    (f"decoder.decoder_layers.{{i}}.{name}", f"decoder/blocks/{path}", layout)
    for name, path, layout in _BLOCK_RULES
  ),
  ("decoder.norm.weight", "decoder/norm/scale", "same"),
  ("decoder.norm.bias", "decoder/norm/bias", "same"),
  ("decoder.head.weight", "decoder/head/kernel", "linear"),
  ("decoder.head.bias", "decoder/head/bias", "same"),
  ("fc_norm.weight", "head/norm/scale", "same"),
  ("fc_norm.bias", "head/norm/bias", "same"),
  ("classifier.weight", "head/linear/kernel", "linear"),
  ("classifier.bias", "head/linear/bias", "same"),
)

# Left by torch.compile and DistributedDataParallel.
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")
_NEW_BIAS = re.compile(r"\.(q)uery\.bias$|\.(v)alue\.bias$")

# The values Hugging Face assumes for keys that a config.json leaves out.
_HF_DEFAULTS = dict(
  image_size=224,
  patch_size=16,
  num_channels=3,
  num_frames=16,
  tubelet_size=2,
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
  qkv_bias=True,
  use_mean_pooling=True,
  decoder_num_attention_heads=6,
  decoder_hidden_size=384,
  decoder_num_hidden_layers=4,
  decoder_intermediate_size=1536,
  norm_pix_loss=True,
)
_HF_DECODER_NORM_EPS = 1e-5


def config_from_hf(hf_config: dict[str, Any]) -> videomae.VideoMAEConfig:
  """Translates a Hugging Face `config.json`.

  Args:
    hf_config: The parsed file.

  Returns:
    The configuration, with the epsilons of the Hugging Face implementation.

  Raises:
    ValueError: If the file asks for something this model has not.

  Example:
    >>> config_from_hf({"image_size": [32, 48], "num_frames": 8}).grid
    (4, 2, 3)
  """
  hf = _HF_DEFAULTS | hf_config
  # Named qkv_bias in published files, qv_bias in recent releases.
  if not hf.get("qv_bias", hf["qkv_bias"]):
    raise ValueError("config.json: qkv_bias=false, but only true is supported")
  if hf["hidden_act"] != "gelu":
    raise ValueError(
      f"config.json: hidden_act={hf['hidden_act']!r} is not 'gelu'"
    )
  if not isinstance(hf["patch_size"], int):
    raise ValueError(
      f"config.json: patch_size={hf['patch_size']} must be one number"
    )
  size = hf["image_size"]
  return videomae.VideoMAEConfig(
    frames=hf["num_frames"],
    image_px=(size, size) if isinstance(size, int) else tuple(size),
    patch=(hf["tubelet_size"], hf["patch_size"], hf["patch_size"]),
    channels=hf["num_channels"],
    width=hf["hidden_size"],
    depth=hf["num_hidden_layers"],
    heads=hf["num_attention_heads"],
    mlp_width=hf["intermediate_size"],
    decoder_width=hf["decoder_hidden_size"],
    decoder_depth=hf["decoder_num_hidden_layers"],
    decoder_heads=hf["decoder_num_attention_heads"],
    decoder_mlp_width=hf["decoder_intermediate_size"],
    final_norm=not hf["use_mean_pooling"],
    normalise_target=hf["norm_pix_loss"],
    norm_eps=hf["layer_norm_eps"],
    decoder_norm_eps=_HF_DECODER_NORM_EPS,
  )


def config_to_hf(
  config: videomae.VideoMAEConfig, kind: str = "pretraining"
) -> dict[str, Any]:
  """Translates a configuration into a Hugging Face `config.json`.

  Args:
    config: The configuration.
    kind: A key of `KINDS`.

  Returns:
    What to write as JSON.

  Raises:
    ValueError: If Hugging Face's model cannot be built that way.

  Example:
    >>> config_to_hf(videomae.VideoMAEConfig())["hidden_size"]
    384
  """
  if config.patch[1] != config.patch[2]:
    raise ValueError(
      f"model.patch={config.patch}: Hugging Face's VideoMAE has square patches"
    )
  if config.trained_grid not in (None, config.grid):
    raise ValueError(
      f"model.trained_grid={config.trained_grid} differs from the grid "
      f"{config.grid}: Hugging Face's VideoMAE cannot resample positions"
    )
  if config.decoder_norm_eps != _HF_DECODER_NORM_EPS:
    logging.info(
      "export: Hugging Face fixes the epsilon of the decoder's last LayerNorm "
      "to %g; this model has %g",
      _HF_DECODER_NORM_EPS,
      config.decoder_norm_eps,
    )
  h, w = config.image_px
  return dict(
    architectures=[KINDS[check_kind(kind)]],
    model_type="videomae",
    dtype="float32",
    image_size=h if h == w else [h, w],
    patch_size=config.patch[1],
    num_channels=config.channels,
    num_frames=config.frames,
    tubelet_size=config.patch[0],
    hidden_size=config.width,
    num_hidden_layers=config.depth,
    num_attention_heads=config.heads,
    intermediate_size=config.mlp_width,
    hidden_act="gelu",
    layer_norm_eps=config.norm_eps,
    qkv_bias=True,
    use_mean_pooling=not config.final_norm,
    decoder_num_attention_heads=config.decoder_heads,
    decoder_hidden_size=config.decoder_width,
    decoder_num_hidden_layers=config.decoder_depth,
    decoder_intermediate_size=config.decoder_mlp_width,
    norm_pix_loss=config.normalise_target,
  )


def check_kind(kind: str) -> str:
  """Returns the kind, or raises ValueError if there is none of that name."""
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r} is not one of {tuple(KINDS)}")
  return kind


def kind_of(tensors: dict[str, np.ndarray]) -> str:
  """Tells the kind of a checkpoint by its names."""
  if "encoder_to_decoder.weight" in tensors:
    return "pretraining"
  return "classification" if "classifier.weight" in tensors else "model"


def clean_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Strips wrapper prefixes and unifies the two spellings of biases."""
  clean = {}
  for name, tensor in tensors.items():
    short = _NEW_BIAS.sub(r".\1\2_bias", _WRAPPERS.sub("", name))
    if short in clean:
      raise ValueError(f"two tensors are called {short}, one of them {name}")
    clean[short] = tensor
  return clean


def expected_names(
  leaves: dict[str, tuple[int, ...]], kind: str
) -> dict[str, tuple[str, int | None, str]]:
  """Maps every file name of a kind to (our path, layer, layout)."""
  base = "" if kind == "model" else "videomae."
  names: dict[str, tuple[str, int | None, str]] = {}
  for template, path, layout in RULES:
    if path not in leaves:
      continue
    if "{i}" not in template:
      names[template.format(base=base)] = (path, None, layout)
      continue
    for i in range(leaves[path][0]):
      names[template.format(base=base, i=i)] = (path, i, layout)
  return names


def from_layout(tensor: np.ndarray, layout: str) -> np.ndarray:
  """PyTorch's layout to ours: [out, in] -> [in, out], cubes channels last."""
  if layout == "linear":
    return tensor.T
  if layout == "cube":
    return tensor.transpose(2, 3, 4, 1, 0).reshape(-1, tensor.shape[0])
  return tensor.reshape(-1) if layout == "token" else tensor


def to_layout(
  value: np.ndarray, layout: str, config: videomae.VideoMAEConfig
) -> np.ndarray:
  """The inverse of `from_layout`."""
  if layout == "linear":
    return value.T
  if layout == "cube":
    cube = value.reshape(*config.patch, config.channels, -1)
    return cube.transpose(4, 3, 0, 1, 2)
  return value.reshape(1, 1, -1) if layout == "token" else value
