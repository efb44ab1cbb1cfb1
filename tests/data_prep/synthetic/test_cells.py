"""Drawn cells: what was planted is there, and nothing else."""

import json

import numpy as np
import pytest
from scipy import spatial

from data_prep.synthetic import cells
from data_prep.wsi.slides import Slide


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("cells")
  cells.make_cohort(folder, patients=2, size_um=(700, 600))
  return folder


def test_half_of_the_immune_cells_are_near_in_one_group_alone(made):
  truth = json.loads((made / "truth.json").read_text())
  attracted, free = (truth[f"cells_{n:02d}"] for n in range(2))
  assert (attracted["group"], free["group"]) == cells.GROUPS
  share = attracted["area_near"]
  # Those planted, and those of the others that are near by chance.
  assert attracted["immune_near"] > 0.3 + 0.5 * share
  assert free["immune_near"] == pytest.approx(free["area_near"], abs=0.12)


def test_files_agree(made):
  truth = json.loads((made / "truth.json").read_text())["cells_00"]
  rows = (made / "cells" / "cells_00.csv").read_text().splitlines()[1:]
  assert len(rows) == sum(truth["cells"].values())
  with Slide.open(made / "cells_00.tiff") as slide:
    assert slide.level0_px == (1400, 1200) and slide.mpp == 0.5
  regions = json.loads((made / "regions" / "cells_00.geojson").read_text())
  area = 0.0
  for feature in regions["features"]:
    x, y = np.array(feature["geometry"]["coordinates"][0]).T / 2
    area += abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2
  assert area / 1e6 == pytest.approx(truth["nests_mm2"], rel=0.02)


def test_cells_keep_apart(made):
  rows = (made / "cells" / "cells_00.csv").read_text().splitlines()[1:]
  xy = np.array([row.split(",")[:2] for row in rows], float) / 2
  nearest = spatial.cKDTree(xy).query(xy, k=2)[0][:, 1]
  assert nearest.min() > 5.9


def test_a_second_call_does_nothing(made):
  before = (made / "cells_00.tiff").stat().st_mtime_ns
  cells.make_cohort(made, patients=2, size_um=(700, 600))
  assert (made / "cells_00.tiff").stat().st_mtime_ns == before


def test_one_patient_is_refused(tmp_path):
  with pytest.raises(ValueError, match="two or more"):
    cells.make_cohort(tmp_path, patients=1)
