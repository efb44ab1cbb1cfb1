"""Tables and feature folders, good and bad; buckets, padding, batches."""

import dataclasses
import time
import weakref

import h5py
import numpy as np
import pytest

from wsiseq_jax.data import tile_features
from wsiseq_jax.data.bags import Bags, UnreadableBag, bucket, plan
from wsiseq_jax.mil import cohort, synthetic


def put(folder, slide_id, tiles=3, width=4, value=1.0):
  one = tile_features.TileFeatures(
    slide_id,
    np.full((tiles, width), value, np.float32),
    np.stack([np.arange(tiles) * 256.0, np.zeros(tiles)], axis=1),
    256.0,
  )
  folder.mkdir(exist_ok=True)
  tile_features.write(folder / f"{slide_id}.h5", one)
  return one


def table(tmp_path, text):
  path = tmp_path / "table.csv"
  path.write_text(text)
  return str(path)


# Tables.


def test_names_of_columns_and_slides(tmp_path):
  path = table(
    tmp_path, "Slide,Patient,grade\nb.svs,p2,yes\nx/a.h5,p1,no\nc,,no\n,,\n"
  )
  found = cohort.read(path, "Grade", "binary")
  assert found.ids == ["a", "b", "c"]
  assert found.patients.tolist() == ["p1", "p2", "c"]
  assert found.classes == ("no", "yes") and found.positive == "yes"
  assert found.labels.tolist() == [[0.0], [1.0], [0.0]]


def test_unknown_labels_are_left_out(tmp_path):
  path = table(tmp_path, "slide_id,label\na,1\nb,\nc,nan\nd,0\n")
  found = cohort.read(path, "label", "binary")
  assert found.ids == ["a", "d"] and found.unlabelled == ("b", "c")
  kept = cohort.read(path, "label", "binary", ("0", "1"), is_training=False)
  assert kept.ids == ["a", "b", "c", "d"]
  assert kept.labels[:, 0].tolist()[::3] == [1.0, 0.0]
  assert np.isnan(kept.labels[1:3]).all()


def test_order_of_classes(tmp_path):
  path = table(tmp_path, "slide_id,label\na,10\nb,9\nc,2\n")
  assert cohort.read(path, "label", "multiclass").classes == ("2", "9", "10")
  given = ("10", "2", "9")
  found = cohort.read(path, "label", "multiclass", given)
  assert found.classes == given and found.labels[:, 0].tolist() == [0, 2, 1]


def test_other_heads(tmp_path):
  path = table(
    tmp_path, "slide_id,er,pr,time,event\na,1,,2.5,1\nb,0,1,4,0\nc,,,1,1\n"
  )
  found = cohort.read(path, "er,pr", "multilabel")
  assert found.ids == ["a", "b"] and found.slides[0].text == "1;"
  np.testing.assert_array_equal(found.labels, [[1, np.nan], [0, 1]])
  # Trained models may be applied to any of the labels, but to no others.
  models = {"classes": ("er", "pr"), "is_training": False}
  found = cohort.read(path, "er,pr", "multilabel", **models)
  assert found.ids == ["a", "b", "c"]
  assert found.is_labelled.tolist() == [True, True, False]
  with pytest.raises(ValueError, match="'er'.*the models know"):
    cohort.read(path, "pr,er", "multilabel", **models)
  wrong = table(tmp_path, "slide_id,er,pr\na,1,3\n")
  with pytest.raises(ValueError, match="slide 'a' has pr = 3: must be 0 or 1"):
    cohort.read(wrong, "er,pr", "multilabel", **models)
  path = table(tmp_path, "slide_id,time,event\na,2.5,1\nb,4,0\nc,1,1\n")
  found = cohort.read(path, "time,event", "survival")
  assert found.labels.tolist() == [[2.5, 1], [4, 0], [1, 1]]
  found = cohort.read(path, "time", "regression")
  assert found.classes == ("time",) and found.labels[1, 0] == 4


def test_camelyon16_by_name(tmp_path):
  text = "slide_id,label\nnormal_001,n\ntumor_001.tif,t\nTest_012,t\n"
  found = cohort.read(
    table(tmp_path, text), "label", "binary", split_column="camelyon16"
  )
  assert {s.slide_id: s.split for s in found.slides} == {
    "normal_001": "train",
    "tumor_001": "train",
    "Test_012": "test",
  }
  with pytest.raises(ValueError, match="'sample_1' is not named normal_"):
    cohort.read(
      table(tmp_path, text + "sample_1,n\n"),
      "label",
      "binary",
      split_column="camelyon16",
    )


ROWS = "slide_id,case_id,label,split\na,p,0,train\nb,p,1,train\nc,q,1,test\n"


@pytest.mark.parametrize(
  "text, change, words",
  [
    (
      ROWS.replace("b,p,1,train", "b,p,1,test"),
      {},
      "patient 'p' is in two split",
    ),
    (ROWS.replace("q,1,test", "q,1,tset"), {}, "'c' has 'tset'"),
    (ROWS.replace("slide_id", "name"), {}, "expected one of"),
    (ROWS, {"label": "grade"}, "no column 'grade'"),
    (ROWS, {"split_column": "part"}, "data.split_column: .* no column 'part'"),
    (ROWS.replace("q,1", "q,2"), {}, "did you mean .*'multiclass'"),
    (ROWS.replace(",1,", ",0,"), {}, "wants two classes.*has 1"),
    (ROWS, {"classes": ("0", "2")}, r"also has \['1'\]"),
    (ROWS, {"classes": ("0", "1", "2")}, r"no slide is of class \['2'\]"),
    (ROWS, {"target_type": "survival"}, "two columns, time and event"),
    (
      ROWS,
      {"target_type": "survival", "label": "label,label"},
      "times must be above",
    ),
    (
      ROWS.replace("q,1", "q,x"),
      {"target_type": "regression"},
      "'c', column label is 'x'",
    ),
    (
      ROWS.replace("q,1", "q,7"),
      {"target_type": "multilabel"},
      "label = 7: must be 0",
    ),
    ("slide_id,label\na,\n", {"split_column": ""}, "no slide with a label"),
  ],
)
def test_bad_tables(tmp_path, text, change, words):
  arguments = {
    "label": "label",
    "target_type": "binary",
    "split_column": "split",
  }
  with pytest.raises(ValueError, match=words):
    cohort.read(table(tmp_path, text), **{**arguments, **change})


def test_rows_that_cannot_be_used_are_errors(tmp_path):
  rows = ROWS + "B.svs,p,1.0,train\nd,r,0,test\nd,r,1,test\n,p,1,train\n"
  found = cohort.read(
    table(tmp_path, rows + "e,q,1,test,x\n"), "label", "binary"
  )
  assert found.ids == ["a", "b", "c"] and found.classes == ("0", "1")
  errors = {(e.slide, e.error): e.message for e in found.errors}
  assert list(errors) == [
    ("e", "bad_row"),
    ("d", "contradicting_rows"),
    ("row 8 of table.csv", "bad_row"),
  ]
  assert "row 6 of table.csv and row 7" in errors["d", "contradicting_rows"]
  # The slide is known, so that its features are no surprise.
  assert "d" in found.unlabelled


@pytest.mark.parametrize(
  "word", ["NA", "nan", "None", "n/a", "NULL", "-", "", "#N/A"]
)
def test_unknown_words_are_no_labels(tmp_path, word):
  rows = f"slide,Patient ID,label\na,{word},{word}\nb,{word},1\nc,q,0\n"
  found = cohort.read(table(tmp_path, rows), "label", "binary")
  assert found.ids == ["b", "c"] and found.unlabelled == ("a",)
  assert found.patients.tolist() == ["b", "q"] and found.classes == ("0", "1")


def test_one_and_one_point_zero_are_one_class(tmp_path):
  rows = "slide_id,label\na,1\nb,1.0\nc,0.0\nd,0\n"
  found = cohort.read(table(tmp_path, rows), "label", "binary")
  assert found.classes == ("0", "1")
  assert found.labels[:, 0].tolist() == [1, 1, 0, 0]
  found = cohort.read(table(tmp_path, rows), "label", "binary", ("1.0", "0.0"))
  assert found.classes == ("1", "0")


@pytest.mark.parametrize(
  "heading", ["PatientID", "Patient ID", "patient", "PATIENT", "case-id"]
)
def test_patients_by_any_name(tmp_path, capsys, heading):
  rows = f"slide_id,{heading},label\na,p,1\nb,p,0\n"
  found = cohort.read(table(tmp_path, rows), "label", "binary")
  assert found.patients.tolist() == ["p", "p"]
  assert f"patient_id is {heading!r}" in capsys.readouterr().err
  rows = rows.replace(heading, "zip")
  cohort.read(table(tmp_path, rows), "label", "binary")
  said = capsys.readouterr().err
  assert "no column of patients" in said and "each counts as a patient" in said


def test_no_table():
  with pytest.raises(ValueError, match="data.table = 'nowhere.csv'"):
    cohort.read("nowhere.csv", "label", "binary")


# Feature folders.


@pytest.mark.parametrize(
  ("file", "slide"),
  [
    ("S1.svs", "S1"),  # features `S1.svs.h5`
    ("S1", "S1.svs.h5"),
    ("S1.svs", "s1.svs"),
    ("M\u00fcller", "Mu\u0308ller"),
  ],
)
def test_spellings_of_one_slide(tmp_path, file, slide):
  put(tmp_path / "f", file, 3)
  bags = Bags(str(tmp_path / "f"), [slide])
  assert bags.tiles == {slide: 3}


def test_failures_are_kept_and_explained(tmp_path):
  folder = tmp_path / "f"
  put(folder, "good")
  put(folder, "pale", tiles=0)
  put(folder, "nan")
  with h5py.File(folder / "nan.h5", "a") as file:
    file["features"][1, 2] = np.nan
  (folder / "broken.h5").write_bytes(b"no HDF5")
  ids = ["broken", "gone", "good", "nan", "pale"]
  found = Bags(str(folder), ids)
  wanted = {
    "broken": "error",
    "gone": "error",
    "good": "ok",
    "nan": "ok",
    "pale": "no_tissue",
  }
  assert found.status == wanted
  assert found.width == 4 and found.tiles["good"] == 3
  assert "no feature file" in found.reason["gone"]
  # Headers say nothing of what the features are.
  with pytest.raises(UnreadableBag, match="'nan'.*nan.h5.*row 1"):
    list(found.batches(["good", "nan"], 2))
  assert found.status == wanted | {"nan": "error"}
  assert "nan.h5" in found.reason["nan"] and "row 1" in found.reason["nan"]
  with pytest.raises(ValueError, match="no slide can be used; 'pale'"):
    Bags(str(folder), ["pale"], unlisted="ignore")


def test_files_that_nobody_wants(tmp_path):
  for name in "abc":
    put(tmp_path, name)
  with pytest.raises(ValueError, match=r"1 slides are missing .* \['c'\]"):
    Bags(str(tmp_path), ["a", "b"])
  assert Bags(str(tmp_path), ["a", "b"], known=["c"]).width == 4
  assert list(Bags(str(tmp_path), ["a"], "ignore").status) == ["a"]
  with pytest.raises(ValueError, match="no slide in common: .*'a'.*'S1'"):
    Bags(str(tmp_path), ["S1"])


def test_mixed_widths_and_two_files_of_a_slide(tmp_path):
  put(tmp_path / "x", "a", width=4)
  put(tmp_path / "x", "b", width=5)
  with pytest.raises(ValueError, match=r"4 \(1 files, such as 'a'\), 5"):
    Bags(str(tmp_path / "x"), ["a", "b"])
  put(tmp_path / "y", "a")
  put(tmp_path / "y", "b")
  with pytest.raises(ValueError, match="data.features = .*two feature files"):
    Bags(str(tmp_path), ["a", "b"])


def test_one_slide_of_another_width_or_of_two_files_costs_itself(tmp_path):
  ids = ["a", "b", "c", "d", "e"]
  for name in ids:
    put(tmp_path, name, width=4 if name == "a" else 5)
  put(tmp_path, "b.svs", width=5)
  found = Bags(str(tmp_path), ids)
  assert found.width == 5
  assert [i for i in ids if found.ok(i)] == ["c", "d", "e"]
  assert "not of width 5" in found.reason["a"]
  assert "two feature files of the slide 'b'" in found.reason["b"]


def test_cache_is_bounded(tmp_path, monkeypatch):
  for name in "abc":
    put(tmp_path, name, tiles=1000)
  # 32 kB each, places included; there is room for two.
  found = Bags(str(tmp_path), ["a", "b", "c"], cache_gb=70_000 / 2**30)
  calls = counted(monkeypatch)
  for _ in range(3):
    for name in "abc":
      found.read(name)
  assert calls == ["a", "b", "c", "c", "c"]


def counted(monkeypatch):
  """Which slides' features are read from files, from now on."""
  calls, plain = [], tile_features.read

  def read(path, *more):
    calls.append(path.stem)
    return plain(path, *more)

  monkeypatch.setattr(tile_features, "read", read)
  return calls


def test_a_slow_consumer_holds_few_slides_in_memory(tmp_path, monkeypatch):
  names = [f"s{i:02d}" for i in range(24)]
  for name in names:
    put(tmp_path, name)
  found = Bags(str(tmp_path), names, cache_gb=0.0, threads=3)
  plain, alive, most = tile_features.read, weakref.WeakSet(), []

  def read(path, *more):
    tiles = plain(path, *more)
    alive.add(tiles)
    most.append(len(alive))
    return tiles

  monkeypatch.setattr(tile_features, "read", read)
  for batch in found.batches(names, 4):
    time.sleep(0.02)
    assert batch.mask.sum() == 12
  assert len(most) == 24 and max(most) <= 3


def test_nothing_but_headers_is_read_at_the_start(tmp_path, monkeypatch):
  for name in "ab":
    put(tmp_path, name)
  calls = counted(monkeypatch)
  assert Bags(str(tmp_path), ["a", "b"]).tiles == {"a": 3, "b": 3}
  assert not calls


# Batches.


def test_buckets():
  assert [bucket(m, 4) for m in (1, 4, 5, 8, 9, 100_000)] == [
    4,
    4,
    8,
    8,
    16,
    131072,
  ]
  assert bucket(70, 64) == 128


def test_left_over_bags_go_to_the_next_bucket():
  lengths = [4, 8, 4, 16, 4, 8]
  assert plan(lengths, 2, None, False) == [[0, 2], [4, 1], [5, 3]]
  assert plan(lengths, 4, None, False) == [[0, 2, 4, 1], [5, 3]]
  rng = np.random.default_rng(0)
  shuffled = plan(lengths * 20, 8, rng, False)
  assert sorted(sum(shuffled, [])) == list(range(120))
  assert sorted(map(len, shuffled)) == [8] * 15
  alike = [len({(lengths * 20)[i] for i in rows}) for rows in shuffled]
  assert alike.count(1) >= 13
  mixed = plan(lengths * 20, 8, np.random.default_rng(0), True)
  assert max(len({(lengths * 20)[i] for i in rows}) for rows in mixed) == 3


@pytest.fixture
def three(tmp_path):
  for name, tiles, value in (("a", 3, 1.0), ("b", 5, 2.0), ("c", 2, 3.0)):
    put(tmp_path, name, tiles, value=value)
  return Bags(str(tmp_path), ["a", "b", "c"], smallest_bucket=4)


def test_batches_are_padded_and_masked(three):
  first, last = three.batches(["b", "a", "c"], 2)
  assert first.features.shape == (2, 4, 4) and last.features.shape == (2, 8, 4)
  assert first.rows.tolist() == [1, 2] and last.rows.tolist() == [0, 0]
  assert first.mask.sum(axis=1).tolist() == [3, 2]
  assert first.features[1, :, 0].tolist() == [3, 3, 0, 0]
  assert first.grid_xy[0].tolist() == [[0, 0], [1, 0], [2, 0], [0, 0]]
  # The last batch is filled with its first bag, of weight 0.
  assert last.weight.tolist() == [1, 0] and last.mask[1].sum() == 5
  assert (last.features[0] == last.features[1]).all()


def test_random_tiles_of_large_bags(tmp_path):
  one = put(tmp_path, "a", tiles=50)
  numbers = np.arange(50, dtype=np.float32)[:, None] * np.ones(
    (1, 4), np.float32
  )
  tile_features.write(
    tmp_path / "a.h5", dataclasses.replace(one, features=numbers)
  )
  found = Bags(str(tmp_path), ["a"], smallest_bucket=4)

  def chosen(seed):
    batch = next(found.batches(["a"], 1, np.random.default_rng(seed), 6))
    assert batch.features.shape[1] == 8 and batch.mask.sum() == 6
    tiles = batch.features[0, :6, 0]
    assert (batch.grid_xy[0, :6, 0] == tiles).all()
    assert (np.diff(tiles) > 0).all()
    return tiles.tolist()

  assert chosen(0) == chosen(0) != chosen(1)
  # Without a generator nothing is left out: predictions see all tiles.
  assert next(found.batches(["a"], 1, None, 6)).mask.sum() == 50


def test_synthetic_bags(tmp_path):
  features, path = synthetic.write(tmp_path)
  found = cohort.read(str(path), "label", "binary")
  assert found.classes == ("normal", "tumour") and len(found.ids) == 32
  bags = Bags(str(features), found.ids)
  assert bags.reason == {"slide00": "it has no tile"}
  means = [
    bags.read(s.slide_id).features[:, 0].mean()
    for s in found.slides
    if bags.ok(s.slide_id) and s.text == "tumour"
  ]
  assert min(means) > 0.5
