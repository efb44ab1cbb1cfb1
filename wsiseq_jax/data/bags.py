"""Bags: the tile features of a slide, padded to few lengths and batched.

A slide has one tile or a hundred thousand. A compiled program has one shape, so
bags are padded to a *bucket*: the smallest b·2^i (b = `data.smallest_bucket`)
that holds them. At most as many programs are compiled as there are buckets in
use, and padding never more than doubles a bag. A batch holds bags of one
bucket; bags left over at the end of a bucket go to the next larger one in use,
so that an epoch has one incomplete batch at most.

Every file is read once before anything is trained: what is wrong with a file is
known after minutes and not in the middle of a night. A slide whose file is
missing or unreadable (`error`), or holds no tile (`no_tissue`), is a failure:
it is never trained on, gets the prior as its prediction, and is counted.
"""

import concurrent.futures
import dataclasses
import hashlib
import math
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from wsiseq_jax import launch
from wsiseq_jax.data import feature_files
from wsiseq_jax.data.feature_files import TileFeatures

OK, NO_TISSUE, ERROR = "ok", "no_tissue", "error"


def bucket(tiles: int, smallest: int) -> int:
  """The length that a bag is padded to.

  Example:
    >>> [bucket(m, 64) for m in (1, 64, 65, 100_000)]
    [64, 64, 128, 131072]
  """
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
  """Bags of one padded length.

  Attributes:
    features: f32 [b m d], 0 where padded.
    mask: whether a tile is real, [b m].
    grid_xy: `grid_positions`, f32 [b m 2].
    rows: number of each bag in the list that was batched; the first one's for
      bags that only fill the batch.
    weight: 1, and 0 for bags that only fill the batch, f32 [b].
  """

  features: Float[np.ndarray, "b m d"]
  mask: np.ndarray
  grid_xy: Float[np.ndarray, "b m 2"]
  rows: Int[np.ndarray, " b"]
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
    threads: files read at once.
    smallest_bucket: padded length of the smallest bags.
    known: slides that may have files and are not wanted: those without a label.

  Attributes:
    width: d of all features.
    status: OK, NO_TISSUE or ERROR of each wanted slide.
    reason: what is wrong, for slides that are not OK.
    tiles: number of tiles of each wanted slide.
    digest: hash of features and positions of each wanted slide.

  Raises:
    ValueError: no folder, two files of one slide, files that nobody wants,
      features of different widths, or no usable file at all.
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
    try:
      self._files = feature_files.find(pathlib.Path(folder).expanduser())
    except ValueError as error:
      raise ValueError(f"config.data.features = {folder!r}: {error}") from error
    self._check_names(ids, unlisted, known)
    self._tile_size = tile_size or None
    self._smallest = smallest_bucket
    self._room = cache_gb * 2**30
    self._kept: dict[str, TileFeatures] = {}
    self.status: dict[str, str] = {}
    self.reason: dict[str, str] = {}
    self.tiles: dict[str, int] = {}
    self.digest: dict[str, str] = {}
    self.width = self._common_width(ids)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      # In order, so that the same slides are kept in memory each time.
      for slide_id, found in zip(ids, pool.map(self._try, ids), strict=True):
        self._note(slide_id, found)
    if not any(status == OK for status in self.status.values()):
      raise ValueError(
        f"config.data.features = {folder!r}: no slide can be used; "
        f"{ids[0]!r}: {self.reason[ids[0]]}"
      )

  def _check_names(
    self, ids: Sequence[str], unlisted: str, known: Sequence[str]
  ) -> None:
    if not set(ids) & set(self._files):
      raise ValueError(
        "config.data.features and config.data.table have no slide in common: "
        f"files are named like {next(iter(self._files))!r}, slides of the "
        f"table like {ids[0]!r}"
      )
    more = sorted(set(self._files) - set(ids) - set(known))
    if more and unlisted == "error":
      raise ValueError(
        f"config.data.features: {len(more)} slides are missing from "
        f"config.data.table, such as {more[:3]}; add them, or set "
        "config.data.unlisted = 'ignore'"
      )
    if more:
      launch.log(f"{len(more)} feature files are not in the table: ignored")

  def _common_width(self, ids: Sequence[str]) -> int:
    widths: dict[int, list[str]] = {}
    for slide_id in ids:
      try:
        if slide_id in self._files:
          width = feature_files.shape(self._files[slide_id])[1]
          widths.setdefault(width, []).append(slide_id)
      except ValueError:
        pass  # Reading it says what is wrong, and for which slide.
    if len(widths) > 1:
      each = ", ".join(
        f"{width} ({len(names)} files, such as {names[0]!r})"
        for width, names in sorted(widths.items())
      )
      raise ValueError(
        f"config.data.features: features of different widths: {each}; they are "
        "of different encoders: name the folder of one"
      )
    return next(iter(widths), 0)

  def _try(self, slide_id: str) -> TileFeatures | ValueError:
    if slide_id not in self._files:
      return ValueError("it has no feature file")
    try:
      return feature_files.read(self._files[slide_id], self._tile_size)
    except ValueError as error:
      return error

  def _note(self, slide_id: str, found: TileFeatures | ValueError) -> None:
    if isinstance(found, ValueError):
      self.status[slide_id], self.reason[slide_id] = ERROR, str(found)
      self.tiles[slide_id], self.digest[slide_id] = 0, ""
      return
    self.tiles[slide_id] = len(found.features)
    self.status[slide_id] = OK
    if not len(found.features):
      self.status[slide_id] = NO_TISSUE
      self.reason[slide_id] = "it has no tile"
    digest = hashlib.blake2b(digest_size=16)
    for array in (found.features, found.xy):
      digest.update(np.ascontiguousarray(array))
    self.digest[slide_id] = digest.hexdigest()
    self._room -= found.features.nbytes
    if self._room >= 0:
      self._kept[slide_id] = found

  def ok(self, slide_id: str) -> bool:
    """Whether a slide can be trained on and predicted."""
    return self.status[slide_id] == OK

  def read(self, slide_id: str) -> TileFeatures:
    """The tiles of a slide that is `ok`."""
    if slide_id in self._kept:
      return self._kept[slide_id]
    return feature_files.read(self._files[slide_id], self._tile_size)

  def failures(self) -> Counter:
    """How many slides are of each status but OK."""
    return Counter(s for s in self.status.values() if s != OK)

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
      mixed: batch bags of any length, padded to the longest of the batch, as
        losses want that compare slides with each other.

    Yields:
      Batches; the last ones of a bucket are as long as the next bucket.
    """
    counts = [self.tiles[slide_id] for slide_id in ids]
    if rng is not None and max_tiles:
      counts = [min(count, max_tiles) for count in counts]
    lengths = [bucket(count, self._smallest) for count in counts]
    for rows in plan(lengths, size, rng, mixed):
      length = max(lengths[row] for row in rows)
      # Bags that fill up are the first one again, of no weight: a bag without
      # any tile has no softmax.
      filled = [*rows, *[rows[0]] * (size - len(rows))]
      batch = Batch(
        np.zeros((size, length, self.width), np.float32),
        np.zeros((size, length), bool),
        np.zeros((size, length, 2), np.float32),
        np.array(filled),
        (np.arange(size) < len(rows)).astype(np.float32),
      )
      for place, row in enumerate(rows):
        tiles = self.read(ids[row])
        grid, features = grid_positions(tiles), tiles.features
        if len(features) > counts[row]:
          chosen = rng.choice(len(features), counts[row], replace=False)
          # In the order of the file, which TransMIL-like models see.
          chosen.sort()
          features, grid = features[chosen], grid[chosen]
        batch.features[place, : len(features)] = features
        batch.grid_xy[place, : len(features)] = grid
        batch.mask[place, : len(features)] = True
      for array in (batch.features, batch.mask, batch.grid_xy):
        array[len(rows) :] = array[0]
      yield batch


def plan(
  lengths: Sequence[int],
  size: int,
  rng: np.random.Generator | None,
  mixed: bool,
) -> list[list[int]]:
  """Which bags go together.

  Args:
    lengths: padded length of each bag.
    size: bags in a batch.
    rng: shuffles bags and batches; None keeps them, by length.
    mixed: bags of any length may go together.

  Returns:
    Numbers of bags; all batches but one are full.

  Example:
    >>> plan([64, 128, 64, 64, 128], 2, None, False)
    [[0, 2], [3, 1], [4]]
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
