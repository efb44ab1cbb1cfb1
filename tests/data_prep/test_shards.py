import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data_prep import records, shards
from data_prep.files import atomic
from data_prep.targets import Target, TargetTable
from tests.data_prep import tiny_shards

READER = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[1])
train, val = source.as_data_source("train"), source.as_data_source("val")
item = train[5]
print(json.dumps({
  "train": len(train), "val": len(val),
  "panels": [list(p.shape) for p in item["panels"]],
  "box": item["frame_box"].tolist(), "id": item["sequence_id"].decode(),
  "order": [train[i]["slide_id"].decode() for i in range(len(train))],
  "metadata": source.info.metadata["geometry"],
  "foreign": [m for m in ("tensorflow", "jax", "data_prep", "wsiseq_jax")
              if m in sys.modules],
}))
"""


@pytest.mark.multiprocess
def test_plain_tfds_reads_without_us_and_without_tensorflow(tmp_path):
  slides = {"b": "train", "a": "train", "c": "val"}
  folder = tiny_shards.write(tmp_path, slides)
  done = subprocess.run(
    [sys.executable, "-c", READER, str(folder)],
    cwd=tmp_path,
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    capture_output=True,
    text=True,
    check=True,
  )
  got = json.loads(done.stdout.splitlines()[-1])
  want = tiny_shards.strip_record("b", 1)
  assert (got["train"], got["val"]) == (8, 4)
  assert got["order"] == ["a"] * 4 + ["b"] * 4
  assert got["id"] == want.sequence_id
  assert got["box"] == want.frame_box.tolist()
  assert got["panels"] == [[32, 64, 3]]
  assert got["metadata"] == "drift"
  assert got["foreign"] == []


def test_same_bytes_every_time_and_no_path_inside(tmp_path):
  slides = {"a": "train", "b": "test"}
  contents = []
  for name in ("one", "two"):
    folder = tiny_shards.write(tmp_path / name, slides)
    contents.append({p.name: p.read_bytes() for p in folder.iterdir()})
  assert contents[0] == contents[1]
  assert sorted(contents[0]) == [
    "dataset_info.json",
    "features.json",
    "metadata.json",
    "targets.json",
    "wsiseq-test.array_record-00000-of-00001",
    "wsiseq-train.array_record-00000-of-00001",
  ]
  for name, data in contents[0].items():
    assert os.fsencode(tmp_path) not in data, name


def test_one_slide_is_one_linked_file(tmp_path):
  folder = tiny_shards.write(tmp_path, {"a": "train", "b": "train"})
  for index, slide in enumerate("ab"):
    part = tmp_path / "parts" / slide / "sequences.array_record"
    shard = folder / f"wsiseq-train.array_record-{index:05d}-of-00002"
    assert os.path.samefile(part, shard)


def test_assemble_again_writes_nothing_and_grows_when_told(tmp_path):
  folder = tiny_shards.write(tmp_path, {"a": "train"})
  before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
  tiny_shards.write(tmp_path / "other", {"a": "train"})
  path = tmp_path / "parts" / "a" / "sequences.array_record"
  metadata = json.loads((folder / "metadata.json").read_text())
  info = json.loads((folder / "dataset_info.json").read_text())
  num_bytes = int(info["splits"][0]["numBytes"])
  part = shards.Part(path, "a", "train", 4, num_bytes)
  more = [part, shards.Part(path, "b", "train", 4, num_bytes)]

  def again(parts, label=0.0):
    table = TargetTable((Target("label", ("a", "b")),), {"a": (label,)})
    layout = tiny_shards.LAYOUT
    return shards.assemble(folder, parts, layout, metadata, table)

  assert not again([part])
  assert before == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
  # A corrected label writes one small file.
  assert again([part], label=1.0)
  after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert {n for n in after if after[n] != before[n]} == {"targets.json"}
  assert again(more)
  assert (folder / "wsiseq-train.array_record-00001-of-00002").exists()
  assert not (folder / "wsiseq-train.array_record-00000-of-00001").exists()


def test_nothing_to_assemble_is_said(tmp_path):
  with pytest.raises(ValueError, match="no slide gave a sequence"):
    shards.assemble(
      tmp_path / "shards", [], tiny_shards.LAYOUT, {}, TargetTable((), {})
    )


def test_a_failing_slide_leaves_no_file(tmp_path):
  def sequences():
    yield tiny_shards.strip_record("s", 0)
    raise OSError(errno.ENOSPC, "No space left on device")

  path = tmp_path / "x.array_record"
  with pytest.raises(OSError, match="No space"):
    shards.write_part(path, sequences(), tiny_shards.LAYOUT)
  assert list(tmp_path.iterdir()) == []


def test_a_record_of_another_shape_is_refused(tmp_path):
  layout = shards.Layout(frames=8, panels=1, panel_px=(32, 64))
  with pytest.raises(ValueError, match="sequence 's/.*frames=9.*frames=8"):
    shards.write_part(
      tmp_path / "x", iter([tiny_shards.strip_record("s", 0)]), layout
    )
  assert list(tmp_path.iterdir()) == []


def test_write_atomic_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  assert atomic.write_atomic(path, "old")
  assert not atomic.write_atomic(path, "old")

  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    atomic.write_atomic(path, "new")
  assert path.read_text() == "old"
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_parsed_example_is_a_record(tmp_path):
  from array_record.python import array_record_module
  from tensorflow_datasets.core import example_parser

  folder = tiny_shards.write(tmp_path, {"a": "train"})
  reader = array_record_module.ArrayRecordReader(
    str(folder / "wsiseq-train.array_record-00000-of-00001")
  )
  spec = tiny_shards.LAYOUT.features().get_serialized_info()
  parser = example_parser.ExampleParserNp(spec)
  record = records.from_example(parser.parse_example(reader.read([2])[0]))
  want = tiny_shards.strip_record("a", 2)
  assert record.panels == want.panels
  assert record.sequence_id == want.sequence_id
  assert not len(record.targets)
  np.testing.assert_array_equal(record.frame_level0_xy, want.frame_level0_xy)
