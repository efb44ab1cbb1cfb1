"""Slides through a network, tile by tile: what every such job does.

Threads decode ahead into a bounded queue. This thread hands batches of one
fixed shape to the devices (the last one of a slide is padded, so there is one
program) and takes results a few batches later: dispatch is asynchronous, and
the device has its next batch before it is done with the last. The time in which
it has nothing to do is measured: the share of time spent waiting for slides.

A slide is finished when its mark (`done/<slide_id>.json`, see
`data_prep/files/done.py`) names the slide file, how it is cut, and what the job
says that its results are made by.
"""

import abc
import collections
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import tqdm

from data_prep import runs
from data_prep.files import tables
from data_prep.files.done import Done
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.synthetic import slides as synthetic
from data_prep.wsi import find, tile_stream, tiles
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import parallel
from wsiseq_jax.data.background import Background
from wsiseq_jax.encoders import run_tables
from wsiseq_jax.encoders.run_tables import FAILED, Outcome, Summary

_QUEUED = 4  # batches decoded ahead
_IN_FLIGHT = 2  # batches on the device
_BAD_LISTED = 100  # damaged places of one slide, in errors.csv
_TABLES_EVERY_SECONDS = 5.0


def compile_tiles(
  apply: Callable[[Any, jax.Array], Any],
  params: Any,
  window_px: int,
  batch_size: int,
) -> Callable[[np.ndarray], Any]:
  """Compiles a function of tiles for the devices of this process.

  Args:
    apply: (params, uint8 [b, window_px, window_px, 3]) → arrays [b, ...].
    params: what it is given.
    window_px: side of its tiles.
    batch_size: tiles of a call, padded.

  Raises:
    ValueError: the devices do not divide the batch.
  """
  devices = jax.local_devices()
  if batch_size % len(devices):
    raise ValueError(
      f"config.data.batch_size = {batch_size}: must be a multiple of the "
      f"{len(devices)} devices"
    )
  mesh = parallel.make_mesh(devices=devices)
  whole, rows = parallel.replicated(mesh), parallel.batch_sharding(mesh)
  params = jax.device_put(params, whole)
  pixels = jax.ShapeDtypeStruct(
    (batch_size, window_px, window_px, 3), np.uint8, sharding=rows
  )
  program = jax.jit(parallel.with_mesh(mesh, apply), out_shardings=rows)
  program = program.lower(params, pixels).compile()
  return lambda tiles: program(params, jax.device_put(tiles, rows))


@dataclasses.dataclass
class OpenSlide:
  """A slide on its way."""

  begin: tile_stream.Begin
  content: Any  # what the job gathers of it
  tiles: int = 0  # taken so far
  waited: float = 0.0  # for its tiles, s


class SlideRun(abc.ABC):
  """A run over slides; a job says what a slide's results are.

  Args:
    workdir: where results, marks and tables go.
    data: the block `config.data`: slides, table, part, batch_size, threads.
    cutting: how slides are cut into tiles.
    made_by: what results depend on beside the slide and `cutting`.

  Raises:
    ValueError: the folder belongs to something else, or there are no slides.
  """

  stage: ClassVar[str]  # names errors of writing
  drawn: ClassVar[int]  # slides that 'synthetic' draws

  def __init__(
    self,
    workdir: str | os.PathLike,
    data: Any,
    cutting: tile_stream.Settings,
    made_by: Mapping[str, Any],
  ):
    self.workdir, self.data = pathlib.Path(workdir), data
    self.cutting, self._made_by = cutting, made_by
    tables.refuse_others(self.workdir, "workdir")
    source = data.slides
    if source == "synthetic":
      source = str(
        synthetic.make_cohort(
          self.workdir / "slides", slides=self.drawn, size_px=(640, 512)
        )
      )
    entries, errors = find.find_slides(source, data.table)
    entries, bad_names = find.usable_names(entries)
    number, parts = runs.share(data.part, "data.part")
    self._entries = entries[number - 1 :: parts]
    self._found_errors = [*errors, *bad_names]
    self.outcomes: dict[str, Outcome] = {}
    self._marks: dict[str, Done] = {}
    self._tiles, self._seconds, self._waited = 0, 0.0, 0.0
    self._last = 0.0  # when the last slide was finished
    self._written = time.perf_counter()  # when tables were

  # What a job says.

  @abc.abstractmethod
  def program(self) -> Callable[[np.ndarray], Any]:
    """Compiles: a padded batch of tiles → arrays on the devices."""

  @abc.abstractmethod
  def begin(self, event: tile_stream.Begin) -> Any:
    """What is gathered of a slide, empty."""

  @abc.abstractmethod
  def take(self, slide: OpenSlide, batch: tiles.TileBatch, output: Any) -> None:
    """Adds what the network made of a batch; its padding comes last."""

  @abc.abstractmethod
  def paths(self, slide_id: str) -> Mapping[str, pathlib.Path]:
    """The files of a slide's results, by name."""

  @abc.abstractmethod
  def write(
    self, slide: OpenSlide, info: Mapping[str, Any]
  ) -> tuple[dict[str, Any], list[pathlib.Path]]:
    """Writes the results of a slide; returns facts for its mark, and files."""

  def release(self, slide: OpenSlide) -> None:
    """Gives back what `begin` took, whatever became of the slide."""
    del slide

  def words(self, info: Mapping[str, Any]) -> str:
    """What is said of a slide that is done, beside its tiles."""
    return f"{info['waiting']:.0%} waiting"

  # Which slides, and what became of them.

  def run(self) -> Summary:
    """Does all slides that are not finished, and writes the tables."""
    todo = self._todo()
    try:
      if todo:
        with tqdm.tqdm(
          total=len(self._entries),
          initial=len(self._entries) - len(todo),
          unit="slide",
          dynamic_ncols=True,
          smoothing=0.1,
        ) as bar:
          self._work(todo, self.program(), bar)
    finally:
      wrong = self.write_tables()
    return run_tables.summary(
      self.workdir / runs.table_name("errors", self.data.part),
      self.outcomes,
      wrong,
      self._tiles,
      self._seconds,
      self._waited / self._seconds if self._seconds else 0.0,
    )

  def _todo(self) -> list[SlideEntry]:
    """Returns slides that are not finished; notes the others."""
    todo = []
    for entry in self._entries:
      try:
        digest = tile_stream.slide_hash(entry, self.cutting, self._made_by)
      except SlideError as error:
        # Results made when the slide could be read stay: a disk may be away.
        self._note(entry, error)
        continue
      mark = Done(self.workdir / "done" / f"{entry.slide_id}.json", digest)
      self._marks[entry.slide_id] = mark
      if (info := mark.read()) is None:
        todo.append(entry)
      else:
        self.outcomes[entry.slide_id] = Outcome(
          entry, info["status"], info, before=True
        )
    return todo

  def _fail(self, entry: SlideEntry, error: SlideError) -> None:
    # What an earlier run with other settings wrote is not what was asked for.
    for path in self.paths(entry.slide_id).values():
      path.unlink(missing_ok=True)
    self._note(entry, error)

  def _note(self, entry: SlideEntry, error: SlideError) -> None:
    self.outcomes[entry.slide_id] = Outcome(entry, FAILED, {}, error=error)
    tqdm.tqdm.write(
      f"{entry.slide_id}: {error.error}: {error.message}", file=sys.stderr
    )

  def write_tables(self) -> list[SlideError]:
    """Writes the tables as far as the run has come; returns the errors."""
    self._written = time.perf_counter()
    return run_tables.write(
      self.workdir, self.data.part, self.outcomes, self._found_errors
    )

  # The work.

  def _work(self, todo: Sequence[SlideEntry], program, bar: tqdm.tqdm) -> None:
    events = tile_stream.events(
      todo, self.cutting, self.workdir, self.data.batch_size, self.data.threads
    )
    background = Background(events, _QUEUED)
    pending: collections.deque[Callable[[], None]] = collections.deque()

    def settle(leave: int) -> None:
      while len(pending) > leave:
        pending.popleft()()

    start = self._last = time.perf_counter()
    slide = None
    try:
      while True:
        if background.is_behind():
          settle(0)  # until the device really has nothing to do
        before = time.perf_counter()
        event = background.get()
        waited = time.perf_counter() - before
        self._waited += waited
        match event:
          case None:
            break
          case tile_stream.Begin():
            slide = OpenSlide(event, self.begin(event))
          case tiles.TileBatch():
            output = program(self._padded(event.pixels))
            take = functools.partial(self._take, slide, event, output)
            pending.append(take)
          case tile_stream.End():
            pending.append(functools.partial(self._finish, slide, event, bar))
          case tile_stream.Failed():
            pending.append(functools.partial(self._refuse, slide, event, bar))
        if slide is not None and not isinstance(event, tile_stream.Failed):
          slide.waited += waited
        if isinstance(event, tile_stream.End | tile_stream.Failed):
          slide = None
        settle(_IN_FLIGHT)
      settle(0)
    finally:
      background.close()
      self._seconds = time.perf_counter() - start

  def _padded(self, pixels: np.ndarray) -> np.ndarray:
    missing = self.data.batch_size - len(pixels)
    if not missing:
      return pixels
    return np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))

  def _take(self, slide: OpenSlide, batch: tiles.TileBatch, output) -> None:
    self.take(slide, batch, output)
    slide.tiles += len(batch.index)

  def _refuse(
    self, slide: OpenSlide | None, event: tile_stream.Failed, bar: tqdm.tqdm
  ) -> None:
    if slide is not None:
      self.release(slide)
    self._fail(event.entry, event.error)
    self._next(bar)

  def _finish(
    self, slide: OpenSlide, end: tile_stream.End, bar: tqdm.tqdm
  ) -> None:
    entry = slide.begin.entry
    seconds = max(time.perf_counter() - self._last, 1e-9)
    info = {
      **slide.begin.info,
      "tiles": slide.tiles,
      "bad_tiles": end.bad_tiles,
      "bad": [error.state() for error in end.bad[:_BAD_LISTED]],
      "seconds": seconds,
      "waiting": min(1.0, slide.waited / seconds),
    }
    mark = self._marks[entry.slide_id]
    try:
      mark.clear()
      facts, files = self.write(slide, info)
      info |= facts
      mark.write(info, files)
    except Exception as error:  # a slide that cannot be written is a row
      self._fail(
        entry,
        as_slide_error(error, entry.slide_id, self.stage, "config.workdir"),
      )
    else:
      self.outcomes[entry.slide_id] = Outcome(entry, info["status"], info)
      self._tiles += slide.tiles
      note = f" ({info['reason']})" if info["reason"] else ""
      lost = f", {end.bad_tiles} unreadable" if end.bad_tiles else ""
      tqdm.tqdm.write(
        f"{entry.slide_id}: {slide.tiles:,} tiles{note}{lost}, "
        f"{slide.tiles / seconds:.1f} tiles/s, {self.words(info)}",
        file=sys.stderr,
      )
    finally:
      self.release(slide)
    self._next(bar)

  def _next(self, bar: tqdm.tqdm) -> None:
    self._last = time.perf_counter()
    bar.update()
    if self._last - self._written > _TABLES_EVERY_SECONDS:
      self.write_tables()
