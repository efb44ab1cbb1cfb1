"""Weights of Hugging Face's VideoMAE: read, check leaf by leaf, write.

Three kinds of checkpoint, told apart by the names in the file:

    kind            Hugging Face class               our parameters
    pretraining     VideoMAEForPreTraining           encoder, decoder
    model           VideoMAEModel                    encoder
    classification  VideoMAEForVideoClassification   encoder, head

`hf_videomae.RULES` is the mapping, one row a parameter, for both directions. A
tensor that is missing, left over or of another shape is an error that lists all
such tensors: nothing is loaded by halves.

What differs between the two implementations, and how it is met:

- Hugging Face drops the encoder's final LayerNorm when `use_mean_pooling` is
  true (then `VideoMAEForVideoClassification` normalises *after* pooling, with
  `fc_norm`, kept here as `head/norm`). That is `VideoMAEConfig.final_norm`.
  Published pretraining checkpoints have `use_mean_pooling` false.
- The epsilon of the decoder's last LayerNorm is fixed to 1e-5 there, and
  1e-12 is the default elsewhere; the original code has 1e-6 everywhere. Loading
  takes the file's values. On export a decoder epsilon other than 1e-5 is lost,
  which changes predictions by some 1e-6 of their size: said in the log.
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
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from safetensors import numpy as safetensors

from wsiseq_jax.models import videomae
from wsiseq_jax.weights import hf_videomae


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that was read.

  Attributes:
    config: The model it belongs to.
    params: Nested dict of float32 NumPy arrays.
    kind: A key of `hf_videomae.KINDS`.
  """

  config: videomae.VideoMAEConfig
  params: dict[str, Any]
  kind: str


def params_from_hf(
  tensors: dict[str, np.ndarray], config: videomae.VideoMAEConfig
) -> dict[str, Any]:
  """Turns Hugging Face tensors into our parameters, checking every one.

  Args:
    tensors: By name, as in the file; wrapper prefixes are stripped.
    config: The model they must fit.

  Returns:
    Nested dict of float32 arrays, layers stacked.

  Raises:
    ValueError: Listing all missing, unexpected and misshapen tensors.
  """
  tensors = hf_videomae.clean_names(tensors)
  kind = hf_videomae.kind_of(tensors)
  labels = len(tensors.get("classifier.bias", ()))
  leaves = _leaves(config, kind, labels)
  expected = hf_videomae.expected_names(leaves, kind)
  problems = [f"missing: {name}" for name in expected if name not in tensors]
  problems += [
    f"unexpected: {name}" for name in tensors if name not in expected
  ]
  for name, (path, layer, layout) in expected.items():
    shape = leaves[path] if layer is None else leaves[path][1:]
    want = hf_videomae.to_layout(
      np.broadcast_to(np.float32(0), shape), layout, config
    ).shape
    if name in tensors and tensors[name].shape != want:
      problems.append(f"shape: {name} is {tensors[name].shape}, wants {want}")
  if problems:
    raise ValueError(
      f"weights do not fit the model ({kind}, {len(problems)} problems):\n  "
      + "\n  ".join(problems)
    )
  params = {path: np.empty(shape, np.float32) for path, shape in leaves.items()}
  for name, (path, layer, layout) in expected.items():
    params[path][... if layer is None else layer] = hf_videomae.from_layout(
      tensors[name].astype(np.float32), layout
    )
  return _nest(params)


def params_to_hf(
  params: dict[str, Any],
  config: videomae.VideoMAEConfig,
  kind: str = "pretraining",
) -> dict[str, np.ndarray]:
  """Turns our parameters into Hugging Face tensors.

  Args:
    params: Nested dict of arrays; parts the kind has no use for (the decoder,
      when only the encoder is wanted) are left out.
    config: Their model.
    kind: A key of `hf_videomae.KINDS`.

  Returns:
    Float32 tensors by name.

  Raises:
    ValueError: If a parameter is missing or of another shape.
  """
  flat = _flatten(params)
  labels = len(flat.get("head/linear/bias", ()))
  leaves = _leaves(config, hf_videomae.check_kind(kind), labels)
  problems = [f"missing: {path}" for path in leaves if path not in flat] + [
    f"shape: {path} is {np.shape(flat[path])}, wants {shape}"
    for path, shape in leaves.items()
    if path in flat and np.shape(flat[path]) != shape
  ]
  if problems:
    raise ValueError(
      f"parameters do not fit the model ({kind}):\n  " + "\n  ".join(problems)
    )
  flat = {path: np.asarray(flat[path], np.float32) for path in leaves}
  tensors = {}
  for name, (path, layer, layout) in hf_videomae.expected_names(
    leaves, kind
  ).items():
    value = flat[path] if layer is None else flat[path][layer]
    tensors[name] = np.ascontiguousarray(
      hf_videomae.to_layout(value, layout, config)
    )
  return tensors


def load(path: str | pathlib.Path) -> Pretrained:
  """Reads a Hugging Face checkpoint.

  Args:
    path: A `.safetensors` file with `config.json` beside it, or the folder of
      `model.safetensors` and `config.json`.

  Returns:
    Configuration, parameters and kind.

  Raises:
    ValueError: If the files are not there, or do not fit each other.
  """
  path = pathlib.Path(path)
  weights = path / "model.safetensors" if path.is_dir() else path
  config_file = weights.parent / "config.json"
  for file in (weights, config_file):
    if not file.is_file():
      raise ValueError(
        f"model.init_from={path}: no file {file} (wanted: model.safetensors "
        "and config.json in one folder)"
      )
  if weights.suffix != ".safetensors":
    raise ValueError(f"model.init_from={path} is not a .safetensors file")
  config = hf_videomae.config_from_hf(json.loads(config_file.read_text()))
  tensors = safetensors.load_file(weights)
  params = params_from_hf(tensors, config)
  return Pretrained(
    config, params, hf_videomae.kind_of(hf_videomae.clean_names(tensors))
  )


def save(
  folder: str | pathlib.Path,
  config: videomae.VideoMAEConfig,
  params: dict[str, Any],
  kind: str = "pretraining",
) -> None:
  """Writes a checkpoint that Hugging Face's `from_pretrained` reads.

  Args:
    folder: Receives `model.safetensors` and `config.json`.
    config: The model.
    params: Its parameters.
    kind: A key of `hf_videomae.KINDS`.

  Raises:
    ValueError: If Hugging Face cannot express the model, or parameters do not
      fit it.
  """
  folder = pathlib.Path(folder)
  hf_config = hf_videomae.config_to_hf(config, kind)
  tensors = params_to_hf(params, config, kind)
  if kind == "classification":
    # Sets the size of the classifier; names of classes are not ours to know.
    names = [f"LABEL_{i}" for i in range(len(tensors["classifier.bias"]))]
    hf_config["id2label"] = {str(i): name for i, name in enumerate(names)}
    hf_config["label2id"] = {name: i for i, name in enumerate(names)}
  folder.mkdir(parents=True, exist_ok=True)
  # `from_pretrained` refuses files without this mark.
  safetensors.save_file(
    tensors, folder / "model.safetensors", metadata={"format": "pt"}
  )
  (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")


def init_from(
  path: str | pathlib.Path, config: videomae.VideoMAEConfig
) -> tuple[videomae.VideoMAEConfig, dict[str, Any]]:
  """Reads weights to start the pretraining of a given model from.

  Frames and image size may differ from the checkpoint's: position tables are
  then resampled from its grid. Everything that shapes a parameter must agree.

  Args:
    path: See `load`.
    config: The model to be trained.

  Returns:
    The configuration to train (the given one, with the checkpoint's epsilons
    and, if grids differ, its grid as `trained_grid`), and the parameters.

  Raises:
    ValueError: Naming the config keys that disagree, or if there is no decoder.
  """
  found = load(path)
  if found.kind != "pretraining":
    raise ValueError(
      f"model.init_from={path} is a {hf_videomae.KINDS[found.kind]} and has "
      f"no decoder; wanted: {hf_videomae.KINDS['pretraining']}"
    )
  free = (
    *("frames", "image_px", "normalise_target", "trained_grid"),
    *("norm_eps", "decoder_norm_eps", "dtype", "remat", "attention_kernel"),
  )
  differing = [
    f"model.{field.name}={getattr(config, field.name)}, "
    f"file {getattr(found.config, field.name)}"
    for field in dataclasses.fields(config)
    if field.name not in free
    and getattr(config, field.name) != getattr(found.config, field.name)
  ]
  if differing:
    raise ValueError(
      f"model.init_from={path} is another model: " + "; ".join(differing)
    )
  if found.config.grid != config.grid:
    logging.info(
      "%s was trained on grid %s (t, h, w), this model has %s: position tables "
      "will be resampled",
      path,
      found.config.grid,
      config.grid,
    )
  config = dataclasses.replace(
    config,
    norm_eps=found.config.norm_eps,
    decoder_norm_eps=found.config.decoder_norm_eps,
    trained_grid=(
      None if found.config.grid == config.grid else found.config.grid
    ),
  )
  return config, found.params


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dict to `a/b/c` paths."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f"{prefix}{name}/")
    else:
      flat[prefix + name] = value
  return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
  """`a/b/c` paths to a nested dict."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


def _leaves(
  config: videomae.VideoMAEConfig, kind: str, labels: int
) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter of a kind, by path."""
  model = nnx.eval_shape(lambda: videomae.VideoMAE(config, nnx.Rngs(0)))
  tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  leaves = {path: leaf.shape for path, leaf in _flatten(tree).items()}
  if kind == "pretraining":
    return leaves
  leaves = {p: s for p, s in leaves.items() if p.startswith("encoder/")}
  if kind == "classification":
    leaves |= {
      "head/linear/kernel": (config.width, labels),
      "head/linear/bias": (labels,),
    }
    if not config.final_norm:
      leaves |= {
        "head/norm/scale": (config.width,),
        "head/norm/bias": (config.width,),
      }
  return leaves
