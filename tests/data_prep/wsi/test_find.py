"""What the user named becomes slides or rows of errors; nothing is lost."""

import os

import pydicom
import pytest

from data_prep.files import names, tables
from data_prep.wsi.find import find_slides, patient_id_of

TIFF = b"II*\0rest"


def _touch(folder, *names, content=TIFF):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _ids(slides):
  return [slide.slide_id for slide in slides]


def _rows(errors):
  return [(error.slide, error.error) for error in errors]


def test_ids():
  assert patient_id_of("TCGA-AB-1234-01Z-00-DX1.UUID") == "TCGA-AB-1234"
  assert patient_id_of("TCGA-AB-12345") == "TCGA-AB-12345"


def test_folder_with_everything_below(tmp_path):
  _touch(
    tmp_path,
    "b.svs",
    "a.tiff",
    "uuid/c.ndpi",
    "notes.txt",
    ".hidden/d.svs",
    "._a.tiff",
    "logs/e.log",
  )
  _touch(tmp_path, "m.mrxs", content=b"\xff\xd8\xff\xe0")
  _touch(tmp_path, "m/Data0001.dat", "m/Slidedat.ini")
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["a", "b", "c", "m"]
  assert not errors
  assert slides[0].path == str(tmp_path / "a.tiff")
  assert slides[0].patient_id == "a" and slides[0].label is None


def test_files_globs_and_lists(tmp_path):
  _touch(tmp_path, "a1.svs", "a2.svs", "b1.svs", "a3.txt", "with,comma.svs")
  assert _ids(find_slides(str(tmp_path / "a*"))[0]) == ["a1", "a2"]
  assert _ids(find_slides(str(tmp_path / "**/b1.svs"))[0]) == ["b1"]
  both = f"{tmp_path / 'a1.svs'}, {tmp_path / 'b1.svs'}"
  assert _ids(find_slides(both)[0]) == ["a1", "b1"]
  assert _ids(find_slides([tmp_path, tmp_path / "a1.svs"])[0]) == [
    "a1",
    "a2",
    "b1",
    "with,comma",
  ]
  assert _ids(find_slides(str(tmp_path / "with,comma.svs"))[0]) == [
    "with,comma"
  ]


def test_what_is_named_and_is_not_there(tmp_path):
  _touch(tmp_path, "a.svs")
  empty = tmp_path / "empty"
  empty.mkdir()
  slides, errors = find_slides(
    [
      str(tmp_path / "a.svs"),
      str(tmp_path / "none.svs"),
      str(tmp_path / "*.ndpi"),
      str(tmp_path / "none.csv"),
      str(empty),
    ]
  )
  assert _ids(slides) == ["a"]
  assert [error.error for error in errors] == [
    "missing_file",
    "no_match",
    "missing_file",
    "no_slides",
  ]
  assert all(error.stage == "find" for error in errors)
  for nothing in ("", [], " , "):
    with pytest.raises(ValueError, match="slides="):
      find_slides(nothing)
  with pytest.raises(ValueError, match="table="):
    find_slides(str(tmp_path / "a.svs"), table=tmp_path / "none.csv")


def test_bad_files_become_rows_and_good_ones_stay(tmp_path):
  _touch(tmp_path, "good.svs")
  _touch(tmp_path, "empty.svs", "empty.mrxs", "empty.dcm", content=b"")
  _touch(tmp_path, "text.svs", content=b"see the other folder")
  _touch(tmp_path, "text.dcm", content=b"x" * 200)
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["good"]
  assert sorted(_rows(errors)) == [
    ("empty", "empty_file"),
    ("empty", "empty_file"),
    ("empty", "empty_file"),
    ("text", "not_an_image"),
    ("text", "unreadable"),
  ]


def test_unreadable_folder_is_a_row(tmp_path, monkeypatch):
  """Simulated, because the superuser may read everything."""
  _touch(tmp_path, "good.svs", "closed/lost.svs")
  scandir = os.scandir

  def closed(path):
    if str(path).endswith("closed"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", closed)
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["good"]
  assert _rows(errors) == [(str(tmp_path / "closed"), "unreadable_folder")]
  slides, errors = find_slides(tmp_path / "closed")
  assert not slides
  assert [error.error for error in errors] == ["unreadable_folder"]


def test_unreadable_file_is_a_row(tmp_path, monkeypatch):
  _touch(tmp_path, "a.svs", "b.svs")
  real_open = open

  def closed(path, *args, **kwargs):
    if str(path).endswith("a.svs"):
      raise PermissionError(13, "Permission denied")
    return real_open(path, *args, **kwargs)

  monkeypatch.setattr("builtins.open", closed)
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["b"]
  assert _rows(errors) == [("a", "unreadable")]


def test_duplicate_ids_are_a_row(tmp_path):
  _touch(tmp_path, "x/a.svs", "y/a.svs", "y/b.svs")
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["a", "b"]
  assert _rows(errors) == [("a", "duplicate_id")]
  for place in ("x", "y"):
    assert str(tmp_path / place / "a.svs") in errors[0].message


# Tables.


def _table(path, text):
  path.write_text(text)
  return path


def test_own_table(tmp_path):
  _touch(tmp_path, "sub/a.svs", "b.svs", "c.svs")
  (tmp_path / "a.png").touch()
  table = _table(
    tmp_path / "cohort.csv",
    "slide_id,filename,case_id,label,mpp,split,mask,tissue_method,"
    "tissue_min_area_um2\n"
    "A,sub/a.svs,P1,tumour,0.5,train,a.png,guarded,5000\n"
    "B,b.svs,P1,,,,,,\n"
    "G,gone.svs,P2,,,,,,\n",
  )
  slides, errors = find_slides(table)
  assert _ids(slides) == ["A", "B"]  # c.svs is not in the table
  a, b = slides
  assert (a.patient_id, a.label, a.mpp, a.split) == (
    "P1",
    "tumour",
    0.5,
    "train",
  )
  assert a.mask_path == str(tmp_path / "a.png")
  assert a.tissue == {"method": "guarded", "min_area_um2": 5000.0}
  assert (b.label, b.mpp, b.split, b.mask_path, b.tissue) == (
    None,
    None,
    None,
    None,
    {},
  )
  assert _rows(errors) == [("G", "missing_file")]
  assert "row 4" in errors[0].message


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("case_id,slide_id,label\nP,a,x\n", ("a", "P", "x", None)),  # CLAM
    ("slide_id,process,case_id\na.svs,1,P\nb.svs,0,P\n",
     ("a", "P", None, None)),  # CLAM's process list
    ("wsi,mpp\na.svs,0.25\n", ("a", "a", None, 0.25)),  # TRIDENT
    ("PATIENT,FILENAME\nP,a.svs\n", ("a", "P", None, None)),  # STAMP
    ("patient,slide,label\nP,a,x\n", ("a", "P", "x", None)),  # slideflow
    ("\ufeffslide_id, filename ,mpp\na,a.svs,nan\n",
     ("a", "a", None, None)),  # spreadsheet and pandas habits
  ],
)  # fmt: skip
def test_tables_of_other_tools(tmp_path, text, expected):
  _touch(tmp_path, "a.svs", "b.svs")
  slides, errors = find_slides(_table(tmp_path / "t.csv", text))
  assert not errors
  assert [(s.slide_id, s.patient_id, s.label, s.mpp) for s in slides] == [
    expected
  ]


@pytest.mark.parametrize(
  ("text", "word"),
  [
    ("slide_id,mpp\na,forty\nb,0.5\n", "forty"),
    ("slide_id,tissue_colour\na,5\nb,\n", "tissue_colour"),
    ("slide_id,tissue_method\na,magic\nb,\n", "magic"),
    ("slide_id,label\n,x\nb,y\n", "names no slide"),
  ],
)
def test_bad_row_is_named_and_the_others_stay(tmp_path, text, word):
  _touch(tmp_path, "a.svs", "b.svs")
  slides, errors = find_slides(_table(tmp_path / "t.csv", text))
  assert _ids(slides) == ["b"]
  assert [error.error for error in errors] == ["bad_row"]
  assert word in errors[0].message and "row 2" in errors[0].message


def test_table_without_a_known_column(tmp_path):
  slides, errors = find_slides(_table(tmp_path / "t.csv", "foo,bar\n1,2\n"))
  assert not slides
  assert _rows(errors) == [(str(tmp_path / "t.csv"), "unreadable_table")]


def test_slides_csv_beside_or_above_describes(tmp_path):
  _touch(tmp_path, "slides/a.svs", "slides/b.svs", "other/c.svs")
  _table(
    tmp_path / "slides.csv",
    "slide_id,filename,case_id\na,slides/a.svs,P\ng,slides/g.svs,P\n"
    "c,other/c.svs,Q\nh,other/h.svs,Q\n",
  )
  slides, errors = find_slides(tmp_path / "slides")
  # b is not in the table and still used; h is not in this folder.
  assert [(s.slide_id, s.patient_id) for s in slides] == [
    ("a", "P"),
    ("b", "b"),
  ]
  assert _rows(errors) == [("g", "missing_file")]
  # Named by file or glob, a slide has the same patient.
  for spec in (tmp_path / "slides" / "a.svs", tmp_path / "slides" / "a*"):
    slides, errors = find_slides(str(spec))
    assert [s.patient_id for s in slides] == ["P"] and not errors


def test_table_that_describes(tmp_path):
  _touch(tmp_path, "a.svs", "b.svs")
  table = _table(tmp_path / "t.csv", "slide_id,case_id,mpp\na,P,0.5\nz,Q,1\n")
  slides, errors = find_slides(tmp_path, table=table)
  assert [(s.slide_id, s.patient_id, s.mpp) for s in slides] == [
    ("a", "P", 0.5),
    ("b", "b", None),
  ]
  assert not errors


# Tables as people write them.


@pytest.mark.parametrize(
  "heading",
  ["PatientID", "Patient ID", "patient", "PATIENT", "patient-id", "Case.ID",
   "ID_Patient", "Patienten-Nr.", "N\u00b0 patient", "Patient ID (coded)"],
)  # fmt: skip
def test_patients_by_any_name(tmp_path, capsys, heading):
  _touch(tmp_path, "a.svs", "b.svs")
  table = _table(tmp_path / "t.csv", f"slide_id,{heading}\na,P\nb,P\n")
  slides, errors = find_slides(table)
  assert [slide.patient_id for slide in slides] == ["P", "P"] and not errors
  said = capsys.readouterr().err
  assert f"patient_id is {heading!r}" in said and "warning" not in said


def test_a_patient_of_several_cases_is_one_patient(tmp_path):
  _touch(tmp_path, "a.svs", "b.svs")
  text = "slide_id,case_id,Patient\na,C1,P\nb,C2,P\n"
  slides, _ = find_slides(_table(tmp_path / "t.csv", text))
  assert [slide.patient_id for slide in slides] == ["P", "P"]


def test_unknown_patients_are_said(tmp_path, capsys):
  _touch(tmp_path, "a.svs", "b.svs")
  text = "slide_id,diagnosis\na,x\nb,y\n"
  slides, _ = find_slides(_table(tmp_path / "t.csv", text))
  assert [slide.patient_id for slide in slides] == ["a", "b"]
  said = capsys.readouterr().err
  assert "no column of patients" in said and "not read: 'diagnosis'" in said
  find_slides(tmp_path)
  assert "whose 2 of the 2 slides are" in capsys.readouterr().err


@pytest.mark.parametrize(
  "word", ["NA", "nan", "None", "n/a", "NULL", "-", "", "#N/A", "<NA>", " - "]
)
def test_unknown_words(tmp_path, word):
  _touch(tmp_path, "a.svs", "b.svs", "c.svs")
  table = _table(
    tmp_path / "t.csv",
    f"slide_id,case_id,label,mpp,split\na,{word},{word},{word},{word}\n"
    f"b,{word},x,0.5,train\nc,P,y,0.5,val\n",
  )
  slides, errors = find_slides(table)
  assert not errors
  assert [(s.patient_id, s.label, s.mpp, s.split) for s in slides] == [
    ("a", None, None, None),
    ("b", "x", 0.5, "train"),
    ("P", "y", 0.5, "val"),
  ]


def test_signs_and_named_classes_are_labels(tmp_path):
  _touch(tmp_path, "a.svs", "b.svs")
  table = _table(tmp_path / "t.csv", "slide_id,label\na,+\nb,-\n")
  assert [s.label for s in find_slides(table)[0]] == ["+", "-"]
  table = _table(tmp_path / "t.csv", "slide_id,label\na,none\nb,mild\n")
  assert [s.label for s in find_slides(table)[0]] == [None, "mild"]
  found, _ = find_slides(table, classes=("none", "mild"))
  assert [s.label for s in found] == ["none", "mild"]


def test_a_bad_number_names_its_column(tmp_path):
  _touch(tmp_path, "a.svs")
  table = _table(tmp_path / "t.csv", "slide_id,MPP\na,forty\n")
  (error,) = find_slides(table)[1]
  assert "column MPP is 'forty'" in error.message


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("S1", "S1.TIF"),
    ("s1.tif", "S1.TIFF"),
    ("S1.svs", "S1.SVS"),
    ("siteA\\S3.tif", "siteA/S3.tif"),
    ("siteA/S3", "siteA/S3.ome.tif"),
    (r"C:\old\disk\S3.tif", "S3.tif"),
    ("/mnt/old/siteA/S3.tif", "siteA/S3.tif"),
    ("S3", "uuid/deep/S3.svs"),
    ("M\u00fcller", "Mu\u0308ller.svs"),
    ("S1.", "S1.svs"),
    ("S1", "S1 .svs"),
    ("S 1", "S 1.SVS"),
    ("S1", "S1.ome.btf"),
    ("S  1", "S 1.svs"),
    ("S1\u200b", "S1.svs"),
    ("S\u00a01\0", "S 1.svs"),
    ("7", "007.svs"),
    ("12.0", "0012.svs"),
  ],
)
@pytest.mark.parametrize("column", ["slide_id", "filename"])
def test_spellings_of_one_name(tmp_path, name, file, column):
  _touch(tmp_path, file)
  table = _table(tmp_path / "t.csv", f"{column},case_id\n{name},P\n")
  for slides, errors in (find_slides(table), find_slides(tmp_path, table)):
    assert [s.patient_id for s in slides] == ["P"] and not errors
    assert slides[0].path == str(tmp_path / file)
    assert "/" not in slides[0].slide_id


def test_what_several_tables_say_is_joined(tmp_path):
  _touch(tmp_path, "a.svs")
  which = _table(tmp_path / "t.csv", "wsi,mpp,label\na.svs,0.5,x\n")
  about = _table(tmp_path / "labels.csv", "slide_id,case_id,label\nA,P,y\n")
  slides, errors = find_slides(which, table=about)
  assert [(s.patient_id, s.mpp, s.label) for s in slides] == [("P", 0.5, "y")]
  assert not errors


def test_names_that_mean_another_file_or_two(tmp_path):
  _touch(tmp_path, "siteB/S3.tif", "x/S4.tif", "y/S4.tif", "S5.tif")
  text = "slide_id\nsiteA/S3\nS4\nS5.svs\n"
  slides, errors = find_slides(_table(tmp_path / "t.csv", text))
  assert not slides
  assert _rows(errors) == [
    ("S3", "missing_file"),
    ("S4", "ambiguous_name"),
    ("S5", "missing_file"),
  ]


def test_rows_that_contradict_each_other(tmp_path):
  _touch(tmp_path, "a.svs", "b.svs", "c.svs", "d.svs")
  table = _table(
    tmp_path / "t.csv",
    "slide_id,filename,case_id,label\n"
    "left,a.svs,P,x\nright,a.svs,P,y\n"
    "b,b.svs,P,x\nb,b.svs,P,y\n"
    "c,c.svs,P,1\nC,c.svs,P,1.0\nc,,P,NA\n"
    "d,d.svs,P,x\n",
  )
  slides, errors = find_slides(table)
  assert [(s.slide_id, s.label) for s in slides] == [("c", "1"), ("d", "x")]
  assert _rows(errors) == [
    (name, "contradicting_rows") for name in ("left", "right", "b")
  ]
  assert "row 2 of t.csv and row 3" in errors[0].message
  assert "['label']" in errors[2].message


def test_a_bad_row_that_describes_refuses_its_slide(tmp_path):
  _touch(tmp_path, "a.svs", "b.svs")
  _table(tmp_path / "slides.csv", "slide_id,case_id,mpp\na,P,x\nb,P,1\n")
  slides, errors = find_slides(tmp_path)
  assert [(s.slide_id, s.patient_id) for s in slides] == [("b", "P")]
  assert _rows(errors) == [("a", "bad_row")]


@pytest.mark.parametrize(
  ("heading", "cell", "mpp"),
  [("MPP (\u00b5m)", "0.25", 0.25), ("mpp [um/px]", "0.5", 0.5),
   ("Pixelgr\u00f6\u00dfe (\u03bcm)", "0,25", 0.25),
   ("MPP (scanner)", "1", 1.0)],
)  # fmt: skip
def test_scales_whose_heading_has_a_unit(tmp_path, heading, cell, mpp):
  _touch(tmp_path, "a.svs")
  table = _table(tmp_path / "t.csv", f"slide_id;{heading}\na;{cell}\n")
  slides, errors = find_slides(table)
  assert [slide.mpp for slide in slides] == [mpp] and not errors


@pytest.mark.parametrize("unit", ["nm", "mm/px", "DPI"])
def test_scales_of_another_unit_are_refused(tmp_path, unit):
  _touch(tmp_path, "a.svs")
  table = _table(tmp_path / "t.csv", f"slide_id,mpp ({unit})\na,250\n")
  slides, (error,) = find_slides(table)
  assert not slides and error.error == "unreadable_table"
  assert f"'mpp ({unit})': give the scale in um" in error.message


def test_two_spellings_of_a_column(tmp_path):
  """They are one if they say the same, and an error else."""
  _touch(tmp_path, "a.svs", "b.svs")
  heading = "slide_id,Patient ID,patient_id"
  table = _table(tmp_path / "t.csv", f"{heading}\na,P,P\nb,Q,Q\n")
  assert [s.patient_id for s in find_slides(table)[0]] == ["P", "Q"]
  table = _table(tmp_path / "t.csv", f"{heading}\na,P,P\nb,Q,R\n")
  slides, (error,) = find_slides(table)
  assert not slides
  assert "two columns 'Patient ID' and 'patient_id'" in error.message


def test_remarks_above_the_heading(tmp_path):
  _touch(tmp_path, "a.svs")
  text = "# made by a program\n#\nslide_id,mpp\na,bad\n"
  slides, (error,) = find_slides(_table(tmp_path / "t.csv", text))
  assert "row 4 of t.csv: column mpp is 'bad'" in error.message


def test_zeros_that_a_spreadsheet_took_away(tmp_path):
  """Only from names of digits, and not where two files could be meant."""
  _touch(tmp_path, "007.svs", "07.svs", "012.svs", "12.svs", "S05.svs")
  table = _table(tmp_path / "t.csv", "slide_id\n7\n12\nS5\n")
  slides, errors = find_slides(table)
  assert [s.path for s in slides] == [str(tmp_path / "12.svs")]
  assert _rows(errors) == [("7", "ambiguous_name"), ("S5", "missing_file")]
  assert names.match(["7", "8"], {"007": 1, "08": 2, "8": 3}) == {
    "7": 1,
    "8": 3,
  }
  assert names.match(["7", "07"], {"007": 1}) == {}


@pytest.mark.parametrize(
  "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
)
@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_tables_of_excel(tmp_path, encoding, delimiter):
  _touch(tmp_path, "a.svs", "b.svs")
  text = "slide_id;Patient;label;mpp\r\na;M\u00fcller;x;1,060\r\nb;;;\r\n"
  content = text.replace(";", delimiter).encode(encoding)
  (tmp_path / "t.csv").write_bytes(content)
  slides, errors = find_slides(tmp_path / "t.csv")
  assert not errors
  assert [(s.patient_id, s.label, s.mpp) for s in slides] == [
    ("M\u00fcller", "x", 1.06),
    ("b", None, None),
  ]


def test_tables_of_runs_are_no_descriptions(tmp_path, capsys):
  _touch(tmp_path, "slides/a.svs")
  tables.write(
    tmp_path / "slides.csv",
    tables.SLIDE_COLUMNS,
    [{"slide_id": "gone", "filename": "slides/gone.svs", "mpp": 4.0},
     {"slide_id": "a", "patient_id": "P", "label": "x", "mpp": 4.0}],
  )  # fmt: skip
  slides, errors = find_slides(tmp_path / "slides")
  assert [(s.slide_id, s.patient_id) for s in slides] == [("a", "a")]
  assert not errors
  assert "written by a run" in capsys.readouterr().err
  # Named, it says whose slides are, and nothing that was measured.
  slides, errors = find_slides(tmp_path / "slides", tmp_path / "slides.csv")
  assert [(s.patient_id, s.label, s.mpp) for s in slides] == [("P", "x", None)]
  assert not errors


def test_what_file_servers_keep_is_no_slide(tmp_path):
  """Previews and bins hold copies of slides under their own names."""
  _touch(tmp_path, "a.svs", "Thumbs.db", ".DS_Store", "desktop.ini")
  for folder in (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "__MACOSX",
    "sub/@eaDir",
  ):
    _touch(tmp_path / folder, "a.svs", "gone.svs")
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["a"] and not errors
  table = _table(tmp_path / "t.csv", "slide_id\ngone\n")
  assert _rows(find_slides(table)[1]) == [("gone", "missing_file")]


def test_links_to_folders_are_followed_once(tmp_path):
  _touch(tmp_path / "store", "x/a.svs", "b.svs")
  named = tmp_path / "cohort"
  named.mkdir()
  os.symlink(tmp_path / "store", named / "all")
  os.symlink(tmp_path / "store/x", named / "x")
  os.symlink(tmp_path / "store/b.svs", named / "again.svs")
  os.symlink(named, tmp_path / "store/loop")
  os.symlink("..", named / "up")
  os.symlink(tmp_path / "nowhere.svs", named / "broken.svs")
  slides, errors = find_slides(named)
  assert _ids(slides) == ["a", "again"]  # b is one slide, whatever its names
  assert _rows(errors) == [("broken", "unreadable")]
  table = _table(named / "t.csv", "slide_id\na\n")
  assert _ids(find_slides(table)[0]) == ["a"]


def test_copies_under_way_are_rows(tmp_path):
  _touch(tmp_path, "a.svs", "b.svs.part", "c.ndpi.crdownload", "d.tif.gz")
  _touch(tmp_path, "notes.txt.gz", "e.zarr/0/0.0")
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["a"]
  assert _rows(errors) == [
    ("b", "unfinished_file"),
    ("c", "unfinished_file"),
    ("d", "unfinished_file"),
    ("e.zarr", "unsupported_format"),
  ]


@pytest.mark.parametrize("name", ["t.xlsx", "t.xls", "t.ods"])
def test_a_workbook_is_a_row_that_says_what_to_do(tmp_path, name):
  starts = {"t.xls": b"\xd0\xcf\x11\xe0\xa1\xb1"}
  _touch(tmp_path, name, content=starts.get(name, b"PK\3\4rest"))
  _touch(tmp_path, "a.svs")
  for named in ((tmp_path / name,), (tmp_path, tmp_path / name)):
    _, errors = find_slides(*named)
    assert _rows(errors) == [(str(tmp_path / name), "unreadable_table")]
    assert "save the sheet as CSV" in errors[0].message


def test_slides_csv_in_any_case(tmp_path):
  _touch(tmp_path, "a.svs")
  _table(tmp_path / "Slides.CSV", "slide_id,patient\na,P\n")
  slides, errors = find_slides(tmp_path)
  assert [s.patient_id for s in slides] == ["P"] and not errors


def test_patients_that_spreadsheets_spoiled(tmp_path, capsys):
  names = ["a", "b", "c", "d", "e", "f"]
  _touch(tmp_path, *(f"{name}.svs" for name in names))
  cells = ['="007"', "7", "12.0", "12", "1. Feb", "#REF!"]
  rows = "".join(f"{n},{c}\n" for n, c in zip(names, cells, strict=True))
  _table(tmp_path / "slides.csv", "slide_id,patient\n" + rows)
  slides, errors = find_slides(tmp_path)
  assert not errors
  patients = [slide.patient_id for slide in slides]
  assert patients == ["007", "7", "12", "12", "1. Feb", "f"]
  said = capsys.readouterr().err
  assert "'007' and '7' may be one patient" in said
  assert "'1. Feb' (1 of 4 patients) looks like what Excel" in said
  assert "'patient' is unknown where it says ['#REF!']" in said


def test_formats_that_nothing_reads_are_rows(tmp_path):
  _touch(tmp_path, "a.svs", "b.vsi", "c.isyntax", "d.txt")
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["a"]
  assert _rows(errors) == [
    ("b.vsi", "unsupported_format"),
    ("c.isyntax", "unsupported_format"),
  ]


def test_dicom_without_extension(tmp_path):
  _dicom(tmp_path / "1.2.840.10008.7", uid="1.1")
  _dicom(tmp_path / "case" / "IM0", uid="1.2", columns=512)
  _dicom(tmp_path / "case" / "IM1", uid="1.2")
  _touch(tmp_path, "a.svs", "case/README", "DICOMDIR")
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["1.2.840.10008.7", "a", "case"] and not errors
  assert slides[2].path == str(tmp_path / "case" / "IM0")
  # A table may name the folder.
  table = _table(tmp_path / "t.csv", "slide_id,label\ncase,x\n")
  slides, errors = find_slides(table)
  assert [(s.slide_id, s.label) for s in slides] == [("case", "x")]
  assert not errors


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_dicom_that_cannot_be_read_is_a_row(tmp_path):
  magic = b"\0" * 128 + b"DICM"
  for number, content in enumerate((b"", b"\xff" * 300, b"\2\0\0\0UL\4\0")):
    _touch(tmp_path, f"{number}.dcm", content=magic + content)
  _dicom(tmp_path / "odd.dcm", uid="1.2")
  odd = (tmp_path / "odd.dcm").read_bytes()
  _touch(tmp_path, "cut.dcm", content=odd[: len(odd) // 2])
  slides, errors = find_slides(tmp_path)
  assert _ids(slides) == ["odd"]
  assert {error.slide for error in errors} == {"0", "1", "2", "cut"}


def test_dicom_folders_that_share_identifiers(tmp_path):
  for folder in ("one", "two"):
    for level in range(2):
      _dicom(tmp_path / folder / f"level-{level}.dcm", uid="1.2")
  _dicom(tmp_path / "three" / "a.dcm", uid="1.3", patient="P")
  _dicom(tmp_path / "three" / "b.dcm", uid="1.3", patient="Q")
  slides, errors = find_slides(tmp_path)
  assert [(s.slide_id, s.patient_id) for s in slides] == [
    ("a", "P"),
    ("b", "Q"),
    ("one", "one"),
    ("two", "two"),
  ]
  assert not errors


def _dicom(path, uid, columns=256, patient=""):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = pydicom.Dataset()
  data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
  data.SOPInstanceUID = pydicom.uid.generate_uid()
  data.SeriesInstanceUID = uid
  data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
  data.TotalPixelMatrixColumns = columns
  data.PatientID = patient
  data.file_meta = pydicom.dataset.FileMetaDataset()
  data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  data.save_as(path, enforce_file_format=True)


# Real data.


def test_real_folder_has_its_cases(real_data):
  slides, errors = find_slides(real_data / "slides")
  assert len(slides) == 17 and not errors
  cases = {slide.slide_id: slide.patient_id for slide in slides}
  assert cases["bs9_he1_10x"] == cases["bs9_duodenum_giardiasis_he2_40x"]
  assert cases["crohn_he1_10x"] == cases["crohn_he2_10x"]
  assert len(set(cases.values())) == 13
  assert {slide.label for slide in slides} == {
    "neoplastic",
    "non_neoplastic",
    "out_of_distribution",
  }
  by_table, errors = find_slides(real_data / "slides.csv")
  assert by_table == slides and not errors


def test_real_dicom_is_grouped_by_series(real_data):
  slides, errors = find_slides(real_data / "dicom")
  assert _ids(slides) == ["dicom"] and not errors
  assert slides[0].path.endswith("level-0-frames-0-30.dcm")
  # Any instance alone names itself.
  one = real_data / "dicom" / "level-2-frames-0-4.dcm"
  assert _ids(find_slides(one)[0]) == ["level-2-frames-0-4"]


def test_real_dicom_that_is_no_slide(real_data):
  slides, errors = find_slides(real_data / "video")
  assert not slides
  assert _rows(errors) == [("examples_ybr_color", "not_a_slide")]
