"""Picture sets of TFDS, generated in their own format."""

import sys

import numpy as np
import pytest

from tests import tfds_sets
from wsiseq_jax.data import loader, tfds_images
from wsiseq_jax.data import source as sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  tfds_sets.write(tfds_sets.PatchCamelyon, root)
  return tfds_sets.write(tfds_sets.ColorectalHistology, root)


def test_what_the_sets_say_of_themselves(folder):
  spec = tfds_images.read_spec("patch_camelyon", folder, 6)
  assert (spec.frames, spec.panels, spec.frame_px) == (6, 1, (96, 96))
  assert spec.target_names == ("label",)
  assert spec.target_classes == {"label": ("0", "1")}
  spec = tfds_images.read_spec("colorectal_histology", folder, 6)
  assert spec.frame_px == (150, 150)
  assert spec.target_classes["label"] == tfds_sets.TISSUES


def test_a_picture_is_a_record_of_one_real_frame(folder):
  source = tfds_images.ImageSource("patch_camelyon", folder, "validation", 6)
  assert isinstance(source, sources.Records) and len(source) == 16
  seen = set()
  for index in range(16):
    row = loader.load(source, index)
    assert row["frame_mask"].tolist() == [1, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(row["frame_box"], [[0, 0, 96, 96]] * 6)
    red, blue = row["panels"][0, 5, 5, [0, 2]]
    assert blue == 255 * row["targets"][0]  # red and blue not exchanged
    assert red % 2 == row["targets"][0]
    seen.add(int(red))
  # Test comes first, train next: TFDS shuffles within a split.
  assert seen == set(range(48, 64))
  assert "tensorflow" not in sys.modules


def test_slices_of_a_split(folder):
  parts = [
    tfds_images.ImageSource("colorectal_histology", folder, split, 1)
    for split in ("train[:70%]", "train[70%:80%]", "train[80%:]")
  ]
  assert [len(part) for part in parts] == [28, 4, 8]
  assert len({part.identity for part in parts}) == 3
  ids = [part.record(i).patient_id for part in parts for i in range(len(part))]
  assert len(set(ids)) == 40
  pictures = {
    part.record(i).panels[0] for part in parts for i in range(len(part))
  }
  assert len(pictures) == 40


def test_batches(folder):
  source = tfds_images.ImageSource("patch_camelyon", folder, "test", 2)
  batches = list(loader.eval_batches(source, batch_size=12, threads=2))
  assert [b["mask"].sum() for b in batches] == [12, 4]
  assert batches[0]["panels"].shape == (12, 1, 96, 96, 3)


@pytest.mark.parametrize(
  "name, split, words",
  [
    ("patch_camelyon", "val", r"val_split = 'val': .*validation \(16\)"),
    ("cifar10", "train", "cifar10': not prepared; .*tfds build cifar10"),
  ],
)
def test_what_is_not_there(folder, name, split, words):
  with pytest.raises(ValueError, match=words):
    tfds_images.ImageSource(name, folder, split, 2, "data.val_split")


def test_files_that_need_tensorflow_are_refused(tmp_path):
  import json

  tfds_sets.write(tfds_sets.PatchCamelyon, tmp_path)
  info = tmp_path / "patch_camelyon" / "2.0.0" / "dataset_info.json"
  said = json.loads(info.read_text()) | {"fileFormat": "tfrecord"}
  info.write_text(json.dumps(said))
  with pytest.raises(ValueError, match="tfrecord, which needs TensorFlow"):
    tfds_images.read_spec("patch_camelyon", tmp_path, 2)
