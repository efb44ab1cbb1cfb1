"""Weights of other libraries become our parameters, and the other way round.

A family of files is a table of `WeightRule`s, one a tensor; `fill` reads by it,
`unfill` writes by it. A tensor that is missing, left over, of another shape or
not finite is an error that lists all such tensors: nothing is loaded by halves.
Layers `{i}` of a file are stacked along our first axis.

Layouts, ours and the file's (PyTorch's):

    same     [...]                  [...]
    linear   [in, out]              [out, in]
    conv     [h, w, in, out]        [out, in, h, w]
    patch    [patch values, out]    [out, channels, *patch]; channels last here
    token    [d]                    [1, 1, d]
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

Shapes = Mapping[str, tuple[int, ...]]

# Left by torch.compile, DistributedDataParallel and models of several parts.
_WRAPPERS = re.compile(
  r"^(?:_orig_mod\.|module\.|backbone\.|teacher\.)*"
  r"(?:vit\.|dinov2\.|dinov2_with_registers\.)?"
)


class WeightRule(NamedTuple):
  """Where a tensor goes."""

  name: str  # in the file, without wrappers; `{i}` is the layer
  path: str  # our leaf, 'a/b/c'
  layout: str = "same"  # see the module
  # (k, n): the tensor is the k-th of n pieces of our last axis.
  part: tuple[int, int] = (0, 1)


def affine(
  name: str, path: str, layout: str = "same", part: tuple[int, int] = (0, 1)
) -> tuple[WeightRule, WeightRule]:
  """Weight and bias of a norm (layout 'same') or of a matrix."""
  weight = "scale" if layout == "same" else "kernel"
  return (
    WeightRule(f"{name}.weight", f"{path}/{weight}", layout, part),
    WeightRule(f"{name}.bias", f"{path}/bias", "same", part),
  )


def shapes_of(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf of a nested dict, by path."""
  flat = traverse_util.flatten_dict(tree, sep="/")
  return {path: leaf.shape for path, leaf in flat.items()}


def strip(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Strips the prefixes that wrappers put before names.

  Raises:
    ValueError: Two tensors then have one name.

  Example:
    >>> list(strip({"module.backbone.norm.bias": np.zeros(2)}))
    ['norm.bias']
  """
  found = {}
  for name, tensor in tensors.items():
    short = _WRAPPERS.sub("", name)
    if short in found:
      raise ValueError(f"two tensors are called {short}, one of them {name}")
    found[short] = tensor
  return found


def fill(
  tensors: Mapping[str, np.ndarray],
  rules: Sequence[WeightRule],
  shapes: Shapes,
  what: str,
  patch: tuple[int, ...] = (),
  unused: str = r"(?!)",
  hint: str = "",
) -> dict[str, np.ndarray]:
  """Turns tensors of a file into our parameters.

  Args:
    tensors: By name, wrappers stripped.
    rules: The family's; those of leaves that the model lacks are left out.
    shapes: Of our leaves, by path.
    what: The family, for errors.
    patch: Size of a patch along each axis, then channels.
    unused: Pattern of names that the model has no use for.
    hint: Follows the list of problems.

  Returns:
    Float32 arrays by path.

  Raises:
    ValueError: Listing all missing, unexpected, misshapen or bad tensors.
  """
  slots = _slots(rules, shapes)
  names = {name for name in tensors if not re.fullmatch(unused, name)}
  params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
  problems = [f"missing: {name}" for name in slots if name not in names]
  problems += [f"unexpected: {name}" for name in sorted(names - set(slots))]
  for name, (rule, layer) in slots.items():
    if name not in names:
      continue
    tensor, place = tensors[name], _place(params[rule.path], rule, layer)
    wanted = _to_file(place, rule.layout, patch).shape
    if tensor.shape != wanted:
      problems.append(f"shape: {name} is {tensor.shape}, wants {wanted}")
      continue
    place[...] = _from_file(tensor.astype(np.float32), rule.layout)
    if not np.isfinite(place).all():
      problems.append(f"not finite: {name}")
  if problems:
    raise ValueError(
      f"weights do not fit (names of {what}, {len(problems)} problems):\n  "
      + "\n  ".join(problems)
      + hint
    )
  return params


def unfill(
  params: Mapping[str, Any],
  rules: Sequence[WeightRule],
  shapes: Shapes,
  patch: tuple[int, ...] = (),
) -> dict[str, np.ndarray]:
  """Turns our parameters into tensors of a file: the inverse of `fill`."""
  flat = traverse_util.flatten_dict(params, sep="/")
  problems = [
    f"{path} is {np.shape(flat[path]) if path in flat else 'missing'}, wants "
    f"{shape}"
    for path, shape in shapes.items()
    if path not in flat or np.shape(flat[path]) != shape
  ]
  if problems:
    raise ValueError("parameters do not fit:\n  " + "\n  ".join(problems))
  flat = {path: np.asarray(flat[path], np.float32) for path in shapes}
  return {
    name: np.ascontiguousarray(
      _to_file(_place(flat[rule.path], rule, layer), rule.layout, patch)
    )
    for name, (rule, layer) in _slots(rules, shapes).items()
  }


def _slots(
  rules: Sequence[WeightRule], shapes: Shapes
) -> dict[str, tuple[WeightRule, int | None]]:
  """Name in the file → its rule and layer."""
  return {
    rule.name.format(i=i): (rule, i)
    for rule in rules
    if rule.path in shapes
    for i in (range(shapes[rule.path][0]) if "{i}" in rule.name else (None,))
  }


def _place(leaf: np.ndarray, rule: WeightRule, layer: int | None) -> np.ndarray:
  """A view of what a rule says of a leaf."""
  leaf = leaf if layer is None else leaf[layer]
  k, n = rule.part
  size = leaf.shape[-1] // n
  return leaf[..., k * size : (k + 1) * size]


def _from_file(tensor: np.ndarray, layout: str) -> np.ndarray:
  if layout == "linear":
    return tensor.T
  if layout == "conv":
    return tensor.transpose(2, 3, 1, 0)
  if layout == "patch":
    return np.moveaxis(tensor, (0, 1), (-1, -2)).reshape(-1, len(tensor))
  return tensor.reshape(-1) if layout == "token" else tensor


def _to_file(value: np.ndarray, layout: str, patch: Sequence[int]):
  if layout == "linear":
    return value.T
  if layout == "conv":
    return value.transpose(3, 2, 0, 1)
  if layout == "patch":
    return np.moveaxis(value.reshape(*patch, -1), (-1, -2), (0, 1))
  return value.reshape(1, 1, -1) if layout == "token" else value
