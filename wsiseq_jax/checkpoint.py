"""Checkpoints: the only file that knows Orbax.

A checkpoint is a folder named after its step with parts that are readable
without one another:

    checkpoints/400/params      float32 arrays of the model
                    opt_state   the optimiser's state
                    extra       the task's own state; absent where it has none
                    data        JSON: position in the data, metrics not yet
                                logged
                    meta        JSON: the whole config, step, identity of the
                                shards, versions, git revision

`meta` makes it self-describing: evaluation rebuilds the model from it and needs
neither the config file nor the optimiser.

Orbax writes into a temporary folder and renames it when complete. Saving runs
in the background, the arrays having been copied first; a failed save raises at
the next save or at `close`. Restoring asks for shapes *with* shardings, hence
works on another number of devices, and compares the trees first, since Orbax's
own message for a mismatch does not say what differs.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from wsiseq_jax import parallel
from wsiseq_jax.state import TrainState

JSON_PARTS = ("data", "meta")
_ARRAY_PARTS = ("params", "opt_state", "extra")
# Processes agree on a save by time only at steps divisible by this: it costs a
# round of communication.
_AGREE_EVERY = 16


def _context() -> ocp.Context:
  registry = ocp.handlers.local_registry()
  for name in JSON_PARTS:
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
  context = ocp.Context()
  context.checkpointables.registry = registry
  # Devices share the writing of an array that all of them have, each a slice,
  # and every slice is a program to compile: not worth it for small ones.
  context.array.saving.min_slice_bytes_for_replica_parallel = 2**14
  return context


def _has_arrays(tree: Any) -> bool:
  return bool(jax.tree.leaves(tree))


def _parts(state: TrainState) -> dict[str, Any]:
  """The parts of arrays; without `extra` where a task keeps nothing."""
  parts = {name: getattr(state, name) for name in _ARRAY_PARTS}
  if not _has_arrays(state.extra):
    del parts["extra"]
  return parts


def tree_differences(expected: Any, found: Any) -> list[str]:
  """What differs between the arrays a model wants and those in a checkpoint.

  Example:
    >>> a, b = np.zeros((2, 3), np.float32), np.zeros(4, np.float32)
    >>> tree_differences({"w": a, "b": b}, {"w": a.T, "c": b})
    ['b: wanted float32[4], not in the checkpoint', \
'c: only in the checkpoint, float32[4]', \
'w: wanted float32[2,3], the checkpoint has float32[3,2]']
  """

  def table(tree):
    return {
      parallel.path_name(path): (
        f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
      )
      for path, leaf in jax.tree.leaves_with_path(tree)
      if hasattr(leaf, "shape")
    }

  wanted, has = table(expected), table(found)
  lines = []
  for name in sorted({*wanted, *has}):
    if name not in has:
      lines.append(f"{name}: wanted {wanted[name]}, not in the checkpoint")
    elif name not in wanted:
      lines.append(f"{name}: only in the checkpoint, {has[name]}")
    elif wanted[name] != has[name]:
      lines.append(
        f"{name}: wanted {wanted[name]}, the checkpoint has {has[name]}"
      )
  return lines


def is_run(path: str | os.PathLike) -> bool:
  """Whether a path is a run of ours, its checkpoints, or one of them."""
  folder = epath.Path(path)
  if not folder.is_dir():
    return False
  return any(
    (folder / name).is_dir() for name in ("checkpoints", "meta")
  ) or any(
    child.name.isdigit() and (child / "meta").is_dir()
    for child in folder.iterdir()
  )


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: Where they lie: a folder all processes see, or `gs://bucket/path`.
    every_steps: Save at multiples of this; 0 for never.
    every_minutes: Save when this much time has passed; 0 for never.
    keep: How many of the newest to keep.
    read_only: Open an existing folder and touch nothing in it.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    every_steps: int = 0,
    every_minutes: float | int = 0.0,
    keep: int = 2,
    read_only: bool = False,
  ):
    self.folder = epath.Path(folder)
    if "://" not in os.fspath(folder):
      # `absolute` takes a gs:// address for a relative path.
      self.folder = self.folder.absolute()
    if read_only and not self.folder.is_dir():
      raise FileNotFoundError(
        f"config.checkpoint.path: there is no folder {self.folder}"
      )
    self._every_steps = every_steps
    self._every_minutes = every_minutes
    self._saved_at = time.monotonic()
    self._pending = None
    # An existing folder of one step was given.
    self._only = None
    root = self.folder
    if read_only and root.name.isdigit() and (root / "meta").is_dir():
      self._only, root = int(root.name), root.parent
    elif read_only and (root / "checkpoints").is_dir():
      root = root / "checkpoints"
    self._orbax = ocp.training.Checkpointer(
      root,
      context=_context(),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=not read_only,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def latest(self) -> int | None:
    """Step of the newest complete checkpoint, None if there is none."""
    if self._only is not None:
      return self._only
    latest = self._orbax.latest
    return None if latest is None else latest.step

  def is_due(self, step: int) -> bool:
    """Whether it is time to save, by steps or by the clock.

    Every process must ask at every step: they agree on the clock's answer.
    """
    if step in (0, self.latest):
      return False
    if self._every_steps and step % self._every_steps == 0:
      return True
    if not self._every_minutes:
      return False
    is_due = time.monotonic() - self._saved_at >= 60 * self._every_minutes
    if jax.process_count() > 1:
      if step % _AGREE_EVERY:
        return False
      is_due = bool(multihost_utils.broadcast_one_to_all(np.int32(is_due)))
    return is_due

  def save(
    self,
    state: TrainState,
    data: Mapping[str, Any],
    meta: Mapping[str, Any],
  ) -> None:
    """Starts saving the state; returns once the arrays are copied.

    Args:
      state: The state; may be donated right after.
      data: JSON-able position in the data.
      meta: JSON-able description of the run.

    Raises:
      Exception: Whatever made the *previous* save fail.
    """
    self.wait()
    step = int(state.step)
    if step == self.latest:
      return
    self._pending = self._orbax.save_checkpointables_async(
      step,
      {**_parts(state), "data": dict(data), "meta": dict(meta)},
      force=True,
    )
    self._saved_at = time.monotonic()

  def wait(self) -> None:
    """Waits for the save in progress, and raises if it failed."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      pending.result()

  def close(self) -> None:
    """Waits for the save in progress and lets go of the folder."""
    self.wait()
    self._orbax.close()

  def meta(self, step: int | None = None) -> dict[str, Any]:
    """The description of a run in a checkpoint, by default in the newest."""
    step = self._existing(step)
    return self._orbax.load_checkpointables(step, {"meta": None})["meta"]

  def identity(self, step: int | None = None) -> str:
    """Tells a checkpoint from any other, also from one of the same step."""
    step = self._existing(step)
    written = {
      c.step: c.commit_timestamp_nsecs for c in self._orbax.checkpoints
    }
    return f"{step}@{written[step]}"

  def restore(
    self, abstract: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    """Loads a state and its position in the data."""
    step = self._existing(step)
    wanted = _parts(abstract)
    self._check(step, wanted, everything=True)
    loaded = self._orbax.load_checkpointables(step, {**wanted, "data": None})
    data = loaded.pop("data")
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    return TrainState(step=count, **loaded), data

  def restore_parts(
    self, wanted: Mapping[str, Any], step: int | None = None
  ) -> dict[str, Any]:
    """Loads some parts alone, `{"params": abstract}`; see `restore`."""
    step = self._existing(step)
    full = {name: tree for name, tree in wanted.items() if _has_arrays(tree)}
    self._check(step, full)
    return {**wanted, **self._orbax.load_checkpointables(step, full)}

  def _existing(self, step: int | None) -> int:
    # What is being saved cannot be read before it is whole.
    self.wait()
    step = self.latest if step is None else step
    if step is None:
      raise FileNotFoundError(
        f"config.checkpoint.path: no complete checkpoint in {self.folder}"
      )
    return step

  def _check(
    self, step: int, wanted: Mapping[str, Any], everything: bool = False
  ) -> None:
    found = self._orbax.checkpointables_metadata(step).metadata
    names = _ARRAY_PARTS if everything else wanted
    lines = [
      f"{part}/{line}"
      for part in names
      for line in tree_differences(wanted.get(part, {}), found.get(part, {}))
    ]
    if lines:
      shown = lines[:20] + ["…"] * (len(lines) > 20)
      raise ValueError(
        f"checkpoint {self.folder} at step {step} does not fit this model, "
        f"{len(lines)} arrays differ:\n  " + "\n  ".join(shown)
      )
