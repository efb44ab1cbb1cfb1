"""A finished job, made once for all tests."""

import pytest

from tests.mil.small_job import make
from wsiseq_jax.mil import job, synthetic


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  """Small bags: their folder, and their table."""
  return synthetic.write(tmp_path_factory.mktemp("bags"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data):
  """A finished job, and the summary it returned."""
  config = make(tmp_path_factory.mktemp("run"), data=data)
  return config, job.run(config)
