"""A written report, made once for all tests that look at it."""

import pytest

from data_prep.synthetic import slides as synthetic_slides
from tests.reports.slides.report_pages import (
  FAILED,
  MISSING,
  SIZE,
  configured,
  write_report,
)
from wsiseq_jax.reports.slides import synthetic as synthetic_report


@pytest.fixture(scope="session")
def made(tmp_path_factory):
  """A workdir of four slides; one has no tissue, the file of one is gone."""
  workdir = tmp_path_factory.mktemp("mil")
  table = synthetic_slides.make_cohort(
    workdir / "slides", slides=4, size_px=SIZE, region_um=160.0
  )
  synthetic_report.predict(workdir, table, 32.0, failures=(FAILED,), seeds=2)
  (workdir / "slides" / f"{MISSING}.tiff").unlink()
  return workdir


@pytest.fixture(scope="session")
def written(made):
  """The report on it: page, counts and problems."""
  return write_report(configured(made, made / "slides"))
