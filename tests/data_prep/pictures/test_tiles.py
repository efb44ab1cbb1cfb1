"""Tiles of slides with what is drawn on them."""

import dataclasses
import json

import numpy as np
import pytest

from data_prep.pictures import prepare
from data_prep.pictures.settings import PictureSettings, PictureTissue, TileCut
from data_prep.synthetic import cells
from wsiseq_jax.segment.pictures import Pictures

PX, MPP, SLIDE_MPP = 96, 1.0, 0.5


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
  """Four slides with nests of tumour, drawn as QuPath does."""
  folder = tmp_path_factory.mktemp("slides")
  cells.make_cohort(folder, patients=4, size_um=(420, 340))
  return folder


def prepared(slides, out, classes=("tumour=Tumor|attracted",), **tiles):
  more = {"annotations": str(slides / "regions"), "px": PX, "mpp": MPP}
  settings = PictureSettings(
    out=str(out),
    workers=0,
    classes=classes,
    negatives=("free",),
    tiles=TileCut(slides=str(slides / "slides.csv"), **{**more, **tiles}),
    splits={"train": 0.5, "val": 0.5},
    tissue=PictureTissue(thumbnail_px=200),
  )
  config = dataclasses.asdict(settings)
  summary = prepare.prepare_pictures(config)
  return summary, {(e.slide, e.error): e for e in summary.errors}


def pictures(out):
  found = []
  for split in ("train", "val"):
    source = Pictures(out, split)
    found += map(source.picture, range(len(source)))
  return found


def test_masks_are_what_is_drawn(slides, tmp_path):
  summary, errors = prepared(slides, tmp_path)
  assert (summary.exit_code, errors) == (0, {})
  found = pictures(tmp_path)
  drawn = {}
  for number in range(4):
    path = slides / "regions" / f"cells_{number:02d}.geojson"
    features = json.loads(path.read_text())["features"]
    drawn[path.stem] = [f["geometry"]["coordinates"][0] for f in features]
  total = {name: 0 for name in drawn}
  for one in found:
    assert one.size == (PX, PX) and one.mpp == MPP
    x, y = one.level0_xy
    assert one.id == f"{one.slide_id}/x{int(x)}_y{int(y)}"
    assert one.labels[0] == (one.truth.mean() >= 0.01)
    total[one.slide_id] += int((one.truth == 1).sum())
    # Nests are darker than what is around them.
    if 0.2 < one.truth.mean() < 0.8:
      inside = one.truth == 1
      stroma = (one.truth == 0) & (one.tissue == 1)
      green = one.pixels[..., 1].astype(float)
      assert green[inside].mean() < green[stroma].mean() - 8
  for name, rings in drawn.items():
    area = sum(map(_area, rings)) * SLIDE_MPP**2  # um²
    # Some of it lies in tiles that are mostly glass; pixels are coarse.
    assert 0.8 * area < total[name] * MPP**2 < 1.03 * area
  assert {one.patient_id for one in found} == {
    f"patient_{n:02d}" for n in range(4)
  }


def _area(ring):
  x, y = np.array(ring, float).T
  return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_labels_of_the_slide_and_no_annotations(slides, tmp_path):
  summary, _ = prepared(
    slides, tmp_path, annotations="", labels="slide", most=3
  )
  assert summary.exit_code == 0
  found = pictures(tmp_path)
  assert len(found) == 12  # three a slide
  for one in found:
    is_positive = int(one.slide_id[-2:]) % 2 == 0
    assert one.labels.tolist() == [is_positive]
    # Nothing is known of a positive slide, everything of a negative one.
    assert (one.truth == (255 if is_positive else 0)).all()


def test_a_positive_slide_that_nobody_drew_on(slides, tmp_path):
  folder = tmp_path / "drawn"
  folder.mkdir()
  for number in (1, 2):
    name = f"cells_{number:02d}.geojson"
    (folder / name).write_bytes((slides / "regions" / name).read_bytes())
  prepared(slides, tmp_path / "out", annotations=str(folder))
  for one in pictures(tmp_path / "out"):
    known = {"00": False, "01": True, "02": True, "03": True}[one.slide_id[-2:]]
    assert np.isnan(one.labels).all() != known
    assert (one.truth == 255).all() != known


def test_what_is_wrong_with_a_slide_is_its_row(slides, tmp_path):
  folder = tmp_path / "drawn"
  folder.mkdir()
  (folder / "cells_00.geojson").write_text("{")
  (folder / "cells_01.xml").write_text("<ASAP_Annotations/>")
  outside = {
    "type": "Feature",
    "geometry": {
      "type": "Polygon",
      "coordinates": [[[9e5, 9e5], [9e5 + 9, 9e5], [9e5, 9e5 + 9]]],
    },
    "properties": {"classification": {"name": "Tumor"}},
  }
  (folder / "cells_02.geojson").write_text(json.dumps(outside))
  outside["geometry"]["coordinates"] = [[[9, 9], [99, 9], [9, 99]]]
  outside["properties"]["classification"]["name"] = "Fat"
  (folder / "cells_03.geojson").write_text(json.dumps(outside))
  summary, errors = prepared(slides, tmp_path / "out", annotations=str(folder))
  assert summary.exit_code == 3
  bad = {
    slide: e for (slide, code), e in errors.items() if code == "bad_annotations"
  }
  assert "not a JSON file" in bad["cells_00"].message
  assert "lies outside the slide" in bad["cells_02"].message
  assert "'fat' is none of the classes" in bad["cells_03"].message
  assert ("tumour", "class_never_seen") in errors
  # A slide that gives nothing takes no place in a split.
  splits = json.loads((tmp_path / "out" / "splits.json").read_text())
  assert splits["patients"] == {"patient_01": "train"}
  # An empty file says that there is nothing.
  assert {one.slide_id for one in pictures_of_any(tmp_path / "out")} == {
    "cells_01"
  }


def pictures_of_any(out):
  found = []
  for split in ("train", "val"):
    try:
      source = Pictures(out, split)
    except ValueError:
      continue
    found += map(source.picture, range(len(source)))
  return found


def test_wrong_settings_are_refused(slides, tmp_path):
  with pytest.raises(ValueError, match="needs config.classes and"):
    prepared(slides, tmp_path, annotations="")
  with pytest.raises(ValueError, match="no such folder"):
    prepared(slides, tmp_path, annotations=str(tmp_path / "nowhere"))
  with pytest.raises(ValueError, match="must be below config.tiles.px = 96"):
    prepared(slides, tmp_path, overlap_px=96)
