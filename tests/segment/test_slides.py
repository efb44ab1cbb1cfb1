"""The job `segment_slides`: through main.py, resumed, where pixels belong."""

import csv
import dataclasses
import json
import sys
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from absl import flags

import main
from configs import segment as segment_config
from configs import segment_slides as slides_config
from data_prep.files import done
from data_prep.synthetic import slides as synthetic
from data_prep.wsi.slide_tissue import tissue_of
from data_prep.wsi.slides import Slide
from tests.maps import qupath
from wsiseq_jax import config as configs
from wsiseq_jax.segment import nuclei, slide_settings, slides, stage, student
from wsiseq_jax.segment import settings as segment_settings
from wsiseq_jax.segment.colour_window import to_grid
from wsiseq_jax.segment.slide_model import SlideModel, load
from wsiseq_jax.spatial import points


def untrained(folder):
  """What a job `segment` of the method `nuclei` leaves, never trained."""
  config = segment_config.get_config("nuclei,smoke")
  config.workdir = str(folder)
  asked = segment_settings.read(config)
  detect, masks = asked.chain()
  frozen = asked.backbone.start(0)
  networks = {
    masks.name: student.network(asked.backbone, 1, masks.width, False, False),
    detect.round(detect.rounds): nuclei.network(
      asked.backbone, detect.width, 10.0
    ),
  }
  for name, network in networks.items():
    params = network.init(jax.random.key(1), frozen, None)
    out = params["head"]["out"]  # which starts at zero
    out["kernel"] = jax.random.normal(jax.random.key(2), out["kernel"].shape)
    stage.write_params(folder / name, params)
  facts = {"classes": ["nucleus"], "mpp": 1.0}
  done.Done(folder / masks.name / "done.json", 0).write(facts)
  (folder / "segment_config.json").write_text(configs.to_json(config))
  return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp("model"))


def call(workdir, model, *more):
  words = [
    "main.py",
    f"--config={slides_config.__file__}:smoke",
    f"--config.workdir={workdir}",
    f"--config.model.workdir={model}",
    *more,
  ]
  for name in [n for n in flags.FLAGS if n.startswith("config.")]:
    delattr(flags.FLAGS, name)
  with mock.patch.object(sys, "argv", words):
    flags.FLAGS(words)
  main.main(words[:1])


def rows(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_smoke_through_main_and_again(tmp_path, model_folder, capsys):
  call(tmp_path, model_folder)
  names = ["syn_00", "syn_01"]
  assert [r["status"] for r in rows(tmp_path / "slides.csv")] == ["ok"] * 2
  assert rows(tmp_path / "errors.csv") == []
  areas = rows(tmp_path / "areas.csv")
  assert [r["slide_id"] for r in areas] == names
  for name, row in zip(names, areas, strict=True):
    mask = tifffile.imread(tmp_path / "masks" / f"{name}.tif")
    png = cv2.imread(str(tmp_path / "png" / f"{name}.png"), -1)
    assert (png == mask).all() and set(np.unique(mask)) <= {0, 1}
    np.testing.assert_allclose(
      float(row["area_mm2"]), mask.sum() * (4e-3) ** 2, rtol=1e-4
    )
    text = (tmp_path / "geojson" / f"{name}.geojson").read_text()
    qupath.validate(json.loads(text))
    cells = points.read(tmp_path / "cells" / f"{name}.parquet")
    assert cells.slide_id == name
    assert len(cells) == int(row["cells"]) > 0
  assert list((tmp_path / "drafts").iterdir()) == []
  stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "masks").iterdir()}
  (tmp_path / "masks" / "syn_01.tif").write_bytes(b"cut short")
  call(tmp_path, model_folder)
  assert "1 of them before this run" in capsys.readouterr().out
  kept = tmp_path / "masks" / "syn_00.tif"
  assert kept.stat().st_mtime_ns == stamps[kept]
  tifffile.imread(tmp_path / "masks" / "syn_01.tif")


def darkness(params, pixels):
  """A network that says how dark each place is, and that peaks there."""
  del params
  dark = 1 - to_grid(pixels / 255.0, 4).mean(axis=-1, keepdims=True)
  return {"scores": dark, "nuclei": dark}


def test_every_pixel_lands_where_it_is_on_the_slide(tmp_path):
  """Against the whole slide read at once."""
  folder = synthetic.make_cohort(
    tmp_path / "slides", slides=1, size_px=(630, 510)
  )
  config = slides_config.get_config("smoke")
  config.workdir, config.model.workdir = str(tmp_path / "out"), "none"
  config.data.slides = str(folder)
  config.tiles.mpp = 1.0
  asked = slide_settings.read(config)
  model = SlideModel(
    "dark", ("dark",), None, 64, 0.35, {}, darkness, "dark", nuclei.Detection()
  )
  summary = slides.segment_slides(asked, model)
  assert summary.exit_code == 0
  [outcome] = summary.outcomes.values()
  name = outcome.entry.slide_id
  found = tifffile.imread(tmp_path / "out" / "masks" / f"{name}.tif")
  with Slide.open(outcome.entry.path) as slide:
    height, width = found.shape
    assert found.shape == tuple(
      np.ceil(np.array(slide.level0_px)[::-1] * slide.mpp / 4).astype(int)
    )
    centre = np.array([width, height]) * 4 / slide.mpp / 2
    whole = slide.read_region(centre, (width * 4, height * 4), 1.0)
    thumbnail, downsample = slide.thumbnail(256)
    tissue = tissue_of(
      outcome.entry, thumbnail, slide.mpp * downsample, "guarded"
    )
    ratio = 4 / slide.mpp / downsample
    level0_px, mpp = slide.level0_px, slide.mpp
  dark = darkness(None, jnp.asarray(whole[None]))["scores"]
  dark = np.asarray(dark[0, ..., 0])
  row, column = (
    np.minimum((np.arange(n) + 0.5) * ratio, side - 1).astype(int)
    for n, side in zip(found.shape, tissue.shape, strict=True)
  )
  is_tissue = tissue[row][:, column]
  want = (dark >= 0.35) & is_tissue
  assert 0.05 < want.mean() < 0.95
  # Tiles that have next to no tissue are not read.
  assert ((found == 1) != want).mean() < 0.005
  cells = points.read(tmp_path / "out" / "cells" / f"{name}.parquet")
  column, row = (cells.xy_um / 4).astype(int).T
  assert len(cells) > 20 and (dark[row, column] > 0.3).mean() > 0.95
  # Tiles hang over the edge; there is no nucleus, nor on glass.
  assert (cells.xy_um >= 0).all()
  assert (cells.xy_um < np.array(level0_px) * mpp).all()
  assert is_tissue[row, column].mean() > 0.99


def test_tiles_are_as_large_as_the_crops_it_learned_from(model_folder):
  wanted = slide_settings.TrainedModel(workdir=str(model_folder), threshold=0.5)
  assert load(wanted).crop_px == 64
  config = slides_config.get_config()
  config.workdir, config.model.workdir = "out", "model"
  config.data.slides = "slides"

  def tiles(crop_px, **given):
    one = config.copy_and_resolve_references()
    one.tiles.update(given)
    found = slide_settings.sized(slide_settings.read(one), crop_px).tiles
    return found.tile_px, found.overlap_px

  assert tiles(512) == (512, 128)
  assert tiles(100) == (128, 32)  # backbones take multiples of 32
  assert tiles(64, tile_px=256, overlap_px=8) == (256, 8)
  with pytest.raises(ValueError, match="overlap_px = 64: .* tile_px, 64"):
    tiles(64, overlap_px=64)


def test_a_wrong_call_says_what_is_wrong(tmp_path, model_folder):
  wanted = slide_settings.TrainedModel(workdir=str(tmp_path))
  with pytest.raises(ValueError, match="not the workdir of a finished job"):
    load(wanted)
  wanted = slide_settings.TrainedModel(workdir=str(model_folder))
  with pytest.raises(ValueError, match="config.model.threshold = 0: "):
    load(wanted)
  wanted = dataclasses.replace(wanted, threshold=0.5, stage="cam")
  with pytest.raises(ValueError, match="'nuclei' has the networks"):
    load(wanted)
  config = slides_config.get_config("smoke")
  config.workdir, config.model.workdir = "out", "model"
  with pytest.raises(ValueError, match="config.tiles.mpp = 0"):
    slide_settings.cutting(slide_settings.read(config), None)
  for key, value in (("tile_px", 100), ("overlap_px", 128), ("overlap_px", 3)):
    bad = config.copy_and_resolve_references()
    bad.tiles[key] = value
    with pytest.raises(ValueError, match=f"config.tiles.{key} = {value}"):
      slide_settings.read(bad)


def test_a_slide_that_cannot_be_written_leaves_nothing_of_before(
  tmp_path, model_folder, monkeypatch
):
  call(tmp_path, model_folder)
  write = slides.slide_masks.write_png

  def full(path, *more):
    if path.stem == "syn_00":
      raise OSError(28, "No space left on device")
    write(path, *more)

  monkeypatch.setattr(slides.slide_masks, "write_png", full)
  with pytest.raises(SystemExit) as end:
    call(tmp_path, model_folder, "--config.model.threshold=0.4")
  assert end.value.code == 3
  (row,) = rows(tmp_path / "errors.csv")
  assert (row["slide_id"], row["stage"]) == ("syn_00", "write")
  kinds = ("masks", "png", "overlays", "geojson", "cells")
  for kind in kinds:
    left = [path.stem for path in (tmp_path / kind).iterdir()]
    assert left == ["syn_01"], kind
  assert [r["slide_id"] for r in rows(tmp_path / "areas.csv")] == ["syn_01"]
  assert list((tmp_path / "drafts").iterdir()) == []
