"""The job `view`: serves the page until it is stopped."""

import contextlib
import http.client
import json
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from ml_collections import ConfigDict

from data_prep.files import schema
from data_prep.synthetic import slides as synthetic
from data_prep.wsi import find
from wsiseq_jax import jobs, launch
from wsiseq_jax.view import parts
from wsiseq_jax.view.app import Viewer
from wsiseq_jax.view.guard import Guard
from wsiseq_jax.view.layers import LayerFinder
from wsiseq_jax.view.registry import Registry
from wsiseq_jax.view.settings import LOOPBACK, Server, Settings
from wsiseq_jax.view.shelf import Shelf
from wsiseq_jax.view.similar import Similar

SYNTHETIC = "synthetic"
_CONNECTIONS = 1000
_SECONDS = 60  # for an answer of the check


def run(config: ConfigDict) -> None:
  """The job; ends when it is interrupted, or after `server.check`.

  Args:
    config: see `configs/view.py`.

  Raises:
    ValueError: a bad config, no slide, a port in use, or parts not fetched.
    SystemExit: the check found a slide that cannot be shown.
  """
  jobs.check(config, "view")
  settings = schema.build(Settings, config)
  with contextlib.ExitStack() as stack:
    if settings.data.slides == SYNTHETIC:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      source = synthetic.make_cohort(folder, slides=2, size_px=(1024, 768))
    else:
      source = settings.data.slides
    slides = registered(str(source), settings.data.table)
    token = token_for(settings.server)
    scripts, searcher = scripts_of(settings.server), searcher_of(settings)
    guarded = build(settings, slides, token, scripts, searcher)
    opened = stack.enter_context(_socket(settings.server))
    port = opened.getsockname()[1]
    if settings.server.check:
      with serving(guarded, opened):
        problems = check(slides, opened.getsockname(), token)
      launch.log(
        f"view: {len(slides.entries)} slides, {len(problems)} cannot be shown"
      )
      if problems:
        sys.exit(3)
      return
    host = settings.server.host
    at = "localhost" if host in LOOPBACK else _named(host)
    query = f"?token={token}" if token else ""
    launch.log(
      f"view: {len(slides.entries)} slides at http://{at}:{port}/{query} "
      "(Ctrl-C ends it)"
    )
    with contextlib.suppress(KeyboardInterrupt):
      _uvicorn(guarded).run(sockets=[opened])


def registered(source: str, table: str) -> Registry:
  """The slides that a user named; says which cannot be used.

  Raises:
    ValueError: there is none.
  """
  try:
    entries, refused = find.find_slides(source, table)
  except ValueError as error:
    raise ValueError(f"config.data.slides: {error}") from error
  for error in refused:
    launch.log(f"view: {error.slide}: {error.message}")
  if not entries:
    raise ValueError(f"config.data.slides = {source!r}: there is no slide")
  return Registry(entries)


def token_for(server: Server) -> str:
  """A new token; '' where none is asked for."""
  needs_one = server.token or server.host not in LOOPBACK
  return secrets.token_urlsafe(24) if needs_one else ""


def scripts_of(server: Server) -> dict[str, bytes]:
  """Scripts of others; the check opens no browser, and needs none."""
  if server.check:
    return {}
  return {"openseadragon.js": parts.openseadragon()}


def searcher_of(settings: Settings) -> Any:
  """What searches the index; None without one.

  Raises:
    ValueError: there is no index, or its encoder is not there.
  """
  if not settings.search.index:
    return None
  from wsiseq_jax.search import query  # an encoder: only for who searches

  return query.Searcher(settings.search.index)


def build(
  settings: Settings,
  slides: Registry,
  token: str,
  scripts: dict[str, bytes],
  searcher: Any = None,
) -> Guard:
  """The application, guarded.

  Raises:
    ValueError: a layer that is not there.
  """
  server = settings.server
  shelf = Shelf(server.open_slides, settings.data.default_mpp, server.encoding)
  ids = [entry.slide_id for entry in slides.entries.values()]
  layers = LayerFinder(settings.layers, settings.data.annotations, ids)
  similar = None
  if searcher is not None:
    similar = Similar(searcher, settings.search.hits, slides, shelf)
  viewer = Viewer(
    slides,
    shelf,
    layers,
    similar,
    scripts,
    server.tile_cache_mb << 20,
    server.threads,
  )
  names = {*LOOPBACK, server.host, *server.names}
  if server.host not in LOOPBACK:
    names |= {socket.gethostname(), socket.getfqdn()}
  return Guard(viewer.app, names, token)


def _named(host: str) -> str:
  """What to write into an address bar for an address bound to."""
  if host in ("0.0.0.0", "::"):
    return socket.getfqdn()
  return f"[{host}]" if ":" in host else host


def _socket(server: Server) -> socket.socket:
  family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
  try:
    return socket.create_server(
      (server.host, server.port), family=family, backlog=_CONNECTIONS
    )
  except OSError as error:
    raise ValueError(
      f"config.server.host = {server.host!r}, config.server.port = "
      f"{server.port}: {error.strerror or error}; port 0 takes a free one"
    ) from error


def _uvicorn(guarded: Guard) -> uvicorn.Server:
  return uvicorn.Server(
    uvicorn.Config(
      guarded,
      http="h11",
      ws="none",
      log_level="warning",
      access_log=False,
      server_header=False,
      proxy_headers=False,
      limit_concurrency=_CONNECTIONS,
      timeout_keep_alive=20,
      timeout_graceful_shutdown=2,
    )
  )


@contextlib.contextmanager
def serving(guarded: Guard, opened: socket.socket) -> Iterator[None]:
  """Serves from a thread, as long as `with` lasts."""
  server = _uvicorn(guarded)
  thread = threading.Thread(target=server.run, args=([opened],))
  thread.start()
  try:
    yield
  finally:
    server.should_exit = True
    thread.join()


def check(slides: Registry, address: tuple, token: str) -> dict[str, str]:
  """Asks for the page and for two tiles and the layers of each slide.

  Returns:
    What was answered instead of a picture, by slide.
  """
  asker = _Asker(address, token)
  for path in ("/", "/page/main.js", "/api/cohort"):
    asker.get(path)
  problems = {}
  for key, entry in slides.entries.items():
    at = f"/api/slides/{key}"
    try:
      slide = json.loads(asker.get(at))
      last = len(slide["levels"]) - 1
      wanted = ["thumbnail", "tiles/0/0/0", f"tiles/{last}/0/0"]
      wanted += [f"layers/{layer['name']}" for layer in slide["layers"]]
      for path in wanted:
        asker.get(f"{at}/{path}")
    except http.client.HTTPException as error:
      problems[entry.slide_id] = str(error)
      launch.log(f"view: {entry.slide_id}: {error}")
  return problems


class _Asker:
  """Asks one server, as a browser does."""

  def __init__(self, address: tuple, token: str):
    self._line = http.client.HTTPConnection(*address[:2], timeout=_SECONDS)
    self._headers = {"host": f"localhost:{address[1]}"}
    if token:
      self._line.request("GET", f"/?token={token}", headers=self._headers)
      answer = self._line.getresponse()
      answer.read()
      cookie = answer.getheader("set-cookie", "").partition(";")[0]
      self._headers["cookie"] = cookie

  def get(self, path: str) -> bytes:
    self._line.request("GET", path, headers=self._headers)
    answer = self._line.getresponse()
    data = answer.read()
    if answer.status != 200:
      raise http.client.HTTPException(
        f"{path}: {answer.status} {data.decode(errors='replace')}"
      )
    return data
