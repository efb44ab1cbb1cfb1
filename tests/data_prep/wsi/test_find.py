"""What the user named becomes slides or rows of errors; nothing is lost."""

import io
import os
import sys

import pydicom
import pytest

from data_prep.files.errors import write
from data_prep.files.names import print_all
from data_prep.wsi import folders
from data_prep.wsi.find import find_slides, patient_id_of, usable_names
from tests.data_prep.wsi.named_files import (
  TIFF,
  ids_of,
  rows_of,
  touch,
  write_table,
)


def test_ids():
  assert patient_id_of("TCGA-AB-1234-01Z-00-DX1.UUID") == "TCGA-AB-1234"
  assert patient_id_of("TCGA-AB-12345") == "TCGA-AB-12345"


def test_folder_with_everything_below(tmp_path):
  touch(
    tmp_path,
    "b.svs",
    "a.tiff",
    "uuid/c.ndpi",
    "notes.txt",
    ".hidden/d.svs",
    "._a.tiff",
    "logs/e.log",
  )
  touch(tmp_path, "m.mrxs", content=b"\xff\xd8\xff\xe0")
  touch(tmp_path, "m/Data0001.dat", "m/Slidedat.ini")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["a", "b", "c", "m"]
  assert not errors
  assert slides[0].path == str(tmp_path / "a.tiff")
  assert slides[0].patient_id == "a" and slides[0].label is None


def test_files_globs_and_lists(tmp_path):
  touch(tmp_path, "a1.svs", "a2.svs", "b1.svs", "a3.txt", "with,comma.svs")
  assert ids_of(find_slides(str(tmp_path / "a*"))[0]) == ["a1", "a2"]
  assert ids_of(find_slides(str(tmp_path / "**/b1.svs"))[0]) == ["b1"]
  both = f"{tmp_path / 'a1.svs'}, {tmp_path / 'b1.svs'}"
  assert ids_of(find_slides(both)[0]) == ["a1", "b1"]
  assert ids_of(find_slides([tmp_path, tmp_path / "a1.svs"])[0]) == [
    "a1",
    "a2",
    "b1",
    "with,comma",
  ]
  assert ids_of(find_slides(str(tmp_path / "with,comma.svs"))[0]) == [
    "with,comma"
  ]


def test_what_is_named_and_is_not_there(tmp_path):
  touch(tmp_path, "a.svs")
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
  assert ids_of(slides) == ["a"]
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
  touch(tmp_path, "good.svs")
  touch(tmp_path, "empty.svs", "empty.mrxs", "empty.dcm", content=b"")
  touch(tmp_path, "text.svs", content=b"see the other folder")
  touch(tmp_path, "text.dcm", content=b"x" * 200)
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["good"]
  assert sorted(rows_of(errors)) == [
    ("empty", "empty_file"),
    ("empty", "empty_file"),
    ("empty", "empty_file"),
    ("text", "not_an_image"),
    ("text", "unreadable"),
  ]


def test_links_and_folders_that_are_no_slides_are_rows(tmp_path):
  touch(tmp_path, "good.svs", "full.svs/inner.svs")
  (tmp_path / "empty.svs").mkdir()
  (tmp_path / "gone.svs").symlink_to("/nowhere/S1.svs")
  (tmp_path / "loop.svs").symlink_to(tmp_path / "loop.svs")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["good", "inner"]
  assert sorted(rows_of(errors)) == [
    ("empty", "not_an_image"),
    ("gone", "unreadable"),
    ("loop", "unreadable"),
  ]
  gone = next(e.message for e in errors if e.slide == "gone")
  assert "a link to /nowhere/S1.svs" in gone


def test_names_that_cannot_name_our_files_are_rows(tmp_path, monkeypatch):
  fine = ["-dash", "S 1#ä%", "quote\"'", "😀", "x" * 230, "a,b", "CON"]
  odd = ["x" * 231, "ü" * 116, "new\nline", "bell\a", os.fsdecode(b"\xe4")]
  touch(tmp_path, *(f"{name}.svs" for name in (*fine, *odd)))
  found, errors = find_slides(tmp_path)
  good, bad = usable_names(found)
  assert ids_of(good) == sorted(fine) and not errors
  assert sorted(rows_of(bad)) == sorted((n, "bad_slide_id") for n in odd)
  assert all("give another in a CSV" in error.message for error in bad)
  # Bytes that are no Unicode do not keep the table from being written.
  write(tmp_path / "errors.csv", bad)
  assert "\\udce4" in (tmp_path / "errors.csv").read_text(encoding="utf-8")
  written = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
  print_all()
  print(odd[-1], flush=True)
  assert written.getvalue() == b"\\udce4\n"


def test_one_file_of_two_patients_is_warned_of(tmp_path):
  touch(tmp_path, "a.svs", "b.svs", content=TIFF)
  touch(tmp_path, "c.svs", content=TIFF + b"!")
  said = []
  find_slides(tmp_path, log=said.append)
  (text,) = [text for text in said if "one file" in text]
  assert "a.svs" in text and "b.svs" in text and "c.svs" not in text
  table = tmp_path / "slides.csv"
  write_table(table, "slide,patient\na,P\nb,P\nc,Q\n")
  said.clear()
  find_slides(tmp_path, log=said.append)
  assert not [text for text in said if "one file" in text]


def test_unreadable_folder_is_a_row(tmp_path, monkeypatch):
  """Simulated, because the superuser may read everything."""
  touch(tmp_path, "good.svs", "closed/lost.svs")
  scandir = os.scandir

  def closed(path):
    if str(path).endswith("closed"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", closed)
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["good"]
  assert rows_of(errors) == [(str(tmp_path / "closed"), "unreadable_folder")]
  slides, errors = find_slides(tmp_path / "closed")
  assert not slides
  assert [error.error for error in errors] == ["unreadable_folder"]


def test_unreadable_file_is_a_row(tmp_path, monkeypatch):
  touch(tmp_path, "a.svs", "b.svs")
  real_open = open

  def closed(path, *args, **kwargs):
    if str(path).endswith("a.svs"):
      raise PermissionError(13, "Permission denied")
    return real_open(path, *args, **kwargs)

  monkeypatch.setattr("builtins.open", closed)
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["b"]
  assert rows_of(errors) == [("a", "unreadable")]


def test_duplicate_ids_are_a_row(tmp_path):
  touch(tmp_path, "x/a.svs", "y/a.svs", "y/b.svs")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["a", "b"]
  assert rows_of(errors) == [("a", "duplicate_id")]
  for place in ("x", "y"):
    assert str(tmp_path / place / "a.svs") in errors[0].message


def test_what_file_servers_keep_is_no_slide(tmp_path):
  """Previews and bins hold copies of slides under their own names."""
  touch(tmp_path, "a.svs", "Thumbs.db", ".DS_Store", "desktop.ini")
  for folder in (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "__MACOSX",
    "sub/@eaDir",
  ):
    touch(tmp_path / folder, "a.svs", "gone.svs")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["a"] and not errors
  table = write_table(tmp_path / "t.csv", "slide_id\ngone\n")
  assert rows_of(find_slides(table)[1]) == [("gone", "missing_file")]


def test_links_to_folders_are_followed_once(tmp_path):
  touch(tmp_path / "store", "x/a.svs", "b.svs")
  named = tmp_path / "cohort"
  named.mkdir()
  os.symlink(tmp_path / "store", named / "all")
  os.symlink(tmp_path / "store/x", named / "x")
  os.symlink(tmp_path / "store/b.svs", named / "again.svs")
  os.symlink(named, tmp_path / "store/loop")
  os.symlink("..", named / "up")
  os.symlink(tmp_path / "nowhere.svs", named / "broken.svs")
  slides, errors = find_slides(named)
  assert ids_of(slides) == ["a", "again"]  # b is one slide, whatever its names
  assert rows_of(errors) == [("broken", "unreadable")]
  table = write_table(named / "t.csv", "slide_id\na\n")
  assert ids_of(find_slides(table)[0]) == ["a"]


def test_copies_under_way_are_rows(tmp_path):
  touch(tmp_path, "a.svs", "b.svs.part", "c.ndpi.crdownload", "d.tif.gz")
  touch(tmp_path, "notes.txt.gz", "e.zarr/0/0.0")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["a"]
  assert rows_of(errors) == [
    ("b", "unfinished_file"),
    ("c", "unfinished_file"),
    ("d", "unfinished_file"),
    ("e.zarr", "unsupported_format"),
  ]


@pytest.mark.parametrize("name", ["t.xlsx", "t.xls", "t.ods"])
def test_a_workbook_is_a_row_that_says_what_to_do(tmp_path, name):
  starts = {"t.xls": b"\xd0\xcf\x11\xe0\xa1\xb1"}
  touch(tmp_path, name, content=starts.get(name, b"PK\3\4rest"))
  touch(tmp_path, "a.svs")
  for named in ((tmp_path / name,), (tmp_path, tmp_path / name)):
    _, errors = find_slides(*named)
    assert rows_of(errors) == [(str(tmp_path / name), "unreadable_table")]
    assert "save the sheet as CSV" in errors[0].message


def test_slides_csv_in_any_case(tmp_path):
  touch(tmp_path, "a.svs")
  write_table(tmp_path / "Slides.CSV", "slide_id,patient\na,P\n")
  slides, errors = find_slides(tmp_path)
  assert [s.patient_id for s in slides] == ["P"] and not errors


def test_patients_that_spreadsheets_spoiled(tmp_path, capsys):
  names = ["a", "b", "c", "d", "e", "f"]
  touch(tmp_path, *(f"{name}.svs" for name in names))
  cells = ['="007"', "7", "12.0", "12", "1. Feb", "#REF!"]
  rows = "".join(f"{n},{c}\n" for n, c in zip(names, cells, strict=True))
  write_table(tmp_path / "slides.csv", "slide_id,patient\n" + rows)
  slides, errors = find_slides(tmp_path)
  assert not errors
  patients = [slide.patient_id for slide in slides]
  assert patients == ["007", "7", "12", "12", "1. Feb", "f"]
  said = capsys.readouterr().err
  assert "'007' and '7' may be one patient" in said
  assert "'1. Feb' (1 of 4 patients) looks like what Excel" in said
  assert "'patient' is unknown where it says ['#REF!']" in said


def test_formats_that_nothing_reads_are_rows(tmp_path):
  touch(tmp_path, "a.svs", "b.vsi", "c.isyntax", "d.txt")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["a"]
  assert rows_of(errors) == [
    ("b.vsi", "unsupported_format"),
    ("c.isyntax", "unsupported_format"),
  ]


def test_dicom_without_extension(tmp_path):
  _dicom(tmp_path / "1.2.840.10008.7", uid="1.1")
  _dicom(tmp_path / "case" / "IM0", uid="1.2", columns=512)
  _dicom(tmp_path / "case" / "IM1", uid="1.2")
  touch(tmp_path, "a.svs", "case/README", "DICOMDIR")
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["1.2.840.10008.7", "a", "case"] and not errors
  assert slides[2].path == str(tmp_path / "case" / "IM0")
  # A table may name the folder.
  table = write_table(tmp_path / "t.csv", "slide_id,label\ncase,x\n")
  slides, errors = find_slides(table)
  assert [(s.slide_id, s.label) for s in slides] == [("case", "x")]
  assert not errors


@pytest.mark.filterwarnings("ignore:End of file reached")
def test_dicom_that_cannot_be_read_is_a_row(tmp_path):
  magic = b"\0" * 128 + b"DICM"
  for number, content in enumerate((b"", b"\xff" * 300, b"\2\0\0\0UL\4\0")):
    touch(tmp_path, f"{number}.dcm", content=magic + content)
  _dicom(tmp_path / "odd.dcm", uid="1.2")
  odd = (tmp_path / "odd.dcm").read_bytes()
  touch(tmp_path, "cut.dcm", content=odd[: len(odd) // 2])
  slides, errors = find_slides(tmp_path)
  assert ids_of(slides) == ["odd"]
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


def test_dicom_slides_of_one_folder_have_parts_of_their_own(tmp_path):
  a, b, other = (tmp_path / f"{name}.dcm" for name in ("a", "b", "other"))
  _dicom(a, uid="1.2", columns=512)
  _dicom(b, uid="1.2")
  _dicom(other, uid="1.3")
  (tmp_path / "odd.dcm").write_bytes(b"no DICOM")
  assert folders.parts_of(a) == [b]
  assert folders.parts_of(other) == []
  assert folders.parts_of(tmp_path / "odd.dcm") == []
  _dicom(tmp_path / "c.dcm", uid="1.2")
  assert folders.parts_of(a) == [b, tmp_path / "c.dcm"]


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
  assert ids_of(slides) == ["dicom"] and not errors
  assert slides[0].path.endswith("level-0-frames-0-30.dcm")
  # Any instance alone names itself.
  one = real_data / "dicom" / "level-2-frames-0-4.dcm"
  assert ids_of(find_slides(one)[0]) == ["level-2-frames-0-4"]


def test_real_dicom_that_is_no_slide(real_data):
  slides, errors = find_slides(real_data / "video")
  assert not slides
  assert rows_of(errors) == [("examples_ybr_color", "not_a_slide")]
