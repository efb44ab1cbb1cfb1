"""Writes parts: vectors of some slides, and their codes; on any machine."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep.files import atomic, done
from data_prep.files.errors import SlideError
from wsiseq_jax.search import ann, inputs, store
from wsiseq_jax.search.inputs import How, Item
from wsiseq_jax.search.store import Added


@dataclasses.dataclass(frozen=True, eq=False)
class PartTask:
  """Slides that become a part."""

  folder: str  # of the index
  items: tuple[Item, ...]
  how: How

  @property
  def name(self) -> str:
    """Of the part: the same for the same slides."""
    return done.digest([(i.slide_id, i.digest) for i in self.items])[:16]


@dataclasses.dataclass(frozen=True)
class CodesTask:
  """A part whose codes are made."""

  folder: str
  part: str
  quantiser: str


@dataclasses.dataclass(frozen=True)
class WrittenPart:
  """A part that is whole."""

  name: str
  slides: tuple[Added, ...]
  errors: tuple[SlideError, ...]


def plan(
  folder: pathlib.Path, items: Sequence[Item], how: How, rows: int
) -> list[PartTask]:
  """Shares slides out to parts of about so many rows."""
  tasks, group, count = [], [], 0
  for item in items:
    if group and count + item.rows > rows:
      tasks.append(PartTask(str(folder), tuple(group), how))
      group, count = [], 0
    group.append(item)
    count += item.rows
  if group:
    tasks.append(PartTask(str(folder), tuple(group), how))
  return tasks


def write(task: PartTask) -> WrittenPart:
  """Writes a part, unless it is there; slides that fail are left out of it."""
  folder = store.part_folder(pathlib.Path(task.folder), task.name)
  mark = done.Done(folder / "done.json", task.name)
  if (info := mark.read()) is None:
    info = _write(folder, task)
  return WrittenPart(
    task.name,
    tuple(Added(**slide) for slide in info["slides"]),
    tuple(SlideError(*state) for state in info["errors"]),
  )


def _write(folder: pathlib.Path, task: PartTask) -> dict[str, Any]:
  vectors, rows, slides, errors = [], [], [], []
  first = 0
  for item in task.items:
    try:
      found = inputs.read(item, task.how)
    except SlideError as error:
      errors.append(error)
      continue
    vectors.append(found.vectors.astype(np.float16))
    rows.append(found.rows)
    slide = Added(
      item.slide_id, item.digest, first, len(found.rows), found.level0_mpp
    )
    slides.append(dataclasses.asdict(slide))
    first += len(found.rows)
  info = {"slides": slides, "errors": [error.state() for error in errors]}
  draft = atomic.temporary_path(folder)
  atomic.remove_tree(draft)
  draft.mkdir(parents=True)
  width = max((part.shape[1] for part in vectors), default=0)
  for name, arrays, empty in (
    ("vectors.npy", vectors, np.empty((0, width), np.float16)),
    ("rows.npy", rows, np.empty(0, store.ROW)),
  ):
    with open(draft / name, "wb") as file:
      np.save(file, np.concatenate(arrays or [empty]))
      file.flush()
      os.fsync(file.fileno())
  done.Done(draft / "done.json", task.name).write(
    info, [draft / "vectors.npy", draft / "rows.npy"]
  )
  atomic.remove_tree(folder)
  os.replace(draft, folder)
  atomic.sync(folder.parent)
  # As JSON has it: what a later run reads.
  return done.Done(folder / "done.json", task.name).read()


def write_codes(task: CodesTask) -> None:
  """Writes the codes of a part, unless they are there."""
  folder = pathlib.Path(task.folder)
  part = store.part_folder(folder, task.part)
  path = part / f"codes-{task.quantiser}.npy"
  if path.is_file():
    return
  vectors = np.load(part / "vectors.npy", mmap_mode="r")
  quantiser = ann.read(folder / f"quantiser-{task.quantiser}.faiss")
  step, codes = 65_536, []
  for start in range(0, len(vectors), step):
    block = vectors[start : start + step].astype(np.float32)
    codes.append(ann.encode(quantiser, block))
  empty = np.empty((0, quantiser.sa_code_size()), np.uint8)
  with atomic.replacing(path) as draft, draft.open("wb") as file:
    np.save(file, np.concatenate(codes or [empty]))
    file.flush()
    os.fsync(file.fileno())
