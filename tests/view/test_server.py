"""Answers of a real server, and requests that mean harm."""

import concurrent.futures
import contextlib
import io
import json
import socket

import numpy as np
import openslide
import psutil
import pytest
from PIL import Image

from data_prep.files.errors import SlideError
from data_prep.wsi.slides import Slide
from tests.data_prep.wsi import tiny_slides
from tests.view import server
from wsiseq_jax.view.pyramid import Pyramid


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("slides")
  tiny_slides.write(place / "one.tiff", tiny_slides.picture())
  bad = tiny_slides.write(place / "bad.tiff", tiny_slides.picture(seed=1))
  tiny_slides.damage(bad, "zeroed", 0, 1, 1)
  (place / "broken.tiff").write_bytes(b"II*\0" + bytes(4000))
  return place


@pytest.fixture(scope="module")
def viewer(folder):
  with server.running(
    folder, server.FakeSearcher([("one", 10.0, 20.0)])
  ) as client:
    yield client


def pixels(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_tiles_are_those_of_openslide(viewer, folder):
  about = viewer.json(viewer.slide("one"))
  assert about["size"] == [700, 500] and about["mpp"] == pytest.approx(0.5)
  assert [v["downsample"] for v in about["levels"]] == [1, 2, 4]
  assert about["levels"][0]["grid"] == [6, 4]
  slide = openslide.OpenSlide(folder / "one.tiff")
  for column, row in ((0, 0), (2, 1), (5, 3)):
    status, data, _ = viewer.tile("one", 0, column, row)
    assert status == 200
    corner = column * 128, row * 128
    width, height = min(128, 700 - corner[0]), min(128, 500 - corner[1])
    want = slide.read_region(corner, 0, (width, height)).convert("RGB")
    np.testing.assert_array_equal(pixels(data)[:height, :width], want)


def test_a_level_between_is_the_mean_of_the_finer(viewer, folder):
  _, data, _ = viewer.tile("one", 1, 0, 0)
  fine = openslide.OpenSlide(folder / "one.tiff").read_region(
    (0, 0), 0, (512, 500)
  )
  fine = np.asarray(fine.convert("RGB"), np.float64)
  mean = fine.reshape(250, 2, 256, 2, 3).mean(axis=(1, 3))
  assert np.abs(pixels(data) - mean).mean() < 1.5  # of JPEG


def test_a_damaged_tile_spoils_no_other(viewer):
  assert viewer.tile("bad", 0, 1, 1)[0] == 422
  for column, row in ((0, 0), (2, 2), (4, 3)):
    assert viewer.tile("bad", 0, column, row)[0] == 200
  assert viewer.tile("bad", 0, 1, 1)[0] == 422


def test_nor_does_it_in_openslide(folder):
  slide = Slide.open(folder / "bad.tiff", reader="openslide")
  with contextlib.closing(Pyramid(slide)) as pyramid:
    assert not any(level.is_stored for level in pyramid.levels)
    with pytest.raises(SlideError):
      pyramid.made(0, 0, 0)  # 256 px: it lies in there
    assert pyramid.pixels(0, 1, 1).shape == (244, 256, 3)


def test_a_file_that_is_no_slide_is_said_to_be(viewer):
  status, data, _ = viewer.ask(viewer.slide("broken"))
  assert status == 422
  # No path of this machine.
  assert json.loads(data)["error"].isidentifier()


@pytest.mark.parametrize(
  "path",
  [
    "/page/../../../etc/passwd",
    "/page/..%2f..%2f..%2fetc%2fpasswd",
    "/page/%2e%2e%5c%2e%2e%5cetc",
    "/page//etc/passwd",
    "//etc/passwd",
    "/page/main.js%00.html",
    "/api/slides/..%2fone",
    "/api/slides/one",
    "/api/slides/%2Fetc%2Fpasswd/thumbnail",
    "KEY/tiles/0/-1/0",
    "KEY/tiles/-1/0/0",
    "KEY/tiles/9/0/0",
    "KEY/tiles/0/6/0",
    "KEY/tiles/0/0/4",
    "KEY/tiles/0/1e3/0",
    "KEY/tiles/0/0/" + "9" * 400,
    "KEY/tiles/0/0/" + "9" * 6000,
    "KEY/tiles/0/%D9%A1/0",
    "KEY/tiles/0/0/0/../../../../../etc/passwd",
    "KEY/layers/..",
    "KEY/layers/none",
    "KEY/region?x=0&y=0&w=1e9&h=10",
    "KEY/region?x=0&y=0&w=99999999&h=99999999",
    "KEY/region?x=nan&y=0&w=10&h=10",
    "KEY/region?x=900&y=0&w=10&h=10",
    "KEY/region",
  ],
)
def test_addresses_that_do_not_exist(viewer, path):
  status, data, _ = viewer.ask(path.replace("KEY", viewer.slide("one")))
  assert status == 404
  assert b"root:" not in data
  assert viewer.is_alive


@pytest.mark.parametrize(
  ("headers", "status"),
  [
    ({"host": "evil.example"}, 421),
    ({"host": "localhost.evil.example"}, 421),
    ({"host": ""}, 421),
    ({"sec_fetch_site": "cross-site"}, 403),
    ({"content_length": "5"}, 413),
    ({"host": "127.0.0.1"}, 200),
  ],
)
def test_who_asks_and_by_what_name(viewer, headers, status):
  assert viewer.ask("/api/cohort", **headers)[0] == status


def test_two_hosts_are_refused(viewer):
  with socket.create_connection(viewer.address) as line:
    line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
    assert line.recv(100).split()[1] in (b"400", b"421")


@pytest.mark.parametrize(
  ("headers", "status"),
  [
    ({"content_type": "text/plain"}, 415),
    ({"content_type": "application/json", "origin": "http://evil"}, 403),
    ({"content_type": "application/json"}, 400),
  ],
)
def test_what_another_site_could_post(viewer, headers, status):
  assert viewer.ask("/api/search", "POST", b"{", **headers)[0] == status
  assert viewer.ask("/api/cohort", "DELETE")[0] == 405


def test_every_answer_has_a_policy(viewer):
  for path in ("/", "/nowhere"):
    headers = {k.lower(): v for k, v in viewer.ask(path)[2].items()}
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_gigabyte_is_refused(viewer):
  head = (
    "POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: application/json\r\n"
  )
  block = bytes(1 << 20)
  memory = psutil.Process().memory_info().rss
  for length in ("Content-Length: 1000000000", "Transfer-Encoding: chunked"):
    sent = 0
    with socket.create_connection(viewer.address) as line:
      line.sendall(f"{head}{length}\r\n\r\n".encode())
      with contextlib.suppress(ConnectionError):
        for _ in range(1000):
          part = block
          if "chunked" in length:
            part = b"%x\r\n%s\r\n" % (len(block), block)
          line.sendall(part)
          sent += len(block)
      with contextlib.suppress(ConnectionError):
        assert b" 413 " in line.recv(1000)
    assert sent < 100 << 20
    assert viewer.is_alive
  assert psutil.Process().memory_info().rss - memory < 300 << 20


def test_two_hundred_clients_at_once(viewer):
  def visit(number):
    return [
      viewer.tile("one", 0, (number + i) % 6, number % 4)[0] for i in range(3)
    ]

  with concurrent.futures.ThreadPoolExecutor(200) as pool:
    found = [code for codes in pool.map(visit, range(200)) for code in codes]
  assert set(found) == {200}
  assert viewer.is_alive


def test_a_token_is_asked_for(folder):
  with server.running(folder / "one.tiff", token="secret") as client:
    for path in ("/", "/api/cohort", "/?token=wrong"):
      assert client.ask(path)[0] == 401
    status, _, headers = client.ask("/?token=secret")
    assert status == 303 and headers["location"] == "/"
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client.ask("/", cookie=cookie.partition(";")[0])[0] == 200
