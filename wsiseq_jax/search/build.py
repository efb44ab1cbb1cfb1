"""The job `index`: features in, an index out; again for what is new.

What is in the index already, made from the same features, stays as it is; new
and changed slides become new parts; what the table says of slides is brought up
to date. All this counts from one transaction at the end, and not before.

The quantiser is trained when there are more rows than are looked at one by one
(`index.EXACT`), and again when there are sixteen times as many.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Float32
from ml_collections import ConfigDict

from data_prep import cluster, runs
from data_prep.cluster import Died
from data_prep.files import atomic, done, errors
from data_prep.files.errors import SlideError
from wsiseq_jax import launch
from wsiseq_jax.search import (
  ann,
  encoding,
  facts,
  index,
  inputs,
  parts,
  settings,
  store,
  synthetic,
)
from wsiseq_jax.search.inputs import Item
from wsiseq_jax.search.parts import CodesTask, PartTask, WrittenPart
from wsiseq_jax.search.settings import SearchSettings
from wsiseq_jax.search.store import SlideFacts

# How many times the lists a larger index would have before it is trained anew.
_GROWN = 4


@dataclasses.dataclass(frozen=True)
class Built:
  """What a build did."""

  rows: int  # of the index
  slides: int  # of the index
  added: int  # slides, new or changed
  removed: int  # slides
  corrected: int  # slides of which something else is known now
  errors: tuple[SlideError, ...]

  @property
  def text(self) -> str:
    """In words."""
    text = (
      f"index: {self.rows:,} rows of {self.slides:,} slides; {self.added} "
      f"added, {self.removed} removed, {self.corrected} with other facts"
    )
    if self.errors:
      text += f"; errors.csv has {len(self.errors)} rows"
    return text


def run(config: ConfigDict) -> None:
  """The job; ends the program with exit code 3 if a slide could not be used.

  Args:
    config: see `configs/search.py`.

  Raises:
    ValueError: a bad config, nothing to index, or another encoder than that of
      the index.
    SystemExit: some slides could not be used (3), or none (1).
  """
  asked = settings.read(config)
  if not launch.is_main():
    return
  built = build(asked)
  print(built.text)
  if built.errors:
    sys.exit(3 if built.rows else 1)


def build(asked: SearchSettings) -> Built:
  """Brings an index in line with its sources."""
  folder = pathlib.Path(asked.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  with runs.lock(folder, key="workdir"):
    atomic.remove_temporaries(folder)
    if asked.index.features == settings.SYNTHETIC:
      asked = synthetic.complete(asked)
    return _Build(folder, asked).work()


class _Build:
  """The state of a build."""

  def __init__(self, folder: pathlib.Path, asked: SearchSettings):
    self.folder, self.asked = folder, asked
    self.errors: list[SlideError] = []
    self.known: dict[str, str] = {}  # slides of the index, and their digests
    self.before: dict[str, Any] = {}  # settings
    self.parts: list[store.IndexPart] = []
    if store.has_index(folder):
      with store.database(folder) as connection:
        self.before = store.read_settings(connection)
        self.parts = store.read_parts(connection)
        self.known = dict(
          connection.execute(
            "SELECT slide_id, digest FROM slides WHERE NOT removed"
          )
        )

  def work(self) -> Built:
    """Does all of it."""
    block = self.asked.index
    items, now, tasks, about = [], {}, [], {}
    if block.features:
      how, now = encoding.how(block)
      items, maker, self.errors = inputs.find(block, how)
      about, bad = facts.read(block, [item.slide_id for item in items])
      self.errors += bad
      items = [item for item in items if item.slide_id in about]
      now |= encoding.described(self.asked.encoder, block, maker, how)
      self._refuse_others(now)
      new = [i for i in items if self.known.get(i.slide_id) != i.digest]
      tasks = parts.plan(self.folder, new, how, block.part_rows)
    elif not self.before:
      with store.database(self.folder):  # says that there is none
        pass
    written = self._write(tasks)
    now |= self._codes(written)
    built = self._commit(written, items, about, now)
    errors.write(self.folder / "errors.csv", self.errors)
    return built

  def _refuse_others(self, now: dict[str, Any]) -> None:
    """One encoder at one scale, read one way, in one index."""
    now["mpp"] = now["mpp"] or self.before.get("mpp")
    for name in encoding.FIXED:
      if self.before and self.before[name] != now[name]:
        raise ValueError(
          f"the index in config.workdir = {str(self.folder)!r} has {name} "
          f"{self.before[name]!r}, these features have {now[name]!r}: an index "
          "holds what one encoder made, name another workdir"
        )

  # Parts.

  def _write(self, tasks: Sequence[PartTask]) -> list[WrittenPart]:
    """Writes parts; a slide that kills its worker is left out."""
    written, killed = [], []
    for task, result in self._each(parts.write, tasks, "part"):
      if isinstance(result, Died):
        killed.append((task, result))
      else:
        written.append(result)
    alone = [
      dataclasses.replace(task, items=(item,))
      for task, _ in killed
      for item in task.items
    ]
    for task, result in self._each(parts.write, alone, "slide"):
      if isinstance(result, Died):
        name = task.items[0].slide_id
        self.errors.append(SlideError(result.reason, "read", "died", name))
      else:
        written.append(result)
    order = {task.name: i for i, task in enumerate([*tasks, *alone])}
    written.sort(key=lambda part: order[part.name])
    self.errors += [error for part in written for error in part.errors]
    return [part for part in written if part.slides]

  def _each(
    self, function: Callable[[Any], Any], items: Sequence[Any], unit: str
  ) -> Iterator[tuple[Any, Any]]:
    """Items and results, as they end, wherever `config.cluster` says."""
    if not items:
      return
    config = dataclasses.asdict(self.asked)
    results = cluster.run(function, items, config)
    with contextlib.closing(results), self._bar(len(items), unit) as bar:
      for number, result in results:
        yield items[number], result
        bar.update()

  def _bar(self, total: int, unit: str) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, unit=unit, disable=total < 2)

  # Codes.

  def _codes(self, written: Sequence[WrittenPart]) -> dict[str, Any]:
    """Has all parts in codes; returns the settings that say of which kind."""
    counts = {part.name: part.rows for part in self.parts}
    for part in written:
      counts[part.name] = sum(slide.rows for slide in part.slides)
    rows = sum(counts.values())
    name = self.before.get("quantiser", "")
    if rows <= index.EXACT:
      return {}
    lists = ann.lists_for(rows)
    trained = self.before.get("quantiser_lists", 0)
    if not name or lists >= _GROWN * trained:
      name, trained = self._train(lists, counts), lists
    tasks = [CodesTask(str(self.folder), part, name) for part in counts]
    for task, result in self._each(parts.write_codes, tasks, "part"):
      if isinstance(result, Died):
        raise ValueError(
          f"the codes of {task.part} cannot be made: {result.reason} "
          "(config.memory_gb)"
        )
    return {"quantiser": name, "quantiser_lists": trained}

  def _vectors(self, part: str) -> np.ndarray:
    path = store.part_folder(self.folder, part) / "vectors.npy"
    return np.load(path, mmap_mode="r")

  def _train(self, lists: int, counts: Mapping[str, int]) -> str:
    """Trains a quantiser, unless it is there; returns its name."""
    seed = self.asked.index.seed
    inputs_of = [ann.factory(lists), sorted(counts.items()), seed]
    name = done.digest(inputs_of)[:16]
    path = self.folder / f"quantiser-{name}.faiss"
    if path.is_file():
      return name
    sample = self._sample(counts, ann.sample_size(lists), seed)
    launch.log(f"training {ann.factory(lists)} with {len(sample):,} vectors")
    ann.write(path, ann.train(sample, lists, seed))
    return name

  def _sample(
    self, counts: Mapping[str, int], size: int, seed: int
  ) -> Float32[np.ndarray, "n d"]:
    """Random rows of all parts, each as likely as another."""
    rng = np.random.default_rng(seed)
    share = min(1.0, size / sum(counts.values()))
    drawn = []
    for part in sorted(counts):
      some = np.flatnonzero(rng.random(counts[part]) < share)
      drawn.append(self._vectors(part)[some].astype(np.float32))
    return np.concatenate(drawn)

  # The index.

  def _commit(
    self,
    written: Sequence[WrittenPart],
    items: Sequence[Item],
    about: Mapping[str, SlideFacts],
    now: Mapping[str, Any],
  ) -> Built:
    """Makes all of it count."""
    if not self.before:
      if not written:
        why = self.errors[0].message if self.errors else "no slide has features"
        raise ValueError(f"there is nothing to index: {why}")
      store.create(self.folder, now)
    added = {slide.slide_id for part in written for slide in part.slides}
    kept = [
      about[item.slide_id]
      for item in items
      if item.slide_id in self.known and item.slide_id not in added
    ]
    gone = self.asked.index.remove
    with store.change(self.folder) as connection:
      store.write_settings(connection, now)
      store.add(
        connection, [(part.name, part.slides) for part in written], about
      )
      corrected = store.set_facts(connection, kept)
      store.remove(connection, gone)
      if added or gone or corrected:
        store.draw_background(connection)
      rows, slides = connection.execute(
        "SELECT coalesce(sum(rows), 0), count(*) FROM slides WHERE NOT removed"
      ).fetchone()
    self._clean([part.name for part in written], now.get("quantiser", ""))
    return Built(
      rows, slides, len(added), len(gone), corrected, tuple(self.errors)
    )

  def _clean(self, new: Sequence[str], quantiser: str) -> None:
    """Removes what neither this state nor the one before names.

    A reader that opened the state before may still have to read its files.
    """
    names = {part.name for part in self.parts} | set(new)
    kinds = {self.before.get("quantiser", ""), quantiser}
    for path in (self.folder / "parts").glob("*"):
      if path.name not in names:
        atomic.remove_tree(path)
      for codes in path.glob("codes-*.npy"):
        if codes.stem.removeprefix("codes-") not in kinds:
          codes.unlink()
    for path in self.folder.glob("quantiser-*.faiss"):
      if path.stem.removeprefix("quantiser-") not in kinds:
        path.unlink()
