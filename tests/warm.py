"""Programs of ours, forked from a process that has imported them.

A start imports for two to five seconds of CPU, and tests start some seventy
programs. This imports once and forks, which takes a thirtieth of a second:

    python tests/warm.py serve SOCKET           until its input ends
    python tests/warm.py SOCKET main.py --help  like `python main.py --help`

The second line is a process like the program: it has its exit code, passes
signals on, and what kills it kills the program. `tests/test_main.py` and the
tests of SIGKILL start real programs. Linux only.
"""

import json
import os
import select
import signal
import socket
import sys

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def start(address: str, words: list[str]) -> int:
  """Runs a program; returns its exit code.

  Only the standard library's quickest modules are loaded here.
  """
  with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(address)
    request = {"words": words, "cwd": os.getcwd(), "environ": {**os.environ}}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    pid = int(server.recv(20))
    for number in _PASSED_ON:
      signal.signal(number, lambda number, _: os.kill(pid, number))
    code = int(server.recv(20))
  if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
  return code


def serve(address: str) -> None:
  """Forks programs; returns at the end, and in each program at its end."""
  import gc
  import importlib
  import pathlib

  from wsiseq_jax import jobs

  for entry in jobs.JOBS.values():
    importlib.import_module(entry.module)
  for source in ("sequences", "series", "pictures"):
    importlib.import_module(f"data_prep.{source}.prepare")
  gc.collect()
  gc.freeze()  # pages stay shared
  # A fork has one thread: others would be missing, with the locks they held.
  # That of pyarrow's allocator starts anew by itself.
  threads = [
    p.read_text() for p in pathlib.Path("/proc/self/task").glob("*/comm")
  ]
  assert len([name for name in threads if "jemalloc" not in name]) == 1, threads
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)
  server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  server.bind(f"{address}.new")
  server.listen()
  os.rename(f"{address}.new", address)  # there when it listens
  while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
    client, _ = server.accept()
    if os.fork() == 0:
      server.close()
      signal.signal(signal.SIGCHLD, signal.SIG_DFL)
      _attend(client)
      return
    client.close()


def _attend(client: socket.socket) -> None:
  """Forks once more; waits for the program, or is it."""
  text, files, _, _ = socket.recv_fds(client, 2**20, 3)
  pid = os.fork()
  if pid == 0:
    client.close()
    _run(files, **json.loads(text))
    return
  client.send(str(pid).encode())
  ended = os.pidfd_open(pid)
  if ended not in select.select([client, ended], [], [])[0]:
    os.kill(pid, signal.SIGKILL)  # the one who asked was killed
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  client.send(str(code).encode(), socket.MSG_NOSIGNAL)
  os._exit(0)


def _run(files: list[int], words: list[str], cwd: str, environ: dict) -> None:
  import runpy

  import jax

  for number, file in enumerate(files):
    os.dup2(file, number)
    os.close(file)
  # Python looked at the old ones, which could perhaps seek.
  sys.stdout = open(1, "w", closefd=False)
  sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(environ)
  # The one variable that tests vary and JAX reads when it is imported.
  count = environ.get("JAX_NUM_CPU_DEVICES", "-1")
  jax.config.update("jax_num_cpu_devices", int(count))
  if words[0] == "-m":
    sys.argv = words[1:]
    sys.path[0] = cwd
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
  else:
    sys.argv = words
    sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
  if sys.argv[1] == "serve":
    serve(sys.argv[2])
  else:
    sys.exit(start(sys.argv[1], sys.argv[2:]))
