"""Makes the golden files of the tile encoders with torchvision, timm, and HF.

Random weights of tiny models and random tiles go through the PyTorch models;
weights are written under each library's names, tiles and features beside them. Run it again only to add a case; the results do not depend on the machine
beyond rounding.

  pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 \
    transformers==5.23.0 safetensors
  python tests/golden/make_encoder_golden.py

Needs nothing of this repository.
"""

import pathlib
import shutil
import tempfile

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import resnet

HERE = pathlib.Path(__file__).resolve().parent / "encoders"
# The size that positions belong to comes first; at the others the libraries
# resample them.
SIZES = (24, 16, 32)
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)

TIMM = dict(
  img_size=24,
  patch_size=4,
  embed_dim=24,
  depth=2,
  num_heads=3,
  mlp_ratio=2,
  num_classes=0,
  dynamic_img_size=True,
)
SWIGLU = dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU)
TIMM_CASES = {
  # As UNI.
  "timm_gelu": dict(init_values=1e-5),
  # As H-optimus-0 and UNI2-h: patches alone have positions.
  "timm_swiglu_registers": dict(
    init_values=1e-5, reg_tokens=2, no_embed_class=True, **SWIGLU
  ),
  # As Virchow2, where registers have positions as well; no biases, no scale.
  "timm_plain": dict(reg_tokens=2, qkv_bias=False, **SWIGLU),
}
HUGGING_FACE = dict(
  image_size=24,
  patch_size=4,
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
)
HUGGING_FACE_CASES = {
  "hf_vit": (
    transformers.ViTModel,
    transformers.ViTConfig(intermediate_size=48, **HUGGING_FACE),
  ),
  "hf_dinov2": (
    transformers.Dinov2Model,
    transformers.Dinov2Config(mlp_ratio=2, **HUGGING_FACE),
  ),
  "hf_dinov2_registers": (
    transformers.Dinov2WithRegistersModel,
    transformers.Dinov2WithRegistersConfig(
      mlp_ratio=2,
      use_swiglu_ffn=True,
      num_register_tokens=3,
      qkv_bias=False,
      **HUGGING_FACE,
    ),
  ),
}


class TinyResNet(resnet.ResNet):
  """torchvision's ResNet, a 32nd as wide."""

  def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
    if planes == 64:
      self.inplanes = 4
      self.conv1 = torch.nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
      self.bn1 = torch.nn.BatchNorm2d(4)
    return super()._make_layer(block, planes // 32, blocks, stride, dilate)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
  """Gives every parameter and running statistic a random value."""
  with torch.no_grad():
    for name, tensor in model.state_dict().items():
      if not tensor.is_floating_point():
        continue
      is_factor = "norm" in name or "bn" in name or "downsample.1" in name
      if name.endswith("running_var"):
        tensor.uniform_(0.5, 2.0)
      elif "gamma" in name or "lambda1" in name:
        tensor.uniform_(0.2, 1.5)
      elif is_factor and name.endswith("weight"):
        tensor.normal_(1.0, 0.1)
      else:
        tensor.normal_(0.0, 0.2)
  return model.eval()


def normalise(tiles: torch.Tensor) -> torch.Tensor:
  """Tiles as PyTorch wants them."""
  return (tiles.permute(0, 3, 1, 2) / 255.0 - MEAN) / STD


def timm_tokens(model, pixels):
  """All tokens after the last norm, and how many are no patches."""
  return model.forward_features(pixels), model.num_prefix_tokens


def hugging_face_tokens(model, pixels):
  """The same; ViT resamples positions only if it is told to."""
  prefix = 1 + getattr(model.config, "num_register_tokens", 0)
  more = {}
  if isinstance(model, transformers.ViTModel):
    more["interpolate_pos_encoding"] = True
  return model(pixels, **more).last_hidden_state, prefix


def main() -> None:
  """Writes everything."""
  torch.manual_seed(0)
  torch.use_deterministic_algorithms(True)
  HERE.mkdir(exist_ok=True)
  expected = {
    f"tiles_{px}": torch.randint(0, 256, (2, px, px, 3), dtype=torch.uint8)
    for px in SIZES
  }

  def record(name, model, tokens_of):
    for px in SIZES:
      tokens, prefix = tokens_of(model, normalise(expected[f"tiles_{px}"]))
      expected[f"{name}/{px}/class"] = tokens[:, 0]
      expected[f"{name}/{px}/mean"] = tokens[:, prefix:].mean(dim=1)

  with torch.no_grad():
    for name, more in TIMM_CASES.items():
      model = randomise(VisionTransformer(**TIMM, **more))
      save_file(model.state_dict(), HERE / f"{name}.safetensors")
      record(name, model, timm_tokens)
    for name, (maker, config) in HUGGING_FACE_CASES.items():
      model = randomise(maker(config))
      with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copyfile(
          pathlib.Path(folder) / "model.safetensors",
          HERE / f"{name}.safetensors",
        )
      record(name, model, hugging_face_tokens)

    model = TinyResNet(resnet.Bottleneck, [2, 1, 2, 1])
    model.fc = torch.nn.Linear(64, 3)
    randomise(model)
    save_file(model.state_dict(), HERE / "torchvision_resnet.safetensors")
    tiles = torch.randint(0, 256, (2, 48, 40, 3), dtype=torch.uint8)
    x = model.maxpool(model.relu(model.bn1(model.conv1(normalise(tiles)))))
    x = model.layer3(model.layer2(model.layer1(x)))
    expected["resnet/tiles"] = tiles
    expected["resnet/layer3"] = x.mean(dim=(2, 3))
    expected["resnet/layer4"] = model.layer4(x).mean(dim=(2, 3))
  expected = {name: x.contiguous() for name, x in expected.items()}
  save_file(expected, HERE / "expected.safetensors")


if __name__ == "__main__":
  main()
