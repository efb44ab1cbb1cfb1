"""Whatever a file makes a library raise becomes a row, and is in the log."""

import csv
import json
import pickle

import pytest

from data_prep.files import errors
from data_prep.files.errors import SlideError, as_slide_error


def caught(function, *arguments):
  try:
    function(*arguments)
  except Exception as error:
    return error
  raise AssertionError("nothing was raised")


def test_one_schema_and_a_log(tmp_path):
  damage = as_slide_error(caught(json.loads, "{"), "s2", "open")
  place = SlideError("damaged", "read", "damaged_tile", "s1", (0, 256, 512))
  path = tmp_path / "errors.csv"
  assert errors.write(path, [damage, place])
  assert not errors.write(path, [place, damage])
  with open(path, newline="") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == ["slide_id", "stage", "code", "message", "place"]
  assert [row["slide_id"] for row in rows] == ["s1", "s2"]
  assert rows[0]["place"] == "0 256 512"
  assert "decoder.py" in rows[1]["message"]
  log = path.with_suffix(".log").read_text()
  assert "s2 [open]" in log and "JSONDecodeError" in log and "loads" in log
  errors.write(path, [place])
  assert not path.with_suffix(".log").exists()


def test_errors_survive_processes_and_json():
  error = SlideError("m", "read", "c", "s", [0, 1, 2], "trace")
  for copy in (
    pickle.loads(pickle.dumps(error)),
    SlideError(*json.loads(json.dumps(error.state()))),
  ):
    assert copy.state() == error.state() and copy.row() == error.row()


def test_mistakes_of_ours_are_raised_to_tests_alone(monkeypatch):
  broken = SlideError("m")
  broken.tile = 5
  mistake = caught(broken.row)
  with pytest.raises(TypeError):
    as_slide_error(mistake, "s", "open")
  monkeypatch.delenv(errors.STRICT)
  row = as_slide_error(mistake, "s", "open")
  assert row.error == "TypeError" and "TypeError" in row.trace


def test_a_full_disk_is_known_by_its_words():
  """HDF5 raises a RuntimeError when it cannot close a file."""
  words = "Can't decrement id ref count (errno = 28, error message = "
  error = RuntimeError(f"{words}'No space left on device')")
  row = as_slide_error(error, "s", "read", "config.workdir")
  assert (row.error, row.stage) == ("disk_full", "write")
  assert row.message.endswith("make room in config.workdir and start again")
