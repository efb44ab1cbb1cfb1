"""The train state: what one step takes and gives back.

The state exists three times: as shapes (`abstract_state`; nothing is computed),
as shardings (`state_shardings`), and as arrays. Arrays are made under `jit`
with the shardings as outputs: a model may be too large for one device.
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
ExtraFn = Callable[[Params], Any]


def _no_extra(params: Params) -> dict[str, Any]:
  del params
  return {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State at step s: after s updates.

  The same class holds arrays, shapes or shardings, hence the loose types.
  """

  step: Any  # Number of updates made, int32 scalar
  params: Params  # Nested dictionary of float32 arrays
  opt_state: Any  # What optax keeps
  # What the task keeps: averaged parameters, a teacher, a queue. An empty
  # dictionary where it keeps nothing
  extra: Any = dataclasses.field(default_factory=dict)


def new_state(
  init: InitFn,
  tx: optax.GradientTransformation,
  key: Key[Array, ""],
  init_extra: ExtraFn = _no_extra,
) -> TrainState:
  """State at step 0 from scratch."""
  params = init(key)
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, tx.init(params), init_extra(params))


def abstract_state(
  init: InitFn,
  tx: optax.GradientTransformation,
  init_extra: ExtraFn = _no_extra,
) -> TrainState:
  """Shapes and types of the state; computes nothing."""
  return jax.eval_shape(
    lambda: new_state(init, tx, jax.random.key(0), init_extra)
  )


def state_shardings(
  abstract: TrainState, mesh: Mesh, rules: parallel.Rules = ()
) -> TrainState:
  """The sharding of each array of the state; see `parallel.param_shardings`."""
  params = parallel.param_shardings(abstract.params, mesh, rules)

  def like_params(tree):
    return parallel.shardings_like(tree, abstract.params, params, mesh)

  return TrainState(
    step=parallel.replicated(mesh),
    params=params,
    opt_state=like_params(abstract.opt_state),
    extra=like_params(abstract.extra),
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
  init_extra: ExtraFn = _no_extra,
) -> TrainState:
  """State at step 0, made where it will live."""
  make = jax.jit(
    lambda key: new_state(init, tx, key, init_extra), out_shardings=shardings
  )
  return make(key)


def replace_params(
  state: TrainState,
  params: Params,
  shardings: TrainState,
  init_extra: ExtraFn = _no_extra,
) -> TrainState:
  """The state with loaded parameters, and `extra` made of them."""
  placed = jax.tree.map(jax.device_put, params, shardings.params)
  extra = jax.jit(init_extra, out_shardings=shardings.extra)(placed)
  return dataclasses.replace(state, params=placed, extra=extra)


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
