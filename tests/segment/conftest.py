"""Methods at smoke size, each run once for all tests that look at it."""

import functools

import pytest

from tests.segment import small_job


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
  """Method → the folder of its finished run, not to be changed."""

  @functools.cache
  def folder(method):
    workdir = tmp_path_factory.mktemp("segment") / method
    small_job.call(workdir, f"{method},smoke")
    return workdir

  return folder
