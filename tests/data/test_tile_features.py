"""Feature files: ours, TRIDENT's, CLAM's and STAMP's, and bad ones."""

import dataclasses
import os

import h5py
import numpy as np
import pytest

from wsiseq_jax.data import tile_features
from wsiseq_jax.data.tile_features import TileFeatures


def _tiles(count: int = 5, width: int = 4, **changes) -> TileFeatures:
  rng = np.random.default_rng(count)
  # 224 px at 0.5 um/px of a slide scanned at 0.2528: 443.038 px of level 0.
  values = {
    "slide_id": "S1",
    "features": rng.normal(size=(count, width)).astype(np.float32),
    "xy": 443.0 * np.stack([np.arange(count), np.arange(count) % 2], 1),
    "tile_size": 224 * 0.5 / 0.2528,
    "mpp": 0.5,
    "level0_mpp": 0.2528,
    "level0_size": (9000, 7000),
    "encoder": "resnet50",
    **changes,
  }
  return TileFeatures(**values)


def _file(path, on_coords=None, on_file=None, **data):
  """Writes an h5 file as other programs do."""
  with h5py.File(path, "w") as file:
    for name, values in data.items():
      file.create_dataset(name, data=values)
    if on_coords:
      file["coords"].attrs.update(on_coords)
    file.attrs.update(on_file or {})
  return path


def _grid(columns: int, rows: int, step: int, start=(0, 0)) -> np.ndarray:
  x, y = np.meshgrid(np.arange(columns), np.arange(rows))
  return np.stack([x.ravel(), y.ravel()], 1) * step + start


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / "S1.h5"
  tiles = _tiles()
  tile_features.write(path, tiles, {"config_hash": "abc"}, overlap_px=32)
  again = tile_features.read(path)
  for field in dataclasses.fields(TileFeatures):
    np.testing.assert_array_equal(
      getattr(again, field.name), getattr(tiles, field.name)
    )
  assert tile_features.header(path)[:2] == (5, 4)
  assert os.listdir(tmp_path) == ["S1.h5"]  # no draft is left


def test_layout_is_that_of_clam_and_trident(tmp_path):
  """Read with plain h5py, under the names their readers use."""
  path = tmp_path / "S1.h5"
  tile_features.write(path, _tiles(), {"config_hash": "abc"}, overlap_px=32)
  with h5py.File(path, "r") as file:
    assert sorted(file) == ["coords", "features"]
    features, coords = file["features"], file["coords"]
    assert (features.dtype, features.shape) == (np.float32, (5, 4))
    assert (coords.dtype, coords.shape) == (np.int64, (5, 2))
    assert coords[:].tolist()[3] == [1329, 443]
    on_features, on_coords = dict(features.attrs), dict(coords.attrs)
    assert file.attrs["config_hash"] == "abc"
  assert on_features == {
    "name": "S1",
    "encoder": "resnet50",
    "savetodir": str(tmp_path),
  }
  for name in ("level_dim", "downsampled_level_dim"):
    assert on_coords.pop(name).tolist() == [9000, 7000]
  assert on_coords.pop("downsample").tolist() == [1.0, 1.0]
  exact = pytest.approx
  assert on_coords == {
    "patch_size": 224,
    "patch_size_level0": 443,
    "tile_size_level0": exact(443.0379747),
    "level0_magnification": exact(39.5569620),
    "target_magnification": 20.0,
    "overlap": 32,
    "name": "S1",
    "savetodir": str(tmp_path),
    "level0_width": 9000,
    "level0_height": 7000,
    "patch_level": 0,
    # CLAM's footprint: patch_size x downsample x custom_downsample.
    "custom_downsample": exact(443.0379747 / 224),
    "mpp": 0.5,
    "level0_mpp": 0.2528,
  }


def test_slide_without_tissue_has_a_file(tmp_path):
  path = tmp_path / "S1.h5"
  tile_features.write(path, _tiles(0, 4))
  again = tile_features.read(path)
  assert again.features.shape == (0, 4) and again.xy.shape == (0, 2)
  assert again.tile_size == pytest.approx(443.0379747)


def test_trident(tmp_path):
  attributes = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "S1",
    "savetodir": "/jobs",
    "level0_width": 9000,
    "level0_height": 7000,
  }
  path = _file(
    tmp_path / "S1.h5",
    on_coords=attributes,
    features=np.ones((3, 1536), np.float32),
    coords=np.array([[0, 0], [512, 0], [512, 512]], np.int64),
  )
  with h5py.File(path, "a") as file:
    file["features"].attrs["encoder"] = "uni_v1"
  tiles = tile_features.read(path)
  assert (tiles.tile_size, tiles.unit, tiles.encoder) == (
    512.0,
    "level0_px",
    "uni_v1",
  )
  # A magnification is no scale, so no mpp is made of it.
  assert (tiles.mpp, tiles.level0_mpp) == (None, None)
  assert tiles.level0_size == (9000, 7000)
  assert tiles.level0_xy()[0].tolist() == [[0, 0], [512, 0], [512, 512]]


def test_clam_tile_side_from_attributes_or_spacing(tmp_path):
  # CLAM begins a grid at the corner of each piece of tissue.
  coords = np.concatenate(
    [_grid(4, 3, 256, (1000, 77)), _grid(3, 2, 256, (2113, 1205))]
  )
  features = np.ones((18, 1024), np.float32)
  data = {"features": features, "coords": coords}
  assert tile_features.read(_file(tmp_path / "a.h5", **data)).tile_size == 256
  # Patches of 256 px of level 1, a level with a downsample of 4.
  on_coords = {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}
  path = _file(tmp_path / "b.h5", on_coords=on_coords, **data)
  assert tile_features.read(path).tile_size == 1024
  on_coords["custom_downsample"] = 2
  path = _file(tmp_path / "c.h5", on_coords=on_coords, **data)
  assert tile_features.read(path).tile_size == 2048


def test_clam_tile_side_that_cannot_be_known(tmp_path):
  one = _file(
    tmp_path / "one.h5",
    features=np.ones((1, 8), np.float32),
    coords=np.array([[5, 7]]),
  )
  with pytest.raises(ValueError, match=r"one\.h5 does not say .* tile_size"):
    tile_features.read(one)
  assert tile_features.read(one, tile_size=256).tile_size == 256.0
  # Places without any order: distances in a row differ.
  ragged = _file(
    tmp_path / "ragged.h5",
    features=np.ones((4, 8), np.float32),
    coords=np.array([[0, 0], [10, 0], [31, 0], [77, 0]]),
  )
  with pytest.raises(ValueError, match="spacing"):
    tile_features.read(ragged)
  empty = _file(
    tmp_path / "empty.h5",
    features=np.ones((0, 8), np.float32),
    coords=np.zeros((0, 2), np.int64),
  )
  assert np.isnan(tile_features.read(empty).tile_size)


def test_stamp_is_in_micrometres(tmp_path):
  path = _file(
    tmp_path / "S1.h5",
    on_file={
      "unit": "um",
      "tile_size_um": 256.0,
      "tile_size_px": 224,
      "extractor": "ctranspath",
      "stamp_version": "2.0",
      "feat_type": "tile",
    },
    feats=np.full((2, 768), 0.5, np.float16),
    coords=np.array([[0.0, 0.0], [256.0, 512.0]]),
  )
  tiles = tile_features.read(path)
  assert tiles.features.dtype == np.float32 and tiles.features[0, 0] == 0.5
  assert (tiles.unit, tiles.tile_size, tiles.encoder) == (
    "um",
    256.0,
    "ctranspath",
  )
  assert tiles.mpp == pytest.approx(256 / 224)
  xy, side = tiles.level0_xy(mpp=0.25)
  assert xy.tolist() == [[0, 0], [1024, 2048]] and side == 1024
  with pytest.raises(ValueError, match="um per level-0 pixel"):
    tiles.level0_xy()
  with pytest.raises(ValueError, match="'um' cannot be written"):
    tile_features.write(tmp_path / "out.h5", tiles)


_GOOD = {
  "features": np.ones((3, 4), np.float32),
  "coords": np.array([[0, 0], [8, 0], [16, 0]]),
}
_NAN = _GOOD["features"].copy()
_NAN[1, 2] = np.nan


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"features": _NAN}, "features of 1 of 3 tiles .* the first is row 1"),
    ({"features": _NAN * np.inf}, "NaN or infinite"),
    # More than float32 can hold.
    ({"features": np.full((3, 4), 1e300)}, "NaN or infinite"),
    ({"coords": np.array([[0.0, np.nan], [8, 0], [16, 0]])}, "coords of 1 of"),
    ({"coords": _GOOD["coords"][:2]}, "3 rows of features but 2 coordinates"),
    ({"features": np.ones(4, np.float32)}, r"features is float32 \(4,\)"),
    ({"features": np.ones((2, 3, 4), np.float32)}, r"\(2, 3, 4\)"),
    ({"features": np.ones((3, 4), np.int64)}, "features is int64"),
    ({"features": np.ones((3, 0), np.float32)}, "no columns"),
    ({"coords": np.zeros((3, 3), np.int64)}, r"want \(tiles, 2\)"),
    ({"features": None}, r"holds \['coords'\]: expected"),
    ({"coords": None}, r"holds \['features'\]: expected"),
    ({"feats": np.ones((3, 4), np.float32)}, "holds .*'feats', 'features'"),
    ({"feats": np.ones((3, 4), np.float32), "features": None}, "unit ''"),
  ],
)
def test_bad_files_are_named(tmp_path, changes, words):
  data = {k: v for k, v in {**_GOOD, **changes}.items() if v is not None}
  path = _file(tmp_path / "bad.h5", **data)
  with pytest.raises(ValueError, match=words) as caught:
    tile_features.read(path)
  assert "bad.h5" in str(caught.value)


def test_files_that_are_no_files(tmp_path):
  with pytest.raises(ValueError, match="no such feature file: .*none.h5"):
    tile_features.read(tmp_path / "none.h5")
  (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
  with pytest.raises(
    ValueError, match=r"cannot read the feature file .*cut\.h5"
  ):
    tile_features.read(tmp_path / "cut.h5")


def test_nan_is_not_written_and_the_old_file_stays(tmp_path):
  path = tmp_path / "S1.h5"
  tile_features.write(path, _tiles())
  bad = _tiles()
  bad.features[4, 0] = np.inf
  with pytest.raises(ValueError, match="row 4"):
    tile_features.write(path, bad)
  with pytest.raises(TypeError):  # in the middle of writing
    tile_features.write(path, _tiles(3), {"no such thing": object()})
  assert tile_features.header(path)[:2] == (5, 4)
  assert os.listdir(tmp_path) == ["S1.h5"]


def test_find(tmp_path):
  for name in ("b.h5", "a.h5", "site/c.hdf5", "a.csv", ".hidden/d.h5"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
  found = tile_features.find(tmp_path)
  assert list(found) == ["a", "b", "c"]
  assert found["c"] == tmp_path / "site" / "c.hdf5"
  (tmp_path / "site" / "a.h5").write_bytes(b"")
  with pytest.raises(ValueError, match="two feature files of the slide 'a'"):
    tile_features.find(tmp_path)
  doubled = {}
  assert list(tile_features.find(tmp_path, doubled)) == ["b", "c"]
  assert list(doubled) == ["a"]
  with pytest.raises(ValueError, match="no feature file"):
    tile_features.find(_empty(tmp_path))
  with pytest.raises(ValueError, match="no such folder"):
    tile_features.find(tmp_path / "nowhere")


def _empty(tmp_path):
  folder = tmp_path / "empty"
  folder.mkdir()
  return folder


def test_one_bag_a_batch_as_slide_encoders_want(tmp_path):
  for name, coords in (("a", _GOOD["coords"]), ("b", _GOOD["coords"][None])):
    path = _file(
      tmp_path / f"{name}.h5",
      features=np.arange(12, dtype=np.float32).reshape(1, 3, 4),
      coords=coords,
    )
    tiles = tile_features.read(path)
    assert tiles.features.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert tiles.xy.tolist() == _GOOD["coords"].tolist()
    assert tile_features.header(path)[:2] == (3, 4)


def test_slide_ids_of_files(tmp_path):
  for name in ("S00.svs.h5", "S01.h5", "S02.ome.tif.hdf5", "S-1.2.h5"):
    (tmp_path / name).write_bytes(b"")
  found = tile_features.find(tmp_path)
  assert list(found) == ["S-1.2", "S00", "S01", "S02"]


def test_damaged_chunk_is_an_error_that_names_the_file(tmp_path):
  path = tmp_path / "cut.h5"
  with h5py.File(path, "w") as file:
    file.create_dataset(
      "features", data=np.ones((64, 8), np.float32), compression="gzip"
    )
    file["coords"] = np.zeros((64, 2), np.int64)
    offset = file["features"].id.get_chunk_info(0).byte_offset
  with open(path, "r+b") as file:
    file.seek(offset)
    file.write(b"\xff" * 16)
  for reading in (tile_features.header, tile_features.read):
    with pytest.raises(ValueError, match=r"cannot read .*cut\.h5"):
      reading(path)


def test_identity_tells_content_and_not_place(tmp_path):
  def of(name, tiles):
    (tmp_path / name).mkdir()
    tile_features.write(tmp_path / name / "S1.h5", tiles)
    return tile_features.header(tmp_path / name / "S1.h5").identity

  tiles = _tiles(40)
  first = of("a", tiles)
  assert of("b", tiles) == first
  other = dataclasses.replace(tiles, features=tiles.features + 1e-3)
  moved = dataclasses.replace(tiles, xy=tiles.xy + 1)
  assert len({first, of("c", other), of("d", moved)}) == 3


def test_a_filter_that_is_not_here_is_named(tmp_path):
  """Registered to nobody here; the chunk would be noise."""
  path = tmp_path / "a.h5"
  with h5py.File(path, "w") as file:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((4, 3))
    made.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))
    kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4, 3))
    one = h5py.h5d.create(file.id, b"features", kind, space, made)
    one.write_direct_chunk((0, 0), bytes(20))
    file["coords"] = np.zeros((4, 2), np.int64)
  for read in (tile_features.header, tile_features.read):
    with pytest.raises(ValueError, match="a.h5: compressed by .* filter 32015"):
      read(path)


def test_features_that_no_encoder_makes_and_sides_of_x_and_y(tmp_path):
  coords = _grid(2, 2, 256, (0, 0))
  for value, words in ((3e30, "damaged"), (0.0, "all features are 0")):
    features = np.full((4, 8), value, np.float32)
    path = _file(tmp_path / "a.h5", features=features, coords=coords)
    with pytest.raises(ValueError, match=words):
      tile_features.read(path)
  features = np.ones((4, 8), np.float32)
  for side, expected in ((np.array([512, 512]), 512), ("512", 512)):
    on_coords = {"patch_size_level0": side}
    path = _file(
      tmp_path / "b.h5", on_coords=on_coords, features=features, coords=coords
    )
    assert tile_features.read(path).tile_size == expected
  for side in (np.array([512, 256]), "large"):
    on_coords = {"patch_size_level0": side}
    path = _file(
      tmp_path / "c.h5", on_coords=on_coords, features=features, coords=coords
    )
    with pytest.raises(ValueError, match="patch_size_level0.*want one number"):
      tile_features.read(path)
