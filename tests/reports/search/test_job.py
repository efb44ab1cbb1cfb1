"""The job `search`: tables and page."""

import csv
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile

from configs import search as presets
from tests import small_run
from tests.data_prep.wsi import tiny_slides
from tests.search import tiny_index
from wsiseq_jax.reports.search import job
from wsiseq_jax.search import build, evaluation

RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 200


@pytest.fixture
def made(tmp_path, monkeypatch):
  """An index of one slide that can be opened, and one that cannot."""
  (tmp_path / "slides").mkdir()
  pixels = np.full((256, 256, 3), 255, np.uint8)
  pixels[:, :128], pixels[:, 128:] = RED, GREEN
  path = tiny_slides.write(tmp_path / "slides" / "a.tiff", pixels, mpp=0.5)
  encoder = tiny_index.with_colour_encoder(monkeypatch)
  xy = [[0, 0], [150, 0]]
  tiny_index.write_slide(tmp_path / "features", "a", np.eye(3)[:2], xy)
  tiny_index.write_slide(tmp_path / "features", "b", np.eye(3)[2:])
  build.build(
    tiny_index.asked(
      tmp_path / "index", tmp_path / "features",
      encoder=encoder, slides=str(path),
    )
  )  # fmt: skip
  return tmp_path


def configured(folder, **query):
  config = presets.get_config().unlock()
  config.job = "search"
  config.workdir = str(folder / "out")
  config.query.index = str(folder / "index")
  config.query.update(query)
  return config


def rows(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def test_hits_and_pictures(made):
  picture = np.broadcast_to(RED, (128, 128, 3)).astype(np.uint8)
  cv2.imwrite(str(made / "red.png"), picture[..., ::-1])
  job.run(configured(made, images=(str(made / "red.png"),), k=3))
  hits = rows(made / "out" / "hits.csv")
  assert [hit["slide_id"] for hit in hits][0] == "a"
  assert hits[0]["x0"] == "0" and float(hits[0]["distance"]) < 1e-3
  text = (made / "out" / "index.html").read_text()
  # The query and one hit: the other is beside it, and slide b has no file.
  assert text.count("<img") == 2 and "file is not there" in text
  assert "red.png" in text
  assert rows(made / "out" / "errors.csv") == []


def test_pictures_of_all_kinds(made):
  """Grey, transparent and deep ones are read; the others are rows."""
  grey = np.full((128, 128), 120, np.uint8)
  cv2.imwrite(str(made / "grey.png"), grey)
  alpha = np.zeros((128, 128, 4), np.uint8)
  alpha[:, :64] = (0, 0, 200, 255)  # the rest is transparent: glass
  cv2.imwrite(str(made / "alpha.png"), alpha)
  cv2.imwrite(str(made / "deep.png"), grey.astype(np.uint16) * 256)
  cv2.imwrite(str(made / "small.png"), grey[:100])
  good = (made / "grey.png").read_bytes()
  (made / "cut.png").write_bytes(good[: len(good) // 2])
  names = ("grey", "alpha", "deep", "small", "cut")
  images = tuple(str(made / f"{name}.png") for name in names)
  with pytest.raises(SystemExit) as stopped:
    job.run(configured(made, images=images, pool=False, k=1))
  assert stopped.value.code == 3
  bad = {r["slide_id"]: r for r in rows(made / "out" / "errors.csv")}
  assert set(bad) == {str(made / "small.png"), str(made / "cut.png")}
  assert (
    "sides must have 128 to 4096" in bad[str(made / "small.png")]["message"]
  )
  hits = rows(made / "out" / "hits.csv")
  assert [hit["query"] for hit in hits] == ["0", "1", "2"]
  assert hits[1]["slide_id"] == "a"  # red, whatever is behind it
  with pytest.raises(ValueError, match="config.query.images: .*cut.png"):
    job.run(configured(made, images=(str(made / "cut.png"),)))


def test_by_region_and_by_rows(made):
  slide = str(made / "slides" / "a.tiff")
  job.run(
    configured(
      made, slide=slide, region=(0.0, 0.0, 100.0, 100.0), exclude="none", k=1
    )
  )
  assert rows(made / "out" / "hits.csv")[0]["row"] == "0"
  job.run(configured(made, rows=(0,), k=5))
  assert {h["slide_id"] for h in rows(made / "out" / "hits.csv")} == {"b"}
  job.run(configured(made, rows=(0,), where={"slide_id": ("A.svs",)}))
  assert rows(made / "out" / "hits.csv") == []
  assert "Nothing is left" in (made / "out" / "index.html").read_text()


def png_of(width, height):
  """A PNG that declares a size and has no pixels."""
  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data))
    + name
    + data
    + struct.pack(">I", zlib.crc32(name + data))
    for name, data in chunks
  )


def test_pictures_of_strangers_are_rows(made):
  """Other formats, sizes that no memory has, 12 bits taken for 16."""
  picture = np.broadcast_to(RED, (128, 128, 3)).astype(np.uint8)
  cv2.imwrite(str(made / "red.png"), picture[..., ::-1])
  (made / "a.pdf").write_bytes(b"%PDF-1.4 ...")
  (made / "bomb.png").write_bytes(png_of(60_000, 60_000))
  dark = picture.astype(np.uint16) * 16
  tifffile.imwrite(made / "dark.tif", dark, photometric="rgb")
  expected = {
    "a.pdf": "save it as PNG, JPEG or TIFF",
    "bomb.png": "60000 x 60000 pixels: sides must have 128 to 4096",
    "dark.tif": "its brightest value is 3200 of 65535",
    "none.png": "no such file",
  }
  images = tuple(str(made / name) for name in ("red.png", *expected))
  with pytest.raises(SystemExit) as stopped:
    job.run(configured(made, images=images, k=1))
  assert stopped.value.code == 3
  found = rows(made / "out" / "errors.csv")
  assert {r["slide_id"] for r in found} == set(images[1:])
  for row in found:
    assert expected[row["slide_id"].rpartition("/")[2]] in row["message"]
  assert rows(made / "out" / "hits.csv")[0]["slide_id"] == "a"


@pytest.mark.parametrize(
  ("query", "message"),
  [
    ({"rows": (0,), "where": {"label": ("x",)}}, "label = 'x': no slide has"),
    ({"rows": (0,), "where": {"slide_id": ("c",)}}, "there are \\['a', 'b'\\]"),
    ({}, "give one of images, rows, or slide and region; given: \\[\\]"),
    ({"rows": (0,), "images": ("a",)}, "given: \\['images', 'rows'\\]"),
    ({"slide": "a"}, "a region is a slide's file and x, y"),
    ({"rows": (9,)}, "row 9 is not in the index"),
    ({"k": 0, "rows": (0,)}, "config.query.k = 0: must be"),
  ],
)
def test_bad_queries(made, query, message):
  with pytest.raises(ValueError, match=message):
    job.run(configured(made, **query))


@pytest.mark.slow
def test_smoke_through_main(repo_root, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(repo_root)
  smoke = "--config=configs/search.py:smoke"
  small_run.main(smoke, f"--config.workdir={tmp_path / 'index'}")
  assert "4 slides; 4 added" in capsys.readouterr().out
  out = f"--config.workdir={tmp_path / 'out'}"
  asked = f"--config.query.index={tmp_path / 'index'}"
  small_run.main(smoke, "--config.job=search", out, asked)
  hits = rows(tmp_path / "out" / "hits.csv")
  assert len(hits) == 4 and "syn_00" not in {h["slide_id"] for h in hits}
  assert (tmp_path / "out" / "index.html").read_text().count("<img") == 5
  config = configured(tmp_path)
  config.job = "retrieval"
  scored = evaluation.run(config)
  assert {row["score"] for row in scored} == {
    *("precision", "mMV", "mAP", "chance")
  }
  assert len(rows(tmp_path / "out" / "retrieval.csv")) == len(scored)
