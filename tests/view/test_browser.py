"""The page in a real browser: Chromium, driven by Playwright.

Skipped where there is no Chromium, no Playwright, or no OpenSeadragon: nothing
is installed or fetched here.
"""

import contextlib
import io
import json
import pathlib
import shutil

import numpy as np
import openslide
import pytest
from PIL import Image

from data_prep.files import tables
from tests.data_prep.wsi import tiny_slides
from tests.view import server
from wsiseq_jax.view import parts, registry

api = pytest.importorskip("playwright.sync_api")
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium here"),
]
# What the browser makes of a tile that the page has loaded.
_TILE = """async (path) => {
  const loaded = performance.getEntriesByType('resource')
    .map(({name}) => new URL(name))
    .find(({pathname}) => pathname === path);
  const bitmap = await createImageBitmap(await (await fetch(loaded)).blob());
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  return [bitmap.width, bitmap.height, Array.from(
    context.getImageData(0, 0, bitmap.width, bitmap.height).data)];
}"""


@pytest.fixture(scope="module")
def script():
  try:
    return {"openseadragon.js": parts.openseadragon()}
  except ValueError as error:
    pytest.skip(str(error))


@contextlib.contextmanager
def opened(client, fragment=""):
  with api.sync_playwright() as play:
    browser = play.chromium.launch(
      executable_path=_CHROMIUM, args=["--no-sandbox"]
    )
    page = browser.new_page(viewport={"width": 1300, "height": 800})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://localhost:{client.address[1]}/{fragment}")
    page.wait_for_selector(".bar strong:not(:empty)")
    yield page
    assert problems == []
    browser.close()


def name_of(page):
  return page.inner_text(".bar strong")


def open_slide(page, client, slide_id):
  page.click(f"#slides button[data-key='{client.keys[slide_id]}']")
  page.wait_for_function(
    "n => document.querySelector('.bar strong').textContent === n", arg=slide_id
  )


def drag(page, dx):
  box = page.locator(".stage").first.bounding_box()
  x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
  page.mouse.move(x, y)
  page.mouse.down()
  page.mouse.move(x + dx / 2, y + dx / 2)
  page.mouse.move(x + dx, y + dx)
  page.mouse.up()


def test_pans_draws_searches_and_flies_to_a_hit(tmp_path, script):
  for number in range(2):
    tiny_slides.write(
      tmp_path / f"s{number}.tiff", tiny_slides.picture(seed=number)
    )
  searcher = server.FakeSearcher([("s1", 320.0, 192.0)])
  with (
    server.running(tmp_path, searcher, scripts=script) as client,
    opened(client) as page,
  ):
    assert name_of(page) == "s0"
    before = page.url
    drag(page, 60)
    page.wait_for_function("u => location.href !== u", arg=before)
    page.click("#rectangle")
    drag(page, 80)
    assert "Rectangle 1" in page.inner_text("#shapes")
    page.click("#similar")
    page.locator(".card.hit").first.click()
    page.wait_for_function(
      "() => document.querySelector('.bar strong').textContent === 's1'"
    )
    page.wait_for_function("() => location.hash.includes('box=0,320,192,64')")
    assert searcher.asked[0][0] == "region"
    # The link opens the same view.
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_function("u => location.href === u", arg=link)
    page.wait_for_selector(".bar strong:not(:empty)")
    assert name_of(page) == "s1"


@pytest.mark.parametrize("encoding", ["stored", "png"])
def test_pixels_of_shown_tiles_are_those_of_openslide(
  tmp_path, script, encoding
):
  how = {"compression": "deflate"} if encoding == "png" else {}
  path = tiny_slides.write(
    tmp_path / "s.tiff", tiny_slides.picture(1200, 900), **how
  )
  with (
    server.running(path, scripts=script, server={"encoding": "png"}) as client,
    opened(client, f"#a={registry.key_of('s')},600,450,0.5") as page,
  ):
    about = client.json(client.slide("s"))
    side = about["levels"][0]["tile"][0]
    at = (600 // side, 450 // side)  # in the middle of the view
    name = client.slide("s", f"/tiles/0/{at[0]}/{at[1]}")
    page.wait_for_function(
      "p => performance.getEntriesByType('resource')"
      ".some(({name}) => new URL(name).pathname === p)",
      arg=name,
    )
    width, height, data = page.evaluate(_TILE, name)
  shown = np.array(data, np.uint8).reshape(height, width, 4)
  want = openslide.OpenSlide(path).read_region(
    (at[0] * side, at[1] * side), 0, (side, side)
  )
  np.testing.assert_array_equal(shown, np.asarray(want))


def test_every_real_slide_opens(real_data, script):
  folders = [real_data / n for n in ("slides", "native", "dicom")]
  spec = ",".join(str(folder) for folder in folders)
  with (
    server.running(spec, scripts=script) as client,
    opened(client) as page,
  ):
    assert len(client.keys) >= 20
    for slide_id in client.keys:
      open_slide(page, client, slide_id)
      page.wait_for_timeout(150)
      assert "cannot" not in page.inner_text("#say")
    picture = Image.open(io.BytesIO(page.locator(".stage").screenshot()))
    assert np.asarray(picture.convert("L")).std() > 10  # no blank page


def test_works_without_a_mouse(tmp_path, script):
  tiny_slides.write(tmp_path / "s.tiff", tiny_slides.picture())
  with (
    server.running(tmp_path, scripts=script) as client,
    opened(client) as page,
  ):
    page.focus("#middle")
    page.keyboard.press("Enter")
    assert "Rectangle 1" in page.inner_text("#shapes")
    page.focus(".openseadragon-canvas")
    before = page.inner_text(".view")
    page.keyboard.press("+")
    page.wait_for_function(
      "b => document.querySelector('.view').textContent !== b", arg=before
    )
    page.check("input[name=tissue]")
    page.wait_for_selector("[data-legend=tissue] li")


def test_polygons_are_drawn_exported_and_asked_for(tmp_path, script):
  """And pictures: what is asked with besides a place of a slide."""
  slides = tmp_path / "slides"
  slides.mkdir()
  tiny_slides.write(slides / "s.tiff", tiny_slides.picture())
  shown = tmp_path / "asked.png"
  Image.fromarray(tiny_slides.picture(160, 140, seed=3)).save(shown)
  searcher = server.FakeSearcher([("s", 320.0, 192.0)])
  with (
    server.running(slides, searcher, scripts=script) as client,
    opened(client) as page,
  ):
    page.click("#polygon")
    box = page.locator(".stage").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for dx, dy in ((0, 0), (90, 0), (0, 70), (300, 300)):
      page.mouse.click(x + dx, y + dy)
      page.wait_for_timeout(500)  # no double click
    page.keyboard.press("Backspace")  # takes the last corner back
    page.keyboard.press("Enter")
    assert "Polygon 1" in page.inner_text("#shapes")
    with page.expect_download() as got:
      page.click("#geojson")
    found = json.loads(pathlib.Path(got.value.path()).read_text())
    (ring,) = found["features"][0]["geometry"]["coordinates"]
    assert got.value.suggested_filename == "s.geojson"
    assert len(ring) == 4 and ring[0] == ring[-1]
    # Legs as drawn: 90 to the right, 70 down.
    (x0, y0), (x1, _), (x2, y2) = ring[:3]
    assert (x1 - x0) / (y2 - y0) == pytest.approx(90 / 70, rel=0.05)
    assert x2 == x0
    with page.expect_download() as got:
      page.click("#csv")
    (row,) = tables.rows_of(got.value.path())
    assert row["slide_id"] == "s" and row["kind"] == "polygon"
    assert float(row["w0"]) == x1 - x0
    page.click("#similar")
    page.locator(".card.hit").first.wait_for()
    page.click("#pictures summary")
    page.set_input_files("#files", shown)
    page.fill("#mpp", "0.25")
    page.click("#ask")
    page.wait_for_function(
      "() => document.querySelector('#found').textContent.includes('pictures')"
    )
    kind, pictures, mpp, _ = searcher.asked[-1]
    assert (kind, mpp) == ("images", 0.25)
    np.testing.assert_array_equal(pictures[0], np.asarray(Image.open(shown)))
    page.click("#clear")
    assert page.inner_text("#shapes") == ""


def test_two_slides_zoom_as_one(tmp_path, script):
  for number in range(2):
    tiny_slides.write(
      tmp_path / f"s{number}.tiff", tiny_slides.picture(seed=number)
    )
  views = """() => ['a', 'b'].map((name) => new URLSearchParams(
    location.hash.slice(1)).get(name).split(',').slice(1).map(Number))"""
  with server.running(tmp_path, scripts=script) as client, opened(client) as p:
    p.click("#compare")
    p.wait_for_function("() => location.hash.includes('&b=')")
    p.locator(".stage").nth(1).click()
    open_slide_on = f"#slides button[data-key='{client.keys['s1']}']"
    p.click(open_slide_on)
    p.wait_for_function(
      "k => location.hash.includes('b=' + k)", arg=client.keys["s1"]
    )
    p.click("#link")
    p.wait_for_function("() => location.hash.includes('link=1')")
    p.wait_for_timeout(700)
    (_, _, before), _ = p.evaluate(views)
    p.locator(".openseadragon-canvas").first.focus()
    p.keyboard.press("+")
    p.wait_for_function(
      f"b => ({views})()[0][2] < 0.95 * b", arg=before, timeout=10_000
    )
    p.wait_for_timeout(700)
    left, right = p.evaluate(views)
    # Of one scale: as large, and as far moved.
    assert left[2] == pytest.approx(right[2], rel=0.01)
    p.click("#link")
    p.locator(".openseadragon-canvas").first.focus()
    p.keyboard.press("+")
    p.wait_for_timeout(1000)
    after = p.evaluate(views)
    assert after[0][2] < 0.95 * left[2]
    assert after[1][2] == pytest.approx(right[2], rel=0.01)
