"""The report from a small fake preparation: complete, self-contained, safe."""

import csv
import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from wsiseq_jax import charts
from wsiseq_jax.reports import figures, page
from wsiseq_jax.reports.sequences import sections
from wsiseq_jax.tasks.videomae.reconstruction import Reconstruction

FRAMES = 5
# A name that would break the page if it were not escaped.
ODD = "s2<script>alert(1)</script>"


def write_csv(path, rows, header):
  with open(path, "w", newline="") as f:
    writer = csv.DictWriter(f, header)
    writer.writeheader()
    writer.writerows(rows)


@pytest.fixture
def prepared(tmp_path):
  """Two slides of 2000 × 1600 px, three regions each, two headings a region."""
  prep, rng = tmp_path / "prep", np.random.default_rng(0)
  columns = {k: [] for k in ("sequence_id", "slide_id", "patient_id")}
  xy, heading, slides = [], [], {}
  for number, slide_id in enumerate(("s1", ODD)):
    folder = prep / "parts" / f"part{number}"
    folder.mkdir(parents=True)
    thumbnail = np.full((80, 100, 3), 255, np.uint8)
    thumbnail[20:60, 20:80] = (200, 120, 170)
    cv2.imwrite(str(folder / "thumbnail.jpg"), thumbnail)
    centres = [[600.0, 600.0], [1000.0, 800.0], [1400.0, 1000.0]]
    info = {
      "slide_id": slide_id,
      "patient_id": f"p{number}",
      "filename": f"{slide_id}.tiff",
      "level0_px": [2000, 1600],
      "mpp": 0.5,
      "mpp_origin": "vendor",
      "target_mpp": 1.0,
      "tissue_polygons_level0": [
        [[400, 400], [1600, 400], [1600, 1200], [400, 1200]]
      ],
      "centres_level0": centres,
      "thumbnail": "thumbnail.jpg",
      "thumbnail_downsample": 20.0,
      "config_hash": "0",
      "sequences": 6,
    }
    (folder / "slide.json").write_text(json.dumps(info))
    slides[slide_id] = {
      "mpp": 0.5,
      "mpp_origin": "vendor",
      "level0_px": [2000, 1600],
      "split": "train" if number == 0 else "val",
      "patient_id": f"p{number}",
      "sequences": 6,
    }
    for x, y in centres:
      for angle in (0.0, 90.0):
        columns["sequence_id"].append(f"{slide_id}_{x}_{y}_{angle}")
        columns["slide_id"].append(slide_id)
        columns["patient_id"].append(f"p{number}")
        step = np.arange(FRAMES)[:, None] * [[8, 0], [0, -8]][angle > 0]
        xy.append(np.array([x, y]) + step)
        heading.append(angle)
  metadata = {
    "geometry": "drift",
    "frames": FRAMES,
    "frame_px": [80, 80],
    "mpp": 1.05,
    "slides": slides,
  }
  (prep / "shards").mkdir()
  (prep / "shards" / "metadata.json").write_text(json.dumps(metadata))
  write_csv(
    prep / "slides.csv",
    [
      {"slide_id": k, "split": v["split"], "status": "done"}
      for k, v in slides.items()
    ]
    + [{"slide_id": "blank", "status": "no_tissue", "reason": "mask empty"}],
    ["slide_id", "split", "status", "reason"],
  )
  write_csv(
    prep / "errors.csv",
    [
      {
        "slide_id": "no_scale",
        "stage": "mpp",
        "code": "no_mpp",
        "message": "no pixel size & no override",
        "place": "",
      }
    ],
    ["slide_id", "stage", "code", "message", "place"],
  )
  run = tmp_path / "run"
  run.mkdir()
  with open(run / "metrics.jsonl", "w") as f:
    for step in range(0, 300, 5):
      f.write(json.dumps({"step": step, "train/loss": 1 / (1 + step)}) + "\n")
    f.write(json.dumps({"step": 299, "val/loss": 0.125}) + "\n")
  embeddings = {k: np.array(v) for k, v in columns.items()}
  embeddings |= {
    "features": rng.normal(size=(12, 4)).astype(np.float32),
    "frame_level0_xy": np.array(xy, np.float32),
    "heading_deg": np.array(heading, np.float32),
    "index": np.arange(12)[::-1].copy(),
  }
  return prep, run, embeddings


def frames_of(index, count):
  return np.full((min(count, FRAMES), 16, 20, 3), index % 26 * 10, np.uint8)


def clip(ratio, borrowed):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 255, (4, 16, 16, 3)).astype(np.uint8)
  return Reconstruction(
    "seq", "tissue", ratio, picture, picture, picture, borrowed, 0.5
  )


def build(prepared, tmp_path, **kwargs):
  prep, run, embeddings = prepared
  path = sections.write_page(
    prep, run, tmp_path / "out", embeddings, frames_of, **kwargs
  )
  return path.read_text(encoding="utf-8")


class Checker(html.parser.HTMLParser):
  """Collects tags and addresses and checks that tags close in order."""

  VOID = ("meta", "img", "br", "link", "input")

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.addresses, self.images = [], [], [], []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.append(tag)
    if tag not in self.VOID:
      self.open.append(tag)
    if tag == "img":
      self.images.append(attributes)
    for name in ("src", "href", "xlink:href"):
      if name in attributes:
        self.addresses.append(attributes[name])

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_page_is_whole_and_stands_alone(prepared, tmp_path):
  text = build(
    prepared, tmp_path, reconstructions=[clip(0.9, True), clip(0.5, True)]
  )
  checker = Checker()
  checker.feed(text)
  assert not checker.open
  # The one script is the page's own, that of long lists.
  assert checker.tags.count("script") == 1 and "link" not in checker.tags
  assert all(a.startswith(("data:", "#")) for a in checker.addresses)
  assert "url(http" not in text and "@import" not in text
  assert all(i["alt"] and int(i["width"]) for i in checker.images)
  # Every link of the page has its target.
  for anchor in re.findall(r'<a href="#(\w+)"', text):
    assert f'id="{anchor}"' in text
  assert 'name="viewport"' in text
  assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_summary_says_what_was_used_and_refused(prepared, tmp_path):
  text = build(
    prepared,
    tmp_path,
    model={"step": 299},
    measures=[("NMI", "0.5", "half")],
  )
  for name, value in (
    ("slides used", "2"),
    ("slides refused", "1"),
    ("of these damaged", "0"),
    ("patients", "2"),
    ("sequences", "6 train + 6 val"),
    ("pixel size", "1.05 µm"),
    ("slides scanned at", "0.5 µm/px"),
    ("step", "299"),
    ("last val/loss", "0.125"),
  ):
    assert f"<dt>{name}</dt><dd>{value}</dd>" in text
  assert "no pixel size &amp; no override" in text
  assert ">half</td>" in text
  assert ">blank</td>" in text and ">mask empty</td>" in text
  assert "A frame shows 84 × 84 µm" in text


def test_reconstructions_say_whether_colour_was_borrowed(prepared, tmp_path):
  borrowed = build(prepared, tmp_path, reconstructions=[clip(0.9, True)])
  assert "Brightness and colour are borrowed" in borrowed
  assert "90% hidden" in borrowed and "true patches used" in borrowed
  own = build(prepared, tmp_path, reconstructions=[clip(0.75, False)])
  assert "are borrowed" not in own and "no true statistics used" in own
  assert "75% hidden" in own


def test_fewer_sequences_than_clusters_is_said(prepared, tmp_path):
  text = build(prepared, tmp_path)
  assert "16 clusters were asked for, but there are only 12" in text
  text = build(prepared, tmp_path, settings=sections.ReportSettings(clusters=3))
  assert "were asked for" not in text
  assert text.count("<strong>Cluster ") == 3


def test_members_and_neighbours_skip_the_own_region(prepared, tmp_path):
  settings = sections.ReportSettings(clusters=1, queries=1, neighbours=12)
  text = build(prepared, tmp_path, settings=settings)
  montage = text[text.index('id="clusters"') : text.index('id="neighbours"')]
  # Six regions in twelve sequences.
  assert montage.count('class="row"') == 6
  neighbours = text[text.index('id="neighbours"') :]
  # The query, and all but the two sequences of its region.
  assert neighbours.count('class="row"') == 1 + 10
  settings = sections.ReportSettings(clusters=1, one_per_region=False)
  text = build(prepared, tmp_path, settings=settings)
  montage = text[text.index('id="clusters"') : text.index('id="neighbours"')]
  assert montage.count('class="row"') == 10


def test_frames_come_from_the_record_index(prepared, tmp_path):
  asked = []

  def spy(index, count):
    asked.append((index, count))
    return frames_of(index, count)

  prep, run, embeddings = prepared
  embeddings = {**embeddings, "index": embeddings["index"] + 100}
  settings = sections.ReportSettings(frames=7, clusters=2)
  sections.write_page(
    prep, run, tmp_path / "o", embeddings, spy, settings=settings
  )
  assert {count for _, count in asked} == {7}
  assert min(index for index, _ in asked) >= 100


def test_same_input_same_page(prepared, tmp_path):
  assert build(prepared, tmp_path / "a") == build(prepared, tmp_path / "b")


def test_missing_log_is_said(prepared, tmp_path):
  (prepared[1] / "metrics.jsonl").unlink()
  assert "There is no metrics.jsonl" in build(prepared, tmp_path)


def test_sequences_without_a_slide(prepared, tmp_path):
  """Image series have no positions: everything but the maps still works."""
  prep, run, embeddings = prepared
  embeddings = {
    **embeddings,
    "frame_level0_xy": np.full((12, FRAMES, 2), np.nan, np.float32),
    "heading_deg": np.full(12, np.nan, np.float32),
  }
  path = sections.write_page(prep, run, tmp_path / "o", embeddings, frames_of)
  assert ", heading" not in path.read_text()


def test_wrong_input_is_named(prepared, tmp_path):
  prep, run, embeddings = prepared
  with pytest.raises(ValueError, match="report.prep"):
    sections.write_page(run, run, tmp_path / "o", embeddings, frames_of)
  del embeddings["features"]
  with pytest.raises(ValueError, match="'features'.*job=embed"):
    sections.write_page(prep, run, tmp_path / "o", embeddings, frames_of)
  # A TypeError where jaxtyping checks at run time, as in these tests.
  with pytest.raises((ValueError, TypeError)):
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    Reconstruction("s", "tube", 0.9, frames, frames[:, :4], frames, True, 0.1)


def test_outline_and_centres_land_on_the_thumbnail():
  blank = np.full((100, 100, 3), 255, np.uint8)
  square = [[200, 200], [800, 200], [800, 800], [200, 800]]
  picture = figures.outline_picture(blank, 10.0, [square], [[500.0, 500.0]])
  # One pixel wide and anti-aliased: nearly the pure green.
  assert np.abs(picture[20, 50] - np.array([0, 150, 60])).max() < 40
  assert picture[50, 50].tolist() == [20, 60, 220]
  assert picture[5, 5].tolist() == [255] * 3
  assert (blank == 255).all()


def test_cluster_map_paints_paths_in_cluster_colours():
  thumbnail = np.full((100, 200, 3), 255, np.uint8)
  paths = np.array(
    [[[100, 200], [900, 200]], [[100, 800], [900, 800]]], np.float32
  )
  picture = figures.cluster_picture(thumbnail, 10.0, paths, np.array([3, 5]))
  assert tuple(picture[20, 50].tolist()) == figures.colour(3)
  assert tuple(picture[80, 50].tolist()) == figures.colour(5)
  assert tuple(picture[50, 150].tolist()) == (255, 255, 255)


def test_sizes_of_strips_and_columns():
  frames = np.zeros((4, 20, 30, 3), np.uint8)
  assert figures.strip(frames, 10, gap=2).shape == (10, 4 * 15 + 3 * 2, 3)
  picture = figures.columns((frames, frames), 10, rows=3, gap=2)
  assert picture.shape == (3 * 10 + 2 * 2, 2 * 15 + 2, 3)
  assert figures.columns((frames,), 10, rows=9).shape[0] == 4 * 10 + 3 * 2


def test_scale_bar_has_the_stated_length():
  picture = figures.scale_bar(np.full((300, 400, 3), 128, np.uint8), 10.0)
  # A fifth of 4 mm is 0.8 mm: a bar of 0.5 mm is 50 px, above it is white.
  row = (picture[300 - 12] < 30).all(axis=1)
  assert row[338:389].sum() in (50, 51) and not row[389:].any()
  assert (picture[300 - 20, 340:385] == 255).all()
  assert (picture[100] == 128).all()


def test_line_chart_is_text_that_the_page_can_turn():
  figure, (axes,) = charts.grid(1)
  x = np.arange(1, 4.0)
  charts.lines(axes, {"a": (x, x), "b": (x, 40 * x), "c": (x, x)}, ["c"])
  svg = charts.to_svg(figure)
  assert svg.startswith("<svg") and svg == charts.to_svg(figure)
  assert "<metadata" not in svg and "1970" not in svg
  assert ">b<" in svg and ">c<" not in svg
  assert axes.get_yscale() == "log"


def test_text_and_numbers_of_pages(tmp_path):
  assert [page.number(v) for v in (1, float("nan"), None)] == [
    "1.000", "–", "–",
  ]  # fmt: skip
