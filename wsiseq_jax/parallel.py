"""How arrays are sharded: the mesh, the batch, the parameters.

    mesh (data=2, fsdp=4), eight devices         batch [b, ...]: over both axes,
                                                 every device its own clips
        fsdp 0   1   2   3
    data 0 [ 0 | 1 | 2 | 3 ]                     parameters: large ones sharded
         1 [ 4 | 5 | 6 | 7 ]                     over `fsdp`, replicated over
                                                 `data`; small ones replicated

One rule places parameters: of an array with at least 2^18 elements, shard the
largest axis that `fsdp` divides, but never the axis that counts stacked layers
(a scan reads one layer at a time, and would fetch it from one device);
replicate everything else. The optimiser's state has the sharding of the
parameter whose path its own ends in. `mesh.sharding_rules` overrides the rule
for paths that match a regular expression.

The mesh's axes are `Auto`: the compiler propagates shardings and inserts the
collectives. That is written out because JAX's default is `Explicit`; sizes and
names are positional because the keyword was renamed in JAX 0.11.
"""

import functools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
# Below this many elements a parameter costs more to gather than to keep.
FSDP_MIN_ELEMENTS = 2**18
# Parameters under a node of this name carry a leading axis of layers.
STACKED = "blocks"

Rules = Sequence[tuple[str, Sequence[str | None]]]


def make_mesh(
  fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The ('data', 'fsdp') mesh over all devices, `data` taking what is left.

  Args:
    fsdp: devices over which large parameters are sharded.
    devices: the devices to use; all by default.

  Raises:
    ValueError: `fsdp` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(
      f"config.mesh.fsdp = {fsdp}: must divide the {len(devices)} devices"
    )
  # A slice of 16 x 16 chips has no axis of 8: one of its axes is split.
  grid = mesh_utils.create_device_mesh(
    (len(devices) // fsdp, fsdp), devices, allow_split_physical_axes=True
  )
  return Mesh(grid, BATCH_AXES, (AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis over all devices, the others unsharded."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def with_mesh(mesh: Mesh, function: Callable) -> Callable:
  """The function, traced under the mesh, for whatever it calls.

  The compiler splits ordinary operations over devices by itself. A custom
  kernel is split by hand, and asks JAX for the mesh, as `constrain_batch` does.
  """

  @functools.wraps(function)
  def announced(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args, **kwargs)

  return announced


def constrain_batch(x: jax.Array) -> jax.Array:
  """Constrains activations to the batch's sharding.

  Where weights are sharded over `fsdp`, the compiler is free to shard
  activations alike and to exchange those, which are larger, instead of the
  weights. A constraint at the boundary of every block forbids that.

  Args:
    x: an array with a leading batch axis.

  Returns:
    The same; unchanged where there is no mesh (`with_mesh`) or weights are
    replicated.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape["fsdp"] == 1:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def all_gather_map(
  function: Callable[[jax.Array, jax.Array, Any], Any], rows: jax.Array
) -> Any:
  """Maps a function of its own and of all rows over devices: one all-gather.

  What compares each clip with all others needs them all. Written as a
  `shard_map`, because the compiler, left to itself, gathers whatever comes
  after the comparison as well. Gradients of the rows are summed over devices.

  Args:
    function: (own rows, all rows, number of the first own row) → arrays with a
      leading axis of own rows.
    rows: an array with a leading batch axis, sharded over it.

  Returns:
    The results, sharded alike over their batch axis. Where there is no mesh
    (`with_mesh`) all rows are own rows.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function(rows, rows, 0)

  def local(own):
    everything = jax.lax.all_gather(own, BATCH_AXES, tiled=True)
    first = jax.lax.axis_index(BATCH_AXES) * own.shape[0]
    return function(own, everything, first)

  spec = PartitionSpec(BATCH_AXES)
  return jax.shard_map(local, in_specs=spec, out_specs=spec)(rows)


def split_batch(x: jax.Array, parts: int) -> jax.Array:
  """[b, ...] → [parts, b / parts, ...]; each device splits its own rows."""
  mesh, (b, *rest) = jax.sharding.get_abstract_mesh(), x.shape
  devices = 1 if mesh.empty else mesh.size
  x = x.reshape(devices, parts, b // (devices * parts), *rest).swapaxes(0, 1)
  x = x.reshape(parts, b // parts, *rest)
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES))


def join_batch(x: jax.Array) -> jax.Array:
  """Undoes `split_batch`."""
  mesh, (parts, b, *rest) = jax.sharding.get_abstract_mesh(), x.shape
  devices = 1 if mesh.empty else mesh.size
  x = x.reshape(parts, devices, b // devices, *rest).swapaxes(0, 1)
  return x.reshape(parts * b, *rest)


def check_batch_size(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
  """Raises a ValueError if the batch does not divide over devices and parts."""
  if batch_size % (mesh.size * parts):
    times = f" × config.optim.accumulate_steps = {parts}" if parts > 1 else ""
    raise ValueError(
      f"config.data.batch_size = {batch_size}: must be a multiple of the "
      f"{mesh.size} devices{times}"
    )


def path_name(path: Sequence[Any]) -> str:
  """A tree path as text: `encoder/blocks/mlp/up/kernel`."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def is_stacked(name: str) -> bool:
  """Whether axis 0 of the parameter of this name counts layers."""
  return STACKED in name.split("/")


def fsdp_spec(name: str, shape: Sequence[int], fsdp: int) -> PartitionSpec:
  """Where the one rule puts an array.

  Example:
    >>> tuple(fsdp_spec("encoder/blocks/mlp/up/kernel", (12, 768, 3072), 4))
    (None, None, 'fsdp')
    >>> tuple(fsdp_spec("head/kernel", (768, 10), 4))
    ()
  """
  if fsdp == 1 or int(np.prod(shape)) < FSDP_MIN_ELEMENTS:
    return PartitionSpec()
  first = 1 if is_stacked(name) else 0
  axes = [i for i in range(first, len(shape)) if shape[i] % fsdp == 0]
  if not axes:
    return PartitionSpec()
  # Of equally long axes the last: matrix products then gather along columns.
  axis = max(axes, key=lambda i: (shape[i], i))
  return PartitionSpec(*[None] * axis, "fsdp")


def param_shardings(params: Any, mesh: Mesh, rules: Rules = ()) -> Any:
  """Shardings of a tree of parameters, by the rule or an override."""
  used = set()

  def place(path, leaf):
    name = path_name(path)
    for pattern, spec in rules:
      if re.search(pattern, name):
        used.add(pattern)
        return NamedSharding(mesh, _override(name, leaf.shape, spec, mesh))
    return NamedSharding(mesh, fsdp_spec(name, leaf.shape, mesh.shape["fsdp"]))

  shardings = jax.tree_util.tree_map_with_path(place, params)
  unused = [pattern for pattern, _ in rules if pattern not in used]
  if unused:
    names = [path_name(p) for p, _ in jax.tree.leaves_with_path(params)]
    raise ValueError(
      f"config.mesh.sharding_rules: no parameter is left for {unused}; "
      "parameters are " + ", ".join(names)
    )
  return shardings


def _override(name, shape, spec, mesh) -> PartitionSpec:
  problem = None
  if len(spec) > len(shape):
    problem = f"more axes than the parameter has ({tuple(shape)})"
  for axis, size in zip(spec, shape, strict=False):
    if axis is not None and size % mesh.shape[axis]:
      problem = f"{axis} = {mesh.shape[axis]} does not divide {size}"
  if problem:
    raise ValueError(
      f"config.mesh.sharding_rules: {tuple(spec)} for {name}: {problem}"
    )
  return PartitionSpec(*spec)


def shardings_like(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings of opt_state and the like: each leaf has its parameter's.

  A leaf belongs to the parameter whose path its own path ends in and whose
  shape it has; counters and the like are replicated.
  """
  known = {
    path_name(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    )
  }

  def place(path, leaf):
    parts = path_name(path).split("/")
    for start in range(len(parts)):
      shape, sharding = known.get("/".join(parts[start:]), (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(place, tree)


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
  """Rows of the global batch that live on this process's devices, ascending.

  The loader reads exactly these, so that any number of processes together
  loads the batch that one process would.
  """
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = [np.arange(batch_size)[index] for index in slices.values()]
  return tuple(np.unique(np.concatenate(rows)).tolist())


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """Puts this process's rows of a batch on its devices, as global arrays."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }


def prefetch(
  batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, Any]]:
  """Keeps two batches on their way to the devices, ahead of their use.

  Transfers are asynchronous: starting the next one before the current batch is
  computed upon hides it. Two are enough, and more would cost device memory.
  """
  queue: deque[dict[str, Any]] = deque()
  for batch in batches:
    queue.append(to_global(batch, mesh))
    if len(queue) >= 2:
      yield queue.popleft()
  while queue:
    yield queue.popleft()


def fetch(tree: Any) -> Any:
  """Arrays of the devices as NumPy, complete on every process."""

  def get(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      from jax.experimental import multihost_utils

      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(get, tree)
