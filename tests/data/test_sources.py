"""Data by address: a path, or a scheme and a place."""

import pytest

from data_prep.synthetic import smoke
from tests import tfds_sets
from wsiseq_jax.data import loader, source, sources


def test_a_path_has_shards(tmp_path):
  shards = smoke.make_shards(tmp_path, sequences=2)
  data = sources.find(str(shards))
  assert data.splits == ("train", "val")
  assert data.spec == source.read_spec(shards)
  found = sources.open(str(tmp_path), "val")
  assert isinstance(found, source.RecordSource) and len(found) == 2
  assert found.identity == source.RecordSource(shards, "val").identity
  with pytest.raises(ValueError, match="config.data.path = ''"):
    sources.open("", "train")


def test_synthetic_shards_are_made_once_a_machine(tmp_path, monkeypatch):
  monkeypatch.setattr(smoke.tempfile, "gettempdir", lambda: str(tmp_path))
  smoke.cached.cache_clear()
  first = sources.open("synthetic", "train")
  (folder,) = tmp_path.iterdir()
  smoke.cached.cache_clear()
  again = sources.open("synthetic", "train")
  assert list(tmp_path.iterdir()) == [folder]
  assert len(first) == len(again) == 32 and first.identity == again.identity
  labelled = sources.find("synthetic:labelled")
  assert labelled.splits == ("train", "val", "test")
  assert labelled.spec.target_names == ("kind", "level", "rare", "constant")
  with pytest.raises(ValueError, match="'synthetic:other': must be one of"):
    sources.find("synthetic:other")
  smoke.cached.cache_clear()


def test_pictures_of_tfds(tmp_path):
  folder = tfds_sets.write(tfds_sets.PatchCamelyon, tmp_path)
  uri = f"tfds:{folder}/patch_camelyon"
  data = sources.find(uri, frames=5)
  assert set(data.splits) == {"train", "validation", "test"}
  assert data.spec.frames == 5
  row = loader.load(sources.open(uri, "test", frames=5), 0)
  assert row["frame_mask"].tolist() == [1, 0, 0, 0, 0]
  with pytest.raises(ValueError, match="config.data.path = 'tfds:.*/mnist'"):
    _ = sources.find("tfds:mnist").spec
