"""Many slides as one stream of tile batches, for whoever encodes them.

`events` yields, slide by slide: `Begin` (what will come), the batches, `End`.
A slide that cannot be used is a `Failed` instead, at whatever point that is
found out. While the tiles of one slide are decoded, the next ones are opened
and their tissue found, so that the stream does not pause between slides.

On the way two pictures of each slide are written: `thumbnails/<slide_id>.jpg`
and `qc/<slide_id>.jpg` with the tissue and the tiles, for the eye that checks.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool

from data_prep import shards
from data_prep.files import atomic
from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi import damage, find, qc, tiles, tissue
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slide_tissue import open_entry, tissue_of
from data_prep.wsi.slides import Slide

OK, NO_TISSUE = "ok", "no_tissue"
_TILE_COLOUR = (60, 110, 200)
_AHEAD = 2  # slides opened, their tissue found, before their turn


@dataclasses.dataclass(frozen=True)
class Settings:
  """What shapes the tiles of a slide."""

  tile_px: int  # side of a tile
  window_px: int  # side of what is read around a tile's middle
  tiles: Mapping[str, Any]  # `config.tiles` of `configs/embed_tiles.py`
  tissue: Mapping[str, Any]  # `config.tissue`

  def check(self) -> None:
    """Raises a ValueError for what does not depend on a slide."""
    try:
      tiles.check_settings(
        tile_px=self.tile_px,
        window_px=self.window_px,
        overlap_px=self.tiles["overlap_px"],
        min_tissue=self.tiles["min_tissue"],
        anchor=self.tiles["anchor"],
      )
    except ValueError as error:
      raise ValueError(f"config.tiles: {error}") from error


@dataclasses.dataclass(frozen=True)
class Begin:
  """A slide begins."""

  entry: SlideEntry  # the slide
  grid: tiles.TileGrid  # its tiles
  # what is known of it: state, scale, size, tissue; plain values
  info: Mapping[str, Any]
  tissue: Bool[np.ndarray, "h w"]  # its mask
  downsample: float  # level-0 pixels per pixel of the mask


@dataclasses.dataclass(frozen=True)
class End:
  """All tiles of the slide have been yielded."""

  # an error for each place of the slide that could not be read
  bad: tuple[SlideError, ...]
  bad_tiles: int  # tiles that were lost


@dataclasses.dataclass(frozen=True)
class Failed:
  """The slide cannot be used; nothing more of it comes."""

  entry: SlideEntry
  error: SlideError


Event = Begin | tiles.TileBatch | End | Failed


def slide_hash(
  entry: SlideEntry, settings: Settings, encoder: Mapping[str, Any]
) -> str:
  """Names everything that shapes the features of a slide.

  Labels, cases and splits do not: they may be corrected without reading the
  slides again.

  Args:
    entry: the slide.
    settings: how its tiles are cut.
    encoder: what names the encoder and its weights.

  Returns:
    sha256, hexadecimal.

  Raises:
    SlideError: the slide or its mask cannot be read.
  """
  own = find.content(dataclasses.replace(entry, patient_id=""))
  # `targets` was always empty, and when a slide is refused shapes no features:
  # both stay as they were, so that features made with them stay.
  shaping = {**dataclasses.asdict(settings), "encoder": dict(encoder)}
  shaping["tiles"] = {**settings.tiles, "max_bad_share": 0.1}
  shaping["slide"] = {**own, "targets": []}
  return shards.fingerprint(shaping)


def events(
  entries: Sequence[SlideEntry],
  settings: Settings,
  out: str | os.PathLike,
  batch_size: int,
  threads: int,
) -> Iterator[Event]:
  """Streams the tiles of slides; whatever goes wrong with one is an event.

  Args:
    entries: the slides.
    settings: how their tiles are cut.
    out: folder of the pictures.
    batch_size: tiles of a batch.
    threads: that decode.

  Yields:
    See the module docstring.
  """
  # Parallel over tiles; OpenCV's own threads would only get in the way.
  cv2.setNumThreads(1)
  todo = iter(entries)
  ahead: collections.deque = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(_AHEAD) as planners:

    def look_ahead() -> None:
      while len(ahead) < _AHEAD and (entry := next(todo, None)) is not None:
        future = planners.submit(_plan, entry, settings, pathlib.Path(out))
        ahead.append((entry, future))

    try:
      look_ahead()
      while ahead:
        entry, future = ahead.popleft()
        look_ahead()
        plan = future.result()
        yield from _slide_events(entry, plan, settings, batch_size, threads)
    finally:
      for _, future in ahead:
        if not future.cancel():
          _close(future.result())


# With what is damaged and cost nothing but a part of the thumbnail, and the
# tissue mask with its scale.
Plan = tuple[
  Slide,
  tiles.TileGrid,
  dict[str, Any],
  list[SlideError],
  Bool[np.ndarray, "h w"],
  float,
]


def _close(plan: Plan | SlideError) -> None:
  if not isinstance(plan, SlideError):
    plan[0].close()


def _slide_events(
  entry: SlideEntry,
  plan: Plan | SlideError,
  settings: Settings,
  batch_size: int,
  threads: int,
) -> Iterator[Event]:
  if isinstance(plan, SlideError):
    yield Failed(entry, plan)
    return
  slide, grid, info, notes, mask, downsample = plan
  with slide:
    yield Begin(entry, grid, info, mask, downsample)
    bad: list[SlideError] = []
    try:
      yield from tiles.read_tiles(
        slide,
        grid,
        window_px=settings.window_px,
        batch_size=batch_size,
        threads=threads,
        max_bad_share=settings.tiles["max_bad_share"],
        bad=bad,
      )
      slide.check_unchanged()
    except Exception as error:  # the one place where reading may fail at all
      yield Failed(
        entry, as_slide_error(error, entry.slide_id, "read", "config.workdir")
      )
      return
    yield End(tuple(damage.by_place([*bad, *notes])), len(bad))


def _plan(
  entry: SlideEntry, settings: Settings, out: pathlib.Path
) -> Plan | SlideError:
  """Opens a slide, finds its tissue and its tiles, and draws them."""
  stage, slide = "open", None
  try:
    wanted = settings.tiles
    slide = open_entry(entry, wanted)
    stage = "thumbnail"
    notes: list[SlideError] = []
    thumbnail, downsample = slide.thumbnail(
      settings.tissue["thumbnail_px"], notes
    )
    stage = "tissue"
    mask = tissue_of(
      entry, thumbnail, slide.mpp * downsample, settings.tissue["method"]
    )
    stage = "tiles"
    grid = tiles.tile_grid(
      slide,
      mask,
      downsample,
      tile_px=settings.tile_px,
      mpp=wanted["mpp"],
      overlap_px=wanted["overlap_px"],
      min_tissue=wanted["min_tissue"],
      anchor=wanted["anchor"],
    )
    stage = "write"
    _draw(entry.slide_id, slide, thumbnail, mask, downsample, grid, out)
    status, reason = OK, ""
    if not mask.any():
      status, reason = NO_TISSUE, tissue.why_empty(thumbnail)
    elif not len(grid):
      status, reason = (
        NO_TISSUE,
        f"no tile holds {wanted['min_tissue']:.0%} tissue "
        "(config.tiles.min_tissue)",
      )
    info = {
      "status": status,
      "reason": reason,
      "tiles": len(grid),
      "mpp": slide.mpp,
      "target_mpp": grid.mpp,
      "mpp_origin": slide.mpp_origin,
      "level0_px": list(slide.level0_px),
      "bounds_xy": list(slide.bounds[:2]),
      "reader": slide.reader,
      "tissue_mm2": tissue.tissue_mm2(mask, slide.mpp * downsample),
    }
  except Exception as error:  # the one place where opening may fail at all
    if slide is not None:
      slide.close()
    return as_slide_error(error, entry.slide_id, stage, "config.workdir")
  info = json.loads(json.dumps(info))
  return slide, grid, info, notes, mask, downsample


def _draw(
  slide_id: str,
  slide: Slide,
  thumbnail: np.ndarray,
  mask: np.ndarray,
  downsample: float,
  grid: tiles.TileGrid,
  out: pathlib.Path,
) -> None:
  picture = thumbnail.copy()
  side = grid.tile_level0 / downsample
  for x, y in grid.xy / downsample:
    corners = [(round(v), round(w)) for v, w in ((x, y), (x + side, y + side))]
    cv2.rectangle(picture, *corners, _TILE_COLOUR, 1)
  tile_um = grid.tile_px * grid.mpp
  picture = qc.qc_picture(
    picture,
    mask,
    downsample=downsample,
    mpp=slide.mpp,
    mpp_origin=slide.mpp_origin,
    title=f"{slide_id} · {len(grid):,} tiles of {tile_um:g} µm",
  )
  small = qc.shrink(thumbnail, qc.THUMBNAIL_PX)
  for folder, image in (("qc", picture), ("thumbnails", small)):
    (out / folder).mkdir(parents=True, exist_ok=True)
    atomic.write_atomic(out / folder / f"{slide_id}.jpg", qc.jpeg(image))
