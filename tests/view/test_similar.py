"""What a question asks of the index."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data_prep.wsi import tiny_slides
from tests.view import server


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
  place = tmp_path_factory.mktemp("slides")
  path = tiny_slides.write(place / "one.tiff", tiny_slides.picture())
  searcher = server.FakeSearcher([("one", 10.0, 20.0), ("gone", 0.0, 0.0)])
  with server.running(path, searcher) as client:
    yield client, searcher, path


def png(width, height):
  file = io.BytesIO()
  Image.fromarray(np.full((height, width, 3), 9, np.uint8)).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


def test_a_rectangle_is_asked_for_as_such(asked):
  client, searcher, path = asked
  ring = [[100, 50], [300, 50], [300, 250], [100, 250]]
  status, found = client.post({"slide": client.keys["one"], "polygon": ring})
  assert status == 200
  assert searcher.asked[-1] == ("region", str(path), 100, 50, 200, 200)
  first, second = found["hits"]
  assert first["key"] == client.keys["one"] and first["x0"] == 10
  assert second["key"] == ""  # indexed, and not shown here


def test_glass_lies_around_a_polygon(asked):
  client, searcher, path = asked
  ring = [[100, 50], [400, 50], [100, 350]]
  body = {"slide": client.keys["one"], "polygon": ring}
  assert client.post(body)[0] == 200
  kind, (picture,), mpp, whose = searcher.asked[-1]
  assert kind == "images" and mpp == pytest.approx(0.5)
  assert str(whose) == str(path)  # its own slide is left out
  assert picture.shape == (300, 300, 3)
  assert (picture[200:, 200:] == 255).all()
  assert (picture[:50, :50] < 255).all()


def test_rows_and_pictures(asked):
  client, searcher, _ = asked
  assert client.post({"rows": [3, 4]})[0] == 200
  assert searcher.asked[-1] == ("rows", [3, 4])
  body = {"pictures": [png(128, 200)], "mpp": 0.5}
  assert client.post(body)[0] == 200
  _, (picture,), mpp, whose = searcher.asked[-1]
  assert whose is None
  assert picture.shape == (200, 128, 3) and (picture == 9).all() and mpp == 0.5


def bomb():
  """A PNG of a few bytes that says it is 60,000 px wide."""

  def chunk(name, data):
    return (
      struct.pack(">I", len(data))
      + name
      + data
      + struct.pack(">I", zlib.crc32(name + data))
    )

  head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"")
  return base64.b64encode(data).decode()


@pytest.mark.parametrize(
  ("body", "words"),
  [
    ({}, "want polygon"),
    ([], "want an object"),
    (b"[" * 5000, "want JSON"),
    ({"rows": []}, "rows"),
    ({"rows": [-1]}, "rows"),
    ({"rows": list(range(101))}, "rows"),
    ({"rows": ["../x"]}, "rows"),
    ({"slide": "/etc/passwd", "polygon": [[0, 0]] * 3}, "no such slide"),
    ({"slide": "KEY", "polygon": [[0, 0]]}, "3 to 2000"),
    ({"slide": "KEY", "polygon": [[0, 0]] * 3}, "no area"),
    ({"slide": "KEY", "polygon": [[0, 0], [1e9, 0], [0, 9]]}, "x: want"),
    ({"slide": "KEY", "polygon": [[0, 0], [True, 0], [0, 9]]}, "x: want"),
    ({"slide": "KEY", "polygon": [[0, 0], [9], [0, 9]]}, "points of x and y"),
    ({"pictures": [], "mpp": 0.5}, "1 to 5"),
    ({"pictures": ["x"] * 6, "mpp": 0.5}, "1 to 5"),
    ({"pictures": ["not base64"], "mpp": 0.5}, "PNG, JPEG or BMP"),
    ({"pictures": [png(64, 200)], "mpp": 0.5}, "128 to 4096"),
    ({"pictures": [bomb()], "mpp": 0.5}, "128 to 4096"),
    ({"pictures": [png(200, 200)], "mpp": 99}, "mpp"),
  ],
)
def test_questions_that_are_none(asked, body, words):
  client, _, _ = asked
  if isinstance(body, dict) and body.get("slide") == "KEY":
    body = body | {"slide": client.keys["one"]}
  status, answer = client.post(body)
  assert status == 400
  # Pillow has words of its own for a bomb; they are not passed on.
  assert words in answer["error"] or "PNG, JPEG or BMP" in answer["error"]
  assert client.is_alive
