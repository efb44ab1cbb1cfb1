"""Tables that name slides or describe them, as people write them."""

import pytest

from data_prep.files import names, tables
from data_prep.wsi.find import find_slides
from tests.data_prep.wsi.named_files import ids_of, rows_of, touch, write_table


def test_own_table(tmp_path):
  touch(tmp_path, "sub/a.svs", "b.svs", "c.svs")
  (tmp_path / "a.png").touch()
  table = write_table(
    tmp_path / "cohort.csv",
    "slide_id,filename,case_id,label,mpp,split,mask,tissue_method,"
    "tissue_min_area_um2\n"
    "A,sub/a.svs,P1,tumour,0.5,train,a.png,guarded,5000\n"
    "B,b.svs,P1,,,,,,\n"
    "G,gone.svs,P2,,,,,,\n",
  )
  slides, errors = find_slides(table)
  assert ids_of(slides) == ["A", "B"]  # c.svs is not in the table
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
  assert rows_of(errors) == [("G", "missing_file")]
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
  touch(tmp_path, "a.svs", "b.svs")
  slides, errors = find_slides(write_table(tmp_path / "t.csv", text))
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
  touch(tmp_path, "a.svs", "b.svs")
  slides, errors = find_slides(write_table(tmp_path / "t.csv", text))
  assert ids_of(slides) == ["b"]
  assert [error.error for error in errors] == ["bad_row"]
  assert word in errors[0].message and "row 2" in errors[0].message


def test_table_without_a_known_column(tmp_path):
  slides, errors = find_slides(
    write_table(tmp_path / "t.csv", "foo,bar\n1,2\n")
  )
  assert not slides
  assert rows_of(errors) == [(str(tmp_path / "t.csv"), "unreadable_table")]


def test_slides_csv_beside_or_above_describes(tmp_path):
  touch(tmp_path, "slides/a.svs", "slides/b.svs", "other/c.svs")
  write_table(
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
  assert rows_of(errors) == [("g", "missing_file")]
  # Named by file or glob, a slide has the same patient.
  for spec in (tmp_path / "slides" / "a.svs", tmp_path / "slides" / "a*"):
    slides, errors = find_slides(str(spec))
    assert [s.patient_id for s in slides] == ["P"] and not errors


def test_table_that_describes(tmp_path):
  touch(tmp_path, "a.svs", "b.svs")
  table = write_table(
    tmp_path / "t.csv", "slide_id,case_id,mpp\na,P,0.5\nz,Q,1\n"
  )
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
  touch(tmp_path, "a.svs", "b.svs")
  table = write_table(tmp_path / "t.csv", f"slide_id,{heading}\na,P\nb,P\n")
  slides, errors = find_slides(table)
  assert [slide.patient_id for slide in slides] == ["P", "P"] and not errors
  said = capsys.readouterr().err
  assert f"patient_id is {heading!r}" in said and "warning" not in said


def test_a_patient_of_several_cases_is_one_patient(tmp_path):
  touch(tmp_path, "a.svs", "b.svs")
  text = "slide_id,case_id,Patient\na,C1,P\nb,C2,P\n"
  slides, _ = find_slides(write_table(tmp_path / "t.csv", text))
  assert [slide.patient_id for slide in slides] == ["P", "P"]


def test_unknown_patients_are_said(tmp_path, capsys):
  touch(tmp_path, "a.svs", "b.svs")
  text = "slide_id,diagnosis\na,x\nb,y\n"
  slides, _ = find_slides(write_table(tmp_path / "t.csv", text))
  assert [slide.patient_id for slide in slides] == ["a", "b"]
  said = capsys.readouterr().err
  assert "no column of patients" in said and "not read: 'diagnosis'" in said
  find_slides(tmp_path)
  assert "whose 2 of the 2 slides are" in capsys.readouterr().err


@pytest.mark.parametrize(
  "word", ["NA", "nan", "None", "n/a", "NULL", "-", "", "#N/A", "<NA>", " - "]
)
def test_unknown_words(tmp_path, word):
  touch(tmp_path, "a.svs", "b.svs", "c.svs")
  table = write_table(
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
  touch(tmp_path, "a.svs", "b.svs")
  table = write_table(tmp_path / "t.csv", "slide_id,label\na,+\nb,-\n")
  assert [s.label for s in find_slides(table)[0]] == ["+", "-"]
  table = write_table(tmp_path / "t.csv", "slide_id,label\na,none\nb,mild\n")
  assert [s.label for s in find_slides(table)[0]] == [None, "mild"]
  found, _ = find_slides(table, classes=("none", "mild"))
  assert [s.label for s in found] == ["none", "mild"]


def test_a_bad_number_names_its_column(tmp_path):
  touch(tmp_path, "a.svs")
  table = write_table(tmp_path / "t.csv", "slide_id,MPP\na,forty\n")
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
  touch(tmp_path, file)
  table = write_table(tmp_path / "t.csv", f"{column},case_id\n{name},P\n")
  for slides, errors in (find_slides(table), find_slides(tmp_path, table)):
    assert [s.patient_id for s in slides] == ["P"] and not errors
    assert slides[0].path == str(tmp_path / file)
    assert "/" not in slides[0].slide_id


def test_what_several_tables_say_is_joined(tmp_path):
  touch(tmp_path, "a.svs")
  which = write_table(tmp_path / "t.csv", "wsi,mpp,label\na.svs,0.5,x\n")
  about = write_table(
    tmp_path / "labels.csv", "slide_id,case_id,label\nA,P,y\n"
  )
  slides, errors = find_slides(which, table=about)
  assert [(s.patient_id, s.mpp, s.label) for s in slides] == [("P", 0.5, "y")]
  assert not errors


def test_names_that_mean_another_file_or_two(tmp_path):
  touch(tmp_path, "siteB/S3.tif", "x/S4.tif", "y/S4.tif", "S5.tif")
  text = "slide_id\nsiteA/S3\nS4\nS5.svs\n"
  slides, errors = find_slides(write_table(tmp_path / "t.csv", text))
  assert not slides
  assert rows_of(errors) == [
    ("S3", "missing_file"),
    ("S4", "ambiguous_name"),
    ("S5", "missing_file"),
  ]


def test_rows_that_contradict_each_other(tmp_path):
  touch(tmp_path, "a.svs", "b.svs", "c.svs", "d.svs")
  table = write_table(
    tmp_path / "t.csv",
    "slide_id,filename,case_id,label\n"
    "left,a.svs,P,x\nright,a.svs,P,y\n"
    "b,b.svs,P,x\nb,b.svs,P,y\n"
    "c,c.svs,P,1\nC,c.svs,P,1.0\nc,,P,NA\n"
    "d,d.svs,P,x\n",
  )
  slides, errors = find_slides(table)
  assert [(s.slide_id, s.label) for s in slides] == [("c", "1"), ("d", "x")]
  assert rows_of(errors) == [
    (name, "contradicting_rows") for name in ("left", "right", "b")
  ]
  assert "row 2 of t.csv and row 3" in errors[0].message
  assert "['label']" in errors[2].message


def test_tables_that_contradict_each_other_are_told(tmp_path):
  inner = tmp_path / "site"
  inner.mkdir()
  touch(inner, "a.svs", "b.svs")
  write_table(tmp_path / "slides.csv", "slide_id,case_id,label\na,P,x\nb,Q,x\n")
  write_table(inner / "slides.csv", "slide_id,case_id,label\na,P,y\nb,Q,x\n")
  said = []
  slides, errors = find_slides(tmp_path, log=said.append)
  assert [(s.slide_id, s.label) for s in slides] == [("a", "x"), ("b", "x")]
  assert not errors
  (warning,) = (line for line in said if "different things" in line)
  assert "of 1 slides" in warning and "a: row 2" in warning
  assert f"in {inner} differ in ['label']" in warning


def test_a_bad_row_that_describes_refuses_its_slide(tmp_path):
  touch(tmp_path, "a.svs", "b.svs")
  write_table(tmp_path / "slides.csv", "slide_id,case_id,mpp\na,P,x\nb,P,1\n")
  slides, errors = find_slides(tmp_path)
  assert [(s.slide_id, s.patient_id) for s in slides] == [("b", "P")]
  assert rows_of(errors) == [("a", "bad_row")]


@pytest.mark.parametrize(
  ("heading", "cell", "mpp"),
  [("MPP (\u00b5m)", "0.25", 0.25), ("mpp [um/px]", "0.5", 0.5),
   ("Pixelgr\u00f6\u00dfe (\u03bcm)", "0,25", 0.25),
   ("MPP (scanner)", "1", 1.0)],
)  # fmt: skip
def test_scales_whose_heading_has_a_unit(tmp_path, heading, cell, mpp):
  touch(tmp_path, "a.svs")
  table = write_table(tmp_path / "t.csv", f"slide_id;{heading}\na;{cell}\n")
  slides, errors = find_slides(table)
  assert [slide.mpp for slide in slides] == [mpp] and not errors


@pytest.mark.parametrize("unit", ["nm", "mm/px", "DPI"])
def test_scales_of_another_unit_are_refused(tmp_path, unit):
  touch(tmp_path, "a.svs")
  table = write_table(tmp_path / "t.csv", f"slide_id,mpp ({unit})\na,250\n")
  slides, (error,) = find_slides(table)
  assert not slides and error.error == "unreadable_table"
  assert f"'mpp ({unit})': give the scale in um" in error.message


def test_two_spellings_of_a_column(tmp_path):
  """They are one if they say the same, and an error else."""
  touch(tmp_path, "a.svs", "b.svs")
  heading = "slide_id,Patient ID,patient_id"
  table = write_table(tmp_path / "t.csv", f"{heading}\na,P,P\nb,Q,Q\n")
  assert [s.patient_id for s in find_slides(table)[0]] == ["P", "Q"]
  table = write_table(tmp_path / "t.csv", f"{heading}\na,P,P\nb,Q,R\n")
  slides, (error,) = find_slides(table)
  assert not slides
  assert "two columns 'Patient ID' and 'patient_id'" in error.message


def test_remarks_above_the_heading(tmp_path):
  touch(tmp_path, "a.svs")
  text = "# made by a program\n#\nslide_id,mpp\na,bad\n"
  slides, (error,) = find_slides(write_table(tmp_path / "t.csv", text))
  assert "row 4 of t.csv: column mpp is 'bad'" in error.message


def test_zeros_that_a_spreadsheet_took_away(tmp_path):
  """Only from names of digits, and not where two files could be meant."""
  touch(tmp_path, "007.svs", "07.svs", "012.svs", "12.svs", "S05.svs")
  table = write_table(tmp_path / "t.csv", "slide_id\n7\n12\nS5\n")
  slides, errors = find_slides(table)
  assert [s.path for s in slides] == [str(tmp_path / "12.svs")]
  assert rows_of(errors) == [("7", "ambiguous_name"), ("S5", "missing_file")]
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
  touch(tmp_path, "a.svs", "b.svs")
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
  touch(tmp_path, "slides/a.svs")
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
