"""The train state: what one step takes and gives back.

Parameters are a plain nested dictionary. The state exists three times over: as
shapes (`abstract_state`, from `eval_shape`; nothing is computed), as shardings
(`state_shardings`, from the shapes), and as arrays. Arrays are made under `jit`
with the shardings as outputs, so that a model too large for one device is never
whole on one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from wsiseq_jax import parallel

Params = Any
InitFn = Callable[[Key[Array, ""]], Params]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State at step s: after s updates.

  The same class holds arrays, shapes or shardings, hence the loose types.

  Attributes:
    step: Number of updates made, int32 scalar.
    params: Nested dictionary of float32 arrays.
    opt_state: What optax keeps; its slots lie like their parameters.
  """

  step: Any
  params: Params
  opt_state: Any


def new_state(
  init: InitFn, tx: optax.GradientTransformation, key: Key[Array, ""]
) -> TrainState:
  """State at step 0 from scratch."""
  params = init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract_state(
  init: InitFn, tx: optax.GradientTransformation
) -> TrainState:
  """Shapes and types of the state; computes nothing."""
  return jax.eval_shape(lambda: new_state(init, tx, jax.random.key(0)))


def state_shardings(
  abstract: TrainState, mesh: Mesh, rules: parallel.Rules = ()
) -> TrainState:
  """Where each array of the state lies; see `parallel.param_shardings`."""
  params = parallel.param_shardings(abstract.params, mesh, rules)
  return TrainState(
    step=parallel.replicated(mesh),
    params=params,
    opt_state=parallel.slot_shardings(
      abstract.opt_state, abstract.params, params, mesh
    ),
  )


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """Shapes that carry their target sharding: what a restore asks for."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    abstract,
    shardings,
  )


def init_state(
  init: InitFn,
  tx: optax.GradientTransformation,
  key: Key[Array, ""],
  shardings: TrainState,
) -> TrainState:
  """State at step 0, made where it will live."""
  make = jax.jit(lambda key: new_state(init, tx, key), out_shardings=shardings)
  return make(key)


def replace_params(
  state: TrainState, params: Params, shardings: TrainState
) -> TrainState:
  """The state with other parameters (loaded weights), placed alike."""
  placed = jax.tree.map(jax.device_put, params, shardings.params)
  return dataclasses.replace(state, params=placed)


def describe(abstract: Any, shardings: Any) -> str:
  """One line an array: path, shape, type, spec; kept under test as text."""
  lines = [
    f"{parallel.path_name(path)} {list(leaf.shape)} {leaf.dtype} "
    f"{tuple(sharding.spec)}"
    for (path, leaf), sharding in zip(
      jax.tree.leaves_with_path(abstract),
      jax.tree.leaves(shardings),
      strict=True,
    )
  ]
  return "\n".join(lines) + "\n"
