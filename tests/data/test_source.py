import json
import pathlib
import pickle

import numpy as np
import pytest

from data_prep import records
from data_prep.targets import Target, TargetTable
from tests import small_run
from tests.data_prep import tiny_shards
from wsiseq_jax.data import source as sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("source")
  small_run.shards(path)
  return path


def test_reads_what_was_written(folder):
  from data_prep.synthetic import smoke

  train = sources.RecordSource(folder, "train")
  assert len(train) == 32
  got = train.record(17)  # slide_b begins at 16
  want = smoke.drift_record("slide_b", 1, 12, 40, 4)
  assert got.sequence_id == want.sequence_id
  assert got.slide_id == "slide_b" and got.patient_id == want.patient_id
  assert got.panels == want.panels
  np.testing.assert_array_equal(got.frame_box, want.frame_box)
  np.testing.assert_array_equal(got.frame_mask, np.ones(12, np.float32))
  np.testing.assert_array_equal(got.frame_level0_xy, want.frame_level0_xy)
  assert records.decode_panels(got).shape == (1, 40, 84, 3)


def test_spec(folder):
  spec = sources.read_spec(folder / "shards")
  assert (spec.geometry, spec.frames, spec.panels) == ("drift", 12, 1)
  assert (spec.panel_px, spec.frame_px) == ((40, 84), (40, 40))
  assert spec.time_unit == "um" and len(spec.fingerprint) == 64
  assert sources.split_names(folder) == ("train", "val")


def test_labels_are_joined_when_read(tmp_path):
  folder = tiny_shards.write(tmp_path, {"a": "train", "b": "train"})
  assert sources.read_spec(folder).target_classes == {"label": ("a", "b")}
  train = sources.RecordSource(folder, "train")
  assert [train.record(i).targets.tolist() for i in (0, 4)] == [[0.0], [1.0]]
  table = TargetTable((Target("grade"),), {"a": (float("nan"),), "b": (2.5,)})
  (folder / "targets.json").write_text(table.to_json())
  again = sources.RecordSource(folder, "train")
  assert again.spec.target_names == ("grade",)
  assert not again.spec.target_classes
  assert np.isnan(again.record(0).targets)
  assert again.record(4).targets.tolist() == [2.5]
  # The records are the same: what was made from their pixels stays valid.
  assert again.identity == train.identity
  (folder / "targets.json").write_text('{"targets": [], "rows": {}}')
  with pytest.raises(ValueError, match="targets.json has no row.*'a/x"):
    sources.RecordSource(folder, "train").record(0)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda text: text[: len(text) // 2], "JSONDecodeError"),
    (lambda text: "{}", "'targets'"),
    (lambda text: text.replace("[0.0]", "[7]"), "label is 7"),
    (lambda text: text.replace("[0.0]", "[0.5]"), "label is 0.5"),
    (lambda text: text.replace("[0.0]", "[Infinity]"), "label is inf"),
    (lambda text: text.replace("[0.0]", '["a"]'), "label is a"),
    (lambda text: text.replace("[0.0]", "[]"), "shorter"),
  ],
)
def test_labels_that_were_damaged_are_refused(tmp_path, change, words):
  """A class that is none would be another one, or end a job far from here."""
  folder = tiny_shards.write(tmp_path, {"a": "train", "b": "train"})
  file = folder / "targets.json"
  file.write_text(change(file.read_text()))
  with pytest.raises(ValueError, match="targets.json is damaged") as caught:
    sources.read_spec(folder)
  assert words in str(caught.value)


def test_shards_that_were_cut_are_refused(tmp_path):
  folder = tiny_shards.write(tmp_path, {"a": "train", "b": "train"})
  for path in folder.glob("*array_record*"):
    file = path.resolve()
    file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(ValueError, match="'train' in .* are damaged"):
    sources.RecordSource(folder, "train")


def test_shards_with_labels_inside_are_read():
  """Written before labels had a file of their own; labels 0 and 1."""
  folder = pathlib.Path(__file__).parents[1] / "golden" / "old_shards"
  spec = sources.read_spec(folder)
  assert spec.target_names == ("label",)
  assert spec.target_classes == {"label": ("a", "b")}
  for split, slide, label in (("train", "a", 0.0), ("val", "b", 1.0)):
    record = sources.RecordSource(folder, split).record(0)
    assert (record.slide_id, record.targets.tolist()) == (slide, [label])
    want = tiny_shards.strip_record(slide, 0)
    assert record.panels == want.panels


def test_survives_pickling(folder):
  train = pickle.loads(pickle.dumps(sources.RecordSource(folder, "train")))
  assert train.record(0).slide_id == "slide_a"


def test_no_shards(tmp_path):
  with pytest.raises(ValueError, match="config.data.path = .*no shards there"):
    sources.read_spec(tmp_path)
  with pytest.raises(ValueError, match="config.data.path = ''"):
    sources.read_spec("")


def test_missing_split_names_those_there_are(folder):
  with pytest.raises(
    ValueError, match=r"config.data.eval_split = 'test'.*train \(32\), val"
  ):
    sources.RecordSource(folder, "test", "data.eval_split")


@pytest.mark.parametrize(
  ("key", "value"), [("schema_version", 99), ("fingerprint", "")]
)
def test_unknown_schema_is_refused(tmp_path, key, value):
  path = small_run.shards(tmp_path) / "metadata.json"
  metadata = json.loads(path.read_text())
  metadata[key] = value
  path.write_text(json.dumps(metadata))
  with pytest.raises(ValueError, match="this code reads version 2, 3"):
    sources.RecordSource(tmp_path, "train")
