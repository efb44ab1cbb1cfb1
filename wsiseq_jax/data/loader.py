"""Batches of records for the host's share of a step.

The order of training data is a function of the step and nothing else:

    position p = step · B + row       row in 0 … B−1 of the global batch
    record     = order[p]             order: all records, shuffled each epoch

Hosts take their rows of the result. There is no state to save: a resumed run
asks for the batches from its step on, with any number of threads, worker
processes and hosts. (Grain's own iterator state is tied to the number of
workers; restored with another number it silently gives other data.)

The host parses a record and decodes its JPEGs to uint8 panels, no more. JPEG
decoding releases Python's lock: threads are enough on most machines.

This module imports no JAX: worker processes load it.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import weakref
from collections.abc import Iterator, Sequence
from concurrent import futures

import cv2
import grain
import numpy as np
import simplejpeg

from wsiseq_jax.data.source import Records

Batch = dict[str, np.ndarray]

# Version of the order of training data, kept in checkpoints. 1 was NumPy's.
ORDER_VERSION = 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# Batches in the making while one is used.
_BATCHES_AHEAD = 2


def _mix(x: np.ndarray) -> np.ndarray:
  """The bijection of splitmix64 (Steele et al., 2014), uint64 [n]."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
  """The order of all records in one epoch: sorted by a hash of the index.

  The hash is written out here, because no version of NumPy promises to shuffle
  as another does. Changing it must raise `ORDER_VERSION`.

  Example:
    >>> epoch_order(6, seed=0, epoch=1).tolist()
    [0, 4, 3, 2, 1, 5]
  """
  # Arrays, since only they wrap around in silence.
  key = np.zeros(1, np.uint64)
  for number in (seed, epoch):
    key = _mix((key ^ np.uint64(number)) + _GOLDEN)
  steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
  # Both factors are odd and the mix is a bijection: no two hashes are equal.
  return np.argsort(_mix(key + steps))


def record_index(count: int, seed: int, position: int) -> int:
  """The record at a position of the endless stream of records."""
  epoch, place = divmod(position, count)
  return int(epoch_order(count, seed, epoch)[place])


def batch_indices(
  count: int, seed: int, batch_size: int, step: int
) -> np.ndarray:
  """Record indices of the whole global batch of a step; reads nothing."""
  first = step * batch_size
  rows = range(first, first + batch_size)
  return np.array([record_index(count, seed, row) for row in rows], np.int32)


def load(
  source: Records,
  index: int,
  mask: float = 1.0,
  panels: np.ndarray | None = None,
) -> Batch:
  """Reads and decodes one record.

  Args:
    source: Where from.
    index: Record index.
    mask: 1, or 0 for a record that only fills up a batch.
    panels: Where to put the pixels, uint8 [p, h, w, c]; a new array by default.

  Returns:
    The record's arrays, without a batch axis: panels uint8 [p, h, w, c],
    frame_panel [T], frame_box [T, 4], frame_level0_xy [T, 2], time [T],
    frame_mask [T] (0 = padding), targets [K], and the scalars mpp,
    heading_deg, index, mask.

  Raises:
    ValueError: A panel is damaged or has another size than the data set says.
  """
  record = source.record(index)
  if panels is None:
    panels = np.empty(source.spec.panels_shape, np.uint8)
  problem = None
  if len(record.panels) != len(panels):
    problem = f"{len(record.panels)} panels instead of {len(panels)}"
  for out, jpeg in zip(panels, record.panels, strict=False):
    try:
      found = _decode(jpeg, out).shape
    except ValueError as error:
      found = error
    if found != out.shape:
      problem = f"a panel of {out.shape} does not decode: {found}"
  if problem:
    raise ValueError(
      f"sequence {record.sequence_id!r} (record {index} of "
      f"{source.split!r}): {problem}"
    )
  return {
    "panels": panels,
    "frame_panel": record.frame_panel,
    "frame_box": record.frame_box,
    "frame_level0_xy": record.frame_level0_xy,
    "time": record.time,
    "frame_mask": record.frame_mask,
    "mpp": np.float32(record.mpp),
    "heading_deg": np.float32(record.heading_deg),
    "targets": record.targets,
    "index": np.int32(index),
    "mask": np.float32(mask),
  }


def _decode(image: bytes, out: np.ndarray) -> np.ndarray:
  """Decodes an image into `out` if it has its shape; returns the pixels."""
  if image[:2] == b"\xff\xd8":
    return simplejpeg.decode_jpeg(image, buffer=out)
  # Picture sets of others are often PNG; shards of ours never are.
  pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
  if pixels is None:
    raise ValueError("neither JPEG nor anything else that OpenCV knows")
  if pixels.shape == out.shape:
    cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=out)
  return pixels


def stack(rows: Sequence[Batch]) -> Batch:
  """Records, as `load` gives them, as a batch."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@contextlib.contextmanager
def closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
  """Stops the threads and processes behind an iterator at the end."""
  try:
    yield batches
  finally:
    batches.close()


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Which record goes where: numbers count this host's rows, step by step.

  Picklable, for worker processes.
  """

  source: Records  # The records
  batch_size: int  # Rows of the global batch
  rows: tuple[int, ...]  # Those of this host
  # Seed of the order; None for every record once, as they are stored
  seed: int | None

  def __call__(self, number: int, panels: np.ndarray | None = None) -> Batch:
    step, place = divmod(int(number), len(self.rows))
    position = step * self.batch_size + self.rows[place]
    if self.seed is not None:
      index = record_index(len(self.source), self.seed, position)
      return load(self.source, index, 1.0, panels)
    last = len(self.source) - 1
    index, mask = min(position, last), float(position <= last)
    return load(self.source, index, mask, panels)


class Buffers:
  """Arrays of one shape, whose memory is used again when all views are gone.

  New memory costs a page fault every 4 kB, a sixth of the loader's time. Every
  view of an array, also a device array that shares its memory, keeps the object
  alive that lends the memory; at its end the memory returns.
  """

  def __init__(self, shape: Sequence[int]):
    self._shape = tuple(shape)
    self._free: list[np.ndarray] = []

  def take(self) -> np.ndarray:
    """An array of the shape, uint8, with anything in it."""
    try:
      memory = self._free.pop()
    except IndexError:
      memory = np.empty(self._shape, np.uint8)
    lender = (ctypes.c_uint8 * memory.nbytes).from_buffer(memory)
    end = weakref.finalize(lender, self._free.append, memory)
    end.atexit = False
    return np.frombuffer(lender, np.uint8).reshape(self._shape)


def _in_threads(
  plan: _Plan, start: int, stop: int, threads: int
) -> Iterator[Batch]:
  """Batches read in this process, a few ahead of their use.

  Panels are decoded to where they stay in the batch. Decoding to an array of
  its own and stacking costs a third of the rate: it is mostly page faults.
  """
  count = len(plan.rows)
  buffers = Buffers((count, *plan.source.spec.panels_shape))
  waiting = collections.deque()

  def finish(jobs):
    panels, *jobs = jobs
    rows = [job.result() for job in jobs]
    names = [name for name in rows[0] if name != "panels"]
    small = {name: np.stack([row[name] for row in rows]) for name in names}
    return {"panels": panels, **small}

  with futures.ThreadPoolExecutor(threads) as pool:
    try:
      for step in range(start, stop):
        panels = buffers.take()
        jobs = [
          pool.submit(plan, step * count + place, panels[place])
          for place in range(count)
        ]
        waiting.append([panels, *jobs])
        del panels
        if len(waiting) > _BATCHES_AHEAD:
          yield finish(waiting.popleft())
      while waiting:
        yield finish(waiting.popleft())
    finally:
      pool.shutdown(wait=True, cancel_futures=True)


def _in_processes(
  plan: _Plan, start: int, stop: int, threads: int, processes: int
) -> Iterator[Batch]:
  """Batches of records that worker processes read."""
  count = len(plan.rows)
  # Workers deal out records, not batches: a batch put together in a worker
  # would depend on how many workers there are.
  dataset = (
    grain.MapDataset.range(start * count, stop * count)
    .map(plan)
    # Grain would read 500 elements ahead; a clip has a megabyte.
    .to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    .mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=processes, per_worker_buffer_size=2 * threads
      )
    )
  )
  # Shared memory for panels; small arrays travel faster through the pipe.
  dataset = grain.experimental.WithOptionsIterDataset(
    dataset, grain.experimental.DatasetOptions(min_shm_size=2**16)
  )
  dataset = grain.experimental.ThreadPrefetchIterDataset(
    dataset.batch(count), prefetch_buffer_size=_BATCHES_AHEAD
  )
  return iter(dataset)


def _iterate(
  plan: _Plan, start: int, stop: int, threads: int, processes: int
) -> Iterator[Batch]:
  if processes:
    return _in_processes(plan, start, stop, threads, processes)
  return _in_threads(plan, start, stop, threads)


def train_batches(
  source: Records,
  *,
  seed: int,
  batch_size: int,
  start_step: int,
  stop_step: int,
  rows: Sequence[int] | None = None,
  threads: int = 1,
  worker_processes: int = 0,
) -> Iterator[Batch]:
  """This host's part of the batches of steps `start_step` to `stop_step` − 1.

  Args:
    source: The records.
    seed: Seed of the order.
    batch_size: Records in the global batch (B).
    start_step: First step; the order does not depend on it.
    stop_step: Where to end.
    rows: Rows of the global batch to read here; all by default.
    threads: Threads that read and decode (in each worker).
    worker_processes: Processes to read in; 0 reads in this one.

  Returns:
    Batches of arrays as `load` describes them, with a leading axis of rows.
  """
  rows = tuple(range(batch_size) if rows is None else (int(r) for r in rows))
  plan = _Plan(source, batch_size, rows, seed)
  return _iterate(plan, start_step, stop_step, threads, worker_processes)


def eval_batch_count(count: int, batch_size: int) -> int:
  """Batches that hold `count` records, the last one filled up."""
  return -(-count // batch_size)


def eval_batches(
  source: Records,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
  threads: int = 1,
  worker_processes: int = 0,
) -> Iterator[Batch]:
  """Every record once, in order; the last batch is filled up with `mask` 0.

  Args:
    source: The records; never empty.
    batch_size: Records in the global batch.
    rows: Rows of the global batch to read here; all by default.
    threads: Threads that read and decode.
    worker_processes: Processes to read in; 0 reads in this one.

  Returns:
    Batches as from `train_batches`.
  """
  rows = tuple(range(batch_size) if rows is None else (int(r) for r in rows))
  plan = _Plan(source, batch_size, rows, seed=None)
  stop = eval_batch_count(len(source), batch_size)
  return _iterate(plan, 0, stop, threads, worker_processes)
