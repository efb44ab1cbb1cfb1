"""The job from slides to pages, on a small drawn cohort."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import spatial as configs
from tests import small_run
from wsiseq_jax.reports.spatial import job
from wsiseq_jax.spatial import points


def config(workdir, **values):
  found = configs.get_config("smoke")
  with found.unlocked():
    found.workdir = str(workdir)
    for key, value in values.items():
      block, name = key.split("__")
      found[block][name] = value
  return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("spatial")
  job.run(config(workdir))
  return workdir


@pytest.fixture(scope="module")
def drawn(done):
  return done / "synthetic"


def of(drawn):
  return {
    "data__slides": str(drawn / "slides.csv"),
    "data__cells": str(drawn / "cells"),
    "data__regions": str(drawn / "regions"),
  }


def table(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_the_planted_attraction_is_found(done, drawn):
  truth = json.loads((drawn / "truth.json").read_text())
  profile = {
    row["slide_id"]: row
    for row in table(done / "scores.csv")
    if row["statistic"] == "profile" and row["from"] == "immune"
  }
  for slide_id, known in truth.items():
    row = profile[slide_id]
    ratio = float(row["value"]) / float(row["expected"])
    if known["group"] == "attracted":
      assert ratio > 4 and float(row["p"]) <= 0.05
    else:
      assert 0.4 < ratio < 2.5
  groups = [
    row
    for row in table(done / "groups.csv")
    if (row["statistic"], row["from"]) == ("profile", "immune")
  ]
  assert float(groups[0]["mean_a"]) > 3 * float(groups[0]["mean_b"])
  assert groups[0]["group_a"] == "attracted"


def test_counts_and_areas_are_those_drawn(done, drawn):
  truth = json.loads((drawn / "truth.json").read_text())
  for row in table(done / "slides.csv"):
    known = truth[row["slide_id"]]
    total = sum(known["cells"].values())
    # Cells at the very edge of tissue may lie outside what is found of it.
    assert 0.93 * total < int(row["cells"]) <= total
    assert int(row["cells"]) + int(row["outside"]) == total
    assert float(row["window_mm2"]) == pytest.approx(
      known["tissue_mm2"], rel=0.08
    )
    assert float(row["region_mm2"]) == pytest.approx(
      known["nests_mm2"], rel=0.03
    )


def test_tables_of_cells_have_distances(done):
  path = done / "slides" / "cells_00" / "cells.parquet"
  cells = points.read(path)
  distance = pq.read_table(path)["distance_um"].to_numpy()
  # Stroma keeps out of the nests, tumour in them.
  kinds = np.array(cells.names)[cells.type]
  assert (distance[kinds == "tumour"] < 2).all()
  assert (distance[kinds == "stroma"] > -2).all()
  features = json.loads((path.parent / "cells.geojson").read_text())
  found = features["features"]
  assert found and found[0]["properties"]["objectType"] == "detection"
  assert found[0]["properties"]["measurements"]["q"] <= 0.05


def test_pages_say_what_was_found(done):
  page = (done / "index.html").read_text()
  assert "Who sits where" in page and "slides/cells_00/index.html" in page
  assert "attracted" in page
  page = (done / "slides" / "cells_00" / "index.html").read_text()
  for text in ("immune around regions", "Cells and regions", "cells.geojson"):
    assert text in page
  assert (done / "slides" / "cells_00" / "map.jpg").is_file()


def test_a_second_run_does_nothing(done, capsys):
  before = (done / "slides" / "cells_00" / "scores.csv").stat().st_mtime_ns
  job.run(config(done))
  assert "(4 of them before this run)" in capsys.readouterr().out
  after = (done / "slides" / "cells_00" / "scores.csv").stat().st_mtime_ns
  assert before == after


@pytest.fixture
def broken(drawn, tmp_path):
  """Four slides; three of them have something wrong with their files."""
  folder = tmp_path / "broken"
  shutil.copytree(drawn, folder)
  cells = folder / "cells"
  rows = table(cells / "cells_00.csv")
  text = "".join(
    f"{float(r['x_px']) / 2},{float(r['y_px']) / 2},{r['type']}\n" for r in rows
  )
  (cells / "cells_00.csv").write_text("x,y,type\n" + text)  # µm, unsaid
  one = rows[len(rows) // 2]
  (cells / "cells_01.csv").write_text(
    f"x,y,type\n{one['x_px']},{one['y_px']},immune\n"
  )
  (cells / "cells_02.csv").unlink()
  (folder / "regions" / "cells_03.geojson").unlink()
  with (cells / "cells_03.csv").open("a") as file:
    file.write("900.5,900.5,immune\n" * 3)
  return folder


def test_bad_slides_are_rows_and_end_nothing(broken, tmp_path):
  with pytest.raises(SystemExit) as error:
    job.run(config(tmp_path / "out", **of(broken)))
  assert error.value.code == 3
  rows = {
    (row["slide_id"], row["code"]): row["message"]
    for row in table(tmp_path / "out" / "errors.csv")
  }
  assert "config.cells.unit = 'um'" in rows["cells_00", "coordinates"]
  assert (
    "fewer than config.cells.min_cells" in rows["cells_01", "too_few_cells"]
  )
  assert ("cells_02", "no_cells") in rows
  assert "cells alone" in rows["cells_03", "no_region"]
  assert "counted once" in rows["cells_03", "duplicated_points"]
  status = {
    row["slide_id"]: row["status"]
    for row in table(tmp_path / "out" / "slides.csv")
  }
  assert status == {
    "cells_00": "error",
    "cells_01": "too_few_cells",
    "cells_02": "error",
    "cells_03": "ok",
  }
  page = (tmp_path / "out" / "index.html").read_text()
  assert "not used: coordinates" in page


def test_one_table_without_slides(drawn, tmp_path):
  lines = ["slide,x_um,y_um,type"]
  for path in sorted((drawn / "cells").glob("*.csv"))[:2]:
    lines += [
      f"{path.stem}.svs,{float(r['x_px']) / 2},{float(r['y_px']) / 2},"
      f"{r['type']}"
      for r in table(path)
    ]
  cells = tmp_path / "cells.csv"
  cells.write_text("\n".join(lines))
  job.run(
    config(
      tmp_path / "out",
      data__slides="",
      data__cells=str(cells),
      data__table=str(drawn / "slides.csv"),
    )
  )
  rows = table(tmp_path / "out" / "slides.csv")
  assert [row["label"] for row in rows] == ["attracted", "free"]
  truth = json.loads((drawn / "truth.json").read_text())
  for row in rows:
    known = truth[row["slide_id"]]
    assert int(row["cells"]) == sum(known["cells"].values())
    assert float(row["window_mm2"]) == pytest.approx(
      known["tissue_mm2"], rel=0.1
    )


def test_cells_of_an_earlier_run_are_taken(done, drawn, tmp_path):
  values = {
    "data__slides": str(drawn / "cells_00.tiff"),
    "data__cells": str(done),
  }
  job.run(config(tmp_path, **values))
  first, second = (
    points.read(folder / "slides" / "cells_00" / "cells.parquet")
    for folder in (done, tmp_path)
  )
  np.testing.assert_allclose(first.xy_um, second.xy_um)
  assert first.counts() == second.counts()


@pytest.mark.slow
def test_nuclei_are_looked_for_through_main(
  repo_root, drawn, tmp_path, monkeypatch
):
  monkeypatch.chdir(repo_root)
  small_run.main(
    *("--config=configs/spatial.py:smoke", f"--config.workdir={tmp_path}"),
    *("--config.data.cells=", "--config.statistics.level_sets=True"),
    f"--config.data.slides={drawn / 'cells_00.tiff'}",
    f"--config.data.regions={drawn / 'regions'}",
  )
  (row,) = table(tmp_path / "slides.csv")
  truth = json.loads((drawn / "truth.json").read_text())["cells_00"]
  total = sum(truth["cells"].values())
  assert 0.75 * total < int(row["cells"]) < 1.1 * total
  statistics = {row["statistic"] for row in table(tmp_path / "scores.csv")}
  assert {"profile", "overlap", "level_sets", "K"} <= statistics
