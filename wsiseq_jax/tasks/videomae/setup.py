"""Static parts of masked autoencoding: config keys, network, clips, masks.

Everything that can be wrong with a config is found here, before a program is
compiled. What the keys mean is said in `configs/videomae.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from wsiseq_jax import config as checks
from wsiseq_jax.data import augment
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import attention, masking, videomae, vit

# Sizes that a config may override one by one; 0 leaves them to `model.size`.
_OVERRIDES = tuple(videomae.SIZES["base"])

CHECKS: Mapping[str, checks.Check] = {
  "data.frames": checks.integer(1),
  "data.frame_step": checks.integer(1),
  "data.repeats": checks.integer(1),
  "data.image_px": checks.integers(1, length=2),
  "data.crop_scales": checks.numbers(0.01, 1.0),
  "model.size": checks.one_of(*videomae.SIZES),
  "model.patch": checks.integers(1, length=3),
  **{f"model.{name}": checks.integer(0) for name in _OVERRIDES},
  "model.normalise_target": checks.flag(),
  "model.dtype": checks.one_of(*videomae.DTYPES),
  "model.remat": checks.one_of(*vit.REMAT),
  "model.attention_kernel": checks.one_of(*attention.KERNELS),
  "model.init_from": checks.text(),
  "model.trained_grid": checks.integers(0, length=3),
  "model.norm_eps": checks.number(0),
  "model.decoder_norm_eps": checks.number(0),
  "mask.kind": checks.one_of(*masking.KINDS),
  "mask.ratio": checks.number(0.01, 0.99),
  "mask.decoder": checks.one_of(*masking.DECODERS),
  "mask.decoder_ratio": checks.number(0, 1),
  "mask.run_patches": checks.number(1),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything static about a run of this task.

  Attributes:
    model: shape and numerics of the network.
    graphdef: the network without its parameters.
    clips: what clips to cut.
    mask: how to mask them.
  """

  model: videomae.VideoMAEConfig
  graphdef: Any = dataclasses.field(repr=False)
  clips: augment.ClipSpec
  mask: masking.MaskSpec

  def merge(self, params: Any) -> videomae.VideoMAE:
    """The network with parameters; used functionally, inside a traced call."""
    return nnx.merge(self.graphdef, params)


def model_config(config: ConfigDict) -> videomae.VideoMAEConfig:
  """The network that `config.model` and `config.data` describe."""
  sizes = dict(videomae.SIZES[config.model.size])
  for prefix in ("", "decoder_"):
    # Another width keeps the usual MLP of four times the width.
    width = config.model[f"{prefix}width"]
    if width:
      sizes[f"{prefix}mlp_width"] = 4 * width
  sizes.update(
    {name: config.model[name] for name in _OVERRIDES if config.model[name]}
  )
  sizes["patch"] = tuple(config.model.patch)
  trained_grid = tuple(config.model.trained_grid)
  return videomae.VideoMAEConfig(
    **sizes,
    frames=config.data.frames,
    image_px=tuple(config.data.image_px),
    normalise_target=config.model.normalise_target,
    trained_grid=trained_grid if any(trained_grid) else None,
    norm_eps=config.model.norm_eps,
    decoder_norm_eps=config.model.decoder_norm_eps,
    dtype=config.model.dtype,
    remat=config.model.remat,
    attention_kernel=config.model.attention_kernel,
  )


def init_params(model: videomae.VideoMAEConfig, key: Key[Array, ""]) -> Any:
  """Fresh parameters, a nested dictionary."""
  network = videomae.VideoMAE(model, nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])


def make_setup(config: ConfigDict, spec: DataSpec) -> Setup:
  """Builds the static parts, checking that data, model and masks fit.

  Raises:
    ValueError: They do not; the config key is named.
  """
  model = model_config(config)
  clips = augment.ClipSpec(
    frames=config.data.frames,
    frame_step=config.data.frame_step,
    image_px=model.image_px,
    frame_px=tuple(spec.frame_px),
    crop_scales=tuple(config.data.crop_scales),
    repeats=config.data.repeats,
  )
  if clips.span > spec.frames:
    raise ValueError(
      f"config.data.frames = {clips.frames} and config.data.frame_step = "
      f"{clips.frame_step} span {clips.span} stored frames, the data has "
      f"{spec.frames}"
    )
  mask = masking.MaskSpec(
    grid=model.grid,
    patch=model.patch,
    kind=config.mask.kind,
    ratio=config.mask.ratio,
    decoder=config.mask.decoder,
    decoder_ratio=config.mask.decoder_ratio,
    run_patches=config.mask.run_patches,
  )
  network = nnx.eval_shape(lambda: videomae.VideoMAE(model, nnx.Rngs(0)))
  graphdef, _ = nnx.split(network, nnx.Param)
  return Setup(model, graphdef, clips, mask)
