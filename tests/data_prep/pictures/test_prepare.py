"""From a folder and a table to shards, and everything that may be wrong."""

import dataclasses
import filecmp
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.files import tables
from data_prep.pictures import job as picture_job
from data_prep.pictures import prepare
from tests.data_prep.pictures import tiny_pictures
from wsiseq_jax.segment.pictures import Pictures


@pytest.fixture
def rows(tmp_path):
  return tiny_pictures.cohort(tmp_path)


def read(folder):
  """All pictures by id."""
  found = {}
  for split in ("train", "val", "test"):
    source = Pictures(folder / "out", split)
    found |= {one.id: one for one in map(source.picture, range(len(source)))}
  return found


def test_everything_of_a_row_arrives(tmp_path, rows):
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert (summary.exit_code, errors) == (0, {})
  found = read(tmp_path)
  assert sorted(found) == [f"p{n:02d}" for n in range(12)]
  one = found["p00"]
  assert (one.patient_id, one.slide_id, one.size) == (
    "patient0",
    "p00",
    tiny_pictures.SIZE,
  )
  assert one.labels.tolist() == [1] and one.mpp == 1
  np.testing.assert_array_equal(one.truth, tiny_pictures.mask(9))
  np.testing.assert_array_equal(one.points, [[3, 4, 1], [30, 20, 0]])
  # A PNG is stored as JPEG of high quality.
  error = one.pixels.astype(int) - tiny_pictures.pixels(0)
  assert np.abs(error).mean() < 3
  assert one.tissue[:, :42].all() and not one.tissue[:, -6:].any()
  assert found["p02"].labels.tolist() == [0] and not found["p02"].truth.any()
  table = {
    r["picture_id"]: r for r in tables.rows_of(tmp_path / "out/pictures.csv")
  }
  assert table["p00"]["mask"] == f"tumour {9 / 56:.3f}"
  assert (tmp_path / "out/qc/contact_sheet.jpg").is_file()


def test_a_second_run_writes_nothing(tmp_path, rows, monkeypatch):
  tiny_pictures.prepared(tmp_path, rows)
  done = []
  process = picture_job.process
  monkeypatch.setattr(
    picture_job, "process", lambda job: done.append(job.name) or process(job)
  )
  summary, _ = tiny_pictures.prepared(tmp_path, rows)
  assert not summary.changed and not done
  # Another picture of one patient makes one group again.
  tiny_pictures.write(tmp_path / "p00.png", tiny_pictures.pixels(99))
  summary, _ = tiny_pictures.prepared(tmp_path, rows)
  assert summary.changed and len(done) == 1


def test_a_run_that_was_cut_off_leaves_the_same_bytes(tmp_path, rows):
  tiny_pictures.prepared(tmp_path, rows)
  whole = tmp_path / "whole"
  shutil.move(tmp_path / "out", whole)
  table = tiny_pictures.table(tmp_path, rows)
  for part in ("2/2", "1/2"):
    prepare.prepare_pictures(
      tiny_pictures.config(table, tmp_path / "out", part=part)
    )
  tiny_pictures.prepared(tmp_path, rows)
  names = [path.name for path in (whole / "shards").iterdir()]
  same, other, missing = filecmp.cmpfiles(
    whole / "shards", tmp_path / "out/shards", names, shallow=False
  )
  assert (other, missing) == ([], []) and len(same) == len(names)


def test_a_column_for_each_class(tmp_path, rows):
  for number, row in enumerate(rows):
    del row["label"]
    row |= {"tumour": str(number // 2 % 2), "stroma": "1" if number else ""}
    row["mask"] = row["points"] = ""
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert summary.exit_code == 0
  assert set(errors) == {("p00", "missing_label")}
  found = read(tmp_path)
  np.testing.assert_array_equal(found["p00"].labels, [0, np.nan])
  np.testing.assert_array_equal(found["p02"].labels, [1, 1])
  # Without a mask nothing is known, but of a certain negative.
  assert (found["p02"].truth == 255).all()


def test_words_of_a_class_and_several_in_a_cell(tmp_path, rows):
  rows[0]["label"] = "Malignant; stroma"
  rows[1]["label"] = "benign"
  rows[1]["mask"] = ""
  summary, errors = tiny_pictures.prepared(
    tmp_path, rows, classes=("stroma", "tumour=malignant|cancer")
  )
  assert set(errors) == {
    (f"p{n:02d}", "label_and_mask_differ") for n in (0, 4, 5, 8, 9)
  }
  found = read(tmp_path)
  assert found["p00"].labels.tolist() == [1, 1]
  assert found["p01"].labels.tolist() == [0, 0]
  assert not found["p01"].truth.any()
  assert found["p00"].points[0].tolist() == [3, 4, 2]


def grey_mask(path, array):
  Image.fromarray(array).save(path)


def palette(path, array):
  picture = Image.fromarray(array, "P")
  picture.putpalette([255, 0, 0, 0, 0, 255] + [9] * 762)
  picture.save(path)


def test_masks_of_other_kinds_are_read(tmp_path, rows):
  masks = tmp_path / "masks"
  wanted = tiny_pictures.mask(9)
  palette(masks / "p00.png", wanted)  # numbers count, not colours
  grey_mask(masks / "p01.png", wanted.astype(np.uint16))
  tiny_pictures.write(masks / "p04.png", np.stack([wanted] * 3, -1))
  grey_mask(masks / "p05.png", wanted.astype(bool))
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert (summary.exit_code, errors) == (0, {})
  found = read(tmp_path)
  for name in ("p00", "p01", "p04", "p05"):
    np.testing.assert_array_equal(found[name].truth, wanted)


def test_values_of_masks_can_be_named(tmp_path, rows):
  for row in rows:
    path = tmp_path / row["mask"]
    grey_mask(path, cv2.imread(str(path), 0) * np.uint8(255))
  _, errors = tiny_pictures.prepared(tmp_path, rows)
  assert set(errors) == {
    (f"p{n:02d}", "mask_values") for n in (0, 1, 4, 5, 8, 9)
  }
  assert "config.mask_values=(0, 255)" in errors["p00", "mask_values"].message
  summary, errors = tiny_pictures.prepared(
    tmp_path, rows, classes=("tumour",), mask_values=(0, 255)
  )
  assert (summary.exit_code, errors) == (0, {})
  np.testing.assert_array_equal(
    read(tmp_path)["p00"].truth, tiny_pictures.mask(9)
  )


BAD_MASKS = {
  "mask_size": (lambda p: grey_mask(p, np.ones((40, 40), np.uint8)), "40 x 40"),
  "mask_values": (
    lambda p: grey_mask(p, tiny_pictures.mask(9, 7)),
    r"values \[7\] beyond the 1 classes",
  ),
  "empty_mask": (
    lambda p: grey_mask(p, tiny_pictures.mask(0)),
    "but the labels name 'tumour'",
  ),
  "mask_colour": (
    lambda p: tiny_pictures.write(p, tiny_pictures.pixels(3)),
    "a mask in colour",
  ),
  "unreadable_mask": (lambda p: p.write_bytes(b"no picture"), "p00.png"),
  "missing_mask": (lambda p: p.unlink(), "no such file"),
}


@pytest.mark.parametrize("code", BAD_MASKS)
def test_a_wrong_mask_costs_itself_alone(tmp_path, rows, code):
  spoil, message = BAD_MASKS[code]
  spoil(tmp_path / "masks" / "p00.png")
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert summary.exit_code == 3
  assert set(errors) == {("p00", code)}
  error = errors["p00", code]
  assert re.search(message, error.message)
  assert "used without its mask" in error.message
  found = read(tmp_path)
  assert len(found) == 12 and (found["p00"].truth == 255).all()
  assert found["p00"].labels.tolist() == [1]


def test_a_mask_as_jpeg_is_refused(tmp_path, rows):
  rows[0]["mask"] = "masks/p00.jpg"
  tiny_pictures.write(tmp_path / "masks/p00.jpg", tiny_pictures.mask(9))
  _, errors = tiny_pictures.prepared(tmp_path, rows)
  assert set(errors) == {("p00", "mask_format")}


def test_points_outside_are_left_out(tmp_path, rows):
  rows[0]["points"] = "55 39 tumour; 56 3 tumour; 2 -1 tumour; 5 x tumour"
  rows[1]["points"] = "points.csv"
  (tmp_path / "points.csv").write_text("X;Y;class\n1,5;2;1\n3;4;stroma\n")
  rows[4]["points"] = "nowhere.csv"
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert summary.exit_code == 3
  assert set(errors) == {
    ("p00", "points_outside"),
    ("p00", "bad_points"),
    ("p01", "bad_points"),
    ("p04", "missing_points"),
  }
  text = errors["p00", "points_outside"].message
  assert text.startswith("2 of 3 points") and "x = 56, y = 3" in text
  assert (
    "'stroma' is none of the classes" in errors["p01", "bad_points"].message
  )
  found = read(tmp_path)
  assert found["p00"].points.tolist() == [[55, 39, 1]]
  assert found["p01"].points.tolist() == [[1.5, 2, 1]]


def test_images_that_cannot_be_used(tmp_path, rows):
  deep = np.full((*tiny_pictures.SIZE, 3), 40_000, np.uint16)
  tiny_pictures.write(tmp_path / "p00.png", deep)
  tiny_pictures.write(tmp_path / "p01.png", tiny_pictures.pixels(1)[..., 0])
  (tmp_path / "p04.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"cut off")
  (tmp_path / "p05.png").unlink()  # a label without its image
  tiny_pictures.write(tmp_path / "more.png", tiny_pictures.pixels(5))
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert summary.exit_code == 3
  assert set(errors) == {
    ("p00", "bit_depth"),
    ("p01", "grey_image"),
    ("p04", "unreadable"),
    ("p05", "missing_file"),
    ("more", "no_row"),
  }
  assert "16 bits a channel" in errors["p00", "bit_depth"].message
  found = read(tmp_path)
  assert sorted(found) == [f"p{n:02d}" for n in range(12) if n not in (0, 4, 5)]
  grey = found["p01"].pixels.astype(int)
  assert np.abs(grey - grey[..., :1]).max() <= 2


def test_labels_that_cannot_be_used(tmp_path, rows):
  rows[0]["label"] = "necrosis"
  rows[1]["label"] = "tumour; normal"
  rows[4]["label"] = ""
  rows.append({**rows[5], "patient_id": "patient9"})
  summary, errors = tiny_pictures.prepared(tmp_path, rows, classes=("tumour",))
  assert set(errors) == {
    ("p00", "bad_label"),
    ("p01", "bad_label"),
    ("p04", "missing_label"),
    ("p05", "duplicate_id"),
    ("tumour", "class_never_seen"),  # p00 and p01 were all of train
  }
  assert (
    "'necrosis' is none of the classes" in errors["p00", "bad_label"].message
  )
  assert np.isnan(read(tmp_path)["p04"].labels).all()


def test_a_class_never_seen_is_said(tmp_path, rows):
  _, errors = tiny_pictures.prepared(tmp_path, rows, classes=("tumour", "fat"))
  text = errors["fat", "class_never_seen"].message
  assert text == "class 'fat' is the label of no picture: nothing can learn it"


def test_a_patient_in_two_splits_is_left_out(tmp_path, rows):
  rows[1]["split"] = "test"
  rows[2]["split"] = "holdout"
  _, errors = tiny_pictures.prepared(tmp_path, rows)
  assert {(n, c) for n, c in errors if c != "class_never_seen"} == {
    ("p00", "patient_in_two_splits"),
    ("p01", "patient_in_two_splits"),
    ("p02", "bad_split"),
  }
  assert "p00" not in read(tmp_path)


def test_nothing_to_train_on(tmp_path, rows):
  for path in tmp_path.glob("*.png"):
    path.write_bytes(b"")
  summary, errors = tiny_pictures.prepared(tmp_path, rows)
  assert summary.exit_code == 1 and len(errors) == 12
  assert "no data set was written" in summary.text


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"csv": ""}, "name a table of pictures, or slides"),
    ({"classes": ("a=x", "b=x")}, "'x' names two classes"),
    ({"classes": ("a=normal",)}, "in config.negatives too"),
    ({"mask_values": (0, 255)}, "want background and each of config.classes"),
    ({"columns": {"label": "grade"}}, "has no column 'grade'"),
    ({"images": "/nowhere"}, "config.images = '/nowhere': no such folder"),
    ({"tile": {}}, "unknown key; did you mean 'tiles'"),
  ],
)
def test_wrong_settings_are_refused(tmp_path, rows, more, message):
  with pytest.raises(ValueError, match=message):
    tiny_pictures.prepared(tmp_path, rows, **more)


def test_a_table_without_classes_is_refused(tmp_path, rows):
  for row in rows:
    row["label"] = "normal"
  with pytest.raises(ValueError, match="column 'label' .* names no class"):
    tiny_pictures.prepared(tmp_path, rows)
  rows = [{"filename": r["filename"], "remark": "x"} for r in rows]
  with pytest.raises(ValueError, match="neither a column label nor columns"):
    tiny_pictures.prepared(tmp_path, rows)


def test_a_jpeg_is_kept_as_it_is(tmp_path, rows):
  data = cv2.imencode(".jpg", tiny_pictures.pixels(0))[1].tobytes()
  (tmp_path / "p00.jpg").write_bytes(data)
  (tmp_path / "p00.png").unlink()
  rows[0]["filename"] = "p00.jpg"
  tiny_pictures.prepared(tmp_path, rows)
  shard = b"".join(
    p.read_bytes() for p in (tmp_path / "out/shards").glob("*train*")
  )
  assert data in shard


def test_a_corrected_label_is_seen(tmp_path, rows):
  tiny_pictures.prepared(tmp_path, rows)
  rows[2]["label"] = ""
  tiny_pictures.prepared(tmp_path, rows)
  content = json.loads((tmp_path / "out/shards/targets.json").read_text())
  assert content["rows"]["p02"] == [None]


def test_settings_survive_the_config_file(tmp_path):
  from configs import prep_pictures
  from data_prep.files import schema
  from data_prep.pictures.settings import PictureSettings

  for preset in prep_pictures.PRESETS:
    found = prep_pictures.get_config(preset).to_dict()
    found |= {"csv": "x.csv", "out": str(tmp_path)}
    built = schema.build(PictureSettings, found)
    assert dataclasses.asdict(built)["csv"] == "x.csv"
