"""A small cohort, and a run over it that nothing disturbed."""

import pytest

from data_prep.sequences import prepare
from data_prep.synthetic import slides as synthetic
from tests.data_prep.sequences.small_cohort import config_of


@pytest.fixture(scope="package")
def cohort(tmp_path_factory):
  """Four slides of three patients, two of them of one."""
  folder = tmp_path_factory.mktemp("cohort")
  synthetic.make_cohort(folder, slides=4, patients=3, size_px=(768, 640))
  return folder


@pytest.fixture(scope="package")
def whole(cohort, tmp_path_factory):
  """An undisturbed run."""
  out = tmp_path_factory.mktemp("whole")
  summary = prepare.prepare(config_of(cohort, out))
  return out, summary
