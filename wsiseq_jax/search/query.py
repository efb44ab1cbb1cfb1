"""Queries: pictures, regions of slides and rows become vectors.

    searcher = Searcher("INDEX")
    hits = searcher.by_images([picture], mpp=0.5, k=20)

A picture is brought to the scale of the index's tiles and cut into tiles side
by side, centred; one that is smaller than a tile is continued by its mirror
image. Several pictures are one query: the mean over all their tiles, weighed as
`encoding.py` says. Tiles of glass are left out, unless there are no others.

Deviations from HERE: smaller pictures are mirrored, not framed in black, which
an encoder takes for a dark place; pictures have a scale.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
from jaxtyping import Float32, Int, UInt8

from data_prep.files import names
from data_prep.wsi.slides import Slide
from wsiseq_jax.search import index
from wsiseq_jax.search.encoding import Encoding

PICTURES = 5  # of a query, at most
SIDES = (128, 4096)  # px of a picture's sides
TILES = 1024  # of a query, at most
_GLASS = 215  # all channels of a pixel of glass are brighter
Picture = UInt8[np.ndarray, "h w c"]
Number = int | float | np.integer | np.floating


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
  """What is looked for."""

  vectors: Float32[np.ndarray, "q d"]  # one, or one for each picture or row
  # Of the slide that it comes from, to be left out; () = from no slide.
  slides: tuple[str, ...] = ()
  patients: tuple[str, ...] = ()  # of these slides
  # How much each tile counts; () for rows.
  weights: Float32[np.ndarray, " m"] | tuple = ()
  picture: Int[np.ndarray, " m"] | tuple = ()  # which picture a tile is of
  # x, y, width, height of each tile in its picture, pixels.
  boxes: Float32[np.ndarray, "m 4"] | tuple = ()


class Searcher:
  """An index, and the encoder that it was made with.

  The encoder is loaded by the first query that needs it.

  Attributes:
    index: the open index.
  """

  def __init__(self, folder: str | os.PathLike, batch_size: int = 16):
    self.index = index.Index.open(folder)
    self._batch_size = batch_size
    self._encoding: Encoding | None = None

  @property
  def encoding(self) -> Encoding:
    """What makes vectors of tiles.

    Raises:
      ValueError: the index does not know its encoder, or it has changed.
    """
    if self._encoding is None:
      self._encoding = Encoding(self.index.settings, self._batch_size)
    return self._encoding

  def by_rows(self, ids: Any, **how: Any) -> pd.DataFrame:
    """Hits of rows of the index, their mean as one query.

    Args:
      ids: numbers of rows.
      **how: of `search`.

    Raises:
      ValueError: there is no such row, or none is given.
    """
    return self.search(self.rows_query(ids), **how)

  def by_images(
    self,
    images: Sequence[Any],
    mpp: Number | None = None,
    slide_path: str | os.PathLike | None = None,
    **how: Any,
  ) -> pd.DataFrame:
    """Hits of pictures, all as one query.

    Args:
      images: one to five, uint8 [h, w, 3] or [h, w, 1], sides of 128 to 4,096
        pixels.
      mpp: um per pixel of them; None assumes that of the index's tiles.
      slide_path: the slide's file they were cut from, whose hits `search` may
        leave out.
      **how: of `search`.

    Raises:
      ValueError: too many, too small or too large pictures, or no pictures.
    """
    query = self.images_query(images, mpp)
    if slide_path is not None:
      query = _owned(query, self._slides_of(slide_path))
    return self.search(query, **how)

  def by_region(
    self,
    slide_path: str | os.PathLike,
    x0: Number,
    y0: Number,
    w0: Number,
    h0: Number,
    **how: Any,
  ) -> pd.DataFrame:
    """Hits of a rectangle of a slide.

    Args:
      slide_path: the slide's file.
      x0: left, level-0 pixels.
      y0: top.
      w0: width.
      h0: height.
      **how: of `search`.

    Raises:
      ValueError: the rectangle is empty, or larger than a query may be.
      SlideError: the slide cannot be read there.
    """
    query, _ = self.region_query(slide_path, (x0, y0, w0, h0))
    return self.search(query, **how)

  def rows_query(self, ids: Any, pool: bool = True) -> Query:
    """Rows as a query: their mean, or each by itself."""
    vectors, about = self.index.vectors(ids), self.index.rows(ids)
    if not len(vectors):
      raise ValueError("a query needs at least one row")
    if pool:
      mean = vectors.mean(axis=0, keepdims=True)
      vectors = mean / np.linalg.norm(mean)
    return Query(vectors, tuple(about["slide_id"]), tuple(about["patient_id"]))

  def images_query(
    self,
    images: Sequence[Any],
    mpp: Number | None = None,
    pool: bool = True,
  ) -> Query:
    """Pictures as a query: all as one, or each by itself."""
    if not 1 <= len(images) <= PICTURES:
      raise ValueError(f"{len(images)} pictures: must be 1 to {PICTURES}")
    for number, image in enumerate(images):
      _check(number, image)
    return self._query(images, self._scale(mpp), pool)

  def _query(
    self, images: Sequence[Any], scale: Number, pool: bool = True
  ) -> Query:
    """Pictures at `scale` pixels of the index a pixel, as a query."""
    side = self.encoding.encoder.tile_px
    counts = [_count(image, scale, side) for image in images]
    if sum(counts) > TILES:
      raise ValueError(
        f"the pictures have {sum(counts):,} tiles of the index's scale, want "
        f"at most {TILES:,}: cut the place out that matters"
      )
    cut = [_tiles(image, scale, self.encoding.encoder) for image in images]
    features = self.encoding(np.concatenate([tiles for tiles, _ in cut]))
    of = np.repeat(np.arange(len(cut)), [len(tiles) for tiles, _ in cut])
    vectors, weights = [], np.empty(len(of), np.float32)
    groups = [of >= 0] if pool else [of == i for i in range(len(cut))]
    for mine in groups:
      vector, weights[mine] = self.encoding.pooled(features[mine])
      vectors.append(vector)
    boxes = np.concatenate([boxes for _, boxes in cut])
    return Query(np.stack(vectors), (), (), weights, of, boxes)

  def _scale(self, mpp: Number | None) -> Number:
    """Pixels of the index a pixel of the picture."""
    ours = self.encoding.mpp
    if mpp is None:
      return 1.0
    if not 0.05 <= mpp <= 20:
      raise ValueError(f"mpp = {mpp}: must be from 0.05 to 20 um per pixel")
    if ours is None:
      raise ValueError(
        "the index does not know the um per pixel of its tiles, so that the "
        "scale of a picture is of no use: run the job index again with "
        "config.index.mpp, or give none"
      )
    return mpp / ours

  def region_query(
    self,
    slide_path: str | os.PathLike,
    region: Sequence[Number],
  ) -> tuple[Query, Picture]:
    """A rectangle of a slide as a query, and its picture."""
    x0, y0, w0, h0 = region
    if not (np.isfinite([x0, y0, w0, h0]).all() and w0 > 0 and h0 > 0):
      raise ValueError(f"region {(x0, y0, w0, h0)}: must have an area")
    mine = self._slides_of(slide_path)
    known = mine["mpp"].dropna().tolist()
    with Slide.open(slide_path, known[0] if known else None) as slide:
      width, height = slide.level0_px
      if x0 >= width or y0 >= height or x0 + w0 <= 0 or y0 + h0 <= 0:
        raise ValueError(
          f"region {(x0, y0, w0, h0)}: lies outside the slide of {width}x"
          f"{height} px"
        )
      mpp = self.encoding.mpp or slide.mpp
      size = [max(1, round(side * slide.mpp / mpp)) for side in (w0, h0)]
      side = self.encoding.encoder.tile_px
      # At least a tile is read, of what is really around the place.
      size = [max(n, side) for n in size]
      if max(size) > SIDES[1]:
        raise ValueError(
          f"a region of {size[0]} x {size[1]} px at the index's {mpp:g} um/px: "
          f"at most {SIDES[1]} on a side"
        )
      picture = slide.read_region((x0 + w0 / 2, y0 + h0 / 2), tuple(size), mpp)
    return _owned(self._query([picture], 1.0), mine), picture

  def _slides_of(self, path: str | os.PathLike) -> pd.DataFrame:
    """The slide of the index that is in a file, by its place or its name."""
    slides = self.index.slides
    found = slides[slides["path"] == str(pathlib.Path(path).resolve())]
    if not len(found):
      name = names.stem(path)
      known = names.match([name], {i: i for i in slides["slide_id"]})
      found = slides[slides["slide_id"].isin(known.values())]
    return found

  def search(
    self,
    query: Query,
    k: int = 20,
    where: Mapping[str, Any] | None = None,
    exclude: Literal["none", "slide", "patient"] = "slide",
    apart: Number = 2.0,
    exact: bool = False,
  ) -> pd.DataFrame:
    """The hits of a query; see `Index.search`.

    Args:
      query: vectors, and whose they are.
      k: hits, at most.
      where: filters.
      exclude: whether hits of the query's own slides or patients are left out.
      apart: hits closer than so many sides on one slide are found once.
      exact: looks at all rows, on the devices.
    """
    return self.index.search(
      query.vectors,
      k,
      where,
      exclude_slide=query.slides if exclude == "slide" else (),
      exclude_patient=query.patients if exclude == "patient" else (),
      apart=apart,
      exact=exact,
    )


def _owned(query: Query, slides: pd.DataFrame) -> Query:
  """The query, and whose it is."""
  return dataclasses.replace(
    query,
    slides=tuple(slides["slide_id"]),
    patients=tuple(slides["patient_id"]),
  )


def _check(number: int, image: Any) -> None:
  """Refuses what is no picture, or none of a useful size."""
  low, high = SIDES
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
    raise ValueError(
      f"picture {number}: {image.dtype} {image.shape}, must be uint8 (h, w, 3)"
    )
  if min(image.shape[:2]) < low or max(image.shape[:2]) > high:
    raise ValueError(
      f"picture {number} has {image.shape[1]} x {image.shape[0]} pixels: its "
      f"sides must have {low} to {high}"
    )


def _count(image: Picture, scale: Number, side: int) -> int:
  """How many tiles a picture has."""
  rows, columns = (max(1, int(n * scale) // side) for n in image.shape[:2])
  return rows * columns


def _tiles(
  image: Picture, scale: Number, encoder: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Tiles of a picture with what is around them, and their boxes."""
  side, window = encoder.tile_px, encoder.window_px
  height, width = image.shape[:2]
  image = np.broadcast_to(image, (height, width, 3))
  if scale != 1:
    size = [max(1, round(n * scale)) for n in (width, height)]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, size, interpolation=how)
  rows, columns = (max(1, n // side) for n in image.shape[:2])
  # Where the first tile begins, and where the last window ends.
  top = (image.shape[0] - rows * side) // 2
  left = (image.shape[1] - columns * side) // 2
  rim = (window - side) // 2
  low = max(0, rim - min(top, left))
  high = low + side + window
  # `symmetric` goes on and on, however small the picture is.
  padded = np.pad(image, ((low, high), (low, high), (0, 0)), "symmetric")
  tiles, boxes = [], []
  for y in range(top, top + rows * side, side):
    for x in range(left, left + columns * side, side):
      corner = y - rim + low, x - rim + low
      tiles.append(
        padded[corner[0] : corner[0] + window, corner[1] : corner[1] + window]
      )
      boxes.append((x, y, side, side))
  glass = np.array([(tile.min(axis=2) > _GLASS).mean() for tile in tiles])
  kept = np.flatnonzero(glass < 0.9)
  kept = kept if len(kept) else np.arange(len(tiles))
  boxes = np.array(boxes, np.float32) / scale
  return np.stack(tiles)[kept], boxes[kept]
