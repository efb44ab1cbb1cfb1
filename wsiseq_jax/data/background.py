"""An iterator that runs ahead in a thread of its own."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any


class Background:
  """Takes items out of a generator in a thread, a few ahead.

  Close it, also where an error ends the work: `contextlib.closing`.

  Args:
    items: the generator; it runs in the thread, its end included.
    ahead: items to hold at most, the one that is being made included.

  Example:
    >>> squares = Background((i**2 for i in range(3)), ahead=1)
    >>> with contextlib.closing(squares):
    ...   list(squares)
    [0, 1, 4]
  """

  def __init__(self, items: Iterator, ahead: int):
    self._queue: queue.Queue = queue.Queue()
    self._room = threading.Semaphore(ahead)
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._fill, args=(items,))
    self._thread.start()

  def _fill(self, items) -> None:
    end = None
    try:
      with contextlib.closing(items):
        while self._may_go_on():
          item = next(items, None)
          if item is None:
            break
          self._queue.put((item, None))
    except BaseException as error:  # to be raised where the items are used
      end = error
    self._queue.put((None, end))

  def _may_go_on(self) -> bool:
    """Waits for room; False if nobody wants more."""
    self._room.acquire()
    return not self._stopped.is_set()

  def is_behind(self) -> bool:
    """Whether one would have to wait for the next item."""
    return self._queue.empty()

  def get(self) -> Any:
    """Returns the next item; None at the end.

    Raises:
      BaseException: whatever the iterator raised.
    """
    item, error = self._queue.get()
    self._room.release()
    if error is not None:
      raise error
    return item

  def __iter__(self) -> Iterator[Any]:
    """The items that are left."""
    while (item := self.get()) is not None:
      yield item

  def close(self) -> None:
    """Ends the thread."""
    self._stopped.set()
    self._room.release()
    self._thread.join()
