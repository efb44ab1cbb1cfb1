"""main.py, with a record of what the loader reads, and trouble on demand.

Environment: `RECORD` names the file that gets one line `split index` for each
record read. `TROUBLE` is `fail:n` or `sigterm:n`: what happens to this process
when it reads its n-th record of the split `train`. `READ_SECONDS` slows each
record down, so that steps take long enough for trouble to come in the middle.
SIGUSR1 makes it say what each of its threads does.
"""

import collections
import faulthandler
import os
import pathlib
import runpy
import signal
import sys
import time

from wsiseq_jax.data import loader


def record_reads() -> None:
  """Puts all of that in the place of `loader.load`."""
  read, numbers = loader.load, collections.Counter()
  kind, _, when = os.environ.get("TROUBLE", "").partition(":")

  def recorded(source, index, *args):
    time.sleep(float(os.environ["READ_SECONDS"]))
    with open(os.environ["RECORD"], "a") as file:
      file.write(f"{source.split} {index}\n")
    numbers[source.split] += 1
    if source.split == "train" and when == str(numbers["train"]):
      if kind == "fail":
        raise RuntimeError("trouble on demand")
      os.kill(os.getpid(), signal.SIGTERM)
    return read(source, index, *args)

  loader.load = recorded


if __name__ == "__main__":
  faulthandler.register(signal.SIGUSR1)
  record_reads()
  root = pathlib.Path(__file__).resolve().parents[2]
  sys.argv[0] = str(root / "main.py")
  runpy.run_path(sys.argv[0], run_name="__main__")
