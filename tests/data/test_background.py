"""An iterator that runs ahead in a thread of its own."""

import threading
import time

import pytest

from wsiseq_jax.data.background import Background


def test_errors_are_passed_on_and_the_thread_ends():
  closed, before = [], set(threading.enumerate())

  def items(count):
    try:
      yield from range(count)
      raise OSError("disk")
    finally:
      closed.append(count)

  runner = Background(items(2), ahead=1)
  assert [runner.get(), runner.get()] == [0, 1]
  with pytest.raises(OSError, match="disk"):
    runner.get()
  runner.close()
  # Left in the middle, with all that may be held.
  runner = Background(items(99), ahead=1)
  assert runner.get() == 0
  runner.close()
  assert closed == [2, 99] and set(threading.enumerate()) <= before


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_is_held_than_asked_for(ahead):
  begun = []

  def items():
    for number in range(9):
      begun.append(number)
      yield number

  runner = Background(items(), ahead)
  for taken in range(3):
    deadline = time.monotonic() + 5
    while len(begun) < taken + ahead and time.monotonic() < deadline:
      time.sleep(0.001)
    time.sleep(0.02)
    assert begun == list(range(taken + ahead))
    assert runner.get() == taken
  assert list(runner) == [3, 4, 5, 6, 7, 8]
  runner.close()
