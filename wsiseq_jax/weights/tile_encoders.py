"""Rules of tile encoders' files.

Four kinds of file, told apart by the names in them (`kind_of`):

    kind          written by                               for
    torchvision   torchvision's (and timm's) ResNet        resnet
    timm          timm's VisionTransformer                 tile_vit
    dinov2        Hugging Face's Dinov2 and                tile_vit
                  Dinov2WithRegisters
    hf_vit        Hugging Face's ViT                       tile_vit

What an encoder has no use for, such as a classifier, is left out by name
(`_UNUSED`). The position table belongs to the grid of `ViTSpec.trained_px`; a
file with another is refused. It is resampled to `ViTSpec.tile_px` the way the
library that wrote the file does it.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util

from wsiseq_jax.models import posemb, resnet, tile_vit
from wsiseq_jax.weights import fill
from wsiseq_jax.weights.fill import WeightRule, affine


def _vit(
  tokens, patch, norm, layer, qkv, names, scales
) -> tuple[WeightRule, ...]:
  """Rules of a ViT: names in the file, in the order of our paths."""
  paths = ("attention_norm", "mlp_norm", "attention/out", "mlp/up", "mlp/down")
  rules = [
    *map(WeightRule, tokens, ("class", "registers", "positions")),
    *affine(patch, "patch", "patch"),
    *affine(norm, "norm"),
  ]
  for k, name in enumerate(qkv):
    path = "blocks/attention/qkv"
    rules += affine(layer + name, path, "linear", (k, len(qkv)))
  for name, path in zip(names, paths, strict=True):
    layout = "same" if path.endswith("norm") else "linear"
    rules += affine(layer + name, f"blocks/{path}", layout)
  for name, path in zip(scales, ("attention", "mlp"), strict=True):
    rules.append(WeightRule(layer + name, f"blocks/{path}/scale"))
  return tuple(rules)


_TIMM = _vit(
  ("cls_token", "reg_token", "pos_embed"),
  "patch_embed.proj",
  "norm",
  "blocks.{i}.",
  ("attn.qkv",),
  ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"),
  ("ls1.gamma", "ls2.gamma"),
)


def _hugging_face(attention_norm, mlp_norm, up, down) -> tuple[WeightRule, ...]:
  return _vit(
    (
      "embeddings.cls_token",
      "embeddings.register_tokens",
      "embeddings.position_embeddings",
    ),
    "embeddings.patch_embeddings.projection",
    "layernorm",
    "encoder.layer.{i}.",
    [f"attention.attention.{name}" for name in ("query", "key", "value")],
    (attention_norm, mlp_norm, "attention.output.dense", up, down),
    ("layer_scale1.lambda1", "layer_scale2.lambda1"),
  )


_VITS = {
  ("timm", "gelu"): _TIMM,
  ("timm", "swiglu"): _TIMM,
  ("hf_vit", "gelu"): _hugging_face(
    "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"
  ),
  ("dinov2", "gelu"): _hugging_face("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
  ("dinov2", "swiglu"): _hugging_face(
    "norm1", "norm2", "mlp.weights_in", "mlp.weights_out"
  ),
}
_MARKS = {
  "torchvision": "layer1.0.conv1.weight",
  "timm": "patch_embed.proj.weight",
  "dinov2": "encoder.layer.0.norm1.weight",
  "hf_vit": "encoder.layer.0.layernorm_before.weight",
}
_UNUSED = {
  "torchvision": r"fc\..*|.*\.num_batches_tracked",
  "timm": r"head\..*|mask_token",
  "dinov2": r"embeddings\.mask_token|classifier\..*",
  "hf_vit": r"embeddings\.mask_token|classifier\..*|pooler\..*",
}


def kind_of(tensors: Mapping[str, np.ndarray]) -> str:
  """Tells by its names which library a file is of.

  Raises:
    ValueError: None that is known here; some names are shown.

  Example:
    >>> kind_of({"patch_embed.proj.weight": np.zeros((8, 3, 4, 4))})
    'timm'
  """
  for kind, mark in _MARKS.items():
    if mark in tensors:
      return kind
  raise ValueError(
    "no weights of an encoder that is known here (torchvision or timm ResNet, "
    "timm VisionTransformer, Hugging Face ViT, Dinov2 or Dinov2WithRegisters);"
    f" its {len(tensors)} tensors begin with {sorted(tensors)[:5]}"
  )


def resnet_params(
  tensors: Mapping[str, np.ndarray],
  spec: resnet.ResNetSpec,
  keep_norm: bool = False,
) -> dict[str, Any]:
  """Turns torchvision's tensors into our parameters, norms folded.

  Args:
    tensors: By name, as in the file. Stages that the encoder does not have, and
      the classifier, are left out.
    spec: The encoder they must fit.
    keep_norm: Keep factor and shift of every batch-norm for a group-norm in its
      place, instead of folding it.

  Returns:
    What `resnet.apply` takes.

  Raises:
    ValueError: Listing all missing, unexpected, misshapen or bad tensors.
  """
  tensors = fill.strip(tensors)
  kind = kind_of(tensors)
  if kind != "torchvision":
    raise ValueError(
      f"these are weights of another encoder ({kind}), no ResNet"
    )
  kernels = resnet.kernel_shapes(spec)
  shapes, rules = {}, []
  for path, shape in kernels.items():
    conv = path.replace("/", ".").replace("project", "downsample.0")
    norm = re.sub(r"conv(\d)$", r"bn\1", conv).replace("e.0", "e.1")
    shapes[f"{path}/kernel"] = shape
    rules.append(WeightRule(f"{conv}.weight", f"{path}/kernel", "conv"))
    theirs = ("weight", "bias", "running_mean", "running_var")
    for name, ours in zip(
      theirs, ("scale", "bias", "mean", "var"), strict=True
    ):
      shapes[f"{path}/{ours}"] = shape[-1:]
      rules.append(WeightRule(f"{norm}.{name}", f"{path}/{ours}"))
  unused = "|".join(
    [_UNUSED[kind], *(rf"layer{n}\..*" for n in range(len(spec.blocks) + 1, 5))]
  )
  flat = fill.fill(tensors, rules, shapes, kind, unused=unused)
  names = ("kernel", "scale", "bias", "mean", "var")
  if keep_norm:
    ours = {"kernel": "kernel", "scale": "scale", "offset": "bias"}
    return {
      path: {key: flat[f"{path}/{name}"] for key, name in ours.items()}
      for path in kernels
    }
  return {
    path: resnet.fold(**{name: flat[f"{path}/{name}"] for name in names})
    for path in kernels
  }


def vit_params(
  tensors: Mapping[str, np.ndarray], spec: tile_vit.ViTSpec
) -> dict[str, Any]:
  """Turns tensors of timm or Hugging Face into our parameters.

  Returns:
    What `tile_vit.apply` takes.

  Raises:
    ValueError: Listing all missing, unexpected, misshapen or bad tensors.
  """
  tensors = fill.strip(tensors)
  kind = kind_of(tensors)
  rules = _VITS.get((kind, spec.mlp))
  if rules is None:
    raise ValueError(f"these are weights of another encoder ({kind}), no ViT")
  shapes = fill.shapes_of(
    jax.eval_shape(
      lambda key: tile_vit.init_params(spec, key), jax.random.key(0)
    )
  )
  del shapes["prefix"], shapes["pos_embed"]
  patches, d, registers = spec.trained_grid**2, spec.width, spec.registers
  table = tensors.get(next(r.name for r in rules if r.path == "positions"))
  rows = table.shape[1] if table is not None and table.ndim == 3 else 0
  # What positions are for: patches alone, the class token, registers as well.
  if rows not in (patches, patches + 1, patches + 1 + registers):
    rows = patches + 1
  shapes |= {"class": (1, 1, d), "positions": (1, rows, d)}
  if registers:
    shapes["registers"] = (1, registers, d)
  flat = fill.fill(
    tensors,
    rules,
    shapes,
    kind,
    (spec.patch_px, spec.patch_px, 3),
    _UNUSED[kind],
    f"\nconfig.encoder.trained_px = {spec.trained_px or spec.tile_px} says that"
    f" positions are those of {patches} patches",
  )
  prefix = [flat.pop("class")[0]]
  if registers:
    prefix.append(flat.pop("registers")[0])
  flat["prefix"], positions = np.concatenate(prefix), flat.pop("positions")[0]
  flat["prefix"][: rows - patches] += positions[: rows - patches]
  if spec.trained_grid != spec.grid:
    logging.info(
      "position table resampled from %d x %d patches to %d x %d",
      *(spec.trained_grid,) * 2,
      *(spec.grid,) * 2,
    )
  flat["pos_embed"] = posemb.resample_square(
    positions[rows - patches :],
    spec.trained_grid,
    spec.grid,
    antialias=kind == "timm" or (kind == "dinov2" and registers > 0),
  )
  return traverse_util.unflatten_dict(flat, sep="/")
