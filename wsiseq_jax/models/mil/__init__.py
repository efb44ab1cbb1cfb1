r"""Bag models (attention MIL): from features of a slide's tiles to its label.

    config = configure("clam_sb", width=1024)
    params = init(key, config)              a plain nested dict
    output = apply(params, config, bag)     see `MilOutput`
    loss = a · head.loss(output.logits, label) +
           b · auxiliary_loss(params, config, output, onehot)
                                            a, b = config.loss_weights

All functions work on one bag, under `jit` and `vmap`:
`jax.vmap(lambda bag: apply(params, config, bag))(bags)`.

| name | logit of a slide | parts |
|---|---|---|
| gated, attention | Σ attention · tile's logit | exact |
| additive | the same, a map for each output | exact |
| clam_sb, clam_mb | the same, and an instance loss | exact |
| dsmil | of what resembles the top tile | exact |
| mean, max | mean and maximum of tiles' logits | exact |
| instance | mean of the highest tile logits | exact |
| selection | of the highest tiles, the lowest are labelled too | exact |
| chowder | MLP of the 5 lowest and 5 highest scores | no |
| transmil | two layers of attention, convolutions on the grid | no |

Parts are exact where contributions sum over tiles to the logit. None of the
models sees where tiles lie but transmil. Padded tiles change nothing, nor does
the order of tiles.

A model is a module with a config dataclass, and a line of `MODELS`.

Memory is linear in tiles; see `bag.in_chunks` and `MilConfig.remat`. Under
`jit`, what is not returned is not computed: a training step should return the
loss and logits, not the whole `MilOutput`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Key

from data_prep.files import schema
from wsiseq_jax.models.mil.attention import (
  AdditiveConfig,
  AdditiveMil,
  AttentionConfig,
  AttentionMil,
)
from wsiseq_jax.models.mil.bag import Bag, MilModel, MilOutput, pad
from wsiseq_jax.models.mil.clam import Clam, ClamConfig
from wsiseq_jax.models.mil.config import MilConfig
from wsiseq_jax.models.mil.dsmil import Dsmil, DsmilConfig
from wsiseq_jax.models.mil.nystrom import NystromConfig
from wsiseq_jax.models.mil.pooling import (
  Chowder,
  ChowderConfig,
  InstanceConfig,
  PoolingConfig,
  TilePooling,
)
from wsiseq_jax.models.mil.selection import Selection, SelectionConfig
from wsiseq_jax.models.mil.transmil import TransMil
from wsiseq_jax.models.rngs import Rngs

__all__ = [
  "MODELS",
  "Bag",
  "MilConfig",
  "MilOutput",
  "apply",
  "auxiliary_loss",
  "configure",
  "init",
  "pad",
  "settings",
]

Params = Any
Build = Callable[[Any, nnx.Rngs], MilModel]

# Name → (config, rngs) → model, and its config.
MODELS: dict[str, tuple[Build, type[MilConfig]]] = {
  "gated": (AttentionMil, AttentionConfig),
  "attention": (
    functools.partial(AttentionMil, is_gated=False),
    AttentionConfig,
  ),
  "additive": (AdditiveMil, AdditiveConfig),
  "clam_sb": (Clam, ClamConfig),
  "clam_mb": (functools.partial(Clam, is_multi=True), ClamConfig),
  "chowder": (Chowder, ChowderConfig),
  "dsmil": (Dsmil, DsmilConfig),
  "transmil": (TransMil, NystromConfig),
  "mean": (functools.partial(TilePooling, top=0), PoolingConfig),
  "max": (functools.partial(TilePooling, top=1), PoolingConfig),
  "instance": (TilePooling, InstanceConfig),
  "selection": (Selection, SelectionConfig),
}


def settings(name: str) -> dict[str, Any]:
  """The settings of a model, all but its sizes at both ends, at their defaults.

  Raises:
    ValueError: There is no such model.
  """
  if name not in MODELS:
    hint = schema.did_you_mean(name, MODELS)
    raise ValueError(
      f"config.model.name = {name!r}: must be one of {list(MODELS)}{hint}"
    )
  fields = dataclasses.fields(MODELS[name][1])
  ends = ("name", "width", "outputs")
  return {f.name: f.default for f in fields if f.name not in ends}


def configure(name: str, *, width: int, outputs: int = 1, **fields) -> Any:
  """The checked config of a model.

  Args:
    name: One of `MODELS`.
    width: Channels of a tile's feature.
    outputs: Logits of a slide.
    **fields: See the model's own config.

  Raises:
    ValueError: All that is wrong, by config key; a field that the model does
      not have, and which it has.
  """
  known = settings(name)
  more = [key for key in fields if key not in known]
  if more:
    raise ValueError(
      f"config.model.{more[0]} = {fields[more[0]]!r}: {name!r} has no such "
      f"field, it has {list(known)}; --config=configs/mil.py:{name} has these"
    )
  values = {"name": name, "width": width, "outputs": outputs, **fields}
  return schema.build(MODELS[name][1], values, "config.model")


@functools.lru_cache(maxsize=64)
def _graphdef(config: MilConfig) -> Any:
  model = nnx.eval_shape(lambda: MODELS[config.name][0](config, Rngs(0)))
  return nnx.split(model, nnx.Param)[0]


def init(key: Key[Array, ""], config: MilConfig) -> Params:
  """Fresh parameters, a nested dictionary of f32 arrays."""
  model = MODELS[config.name][0](config, Rngs(key))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def apply(
  params: Params, config: MilConfig, bag: Bag, key: Key[Array, ""] | None = None
) -> MilOutput:
  """Reads a bag.

  Args:
    params: What `init` returned.
    config: Shape.
    bag: One bag. A bag of padded tiles only has finite outputs and gradients,
      which mean nothing.
    key: Of dropout; None for none.

  Raises:
    ValueError: Features are not as wide as the model.
  """
  shapes = [x.shape for x in (bag.features, bag.mask, bag.grid_xy)]
  tiles = shapes[1][0] if len(shapes[1]) == 1 else None
  if tiles is None or shapes != [(tiles, config.width), (tiles,), (tiles, 2)]:
    raise ValueError(
      f"a bag of features {shapes[0]}, mask {shapes[1]}, grid_xy {shapes[2]} "
      f"given to a model of (m, {config.width}), (m,), (m, 2) (config key "
      "model.width; a batch of bags needs vmap)"
    )
  return nnx.merge(_graphdef(config), params)(bag, key)


def auxiliary_loss(
  params: Params,
  config: MilConfig,
  output: MilOutput,
  label_onehot: Float[Array, " y"],
) -> Float[Array, ""]:
  """What a model learns besides the slide's label, from that label.

  CLAM's instance loss, the cross-entropy of DSMIL's instance stream, 0 for all
  others. Not yet weighted: see `MilConfig.loss_weights`.

  Args:
    params: What `init` returned.
    config: Shape.
    output: What `apply` made of a bag, in the same differentiated function.
    label_onehot: 1 for the classes of the slide, 0 for others, NaN where it is
      not known (nothing is learned from it). For one logit: the label itself.

  Raises:
    ValueError: The label has another length than the logits.
  """
  if label_onehot.shape != (config.outputs,):
    raise ValueError(
      f"label_onehot of shape {label_onehot.shape}: must be "
      f"({config.outputs},), a number for each logit"
    )
  return nnx.merge(_graphdef(config), params).auxiliary(output, label_onehot)
