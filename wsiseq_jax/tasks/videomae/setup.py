"""Static parts of masked autoencoding: config keys, network, clips, masks.

Everything that can be wrong with a config is found here, before a program is
compiled.
"""

import dataclasses
from typing import Annotated, Any, Literal

from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.files.schema import (
  FILLED,
  AtLeast0,
  AtLeast1,
  NotNegative,
  Range,
)
from wsiseq_jax import checkpoint
from wsiseq_jax import config as configs
from wsiseq_jax.data import augment
from wsiseq_jax.data.source import DataSpec
from wsiseq_jax.models import attention, masking, posemb, videomae, vit
from wsiseq_jax.models.rngs import Rngs

# Sizes that a config may override one by one; 0 leaves them to `model.size`.
_OVERRIDES = tuple(videomae.SIZES["base"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(configs.Data):
  """Which clips are cut from a sequence."""

  frames: AtLeast1 = 16
  frame_step: AtLeast1 = 4
  # Clips cut from each loaded sequence, each with its own crop and mask.
  repeats: AtLeast1 = 4
  image_px: Annotated[tuple[int, int], Range(1)] = (224, 224)
  crop_scales: Annotated[tuple[float, ...], Range(0.01, 1), FILLED] = (
    1.0,
    0.875,
    0.75,
    0.66,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """The network; see `models/videomae.py`."""

  size: Literal[tuple(videomae.SIZES)] = "base"
  patch: Annotated[tuple[int, int, int], Range(1)] = (2, 16, 16)  # t, h, w
  # Sizes one by one; 0 is the value of `size`.
  width: AtLeast0 = 0
  depth: AtLeast0 = 0
  heads: AtLeast0 = 0
  mlp_width: AtLeast0 = 0
  decoder_width: AtLeast0 = 0
  decoder_depth: AtLeast0 = 0
  decoder_heads: AtLeast0 = 0
  decoder_mlp_width: AtLeast0 = 0
  # Of tokens; see `VideoMAEConfig`. Weights of Hugging Face need 'flat'.
  positions: Literal[posemb.POSITIONS] = "flat"
  dtype: Literal[vit.DTYPES] = "bfloat16"
  remat: Literal[vit.REMAT] = "none"
  attention_kernel: Literal[attention.KERNELS] = "auto"
  # What to start from: the folder of a run, or weights of Hugging Face (a file
  # or hf:owner/name).
  init_from: str = ""
  # Filled in by `init_from`: the weights' own grid and epsilons.
  trained_grid: Annotated[tuple[int, int, int], Range(0)] = (0, 0, 0)
  norm_eps: NotNegative = 1e-6
  decoder_norm_eps: NotNegative = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Network):
  """The network, and what it predicts."""

  normalise_target: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(configs.Experiment):
  """A config with `config.task = "videomae"`."""

  data: Data
  model: Model
  mask: masking.MaskSettings


@dataclasses.dataclass(frozen=True)
class Setup:
  """Everything static about a run of this task."""

  model: videomae.VideoMAEConfig  # shape and numerics of the network
  # the network without its parameters
  graphdef: Any = dataclasses.field(repr=False)
  clips: augment.ClipSpec  # what clips to cut
  mask: masking.MaskSpec  # how to mask them

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
    normalise_target=config.model.get("normalise_target", True),
    latent=config.task == "latent",
    positions=config.model.positions,
    trained_grid=trained_grid if any(trained_grid) else None,
    norm_eps=config.model.norm_eps,
    decoder_norm_eps=config.model.decoder_norm_eps,
    dtype=config.model.dtype,
    remat=config.model.remat,
    attention_kernel=config.model.attention_kernel,
  )


def settle(
  path: str,
  model: videomae.VideoMAEConfig,
  task: str,
  kind: type[configs.Experiment],
) -> videomae.VideoMAEConfig:
  """The model to train from the parameters of a run of the same task.

  Args:
    path: the run.
    model: what this run's config says.
    task: name of the task.
    kind: schema of its config.

  Raises:
    ValueError: the run is of another task.
  """
  with checkpoint.Checkpoints(path, read_only=True) as found:
    saved = found.meta()["config"]
  if saved["task"] != task:
    raise ValueError(
      f"config.model.init_from = {path!r} is a run of task {saved['task']!r}; "
      f"must be one of {task!r}"
    )
  trained = model_config(configs.complete(kind, saved))
  grid = trained.trained_grid or trained.grid
  return dataclasses.replace(
    model,
    trained_grid=None if grid == model.grid else grid,
    norm_eps=trained.norm_eps,
    decoder_norm_eps=trained.decoder_norm_eps,
  )


def settled(config: ConfigDict, found: videomae.VideoMAEConfig) -> ConfigDict:
  """The config with what the weights to start from decide."""
  resolved = ConfigDict(config.to_dict())
  resolved.model.update(
    {
      "trained_grid": found.trained_grid or (0, 0, 0),
      "norm_eps": found.norm_eps,
      "decoder_norm_eps": found.decoder_norm_eps,
    }
  )
  return resolved.lock()


def init_params(model: videomae.VideoMAEConfig, key: Key[Array, ""]) -> Any:
  """Fresh parameters, a nested dictionary."""
  network = videomae.VideoMAE(model, Rngs(key))
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
  mask = schema.build(masking.MaskSettings, config.mask, "config.mask")
  mask = masking.MaskSpec(model.grid, model.patch, **vars(mask))
  network = nnx.eval_shape(lambda: videomae.VideoMAE(model, Rngs(0)))
  graphdef, _ = nnx.split(network, nnx.Param)
  return Setup(model, graphdef, clips, mask)
