"""Batches of records for the host's share of a step.

The order of training data is a function of the step and nothing else:

    position p = step · B + row       row in 0 … B−1 of the global batch
    record     = order[p]             order: shuffled anew for each epoch

`order` shuffles all records globally, then repeats; hosts take their rows of
the result. There is no state to save: a resumed run asks for the batches from
its step on, and gets the ones it would have got, with any number of threads,
worker processes and hosts. (Grain's own iterator state is tied to the number
of workers; restoring it with another number silently gives other data.)

The host parses a record and decodes its JPEGs to uint8 panels, no more. JPEG
decoding lets go of Python's lock, so threads are enough on most machines and
share memory; worker processes are there for many cores.

This module imports no JAX: worker processes load it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from data_prep import records
from wsiseq_jax.data.source import RecordSource

Batch = dict[str, np.ndarray]


def epoch_order(count: int, seed: int) -> grain.MapDataset:
  """Maps a position in the endless stream of records to a record index.

  Args:
    count: Records in the split.
    seed: Seed of the shuffle.

  Returns:
    A data set to index by position; each stretch of `count` positions holds
    every record once.

  Example:
    >>> order = epoch_order(4, seed=0)
    >>> sorted(int(order[p]) for p in range(4, 8))
    [0, 1, 2, 3]
  """
  return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def batch_indices(
  count: int, seed: int, batch_size: int, step: int
) -> np.ndarray:
  """Record indices of the whole global batch of a step; reads nothing."""
  order = epoch_order(count, seed)
  first = step * batch_size
  return np.array([order[first + row] for row in range(batch_size)], np.int32)


def load(source: RecordSource, index: int, mask: float = 1.0) -> Batch:
  """Reads and decodes one record.

  Args:
    source: Where from.
    index: Record index.
    mask: 1, or 0 for a record that only fills up a batch.

  Returns:
    The record's arrays, without a batch axis: panels uint8 [p, h, w, c],
    frame_panel [T], frame_box [T, 4], frame_level0_xy [T, 2], time [T],
    targets [K], and the scalars mpp, heading_deg, index, mask.
  """
  record = source.record(index)
  try:
    panels = records.decode_panels(record)
  except ValueError as error:
    raise ValueError(
      f"sequence {record.sequence_id!r} (record {index} of "
      f"{source.split!r}) does not decode: {error}"
    ) from error
  want = (source.spec.panels, *source.spec.panel_px, 3)
  if panels.shape != want:
    raise ValueError(
      f"sequence {record.sequence_id!r} has panels {panels.shape}, the data "
      f"set says {want}"
    )
  return {
    "panels": panels,
    "frame_panel": record.frame_panel,
    "frame_box": record.frame_box,
    "frame_level0_xy": record.frame_level0_xy,
    "time": record.time,
    "mpp": np.float32(record.mpp),
    "heading_deg": np.float32(record.heading_deg),
    "targets": record.targets,
    "index": np.int32(index),
    "mask": np.float32(mask),
  }


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
class _TrainRecord:
  """Number of a record on this host → its arrays. Picklable for workers."""

  source: RecordSource
  seed: int
  batch_size: int
  rows: tuple[int, ...]

  def __call__(self, number: int) -> Batch:
    step, place = divmod(int(number), len(self.rows))
    position = step * self.batch_size + self.rows[place]
    order = epoch_order(len(self.source), self.seed)
    return load(self.source, int(order[position]))


@dataclasses.dataclass(frozen=True)
class _EvalRecord:
  """The same for evaluation: in order, the last batch filled up."""

  source: RecordSource
  batch_size: int
  rows: tuple[int, ...]

  def __call__(self, number: int) -> Batch:
    step, place = divmod(int(number), len(self.rows))
    position = step * self.batch_size + self.rows[place]
    last = len(self.source) - 1
    return load(self.source, min(position, last), float(position <= last))


def _iterate(
  fetch,
  start: int,
  stop: int,
  batch_rows: int,
  threads: int,
  worker_processes: int,
) -> Iterator[Batch]:
  # Grain would read 500 elements ahead; a clip has a megabyte.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  dataset = (
    grain.MapDataset.range(start * batch_rows, stop * batch_rows)
    .map(fetch)
    .to_iter_dataset(options)
  )
  if worker_processes:
    # Workers deal out records, not batches: a batch put together in a worker
    # would depend on how many workers there are.
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=worker_processes, per_worker_buffer_size=2 * threads
      )
    )
    # Shared memory for panels; small arrays travel faster through the pipe.
    dataset = grain.experimental.WithOptionsIterDataset(
      dataset, grain.experimental.DatasetOptions(min_shm_size=2**16)
    )
  dataset = dataset.batch(batch_rows)
  # Put together ahead of use, so that reading goes on during a step.
  dataset = grain.experimental.ThreadPrefetchIterDataset(
    dataset, prefetch_buffer_size=2
  )
  return iter(dataset)


def train_batches(
  source: RecordSource,
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
  fetch = _TrainRecord(source, seed, batch_size, rows)
  return _iterate(
    fetch, start_step, stop_step, len(rows), threads, worker_processes
  )


def eval_batch_count(count: int, batch_size: int) -> int:
  """Batches that hold `count` records, the last one filled up.

  Example:
    >>> eval_batch_count(9, 4)
    3
  """
  return -(-count // batch_size)


def eval_batches(
  source: RecordSource,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
  threads: int = 1,
  worker_processes: int = 0,
) -> Iterator[Batch]:
  """Every record once, in order; the last batch is filled up with `mask` 0.

  Args:
    source: The records; a `RecordSource` is never empty.
    batch_size: Records in the global batch.
    rows: Rows of the global batch to read here; all by default.
    threads: Threads that read and decode.
    worker_processes: Processes to read in; 0 reads in this one.

  Returns:
    Batches as from `train_batches`.
  """
  rows = tuple(range(batch_size) if rows is None else (int(r) for r in rows))
  fetch = _EvalRecord(source, batch_size, rows)
  stop = eval_batch_count(len(source), batch_size)
  return _iterate(fetch, 0, stop, len(rows), threads, worker_processes)
