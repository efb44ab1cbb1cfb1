"""Pages of slides, from made-up predictions."""

import dataclasses
import json
import shutil
import urllib.parse

import numpy as np

from data_prep.wsi.slides import Slide
from tests.maps import qupath
from tests.reports.slides.report_pages import (
  FAILED,
  MISSING,
  SIZE,
  Page,
  configured,
  rows_of,
  slide_folder,
  write_report,
)
from wsiseq_jax.maps.tile_map import TileMap


def test_all_files_are_there(written):
  assert (written.drawn, written.kept) == (4, 0)
  everything = {
    "index.html", "probability.jpg", "contribution.jpg", "tiles.csv",
    "percentile_display_only.jpg", "regions.geojson", "tiles.geojson",
    "detections.csv", "card_slide.jpg", "card_map.jpg", "done.json",
  }  # fmt: skip
  there = {p.name for p in slide_folder(written, "syn_00").glob("*.*")}
  assert there == everything
  tiles = [
    p.name for p in (slide_folder(written, "syn_00") / "tiles").iterdir()
  ]
  assert len(tiles) == 4
  assert sum(name.startswith("highest_") for name in tiles) == 2
  # What no slide was needed for.
  there = {p.name for p in slide_folder(written, MISSING).glob("*.*")}
  assert there == everything - {"card_slide.jpg"}
  there = {p.name for p in slide_folder(written, FAILED).glob("*.*")}
  assert there == {"index.html", "card_slide.jpg", "done.json"}


def test_pages_stand_alone(written):
  pages = [written.page, *written.page.parent.glob("slides/*/index.html")]
  assert len(pages) == 5
  for path in pages:
    page = Page(path)
    assert not page.open, path
    assert "Not for diagnosis" in page.text
    assert "Attention is not a diagnosis" in page.text
    for source in page.images:
      # The cohort's pictures are files: of thousands of slides, too.
      if path == written.page:
        assert (path.parent / urllib.parse.unquote(source)).is_file(), source
      else:
        assert source.startswith("data:image/jpeg;base64,")
    assert page.tags.count("script") == 1 and "link" not in page.tags
    for link in page.links:
      if link.startswith("#"):
        assert link[1:] in page.ids
      else:
        assert (path.parent / urllib.parse.unquote(link)).is_file(), link


def test_geojson_is_what_the_page_lists(made, written):
  folder = slide_folder(written, "syn_00")
  found = json.loads((folder / "regions.geojson").read_text())
  qupath.validate(found)
  assert found["features"]
  page = Page(folder / "index.html")
  for feature in found["features"]:
    area = feature["properties"]["measurements"]["Area mm^2"]
    assert f"{area:.4f}" in page.text
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert (ring >= 0).all() and (ring <= SIZE).all()
  tiles = json.loads((folder / "tiles.geojson").read_text())
  qupath.validate(tiles)
  tile_map = TileMap.load(made / "maps" / "syn_00.npz")
  listed = rows_of(folder / "tiles.csv")
  assert len(tiles["features"]) == len(listed) == len(tile_map.xy)
  best = int(tile_map.probability.argmax())
  p, place = float(listed[best]["probability"]), listed[best]
  x, y = float(place["x"]), float(place["y"])
  assert f"A {p:.3f}x {x:.0f}, y {y:.0f}tile {best}" in page.text


def test_what_cannot_be_shown_is_said(written):
  text = Page(slide_folder(written, MISSING) / "index.html").text
  assert "There is no picture of this slide: " in text
  assert "White: no picture of the slide" in text
  assert "QuPath's origin is taken to be (0, 0)" in text
  text = Page(slide_folder(written, FAILED) / "index.html").text
  assert "Failure: no tissue (it has no tile)" in text
  assert set(written.problems) == {MISSING}
  listed = rows_of(written.page.parent / "errors.csv")
  assert [row["slide_id"] for row in listed] == [MISSING]
  text = Page(written.page).text
  assert "1 of 4 slides have no picture" in text
  failures = text[text.rindex("Failures of prediction") :]
  assert FAILED in failures and MISSING in failures


def test_bounds_are_taken_off_for_qupath(made, tmp_path, monkeypatch):
  open_slide = Slide.__init__

  def with_bounds(self, *args, **named):
    open_slide(self, *args, **named)
    self.bounds = (40, 20, 400, 300)

  monkeypatch.setattr(Slide, "__init__", with_bounds)
  config = configured(
    made, made / "slides" / "syn_00.tiff", out=str(tmp_path), tiles=1,
    smooth_um=20.0, min_area_um2=1e6,
  )  # fmt: skip
  write_report(config)
  folder = tmp_path / "slides" / "syn_00"
  first = json.loads((folder / "tiles.geojson").read_text())["features"][0]
  corner = TileMap.load(made / "maps" / "syn_00.npz").xy[0]
  np.testing.assert_allclose(
    first["geometry"]["coordinates"][0][0], corner - [40, 20]
  )
  text = Page(folder / "index.html").text
  assert "OpenSlide's are larger by 40, 20" in text
  # What is too small for a region is counted.
  assert "none above 0.5 is left" in text
  assert "more are smaller than 1 mm² and left out" in text
  assert "smoothed over 20 µm" in text


def test_without_slides_or_scale(made, tmp_path):
  workdir = tmp_path / "mil"
  shutil.copytree(made, workdir, ignore=shutil.ignore_patterns("slides"))
  path = workdir / "maps" / "syn_00.npz"
  known = TileMap.load(path)
  dataclasses.replace(known, level0_mpp=None, level0_size=None).save(path)
  (workdir / "maps" / "syn_02.npz").write_bytes(b"no map")
  config = configured(workdir, geojson=False)
  written = write_report(config)
  assert set(written.problems) == {"syn_00", "syn_02"}
  assert "µm per pixel is unknown" in written.problems["syn_00"]
  assert "no map of tiles" in written.problems["syn_02"]
  text = Page(slide_folder(written, MISSING) / "index.html").text
  assert "no slides were given (config.data.slides = '')" in text
  names = {p.name for p in slide_folder(written, "syn_00").iterdir()}
  assert names == {"index.html", "tiles.csv", "done.json"}
  # The scale is given: a map as far as there are tiles.
  config.data.default_mpp = 1.0
  written = write_report(config)
  assert (slide_folder(written, "syn_00") / "probability.jpg").is_file()
