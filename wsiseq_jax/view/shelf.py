"""Slides that are open, and tiles that were encoded: the last used of each."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator

from data_prep.files.errors import SlideError
from data_prep.wsi.find import SlideEntry
from data_prep.wsi.slides import Slide
from wsiseq_jax import launch
from wsiseq_jax.view.pyramid import Pyramid

# Of each open slide: most tiles are sent as stored, and OpenSlide has its own.
_DECODED_BYTES = 16 << 20
_ANY_MPP = 1.0  # of slides that state none; no one is shown it


@dataclasses.dataclass
class _Place:
  """An open slide and who uses it."""

  opening: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  pyramid: Pyramid | None = None
  users: int = 0


class Shelf:
  """At most so many open slides; a slide in use stays open.

  Args:
    open_slides: how many.
    default_mpp: um per level-0 pixel of slides that state none; 0 = unknown.
    encoding: see `Pyramid`.
  """

  def __init__(self, open_slides: int, default_mpp: float, encoding: str):
    self._most, self._encoding = open_slides, encoding
    self._default_mpp = default_mpp
    self._places: collections.OrderedDict[str, _Place] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()
    self._said: set[str] = set()  # slides whose scale was complained of

  @contextlib.contextmanager
  def borrowed(self, entry: SlideEntry) -> Iterator[Pyramid]:
    """Opens a slide, unless it is open, and keeps it so within `with`.

    Raises:
      SlideError: it cannot be opened.
    """
    with self._lock:
      place = self._places.setdefault(entry.slide_id, _Place())
      self._places.move_to_end(entry.slide_id)
      place.users += 1
    try:
      with place.opening:
        if place.pyramid is None:
          place.pyramid = self._open(entry)
      yield place.pyramid
    finally:
      with self._lock:
        place.users -= 1
        self._put_back()

  def _open(self, entry: SlideEntry) -> Pyramid:
    def opened(mpp: float | None) -> Slide:
      default = self._default_mpp or _ANY_MPP
      return Slide.open(
        entry.path,
        mpp,
        default,
        entry.slide_id,
        cache_bytes=_DECODED_BYTES,
      )

    try:
      slide = opened(entry.mpp)
      is_told = slide.mpp_origin != "default" or self._default_mpp > 0
    except SlideError as error:
      if error.stage != "mpp":
        raise
      # A slide of no believable scale can be looked at all the same.
      if entry.slide_id not in self._said:
        self._said.add(entry.slide_id)
        launch.log(f"{entry.slide_id}: {error.message}")
      slide, is_told = opened(_ANY_MPP), False
    return Pyramid(slide, is_told, self._encoding)

  def close(self) -> None:
    """Closes all slides that nobody uses."""
    with self._lock:
      self._most = 0
      self._put_back()

  def _put_back(self) -> None:
    for name, place in list(self._places.items()):
      if len(self._places) <= self._most:
        return
      if not place.users:
        del self._places[name]
        if place.pyramid is not None:
          place.pyramid.close()


class ByteCache:
  """What was made last, up to a number of bytes."""

  def __init__(self, most_bytes: int):
    self._most, self._bytes = most_bytes, 0
    self._kept: collections.OrderedDict[Hashable, bytes] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
    """What is kept by this key, or else is made and kept."""
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
    data = make()
    with self._lock:
      if key not in self._kept:
        self._kept[key] = data
        self._bytes += len(data)
      while self._bytes > self._most and len(self._kept) > 1:
        self._bytes -= len(self._kept.popitem(last=False)[1])
    return data
