"""Batches of labelled pictures: what is cut, where, and in which order."""

import contextlib
import itertools

import jax
import numpy as np
import pytest

from wsiseq_jax import parallel
from wsiseq_jax.segment import pictures as pictures_module
from wsiseq_jax.segment.maps import Maps
from wsiseq_jax.segment.pictures import Crops, Pictures


@pytest.fixture(scope="module")
def pictures():
  return Pictures("synthetic", "val")


@pytest.fixture(scope="module")
def mesh():
  return parallel.make_mesh(devices=jax.devices()[:1])


def taken(batches, count):
  with contextlib.closing(batches):
    return jax.device_get(list(itertools.islice(batches, count)))


def test_pictures_of_a_patient_are_all_positive_or_all_negative(pictures):
  assert pictures.spec.classes == ("tumour",)
  assert pictures.labels.shape == (len(pictures), 1)
  for name, label in zip(pictures.patient_ids, pictures.labels, strict=True):
    assert label[0] == (name[0] == "M")
  one = pictures.picture(0)
  assert one.id == pictures.ids[0] and one.size == one.truth.shape == (64, 64)
  assert one.labels[0] == one.truth.max()
  assert set(np.unique(one.tissue)) <= {0, 1}


def test_splits_share_no_patient(pictures):
  train = Pictures("synthetic", "train")
  assert not set(train.patient_ids) & set(pictures.patient_ids)
  assert train.identity != pictures.identity


def test_batches_are_a_function_of_seed_and_step(pictures, mesh):
  crops = Crops(batch_size=4, crop_px=48, scale=(0.7, 1.4))
  first = taken(pictures_module.train_batches(pictures, crops, 3, mesh), 6)
  late = taken(pictures_module.train_batches(pictures, crops, 3, mesh, 5), 1)
  jax.tree.map(np.testing.assert_array_equal, late[0], first[5])
  other = taken(pictures_module.train_batches(pictures, crops, 4, mesh), 1)
  assert (other[0]["pixels"] != first[0]["pixels"]).any()
  # An epoch shows every picture once.
  count = len(pictures)
  seen = np.concatenate([batch["index"] for batch in first])[:count]
  assert len(set(seen[: count // 4 * 4])) == count // 4 * 4


def test_crops_keep_pixels_masks_and_points_together(pictures, mesh):
  crops = Crops(batch_size=8, crop_px=64)
  for batch in taken(
    pictures_module.train_batches(pictures, crops, 0, mesh), 3
  ):
    assert batch["pixels"].dtype == batch["truth"].dtype == np.uint8
    for row, index in enumerate(batch["index"]):
      whole = pictures.picture(int(index))
      # A crop of the picture's own size is one of its eight positions.
      positions = [
        turned[:, ::flip]
        for turn in range(4)
        for turned in [np.rot90(whole.pixels, turn)]
        for flip in (1, -1)
      ]
      same = [np.array_equal(p, batch["pixels"][row]) for p in positions]
      place = same.index(True)
      truth = np.rot90(whole.truth, place // 2)[:, :: 1 - 2 * (place % 2)]
      np.testing.assert_array_equal(batch["truth"][row], truth)
      points = batch["points"][row]
      points = points[points[:, 2] >= 0]
      assert len(points) == len(whole.points)
      x, y = np.rint(points[:, :2]).astype(int).T
      np.testing.assert_array_equal(truth[y, x], points[:, 2])


def test_a_crop_larger_than_the_picture_is_padded(pictures, mesh):
  crops = Crops(batch_size=2, crop_px=80)
  (batch,) = taken(pictures_module.train_batches(pictures, crops, 0, mesh), 1)
  for row in range(2):
    inside = batch["truth"][row] != 255
    rows, columns = inside.any(1), inside.any(0)
    assert rows.sum() == columns.sum() == 64
    assert not batch["pixels"][row][~inside].any()
    assert not batch["tissue"][row][~inside].any()


def test_scale_enlarges(pictures, mesh):
  crops = Crops(
    batch_size=2,
    crop_px=128,
    scale=(2.0, 2.0),
    mirror=False,
    quarter_turns=False,
  )
  (batch,) = taken(pictures_module.train_batches(pictures, crops, 0, mesh), 1)
  for row, index in enumerate(batch["index"]):
    one = pictures.picture(int(index))
    large = np.kron(one.truth, np.ones((2, 2), np.uint8))
    np.testing.assert_array_equal(batch["truth"][row], large)
    points = batch["points"][row][: len(one.points)]
    np.testing.assert_allclose(points[:, :2], one.points[:, :2] * 2 + 0.5)


def test_order_chooses_pictures(pictures, mesh):
  batches = pictures_module.train_batches(
    pictures,
    Crops(batch_size=2, crop_px=32),
    0,
    mesh,
    order=lambda step: [step, 5],
  )
  found = [batch["index"].tolist() for batch in taken(batches, 3)]
  assert found == [[0, 5], [1, 5], [2, 5]]


def test_whole_pictures_come_once(pictures, mesh):
  batches = list(pictures_module.whole_batches(pictures, 3, mesh, multiple=48))
  assert all(batch["pixels"].shape == (3, 96, 96, 3) for batch in batches)
  real = np.concatenate([b["index"][b["mask"] > 0] for b in batches])
  assert sorted(real) == list(range(len(pictures)))
  one = pictures.picture(0)
  np.testing.assert_array_equal(batches[0]["pixels"][0, :64, :64], one.pixels)
  assert (batches[0]["truth"][0, 64:] == 255).all()
  np.testing.assert_array_equal(batches[0]["size"][0], (64, 64))


def test_many_sizes_share_a_few_shapes():
  sizes = np.random.default_rng(0).integers(50, 1000, (200, 2))
  shapes = pictures_module.padded_shapes(sizes, 32)
  assert len(shapes) <= 8
  assert sorted(sum(shapes.values(), [])) == list(range(200))
  for shape, members in shapes.items():
    assert (sizes[members] <= shape).all() and not np.any(np.mod(shape, 32))


def test_maps_of_a_stage_are_cut_along(pictures, mesh, tmp_path):
  maps = Maps(tmp_path)
  for index, name in enumerate(pictures.ids):
    truth = pictures.picture(index).truth
    maps.write(name, classes=truth, weight=np.float16(truth + 1))
  crops = Crops(batch_size=4, crop_px=40)
  batches = pictures_module.train_batches(
    pictures, crops, 0, mesh, targets=tmp_path
  )
  (batch,) = taken(batches, 1)
  np.testing.assert_array_equal(batch["target"], batch["truth"])
  np.testing.assert_array_equal(batch["weight"], batch["truth"] + 1.0)
  assert batch["weight"].dtype == np.float32


def test_maps_that_do_not_fit_are_refused(pictures, mesh, tmp_path):
  crops = Crops(batch_size=1, crop_px=40)

  def batches():
    return pictures_module.train_batches(
      pictures, crops, 0, mesh, targets=tmp_path, order=lambda step: [0]
    )

  with pytest.raises(ValueError, match="no maps of picture"):
    taken(batches(), 1)
  Maps(tmp_path).write(pictures.ids[0], scores=np.zeros((1, 8, 8)))
  with pytest.raises(ValueError, match="no classes"):
    taken(batches(), 1)
  Maps(tmp_path).write(pictures.ids[0], classes=np.zeros((8, 8), np.uint8))
  with pytest.raises(ValueError, match=r"\(8, 8\), the picture has \(64, 64\)"):
    taken(batches(), 1)


def test_other_data_is_refused(tmp_path):
  from data_prep.synthetic import smoke

  with pytest.raises(ValueError, match="want 'pictures-1'"):
    Pictures(smoke.cached(), "train")
  with pytest.raises(ValueError, match="data.val_split = 'late': no pictures"):
    Pictures("synthetic", "late", "data.val_split")
  with pytest.raises(ValueError, match="no shards there"):
    Pictures(tmp_path, "train")
