"""An iterator that runs ahead in a thread of its own."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any


class Background:
  """Takes items out of a generator in a thread, a few ahead.

  Args:
    items: the generator; it runs in the thread, its end included.
    ahead: items to hold at most.
  """

  def __init__(self, items: Iterator, ahead: int):
    self._queue: queue.Queue = queue.Queue(ahead)
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._fill, args=(items,))
    self._thread.start()

  def _fill(self, items) -> None:
    end = None
    try:
      with contextlib.closing(items):
        for item in items:
          if not self._put((item, None)):
            return
    except BaseException as error:  # to be raised where the items are used
      end = error
    self._put((None, end))

  def _put(self, item: tuple) -> bool:
    while not self._stopped.is_set():
      with contextlib.suppress(queue.Full):
        self._queue.put(item, timeout=0.1)
        return True
    return False

  def is_behind(self) -> bool:
    """Whether one would have to wait for the next item."""
    return self._queue.empty()

  def get(self) -> Any:
    """Returns the next item; None at the end.

    Raises:
      BaseException: whatever the iterator raised.
    """
    item, error = self._queue.get()
    if error is not None:
      raise error
    return item

  def close(self) -> None:
    """Ends the thread."""
    self._stopped.set()
    self._thread.join()
