"""Weights of tile encoders: read from others' files, checked leaf by leaf.

Four kinds of file, told apart by the names in them (`kind_of`):

    kind          written by                               for
    torchvision   torchvision's (and timm's) ResNet        resnet
    timm          timm's VisionTransformer                 tile_vit
    dinov2        Hugging Face's Dinov2 and                tile_vit
                  Dinov2WithRegisters
    hf_vit        Hugging Face's ViT                       tile_vit

The rules below are the whole mapping, one row a parameter. A tensor that is
missing, left over, of another shape or not finite is an error that lists all
such tensors: nothing is loaded by halves. What an encoder has no use for, such
as a classifier, is left out by name (`_UNUSED`).

Files are safetensors, or what `torch.save` writes of a state dict; the latter
are read without PyTorch, and without running what is in them (`torch_files`).

The position table belongs to the grid of `ViTSpec.trained_px`; a file with
another is refused. It is resampled to `ViTSpec.tile_px` if that differs, the
way the library that wrote the file does it.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
from absl import logging
from flax import traverse_util

from wsiseq_jax.models import posemb, resnet, tile_vit
from wsiseq_jax.weights import torch_files

# (name in the file, our path, layout, part). `{i}` is the layer. A part (k, n)
# says that the tensor is the k-th of n pieces of our last axis.
_TIMM = (
  ("cls_token", "class", "same", None),
  ("reg_token", "registers", "same", None),
  ("pos_embed", "positions", "same", None),
  ("patch_embed.proj.weight", "patch/kernel", "patch", None),
  ("patch_embed.proj.bias", "patch/bias", "same", None),
  ("blocks.{i}.norm1.weight", "blocks/attention_norm/scale", "same", None),
  ("blocks.{i}.norm1.bias", "blocks/attention_norm/bias", "same", None),
  ("blocks.{i}.attn.qkv.weight", "blocks/attention/qkv/kernel", "linear", None),
  ("blocks.{i}.attn.qkv.bias", "blocks/attention/qkv/bias", "same", None),
  (
    "blocks.{i}.attn.proj.weight",
    "blocks/attention/out/kernel",
    "linear",
    None,
  ),
  ("blocks.{i}.attn.proj.bias", "blocks/attention/out/bias", "same", None),
  ("blocks.{i}.ls1.gamma", "blocks/attention/scale", "same", None),
  ("blocks.{i}.norm2.weight", "blocks/mlp_norm/scale", "same", None),
  ("blocks.{i}.norm2.bias", "blocks/mlp_norm/bias", "same", None),
  ("blocks.{i}.mlp.fc1.weight", "blocks/mlp/up/kernel", "linear", None),
  ("blocks.{i}.mlp.fc1.bias", "blocks/mlp/up/bias", "same", None),
  ("blocks.{i}.mlp.fc2.weight", "blocks/mlp/down/kernel", "linear", None),
  ("blocks.{i}.mlp.fc2.bias", "blocks/mlp/down/bias", "same", None),
  ("blocks.{i}.ls2.gamma", "blocks/mlp/scale", "same", None),
  ("norm.weight", "norm/scale", "same", None),
  ("norm.bias", "norm/bias", "same", None),
)


def _hugging_face(attention_norm, mlp_norm, up, down):
  """Rules of a Hugging Face model; they differ in the names of four layers."""
  layer = "encoder.layer.{i}."
  linears = [
    (f"attention.attention.{name}", "attention/qkv", (k, 3))
    for k, name in enumerate(("query", "key", "value"))
  ] + [
    ("attention.output.dense", "attention/out", None),
    (up, "mlp/up", None),
    (down, "mlp/down", None),
  ]
  norms = ((attention_norm, "attention_norm"), (mlp_norm, "mlp_norm"))
  projection = "embeddings.patch_embeddings.projection"
  return (
    ("embeddings.cls_token", "class", "same", None),
    ("embeddings.register_tokens", "registers", "same", None),
    ("embeddings.position_embeddings", "positions", "same", None),
    (f"{projection}.weight", "patch/kernel", "patch", None),
    (f"{projection}.bias", "patch/bias", "same", None),
    *(
      row
      for name, path, part in linears
      for row in (
        (f"{layer}{name}.weight", f"blocks/{path}/kernel", "linear", part),
        (f"{layer}{name}.bias", f"blocks/{path}/bias", "same", part),
      )
    ),
    *(
      row
      for name, path in norms
      for row in (
        (f"{layer}{name}.weight", f"blocks/{path}/scale", "same", None),
        (f"{layer}{name}.bias", f"blocks/{path}/bias", "same", None),
      )
    ),
    (f"{layer}layer_scale1.lambda1", "blocks/attention/scale", "same", None),
    (f"{layer}layer_scale2.lambda1", "blocks/mlp/scale", "same", None),
    ("layernorm.weight", "norm/scale", "same", None),
    ("layernorm.bias", "norm/bias", "same", None),
  )


_HF_VIT = _hugging_face(
  "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense"
)
_UNUSED = {
  "torchvision": r"fc\..*|.*\.num_batches_tracked",
  "timm": r"head\..*|mask_token",
  "dinov2": r"embeddings\.mask_token|classifier\..*",
  "hf_vit": r"embeddings\.mask_token|classifier\..*|pooler\..*",
}
# Left by torch.compile, DistributedDataParallel and models of several parts.
_WRAPPERS = re.compile(
  r"^(?:_orig_mod\.|module\.|backbone\.)*"
  r"(?:vit\.|dinov2\.|dinov2_with_registers\.)?"
)


def _clean_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Strips the prefixes that wrappers put before names."""
  clean = {}
  for name, tensor in tensors.items():
    short = _WRAPPERS.sub("", name)
    if short in clean:
      raise ValueError(f"two tensors are called {short}, one of them {name}")
    clean[short] = tensor
  return clean


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a file.

  Args:
    path: `.safetensors`; or `.pth`, `.pt` or `.bin`, as `torch.save` writes it;
      or a folder with `model.safetensors` or `pytorch_model.bin`.

  Returns:
    Arrays by name, of the types they are stored in.

  Raises:
    ValueError: There is no such file, or it cannot be read.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    names = ("model.safetensors", "pytorch_model.bin")
    path = next((path / n for n in names if (path / n).is_file()), path)
  if not path.is_file():
    raise ValueError(f"config.encoder.weights = {str(path)!r}: no such file")
  if path.suffix == ".safetensors":
    try:
      with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
      raise ValueError(f"{path} is damaged ({error})") from error
  if path.suffix in (".pth", ".pt", ".bin"):
    return torch_files.read_state_dict(path)
  raise ValueError(
    f"config.encoder.weights = {str(path)!r}: must end in .safetensors, .pth, "
    ".pt or .bin"
  )


def kind_of(tensors: Mapping[str, np.ndarray]) -> str:
  """Tells by its names which library a file is of.

  Args:
    tensors: By name, without prefixes of wrappers.

  Raises:
    ValueError: None that is known here; some names are shown.

  Example:
    >>> kind_of({"patch_embed.proj.weight": np.zeros((8, 3, 4, 4))})
    'timm'
  """
  marks = {
    "torchvision": "layer1.0.conv1.weight",
    "timm": "patch_embed.proj.weight",
    "dinov2": "encoder.layer.0.norm1.weight",
    "hf_vit": "encoder.layer.0.layernorm_before.weight",
  }
  for kind, mark in marks.items():
    if mark in tensors:
      return kind
  raise ValueError(
    "no weights of an encoder that is known here (torchvision or timm ResNet, "
    "timm VisionTransformer, Hugging Face ViT, Dinov2 or Dinov2WithRegisters);"
    f" its {len(tensors)} tensors begin with {sorted(tensors)[:5]}"
  )


@dataclasses.dataclass(frozen=True)
class _Slot:
  """Where a tensor goes: a leaf, a layer of it, a part of its last axis."""

  path: str
  layout: str
  layer: int | None = None
  part: tuple[int, int] | None = None

  def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """The tensor's shape in the file, for the leaf's."""
    shape = leaf if self.layer is None else leaf[1:]
    if self.part:
      shape = (*shape[:-1], shape[-1] // self.part[1])
    if self.layout == "linear":
      return shape[::-1]
    if self.layout == "conv":
      return (shape[3], shape[2], shape[0], shape[1])
    if self.layout == "patch":
      side = math.isqrt(shape[0] // 3)
      return (shape[1], 3, side, side)
    return shape

  def put(self, leaf: np.ndarray, tensor: np.ndarray) -> None:
    """Writes the tensor, in our layout, into the leaf."""
    tensor = tensor.astype(np.float32)
    if self.layout == "linear":
      tensor = tensor.T
    elif self.layout == "conv":
      tensor = tensor.transpose(2, 3, 1, 0)
    elif self.layout == "patch":
      tensor = tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    target = leaf if self.layer is None else leaf[self.layer]
    if self.part:
      k, size = self.part[0], tensor.shape[-1]
      target[..., k * size : (k + 1) * size] = tensor
    else:
      target[...] = tensor


def _fill(
  tensors: Mapping[str, np.ndarray],
  leaves: Mapping[str, tuple[int, ...]],
  slots: Mapping[str, _Slot],
  kind: str,
  unused: str,
  hint: str = "",
) -> dict[str, np.ndarray]:
  """Puts every tensor into its slot, or says all that is wrong."""
  names = {name for name in tensors if not re.fullmatch(unused, name)}
  problems = [f"missing: {name}" for name in slots if name not in names]
  problems += [f"unexpected: {name}" for name in sorted(names - set(slots))]
  for name, slot in slots.items():
    if name in names:
      has, want = tensors[name].shape, slot.shape(leaves[slot.path])
      if has != want:
        problems.append(f"shape: {name} is {has}, wants {want}")
      elif not np.isfinite(tensors[name].astype(np.float32)).all():
        problems.append(f"not finite: {name}")
  if problems:
    raise ValueError(
      f"weights do not fit the encoder (names of {kind}, {len(problems)} "
      "problems):\n  " + "\n  ".join(problems) + hint
    )
  params = {path: np.empty(shape, np.float32) for path, shape in leaves.items()}
  for name, slot in slots.items():
    slot.put(params[slot.path], tensors[name])
  return params


def resnet_params(
  tensors: Mapping[str, np.ndarray], spec: resnet.ResNetSpec
) -> dict[str, Any]:
  """Turns torchvision's tensors into our parameters, norms folded.

  Args:
    tensors: By name, as in the file. Stages that the encoder does not have, and
      the classifier, are left out.
    spec: The encoder they must fit.

  Returns:
    What `resnet.apply` takes.

  Raises:
    ValueError: Listing all missing, unexpected, misshapen or bad tensors.
  """
  tensors = _clean_names(tensors)
  kind = kind_of(tensors)
  if kind != "torchvision":
    raise ValueError(
      f"these are weights of another encoder ({kind}), no ResNet"
    )
  shapes = resnet.kernel_shapes(spec)
  leaves, slots = {}, {}
  for path, shape in shapes.items():
    conv = path.replace("/", ".").replace("project", "downsample.0")
    norm = re.sub(r"conv(\d)$", r"bn\1", conv).replace(
      "downsample.0", "downsample.1"
    )
    leaves[f"{path}/kernel"] = shape
    slots[f"{conv}.weight"] = _Slot(f"{path}/kernel", "conv")
    for name, ours in (
      ("weight", "scale"), ("bias", "bias"),
      ("running_mean", "mean"), ("running_var", "var"),
    ):  # fmt: skip
      leaves[f"{path}/{ours}"] = shape[-1:]
      slots[f"{norm}.{name}"] = _Slot(f"{path}/{ours}", "same")
  further = "|".join(
    [_UNUSED[kind], *(rf"layer{n}\..*" for n in range(len(spec.blocks) + 1, 5))]
  )
  flat = _fill(tensors, leaves, slots, kind, further)
  names = ("kernel", "scale", "bias", "mean", "var")
  return {
    path: resnet.fold(**{name: flat[f"{path}/{name}"] for name in names})
    for path in shapes
  }


def vit_params(
  tensors: Mapping[str, np.ndarray], spec: tile_vit.ViTSpec
) -> dict[str, Any]:
  """Turns tensors of timm or Hugging Face into our parameters.

  Args:
    tensors: By name, as in the file.
    spec: The encoder they must fit. Its position table is resampled to
      `spec.tile_px` if the file's is of other tiles, `spec.trained_px`.

  Returns:
    What `tile_vit.apply` takes.

  Raises:
    ValueError: Listing all missing, unexpected, misshapen or bad tensors.
  """
  tensors = _clean_names(tensors)
  kind = kind_of(tensors)
  rules = {
    "timm": _TIMM,
    "hf_vit": _HF_VIT,
    "dinov2": _hugging_face(
      "norm1", "norm2", *(("mlp.weights_in", "mlp.weights_out")
      if spec.mlp == "swiglu" else ("mlp.fc1", "mlp.fc2")),
    ),
  }.get(kind)  # fmt: skip
  if rules is None:
    raise ValueError(f"these are weights of another encoder ({kind}), no ViT")
  shape = jax.eval_shape(
    lambda key: tile_vit.init_params(spec, key), jax.random.key(0)
  )
  flat_shapes = traverse_util.flatten_dict(shape, sep="/")
  leaves = {path: leaf.shape for path, leaf in flat_shapes.items()}
  for path in ("prefix", "pos_embed"):
    del leaves[path]
  patches, d, registers = spec.trained_grid**2, spec.width, spec.registers
  table = tensors.get(next(r[0] for r in rules if r[1] == "positions"))
  rows = table.shape[1] if table is not None and table.ndim == 3 else 0
  # What positions are for: patches alone, the class token, registers as well.
  if rows not in (patches, patches + 1, patches + 1 + registers):
    rows = patches + 1
  leaves |= {"class": (1, 1, d), "positions": (1, rows, d)}
  if registers:
    leaves["registers"] = (1, registers, d)
  slots = {
    name.format(i=i): _Slot(path, layout, i if "{i}" in name else None, part)
    for name, path, layout, part in rules
    if path in leaves
    for i in range(spec.depth if "{i}" in name else 1)
  }
  trained_px = spec.trained_px or spec.tile_px
  hint = (
    f"\nconfig.encoder.trained_px = {trained_px} says that positions are those "
    f"of {patches} patches"
  )
  flat = _fill(tensors, leaves, slots, kind, _UNUSED[kind], hint)
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
