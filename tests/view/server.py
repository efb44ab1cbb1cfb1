"""A real server on a free port, and a client that sends what it is told to."""

import contextlib
import dataclasses
import http.client
import json
import socket

import pandas as pd

from data_prep.files import schema
from wsiseq_jax.view import job, registry, settings


@dataclasses.dataclass
class Client:
  """Asks one server, a connection each time."""

  address: tuple
  keys: dict  # of slides, by id

  def ask(self, path, method="GET", body=None, **headers):
    """(status, bytes, headers)."""
    line = http.client.HTTPConnection(*self.address, timeout=60)
    sent = {"host": f"localhost:{self.address[1]}"}
    sent |= {name.replace("_", "-"): v for name, v in headers.items()}
    with contextlib.closing(line):
      line.request(method, path, body, sent)
      answer = line.getresponse()
      return answer.status, answer.read(), dict(answer.getheaders())

  def json(self, path):
    status, data, _ = self.ask(path)
    assert status == 200, data
    return json.loads(data)

  def post(self, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, data, _ = self.ask(
      "/api/search", "POST", data, content_type="application/json"
    )
    return status, json.loads(data)

  def slide(self, slide_id, path=""):
    return f"/api/slides/{self.keys[slide_id]}{path}"

  def tile(self, slide_id, level, column, row):
    return self.ask(self.slide(slide_id, f"/tiles/{level}/{column}/{row}"))

  @property
  def is_alive(self):
    return self.ask("/")[0] == 200


class FakeSearcher:
  """Answers every question with the same places; remembers the questions."""

  def __init__(self, places):
    self.places, self.asked = places, []

  def _answer(self, *asked):
    self.asked.append(asked)
    return pd.DataFrame(
      [
        {
          **{"query": 0, "rank": i, "row": 10 + i, "slide_id": slide},
          **{"patient_id": f"p_{slide}", "cohort": "here", "label": "x"},
          **{"x0": x, "y0": y, "w0": 64.0, "h0": 64.0, "mpp": 0.5},
          **{"distance": 0.1 * i, "z": -3.0, "background_share": 0.01},
        }
        for i, (slide, x, y) in enumerate(self.places)
      ]
    )

  def by_rows(self, ids, k):
    return self._answer("rows", ids)

  def by_images(self, pictures, mpp, slide_path=None, *, k):
    return self._answer("images", pictures, mpp, slide_path)

  def by_region(self, path, x0, y0, w0, h0, k):
    return self._answer("region", str(path), x0, y0, w0, h0)


def config(slides, server=None, **more):
  """Settings of a viewer on a free port."""
  return schema.build(
    settings.Settings,
    {
      "data": {"slides": str(slides), **more.pop("data", {})},
      "layers": more.pop("layers", {}),
      "search": {},
      "server": {"port": 0, **(server or {})},
    },
  )


@contextlib.contextmanager
def running(slides, searcher=None, token="", scripts=None, **more):
  """A server of the slides of a folder."""
  found = config(slides, **more)
  known = job.registered(found.data.slides, found.data.table)
  guarded = job.build(found, known, token, scripts or {}, searcher)
  with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
    with job.serving(guarded, listening):
      keys = {
        e.slide_id: registry.key_of(e.slide_id) for e in known.entries.values()
      }
      yield Client(listening.getsockname(), keys)
