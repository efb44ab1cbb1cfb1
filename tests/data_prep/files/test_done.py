import dataclasses
import pathlib

import numpy as np
import pytest

from data_prep.files import done
from data_prep.files.done import Done


def test_inputs_outputs_and_facts(tmp_path):
  output = tmp_path / "a" / "tiles.h5"
  output.parent.mkdir()
  stage = Done(output.parent / "done.json", {"px": 256, "path": output})
  assert stage.read() is None
  output.write_bytes(b"1234")
  stage.write({"tiles": 3}, [output])
  assert stage.read() == {"tiles": 3}
  assert Done(stage.path, {"px": 256, "path": str(output)}).read() is not None
  assert Done(stage.path, {"px": 512, "path": output}).read() is None
  output.write_bytes(b"12")  # not what was marked
  assert stage.read() is None
  output.unlink()
  assert stage.read() is None


@pytest.mark.parametrize(
  "text", ["", '{"inputs": "', "[]", "null", '{"inputs": 1}', "{}"]
)
def test_a_torn_mark_is_not_done(tmp_path, text):
  stage = Done(tmp_path / "done.json", 1)
  stage.write()
  assert stage.read() == {}
  stage.path.write_text(text)
  assert stage.read() is None


def test_clear_and_a_missing_output(tmp_path):
  stage = Done(tmp_path / "done.json", 1)
  stage.write()
  stage.clear()
  assert stage.read() is None
  with pytest.raises(FileNotFoundError):
    stage.write({}, [tmp_path / "nothing"])
  assert stage.read() is None


def test_a_folder_may_move(tmp_path):
  old = tmp_path / "old"
  old.mkdir()
  (old / "x").write_text("x")
  Done(old / "done.json", 1).write({}, [old / "x"])
  old.rename(tmp_path / "new")
  assert Done(tmp_path / "new" / "done.json", 1).read() == {}


def test_digest_of_what_stages_depend_on():
  @dataclasses.dataclass
  class Settings:
    side: int
    where: pathlib.Path

  first = done.digest([Settings(1, pathlib.Path("a")), np.arange(3), "b"])
  assert first == done.digest([{"side": 1, "where": "a"}, [0, 1, 2], "b"])
  assert done.digest(float("nan")) == done.digest(float("nan"))
  with pytest.raises(AttributeError):
    done.digest(object())


def test_a_file_is_known_by_its_ends_or_by_all_of_it(tmp_path):
  path = tmp_path / "slide"
  content = bytearray(300_000)
  path.write_bytes(content)
  ends, everything = done.file_digest(path), done.file_digest(path, whole=True)
  content[150_000] = 1
  path.write_bytes(content)
  assert done.file_digest(path) == ends
  assert done.file_digest(path, whole=True) != everything
  content[-1] = 1
  path.write_bytes(content)
  assert done.file_digest(path) != ends
  with pytest.raises(OSError):
    done.file_digest(tmp_path / "none")
