"""Tiles of a slide: which squares hold tissue, and their pixels in a stream.

A tile is a square of `tile_px` pixels at exactly `mpp`. Tiles lie on a regular
grid anchored at level-0 (0, 0), or at the corner of the scanned part, so that
the same slide gives the same tiles whatever its tissue mask. Corners are whole
pixels of the pyramid level that is read: what is written down as a tile's place
is where its pixels come from, to the pixel, and a tile at the scale of its
level is a copy. The distance of neighbours is thereby off by up to half a
pixel of that level; it does not add up.

Nothing is written in between: `read_tiles` yields batches as they are decoded.
Each native tile of the slide is decoded about once, because tiles are read in
strips narrow enough for the reader's cache to hold what the next row needs
(only native tiles on the border of two strips are decoded twice).

A damaged native tile costs the tiles that touch it. They are left out and
reported, and the slide goes on unless it loses most (`damage.py`).
"""

import collections
import concurrent.futures
import dataclasses
import queue
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from data_prep.files.errors import SlideError
from data_prep.wsi import damage
from data_prep.wsi.slides import Level, Slide

ANCHORS = ("level0", "bounds")
# Pixels of a strip that may be waiting for the next row; the caches of both
# readers hold more.
_STRIP_PX = 6 << 20
_NATIVE_PX = 256  # side of a native tile, where one has to be assumed
# Tiles that one thread reads in a row. Neighbours share native tiles; threads
# that read neighbours at the same time would both decode them.
_RUN = 4

Number = int | float | np.integer | np.floating


@runtime_checkable
class Measured(Protocol):
  """What is needed of a slide to lay a grid; `slides.Slide` is one."""

  mpp: float
  level0_px: tuple[int, int]
  bounds: tuple[int, int, int, int]
  levels: tuple[Level, ...]

  def level_for(self, mpp: Number) -> int:
    """Returns the level that is read for a target mpp."""


@dataclasses.dataclass(frozen=True, eq=False)
class TileGrid:
  """The tiles of a slide that hold tissue, row by row."""

  xy: Int[np.ndarray, "m 2"]  # x, y of the top-left corners, level-0 pixels
  tissue: Float32[np.ndarray, " m"]  # share of each tile that is tissue
  tile_px: int  # side of a tile at `mpp`
  mpp: float  # um per pixel of the tiles
  tile_level0: float  # side of a tile in level-0 pixels, not rounded

  def __len__(self) -> int:
    return len(self.xy)


@dataclasses.dataclass(frozen=True, eq=False)
class TileBatch:
  """Some tiles with their pixels."""

  # windows around the middles of the tiles
  pixels: UInt8[np.ndarray, "b window window 3"]
  # x, y of the tiles' top-left corners, level-0 pixels
  xy: Int[np.ndarray, "b 2"]
  index: Int[np.ndarray, " b"]  # number of each tile in the grid


def check_settings(
  *,
  tile_px: int,
  window_px: int,
  overlap_px: int,
  min_tissue: Number,
  anchor: str,
) -> None:
  """Checks what does not depend on a slide; see `tile_grid`, `read_tiles`."""
  if tile_px < 1:
    raise ValueError(f"tile_px={tile_px}: want at least 1")
  if window_px < tile_px:
    raise ValueError(
      f"window_px={window_px}: want at least the tile, {tile_px}"
    )
  if not 0 <= overlap_px < tile_px:
    raise ValueError(f"overlap_px={overlap_px}: want 0 to {tile_px - 1}")
  if not 0 < min_tissue <= 1:
    raise ValueError(f"min_tissue={min_tissue}: want a share above 0, up to 1")
  if anchor not in ANCHORS:
    raise ValueError(f"anchor={anchor!r}: choose one of {ANCHORS}")


def tile_grid(
  slide: Measured,
  mask: Bool[np.ndarray, "h w"],
  downsample: Number,
  *,
  tile_px: int,
  mpp: Number,
  overlap_px: int = 0,
  min_tissue: Number = 0.25,
  anchor: str = "level0",
) -> TileGrid:
  """Lays the grid and keeps the tiles that hold enough tissue.

  A tile at the right or lower edge may hang over it: what lies outside is
  white, and is no tissue.
  """
  check_settings(
    tile_px=tile_px,
    window_px=tile_px,
    overlap_px=overlap_px,
    min_tissue=min_tissue,
    anchor=anchor,
  )
  scale = mpp / slide.mpp
  side, step = tile_px * scale, (tile_px - overlap_px) * scale
  # Whole pixels of the level that is read, if these are whole at level 0.
  factor = slide.levels[slide.level_for(mpp)].downsample
  snap = int(factor) if factor == int(factor) else 1
  x, y, width, height = (
    (0, 0, *slide.level0_px) if anchor == "level0" else slide.bounds
  )
  axes = []
  for start, length in ((x, width), (y, height)):
    begins = start + np.arange(int(np.ceil(length / step))) * step
    begins = snap * np.rint(begins / snap)
    axes.append(np.unique(begins[begins < start + length]).astype(np.int64))
  share = _tissue_share(mask, *(a / downsample for a in (*axes, side)))
  # A millionth for the rounding of sums: a tile full of tissue is 1.
  rows, columns = np.nonzero(share >= min_tissue - 1e-6)
  return TileGrid(
    xy=np.stack([axes[0][columns], axes[1][rows]], axis=1),
    tissue=share[rows, columns].astype(np.float32),
    tile_px=tile_px,
    mpp=float(mpp),
    tile_level0=float(side),
  )


def _tissue_share(
  mask: Bool[np.ndarray, "h w"],
  x: np.ndarray,
  y: np.ndarray,
  side: float,
) -> np.ndarray:
  """Returns the share of tissue in squares at x, y of the mask, [y, x]."""
  # Between the points of a summed-area table the sum is bilinear, so squares
  # that begin at a fraction of a mask pixel are exact.
  table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
  table[1:, 1:] = mask.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)

  def at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    places = np.clip(places, 0, len(values) - 1)
    whole = np.minimum(places.astype(int), len(values) - 2)
    rest = (places - whole)[:, None]
    return values[whole] * (1 - rest) + values[whole + 1] * rest

  rows = at(table, y + side) - at(table, y)
  return (at(rows.T, x + side) - at(rows.T, x)).T / side**2


def reading_order(
  xy: Int[np.ndarray, "m 2"], tile_level0: Number, downsample: Number
) -> Int[np.ndarray, " m"]:
  """Returns the order in which tiles are read: strip by strip, row by row.

  Example:
    >>> xy = np.array([[0, 0], [9000, 0], [0, 500], [9000, 500]])
    >>> reading_order(xy, 500, 1.0).tolist()
    [0, 2, 1, 3]
  """
  rows = tile_level0 / downsample + 2 * _NATIVE_PX
  width = max(tile_level0, _STRIP_PX / rows * downsample)
  strip = np.floor(xy[:, 0] / width)
  return np.lexsort((xy[:, 0], xy[:, 1], strip))


def read_tiles(
  slide: Slide,
  grid: TileGrid,
  *,
  window_px: int,
  batch_size: int,
  threads: int = 1,
  max_bad_share: Number = damage.MAX_BAD_SHARE,
  bad: list[SlideError] | None = None,
) -> Iterator[TileBatch]:
  """Reads the tiles of a grid, a batch at a time, several at once.

  The pixels of a tile are `slide.read_region` around its middle.
  """
  if window_px < grid.tile_px:
    raise ValueError(f"window_px={window_px}: want at least {grid.tile_px}")
  bad = [] if bad is None else bad
  level = slide.level_for(grid.mpp)
  window_level0 = grid.tile_level0 * window_px / grid.tile_px
  order = reading_order(
    grid.xy, window_level0, slide.levels[level].downsample
  ).tolist()
  runs = iter([order[i : i + _RUN] for i in range(0, len(order), _RUN)])
  centres = grid.xy + grid.tile_level0 / 2
  # A handle of OpenSlide is closed when it meets damage: one for each thread.
  alone = slide.reader == "openslide"
  extra = [_again(slide) for _ in range(threads - 1)] if alone else []
  handles: queue.SimpleQueue[Slide] = queue.SimpleQueue()
  for handle in (slide, *extra) if alone else (slide,) * threads:
    handles.put(handle)

  def read(numbers: list[int]) -> list[np.ndarray | SlideError]:
    handle = handles.get()
    try:
      return [_read(handle, centres[n], window_px, grid.mpp) for n in numbers]
    finally:
      handles.put(handle)

  pool = concurrent.futures.ThreadPoolExecutor(threads)
  waiting: collections.deque = collections.deque()

  def submit() -> None:
    while len(waiting) * _RUN < batch_size + 2 * threads * _RUN:
      numbers = next(runs, None)
      if numbers is None:
        return
      waiting.append((numbers, pool.submit(read, numbers)))

  lost, pixels, index = 0, [], []
  try:
    submit()
    while waiting:
      numbers, result = waiting.popleft()
      done = result.result()
      submit()
      for number, tile in zip(numbers, done, strict=True):
        if isinstance(tile, SlideError):
          lost += 1
          bad.append(tile)
          damage.check(bad[-lost:], len(grid), max_bad_share)
          continue
        pixels.append(tile)
        index.append(number)
        if len(pixels) == batch_size:
          yield _batch(pixels, index, grid)
          pixels, index = [], []
    if pixels:
      yield _batch(pixels, index, grid)
  finally:
    pool.shutdown(cancel_futures=True)
    for handle in extra:
      handle.close()


def _read(
  slide: Slide, centre: np.ndarray, side: int, mpp: float
) -> np.ndarray | SlideError:
  try:
    return slide.read_region(centre, (side, side), mpp)
  except SlideError as error:
    if error.error != damage.CODE:
      raise
    return error


def _batch(
  pixels: list[np.ndarray], index: list[int], grid: TileGrid
) -> TileBatch:
  chosen = np.array(index)
  return TileBatch(np.stack(pixels), grid.xy[chosen], chosen)


def _again(slide: Slide) -> Slide:
  return Slide.open(
    slide.path, mpp_override=slide.mpp, name=slide.name, reader=slide.reader
  )
