"""Runs one function over many items on a Dask cluster whose workers may die.

  for event in cluster.run(function, items, config, shared=out): ...

Native image libraries do crash on damaged files, so what matters here is who
pays for it:

- A worker process has one item at a time. Its death costs that item alone, the
  event says how it ended, and Dask's nanny starts a fresh worker.
- An item whose process died is not tried again in this run. One whose worker
  left with its whole machine (a time limit, a lost node) is, twice.
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
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import distributed
import tqdm
from distributed.diagnostics.plugin import NannyPlugin

from data_prep import schedulers, shards

# Everything whose version may show in the bytes of a shard, or that has to
# understand the other side's messages.
PACKAGES = (
  *("array_record", "av", "distributed", "imagecodecs", "numpy"),
  *("opencv-python-headless", "openslide-bin", "openslide-python", "pillow"),
  *("protobuf", "pydicom", "scipy", "simplejpeg", "tensorflow-datasets"),
)
ATTEMPTS = 3  # workers an item may lose to nobody's fault
_LOOK_SECONDS = 1.0  # between two looks at who is there
_GRACE_SECONDS = 3.0  # for the reason to arrive after a worker is gone


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
  """The worker that had the item is gone, and the item with it.

  Attributes:
    index: the item.
    reason: how the worker ended, to stand in brackets.
    code: 'worker_died', 'out_of_memory' or 'worker_lost'.
  """

  index: int
  reason: str
  code: str = "worker_died"


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
    f"cluster{shards.TEMPORARY}{uuid.uuid4().hex}"
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


def exit_reason(code: int | None) -> str:
  """Says in words how a process ended.

  Args:
    code: exit code of `multiprocessing.Process`, negative for a signal.

  Returns:
    The name of the signal, or the code.

  Example:
    >>> exit_reason(-11), exit_reason(3)
    ('killed by SIGSEGV', 'exit code 3')
  """
  if code is not None and code < 0:
    return f"killed by {signal.Signals(-code).name}"
  return f"exit code {code}"


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


class _TellEnds(NannyPlugin):
  """Makes every nanny publish how its worker process ended."""

  def __init__(self, topic: str):
    self.name, self._topic, self._on = topic, topic, True

  def setup(self, nanny: distributed.Nanny) -> None:
    """Called by Dask where a nanny starts, or already runs."""
    pass_on = nanny._on_worker_exit_sync

    def tell(code: int) -> None:
      leaving = nanny.status != distributed.Status.running
      event = {"worker": nanny.worker_address, "code": code, "leaving": leaving}
      memory = nanny.memory_manager
      if memory._last_terminated_pid == nanny.process.process.pid:
        event["limit"] = memory.memory_limit
      if self._on:
        nanny.log_event(self._topic, event)
      pass_on(code)

    # Dask has no public hook for this. The second line reaches a process that
    # runs already, the first those that follow.
    nanny._on_worker_exit_sync = tell
    if nanny.process is not None:
      nanny.process.on_exit = tell

  def teardown(self, nanny: distributed.Nanny) -> None:
    """Called by Dask when the run is over; the scheduler may go on."""
    self._on = False


@dataclasses.dataclass
class _Worker:
  """What is known of a worker: `index` is None until it is ready, and idle."""

  address: str
  future: distributed.Future | None = None
  index: int | None = None
  ready: bool = False
  missing_since: float | None = None


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
    # Filled from Dask's threads, emptied here.
    self.news: queue.SimpleQueue = queue.SimpleQueue()
    self.topic = f"wsiseq-ends-{uuid.uuid4().hex}"
    client.subscribe_topic(
      self.topic, lambda event: self.news.put((self._ended, event[1]))
    )
    for address, answer in client.register_plugin(
      _TellEnds(self.topic)
    ).items():
      if answer["status"] != "OK":
        self._refuse(address, answer["exception"])

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
        handle, item = self.news.get(
          timeout=max(0.0, look_at - time.monotonic())
        )
      except queue.Empty:
        continue
      yield from handle(item)

  def stop(self) -> None:
    """Takes back what is not finished."""
    if self.client.status != "running":
      return
    self.client.cancel([w.future for w in self._all() if w.future is not None])
    self.client.unsubscribe_topic(self.topic)
    self.client.unregister_worker_plugin(self.topic, nanny=True)

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
      lambda future: self.news.put((self._answered, (worker, future)))
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
      if worker.address in threads:
        continue
      worker.missing_since = worker.missing_since or now
      if now - worker.missing_since > _GRACE_SECONDS:
        yield from self._lose(worker)
    most = self.config["workers"]
    for address in threads:
      if address in self.workers or address in self.left:
        continue
      if most < 0 or len(self.workers) < most:
        self.workers[address] = worker = _Worker(address)
        self._ask(worker, _hello, str(self.token))
    if not threads:
      self._note(schedulers.waiting_text(self.config))

  def _answered(
    self, item: tuple[_Worker, distributed.Future]
  ) -> Iterator[Event]:
    """A future is over."""
    worker, future = item
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
        return  # How it ended is on its way.
      if not worker.ready:
        self._refuse(worker.address, error)
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

  def _refuse(self, address: str, error: BaseException) -> None:
    """Stops everything: a worker cannot even run our code."""
    remedy = ""
    if isinstance(error, ImportError):
      root = pathlib.Path(__file__).resolve().parents[1]
      remedy = (
        f": start the workers from an environment that has this package, or "
        f"with PYTHONPATH={root}"
      )
    raise ValueError(
      f"config.cluster={self.config['cluster']!r}: worker {address} cannot run "
      f"data_prep ({type(error).__name__}: {error}){remedy}"
    ) from error

  def _ended(self, event: Mapping[str, Any]) -> Iterator[Event]:
    """A nanny says how its worker process ended."""
    worker = self.workers.get(event["worker"])
    if worker is None:
      return
    if event["leaving"]:
      yield from self._lose(worker)
      return
    died = Died(worker.index, exit_reason(event["code"]))
    if "limit" in event:
      died = Died(
        worker.index,
        f"it took more than the {event['limit'] / 1e9:g} GB of memory that a "
        "worker may",
        "out_of_memory",
      )
    if not worker.ready:
      self.died_in_hello += 1
      if self.died_in_hello == ATTEMPTS:
        raise ValueError(
          f"config.cluster={self.config['cluster']!r}: {ATTEMPTS} workers in a "
          f"row died before their first item ({died.reason})"
        )
    self._forget(worker)
    if worker.index is not None:
      yield died

  def _lose(self, worker: _Worker) -> Iterator[Event]:
    """A worker is gone without a crash of its own."""
    self._forget(worker)
    index = worker.index
    if index is None:
      return
    self.losses[index] += 1
    if self.losses[index] < ATTEMPTS:
      self.waiting.appendleft(index)
    else:
      yield Died(
        index,
        f"its worker left the cluster {ATTEMPTS} times, last {worker.address}",
        "worker_lost",
      )

  def _forget(self, worker: _Worker) -> None:
    del self.workers[worker.address]
    # The scheduler may list it a moment longer.
    self.left[worker.address] = time.monotonic() + _GRACE_SECONDS
    if worker.future is not None:
      worker.future.cancel()

  def _note(self, text: str) -> None:
    """Tells the user something once."""
    if text and text not in self.notes:
      self.notes.add(text)
      tqdm.tqdm.write(text, file=sys.stderr)
