"""The job `mil_report`: what it draws again, and what it refuses."""

import dataclasses
import os
import pathlib
import shutil

import pytest

from configs import mil_report
from tests.reports.slides.report_pages import (
  SIZE,
  Page,
  configured,
  write_report,
)
from wsiseq_jax import launch
from wsiseq_jax.maps.tile_map import TileMap
from wsiseq_jax.reports.slides import job


def test_a_second_call_changes_nothing(made, written, capsys):
  config = configured(made, made / "slides")
  before = {
    path: path.stat().st_mtime_ns
    for path in written.page.parent.rglob("*")
    if path.is_file()
  }
  with pytest.raises(SystemExit) as stopped:
    job.run(config)
  assert stopped.value.code == 3  # one slide is missing, still
  assert "is up to date, nothing to do" in capsys.readouterr().err
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_only_what_changed_is_drawn(made, tmp_path):
  workdir = tmp_path / "mil"
  shutil.copytree(made, workdir)
  config = configured(workdir, workdir / "slides")
  write_report(config)
  own = workdir / "report" / "slides" / "syn_00" / "my notes.txt"
  own.write_text("mine")
  path = workdir / "slides" / "syn_00.tiff"
  os.utime(path, ns=(0, 0))
  assert write_report(config).drawn == 1
  assert own.read_text() == "mine"
  # Another threshold is another page for all; more resamples for the cohort.
  config.report.update({"threshold_from": "given", "threshold": 0.9})
  assert write_report(config).drawn == 4
  page = Page(workdir / "report" / "index.html")
  assert "0.9 was given for this report" in page.text
  config.report.resamples = 30
  assert write_report(config).drawn == 0
  # Another picture under the slide's name is not taken for it.
  shutil.copy(workdir / "slides" / "syn_02.tiff", tmp_path / "other.tiff")
  other = TileMap.load(workdir / "maps" / "syn_00.npz")
  size = (SIZE[0] + 1, SIZE[1])
  dataclasses.replace(other, level0_size=size).save(
    workdir / "maps" / "syn_00.npz"
  )
  problems = write_report(config).problems
  assert "it is another picture" in problems["syn_00"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"workdir": ""}, "config.workdir = ''"),
    ({"workdir": "nowhere"}, "has no predictions_slide.csv"),
    ({"data.slides": "nowhere"}, "none of the 4 predicted slides"),
    ({"data.table": "t.csv"}, "config.data.slides names none"),
    ({"report.tissue": "otsu"}, "config.report.tissue = 'otsu'"),
    ({"report.out": "other"}, "holds another report"),
    ({"report.sequence_report": "gone"}, "there is no page"),
    ({"report.um_per_px": 40.0}, "config.report.um_per_px = 40"),
  ],
)
def test_bad_calls(made, tmp_path, change, message):
  config = configured(made, out=str(tmp_path / "out"))
  other = tmp_path / "other"
  other.mkdir()
  (other / "index.html").write_text("a report on sequences")
  (other / "report.json").write_text('{"kind": "report"}')
  places = {"nowhere": tmp_path / "nowhere", "other": other}
  for key, value in change.items():
    place = places.get(value) if isinstance(value, str) else None
    block, _, name = key.rpartition(".")
    target = config[block] if block else config
    target[name] = str(place) if place else value
  with pytest.raises(ValueError, match=message):
    job.run(config)


def test_one_of_several_processes_writes(made, tmp_path, monkeypatch):
  monkeypatch.setattr(launch, "is_main", lambda: False)
  job.run(configured(made, out=str(tmp_path / "out")))
  assert not list(tmp_path.iterdir())


def test_smoke(tmp_path):
  config = mil_report.get_config("smoke")
  config.workdir = str(tmp_path)
  job.run(config)
  assert len(list(tmp_path.glob("report/slides/*/regions.geojson"))) == 3
  assert pathlib.Path(tmp_path, "report", "index.html").is_file()
