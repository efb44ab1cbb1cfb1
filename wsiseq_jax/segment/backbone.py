"""What all methods stand on: a picture in, five maps of features out.

    x1, x2, x3, x4, x5 of strides 4, 4, 8, 16, 16

    resnet50   pretrained; its last stage is not strided, as in IRN
    small      some 70,000 parameters, learns from scratch
    encoder    any encoder of tiles; its map is x5, and resized all others

Pixels go in as they are, uint8: normalisation cannot be forgotten.
"""

import dataclasses
import functools
import pathlib
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from data_prep.files import done
from data_prep.files.schema import Range
from wsiseq_jax import encoders
from wsiseq_jax.data import augment
from wsiseq_jax.models import conv, pyramid, resnet, tokens
from wsiseq_jax.weights import files, tile_encoders

STRIDES = (4, 4, 8, 16, 16)
# Parameters of x4 and x5, by the beginning of their names.
_LATE = ("layer3", "layer4", "block4", "block5")
_NO_ENCODER = encoders.Settings(name="vit_small_16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
  """The block `backbone` of a config, and the network that it describes."""

  name: Literal["small", "resnet50", "encoder"] = "small"
  # resnet50: a file of torchvision's; '' for random ones, to be asked for.
  weights: str = ""
  random_weights: bool = False
  # resnet50: batch-norm with fixed statistics, folded, or group-norm, trained.
  norm: Literal["fixed", "group"] = "group"
  # Which parameters learn: all, those of x4 and x5 (as in IRN), or none.
  train: Literal["all", "late", "none"] = "all"
  # small: channels of x1 .. x5.
  channels: Annotated[tuple[int, int, int, int, int], Range(1)] = (
    *(16, 16, 24, 32, 48),
  )
  # encoder: see `wsiseq_jax/encoders/encoder.py`.
  encoder: encoders.Settings = _NO_ENCODER

  def __post_init__(self):
    problems = []
    if self.name != "resnet50" and (self.weights or self.random_weights):
      problems.append(
        f"config.backbone.weights = {self.weights!r}, config.backbone."
        f"random_weights = {self.random_weights}: are for config.backbone.name "
        f"= 'resnet50', not {self.name!r}"
      )
    if self.name == "resnet50" and bool(self.weights) == self.random_weights:
      problems.append(
        f"config.backbone.weights = {self.weights!r}, config.backbone."
        f"random_weights = {self.random_weights}: name a file of weights, or "
        "ask for random ones, which know nothing of tissue"
      )
    if self.norm == "fixed" and self.name != "resnet50":
      problems.append(
        "config.backbone.norm = 'fixed': is for config.backbone.name = "
        f"'resnet50', not {self.name!r}"
      )
    if self.name != "encoder" and self.encoder != _NO_ENCODER:
      problems.append(
        f"config.backbone.encoder.name = {self.encoder.name!r}, ...: is for "
        f"config.backbone.name = 'encoder', not {self.name!r}"
      )
    if self.name == "encoder" and self.train == "late":
      problems.append(
        "config.backbone.train = 'late': an encoder learns as a whole or not "
        "at all, 'all' or 'none'"
      )
    if problems:
      raise ValueError("\n".join(problems))

  @property
  def widths(self) -> tuple[int, int, int, int, int]:
    """Channels of x1 .. x5."""
    if self.name == "small":
      return self.channels
    if self.name == "resnet50":
      return (64, 256, 512, 1024, 2048)
    return (_encoder(self.encoder).map_width,) * 5

  def init(self, key: Key[Array, ""]) -> dict[str, Any]:
    """Random parameters; those of an encoder are its own."""
    if self.name == "small":
      return pyramid.init_params(self.channels, key)
    if self.name == "resnet50":
      spec = resnet.PRESETS["resnet50"]
      return resnet.init_params(spec, key, norm=self.norm == "group")
    return _encoder(self.encoder).params

  def load(self, path: str | pathlib.Path) -> dict[str, Any]:
    """Parameters of a ResNet-50 in a file of torchvision's.

    Raises:
      ValueError: the file is not there or not of this network.
    """
    tensors = files.read(str(path), "config.backbone.weights")
    spec = resnet.PRESETS["resnet50"]
    try:
      params = tile_encoders.resnet_params(tensors, spec, self.norm == "group")
    except ValueError as error:
      raise ValueError(
        f"config.backbone.weights = {str(path)!r}: {error}"
      ) from error
    return jax.tree.map(jnp.asarray, params)

  def start(self, seed: int) -> dict[str, Any]:
    """The parameters that training begins with, as the config says."""
    if self.weights:
      return self.load(self.weights)
    if self.name == "encoder":
      return _encoder(self.encoder).params
    return jax.jit(self.init)(jax.random.key(seed))

  @property
  def fingerprint(self) -> str:
    """Tells the weights it begins with from others in a file of that name."""
    if self.weights:
      found = files.find(self.weights, "config.backbone.weights")
      return done.file_digest(found)
    return _encoder(self.encoder).fingerprint if self.name == "encoder" else ""

  def learned(self, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that learn; `{**params, **learned}` is all of them."""
    if self.train == "none":
      return {}
    return {
      name: value
      for name, value in params.items()
      if self.train == "all" or name.startswith(_LATE)
    }

  def features(
    self, params: dict[str, Any], pixels: Array
  ) -> tuple[Float[Array, "b h2 w2 c"], ...]:
    """Features x1 .. x5.

    Args:
      params: all parameters.
      pixels: [b, h, w, 3] from 0 to 255, uint8 or float; sides are multiples of
        16.

    Returns:
      Five maps, float32, of `STRIDES` and `widths`. No gradient reaches
      parameters that do not learn.
    """
    learned = self.learned(params)
    params = {**jax.lax.stop_gradient(params), **learned}
    if self.name == "encoder":
      x5 = _encoder(self.encoder).maps(params, pixels)
      b, h, w, _ = pixels.shape
      del b
      return tuple(conv.resize(x5, (h // s, w // s)) for s in STRIDES)
    x = pixels.astype(jnp.float32) / 255.0
    x = augment.normalise(x, tokens.IMAGENET_MEAN, tokens.IMAGENET_STD)
    if self.name == "small":
      return pyramid.apply(params, x)
    return resnet.maps(params, resnet.PRESETS["resnet50"], x, (1, 2, 2, 1))


@functools.lru_cache(maxsize=4)
def _encoder(settings: encoders.Settings) -> encoders.Encoder:
  """An encoder that has maps, loaded once."""
  found = encoders.load(dataclasses.asdict(settings))
  if found.maps is None:
    raise ValueError(
      f"config.backbone.encoder.name = {settings.name!r}: gives one vector a "
      "tile and no map of features; take a ViT or a ResNet"
    )
  return found
