"""Runs one function over many items in processes that may die.

`concurrent.futures` gives up on everything when one worker is killed, and
cannot say which item killed it. Native image libraries do crash on damaged
files, so here a worker has one item at a time, its death costs that item alone,
and a fresh worker takes its place. Processes are spawned, never forked: slide
libraries keep threads and file handles that do not survive a fork.
"""

import collections
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Started:
  """An item has been given to a worker."""

  index: int


@dataclasses.dataclass(frozen=True)
class Done:
  """An item is finished; `value` is what the function returned."""

  index: int
  value: Any


@dataclasses.dataclass(frozen=True)
class Died:
  """The worker that had the item is gone; `reason` says how it ended."""

  index: int
  reason: str


def run(
  function: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> Iterator[Started | Done | Died]:
  """Calls `function(item)` for each item and reports as things happen.

  Args:
    function: picklable; must not raise, except to stop everything.
    items: picklable arguments, given out in order.
    workers: processes; 0 = call the function in this process.

  Yields:
    `Started` and then `Done` or `Died` for every item.

  Raises:
    RuntimeError: the function raised; its traceback is in the message.
  """
  if workers == 0:
    for index, item in enumerate(items):
      yield Started(index)
      yield Done(index, function(item))
    return
  context = multiprocessing.get_context("spawn")
  waiting = collections.deque(enumerate(items))
  alive: list[_Worker] = []
  try:
    while waiting or any(worker.index is not None for worker in alive):
      idle = [worker for worker in alive if worker.index is None]
      while waiting and (idle or len(alive) < workers):
        if idle:
          worker = idle.pop()
        else:
          worker = _Worker(context, function)
          alive.append(worker)
        index, item = waiting.popleft()
        worker.give(index, item)
        yield Started(index)
      busy = [worker for worker in alive if worker.index is not None]
      multiprocessing.connection.wait([worker.pipe for worker in busy])
      for worker in busy:
        # A dead worker's pipe is readable too: it reads as its end.
        if worker.pipe.poll():
          event = worker.take()
          if isinstance(event, Died):
            alive.remove(worker)
          yield event
  finally:
    for worker in alive:
      worker.stop()


class _Worker:
  """One process and the item it has."""

  def __init__(self, context: Any, function: Callable[[Any], Any]):
    self.pipe, theirs = context.Pipe()
    self.index: int | None = None
    self._process = context.Process(
      target=_serve, args=(theirs, function), daemon=True
    )
    self._process.start()
    theirs.close()

  def give(self, index: int, item: Any) -> None:
    self.index = index
    try:
      self.pipe.send(item)
    except BrokenPipeError:
      pass  # It died while idle; `take` will find the pipe at its end.

  def take(self) -> Done | Died:
    index, self.index = self.index, None
    try:
      ok, value = self.pipe.recv()
    except (EOFError, ConnectionError):
      self._process.join()
      return Died(index, exit_reason(self._process.exitcode))
    if not ok:
      raise RuntimeError(f"a worker failed on item {index}:\n{value}")
    return Done(index, value)

  def stop(self) -> None:
    # Terminated, not asked: it may be in the middle of a long slide, and
    # nothing it is writing counts before its rename.
    self._process.terminate()
    self._process.join()
    self.pipe.close()


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


def _serve(pipe: Any, function: Callable[[Any], Any]) -> None:
  """The life of a worker process: take an item, return a result."""
  # Ctrl-C reaches the whole group; the parent decides what to do about it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_follow_parent, daemon=True).start()
  while True:
    try:
      item = pipe.recv()
    except (EOFError, ConnectionError):
      return
    try:
      result = (True, function(item))
    except Exception:
      # Reported, not swallowed: the parent raises it with this traceback.
      result = (False, traceback.format_exc())
    pipe.send(result)


def _follow_parent() -> None:
  """Ends this process with its parent, even if that was killed outright."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
  os._exit(1)
