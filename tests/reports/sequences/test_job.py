"""When the report of sequences is written, and by whom."""

import json
import pathlib
import shutil

import pytest

from configs import videomae
from data_prep.synthetic import smoke
from wsiseq_jax import embed, evaluate, launch
from wsiseq_jax.reports import page
from wsiseq_jax.reports.sequences import job

OLD = pathlib.Path(__file__).parents[2] / "golden" / "old_runs"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
  """A trained run that was embedded."""
  folder = tmp_path_factory.mktemp("embedded")
  shutil.copytree(OLD / "videomae", folder / "run")
  config = videomae.get_config("smoke").unlock()
  for prefix in ("", "decoder_"):
    for key, value in (("width", 16), ("depth", 1), ("heads", 2)):
      config.model[prefix + key] = value
  config.report.mask_ratios = (0.5,)
  config.workdir = str(folder / "run")
  config.data.path = str(smoke.make_shards(folder / "data"))
  embed.run(config)
  return config


@pytest.fixture
def config(embedded, tmp_path):
  """Its config, in a copy."""
  shutil.copytree(embedded.workdir, tmp_path / "run")
  config = embedded.copy_and_resolve_references()
  config.workdir = str(tmp_path / "run")
  return config


@pytest.fixture
def written(monkeypatch):
  """The measures of each page that is written."""
  pages = []

  def write_page(prep, workdir, out, *more, measures, **named):
    pages.append(measures)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text("page")

  monkeypatch.setattr(job.sections, "write_page", write_page)
  return pages


def test_new_measures_are_a_new_page(config, written):
  job.run(config)
  job.run(config)
  assert written == [[]]
  evaluate.run(config)
  job.run(config)
  job.run(config)
  assert len(written) == 2 and written[1]


def test_only_the_main_process_writes(config, written, monkeypatch):
  monkeypatch.setattr(launch, "is_main", lambda: False)
  page = job.run(config)
  assert not written and not page.parent.exists()


def test_a_half_stamp_is_no_stamp(config, written):
  page = job.run(config)
  stamp = page.with_name("report.json")
  stamp.write_text(stamp.read_text()[:20])
  job.run(config)
  assert len(written) == 2 and json.loads(stamp.read_text())


def test_another_design_is_a_new_page(config, written, monkeypatch):
  job.run(config)
  monkeypatch.setattr(page, "design", lambda: "of tomorrow")
  job.run(config)
  assert len(written) == 2
