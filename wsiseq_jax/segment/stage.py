"""A chain of stages: what each is given, where it writes, when it is done.

    <workdir>/<stage>/done.json            written last: what it was made from
                      metrics.jsonl, ...   of its training (`fit.py`)
                      params.safetensors   what it learned
                      maps/<split>/<picture>.npz

A stage is made from the data, the backbone, the seed and all stages before it:
if one of these changes, its folder is emptied and it starts again. Whatever a
stage finds in its folder is therefore its own, of a run that was interrupted.

`maps.py` lists what maps hold. Two arrays are the rule: `scores` from 0 to 1,
from which a result is read by a threshold, and `classes`, what a later stage
trains on.
"""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import numpy as np
import safetensors.numpy as safetensors
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_prep.files import atomic, done
from wsiseq_jax import fit, launch, parallel
from wsiseq_jax.segment import pictures
from wsiseq_jax.segment.backbone import Backbone
from wsiseq_jax.segment.maps import Maps
from wsiseq_jax.segment.pictures import Crops, Pictures

# Raised when stages compute something else than before.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Reading:
  """A result that is read from a stage's maps; a row of the table."""

  name: str  # '' is the stage's usual one
  array: str  # of the maps, [y, h / s, w / s], from 0 to 1
  # None is chosen on validation, which has masks for that.
  threshold: float | None = None


@runtime_checkable
class Stage(Protocol):
  """A frozen dataclass: its fields are its settings, `config.stages.<name>`."""

  name: ClassVar[str]
  readings: ClassVar[tuple[Reading, ...]]  # () where it segments nothing

  def run(self, context: "StageContext") -> Mapping[str, Any]:
    """Does the stage in `context.folder(name)`, or what is left of it.

    Returns:
      Facts that later stages read with `context.facts`, plain values.

    Raises:
      launch.Stopped: it was told to stop; the next call goes on.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class StageContext:
  """What a stage is given."""

  config: ConfigDict  # its block `wandb` is read while training
  workdir: pathlib.Path
  splits: Mapping[str, Pictures]  # by role: train, val, test
  crops: Crops  # how training pictures are cut
  batch_size: int  # of whole pictures
  backbone: Backbone
  mesh: Mesh
  seed: int
  preemption: launch.Preemption
  chain: tuple[str, ...]  # names of the stages, in order

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the foreground classes."""
    return self.splits["train"].spec.classes

  def pictures(self, split: str) -> Pictures:
    """The pictures of a split: 'train', 'val' or 'test'."""
    return self.splits[split]

  def whole(self, split: str) -> Iterator[fit.Batch]:
    """Every picture of a split, see `pictures.whole_batches`."""
    return pictures.whole_batches(
      self.pictures(split), self.batch_size, self.mesh
    )

  def folder(self, stage: str) -> pathlib.Path:
    """Where a stage writes."""
    return self.workdir / stage

  def before(self, stage: str) -> str:
    """The name of the stage before; '' for the first."""
    at = self.chain.index(stage)
    return self.chain[at - 1] if at else ""

  def maps(self, stage: str, split: str) -> Maps:
    """Maps that a stage wrote, or writes."""
    return Maps(self.folder(stage) / "maps" / split)

  def padded_maps(
    self, stage: str, split: str, batch: fit.Batch, name: str, stride: int = 4
  ) -> jax.Array:
    """An array of an earlier stage, of the pictures of a batch.

    Args:
      stage: its name.
      split: of the batch.
      batch: whole pictures.
      name: of the array, [..., h / stride, w / stride].
      stride: of the array.

    Returns:
      [b, ..., h, w] of the padded pictures, float32, 0 in padding, sharded as
      the batch is.

    Raises:
      ValueError: the stage has no such maps.
    """
    maps, ids = self.maps(stage, split), self.pictures(split).ids
    grid = [side // stride for side in batch["pixels"].shape[1:3]]
    rows = []
    for number in parallel.fetch(batch["index"]):
      found = maps.read(ids[number])
      if name not in found:
        raise ValueError(
          f"{maps.path(ids[number])}: holds {sorted(found)} and no {name!r}"
        )
      one = found[name].astype(np.float32)
      room = [(0, n - m) for n, m in zip(grid, one.shape[-2:], strict=True)]
      rows.append(np.pad(one, ((0, 0),) * (one.ndim - 2) + tuple(room)))
    return jax.device_put(np.stack(rows), parallel.batch_sharding(self.mesh))

  def facts(self, stage: str) -> dict[str, Any]:
    """What `Stage.run` returned."""
    return done.read_facts(self.folder(stage) / "done.json")

  def params(self, stage: str) -> dict[str, Any]:
    """Parameters that a stage saved with `save_params`."""
    return read_params(self.folder(stage))

  def save_params(self, stage: str, params: Any) -> None:
    """Saves what a stage learned."""
    write_params(self.folder(stage), params)

  def has_params(self, stage: str) -> bool:
    """Whether a stage has saved what it learned."""
    return (self.folder(stage) / "params.safetensors").is_file()

  def fit_folder(self, stage: str) -> fit.FitFolder:
    """Where a stage's training leaves metrics and state."""
    # The folder is emptied where inputs differ: its state is always its own.
    folder = self.folder(stage)
    return fit.FitFolder(folder, stage, self.preemption, self.config)

  def write_maps(
    self,
    stage: str,
    split: str,
    compute: Callable[[fit.Batch], Mapping[str, jax.Array]],
    finish: Callable[[int, dict[str, np.ndarray]], dict[str, np.ndarray]],
  ) -> None:
    """Computes the maps of all pictures of a split that are not there yet.

    Args:
      stage: the name.
      split: the name.
      compute: batch → arrays with a leading axis of pictures.
      finish: (number of the picture, its arrays, padded as the batch is) →
        its maps, cut to its size.

    Raises:
      launch.Stopped: it was told to stop; what is written stays.
    """
    maps, ids = self.maps(stage, split), self.pictures(split).ids
    batches = self.whole(split)
    with self.preemption, contextlib.closing(batches):
      for batch in batches:
        index, mask = parallel.fetch((batch["index"], batch["mask"]))
        todo = [
          (row, int(number))
          for row, number in enumerate(index)
          if mask[row] > 0 and not maps.has(ids[number])
        ]
        if not todo:
          continue
        if self.preemption.tick():
          raise launch.Stopped(
            f"{stage}: stopped in the maps of {split!r}; the same command goes "
            "on"
          )
        found = parallel.fetch(dict(compute(batch)))
        for row, number in todo:
          one = {name: value[row] for name, value in found.items()}
          maps.write(ids[number], **finish(number, one))


def write_params(folder: pathlib.Path, params: Any) -> None:
  """Saves parameters in the folder of a stage."""
  flat = traverse_util.flatten_dict(parallel.fetch(params), sep=":")
  flat = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
  path = folder / "params.safetensors"
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(path) as draft:
    safetensors.save_file(flat, draft)


def read_params(folder: pathlib.Path) -> dict[str, Any]:
  """Parameters that a stage left in its folder."""
  flat = safetensors.load_file(folder / "params.safetensors")
  # Names of layers contain '/'. A backbone that does not learn saves nothing.
  return {"backbone": {}, **traverse_util.unflatten_dict(flat, sep=":")}


def run_chain(
  stages: Iterable[Stage], context: StageContext, inputs: Mapping[str, Any]
) -> None:
  """Does all stages that are not done.

  Args:
    stages: in order.
    context: what they are given.
    inputs: all that the first stage depends on; see `done.digest`.
  """
  made_from = done.digest({"version": _VERSION, **inputs})
  for stage in stages:
    folder = context.folder(stage.name)
    made_from = done.digest([made_from, stage.name, stage])
    mark = done.Done(folder / "done.json", made_from)
    if mark.read() is not None:
      launch.log(f"{stage.name}: done")
      continue
    begun = done.Done(folder / "begun.json", made_from)
    if begun.read() is None:
      if folder.exists():
        launch.log(f"{stage.name}: made from something else, starts again")
        shutil.rmtree(folder)
      begun.write()
    atomic.remove_temporaries(folder)
    launch.log(f"{stage.name}: begins")
    facts = stage.run(context)
    mark.write(facts)
