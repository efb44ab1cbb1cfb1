"""Runs one function over many items on a Dask cluster whose workers may die.

  for event in cluster.run(function, items, config, shared=out): ...

Native image libraries do crash on damaged files, so what matters here is who
pays for it:

- A worker process has one item at a time. Its death costs that attempt alone,
  and Dask's nanny starts a fresh worker.
- The item is tried once more, elsewhere: its worker may have left with its
  machine (a time limit, a lost node). If that one dies too, the item is to
  blame, and `Died` says so.
- Items are given to workers by name, not left to the scheduler, which would
  queue several on one worker and then suspect all of them.

Where the workers come from is the business of `schedulers.py`. Before a worker
gets its first item it is asked what it has installed and whether it sees the
output folder: equal bytes need equal libraries, and files are the only way
results of any size travel.
"""

import collections
import dataclasses
import hashlib
import importlib.metadata
import pathlib
import platform
import queue
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import distributed
import tqdm

from data_prep import schedulers
from data_prep.files import atomic

# Everything whose version may show in the bytes of a shard, or that has to
# understand the other side's messages.
PACKAGES = (
  *("array_record", "av", "distributed", "imagecodecs", "numpy"),
  *("opencv-python-headless", "openslide-bin", "openslide-python", "pillow"),
  *("protobuf", "pydicom", "scipy", "simplejpeg", "tensorflow-datasets"),
)
ATTEMPTS = 2  # workers that an item may take with it
# As text: a worker that is sent a function of a package that it lacks drops its
# connection instead of saying so.
_HELLO = "__import__('data_prep.cluster').cluster._hello({token!r})"
_LOOK_SECONDS = 0.5  # between two looks at who is there
_LEAVE_SECONDS = 3.0  # in which the scheduler may still list who is gone


@dataclasses.dataclass(frozen=True)
class Started:
  """An item has been given to a worker; again, if the first one left."""

  index: int


@dataclasses.dataclass(frozen=True)
class Done:
  """An item is finished; `value` is what the function returned."""

  index: int
  value: Any


@dataclasses.dataclass(frozen=True)
class Died:
  """Every worker that was given the item is gone.

  Attributes:
    index: the item.
    reason: what happened, to stand in brackets.
  """

  index: int
  reason: str


Event = Started | Done | Died


def run(
  function: Callable[[Any], Any],
  items: Sequence[Any],
  config: Mapping[str, Any],
  shared: str | pathlib.Path,
) -> Iterator[Event]:
  """Calls `function(item)` for each item and reports as things happen.

  Close the iterator (`contextlib.closing`) to stop before the end.

  Args:
    function: importable by its name on the workers; must not raise, except to
      stop everything.
    items: picklable arguments, given out in order.
    config: holds `schedulers.KEYS`; `workers` = 0 calls the function in this
      process, without Dask.
    shared: a folder that all workers must see under this name.

  Yields:
    `Started` and then `Done` or `Died` for every item.

  Raises:
    ValueError: `config.cluster` cannot be used, or a worker does not fit.
    RuntimeError: the function raised; its traceback is in the message.
    OSError: the scheduler is gone.
  """
  if not items:
    return
  if config["workers"] == 0:
    for index, item in enumerate(items):
      yield Started(index)
      yield Done(index, function(item))
    return
  # A file that exists nowhere else: seeing it means sharing the folder. Its
  # name lets a later run clear it away.
  token = pathlib.Path(shared).absolute() / (
    f"cluster{atomic.TEMPORARY}{uuid.uuid4().hex}"
  )
  token.touch()
  try:
    with schedulers.connect(config, len(items)) as client:
      feed = _Feed(client, function, items, config, token)
      try:
        yield from feed.events()
      finally:
        feed.stop()
  finally:
    token.unlink(missing_ok=True)


def environment() -> dict[str, str]:
  """Returns what must be equal here and on the workers, name to version."""
  found = {"python": ".".join(platform.python_version_tuple()[:2])}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "none"
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    digest.update(f"{path.name}\0".encode() + path.read_bytes())
  found["data_prep"] = f"code {digest.hexdigest()[:12]}"
  return found


def _hello(token: str) -> dict[str, Any]:
  """What a worker is asked before it gets its first item."""
  worker = distributed.get_worker()
  # Dask stops giving work to a worker at 80 % of its memory until it shrinks.
  # What the libraries keep never shrinks, and the worker would wait for ever.
  worker.memory_manager.memory_pause_fraction = False
  return {
    "environment": environment(),
    "sees": pathlib.Path(token).exists(),
    "host": socket.gethostname(),
    "threads": worker.state.nthreads,
  }


@dataclasses.dataclass
class _Worker:
  """What is known of a worker: `index` is None until it is ready, and idle."""

  address: str
  future: distributed.Future | None = None
  index: int | None = None
  ready: bool = False


class _Feed:
  """Gives items to workers and hears what becomes of them."""

  def __init__(
    self,
    client: distributed.Client,
    function: Callable[[Any], Any],
    items: Sequence[Any],
    config: Mapping[str, Any],
    token: pathlib.Path,
  ):
    self.client, self.function, self.items = client, function, items
    self.config, self.token = config, token
    self.waiting = collections.deque(range(len(items)))
    self.workers: dict[str, _Worker] = {}
    self.left: dict[str, float] = {}  # address to when it may be used again
    self.losses = collections.Counter()
    self.died_in_hello = 0
    self.here = environment()
    self.notes: set[str] = set()
    # Answers; filled from Dask's threads, emptied here.
    self.news: queue.SimpleQueue = queue.SimpleQueue()

  def events(self) -> Iterator[Event]:
    """Yields what happens until nothing is left to do."""
    look_at = 0.0
    while self.waiting or any(w.index is not None for w in self._all()):
      if time.monotonic() >= look_at:
        yield from self._look()
        look_at = time.monotonic() + _LOOK_SECONDS
      for worker in self._all():
        if worker.ready and worker.index is None and self.waiting:
          worker.index = self.waiting.popleft()
          self._ask(worker, self.function, self.items[worker.index])
          yield Started(worker.index)
      try:
        worker, future = self.news.get(
          timeout=max(0.0, look_at - time.monotonic())
        )
      except queue.Empty:
        continue
      yield from self._answered(worker, future)

  def stop(self) -> None:
    """Takes back what is not finished."""
    if self.client.status != "running":
      return
    self.client.cancel([w.future for w in self._all() if w.future is not None])

  def _all(self) -> list[_Worker]:
    return list(self.workers.values())

  def _ask(
    self, worker: _Worker, function: Callable[[Any], Any], argument: Any
  ) -> None:
    worker.future = self.client.submit(
      function,
      argument,
      key=f"wsiseq-{uuid.uuid4().hex}",
      workers=[worker.address],
      allow_other_workers=False,
    )
    worker.future.add_done_callback(
      lambda future: self.news.put((worker, future))
    )

  def _look(self) -> Iterator[Event]:
    """Finds new workers, and those that went without a word."""
    try:
      threads = self.client.nthreads()
    except (OSError, TimeoutError) as error:
      raise OSError(
        f"the Dask scheduler of config.cluster={self.config['cluster']!r} is "
        f"gone ({error or type(error).__name__}); the same command goes on from"
        " here"
      ) from error
    now = time.monotonic()
    self.left = {a: until for a, until in self.left.items() if until > now}
    for worker in self._all():
      # What is finished has been sent, and comes up next.
      is_answered = worker.future is not None and (
        worker.future.status == "finished"
      )
      if worker.address not in threads and not is_answered:
        yield from self._lose(worker)
    most = self.config["workers"]
    for address in threads:
      if address in self.workers or address in self.left:
        continue
      if most < 0 or len(self.workers) < most:
        self.workers[address] = worker = _Worker(address)
        self._ask(worker, eval, _HELLO.format(token=str(self.token)))
    schedulers.replace_lost(self.client, self.config)
    if not threads:
      self._note(schedulers.waiting_text(self.config))

  def _answered(
    self, worker: _Worker, future: distributed.Future
  ) -> Iterator[Event]:
    """A future is over."""
    if self.workers.get(worker.address) is not worker:
      return  # Taken back when its worker ended.
    if future is not worker.future:
      return
    if future.status == "finished":
      value = future.result()
      worker.future = None
      if worker.ready:
        index, worker.index = worker.index, None
        yield Done(index, value)
      else:
        self._meet(worker, value)
    elif future.status == "error":
      error = future.exception()
      if isinstance(error, distributed.KilledWorker):
        yield from self._lose(worker)
        return
      if not worker.ready:
        raise schedulers.refusal(
          self.config, f"worker {worker.address}", error
        ) from error
      raise RuntimeError(
        f"a worker failed on item {worker.index}:\n"
        + "".join(traceback.format_exception(error))
      ) from error

  def _meet(self, worker: _Worker, answer: Mapping[str, Any]) -> None:
    """Checks what a worker says of itself."""
    who = f"worker {worker.address} on {answer['host']}"
    cluster = f"config.cluster={self.config['cluster']!r}"
    if not answer["sees"]:
      raise ValueError(
        f"{cluster}: {who} does not see {self.token.parent}: config.out must "
        "be on a file system that all workers share, under the same name"
      )
    theirs = answer["environment"]
    for name, version in self.here.items():
      if theirs.get(name) != version:
        raise ValueError(
          f"{cluster}: {who} has {name} {theirs.get(name)}, this process has "
          f"{version}: shards could differ; start the workers from the same "
          "environment and checkout"
        )
    if answer["threads"] > 1:
      self._note(
        f"{who} has {answer['threads']} threads, one is used: a crash must "
        "cost one slide only. `dask worker --nthreads 1 --nworkers "
        f"{answer['threads']}` uses all cores."
      )
    worker.ready = True
    self.died_in_hello = 0

  def _lose(self, worker: _Worker) -> Iterator[Event]:
    """A worker is gone: its item is tried once more, or given up."""
    self._forget(worker)
    if not worker.ready:
      self.died_in_hello += 1
      if self.died_in_hello > 2 * ATTEMPTS:
        raise ValueError(
          f"config.cluster={self.config['cluster']!r}: {self.died_in_hello} "
          "workers in a row were gone before their first item"
        )
    index = worker.index
    if index is None:
      return
    self.losses[index] += 1
    if self.losses[index] < ATTEMPTS:
      self.waiting.appendleft(index)
    else:
      yield Died(
        index,
        f"{ATTEMPTS} workers were lost over it, the last one "
        f"{worker.address}; a worker may take {self.config['memory_gb']:g} GB",
      )

  def _forget(self, worker: _Worker) -> None:
    del self.workers[worker.address]
    # The scheduler may list it a moment longer.
    self.left[worker.address] = time.monotonic() + _LEAVE_SECONDS
    if worker.future is not None:
      worker.future.cancel()

  def _note(self, text: str) -> None:
    """Tells the user something once."""
    if text and text not in self.notes:
      self.notes.add(text)
      tqdm.tqdm.write(text, file=sys.stderr)
