"""embed_tiles: features are those of the slide's pixels; resumes; bad slides.

The encoder is a stand-in, see `tile_job.py`.
"""

import csv
import pathlib
import shutil
import types

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from configs import embed_tiles as presets
from data_prep.files.errors import SlideError
from data_prep.wsi import tiles
from data_prep.wsi.slides import Slide
from tests.data_prep.wsi import tiny_slides
from tests.encoders.tile_job import TRACES, colour_encoder, config_of, picture
from wsiseq_jax import encoders
from wsiseq_jax.data import background, tile_features
from wsiseq_jax.encoders import embed_tiles, slide_run


def _rows(path):
  with open(path, newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  return {row["slide_id"]: row for row in rows}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
  """A good, a damaged, a blank and a missing slide, in a table."""
  folder = tmp_path_factory.mktemp("slides")
  for name in ("good", "damaged", "blank"):
    tiny_slides.write(folder / f"{name}.tiff", picture(name == "blank"))
  tiny_slides.damage(folder / "damaged.tiff", "zeroed", column=2, row=2)
  (folder / "cohort.csv").write_text(
    "slide_id,filename,case_id,label\n"
    "good,good.tiff,case1,tumour\n"
    "damaged,damaged.tiff,case1,tumour\n"
    "blank,blank.tiff,case2,\n"
    "missing,missing.tiff,case3,normal\n"
  )
  return folder


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
  """The config of a run that is over, and what it said."""
  config = config_of(cohort / "cohort.csv", tmp_path_factory.mktemp("run"))
  TRACES.clear()
  summary = embed_tiles.embed_slides(config, colour_encoder())
  return config, summary, list(TRACES)


def test_features_are_those_of_the_pixels(cohort, finished):
  workdir = finished[0].workdir
  tiles = tile_features.read(f"{workdir}/features/good.h5")
  assert (tiles.tile_size, tiles.mpp, tiles.level0_mpp) == (64.0, 0.5, 0.5)
  assert (tiles.level0_size, tiles.encoder) == ((700, 500), "colour")
  x, y = np.meshgrid(range(128, 640, 64), range(128, 384, 64))
  # Row by row, in whatever order they were read.
  assert tiles.xy.tolist() == np.stack([x.ravel(), y.ravel()], 1).tolist()
  with Slide.open(cohort / "good.tiff") as slide:
    for row, corner in zip(tiles.features, tiles.xy, strict=True):
      region = slide.read_region(corner + 32, (64, 64), 0.5)
      expected = [*region.mean((0, 1)), region[0, 0, 0]]
      np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_one_program_for_all_slides(finished):
  # 32 tiles, 28 tiles: the last batch is padded.
  assert finished[2] == [(8, 64, 64, 3)]


def test_damaged_place_costs_its_tiles(finished):
  workdir = finished[0].workdir
  good = tile_features.read(f"{workdir}/features/good.h5")
  damaged = tile_features.read(f"{workdir}/features/damaged.h5")
  lost = [[x, y] for y in (256, 320) for x in (256, 320)]
  kept = [xy not in lost for xy in good.xy.tolist()]
  assert sum(kept) == 28
  np.testing.assert_array_equal(damaged.xy, good.xy[kept])
  np.testing.assert_allclose(damaged.features, good.features[kept], rtol=1e-5)


def test_no_tissue_is_a_file_without_rows(finished):
  with h5py.File(f"{finished[0].workdir}/features/blank.h5", "r") as file:
    assert file["features"].shape == (0, 4) and file["coords"].shape == (0, 2)
    assert file["coords"].attrs["patch_size_level0"] == 64


def test_tables_and_exit_code(finished):
  config, summary, _ = finished
  rows = _rows(f"{config.workdir}/slides.csv")
  assert list(rows) == ["blank", "damaged", "good"]
  keys = ("patient_id", "label", "filename", "status", "tiles", "bad_tiles")
  assert [[row[key] for key in keys] for row in rows.values()] == [
    ["case2", "", "blank.tiff", "no_tissue", "0", "0"],
    ["case1", "tumour", "damaged.tiff", "ok", "28", "4"],
    ["case1", "tumour", "good.tiff", "ok", "32", "0"],
  ]
  assert rows["blank"]["reason"] == "the tissue mask is empty"
  assert rows["good"]["mpp"] == rows["good"]["target_mpp"] == "0.5"
  assert summary.seconds > summary.outcomes["good"].info["seconds"] > 0
  assert 0 <= float(rows["good"]["waiting"]) <= 1
  errors = _rows(f"{config.workdir}/errors.csv")
  assert {key: row["code"] for key, row in errors.items()} == {
    "damaged": "damaged_tile", "missing": "missing_file",
  }  # fmt: skip
  assert errors["damaged"]["place"] == "0 256 256"
  assert (summary.exit_code, summary.tiles) == (3, 60)
  assert "3 slides done" in summary.text and "damaged_tile" in summary.text


def test_pictures(finished):
  for folder in ("qc", "thumbnails"):
    found = pathlib.Path(finished[0].workdir, folder).iterdir()
    assert sorted(p.stem for p in found) == ["blank", "damaged", "good"]


def _times(config):
  files = pathlib.Path(config.workdir, "features").glob("*.h5")
  return {path.stem: path.stat().st_mtime_ns for path in files}


def test_finished_slides_are_skipped(cohort, finished):
  config = finished[0]
  before = _times(config)
  TRACES.clear()
  again = embed_tiles.embed_slides(config, colour_encoder())
  assert _times(config) == before and TRACES == []
  assert (again.tiles, again.exit_code) == (0, 3)
  assert all(o.before for o in again.outcomes.values())
  # What is wrong with a finished slide is still said.
  assert sorted(_rows(f"{config.workdir}/errors.csv")) == ["damaged", "missing"]


def test_slides_are_done_again_when_something_shaping_changed(
  cohort, tmp_path, capsys
):
  for name in ("good", "blank"):
    shutil.copy(cohort / f"{name}.tiff", tmp_path)
  config = config_of(f"{tmp_path}/*.tiff", tmp_path / "run")
  assert embed_tiles.embed_slides(config, colour_encoder()).exit_code == 0
  before = _times(config)
  # A label is no reason.
  (tmp_path / "slides.csv").write_text(
    "slide_id,case_id,label\ngood,c9,benign\nblank,c9,benign\n"
  )
  embed_tiles.embed_slides(config, colour_encoder())
  assert _times(config) == before
  rows = _rows(tmp_path / "run" / "slides.csv")
  assert (rows["good"]["patient_id"], rows["good"]["label"]) == ("c9", "benign")
  # A file that was cut off is.
  path = tmp_path / "run" / "features" / "good.h5"
  path.write_bytes(path.read_bytes()[:500])
  embed_tiles.embed_slides(config, colour_encoder())
  assert len(tile_features.read(path).xy) == 32
  assert _times(config)["blank"] == before["blank"]
  # So are other weights.
  doubled = colour_encoder(2.0, fingerprint="b")
  first = tile_features.read(path).features
  summary = embed_tiles.embed_slides(config, doubled)
  np.testing.assert_allclose(
    tile_features.read(path).features, 2 * first, rtol=1e-6
  )
  assert not any(o.before for o in summary.outcomes.values())
  # And a slide that can no longer be read leaves no stale features.
  (tmp_path / "good.tiff").write_bytes(b"II*\0 nothing")
  assert embed_tiles.embed_slides(config, doubled).exit_code == 3
  assert not path.exists()
  assert "good: unsupported_format" in capsys.readouterr().err


def test_slide_that_is_away_keeps_its_features(cohort, tmp_path, monkeypatch):
  config = config_of(cohort / "good.tiff", tmp_path)
  embed_tiles.embed_slides(config, colour_encoder())
  before = _times(config)

  def away(*unused):
    raise SlideError("cannot read good.tiff", "open", "unreadable", "good")

  monkeypatch.setattr(embed_tiles.tile_stream, "slide_hash", away)
  assert embed_tiles.embed_slides(config, colour_encoder()).exit_code == 1
  assert _rows(tmp_path / "slides.csv")["good"]["status"] == "error"
  assert _times(config) == before


def test_synthetic_slides(tmp_path):
  config = presets.get_config("smoke").unlock()
  config.workdir = str(tmp_path)
  summary = embed_tiles.embed_slides(config, colour_encoder())
  assert summary.exit_code == 0
  rows = _rows(tmp_path / "slides.csv")
  assert [row["label"] for row in rows.values()] == [
    "macro", "micro", "negative",
  ]  # fmt: skip
  assert all(int(row["tiles"]) > 10 for row in rows.values())
  assert summary.tiles == sum(int(row["tiles"]) for row in rows.values())


def test_job_ends_the_program_with_its_exit_code(
  cohort, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(encoders, "load", lambda block: colour_encoder())
  config = config_of(cohort / "good.tiff", tmp_path)
  embed_tiles.run(config)  # all is well: returns
  assert "1 slides done" in capsys.readouterr().out
  for slides, code in (("cohort.csv", 3), ("none.tiff", 1)):
    config.data.slides = str(cohort / slides)
    with pytest.raises(SystemExit) as caught:
      embed_tiles.run(config)
    assert caught.value.code == code
    assert "errors.csv:" in capsys.readouterr().out


@pytest.mark.slow
def test_smoke_preset(tmp_path, capsys):
  config = presets.get_config("smoke").unlock()
  config.workdir = str(tmp_path)
  embed_tiles.run(config)
  assert "3 slides done" in capsys.readouterr().out
  files = tile_features.find(tmp_path / "features")
  widths = {tile_features.header(path).width for path in files.values()}
  assert widths == {1024}
  with h5py.File(files["syn_00"], "r") as file:
    assert file["features"].attrs["encoder"] == "resnet50_trunc"
    assert file.attrs["encoder_weights"] == "random, seed 0"
    assert file["features"][:].std(axis=0).max() > 0


def test_features_that_are_nan_are_refused(cohort, tmp_path):
  bad = colour_encoder(np.nan)
  config = config_of(cohort / "good.tiff", tmp_path)
  summary = embed_tiles.embed_slides(config, bad)
  assert summary.exit_code == 1 and not _times(config)
  (row,) = summary.errors
  assert row.stage == "encode" and "NaN" in row.message


def test_window_around_a_tile(cohort, tmp_path):
  config = config_of(cohort / "good.tiff", tmp_path)
  wide = colour_encoder(tile_px=64, window_px=128)
  embed_tiles.embed_slides(config, wide)
  tiles = tile_features.read(tmp_path / "features" / "good.h5")
  assert tiles.tile_size == 64 and len(tiles.xy) == 32
  with Slide.open(cohort / "good.tiff") as slide:
    region = slide.read_region(tiles.xy[9] + 32, (128, 128), 0.5)
  np.testing.assert_allclose(
    tiles.features[9, :3], region.mean((0, 1)), rtol=1e-5
  )


def test_a_table_of_the_user_is_not_written_over(cohort, tmp_path):
  text = "slide_id,case_id\ngood,c9\n"
  (tmp_path / "slides.csv").write_text(text)
  with pytest.raises(ValueError, match="config.workdir.*slides.csv"):
    embed_tiles.embed_slides(
      config_of(cohort / "good.tiff", tmp_path), colour_encoder()
    )
  assert (tmp_path / "slides.csv").read_text() == text


def test_parts_of_a_cohort(cohort, tmp_path):
  slides = ",".join(str(cohort / f"{n}.tiff") for n in ("blank", "good"))
  for part, done in (("1/2", ["blank"]), ("2/2", ["blank", "good"])):
    embed_tiles.embed_slides(
      config_of(slides, tmp_path, {"data.part": part}), colour_encoder()
    )
    assert sorted(_times(config_of(slides, tmp_path))) == done
  assert list(_rows(tmp_path / "slides.2-of-2.csv")) == ["good"]
  whole = embed_tiles.embed_slides(
    config_of(slides, tmp_path), colour_encoder()
  )
  assert whole.tiles == 0
  assert list(_rows(tmp_path / "slides.csv")) == ["blank", "good"]


def test_interruption_keeps_what_is_finished(cohort, tmp_path, monkeypatch):
  """Stopped in the middle of the second slide."""
  slides = ",".join(str(cohort / f"{n}.tiff") for n in ("damaged", "good"))
  config = config_of(slides, tmp_path)
  compile_ = embed_tiles.compile_encoder

  def stopping(*args):
    step, calls = compile_(*args), []

    def stop(tiles):
      calls.append(1)
      if len(calls) == 8:
        raise KeyboardInterrupt
      return step(tiles)

    return stop

  monkeypatch.setattr(embed_tiles, "compile_encoder", stopping)
  with pytest.raises(KeyboardInterrupt):
    embed_tiles.embed_slides(config, colour_encoder())
  assert list(_times(config)) == ["damaged"]
  assert list(_rows(tmp_path / "slides.csv")) == ["damaged"]
  monkeypatch.undo()
  summary = embed_tiles.embed_slides(config, colour_encoder())
  assert summary.outcomes["damaged"].before
  assert (summary.tiles, sorted(_times(config))) == (32, ["damaged", "good"])


@pytest.mark.parametrize(
  ("slide", "device", "share"), [(3, 1, 3 / 4), (0, 1, 0)]
)
def test_waiting_for_slides_is_measured(
  cohort, tmp_path, monkeypatch, slide, device, share
):
  """By a clock that runs only where slides are waited for, or the device."""
  now = [0.0]

  class Waiting(background.Background):
    def get(self):
      item = super().get()
      if isinstance(item, tiles.TileBatch):
        now[0] += slide
      return item

  def encode(tiles):
    now[0] += device
    return jnp.zeros((8, 4), np.float32)

  clock = types.SimpleNamespace(perf_counter=lambda: now[0])
  monkeypatch.setattr(slide_run, "time", clock)
  monkeypatch.setattr(slide_run, "Background", Waiting)
  monkeypatch.setattr(embed_tiles, "compile_encoder", lambda *_: encode)
  config = config_of(cohort / "good.tiff", tmp_path)
  summary = embed_tiles.embed_slides(config, colour_encoder())
  batches = summary.tiles / 8
  assert batches >= 2
  assert summary.seconds == batches * (slide + device)
  (row,) = _rows(tmp_path / "slides.csv").values()
  assert (summary.waiting, float(row["waiting"])) == (share, share)
  assert float(row["seconds"]) == batches * (slide + device)
