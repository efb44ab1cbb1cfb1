"""Pages of slides and of the cohort, from made-up predictions."""

import csv
import dataclasses
import html.parser
import json
import os
import pathlib
import shutil
import urllib.parse

import numpy as np
import pytest

from configs import mil_report
from data_prep import synthetic
from data_prep.slides import Slide
from wsiseq_jax.evals import geojson
from wsiseq_jax.mil import cohort as cohorts
from wsiseq_jax.mil import (
  report_charts,
  report_data,
  report_job,
  results,
  synthetic_report,
  tables,
)
from wsiseq_jax.mil.tile_map import TileMap

FAILED, MISSING = "syn_03", "syn_01"
SIZE = (512, 384)


class Page(html.parser.HTMLParser):
  """Text, links, pictures and open elements of a page."""

  def __init__(self, path):
    super().__init__()
    self.path, self.text, self.links, self.images = path, "", [], []
    self.ids, self.open = set(), []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    assert tag != "script"
    if tag == "a":
      self.links.append(attrs["href"])
    if tag == "img":
      assert attrs["alt"]
      self.images.append(attrs["src"])
    if "id" in attrs:
      self.ids.add(attrs["id"])
    if tag not in ("img", "meta", "br"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" not in self.open:
      self.text += data


def rows_of(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def configured(workdir, slides="", **report):
  config = mil_report.get_config()
  config.workdir, config.data.slides = str(workdir), str(slides)
  config.report.update(
    {
      "longest_px": 160, "card_px": 48, "tiles": 2, "tile_px": 24,
      "resamples": 20, "bins": 4, "tiles_apart_um": 60.0, **report,
    }
  )  # fmt: skip
  return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A workdir of four slides; one has no tissue, the file of one is gone."""
  workdir = tmp_path_factory.mktemp("mil")
  table = synthetic.make_cohort(
    workdir / "slides", slides=4, size_px=SIZE, region_um=160.0
  )
  synthetic_report.predict(workdir, table, 32.0, failures=(FAILED,), seeds=2)
  (workdir / "slides" / f"{MISSING}.tiff").unlink()
  return workdir


@pytest.fixture(scope="module")
def written(made):
  return report_job.write_report(configured(made, made / "slides"))


def slide_folder(written, name):
  return written.page.parent / "slides" / name


def test_all_files_are_there(written):
  assert (written.drawn, written.kept) == (4, 0)
  everything = {
    "index.html", "probability.jpg", "contribution.jpg", "tiles.csv",
    "percentile_display_only.jpg", "regions.geojson", "tiles.geojson",
    "detections.csv", "card_slide.jpg", "card_map.jpg",
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
  assert there == {"index.html", "card_slide.jpg"}


def test_pages_stand_alone(written):
  pages = [written.page, *written.page.parent.glob("slides/*/index.html")]
  assert len(pages) == 5
  for path in pages:
    page = Page(path)
    assert not page.open, path
    assert "Not for diagnosis" in page.text
    assert "Attention is not a diagnosis" in page.text.replace("\n", " ")
    for source in page.images:
      assert source.startswith("data:image/jpeg;base64,")
    for link in page.links:
      if link.startswith("#"):
        assert link[1:] in page.ids
      else:
        assert (path.parent / urllib.parse.unquote(link)).is_file(), link


def test_geojson_is_what_the_page_lists(made, written):
  folder = slide_folder(written, "syn_00")
  found = json.loads((folder / "regions.geojson").read_text())
  geojson.validate(found)
  assert found["features"]
  page = Page(folder / "index.html")
  for feature in found["features"]:
    area = feature["properties"]["measurements"]["Area mm^2"]
    assert f"{area:.4f}" in page.text
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert (ring >= 0).all() and (ring <= SIZE).all()
  tiles = json.loads((folder / "tiles.geojson").read_text())
  geojson.validate(tiles)
  tile_map = TileMap.load(made / "maps" / "syn_00.npz")
  listed = rows_of(folder / "tiles.csv")
  assert len(tiles["features"]) == len(listed) == len(tile_map.xy)
  best = int(tile_map.probability.argmax())
  p, place = float(listed[best]["probability"]), listed[best]
  x, y = float(place["x"]), float(place["y"])
  assert f"A {p:.3f}x {x:.0f}, y {y:.0f}tile {best}" in page.text


def test_numbers_are_those_of_the_tables(made, written):
  page = Page(written.page)
  for row in rows_of(made / "predictions_slide.csv"):
    assert f"p(tumour) = {float(row['p_tumour']):.3f}" in page.text
    text = Page(slide_folder(written, row["slide_id"]) / "index.html").text
    if row["status"] == "ok":
      assert f"Probability of tumour: {float(row['p_tumour']):.3f}" in text
      assert f"{float(row['threshold']):.3f}" in text
  for row in rows_of(made / "summary.csv"):
    assert f"{float(row['mean']):.3f}" in page.text
    if row["low"]:
      assert f"{float(row['low']):.3f} to {float(row['high']):.3f}" in page.text
    if row["std"]:
      assert f"± {float(row['std']):.3f}" in page.text


def test_confusion_at_the_threshold(made, written):
  found = report_data.read(made)
  assert found.head == "binary" and len(found.scored) == 4
  assert len(found.single) == 2
  hits = [(r.label, r.values["tumour"] >= 0.45) for r in found.scored]
  wanted = [
    sum(hit == (label, said) for hit in hits)
    for label in ("normal", "tumour")
    for said in (False, True)
  ]
  text = written.page.read_text(encoding="utf-8")
  table = text[text.index('class="confusion"') :]
  cells = table[: table.index("</table>")].split('<td class="num">')[1:]
  assert [int(cell.split("<")[0]) for cell in cells] == wanted


def test_slides_are_in_order_and_failures_last(made, written):
  text = written.page.read_text(encoding="utf-8")
  names = [
    part.split("/", 1)[0] for part in text.split('<figure><a href="slides/')[1:]
  ]
  p = {
    row["slide_id"]: float(row["p_tumour"])
    for row in rows_of(made / "predictions_slide.csv")
  }
  assert names[-1] == FAILED
  assert names[:-1] == sorted(set(p) - {FAILED}, key=lambda name: -p[name])


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


def test_a_second_call_changes_nothing(made, written, capsys):
  config = configured(made, made / "slides")
  before = {
    path: path.stat().st_mtime_ns
    for path in written.page.parent.rglob("*")
    if path.is_file()
  }
  with pytest.raises(SystemExit) as stopped:
    report_job.mil_report(config)
  assert stopped.value.code == 3  # one slide is missing, still
  assert "is up to date, nothing to do" in capsys.readouterr().err
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_only_what_changed_is_drawn(made, tmp_path):
  workdir = tmp_path / "mil"
  shutil.copytree(made, workdir)
  config = configured(workdir, workdir / "slides")
  report_job.write_report(config)
  own = workdir / "report" / "slides" / "syn_00" / "my notes.txt"
  own.write_text("mine")
  path = workdir / "slides" / "syn_00.tiff"
  os.utime(path, ns=(0, 0))
  assert report_job.write_report(config).drawn == 1
  assert own.read_text() == "mine"
  # Another threshold is another page for all; more resamples for the cohort.
  config.report.update({"threshold_from": "given", "threshold": 0.9})
  assert report_job.write_report(config).drawn == 4
  page = Page(workdir / "report" / "index.html")
  assert "0.9 was given for this report" in page.text
  config.report.resamples = 30
  assert report_job.write_report(config).drawn == 0
  # Another picture under the slide's name is not taken for it.
  shutil.copy(workdir / "slides" / "syn_02.tiff", tmp_path / "other.tiff")
  other = TileMap.load(workdir / "maps" / "syn_00.npz")
  size = (SIZE[0] + 1, SIZE[1])
  dataclasses.replace(other, level0_size=size).save(
    workdir / "maps" / "syn_00.npz"
  )
  problems = report_job.write_report(config).problems
  assert "it is another picture" in problems["syn_00"]


def test_bounds_are_taken_off_for_qupath(made, tmp_path, monkeypatch):
  monkeypatch.setattr(
    Slide, "_find_bounds", lambda self, properties: (40, 20, 400, 300)
  )
  config = configured(
    made, made / "slides" / "syn_00.tiff", out=str(tmp_path), tiles=1,
    smooth_um=20.0, min_area_um2=1e6,
  )  # fmt: skip
  report_job.write_report(config)
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
  written = report_job.write_report(config)
  assert set(written.problems) == {"syn_00", "syn_02"}
  assert "µm per pixel is unknown" in written.problems["syn_00"]
  assert "no map of tiles" in written.problems["syn_02"]
  text = Page(slide_folder(written, MISSING) / "index.html").text
  assert "no slides were given (config.data.slides = '')" in text
  names = {p.name for p in slide_folder(written, "syn_00").iterdir()}
  assert names == {"index.html", "tiles.csv"}
  # The scale is given: a map as far as there are tiles.
  config.data.default_mpp = 1.0
  written = report_job.write_report(config)
  assert (slide_folder(written, "syn_00") / "probability.jpg").is_file()


ODD = "s<b>1&"


def other_head(workdir, head, classes, labels, texts, values, threshold):
  """Tables of four slides, as the job writes them; no maps."""
  slides = tuple(
    cohorts.Slide(name, f"case{i}", text)
    for i, (name, text) in enumerate(
      zip((ODD, "t", "u", "v"), texts, strict=True)
    )
  )
  cohort = cohorts.Cohort(slides, np.array(labels, float), head, classes)
  found = [
    results.Result(
      results.Run(0, 0, seed), 1, ((1.0, 1.0),), (0.0, 1.0),
      np.zeros(len(threshold)),
      np.array(threshold, float), True,
      {"test": results.Predicted(
        tuple(cohort.ids), np.array(values, float), ("ok",) * 4)},
    )
    for seed in range(2)
  ]  # fmt: skip
  workdir.mkdir()
  tables.write(
    workdir, cohort, dict.fromkeys(cohort.ids, "ok"), found, 10, 4, False
  )
  return Page(report_job.write_report(configured(workdir)).page)


def test_several_classes(tmp_path):
  page = other_head(
    tmp_path / "mil", "multiclass", ("a", "b", "c"), [[0], [1], [2], [2]],
    "abcc", [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7],
             [0.5, 0.1, 0.4]], [np.nan] * 3,
  )  # fmt: skip
  assert "predicted c" in page.text and "p(b) = 0.800" in page.text
  assert "ROC: c" in page.text and "no threshold" in page.text
  wrong = page.text[page.text.index("differ from the label") :]
  assert wrong.index("v: Probability of a: 0.500") < wrong.index("Slides")
  # A name is text, never HTML, and can be followed.
  assert ODD in page.text
  text = Page(tmp_path / "mil/report/slides" / ODD / "index.html").text
  assert "There is no map of this slide" in text


def test_several_labels(tmp_path):
  page = other_head(
    tmp_path / "mil", "multilabel", ("er", "pr"),
    [[1, 0], [0, np.nan], [1, 1], [0, 0]], ("1;0", "0;", "1;1", "0;0"),
    [[0.9, 0.2], [0.3, 0.5], [0.2, 0.7], [0.1, 0.6]], [0.5, 0.65],
  )  # fmt: skip
  found = report_data.read(tmp_path / "mil")
  rule = report_data.Decisions()
  said = {r.slide_id: rule.predicted(found, r) for r in found.rows}
  assert said == {ODD: "er", "t": "", "u": "pr", "v": ""}
  # Of an unknown label nothing is right or wrong.
  right = [rule.is_right(found, row) for row in found.rows]
  assert dict(zip(said, right, strict=True)) == {
    ODD: True, "t": True, "u": False, "v": True,
  }  # fmt: skip
  assert "ROC: pr" in page.text and "predicted not er" in page.text


def test_numbers(tmp_path):
  page = other_head(
    tmp_path / "mil", "regression", ("amount",), [[1], [2], [3], [4]],
    ("1", "2", "3", "4"), [[1.5], [2.0], [2.5], [4.5]], [np.nan],
  )  # fmt: skip
  assert "4 slides; the dotted line" in page.text
  assert "R²" in page.text and "true 4, predicted 4.5" in page.text


def test_slides_that_were_not_scored_are_in_no_chart(made, tmp_path):
  workdir = tmp_path / "mil"
  shutil.copytree(made, workdir, ignore=shutil.ignore_patterns("slides", "r*"))
  path = workdir / "summary.csv"
  rows = rows_of(path)
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows([row | {"slides": "3"} for row in rows])
  page = Page(report_job.write_report(configured(workdir)).page)
  assert "the job scored 3 of them" in page.text
  assert "confusion" not in page.ids and "roc" not in page.ids


def test_folds_are_one_prediction_and_applied_models_several(tmp_path):
  lines = ["slide_id,repeat,fold,seed,split,p_no,p_yes"]
  lines += [f"{s},0,{f},0,test,0.5,0.5" for f, s in enumerate("ab")]
  lines += ["a,0,1,0,val,0.5,0.5"]
  path = tmp_path / "predictions.csv"
  path.write_text("\n".join(lines))
  read = report_data._single
  assert [set(one) for one in read(path, "binary", ("no", "yes"))] == [{*"ab"}]
  path.write_text("\n".join([*lines, "a,0,1,0,test,0.5,0.5"]))
  assert len(read(path, "binary", ("no", "yes"))) == 2


def test_band_of_the_roc():
  labels = np.array([0.0, 0, 1, 1])
  cases = np.array(list("abcd"))
  low, high = report_charts.roc_band(
    labels, np.array([1.0, 2, 3, 4]), cases, 50
  )
  assert (low == 1).all() and (high == 1).all()
  # Equal scores say nothing: the diagonal, whatever is drawn.
  low, high = report_charts.roc_band(labels, np.ones(4), cases, 50)
  np.testing.assert_allclose(low, np.linspace(0, 1, 101))
  np.testing.assert_allclose(high, low)
  low, _ = report_charts.roc_band(np.ones(4), np.ones(4), cases, 50)
  assert np.isnan(low).all()


def test_sequence_report_beside(made, tmp_path):
  beside = tmp_path / "run" / "report"
  beside.mkdir(parents=True)
  (beside / "index.html").write_text("<html></html>")
  (beside / "report.json").write_text('{"fingerprint": "f"}')
  workdir = tmp_path / "mil"
  shutil.copytree(
    made, workdir, ignore=shutil.ignore_patterns("slides", "maps")
  )
  shutil.rmtree(workdir / "report", ignore_errors=True)
  page = Page(report_job.write_report(configured(workdir)).page)
  assert "../../run/report/index.html" in page.links


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"workdir": ""}, "config.workdir = ''"),
    ({"workdir": "nowhere"}, "has no predictions_slide.csv"),
    ({"data.slides": "nowhere"}, "none of the 4 predicted slides"),
    ({"data.table": "t.csv"}, "config.data.slides names none"),
    ({"report.tissue": "otsu"}, "config.report.tissue = 'otsu'"),
    ({"report.out": "other"}, "holds another report"),
    ({"report.sequence_report": "gone"}, "there is no page"),
    ({"report.um_per_px": 40.0}, "config.report.um_per_px = 40"),
  ],
)
def test_bad_calls(made, tmp_path, change, message):
  config = configured(made, out=str(tmp_path / "out"))
  other = tmp_path / "other"
  other.mkdir()
  (other / "index.html").write_text("a report on sequences")
  (other / "report.json").write_text('{"fingerprint": "f"}')
  places = {"nowhere": tmp_path / "nowhere", "other": other}
  for key, value in change.items():
    place = places.get(value) if isinstance(value, str) else None
    block, _, name = key.rpartition(".")
    target = config[block] if block else config
    target[name] = str(place) if place else value
  with pytest.raises(ValueError, match=message):
    report_job.mil_report(config)


def test_smoke(tmp_path):
  config = mil_report.get_config("smoke")
  config.workdir = str(tmp_path)
  report_job.mil_report(config)
  assert len(list(tmp_path.glob("report/slides/*/regions.geojson"))) == 3
  assert pathlib.Path(tmp_path, "report", "index.html").is_file()
