"""Scores of retrieval by hand, and leaving the patient out."""

import numpy as np
import pandas as pd
import pytest

from tests.search import tiny_index
from wsiseq_jax.search import evaluation


def test_scores_by_hand():
  hits = np.array(
    [
      list("aabbb"),  # 2 right of 5; most are b
      list("babab"),  # right at 2 and 4
      ["a", "b", "", "", ""],  # most are missing
      list("abcde"),  # all as frequent: the nearest counts
    ]
  )
  found = evaluation.score_hits(hits, np.array(["a"] * 4))
  assert found["precision"].tolist() == [0.4, 0.4, 0.2, 0.2]
  assert found["mMV"].tolist() == [0, 0, 0, 1]
  assert found["mAP"].tolist() == [1.0, (1 / 2 + 2 / 4) / 2, 1.0, 1.0]


def on_circle(degrees) -> np.ndarray:
  radians = np.radians(degrees)
  return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


def test_own_patient_is_never_found():
  # Rows of one patient are nearest to each other and of one label.
  vectors = on_circle([0, 1, 40, 41, 100])
  labels = np.array(["a", "a", "b", "b", "a"])
  patients = np.array(["p", "p", "q", "q", "r"])
  found = evaluation.per_query(vectors, labels, patients, ks=(1, 3))
  assert found["precision@1"].tolist() == [0, 0, 0, 0, 0]
  # Row 0 may find rows 2, 3 (b) and 4 (a).
  assert found["precision@3"][0] == pytest.approx(1 / 3)
  # Row 4 finds 3, 2 (b), then 1 (a); row 0 is fourth.
  assert found["mAP@3"][4] == pytest.approx(1 / 3)
  assert found["chance"].tolist() == pytest.approx([1 / 3] * 2 + [0, 0, 0.5])


def test_rows_without_label_are_found_and_not_asked():
  vectors = on_circle([0, 5, 10])
  found = evaluation.per_query(
    vectors, np.array(["a", "", "a"]), np.array(["p", "q", "r"]), ks=(1, 2)
  )
  assert found["row"].tolist() == [0, 2]
  assert found["precision@1"].tolist() == [0, 0]
  assert found["precision@2"].tolist() == [0.5, 0.5]
  with pytest.raises(ValueError, match="no row has a label"):
    evaluation.per_query(vectors, np.array([""] * 3), np.array(list("pqr")))


def test_sample_is_fixed_by_its_seed():
  vectors = tiny_index.directions(60)
  labels = np.array(["a", "b"] * 30)
  patients = np.arange(60).astype(str)

  def rows(seed):
    found = evaluation.per_query(vectors, labels, patients, (1,), 20, seed)
    return found["row"].tolist()

  assert rows(0) == rows(0) != rows(1) and len(rows(0)) == 20


def test_summary_by_class_with_intervals_over_patients():
  scores = pd.DataFrame(
    {
      "row": range(5),
      "label": list("aaabb"),
      "patient": ["p", "p", "q", "r", "r"],
      "mMV@5": [1.0, 1.0, 0.0, 1.0, 1.0],
      "chance": [0.5] * 5,
    }
  )
  rows = evaluation.summary(scores, resamples=200)
  table = {(row["class"], row["score"]): row for row in rows}
  of_a = table["a", "mMV"]
  assert of_a["value"] == pytest.approx(2 / 3) and of_a["k"] == "5"
  # Patients are drawn, not rows: p alone gives 1, q alone 0.
  assert (of_a["low"], of_a["high"]) == (0, 1)
  assert (of_a["queries"], of_a["patients"]) == (3, 2)
  assert table["b", "mMV"]["low"] == 1
  assert table["macro", "mMV"]["value"] == pytest.approx(5 / 6)
  assert table["all", "mMV"]["value"] == pytest.approx(4 / 5)
  assert table["macro", "chance"]["k"] == ""
