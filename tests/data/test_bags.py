"""Feature folders, good and bad; buckets, padding, batches."""

import dataclasses
import time
import weakref

import h5py
import numpy as np
import pytest

from wsiseq_jax.data import tile_features
from wsiseq_jax.data.bags import Bags, UnreadableBag, bucket, plan
from wsiseq_jax.mil import cohort, synthetic


def put(folder, slide_id, tiles=3, width=4, value=1.0):
  one = tile_features.TileFeatures(
    slide_id,
    np.full((tiles, width), value, np.float32),
    np.stack([np.arange(tiles) * 256.0, np.zeros(tiles)], axis=1),
    256.0,
  )
  folder.mkdir(exist_ok=True)
  tile_features.write(folder / f"{slide_id}.h5", one)
  return one


@pytest.mark.parametrize(
  ("file", "slide"),
  [
    ("S1.svs", "S1"),  # features `S1.svs.h5`
    ("S1", "S1.svs.h5"),
    ("S1.svs", "s1.svs"),
    ("M\u00fcller", "Mu\u0308ller"),
  ],
)
def test_spellings_of_one_slide(tmp_path, file, slide):
  put(tmp_path / "f", file, 3)
  bags = Bags(str(tmp_path / "f"), [slide])
  assert bags.tiles == {slide: 3}


def test_failures_are_kept_and_explained(tmp_path):
  folder = tmp_path / "f"
  put(folder, "good")
  put(folder, "pale", tiles=0)
  put(folder, "nan")
  with h5py.File(folder / "nan.h5", "a") as file:
    file["features"][1, 2] = np.nan
  (folder / "broken.h5").write_bytes(b"no HDF5")
  ids = ["broken", "gone", "good", "nan", "pale"]
  found = Bags(str(folder), ids)
  wanted = {
    "broken": "error",
    "gone": "error",
    "good": "ok",
    "nan": "ok",
    "pale": "no_tissue",
  }
  assert found.status == wanted
  assert found.width == 4 and found.tiles["good"] == 3
  assert "no feature file" in found.reason["gone"]
  # Headers say nothing of what the features are.
  with pytest.raises(UnreadableBag, match="'nan'.*nan.h5.*row 1"):
    list(found.batches(["good", "nan"], 2))
  assert found.status == wanted | {"nan": "error"}
  assert "nan.h5" in found.reason["nan"] and "row 1" in found.reason["nan"]
  with pytest.raises(ValueError, match="no slide can be used; 'pale'"):
    Bags(str(folder), ["pale"], unlisted="ignore")


def test_files_that_nobody_wants(tmp_path):
  for name in "abc":
    put(tmp_path, name)
  with pytest.raises(ValueError, match=r"1 slides are missing .* \['c'\]"):
    Bags(str(tmp_path), ["a", "b"])
  assert Bags(str(tmp_path), ["a", "b"], known=["c"]).width == 4
  assert list(Bags(str(tmp_path), ["a"], "ignore").status) == ["a"]
  with pytest.raises(ValueError, match="no slide in common: .*'a'.*'S1'"):
    Bags(str(tmp_path), ["S1"])


def test_mixed_widths_and_two_files_of_a_slide(tmp_path):
  put(tmp_path / "x", "a", width=4)
  put(tmp_path / "x", "b", width=5)
  with pytest.raises(ValueError, match=r"4 \(1 files, such as 'a'\), 5"):
    Bags(str(tmp_path / "x"), ["a", "b"])
  put(tmp_path / "y", "a")
  put(tmp_path / "y", "b")
  with pytest.raises(ValueError, match="data.features = .*two feature files"):
    Bags(str(tmp_path), ["a", "b"])


def test_one_slide_of_another_width_or_of_two_files_costs_itself(tmp_path):
  ids = ["a", "b", "c", "d", "e"]
  for name in ids:
    put(tmp_path, name, width=4 if name == "a" else 5)
  put(tmp_path, "b.svs", width=5)
  found = Bags(str(tmp_path), ids)
  assert found.width == 5
  assert [i for i in ids if found.ok(i)] == ["c", "d", "e"]
  assert "not of width 5" in found.reason["a"]
  assert "two feature files of the slide 'b'" in found.reason["b"]


def test_cache_is_bounded(tmp_path, monkeypatch):
  for name in "abc":
    put(tmp_path, name, tiles=1000)
  # 32 kB each, places included; there is room for two.
  found = Bags(str(tmp_path), ["a", "b", "c"], cache_gb=70_000 / 2**30)
  calls = counted(monkeypatch)
  for _ in range(3):
    for name in "abc":
      found.read(name)
  assert calls == ["a", "b", "c", "c", "c"]


def counted(monkeypatch):
  """Which slides' features are read from files, from now on."""
  calls, plain = [], tile_features.read

  def read(path, *more):
    calls.append(path.stem)
    return plain(path, *more)

  monkeypatch.setattr(tile_features, "read", read)
  return calls


def test_a_slow_consumer_holds_few_slides_in_memory(tmp_path, monkeypatch):
  names = [f"s{i:02d}" for i in range(24)]
  for name in names:
    put(tmp_path, name)
  found = Bags(str(tmp_path), names, cache_gb=0.0, threads=3)
  plain, alive, most = tile_features.read, weakref.WeakSet(), []

  def read(path, *more):
    tiles = plain(path, *more)
    alive.add(tiles)
    most.append(len(alive))
    return tiles

  monkeypatch.setattr(tile_features, "read", read)
  for batch in found.batches(names, 4):
    time.sleep(0.02)
    assert batch.mask.sum() == 12
  assert len(most) == 24 and max(most) <= 3


def test_nothing_but_headers_is_read_at_the_start(tmp_path, monkeypatch):
  for name in "ab":
    put(tmp_path, name)
  calls = counted(monkeypatch)
  assert Bags(str(tmp_path), ["a", "b"]).tiles == {"a": 3, "b": 3}
  assert not calls


# Batches.


def test_buckets():
  assert [bucket(m, 4) for m in (1, 4, 5, 8, 9, 100_000)] == [
    4,
    4,
    8,
    8,
    16,
    131072,
  ]
  assert bucket(70, 64) == 128


def test_left_over_bags_go_to_the_next_bucket():
  lengths = [4, 8, 4, 16, 4, 8]
  assert plan(lengths, 2, None, False) == [[0, 2], [4, 1], [5, 3]]
  assert plan(lengths, 4, None, False) == [[0, 2, 4, 1], [5, 3]]
  rng = np.random.default_rng(0)
  shuffled = plan(lengths * 20, 8, rng, False)
  assert sorted(sum(shuffled, [])) == list(range(120))
  assert sorted(map(len, shuffled)) == [8] * 15
  alike = [len({(lengths * 20)[i] for i in rows}) for rows in shuffled]
  assert alike.count(1) >= 13
  mixed = plan(lengths * 20, 8, np.random.default_rng(0), True)
  assert max(len({(lengths * 20)[i] for i in rows}) for rows in mixed) == 3


@pytest.fixture
def three(tmp_path):
  for name, tiles, value in (("a", 3, 1.0), ("b", 5, 2.0), ("c", 2, 3.0)):
    put(tmp_path, name, tiles, value=value)
  return Bags(str(tmp_path), ["a", "b", "c"], smallest_bucket=4)


def test_batches_are_padded_and_masked(three):
  first, last = three.batches(["b", "a", "c"], 2)
  assert first.features.shape == (2, 4, 4) and last.features.shape == (2, 8, 4)
  assert first.rows.tolist() == [1, 2] and last.rows.tolist() == [0, 0]
  assert first.mask.sum(axis=1).tolist() == [3, 2]
  assert first.features[1, :, 0].tolist() == [3, 3, 0, 0]
  assert first.grid_xy[0].tolist() == [[0, 0], [1, 0], [2, 0], [0, 0]]
  # The last batch is filled with its first bag, of weight 0.
  assert last.weight.tolist() == [1, 0] and last.mask[1].sum() == 5
  assert (last.features[0] == last.features[1]).all()


def test_random_tiles_of_large_bags(tmp_path):
  one = put(tmp_path, "a", tiles=50)
  numbers = np.arange(50, dtype=np.float32)[:, None] * np.ones(
    (1, 4), np.float32
  )
  tile_features.write(
    tmp_path / "a.h5", dataclasses.replace(one, features=numbers)
  )
  found = Bags(str(tmp_path), ["a"], smallest_bucket=4)

  def chosen(seed):
    batch = next(found.batches(["a"], 1, np.random.default_rng(seed), 6))
    assert batch.features.shape[1] == 8 and batch.mask.sum() == 6
    tiles = batch.features[0, :6, 0]
    assert (batch.grid_xy[0, :6, 0] == tiles).all()
    assert (np.diff(tiles) > 0).all()
    return tiles.tolist()

  assert chosen(0) == chosen(0) != chosen(1)
  # Without a generator nothing is left out: predictions see all tiles.
  assert next(found.batches(["a"], 1, None, 6)).mask.sum() == 50


def test_synthetic_bags(tmp_path):
  features, path = synthetic.write(tmp_path)
  found = cohort.read(str(path), "label", "binary")
  assert found.classes == ("normal", "tumour") and len(found.ids) == 32
  bags = Bags(str(features), found.ids)
  assert bags.reason == {"slide00": "it has no tile"}
  means = [
    bags.read(s.slide_id).features[:, 0].mean()
    for s in found.slides
    if bags.ok(s.slide_id) and s.text == "tumour"
  ]
  assert min(means) > 0.5
