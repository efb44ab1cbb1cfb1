import sys

import numpy as np
import pytest

from tests import small_run
from wsiseq_jax.data import loader
from wsiseq_jax.data import source as sources


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  path = small_run.shards(tmp_path_factory.mktemp("loader"))
  return sources.RecordSource(path, "train")


@pytest.fixture(scope="module")
def val(train, tmp_path_factory):
  path = small_run.shards(tmp_path_factory.mktemp("loader_val"))
  return sources.RecordSource(path, "val")


def batches(source, **more):
  settings = dict(seed=3, batch_size=8, start_step=0, stop_step=6)
  iterator = loader.train_batches(source, **settings | more)
  with loader.closing(iterator):
    return list(iterator)


def same(a, b):
  assert len(a) == len(b)
  for left, right in zip(a, b, strict=True):
    assert left.keys() == right.keys()
    for name in left:
      np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_arrays_of_a_batch(train):
  batch = batches(train, stop_step=1)[0]
  found = {name: (str(a.dtype), a.shape) for name, a in batch.items()}
  assert found == {
    "panels": ("uint8", (8, 1, 40, 84, 3)),
    "frame_panel": ("int32", (8, 12)),
    "frame_box": ("float32", (8, 12, 4)),
    "frame_level0_xy": ("float32", (8, 12, 2)),
    "time": ("float32", (8, 12)),
    "frame_mask": ("float32", (8, 12)),
    "targets": ("float32", (8, 0)),
    "mpp": ("float32", (8,)),
    "heading_deg": ("float32", (8,)),
    "index": ("int32", (8,)),
    "mask": ("float32", (8,)),
  }


def test_each_epoch_has_every_record_once_in_another_order(train):
  indices = [b["index"] for b in batches(train, stop_step=8)]
  first, second = np.concatenate(indices[:4]), np.concatenate(indices[4:])
  assert sorted(first) == sorted(second) == list(range(32))
  assert list(first) != list(second) and list(first) != list(range(32))


def test_order_is_a_function_of_the_step(train):
  whole = batches(train)
  same(whole[4:], batches(train, start_step=4))
  for step, batch in enumerate(whole):
    expected = loader.batch_indices(32, seed=3, batch_size=8, step=step)
    np.testing.assert_array_equal(batch["index"], expected)


def test_threads_change_nothing(train):
  same(batches(train, threads=1), batches(train, threads=4, start_step=0))


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(train, workers):
  same(
    batches(train, start_step=2),
    batches(train, start_step=2, worker_processes=workers),
  )


def test_hosts_together_read_the_batch_of_one(train):
  whole = batches(train)
  parts = [batches(train, rows=rows) for rows in ([0, 1, 2], [3, 4, 5, 6, 7])]
  joined = [
    {name: np.concatenate([a[name], b[name]]) for name in a}
    for a, b in zip(*parts, strict=True)
  ]
  same(whole, joined)


def test_the_order_is_this_one_for_ever():
  # Resumed runs rely on it: another order needs another ORDER_VERSION.
  assert loader.ORDER_VERSION == 2
  assert loader.epoch_order(10, seed=0, epoch=0).tolist() == [
    0,
    7,
    8,
    2,
    5,
    9,
    4,
    6,
    3,
    1,
  ]
  assert loader.epoch_order(10, seed=7, epoch=3).tolist() == [
    7,
    2,
    0,
    9,
    5,
    3,
    4,
    8,
    6,
    1,
  ]


def test_the_order_is_shuffled():
  orders = np.stack([loader.epoch_order(1000, 1, e) for e in range(40)])
  assert all(len(set(order)) == 1000 for order in orders.tolist())
  # Mean places of records: uniform ones have a std of 289 / sqrt(40) = 46.
  places = np.argsort(orders, axis=1).mean(axis=0)
  assert 40 < places.std() < 52 and abs(places.mean() - 499.5) < 1e-6
  # No order tells the next one, nor does a seed the next.
  for a, b in (
    (orders[0], orders[1]),
    (orders[0], loader.epoch_order(1000, 2, 0)),
  ):
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_another_seed_another_order(train):
  a, b = batches(train, stop_step=1), batches(train, stop_step=1, seed=4)
  assert list(a[0]["index"]) != list(b[0]["index"])


def test_evaluation_pads_and_never_drops(val):
  iterator = loader.eval_batches(val, batch_size=6, threads=2)
  with loader.closing(iterator):
    got = list(iterator)
  assert len(got) == loader.eval_batch_count(16, 6) == 3
  index = np.concatenate([b["index"] for b in got])
  mask = np.concatenate([b["mask"] for b in got])
  assert list(index[mask > 0]) == list(range(16))
  assert list(mask) == [1.0] * 16 + [0.0] * 2
  assert got[-1]["panels"].shape == (6, 1, 40, 84, 3)


def test_a_damaged_panel_names_the_sequence(train, monkeypatch):
  record = train.record(3)
  broken = (record.panels[0][:400],)
  object.__setattr__(record, "panels", broken)
  monkeypatch.setattr(train, "record", lambda index: record)
  with pytest.raises(ValueError, match="slide_a/3_.*"):
    loader.load(train, 3)


def test_panels_of_another_size_name_the_sequence(train, monkeypatch):
  from data_prep.synthetic import smoke

  record = smoke.drift_record("slide_a", 0, 12, 48, 4)
  monkeypatch.setattr(train, "record", lambda index: record)
  with pytest.raises(ValueError, match=r"slide_a/0_.*does not decode"):
    loader.load(train, 0)


def test_memory_is_used_again_only_when_nobody_holds_it():
  buffers = loader.Buffers((2, 3))
  first = buffers.take()
  view = memoryview(np.asarray(first[1:]).reshape(3))
  address = first.ctypes.data
  del first
  second = buffers.take()
  assert second.ctypes.data != address  # the view still looks at it
  del view
  assert buffers.take().ctypes.data == address


def test_batches_that_are_kept_keep_their_values(train, monkeypatch):
  wanted = []
  iterator = loader.train_batches(
    train, seed=3, batch_size=8, start_step=0, stop_step=6
  )
  with loader.closing(iterator):
    for batch in iterator:
      wanted.append(batch["panels"].copy())
  # Python 3.14 counts one reference less than 3.13.
  count = sys.getrefcount
  monkeypatch.setattr(sys, "getrefcount", lambda x: count(x) - 2)
  for batch, want in zip(batches(train), wanted, strict=True):
    np.testing.assert_array_equal(batch["panels"], want)
