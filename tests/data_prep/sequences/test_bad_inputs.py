"""Slides that cannot be used, or fail, are rows; the others are done."""

import errno
import json

import numpy as np
import pytest
import tifffile

from data_prep import runs, shards
from data_prep.sequences import prepare, slide_job
from tests.data_prep import outputs
from tests.data_prep.sequences.small_cohort import config_of
from tests.data_prep.wsi import tiny_slides


def tiff(path, size=(512, 512), mpp=1.0, level=180):
  pixels = np.full((size[1], size[0], 3), level, np.uint8)
  resolution = {}
  if mpp:
    resolution = {
      "resolution": (1e4 / mpp,) * 2,
      "resolutionunit": "CENTIMETER",
    }
  tifffile.imwrite(
    path,
    pixels,
    tile=(256, 256),
    photometric="rgb",
    compression="jpeg",
    **resolution,
  )


def test_every_bad_input_has_its_row(cohort, tmp_path):
  folder = tmp_path / "slides"
  folder.mkdir()
  good = sorted(cohort.glob("*.tiff"))[0]
  data = good.read_bytes()
  (folder / "good.tiff").write_bytes(data)
  (folder / "truncated.tiff").write_bytes(data[: len(data) * 6 // 10])
  (folder / "empty.tiff").write_bytes(b"")
  (folder / "text.svs").write_text("not a slide")
  (folder / "no_pyramid.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
  tiff(folder / "no_mpp.tiff", mpp=None)
  tiff(folder / "absurd_mpp.tiff", mpp=350.0)
  tiff(folder / "too_coarse.tiff", mpp=2.0)
  tiff(folder / "tiny.tiff", size=(24, 24))
  tiff(folder / "blank.tiff", level=244)
  with tifffile.TiffFile(good) as file:
    page = file.pages[0]
    starts, sizes = list(page.dataoffsets), list(page.databytecounts)
  zeroed, half = bytearray(data), bytearray(data)
  for start, size in zip(starts, sizes, strict=True):
    zeroed[start : start + size] = bytes(size)
    half[start + size // 2 : start + size] = bytes(size - size // 2)
  (folder / "zeroed.tiff").write_bytes(zeroed)
  (folder / "half.tiff").write_bytes(half)
  summary = prepare.prepare(config_of(folder, tmp_path / "out"))
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  found = {
    row["slide_id"]: row
    for row in outputs.rows(tmp_path / "out" / "errors.csv")
  }
  codes = {name: (row["stage"], row["code"]) for name, row in found.items()}
  assert codes["no_mpp"] == ("mpp", "no_mpp")
  assert codes["absurd_mpp"] == ("mpp", "mpp_out_of_range")
  assert codes["too_coarse"] == ("mpp", "target_finer_than_scan")
  assert codes["tiny"] == ("centres", "slide_too_small")
  assert codes["empty"][1] == "empty_file"
  assert codes["text"][1] == "not_an_image"
  assert codes["half"][1] == codes["zeroed"][1] == "damaged_tile"
  assert found["half"]["place"] and found["zeroed"]["place"]
  assert {"truncated", "no_pyramid"} <= set(codes)
  assert all(row["message"] for row in found.values())
  table = {
    r["slide_id"]: r for r in outputs.rows(tmp_path / "out" / "slides.csv")
  }
  assert table["blank"]["status"] == "no_tissue"
  assert table["good"]["status"] == "done"
  assert "good" not in codes and "blank" not in codes
  metadata = tmp_path / "out" / "shards" / "metadata.json"
  assert list(json.loads(metadata.read_text())["slides"]) == ["good"]
  assert not list((tmp_path / "out").rglob("*.tmp-*"))
  for name in codes:
    assert not (tmp_path / "out" / "parts" / name / "slide.json").exists()


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_damaged_tile_costs_the_sequences_on_it(tmp_path, reader):
  """Tile x 384 to 512, y 256 to 384 of level 0; sequences of 60 x 32 px."""
  noise = np.random.default_rng(0).normal(0, 8, (768, 1024, 1))
  pixels = np.clip(np.array((190, 110, 170)) + noise, 0, 255).astype(np.uint8)
  found = {}
  for name in ("whole", "damaged"):
    (tmp_path / name).mkdir()
    path = tiny_slides.write(tmp_path / name / "s.tiff", pixels, mpp=1.06)
    if name == "damaged":
      tiny_slides.damage(path, "zeroed", column=3, row=2)
    config = config_of(tmp_path / name, tmp_path / f"{name}_out", reader=reader)
    config["sequence"]["max_centres"] = 16
    summary = prepare.prepare(config)
    found[name], _ = outputs.records_of(tmp_path / f"{name}_out")
  whole, damaged = found["whole"], found["damaged"]
  assert len(whole) == 16 * 8 and set(damaged) < set(whole)
  for name, record in damaged.items():
    assert record.panels == whole[name].panels
  touches = set()
  for name, record in whole.items():
    if record.heading_deg % 90 == 0:
      low = record.frame_level0_xy.min(0) - 16
      high = record.frame_level0_xy.max(0) + 16
      if (low < (512, 384)).all() and (high > (384, 256)).all():
        touches.add(name)
  lost = set(whole) - set(damaged)
  assert touches and touches <= lost
  # A pixel around each strip is read as well.
  near = {n for n in lost - touches if whole[n].heading_deg % 90 == 0}
  assert len(near) <= 2
  out = tmp_path / "damaged_out"
  (row,) = outputs.rows(out / "slides.csv")
  assert row["status"] == "done" and int(row["sequences"]) == len(damaged)
  assert row["reason"] == f"{len(lost)} of 128 sequences touch damaged tiles"
  errors = outputs.rows(out / "errors.csv")
  assert {(e["stage"], e["code"]) for e in errors} == {("read", "damaged_tile")}
  assert [error["place"] for error in errors] == ["0 384 256"]
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  assert "1 slides done, 1 with a remark\n" in summary.text


def test_a_slide_of_which_most_is_damaged_is_a_row(tmp_path):
  """Three of four columns of tiles of level 0; the thumbnail is of level 1."""
  pixels = np.full((512, 512, 3), (190, 110, 170), np.uint8)
  (tmp_path / "slides").mkdir()
  for name in ("bad", "good"):
    path = tmp_path / "slides" / f"{name}.tiff"
    tiny_slides.write(path, pixels, mpp=1.06)
  for column in range(1, 4):
    for row in range(4):
      path = tmp_path / "slides" / "bad.tiff"
      tiny_slides.damage(path, "zeroed", column=column, row=row)
  config = config_of(tmp_path / "slides", tmp_path / "out")
  config["tissue"]["thumbnail_px"] = 128
  summary = prepare.prepare(config)
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  (row,) = outputs.rows(tmp_path / "out" / "errors.csv")
  assert (row["slide_id"], row["stage"]) == ("bad", "read")
  assert row["code"] == "too_many_bad_tiles"
  assert "more than the 50% allowed" in row["message"]
  assert not (tmp_path / "out" / "parts" / "bad" / "slide.json").exists()
  found, _ = outputs.records_of(tmp_path / "out")
  assert {record.slide_id for record in found.values()} == {"good"}


def test_nothing_usable_is_exit_code_1(tmp_path):
  tiff(tmp_path / "blank.tiff", level=244)
  summary = prepare.prepare(config_of(tmp_path, tmp_path / "out"))
  assert summary.exit_code == runs.EXIT_NOTHING
  assert not (tmp_path / "out" / "shards").exists()


def test_full_disk_is_a_row_and_leaves_no_half_file(
  cohort, tmp_path, monkeypatch
):
  names = sorted(p.stem for p in cohort.glob("*.tiff"))
  write_part = shards.write_part

  def fills_up(path, sequences, layout):
    def stops():
      yield next(sequences)
      raise OSError(errno.ENOSPC, "No space left on device")

    full = path.parent.name == names[1]
    return write_part(path, stops() if full else sequences, layout)

  monkeypatch.setattr(shards, "write_part", fills_up)
  out = tmp_path / "out"
  summary = prepare.prepare(config_of(cohort, out))
  assert summary.exit_code == runs.EXIT_SOME_FAILED
  (row,) = outputs.rows(out / "errors.csv")
  assert (row["slide_id"], row["stage"], row["code"]) == (
    names[1],
    "write",
    "disk_full",
  )
  assert list((out / "parts" / names[1]).iterdir()) == []
  monkeypatch.undo()
  assert prepare.prepare(config_of(cohort, out)).exit_code == 0
  assert outputs.rows(out / "errors.csv") == []


def test_an_odd_failure_costs_one_slide(cohort, tmp_path, monkeypatch):
  def breaks(*unused, **also_unused):
    raise ZeroDivisionError("odd")

  monkeypatch.setattr(slide_job.cut, "choose_centres", breaks)
  summary = prepare.prepare(config_of(cohort, tmp_path))
  assert summary.exit_code == runs.EXIT_NOTHING
  row = outputs.rows(tmp_path / "errors.csv")[0]
  assert (row["stage"], row["code"]) == ("centres", "ZeroDivisionError")
  assert "test_bad_inputs.py" in row["message"]
