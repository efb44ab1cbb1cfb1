"""What becomes of the cells of one slide, through its files."""

import numpy as np
import pandas as pd
import pytest

from data_prep.files import schema
from wsiseq_jax.spatial import points
from wsiseq_jax.spatial.one_slide import SlideTask, work
from wsiseq_jax.spatial.settings import Settings


def done(tmp_path, frame, **cells):
  """The cells of a slide that is a table alone, and its outcome."""
  frame.to_csv(tmp_path / "s.csv", index=False)
  values = {
    "workdir": "w",
    "data": {"cells": "c"},
    "cells": {"unit": "um"} | cells,
    "statistics": {
      "simulations": 19, "reach_um": 40.0, "step_um": 20.0, "border_um": 40.0,
    },
  }  # fmt: skip
  task = SlideTask(
    "s",
    "p",
    str(tmp_path / "out"),
    schema.build(Settings, values),
    None,
    cells=str(tmp_path / "s.csv"),
  )
  return work(task)


@pytest.fixture
def frame():
  xy = 25.0 * np.stack(np.divmod(np.arange(120), 10), axis=1)
  return pd.DataFrame(
    {
      "x_um": xy[:, 0],
      "y_um": xy[:, 1],
      "type": np.where(np.arange(120) % 2, "T", ""),
      "DAB OD mean": np.repeat([0.1, 0.2, 0.39, np.nan], 30),
    }
  )


def test_scores_make_types(tmp_path, frame):
  outcome = done(tmp_path, frame, score="DAB OD mean", positive=(0.2,))
  assert outcome.error is None
  assert outcome.info["types"] == {
    "T": 15, "T: negative": 15, "T: positive": 30,
    "cell": 15, "negative": 15, "positive": 30,
  }  # fmt: skip
  cells = points.read(tmp_path / "out" / "cells.parquet")
  kind = np.array(cells.names)[cells.type]
  assert (cells.score[kind == "positive"] >= np.float32(0.2)).all()


def test_three_limits_and_new_names(tmp_path, frame):
  outcome = done(
    tmp_path,
    frame.drop(columns="type"),
    score="DAB OD mean",
    positive=(0.15, 0.3, 0.6),
    types=(("weak", ("1+", "2+")),),
  )
  assert outcome.info["types"] == {"cell": 30, "negative": 30, "weak": 60}


def test_scores_that_are_not_there(tmp_path, frame):
  outcome = done(tmp_path, frame, score="DAB", positive=(0.2,))
  assert "config.cells.score = 'DAB' is none of them" in outcome.error.message
  outcome = done(tmp_path, frame, positive=(0.2,))
  assert outcome.error.error == "no_score"
  with pytest.raises(ValueError, match="each above the one before"):
    done(tmp_path, frame, positive=(0.4, 0.2))
