"""Shared test set-up: eight CPU devices, strict JAX, parsed flags, real data.

Everything here runs before a JAX device is touched, because the number of CPU
devices is fixed by the first use.

Most of a test's time is compilation of a tiny network. So it is compiled
plainly, which takes a third of the time (fusions by the old emitter, one
module, no optimisation by LLVM), and once for all workers of a test run and for
the programs they start: they share a cache that begins empty and goes with the
run. Workers inherit the environment that is set here.
"""

import atexit
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The workers of a test run fill the cores: a second thread of theirs would wait
# in a loop for the first, which doubled the time of small solvers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Programs that tests start import our files a hundred times.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A mistake of ours while reading a file is raised, not put into errors.csv.
os.environ.setdefault("WSISEQ_STRICT", "1")
if "XLA_FLAGS" not in os.environ:
  _PLAINLY = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
  if jaxlib.version.__version_info__ < (0, 11):  # later: one emitter only
    _PLAINLY.append("--xla_cpu_use_fusion_emitters=false")
  os.environ["XLA_FLAGS"] = " ".join(_PLAINLY)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix="wsiseq_tests_compiled_")
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Files with the longest tests first: no worker then waits at the end.

  A file stays together: what its tests share is made once. That of the README
  has the longest test of all.
  """
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(
    key=lambda item: (item.path.name != "test_readme.py", item.path not in slow)
  )


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
  """The root of the checkout."""
  return ROOT


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
  """Starts our programs like `python`, without their imports: `warm.py`."""
  folder = tmp_path_factory.mktemp("warm")
  warm, address = ROOT / "tests" / "warm.py", folder / "socket"
  program = folder / "python"
  program.write_text(
    f"""#!/bin/sh
case "$1" in
  *main.py | -m) exec {sys.executable} -S -E {warm} {address} "$@" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
  )
  program.chmod(0o755)
  with subprocess.Popen(
    [sys.executable, warm, "serve", address],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdin=subprocess.PIPE,  # its end is that of the server
  ) as server:
    while not address.exists():
      assert server.poll() is None
      time.sleep(0.05)
    yield str(program)
    server.stdin.close()


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
  """The folder of real slides; the test is skipped where there is none.

  `WSISEQ_DATA` names it; without that it is `../shared/data`.
  """
  folder = pathlib.Path(
    os.environ.get("WSISEQ_DATA", ROOT.parent / "shared" / "data")
  )
  if not (folder / "slides.csv").is_file():
    pytest.skip(f"no real slides in {folder} (set WSISEQ_DATA)")
  return folder
