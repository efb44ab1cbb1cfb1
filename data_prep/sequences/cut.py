"""Picks region centres on the tissue of a slide and makes their records.

Everything is stated in micrometres at a target resolution, so that one config
means the same tissue on every scanner. `geometries/` say where frames lie.

Deviation: the reference samples centres without a seed, falls back to the whole
grid, blank glass included, when few centres are valid, and erodes the mask by a
number of thumbnail pixels, that is by an amount of tissue that depends on the
size of the slide. Here a centre counts only if every frame of its path holds
tissue, and a slide with few such centres gives few sequences.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, Float, Int

from data_prep import records
from data_prep.files.errors import SlideError
from data_prep.sequences.geometries import Centre, Geometry, Readable
from data_prep.sequences.geometries.base import Panels
from data_prep.wsi import damage


def slide_rng(seed: int, slide_id: str) -> np.random.Generator:
  """Returns the random generator of one slide.

  A slide gives the same sequences alone, among others, in any order and after a
  restart.
  """
  digest = hashlib.sha256(f"{seed}/{slide_id}".encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def choose_centres(
  mask: Bool[np.ndarray, "h w"],
  downsample: float,
  slide: Readable,
  geometry: Geometry,
  *,
  spacing_um: float,
  max_centres: int,
  min_tissue: float,
  all_headings: bool,
  rng: np.random.Generator,
) -> list[Centre]:
  """Picks region centres on a square grid over the tissue.

  A path counts if every one of its frames lies on the slide and at least
  `min_tissue` of each frame's window is tissue; for `zoom` this is asked of the
  finest frame only, since the point of the others is what is around.
  """
  if not mask.any():
    return []
  scale = geometry.mpp / slide.mpp
  spacing = spacing_um / slide.mpp or geometry.spacing_px * scale
  xy = _grid(mask, downsample, spacing)
  paths = geometry.paths()
  share = _tissue_share(mask, geometry, scale / downsample)

  def on_tissue(offsets: Float[np.ndarray, "a t 2"]) -> Bool[np.ndarray, "m a"]:
    points = xy[:, None, None] + offsets[None] * scale
    index = np.floor(points / downsample).astype(int)
    index = np.clip(index, 0, np.array(mask.shape[::-1]) - 1)
    return (share[index[..., 1], index[..., 0]] >= min_tissue).all(axis=2)

  # The first frame alone rules most of the grid out, at little memory.
  xy = xy[on_tissue(paths[:, :1]).any(axis=1)]
  valid = on_tissue(paths)
  box = geometry.extent()
  low = xy[:, None] + box[None, :, :2] * scale
  high = xy[:, None] + box[None, :, 2:] * scale
  # A thousandth of a pixel: a slide exactly as large as a window is enough.
  valid &= (low >= -1e-3).all(axis=2)
  valid &= (high <= np.array(slide.level0_px) + 1e-3).all(axis=2)
  if all_headings:
    valid &= valid.all(axis=1, keepdims=True)
  good = np.flatnonzero(valid.any(axis=1))
  if max_centres and len(good) > max_centres:
    good = np.sort(rng.choice(good, max_centres, replace=False))
  return [
    Centre(
      (int(xy[i, 0]), int(xy[i, 1])), tuple(np.flatnonzero(valid[i]).tolist())
    )
    for i in good
  ]


def _grid(
  mask: Bool[np.ndarray, "h w"], downsample: float, spacing: float
) -> Int[np.ndarray, "m 2"]:
  """Whole level-0 points `spacing` apart, centred on the tissue's box."""
  axes = []
  for axis in (0, 1):
    along = np.flatnonzero(mask.any(axis=axis))
    low, high = along[0] * downsample, (along[-1] + 1) * downsample
    count = int((high - low) / spacing) + 1
    offsets = (np.arange(count) - (count - 1) / 2) * spacing
    axes.append(np.floor((low + high) / 2 + offsets).astype(int))
  x, y = np.meshgrid(*axes)
  return np.stack([x.ravel(), y.ravel()], axis=1)


def _tissue_share(
  mask: Bool[np.ndarray, "h w"], geometry: Geometry, mask_px: float
) -> Float[np.ndarray, "h w"]:
  """Share of tissue in a window around every mask pixel."""
  # An upright square of the same area: a thumbnail is too coarse for the
  # rotation of a window to matter.
  side = max(1, round(math.sqrt(math.prod(geometry.window_px)) * mask_px))
  return cv2.blur(
    mask.astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT
  )


def cut_sequences(
  slide: Readable,
  centre: Centre,
  geometry: Geometry,
  *,
  slide_id: str,
  patient_id: str,
  jpeg: Mapping[str, Any],
  lost: list[SlideError] | None = None,
) -> Iterator[records.SequenceRecord]:
  """Reads around one centre and yields the sequences that start there.

  Args:
    slide: what is read.
    centre: where they start.
    geometry: where their frames lie.
    slide_id: of the records.
    patient_id: of the records.
    jpeg: `config.jpeg`.
    lost: takes an error for each sequence that touches a damaged tile.

  Raises:
    SlideError: the slide cannot be read; without `lost`, a tile is damaged.
  """
  scale = geometry.mpp / slide.mpp
  paths = geometry.paths()
  for path, panels in _panels(slide, centre, geometry, lost):
    heading = geometry.heading(path)
    level0_xy = np.array(centre.xy) + paths[path] * scale
    is_straight = not math.isnan(heading)
    name = f"h{heading:g}" if is_straight else type(geometry).__name__.lower()
    yield records.SequenceRecord(
      sequence_id=f"{slide_id}/x{centre.xy[0]}_y{centre.xy[1]}_{name}",
      slide_id=slide_id,
      patient_id=patient_id,
      panels=tuple(
        simplejpeg.encode_jpeg(
          panel, quality=jpeg["quality"], colorsubsampling=jpeg["subsampling"]
        )
        for panel in panels
      ),
      frame_panel=geometry.frame_panel(),
      frame_box=geometry.frame_box(),
      frame_level0_xy=level0_xy.astype(np.float32),
      time=geometry.time(),
      frame_mask=np.ones(geometry.frames, np.float32),
      mpp=geometry.mpp,
      heading_deg=heading,
    )


def _panels(
  slide: Readable,
  centre: Centre,
  geometry: Geometry,
  lost: list[SlideError] | None,
) -> Iterator[tuple[int, Panels]]:
  """Cuts the paths of a centre that touch no damage."""
  left = list(centre.paths)
  try:
    for path, panels in geometry.cut(slide, centre):
      yield path, panels
      left.remove(path)
  except SlideError as error:
    if lost is None or error.error != damage.CODE:
      raise
    if len(centre.paths) == 1:
      lost.append(error)
      return
    # Alone, a path reads less than all together.
    for path in left:
      one = Centre(centre.xy, (path,))
      yield from _panels(slide, one, geometry, lost)
