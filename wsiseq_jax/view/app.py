"""The application: what is answered at which address.

    /                                   the page; its files are below /page/
    /api/cohort                         the list of slides
    /api/slides/KEY                     one slide: size, scale, levels, layers
    /api/slides/KEY/thumbnail           a small picture
    /api/slides/KEY/tiles/LEVEL/X/Y     a tile of a level
    /api/slides/KEY/region?x=&y=&w=&h=  a small picture of a part, level-0 px
    /api/slides/KEY/layers/NAME         what lies on it
    /api/search                         POST: see `similar.py`

KEY is made of a slide's id (`registry.py`); nothing that a browser sends is
ever part of a path.
"""

import contextlib
import json
import mimetypes
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from data_prep.files.errors import SlideError, as_slide_error
from data_prep.wsi.find import SlideEntry
from wsiseq_jax import launch
from wsiseq_jax.view import layers as view_layers
from wsiseq_jax.view import pyramid, registry
from wsiseq_jax.view.guard import TooLarge
from wsiseq_jax.view.pyramid import Pyramid
from wsiseq_jax.view.shelf import ByteCache, Shelf
from wsiseq_jax.view.similar import BadRequest, Similar

THUMBNAIL_PX, HIT_PX = 240, 200
_SEARCHES = 2  # whose bodies are in memory at once
# Tiles carry the version of their file in the address.
_KEEP = {"cache-control": "private, max-age=86400"}
_ASK = {"cache-control": "no-cache"}
_NUMBER = re.compile(r"[0-9]{1,7}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_PAGE = pathlib.Path(__file__).parent / "page"
_SENT_WITH_PAGE = (".html", ".css", ".js", ".svg")


class Viewer:
  """Answers requests; `app` is the ASGI application.

  Args:
    slides: the slides that can be seen.
    shelf: where they are opened.
    layers: what lies on them.
    similar: the search; None without an index.
    parts: scripts of others that the page loads, by file name.
    tile_cache_bytes: of tiles that had to be encoded.
    threads: requests that read slides at once.
  """

  def __init__(
    self,
    slides: registry.Registry,
    shelf: Shelf,
    layers: view_layers.LayerFinder,
    similar: Similar | None,
    parts: dict[str, bytes],
    tile_cache_bytes: int,
    threads: int,
  ):
    self._slides, self._shelf, self._layers = slides, shelf, layers
    self._similar, self._threads = similar, threads
    self._cache = ByteCache(tile_cache_bytes)
    self._said: set[tuple[str, str]] = set()
    self._searches = anyio.Semaphore(_SEARCHES)
    # Read once: no address ever becomes a path.
    self._files = {
      path.name: path.read_bytes()
      for path in sorted(_PAGE.iterdir())
      if path.suffix in _SENT_WITH_PAGE
    } | parts
    one = "/api/slides/{key}"
    self.app = Starlette(
      routes=[
        Route("/", self._index),
        Route("/page/{name}", self._file),
        Route("/api/cohort", self._cohort),
        Route(one, self._slide),
        Route(f"{one}/thumbnail", self._thumbnail),
        Route(f"{one}/tiles/{{level}}/{{column}}/{{row}}", self._tile),
        Route(f"{one}/region", self._region),
        Route(f"{one}/layers/{{name}}", self._layer),
        Route("/api/search", self._search, methods=["POST"]),
      ],
      exception_handlers={HTTPException: _said_no},
      lifespan=self._lifespan,
    )

  @contextlib.asynccontextmanager
  async def _lifespan(self, _: Starlette):
    anyio.to_thread.current_default_thread_limiter().total_tokens = (
      self._threads
    )
    yield
    self._shelf.close()

  # The page.

  async def _index(self, _: Request) -> Response:
    return self._sent("index.html")

  async def _file(self, request: Request) -> Response:
    return self._sent(request.path_params["name"])

  def _sent(self, name: str) -> Response:
    if name not in self._files:
      raise HTTPException(404)
    kind = mimetypes.guess_type(name)[0]
    return Response(self._files[name], media_type=kind, headers=_ASK)

  async def _cohort(self, _: Request) -> Response:
    return JSONResponse(
      {"slides": self._slides.rows(), "search": self._similar is not None},
      headers=_ASK,
    )

  # One slide.

  def _entry(self, request: Request) -> SlideEntry:
    entry = self._slides.entries.get(request.path_params["key"])
    if entry is None:
      raise HTTPException(404)
    return entry

  @contextlib.contextmanager
  def _opened(self, entry: SlideEntry) -> Iterator[Pyramid]:
    """Whatever is wrong with a slide is an answer, and a line for its owner."""
    try:
      with self._shelf.borrowed(entry) as found:
        yield found
    except (HTTPException, BadRequest):
      raise
    except Exception as error:  # readers raise whatever they like
      wrong = as_slide_error(error, entry.slide_id, "view")
      if (wrong.slide, wrong.message) not in self._said:
        self._said.add((wrong.slide, wrong.message))
        launch.log(f"{wrong.slide}: {wrong.message}")
      # The message may name paths; the code does not.
      raise HTTPException(422, wrong.error) from error

  def _slide(self, request: Request) -> Response:
    entry = self._entry(request)
    with self._opened(entry) as found:
      slide, has_scale = found.slide, found.has_scale
      layers = self._layers.of(entry, has_scale)
      answer = {
        "key": request.path_params["key"],
        "id": entry.slide_id,
        "patient": entry.patient_id,
        "label": entry.label or "",
        "size": slide.level0_px,
        "bounds": slide.bounds,
        "mpp": slide.mpp if has_scale else None,
        "mpp_origin": slide.mpp_origin if has_scale else "unknown",
        "vendor": slide.vendor,
        "reader": slide.reader,
        "version": registry.version(entry),
        "levels": [
          {
            "size": level.size_px,
            "tile": level.tile_px,
            "grid": level.grid,
            "downsample": level.downsample,
          }
          for level in found.levels
        ],
        "layers": view_layers.described(layers),
      }
    return JSONResponse(answer, headers=_ASK)

  def _thumbnail(self, request: Request) -> Response:
    entry = self._entry(request)

    def make() -> bytes:
      with self._opened(entry) as found:
        return pyramid.encode(found.thumbnail(THUMBNAIL_PX)[0])

    return self._picture(("thumbnail", entry.slide_id), make)

  def _picture(self, key: Any, make: Callable[[], bytes]) -> Response:
    data = self._cache.get(key, make)
    return Response(data, media_type=pyramid.media_type(data), headers=_KEEP)

  def _tile(self, request: Request) -> Response:
    entry = self._entry(request)
    level, column, row = (
      _whole(request.path_params[name]) for name in ("level", "column", "row")
    )
    with self._opened(entry) as found:
      if level >= len(found.levels):
        raise HTTPException(404)
      columns, rows = found.levels[level].grid
      if column >= columns or row >= rows:
        raise HTTPException(404)
      data = found.stored(level, column, row)
      if data is not None:
        return Response(data, media_type="image/jpeg", headers=_KEEP)
      return self._picture(
        (entry.slide_id, level, column, row),
        lambda: found.made(level, column, row),
      )

  def _region(self, request: Request) -> Response:
    entry = self._entry(request)
    x, y, width, height = (
      _decimal(request.query_params.get(name, "")) for name in "xywh"
    )
    with self._opened(entry) as found:
      level0_w, level0_h = found.slide.level0_px
      is_inside = -width < x < level0_w and -height < y < level0_h
      if not (1 <= width <= level0_w and 1 <= height <= level0_h and is_inside):
        raise HTTPException(404)
      return self._picture(
        (entry.slide_id, x, y, width, height),
        lambda: pyramid.encode(found.region(x, y, width, height, HIT_PX)[0]),
      )

  def _layer(self, request: Request) -> Response:
    entry = self._entry(request)
    with self._opened(entry) as found:
      layers = self._layers.of(entry, found.has_scale)
      if request.path_params["name"] not in layers:
        raise HTTPException(404)
      layer = layers[request.path_params["name"]]
      data, downsample = layer.make(found)
    kind = {
      view_layers.PICTURE: "image/png",
      view_layers.SHAPES: "application/json",
      view_layers.POINTS: "application/octet-stream",
    }[layer.kind]
    headers = {**_ASK, "x-level0-per-px": f"{downsample:.9g}"}
    return Response(data, media_type=kind, headers=headers)

  async def _search(self, request: Request) -> Response:
    if self._similar is None:
      raise HTTPException(404)
    if self._searches.statistics().tasks_waiting >= _SEARCHES:
      raise HTTPException(503, "busy: try again")
    async with self._searches:
      try:
        asked = json.loads(await request.body())
        hits = await run_in_threadpool(self._similar.search, asked)
      except TooLarge as error:
        raise HTTPException(
          413, "too large", {"connection": "close"}
        ) from error
      except BadRequest as error:
        raise HTTPException(400, str(error)) from error
      except (ValueError, RecursionError) as error:
        raise HTTPException(400, "want JSON") from error
      except SlideError as error:
        launch.log(f"search: {error.message}")
        raise HTTPException(422, error.error) from error
    return JSONResponse({"hits": hits}, headers={"cache-control": "no-store"})


def _whole(text: str) -> int:
  if not _NUMBER.fullmatch(text):
    raise HTTPException(404)
  return int(text)


def _decimal(text: str) -> float:
  if not _DECIMAL.fullmatch(text):
    raise HTTPException(404)
  return float(text)


async def _said_no(_: Request, error: HTTPException) -> Response:
  return JSONResponse(
    {"error": error.detail},
    status_code=error.status_code,
    headers={"cache-control": "no-store", **(error.headers or {})},
  )
