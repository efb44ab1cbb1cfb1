"""What every request has to pass, and what every answer carries.

The server shows what may be patients' data, and a page of any other site that
is open in the same browser can send it requests. Hence: the name it is asked
for by is one of its own (a foreign one may have been pointed at this address),
requests that another site caused are refused, and so is whatever is larger
than it has to be. An address other than loopback asks for a token.
"""

import hashlib
import hmac
import http.cookies
import json
import urllib.parse
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "wsiseq_view"
MOST_BODY_BYTES = 64 << 20
_METHODS = ("GET", "HEAD", "POST")
_POLICY = "; ".join(
  (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "worker-src blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  )
)
_HEADERS = (
  (b"content-security-policy", _POLICY.encode()),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
  (b"cross-origin-resource-policy", b"same-origin"),
  (b"cross-origin-opener-policy", b"same-origin"),
)


class TooLarge(Exception):
  """Raised to who reads a body of more bytes than any request needs."""


def short_hash(text: str) -> str:
  """Twelve letters that tell texts apart."""
  return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def host_of(value: str) -> str:
  """The name in a Host header, without its port.

  Example:
    >>> host_of("localhost:8008"), host_of("[::1]:80"), host_of("A.example")
    ('localhost', '::1', 'a.example')
  """
  if value.startswith("["):
    return value[1:].partition("]")[0].lower()
  return value.partition(":")[0].lower()


class Guard:
  """Wraps the application.

  Args:
    app: what answers.
    names: names the server may be asked for by.
    token: what a browser must know; '' asks nobody.
  """

  def __init__(self, app: ASGIApp, names: Collection[str], token: str = ""):
    self._app, self._token = app, token
    # Servers on other ports of this host have cookies of their own.
    self._cookie = f"{COOKIE}_{short_hash(token)}"
    self._names = frozenset(name.lower() for name in names)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request, or refuses it."""
    if scope["type"] == "lifespan":
      await self._app(scope, receive, send)
      return
    if scope["type"] != "http":  # a websocket: nothing here speaks it
      await send({"type": "websocket.close", "code": 1008})
      return
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
      headers.setdefault(name.decode("latin-1").lower(), []).append(
        value.decode("latin-1")
      )
    refused = self._refusal(scope, headers)
    if refused:
      await _answer(send, *refused)
      return
    await self._app(scope, _counted(receive), _with_headers(send))

  def _refusal(self, scope: Scope, headers: dict[str, list[str]]):
    """(status, words, headers) of why a request is refused; None if not."""
    hosts = headers.get("host", [])
    if len(hosts) != 1 or host_of(hosts[0]) not in self._names:
      return 421, "this server is not known by that name"
    if scope["method"] not in _METHODS:
      return 405, "not allowed"
    if headers.get("sec-fetch-site", ["none"])[0] not in (
      "same-origin",
      "none",
    ) and not (scope["method"] == "GET" and scope["path"] == "/"):
      return 403, "asked by another site"
    length = headers.get("content-length", ["0"])[0]
    if not length.isdigit() or len(length) > 12:
      return 400, "no length"
    if int(length) > (MOST_BODY_BYTES if scope["method"] == "POST" else 0):
      return 413, "too large", (b"connection", b"close")
    if scope["method"] == "POST":
      origin = headers.get("origin", [""])[0]
      if origin and urllib.parse.urlsplit(origin).netloc != hosts[0]:
        return 403, "asked by another site"
      kind = headers.get("content-type", [""])[0].partition(";")[0]
      if kind.strip().lower() != "application/json":
        return 415, "only JSON is taken"
    return self._token_refusal(scope, headers)

  def _token_refusal(self, scope: Scope, headers: dict[str, list[str]]):
    if not self._token:
      return None
    query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"))
    given = query.get("token", [""])[0]
    if given and _same(given, self._token):
      # The address bar, and with it the history, forgets the token at once.
      cookie = (
        f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
      )
      return (
        303,
        "welcome",
        (b"location", b"/"),
        (b"set-cookie", cookie.encode()),
      )
    jar = http.cookies.SimpleCookie()
    try:
      jar.load(headers.get("cookie", [""])[0])
    except http.cookies.CookieError:
      jar.clear()
    known = jar.get(self._cookie)
    if known is not None and _same(known.value, self._token):
      return None
    return 401, "open the address that the server printed, with its token"


def _same(given: str, token: str) -> bool:
  return hmac.compare_digest(given.encode(), token.encode())


def _with_headers(send: Send) -> Send:
  """Sends answers with the headers that all have."""

  async def sent(message: Message) -> None:
    if message["type"] == "http.response.start":
      message = {**message, "headers": [*message["headers"], *_HEADERS]}
    await send(message)

  return sent


def _counted(receive: Receive) -> Receive:
  """Ends a request whose body is longer than it may be, stated or not."""
  taken = 0

  async def counted() -> Message:
    nonlocal taken
    message = await receive()
    taken += len(message.get("body", b""))
    if taken > MOST_BODY_BYTES:
      raise TooLarge
    return message

  return counted


async def _answer(
  send: Send, status: int, words: str, *more: tuple[bytes, bytes]
) -> None:
  body = json.dumps({"error": words}).encode()
  headers = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(body)).encode()),
    (b"cache-control", b"no-store"),
    *_HEADERS,
    *more,
  ]
  await send(
    {"type": "http.response.start", "status": status, "headers": headers}
  )
  await send({"type": "http.response.body", "body": body})
