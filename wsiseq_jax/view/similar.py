"""What "find similar" asks of the index, and what the page is told.

Pictures stay in memory: they are sent inside the request, decoded, searched
with, and forgotten.
"""

import base64
import io
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_prep.wsi import annotations, pictures
from data_prep.wsi.scale import MPP_RANGE
from wsiseq_jax.view.registry import Registry
from wsiseq_jax.view.shelf import Shelf

MOST_PICTURES = 5
PICTURE_PX = (128, 4096)  # of each side
_PICTURE_BYTES = 16 << 20
_FORMATS = ("PNG", "JPEG", "BMP")
_MOST_POINTS = 2000  # of a polygon
_MOST_ROWS = 100
Number = int | float
_COLUMNS = ("slide_id", "patient_id", "cohort", "label")


class BadRequest(ValueError):
  """A request that cannot be answered; the words are for its sender."""


class Similar:
  """Searches for what people point at.

  Args:
    searcher: `wsiseq_jax.search.query.Searcher`.
    hits: how many are shown.
    registry: the slides that can be seen.
    shelf: where they are opened.
  """

  def __init__(
    self, searcher: Any, hits: int, registry: Registry, shelf: Shelf
  ):
    self._searcher = searcher
    self._hits, self._registry, self._shelf = hits, registry, shelf
    self._lock = threading.Lock()  # one search at once: the encoder's memory

  def search(self, asked: Any) -> list[dict[str, Any]]:
    """Answers the body of a request.

    Args:
      asked: one of `{"slide": key, "polygon": [[x, y], ...]}` in level-0
        pixels, `{"rows": [number, ...]}` or `{"pictures": [base64, ...],
        "mpp": number}`.

    Returns:
      Hits, nearest first.

    Raises:
      BadRequest: it is none of these.
      SlideError: the slide cannot be read there.
    """
    if not isinstance(asked, Mapping):
      raise BadRequest("want an object")
    if "polygon" in asked:
      return self._by_polygon(asked)
    if "rows" in asked:
      rows = asked["rows"]
      is_list = isinstance(rows, list) and 0 < len(rows) <= _MOST_ROWS
      if not is_list or not all(type(v) is int and 0 <= v for v in rows):
        raise BadRequest(f"rows: want 1 to {_MOST_ROWS} numbers")
      return self._shown(lambda s: s.by_rows(rows, k=self._hits))
    if "pictures" in asked:
      found = _pictures(asked["pictures"])
      low, high = MPP_RANGE
      mpp = _number(asked.get("mpp"), "mpp", low, high)
      return self._shown(lambda s: s.by_images(found, mpp, k=self._hits))
    raise BadRequest("want polygon, rows or pictures")

  def _by_polygon(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    entry = self._registry.entries.get(str(asked.get("slide")))
    if entry is None:
      raise BadRequest("no such slide")
    points = asked["polygon"]
    if not isinstance(points, list) or not 3 <= len(points) <= _MOST_POINTS:
      raise BadRequest(f"polygon: want 3 to {_MOST_POINTS} points")
    with self._shelf.borrowed(entry) as pyramid:
      if not pyramid.has_scale:
        raise BadRequest("the scale of this slide is unknown")
      width, height = pyramid.slide.level0_px
      ring = np.array(
        [
          [_number(x, "x", 0, width), _number(y, "y", 0, height)]
          for x, y in (_pair(point) for point in points)
        ]
      )
      (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
      if min(x1 - x0, y1 - y0) < 1:
        raise BadRequest("polygon: it has no area")
      corners = {tuple(point) for point in ring.tolist()}
      if corners == {(x0, y0), (x1, y0), (x1, y1), (x0, y1)}:
        box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
        return self._shown(
          lambda s: s.by_region(entry.path, *box, k=self._hits)
        )
      picture, downsample = pyramid.region(
        x0, y0, x1 - x0, y1 - y0, PICTURE_PX[1]
      )
      mpp = pyramid.slide.mpp * downsample
    # Glass around it: tiles of glass say nothing of the tissue.
    inside = annotations.fill(
      [(ring - (x0, y0)) / downsample], picture.shape[:2]
    )
    picture = np.where(inside[..., None], picture, np.uint8(255))
    return self._shown(
      lambda s: s.by_images([picture], mpp, slide_path=entry.path, k=self._hits)
    )

  def _shown(self, ask) -> list[dict[str, Any]]:
    with self._lock:
      try:
        table = ask(self._searcher)
      except ValueError as error:
        raise BadRequest(str(error)) from error
    hits = []
    for row in table.to_dict("records"):
      hit = {name: str(row[name]) for name in _COLUMNS}
      for name in ("x0", "y0", "w0", "h0", "mpp", "distance", "z"):
        hit[name] = _plain(row[name])
      hit["background_share"] = _plain(row["background_share"])
      hit["row"] = int(row["row"])
      hit["key"] = self._registry.key_of_id.get(str(row["slide_id"]), "")
      hits.append(hit)
    return hits


def _plain(value: Any) -> float | None:
  """What JSON can say of a number."""
  value = float(value)
  return value if math.isfinite(value) else None


def _number(value: Any, name: str, low: Number, high: Number) -> float:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not low <= value <= high:
    raise BadRequest(f"{name}: want a number from {low:g} to {high:g}")
  return float(value)


def _pair(point: Any) -> Sequence[Any]:
  if not isinstance(point, list) or len(point) != 2:
    raise BadRequest("polygon: want points of x and y")
  return point


def _pictures(given: Any) -> list[UInt8[np.ndarray, "h w 3"]]:
  """The pictures of a request."""
  if not isinstance(given, list) or not 0 < len(given) <= MOST_PICTURES:
    raise BadRequest(f"pictures: want 1 to {MOST_PICTURES}")
  return [_picture(text, i + 1) for i, text in enumerate(given)]


def _picture(text: Any, number: int) -> UInt8[np.ndarray, "h w 3"]:
  name = f"picture {number}"
  if not isinstance(text, str) or len(text) > _PICTURE_BYTES * 4 // 3:
    raise BadRequest(f"{name}: want at most {_PICTURE_BYTES >> 20} MB")
  low, high = PICTURE_PX
  try:
    data = base64.b64decode(text, validate=True)
    # The header first: a small file may be a picture of any size.
    sides = pictures.size(io.BytesIO(data), _FORMATS)
  except Exception as error:  # decoders raise whatever they like
    raise BadRequest(f"{name}: want PNG, JPEG or BMP") from error
  if not all(low <= side <= high for side in sides):
    raise BadRequest(
      f"{name}: {sides[1]}x{sides[0]} px, want {low} to {high} px a side"
    )
  try:
    found = pictures.decode(data, formats=_FORMATS)
  except Exception as error:
    raise BadRequest(f"{name}: it is damaged") from error
  if found.dtype != np.uint8 or found.shape[2] not in (1, 3):
    raise BadRequest(f"{name}: want 8 bits a colour")
  return np.ascontiguousarray(np.broadcast_to(found, (*found.shape[:2], 3)))
