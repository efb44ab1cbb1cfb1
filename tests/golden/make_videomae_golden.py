"""Makes the golden files of `tests/weights/test_hf_videomae.py` with Hugging Face.

Random weights, a random clip and a random mask go through the PyTorch model
`VideoMAEForPreTraining`; weights, inputs and outputs are written beside this
script. Run it again only to add a case; the results do not depend on the
machine beyond rounding.

  pip install torch==2.13.0 transformers==5.23.0 safetensors
  python tests/golden/make_videomae_golden.py

Needs nothing of this repository.
"""

import pathlib

import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent

SQUARE = dict(
  image_size=32,
  patch_size=8,
  num_frames=4,
  hidden_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=120,
  decoder_hidden_size=24,
  decoder_num_hidden_layers=2,
  decoder_num_attention_heads=2,
  decoder_intermediate_size=72,
)
# Height and width differ, three token slots in time, tubelets of two frames,
# the epsilon of the original code instead of Hugging Face's 1e-12.
RECTANGLE = dict(
  image_size=[32, 48],
  patch_size=16,
  num_frames=6,
  hidden_size=36,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=144,
  decoder_hidden_size=20,
  decoder_num_hidden_layers=1,
  decoder_num_attention_heads=5,
  decoder_intermediate_size=80,
  layer_norm_eps=1e-6,
)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
  """Gives every parameter, biases and norms included, a random value."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(0.0, 0.1)
      if "norm" in name and name.endswith("weight"):
        parameter.add_(1.0)
  return model.eval()


def random_mask(tokens: int, masked: int, batch: int) -> torch.Tensor:
  """Boolean mask with the same number of masked tokens in every row."""
  order = torch.stack([torch.randperm(tokens) for _ in range(batch)])
  return order < masked


def clip_of(config) -> torch.Tensor:
  """Random clips in ImageNet units, channels before rows as torch wants."""
  size = config.image_size
  h, w = (size, size) if isinstance(size, int) else size
  shape = (2, config.num_frames, config.num_channels, h, w)
  return torch.randn(shape) * 0.7


def write(name: str, model, tensors: dict[str, torch.Tensor]) -> None:
  """Writes weights as Hugging Face does, and inputs and outputs beside."""
  model.save_pretrained(HERE / name)
  tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
  save_file(tensors, HERE / name / "expected.safetensors")


def make_pretraining(name: str, masked: int, settings: dict) -> None:
  """A pretraining model: loss, logits, encoder output with and without mask."""
  config = transformers.VideoMAEConfig(use_mean_pooling=False, **settings)
  model = randomise(transformers.VideoMAEForPreTraining(config))
  pixels = clip_of(config)
  tokens = model.videomae.embeddings.num_patches
  mask = random_mask(tokens, masked, batch=2)
  with torch.no_grad():
    out = model(pixels, bool_masked_pos=mask)
    visible = model.videomae(pixels, bool_masked_pos=mask).last_hidden_state
    every = model.videomae(pixels).last_hidden_state
  write(
    name,
    model,
    dict(
      pixels=pixels,
      mask=mask,
      loss=out.loss,
      logits=out.logits,
      visible_tokens=visible,
      all_tokens=every,
    ),
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.use_deterministic_algorithms(True)
  make_pretraining("videomae_square", masked=24, settings=SQUARE)
  make_pretraining("videomae_rectangle", masked=13, settings=RECTANGLE)
