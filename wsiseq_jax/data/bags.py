"""Bags: the tile features of a slide, padded to few lengths and batched.

A slide has one tile or a hundred thousand, a compiled program has one shape. So
bags are padded to a *bucket*: the smallest b·2^i (b = `data.smallest_bucket`)
that holds them. As many programs are compiled as there are buckets in use, and
padding never more than doubles a bag. A batch holds bags of one bucket; what is
left over goes to the next larger one in use, so that an epoch has one
incomplete batch at most.

Headers are read first: a slide whose file is missing or broken (`error`), or
holds no tile (`no_tissue`), is a failure. It is never trained on, gets the
prior as its prediction, and is counted. Features are read when they are needed.
What is wrong with them (NaN, a damaged chunk) makes the slide a failure, too,
and raises `UnreadableBag`: whoever reads leaves it out and starts again, so
that results do not depend on when a failure was found.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from data_prep.files import names as slide_names
from data_prep.files.errors import as_slide_error
from wsiseq_jax import launch
from wsiseq_jax.data import tile_features
from wsiseq_jax.data.tile_features import TileFeatures

OK, NO_TISSUE, ERROR = "ok", "no_tissue", "error"


class UnreadableBag(ValueError):
  """The features of a slide whose header was right cannot be read."""


def bucket(tiles: int, smallest: int) -> int:
  """The length that a bag is padded to."""
  return smallest * 2 ** max(0, math.ceil(math.log2(tiles / smallest)))


def grid_positions(tiles: TileFeatures) -> Float[np.ndarray, "m 2"]:
  """Tile positions in units of one tile side, the smallest being 0.

  Example:
    >>> xy = np.array([[512.0, 0.0], [1024.0, 256.0]])
    >>> one = TileFeatures("s", np.ones((2, 1), np.float32), xy, 256.0)
    >>> grid_positions(one).tolist()
    [[0.0, 0.0], [2.0, 1.0]]
  """
  if not len(tiles.xy):
    return np.zeros((0, 2), np.float32)
  position = (tiles.xy - tiles.xy.min(axis=0)) / tiles.tile_size
  return position.astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """Bags of one padded length."""

  features: Float[np.ndarray, "b m d"]  # f32 [b m d], 0 where padded
  mask: np.ndarray  # whether a tile is real, [b m]
  grid_xy: Float[np.ndarray, "b m 2"]  # `grid_positions`, f32 [b m 2]
  # Number of each bag in the list that was batched; the first one's for bags
  # that only fill the batch.
  rows: Int[np.ndarray, " b"]
  # 1, and 0 for bags that only fill the batch, f32 [b].
  weight: Float[np.ndarray, " b"]


class Bags:
  """The bags of a folder.

  Args:
    folder: feature files, one a slide.
    ids: slides that are wanted; a slide without a file is an `error`.
    unlisted: what to make of files that nobody wants: 'error' or 'ignore'.
    tile_size: for files that do not say it; 0 = none.
    cache_gb: keep features in memory up to this; what does not fit is read
      again whenever it is needed.
    threads: files read at once, and slides read ahead of a batch at most.
    smallest_bucket: padded length of the smallest bags.
    known: slides that may have files and are not wanted: those without a label.

  Attributes:
    width: d of all features.
    status: OK, NO_TISSUE or ERROR of each wanted slide.
    reason: what is wrong, for slides that are not OK.
    tiles: number of tiles of each wanted slide.
    digest: `tile_features.FeatureHeader.identity` of each wanted slide.

  Raises:
    ValueError: no folder, two files of most slides, files that nobody wants,
      features of no width that most have, or no usable file at all.
  """

  def __init__(
    self,
    folder: str,
    ids: Sequence[str],
    unlisted: str = "error",
    tile_size: float = 0.0,
    cache_gb: float = 8.0,
    threads: int = 4,
    smallest_bucket: int = 64,
    known: Sequence[str] = (),
  ):
    doubled: dict[str, str] = {}
    try:
      place = pathlib.Path(folder).expanduser()
      self._files = tile_features.find(place, doubled)
    except ValueError as error:
      raise ValueError(f"config.data.features = {folder!r}: {error}") from error
    more = set(self._files)
    self._files = slide_names.match(ids, self._files)
    self._doubled = slide_names.match(ids, doubled)
    more -= {slide_names.stem(path) for path in self._files.values()}
    more -= set(slide_names.match(more, dict.fromkeys(known)))
    self._check_names(ids, unlisted, sorted(more), folder)
    self._tile_size = tile_size or None
    self._smallest = smallest_bucket
    self._room = int(cache_gb * 2**30)
    self._threads = threads
    self._kept: dict[str, TileFeatures] = {}
    self._lock = threading.Lock()
    self.status: dict[str, str] = {}
    self.reason: dict[str, str] = {}
    self.tiles: dict[str, int] = {}
    self.digest: dict[str, str] = {}
    widths: dict[int, list[str]] = {}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      for slide_id, found in zip(ids, pool.map(self._header, ids), strict=True):
        if isinstance(found, str):
          self.tiles[slide_id], self.digest[slide_id] = 0, ""
          self.fail(slide_id, found)
          continue
        self.tiles[slide_id], self.digest[slide_id] = (
          found.tiles,
          found.identity,
        )
        widths.setdefault(found.width, []).append(slide_id)
        self.status[slide_id] = OK
        if not found.tiles:
          self.fail(slide_id, "it has no tile", NO_TISSUE)
    self.width = max(widths, key=lambda w: len(widths[w]), default=0)
    others = [i for w, mine in widths.items() if w != self.width for i in mine]
    if 2 * len(others) >= sum(map(len, widths.values())) > 0:
      each = ", ".join(
        f"{width} ({len(names)} files, such as {names[0]!r})"
        for width, names in sorted(widths.items())
      )
      raise ValueError(
        f"config.data.features: features of different widths: {each}; they are "
        "of different encoders: name the folder of one"
      )
    for slide_id in others:
      reason = f"its features are not of width {self.width}, as most are"
      self.fail(slide_id, f"{reason}: of another encoder")
    if OK not in self.status.values():
      raise ValueError(
        f"config.data.features = {folder!r}: no slide can be used; "
        f"{ids[0]!r}: {self.reason[ids[0]]}"
      )

  def _check_names(
    self, ids: Sequence[str], unlisted: str, more: Sequence[str], folder: str
  ) -> None:
    if not self._files:
      near = more[0] if more else "none of the table"
      raise ValueError(
        "config.data.features and config.data.table have no slide in common: "
        f"files of {folder} are named like {near!r}, slides of the table like "
        f"{ids[0]!r}"
      )
    if more and unlisted == "error":
      raise ValueError(
        f"config.data.features: {len(more)} slides are missing from "
        f"config.data.table, such as {more[:3]}; add them, or set "
        "config.data.unlisted = 'ignore'"
      )
    if more:
      launch.log(f"{len(more)} feature files are not in the table: ignored")

  def _header(self, slide_id: str) -> tile_features.FeatureHeader | str:
    """A file's header, or what is wrong with it."""
    if slide_id not in self._files:
      return self._doubled.get(slide_id, "it has no feature file")
    try:
      return tile_features.header(self._files[slide_id])
    except Exception as error:  # the one place where a header may fail
      return as_slide_error(error, slide_id, "features").message

  def fail(self, slide_id: str, reason: str, status: str = ERROR) -> None:
    """Notes a slide as a failure."""
    self.status[slide_id], self.reason[slide_id] = status, reason

  def ok(self, slide_id: str) -> bool:
    """Whether a slide can be trained on and predicted, as far as is known."""
    return self.status[slide_id] == OK

  def read(self, slide_id: str) -> TileFeatures:
    """The tiles of a slide that is `ok`.

    Raises:
      UnreadableBag: it is not: from now on it is a failure.
    """
    if slide_id in self._kept:
      return self._kept[slide_id]
    try:
      tiles = tile_features.read(self._files[slide_id], self._tile_size)
    except Exception as error:  # the one place where a bag may fail
      wrong = as_slide_error(error, slide_id, "features").message
      self.fail(slide_id, wrong)
      raise UnreadableBag(f"slide {slide_id!r}: {wrong}") from error
    size = tiles.features.nbytes + tiles.xy.nbytes
    with self._lock:
      if size <= self._room and slide_id not in self._kept:
        self._room -= size
        self._kept[slide_id] = tiles
    return tiles

  def _read_ahead(self, ids: Iterable[str]) -> Iterator[TileFeatures]:
    """Slides in order, at most `threads` of them read and not yet taken."""
    ids = iter(ids)
    with contextlib.ExitStack() as stack:
      pool = concurrent.futures.ThreadPoolExecutor(self._threads)
      stack.callback(pool.shutdown, cancel_futures=True)
      waiting = collections.deque(
        pool.submit(self.read, slide_id)
        for slide_id in itertools.islice(ids, self._threads)
      )
      while waiting:
        yield waiting.popleft().result()
        for slide_id in ids:
          waiting.append(pool.submit(self.read, slide_id))
          break

  def batches(
    self,
    ids: Sequence[str],
    size: int,
    rng: np.random.Generator | None = None,
    max_tiles: int = 0,
    mixed: bool = False,
  ) -> Iterator[Batch]:
    """Batches of slides that are `ok`, each slide once.

    Args:
      ids: the slides.
      size: bags in a batch.
      rng: draws the order, and the tiles of bags that are too large; None keeps
        bags by length and all their tiles.
      max_tiles: so many random tiles of a larger bag; 0 = all.
      mixed: batch bags of any length, padded to the longest of the batch, for
        losses that compare slides with each other.

    Yields:
      Batches; the last ones of a bucket are as long as the next bucket.

    Raises:
      UnreadableBag: a slide cannot be read.
    """
    counts = [self.tiles[slide_id] for slide_id in ids]
    if rng is not None and max_tiles:
      counts = [min(count, max_tiles) for count in counts]
    lengths = [bucket(count, self._smallest) for count in counts]
    groups = plan(lengths, size, rng, mixed)
    slides = self._read_ahead(ids[row] for rows in groups for row in rows)
    with contextlib.closing(slides):
      for rows in groups:
        length = max(lengths[row] for row in rows)
        # The first bag fills the batch up, with no weight: a bag without any
        # tile has no softmax.
        filled = [*rows, *[rows[0]] * (size - len(rows))]
        batch = self._empty(length, np.array(filled), len(rows))
        for place, row in enumerate(rows):
          _fill(batch, place, next(slides), counts[row], rng)
        for array in (batch.features, batch.mask, batch.grid_xy):
          array[len(rows) :] = array[0]
        yield batch

  def alone(self, tiles: TileFeatures) -> Batch:
    """A batch of one bag."""
    count = len(tiles.features)
    batch = self._empty(bucket(count, self._smallest), np.zeros(1, int), 1)
    _fill(batch, 0, tiles, count)
    return batch

  def _empty(self, length: int, rows: np.ndarray, real: int) -> Batch:
    size = len(rows)
    return Batch(
      np.zeros((size, length, self.width), np.float32),
      np.zeros((size, length), bool),
      np.zeros((size, length, 2), np.float32),
      rows,
      (np.arange(size) < real).astype(np.float32),
    )


def _fill(batch, place, tiles, count, rng=None) -> None:
  """Puts a bag into a batch, `count` random tiles of it if it has more."""
  grid, features = grid_positions(tiles), tiles.features
  if len(features) > count:
    chosen = rng.choice(len(features), count, replace=False)
    # In the order of the file, which TransMIL-like models see.
    chosen.sort()
    features, grid = features[chosen], grid[chosen]
  batch.features[place, : len(features)] = features
  batch.grid_xy[place, : len(features)] = grid
  batch.mask[place, : len(features)] = True


def plan(
  lengths: Sequence[int],
  size: int,
  rng: np.random.Generator | None,
  mixed: bool,
) -> list[list[int]]:
  """Which bags go together.

  Returns:
    Numbers of bags; all batches but one are full.
  """
  order = np.arange(len(lengths))
  if rng is not None:
    order = rng.permutation(order)
  if not mixed:
    order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    groups = _within_buckets(order.tolist(), lengths, size)
  else:
    groups = [order[i : i + size].tolist() for i in range(0, len(order), size)]
  if rng is not None:
    groups = [groups[i] for i in rng.permutation(len(groups))]
  return groups


def _within_buckets(order, lengths, size) -> list[list[int]]:
  groups, left = [], []
  for length in sorted({lengths[row] for row in order}):
    mine = left + [row for row in order if lengths[row] == length]
    full = len(mine) // size * size
    groups += [mine[i : i + size] for i in range(0, full, size)]
    left = mine[full:]
  return groups + ([left] if left else [])
