"""One job in several processes of this machine."""

import contextlib
import os
import pathlib
import socket
import subprocess
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(
  python: str,
  logs: pathlib.Path,
  count: int,
  *flags: str,
  program: pathlib.Path = ROOT / "main.py",
  environ: Mapping[str, str] | None = None,
  last: Mapping[str, str] | None = None,
) -> tuple[list[int], str]:
  """Starts a program in processes of one CPU device each, and waits.

  Args:
    python: the program to start it with, a fixture.
    logs: folder for what they say.
    count: of processes.
    flags: of the program.
    program: what to start.
    environ: variables of all processes besides those of this one.
    last: more of the last process.

  Returns:
    Exit codes, and all that was said.
  """
  logs.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    # Held, so that no other program is given it before JAX's server binds it.
    held = stack.enter_context(socket.socket())
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("localhost", 0))
    running = []
    for number in range(count):
      log = stack.enter_context((logs / f"{number}.log").open("w"))
      process = subprocess.Popen(
        [python, str(program), *flags],
        cwd=ROOT,
        env={
          **os.environ,
          "JAX_PLATFORMS": "cpu",
          "JAX_NUM_CPU_DEVICES": "1",
          "PYTHONPATH": str(ROOT),
          "JAX_COORDINATOR_ADDRESS": f"localhost:{held.getsockname()[1]}",
          "JAX_NUM_PROCESSES": str(count),
          "JAX_PROCESS_ID": str(number),
          **(environ or {}),
          **((last or {}) if number == count - 1 else {}),
        },
        stdout=log,
        stderr=subprocess.STDOUT,
      )
      stack.callback(process.kill)
      running.append(process)
    codes = [process.wait(240) for process in running]
  text = "\n".join((logs / f"{i}.log").read_text() for i in range(count))
  return codes, text
