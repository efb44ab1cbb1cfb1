r"""Bag models (attention MIL): from features of a slide's tiles to its label.

    params = init(key, config)              a plain nested dict
    output = apply(params, config, bag)     see `MilOutput`
    loss = a · head.loss(output.logits, label) +
           b · auxiliary_loss(params, config, bag, output, onehot)
                                            a, b = config.loss_weights

Heads are in `mil_heads.py`. All functions work on one bag, under `jit` and
`vmap`: `jax.vmap(lambda bag: apply(params, config, bag))(bags)`.

| name | logit of a slide | parts |
|---|---|---|
| additive | Σ attention · tile's logit; gated; a map for each output | exact |
| gated, attention | the same, one map for all outputs | exact |
| clam_sb, clam_mb | the same, and an instance loss | exact |
| dsmil | of what resembles the top tile | exact |
| mean, max | mean and maximum of tiles' logits | exact |
| instance | mean of the highest tile logits | exact |
| chowder | MLP of the 5 lowest and 5 highest scores | no |
| transmil | two layers of attention, convolutions on the grid | no |

Parts are exact where contributions sum over tiles to the logit. None of the
models sees where tiles lie but transmil. Padded tiles change nothing, nor does
the order of tiles.

Memory is linear in tiles; see `mil_bag.in_chunks` and `MilConfig.remat`. Under
`jit`, what is not returned is not computed: a training step should return the
loss and logits, not the whole `MilOutput`.
"""

import functools
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Key

from wsiseq_jax.models.mil.attention import AttentionMil
from wsiseq_jax.models.mil.bag import Bag, MilModel, MilOutput, pad
from wsiseq_jax.models.mil.clam import Clam
from wsiseq_jax.models.mil.config import MODELS, MilConfig
from wsiseq_jax.models.mil.dsmil import Dsmil
from wsiseq_jax.models.mil.pooling import Chowder, TilePooling
from wsiseq_jax.models.mil.transmil import TransMil

__all__ = [
  "MODELS",
  "Bag",
  "MilConfig",
  "MilOutput",
  "apply",
  "auxiliary_loss",
  "init",
  "pad",
]

Params = Any

_CLASSES: dict[str, type[MilModel]] = {
  "additive": AttentionMil,
  "gated": AttentionMil,
  "attention": AttentionMil,
  "clam_sb": Clam,
  "clam_mb": Clam,
  "chowder": Chowder,
  "dsmil": Dsmil,
  "transmil": TransMil,
  "mean": TilePooling,
  "max": TilePooling,
  "instance": TilePooling,
}


@functools.lru_cache(maxsize=64)
def _graphdef(config: MilConfig) -> Any:
  model = nnx.eval_shape(lambda: _CLASSES[config.name](config, nnx.Rngs(0)))
  return nnx.split(model, nnx.Param)[0]


def init(key: Key[Array, ""], config: MilConfig) -> Params:
  """Fresh parameters, a nested dictionary of f32 arrays.

  Args:
    key: Source of randomness.
    config: Shape.
  """
  model = _CLASSES[config.name](config, nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def apply(
  params: Params,
  config: MilConfig,
  bag: Bag,
  key: Key[Array, ""] | None = None,
) -> MilOutput:
  """Reads a bag.

  Args:
    params: What `init` returned.
    config: Shape.
    bag: One bag. A bag of padded tiles only has finite outputs and gradients,
      which mean nothing.
    key: Of dropout; None for none.

  Raises:
    ValueError: Features are not as wide as the model is told.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> config = MilConfig(width=3, hidden=4, attention_width=2)
    >>> bag = Bag(jnp.ones((5, 3)), jnp.ones(5, bool), jnp.zeros((5, 2)))
    >>> output = apply(init(jax.random.key(0), config), config, bag)
    >>> output.logits.shape, output.attention.shape
    ((1,), (5, 1))
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
  bag: Bag,
  output: MilOutput,
  label_onehot: Float[Array, " y"],
) -> Float[Array, ""]:
  """What a model learns besides the slide's label, from that label.

  CLAM's instance loss, the cross-entropy of DSMIL's instance stream, 0 for all
  others. Not yet weighted: see `MilConfig.loss_weights`.

  Args:
    params: What `init` returned.
    config: Shape.
    bag: The bag that was read.
    output: What `apply` made of it, in the same differentiated function.
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
