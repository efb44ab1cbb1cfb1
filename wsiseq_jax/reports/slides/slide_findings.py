"""What was found on a slide: its regions, and its highest and lowest tiles."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from wsiseq_jax.maps.regions import Region
from wsiseq_jax.reports import page
from wsiseq_jax.reports.slides.slide_files import Drawn, TilePicture
from wsiseq_jax.reports.slides.slide_stage import LETTERS

STYLE = """
.tiles { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(46%, 160px), 1fr)); }
.tiles img { width: 100%; border-radius: 4px; } .tiles figure { margin: 0; }
.empty { display: grid; place-items: center; aspect-ratio: 1; padding: 8px;
  background: var(--panel); color: var(--soft); border-radius: 4px;
  font-size: .8rem; text-align: center; }
"""


def regions(drawn: Drawn, settings: Mapping[str, Any]) -> str:
  """The table of regions, and what they are not."""
  cut = settings["tile_threshold"]
  least = settings["min_area_um2"] / 1e6
  best = float(drawn.tile_map.probability.max())
  parts = []
  if drawn.regions:
    rows = [
      (
        number,
        f"{region.area_mm2:.4f}",
        f"{region.mean:.3f}",
        f"{region.max:.3f}",
        region.tiles,
        "{:.0f}, {:.0f}".format(*_middle(region, drawn)),
      )
      for number, region in enumerate(drawn.regions, 1)
    ]
    header = (
      "region", "area, mm²", "mean probability", "highest", "tiles",
      "middle, x, y",
    )  # fmt: skip
    parts.append(page.table(header, rows, stack=True))
  else:
    parts.append(
      f"<p>No region: no tile says more than {cut:g}; the highest says "
      f"{best:.3f}.</p>"
      if best <= cut
      else f"<p>No region: tiles say up to {best:.3f}, but none above {cut:g} "
      "is left after smoothing, cleaning and the least area.</p>"
    )
  if drawn.small_regions:
    parts.append(
      f"<p>{drawn.small_regions} more are smaller than {least:g} mm² and left "
      "out.</p>"
    )
  if settings["smooth_um"]:
    parts.append(
      f"<p>The map was smoothed over {settings['smooth_um']:g} µm first: "
      "single tiles, below, may say more than their region.</p>"
    )
  parts.append(
    f'<p class="limit">Regions are where the probability map is above {cut:g} '
    "(config.report.tile_threshold), which is not the threshold of the slide. "
    "They are as coarse as tiles and no outline of a lesion: a region's area "
    f"is not a lesion's. {_counted_from(drawn)}</p>"
  )
  return "".join(parts)


def _middle(region: Region, drawn: Drawn) -> tuple[float, float]:
  """Middle of the box around a region, as QuPath counts."""
  ring = np.asarray(region.rings[0])
  x, y = (ring.min(axis=0) + ring.max(axis=0)) / 2
  left, top = drawn.bounds_xy or (0, 0)
  return float(x - left), float(y - top)


def _counted_from(drawn: Drawn) -> str:
  """What coordinates on the page are counted from."""
  if drawn.bounds_xy is None:
    return (
      "Coordinates are pixels of level 0. The slide could not be opened: if "
      "its scanned part does not begin at (0, 0), as in MRXS files, QuPath "
      "counts from elsewhere."
    )
  if drawn.bounds_xy != (0, 0):
    left, top = drawn.bounds_xy
    return (
      "Coordinates are pixels of level 0 as QuPath counts them, from the "
      f"corner of the scanned part; OpenSlide's are larger by {left}, {top}."
    )
  return "Coordinates are pixels of level 0, as in QuPath."


def tiles(drawn: Drawn, settings: Mapping[str, Any]) -> str:
  """Pictures of the highest and the lowest tiles."""
  by, apart = settings["tiles_by"], settings["tiles_apart_um"]
  if not drawn.highest:
    return "<p>There are too few tiles to show any.</p>"
  far = f", no two nearer than {apart:g} µm" if apart else ""
  parts = [
    f"<p>Highest and lowest {by} of tiles{far}. The frame is the tile; around "
    "it is what surrounds it. x, y: its top left corner. "
    f"{_counted_from(drawn)}</p>"
  ]
  for heading, shown, marks in (
    (f"Highest {by}", drawn.highest, LETTERS),
    (f"Lowest {by}", drawn.lowest, ""),
  ):
    cards = "".join(
      _tile_card(tile, marks[rank : rank + 1], drawn)
      for rank, tile in enumerate(shown)
    )
    parts.append(f'<h3>{heading}</h3><div class="tiles">{cards}</div>')
  parts.append(
    '<p class="limit">A model may be sure for a reason that has nothing to do '
    "with disease: pen, folds, blur, stain. Look at these tiles first.</p>"
  )
  return "".join(parts)


def _tile_card(tile: TilePicture, letter: str, drawn: Drawn) -> str:
  left, top = drawn.bounds_xy or (0, 0)
  x, y = tile.xy[0] - left, tile.xy[1] - top
  text = f"<br>x {x:.0f}, y {y:.0f}<br>tile {tile.index}"
  mark = f"<strong>{letter} {tile.score:.3f}</strong>"
  if tile.picture is None:
    content = '<div class="empty">no picture of the slide here</div>'
  else:
    content = page.image(_framed(tile), f"tile {tile.index}", 85)
  return page.figure(content, mark + text)


def _framed(tile: TilePicture) -> UInt8[np.ndarray, "h w 3"]:
  """The surroundings with a frame just outside the tile."""
  left, top, side = tile.inner
  picture = tile.picture.copy()
  if side < min(picture.shape[:2]):
    for gap, ink, wide in ((2, (255, 255, 255), 3), (2, (20, 20, 26), 1)):
      corners = (left - gap, top - gap), (left + side + 1, top + side + 1)
      cv2.rectangle(picture, *corners, ink, wide)
  return picture
