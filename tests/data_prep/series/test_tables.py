"""Tables: three layouts, labels, and a clear row for all that is wrong."""

import numpy as np
import pytest

from data_prep import targets
from data_prep.series import layouts
from data_prep.series import table as series_table
from tests.data_prep.series import tiny_series


def find(csv_path, preset="", **changes):
  config = tiny_series.config_of(csv_path, "out", preset, **changes)
  table = series_table.read(config)
  return *layouts.find_series(table, config), table


def codes(errors):
  return sorted((e.slide, e.stage, e.error) for e in errors)


def names(span, folder):
  return [path.removeprefix(str(folder) + "/") for path in span.files]


def test_one_row_each(tmp_path):
  (tmp_path / "pictures").mkdir()
  for name in ("v10.png", "v9.png", ".hidden.png", "notes.txt"):
    (tmp_path / "pictures" / name).touch()
  (tmp_path / "d.avi").touch()
  path = tiny_series.table(
    tmp_path / "t.csv",
    [
      {"id": "a", "patient": "p", "file": "a.npy", "times": "0; 1.5;2"},
      {"id": "b", "patient": "p", "file": "pictures", "times": "[2001, 2003]"},
      {"id": "c", "patient": "q", "file": "y.png; x.png", "times": "3,2"},
      {"id": "d", "patient": "q", "file": "", "times": ""},
    ],
  )
  found, errors, table = find(path)
  assert table.layout == "series" and table.labels == ()
  spans = {one.series_id: one.spans[0] for one in found}
  assert names(spans["a"], tmp_path) == ["a.npy"] and spans["a"].is_stack
  assert spans["a"].times == (0, 1.5, 2)
  assert names(spans["b"], tmp_path) == ["pictures/v9.png", "pictures/v10.png"]
  # A list of pictures is sorted with its times.
  assert names(spans["c"], tmp_path) == ["x.png", "y.png"]
  assert spans["c"].times == (2, 3)
  assert names(spans["d"], tmp_path) == ["d.avi"]
  assert codes(errors) == [("c", "note", "unsorted_times")]


def test_numbers_that_pictures_leave_out_are_noted(tmp_path):
  folders = {
    "gap": ("f1.png", "f2.png", "f4.png", "f10.png"),
    "steps": ("f010.png", "f020.png", "f030.png"),
    "days": ("2020-01-03.png", "2020-02-01.png"),
    "far": ("1.png", "1000000000.png", "3.png"),
    "timed": ("f1.png", "f3.png", "f4.png"),
  }
  rows = []
  for folder, inside in folders.items():
    (tmp_path / folder).mkdir()
    for name in inside:
      (tmp_path / folder / name).touch()
    times = "1;3;4" if folder == "timed" else ""
    rows.append({"id": folder, "file": folder, "times": times})
  found, errors, _ = find(tiny_series.table(tmp_path / "t.csv", rows))
  assert len(found) == 5
  assert codes(errors) == [
    ("far", "note", "missing_frames"),
    ("gap", "note", "missing_frames"),
  ]
  text = {error.slide: error.message for error in errors}
  assert "leave 3, 5, 6, 7, 8 and 1 more out" in text["gap"]


def test_rows_that_cannot_be_series(tmp_path):
  (tmp_path / "empty").mkdir()
  base = {"id": "", "file": "a.npy", "times": "", "fps": "", "split": ""}
  path = tiny_series.table(
    tmp_path / "t.csv",
    [
      base | {"id": "ok"},
      base | {"id": "ok"},
      base,
      base | {"id": "gone", "file": ""},
      base | {"id": "empty", "file": "empty"},
      base | {"id": "back", "times": "1;0"},
      base | {"id": "word", "times": "0;soon"},
      base | {"id": "slow", "fps": "-3"},
      base | {"id": "idle", "file": ";"},
      base | {"id": "odd", "split": "tset"},
    ],
  )
  found, errors, _ = find(path)
  assert [one.series_id for one in found] == ["ok"]
  assert codes(errors) == [
    ("back", "table", "unsorted_times"),
    ("empty", "find", "empty_series"),
    ("gone", "find", "missing_file"),
    ("idle", "table", "empty_series"),
    ("odd", "split", "bad_split"),
    ("ok", "table", "duplicate_id"),
    ("row 4 of t.csv", "table", "bad_row"),
    ("slow", "table", "bad_fps"),
    ("word", "table", "time_not_a_number"),
  ]


def visit(series, file, time, **more):
  return {"Subject": series, "File": file, "Years": time, **more}


def test_one_row_a_visit(tmp_path):
  path = tiny_series.table(
    tmp_path / "t.csv",
    [
      visit("a", "a0.png", "2010.5", grade="low"),
      visit("b", "b0.png", "1", grade=""),
      visit("a", "a2.png", "2013", grade="high"),
      visit("a", "a1.png", "2011", grade="low"),
      visit("a", "", "2012", grade=""),
      visit("a", "a3.png", "next year", grade=""),
      visit("c", "c0.png", "1", grade=""),
      visit("c", "c1.png", "1", grade=""),
      visit("d", "", "1", grade=""),
    ],
  )
  found, errors, table = find(path)
  assert table.layout == "visits" and table.labels == ("grade",)
  a, b = found
  assert names(a.spans[0], tmp_path) == ["a0.png", "a1.png", "a2.png"]
  assert a.spans[0].times == (2010.5, 2011, 2013)
  # The last visit's label, not the last row's.
  assert a.spans[0].labels == {"grade": "high"}
  assert a.patient_id == "a" and b.patient_id == "b"
  assert codes(errors) == [
    ("a", "note", "labels_differ"),
    ("a", "note", "missing_visit"),
    ("a", "note", "unsorted_times"),
    ("a", "table", "time_not_a_number"),
    ("c", "table", "duplicate_times"),
    ("d", "note", "missing_visit"),
    ("d", "table", "empty_series"),
  ]


def test_histories_of_visits(tmp_path):
  path = tiny_series.table(
    tmp_path / "t.csv",
    [
      visit("a", "a0.png", "0", grade="low"),
      visit("a", "a1.png", "2", grade=""),
      visit("a", "a2.png", "3", grade="high"),
    ],
  )
  (a,), errors, _ = find(path, sequences="history")
  assert errors == []
  assert [span.name for span in a.spans] == ["n1", "n2", "n3"]
  assert [len(span.files) for span in a.spans] == [1, 2, 3]
  assert [s.labels["grade"] for s in a.spans] == ["low", "", "high"]
  assert a.spans[1].times == (0, 2)


def lists(history, video, **more):
  return {"Scan_history": repr(history), "Video": repr(video), **more}


FIRST = [("p1/l0.png", 2010.5), ("p1/l1.png", 2011.25), ("p1/l2.png", 2014.0)]
OTHER = [("p2/r0.png", 2012.0), ("p2/r1.png", 2012.5)]


def test_the_reference_lists_as_they_are(tmp_path):
  path = tiny_series.table(
    tmp_path / "t.csv",
    [
      lists(FIRST[:2], FIRST, Late="0"),
      lists(FIRST, FIRST, Late="1"),
      lists(OTHER, OTHER, Late=""),
    ],
  )
  found, errors, table = find(path, "tvrl_oct", images=str(tmp_path))
  assert table.layout == "lists" and errors == []
  eye, other = found
  assert eye.series_id == "p1_l0" and other.series_id == "p2_r0"
  assert [span.name for span in eye.spans] == ["n2", "n3"]
  assert [span.labels["Late"] for span in eye.spans] == ["0", "1"]
  assert eye.spans[0].times == (2010.5, 2011.25)
  whole, errors, _ = find(
    path, "tvrl_oct", images=str(tmp_path), sequences="series"
  )
  assert [span.name for span in whole[0].spans] == [""]
  assert names(whole[0].spans[0], tmp_path) == [path for path, _ in FIRST]
  assert whole[0].spans[0].labels["Late"] == "1"
  assert codes(errors) == [("p1_l0", "note", "labels_differ")]


def test_lists_that_are_wrong(tmp_path):
  bad = {"Scan_history": "[('a.png', 1", "Video": "[]"}
  path = tiny_series.table(
    tmp_path / "t.csv",
    [
      {"eye": "ok", **lists([OTHER[1], OTHER[0]], OTHER)},
      {"eye": "gap", "Scan_history": "[('a', nan), ('b', np.float64(2.5))]",
       "Video": "[]"},
      {"eye": "cut", **bad},
      {"eye": "call", **bad, "Scan_history": "__import__('os').getcwd()"},
      {"eye": "flat", **lists(["a.png"], [])},
      {"eye": "twice", **lists([("a", 1), ("b", 1)], [])},
      {"eye": "idle", **lists([], [])},
      {"eye": "ok", **lists(OTHER, OTHER)},
    ],
  )  # fmt: skip
  found, errors, _ = find(path, "tvrl_oct", columns__series_id="eye")
  assert [one.series_id for one in found] == ["gap", "ok"]
  assert found[0].spans[0].times == (2.5,)
  assert codes(errors) == [
    ("call", "table", "bad_list"),
    ("cut", "table", "bad_list"),
    ("flat", "table", "bad_list"),
    ("gap", "table", "time_not_a_number"),
    ("idle", "table", "empty_series"),
    ("idle", "table", "empty_series"),
    ("ok", "note", "unsorted_times"),
    ("ok", "table", "duplicate_id"),
    ("twice", "table", "duplicate_times"),
    ("twice", "table", "empty_series"),
  ]


def test_tables_named_after_splits_give_them(tmp_path):
  for split, eids in (("train", "1 2 9"), ("val", "3"), ("test", "4 9")):
    rows = [{"eid": eid, "LVEF (%)": "55.5"} for eid in eids.split()]
    tiny_series.table(tmp_path / f"{split}.csv", rows)
  for eid in "12349":
    np.save(tmp_path / f"{eid}.npy", tiny_series.frames(2))
  found, errors, table = find(tmp_path, "tvrl_cardiac")
  assert table.labels == ("LVEF (%)",)
  splits = {one.series_id: one.split for one in found}
  assert splits == {"1": "train", "2": "train", "3": "val", "4": "test"}
  assert all(one.patient_id == one.series_id for one in found)
  # Subject 9 is in two tables: no split is right.
  assert codes(errors) == [
    ("9", "split", "patient_in_two_splits"),
    ("9", "table", "duplicate_id"),
  ]


def test_a_patient_in_two_splits_loses_all_series(tmp_path):
  rows = [
    {"id": "left", "patient": "p", "file": "a", "split": "train"},
    {"id": "right", "patient": "p", "file": "b", "split": "test"},
    {"id": "third", "patient": "p", "file": "c", "split": ""},
    {"id": "other", "patient": "q", "file": "d", "split": "val"},
    {"id": "fellow", "patient": "q", "file": "e", "split": ""},
    {"id": "nobody", "patient": "", "file": "e", "split": ""},
  ]
  found, errors, _ = find(tiny_series.table(tmp_path / "t.csv", rows))
  assert {(s.series_id, s.split) for s in found} == {
    ("other", "val"),
    ("fellow", "val"),
  }
  assert codes(errors) == [
    ("left", "split", "patient_in_two_splits"),
    ("nobody", "table", "no_patient"),
    ("right", "split", "patient_in_two_splits"),
    ("third", "split", "patient_in_two_splits"),
  ]


@pytest.mark.parametrize("word", ["NA", "nan", "None", "n/a", "NULL", "-", ""])
def test_unknown_words_are_no_values(tmp_path, word):
  np.save(tmp_path / "a.npy", tiny_series.frames(2))
  row = {"id": "a", "PatientID": "p", "file": "A.NPY"}
  row |= {"size": word, "split": word, "fps": word}
  path = tiny_series.table(
    tmp_path / "t.csv", [row, row | {"id": "b", "size": "2,5"}]
  )
  found, errors, table = find(path)
  assert table.labels == ("size",) and not errors
  assert [one.split for one in found] == [None, None]
  cells = [one.spans[0].labels["size"] for one in found]
  (target,) = targets.resolve({"size": cells}, ())
  assert [targets.encode(target, cell) for cell in cells][1] == 2.5
  assert np.isnan(targets.encode(target, cells[0]))
  # Another case of a file's name on a system that tells them apart.
  assert names(found[0].spans[0], tmp_path) == ["a.npy"]


def test_named_classes_are_values(tmp_path):
  rows = [{"id": "a", "file": "a", "grade": "none"},
          {"id": "b", "file": "b", "grade": "mild"}]  # fmt: skip
  path = tiny_series.table(tmp_path / "t.csv", rows)
  found, _, _ = find(path)
  assert found[0].spans[0].labels["grade"] == ""
  found, _, _ = find(path, targets=("grade:class=none|mild",))
  assert found[0].spans[0].labels["grade"] == "none"


def test_tables_with_other_headings_are_one(tmp_path):
  for split, head in (("train", "Patient ID"), ("test", "patient")):
    row = {"id": split, head: "p" + split, "file": "x", "Late": "1"}
    tiny_series.table(tmp_path / f"{split}.csv", [row])
  found, errors, table = find(tmp_path)
  assert {one.patient_id for one in found} == {"ptrain", "ptest"}
  assert not errors and table.labels == ("Late",)


def test_wrong_tables_stop_the_run_and_say_why(tmp_path):
  with pytest.raises(ValueError, match="config.csv.*no such file"):
    find(tmp_path / "none.csv")
  with pytest.raises(ValueError, match="without train.csv"):
    find(tmp_path)
  path = tiny_series.table(tmp_path / "t.csv", [{"name": "a", "file": "b"}])
  with pytest.raises(ValueError, match="config.columns.series_id"):
    find(path)
  with pytest.raises(ValueError, match="no column 'nam', only.*'name'"):
    find(path, columns__series_id="nam")
  found, _, _ = find(path, columns__series_id="name")
  assert found[0].series_id == "a"
  with pytest.raises(ValueError, match="config.images"):
    find(path, columns__series_id="name", images=str(tmp_path / "none"))
  with pytest.raises(ValueError, match="history"):
    find(path, columns__series_id="name", sequences="history")
  (tmp_path / "q.csv").write_text('id,file\na,"b\n')
  with pytest.raises(ValueError, match="cannot read.*q.csv"):
    find(tmp_path / "q.csv")
  (tmp_path / "wide.csv").write_text("id,file\na,b,c\nd,e\n")
  found, errors, _ = find(tmp_path / "wide.csv")
  assert codes(errors) == [("a", "table", "bad_row")]
  assert [one.series_id for one in found] == ["d"]


def test_tables_as_programs_write_them(tmp_path):
  """Semicolons, decimal commas, Excel's Latin letters, other cases."""
  path = tmp_path / "t.csv"
  text = "Subject-ID;Image;TIME_S;grade\na;1.png;0,5;hö\na;2.png;2,25;n/a\n"
  path.write_bytes(text.encode("cp1252"))
  found, errors, table = find(path)
  assert table.layout == "visits" and table.labels == ("grade",)
  assert found[0].spans[0].times == (0.5, 2.25)
  assert found[0].spans[0].labels == {"grade": "hö"} and not errors
  # A word for "unknown" that the user names as a class is one.
  path.write_text("id,file,grade\na,a.npy,none\nb,b.npy,mild\n")
  assert find(path)[0][0].spans[0].labels == {"grade": ""}
  found, _, _ = find(path, targets=("grade:class=none|mild",))
  assert found[0].spans[0].labels == {"grade": "none"}


def test_kinds_of_labels():
  cells = {
    "grade": ["low", "high", "", "low"],
    "sick": ["1.0", "0", "nan", "1"],
    "count": ["1", "2", "3", "NaN"],
    "mixed": ["1", "2", "3", "unclear"],
    "name": [f"n{i}" for i in range(60)],
  }
  resolve = targets.resolve
  kinds = {
    t.name: t.classes for t in resolve(cells, ("grade", "sick", "count"))
  }
  assert kinds == {"grade": ("high", "low"), "sick": ("0", "1"), "count": ()}
  (grade,) = resolve(cells, ("grade:class=low|high|worst",))
  assert targets.encode(grade, "high") == 1.0
  with pytest.raises(ValueError, match="'odd'"):
    targets.encode(grade, "odd")
  (count,) = resolve(cells, ("count:class",))
  assert targets.encode(count, "3.0") == 2.0
  (sick,) = resolve(cells, ("sick",))
  assert targets.encode(sick, "1") == 1.0
  assert np.isnan(targets.encode(sick, "nan"))
  with pytest.raises(ValueError, match="mixed.*'unclear'.*config.targets"):
    resolve(cells, ())
  with pytest.raises(ValueError, match="'name' has 60 different values"):
    resolve(cells, ("name",))
  with pytest.raises(ValueError, match="'size:number'.*there are.*'grade'"):
    resolve(cells, ("size:number",))
  with pytest.raises(ValueError, match="'klass'"):
    resolve(cells, ("grade:klass",))
