"""Shared test set-up: eight CPU devices, strict JAX, parsed flags, real data.

Everything here runs before a JAX device is touched, because the number of CPU
devices is fixed by the first use.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

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


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
  """The root of the checkout."""
  return ROOT


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
