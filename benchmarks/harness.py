"""What benchmarks share: processes, the machine they ran on, result files.

Benchmarks are scripts, called as `python benchmarks/NAME.py`. Importing this
module puts the checkout on the path, so that they need no installation. Beyond
the standard library it imports NumPy alone: parts of some benchmarks run in
interpreters that have no JAX.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

# Exit codes of commands that may refuse single slides.
SOME_REFUSED = (0, 3)
# Marks the line in which a variant's process says its result.
_MARK = "RESULT "


def call(
  *arguments: str,
  log: pathlib.Path | None = None,
  good: Sequence[int] = (0,),
) -> None:
  """Runs a command of the README, `python ARGUMENTS`, in the checkout.

  Args:
    *arguments: what follows `python`.
    log: file that gets what it prints, at its end; the terminal without it.
    good: exit codes that are no failure.

  Raises:
    SystemExit: the command failed.
  """
  command = [sys.executable, *arguments]
  environ = {**os.environ, "PYTHONPATH": str(ROOT)}
  if log is None:
    done = subprocess.run(command, cwd=ROOT, env=environ, check=False)
  else:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
      done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ,
        stdout=file,
        stderr=subprocess.STDOUT,
        check=False,
      )
  if done.returncode not in good:
    where = "" if log is None else f", see {log}"
    raise SystemExit(f"{' '.join(arguments)} failed ({done.returncode}){where}")


def prepare_slides(
  work: pathlib.Path, slides: str, table: str, *options: str
) -> None:
  """Cuts sequences of demo size out of slides, into the folder `work/prep`.

  Args:
    work: also gets the log.
    slides: a folder of slides.
    table: the CSV that describes them.
    *options: more settings, `--config...`.
  """
  call(
    "-m", "data_prep",
    "--config=configs/prep_wsi.py:demo",
    f"--config.slides={pathlib.Path(slides).resolve()}",
    f"--config.table={pathlib.Path(table).resolve()}",
    f"--config.out={work / 'prep'}",
    *options,
    log=work / "log.txt", good=SOME_REFUSED,
  )  # fmt: skip


def run_variant(
  script: str, python: str, options: dict[str, Any], **environ: str
) -> dict[str, Any]:
  """Runs one variant of a benchmark in a process of its own.

  Args:
    script: the benchmark, its `__file__`; gets `--worker=JSON` and answers by
      `say_result`.
    python: the interpreter.
    options: what the variant shall do, JSON-able.
    **environ: more environment variables.

  Returns:
    What it said, or its last words as `failed`.
  """
  command = [python, script, f"--worker={json.dumps(options)}"]
  # Threads that wait by spinning slow down whatever else runs.
  environ = {**os.environ, "OMP_WAIT_POLICY": "passive", **environ}
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=ROOT, env=environ
  )
  lines = [s for s in done.stdout.splitlines() if s.startswith(_MARK)]
  if done.returncode or not lines:
    words = (done.stderr.strip() or "no result").splitlines()
    return {"failed": words[-1][:300]}
  return json.loads(lines[-1][len(_MARK) :])


def say_result(result: dict[str, Any]) -> None:
  """Tells `run_variant` the result, from within the variant's process."""
  print(_MARK + json.dumps(result))


def real_slide() -> pathlib.Path:
  """The slide that numbers of the README are measured on, at 40x.

  In the folder that `WSISEQ_DATA` names, `../shared/data` without it.
  """
  data = pathlib.Path(
    os.environ.get("WSISEQ_DATA", ROOT.parent / "shared" / "data")
  )
  return data / "slides" / "bs9_duodenum_giardiasis_he2_40x.tiff"


def system() -> str:
  """Operating system and architecture, e.g. 'Linux x86_64'."""
  return f"{platform.system()} {platform.machine()}"


def machine() -> dict[str, Any]:
  """Cores, system and Python, for the file of results."""
  return {
    "cpu_count": os.cpu_count(),
    "platform": system(),
    "python": platform.python_version(),
  }


def cpu_name() -> str:
  """The processor's name where the system tells it."""
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    for line in info.read_text().splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  return platform.processor()


def load_average() -> list[float]:
  """How busy the machine is: processes over 1, 5 and 15 minutes."""
  return [round(value, 2) for value in os.getloadavg()]


def mean_std(
  values: Sequence[float], digits: int | None = None
) -> dict[str, float | None]:
  """Mean and standard deviation (n - 1) over seeds.

  Args:
    values: a number a seed.
    digits: decimals to keep; all without it.

  Returns:
    `mean` and `std`; the deviation of one value is None.
  """

  def short(value: float) -> float:
    return value if digits is None else round(value, digits)

  return {
    "mean": short(float(np.mean(values))),
    "std": short(float(np.std(values, ddof=1))) if len(values) > 1 else None,
  }


def show(score: Mapping[str, float | None]) -> str:
  """Text of what `mean_std` found, e.g. '0.985 ± 0.011'."""
  std = score.get("std")
  return f"{score['mean']:.3f}" + ("" if std is None else f" ± {std:.3f}")


def write_result(path: str | os.PathLike, result: Any) -> str:
  """Writes results as JSON and returns the text.

  Args:
    path: the file; folders above it are made.
    result: anything JSON can hold.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(result, indent=1) + "\n"
  path.write_text(text)
  return text
