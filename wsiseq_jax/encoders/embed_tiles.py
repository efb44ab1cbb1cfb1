"""The job `embed_tiles`: slides in, one feature file a slide out.

Tiles go from the slide through the encoder; no pictures are kept in between.
Threads decode ahead into a bounded queue. This thread hands batches of one
fixed shape to the devices (the last one of a slide is padded, so there is one
program) and takes features a few batches later: dispatch is asynchronous, and
the device has its next batch before it is done with the last. The time in which
it has nothing to do is measured: the share of time spent waiting for slides.

A slide is finished when its mark (`done/<slide_id>.json`, see
`data_prep/files/done.py`) names the settings, the encoder's weights and the
slide file. See `configs/embed_tiles.py` for how to run it,
`data_prep/wsi/tile_stream.py` for the slides' side.
"""

import collections
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from data_prep import runs
from data_prep.files import tables
from data_prep.files.done import Done
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.synthetic import slides
from data_prep.wsi import find, tile_stream, tiles
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import encoders, parallel
from wsiseq_jax.data import tile_features
from wsiseq_jax.data.background import Background
from wsiseq_jax.encoders import embed_tables
from wsiseq_jax.encoders import settings as embed_config
from wsiseq_jax.encoders.embed_tables import FAILED, Outcome, Summary

_QUEUED = 4  # batches decoded ahead
_IN_FLIGHT = 2  # batches on the device
_BAD_LISTED = 100  # damaged places of one slide, in errors.csv
_TABLES_EVERY_SECONDS = 5.0


def run(config: ConfigDict) -> None:
  """The job; ends the program with the exit code unless all is well.

  Args:
    config: see `configs/embed_tiles.py`.

  Raises:
    ValueError: a bad config, or nothing to do.
    SystemExit: some slides could not be used.
  """
  embed_config.validate(config)
  summary = embed_slides(config, encoders.load(config.encoder))
  print(summary.text)
  if summary.exit_code:
    sys.exit(summary.exit_code)


def embed_slides(config: ConfigDict, encoder: encoders.Encoder) -> Summary:
  """Embeds all slides that are not finished, and writes the tables."""
  settings = embed_config.settings_of(config, encoder)
  workdir = pathlib.Path(config.workdir)
  tables.refuse_others(workdir, "workdir")
  (workdir / "features").mkdir(parents=True, exist_ok=True)
  source = config.data.slides
  if source == "synthetic":
    source = str(
      slides.make_cohort(workdir / "slides", slides=3, size_px=(640, 512))
    )
  entries, errors = find.find_slides(source, config.data.table)
  entries, bad_names = find.usable_names(entries)
  number, parts = runs.share(config.data.part, "data.part")
  work = _Run(
    config, settings, encoder, entries[number - 1 :: parts],
    [*errors, *bad_names],
  )  # fmt: skip
  work.work()
  return work.summary()


def compile_encoder(
  encoder: encoders.Encoder, batch_size: int
) -> Callable[[np.ndarray], jax.Array]:
  """The program that takes one padded batch of tiles."""
  return compile_tiles(
    encoder.apply, encoder.params, encoder.window_px, batch_size
  )


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
class _Open:
  """A slide being embedded."""

  begin: tile_stream.Begin
  features: np.ndarray
  have: np.ndarray  # which tiles there are features of
  waited: float = 0.0


class _Run:
  """The state of a run."""

  def __init__(
    self,
    config: ConfigDict,
    settings: tile_stream.Settings,
    encoder: encoders.Encoder,
    entries: Sequence[SlideEntry],
    errors: Sequence[SlideError],
  ):
    self.config, self.settings, self.encoder = config, settings, encoder
    self.entries, self.found_errors = entries, list(errors)
    self.workdir = pathlib.Path(config.workdir)
    self.outcomes: dict[str, Outcome] = {}
    self.marks: dict[str, Done] = {}
    self.tiles, self.seconds, self.waited = 0, 0.0, 0.0
    self._last = 0.0  # when the last slide was finished
    self._written = time.perf_counter()  # when tables were

  # Which slides, and what became of them.

  def path(self, entry: SlideEntry) -> pathlib.Path:
    """Where the features of a slide are."""
    return self.workdir / "features" / f"{entry.slide_id}.h5"

  def _todo(self) -> list[SlideEntry]:
    """Returns slides that are not finished; notes the others."""
    encoder = {
      "name": self.encoder.name,
      "width": self.encoder.width,
      "fingerprint": self.encoder.fingerprint,
    }
    todo = []
    for entry in self.entries:
      try:
        digest = tile_stream.slide_hash(entry, self.settings, encoder)
      except SlideError as error:
        # Features made when the slide could be read stay: a disk may be away.
        self._note(entry, error)
        continue
      mark = Done(self.workdir / "done" / f"{entry.slide_id}.json", digest)
      self.marks[entry.slide_id] = mark
      if (info := mark.read()) is None:
        todo.append(entry)
      else:
        self.outcomes[entry.slide_id] = Outcome(
          entry, info["status"], info, before=True
        )
    return todo

  def _fail(self, entry: SlideEntry, error: SlideError) -> None:
    # What an earlier run with other settings wrote is not what was asked for.
    self.path(entry).unlink(missing_ok=True)
    self._note(entry, error)

  def _note(self, entry: SlideEntry, error: SlideError) -> None:
    self.outcomes[entry.slide_id] = Outcome(entry, FAILED, {}, error=error)
    tqdm.tqdm.write(
      f"{entry.slide_id}: {error.error}: {error.message}", file=sys.stderr
    )

  # The work.

  def work(self) -> None:
    """Embeds all slides that are not finished."""
    todo = self._todo()
    try:
      if todo:
        with self._bar(todo) as bar:
          step = compile_encoder(self.encoder, self.config.data.batch_size)
          self._embed(todo, step, bar)
    finally:
      self.write_tables()

  def _bar(self, todo: Sequence[SlideEntry]) -> tqdm.tqdm:
    return tqdm.tqdm(
      total=len(self.entries),
      initial=len(self.entries) - len(todo),
      unit="slide",
      dynamic_ncols=True,
      smoothing=0.1,
    )

  def _embed(self, todo, step, bar: tqdm.tqdm) -> None:
    events = tile_stream.events(
      todo,
      self.settings,
      self.workdir,
      self.config.data.batch_size,
      self.config.data.threads,
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
        self.waited += waited
        match event:
          case None:
            break
          case tile_stream.Begin():
            count = len(event.grid)
            features = np.empty((count, self.encoder.width), np.float32)
            slide = _Open(event, features, np.zeros(count, bool))
          case tiles.TileBatch():
            output = step(self._padded(event.pixels))
            take = functools.partial(_take, slide, event.index, output)
            pending.append(take)
          case tile_stream.End():
            pending.append(functools.partial(self._finish, slide, event, bar))
          case tile_stream.Failed():
            pending.append(functools.partial(self._refuse, event, bar))
        if slide is not None and not isinstance(event, tile_stream.Failed):
          slide.waited += waited
        settle(_IN_FLIGHT)
      settle(0)
    finally:
      background.close()
      self.seconds = time.perf_counter() - start

  def _padded(self, pixels: np.ndarray) -> np.ndarray:
    missing = self.config.data.batch_size - len(pixels)
    if not missing:
      return pixels
    return np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))

  def _refuse(self, event: tile_stream.Failed, bar: tqdm.tqdm) -> None:
    self._fail(event.entry, event.error)
    self._next(bar)

  def _finish(self, slide: _Open, end: tile_stream.End, bar: tqdm.tqdm) -> None:
    begin, entry = slide.begin, slide.begin.entry
    seconds = max(time.perf_counter() - self._last, 1e-9)
    count = int(slide.have.sum())
    info = {
      **begin.info,
      "tiles": count,
      "bad_tiles": end.bad_tiles,
      "bad": [error.state() for error in end.bad[:_BAD_LISTED]],
      "seconds": seconds,
      "waiting": min(1.0, slide.waited / seconds),
    }
    try:
      self._write(slide, info)
    except Exception as error:  # a slide that cannot be written is a row
      self._fail(
        entry, as_slide_error(error, entry.slide_id, "encode", "config.workdir")
      )
    else:
      self.outcomes[entry.slide_id] = Outcome(entry, info["status"], info)
      self.tiles += count
      note = f" ({info['reason']})" if info["reason"] else ""
      lost = f", {end.bad_tiles} unreadable" if end.bad_tiles else ""
      tqdm.tqdm.write(
        f"{entry.slide_id}: {count:,} tiles{note}{lost}, "
        f"{count / seconds:.1f} tiles/s, {info['waiting']:.0%} waiting",
        file=sys.stderr,
      )
    self._next(bar)

  def _next(self, bar: tqdm.tqdm) -> None:
    self._last = time.perf_counter()
    bar.update()
    if self._last - self._written > _TABLES_EVERY_SECONDS:
      self.write_tables()

  def _write(self, slide: _Open, info: Mapping[str, Any]) -> None:
    begin, grid = slide.begin, slide.begin.grid
    mark, path = self.marks[begin.entry.slide_id], self.path(begin.entry)
    mark.clear()
    tile_features.write(
      path,
      tile_features.TileFeatures(
        slide_id=begin.entry.slide_id,
        features=slide.features[slide.have],
        xy=grid.xy[slide.have].astype(np.float64),
        tile_size=grid.tile_level0,
        mpp=grid.mpp,
        level0_mpp=info["mpp"],
        level0_size=tuple(info["level0_px"]),
        encoder=self.encoder.name,
      ),
      attributes={
        "encoder_fingerprint": self.encoder.fingerprint,
        "encoder_weights": self.encoder.weights,
      },
      overlap_px=self.settings.tiles["overlap_px"],
    )
    mark.write(info, [path])

  def write_tables(self) -> list[SlideError]:
    """Writes the tables as far as the run has come; returns the errors."""
    self._written = time.perf_counter()
    return embed_tables.write(
      self.workdir, self.config.data.part, self.outcomes, self.found_errors
    )

  def summary(self) -> Summary:
    """Returns what was done."""
    return embed_tables.summary(
      self.workdir / runs.table_name("errors", self.config.data.part),
      self.outcomes,
      self.write_tables(),
      self.tiles,
      self.seconds,
      self.waited / self.seconds if self.seconds else 0.0,
    )


def _take(slide: _Open, index: np.ndarray, output: jax.Array) -> None:
  slide.features[index] = np.asarray(output)[: len(index)]
  slide.have[index] = True
