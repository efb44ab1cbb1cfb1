"""Methods at smoke size, each run once for all tests that look at it."""

import fcntl
import functools
import os

import pytest

from tests.segment import small_job


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
  """Method → the folder of its finished run, not to be changed."""
  shared = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    shared = shared.parent  # of all workers

  @functools.cache
  def folder(method):
    workdir = shared / f"segment_{method}"
    with (shared / f"segment_{method}.lock").open("w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not (workdir / "index.html").exists():  # written last
        small_job.call(workdir, f"{method},smoke")
    return workdir

  return folder
