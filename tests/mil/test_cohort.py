"""Tables of slides and labels, good and bad."""

import numpy as np
import pytest

from wsiseq_jax.mil import cohort


def table(tmp_path, text):
  path = tmp_path / "table.csv"
  path.write_text(text)
  return str(path)


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
