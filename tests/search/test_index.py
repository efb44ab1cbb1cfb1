"""What a search finds: by hand, and against a slow reference."""

import shutil
import sqlite3

import numpy as np
import pandas as pd
import pytest

from tests.search import tiny_index
from wsiseq_jax.search import Index, index, store

ANGLES = {"a": [0, 10, 20], "b": [90, 30], "c": [180]}


def at(degrees) -> np.ndarray:
  radians = np.radians(np.atleast_1d(degrees).astype(float))
  return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


@pytest.fixture
def circle(tmp_path):
  """Six vectors on a circle: three slides of two patients."""
  table = tiny_index.write_table(
    tmp_path / "table.csv",
    [
      dict(slide_id="a", patient_id="p", label="x", cohort="one", organ="lung"),
      dict(slide_id="b", patient_id="p", label="y", cohort="one", organ="skin"),
      dict(slide_id="c", patient_id="q", label="x", cohort="two", organ="lung"),
    ],
  )
  # Lengths are of no account.
  slides = {name: 7 * at(angles) for name, angles in ANGLES.items()}
  tiny_index.make(tmp_path, slides, table=str(table))
  return tmp_path / "index"


def test_distances_and_facts_by_hand(circle):
  hits = Index.open(circle).search(at([0, 180]), k=3)
  assert list(hits.columns) == list(index.COLUMNS)
  assert hits["query"].tolist() == [0, 0, 0, 1, 1, 1]
  assert hits["rank"].tolist() == [0, 1, 2, 0, 1, 2]
  assert hits["slide_id"].tolist() == ["a", "a", "a", "c", "b", "b"]
  # The chord of an angle: 2 sin(angle / 2).
  chord = 2 * np.sin(np.radians([0, 10, 20, 0, 90, 150]) / 2)
  np.testing.assert_allclose(hits["distance"], chord, atol=1e-3)
  assert hits["x0"].tolist() == [0, 100, 200, 0, 0, 100]
  assert set(hits["w0"]) == {100.0} and set(hits["mpp"]) == {0.5}
  assert hits["label"].tolist() == ["x", "x", "x", "x", "y", "y"]
  assert hits["score"].isna().all()


def test_background_by_hand(circle):
  hits = Index.open(circle).search(at(0), k=6)
  # Of five rows of cohort 'one', by their distances to the query.
  others = 2 * np.sin(np.radians([0, 10, 20, 90, 30]) / 2)
  of_b = hits[hits["slide_id"] == "b"].iloc[0]
  wanted = (2 * np.sin(np.radians(15)) - others.mean()) / others.std()
  assert of_b["z"] == pytest.approx(wanted, abs=2e-3)
  assert of_b["background_share"] == pytest.approx(4 / 5)
  # Cohort 'two' has one row, which differs from itself by nothing.
  of_c = hits[hits["slide_id"] == "c"].iloc[0]
  assert np.isnan(of_c["z"]) and of_c["background_share"] == 1
  without = Index.open(circle).search(at(0), k=6, exclude_slide="a")
  assert without["background_share"].tolist() == [0.5, 1, 1]


@pytest.mark.parametrize(
  ("where", "slides"),
  [
    ({"slide_id": "b"}, "bb"),
    ({"patient_id": ["q"]}, "c"),
    ({"cohort": "one"}, "aaabb"),
    ({"organ": ("skin", "lung")}, "aaabbc"),
    ({"label": "x"}, "aaac"),
    ({"label": "x", "cohort": "two"}, "c"),
    ({"slide_id": "B.svs", "label": "y"}, "bb"),
    ({"label": "X"}, "aaac"),
    ({"score": (0, 1)}, ""),
    (None, "aaabbc"),
  ],
)
def test_filters(circle, where, slides):
  hits = Index.open(circle).search(at(45), k=9, where=where)
  assert "".join(sorted(hits["slide_id"])) == slides


def test_own_slide_and_patient_are_left_out(circle):
  opened = Index.open(circle)
  assert set(opened.search(at(0), k=9, exclude_slide="a")["slide_id"]) == {
    *("b", "c")
  }
  hits = opened.search(at(0), k=9, exclude_patient=["p", "nobody"])
  assert hits["slide_id"].tolist() == ["c"]


def test_one_hit_a_neighbourhood(circle):
  opened = Index.open(circle)
  # Tiles of slide a touch, and begin 0, 1 and 2 sides from the first.
  for apart, rows in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 2]), (3, [0])):
    hits = opened.search(at(0), k=9, where={"slide_id": "a"}, apart=apart)
    assert hits["row"].tolist() == rows
  # Fewer places than hits are wanted: others come up, to the last.
  hits = opened.search(at(0), k=3, apart=3)
  assert hits["slide_id"].tolist() == ["a", "b", "c"]


def test_labels_change_without_building(circle):
  with store.change(circle) as connection:
    found = dict(slide_id="b", patient_id="p", cohort="one", label="z")
    assert store.set_facts(connection, [store.SlideFacts(**found)]) == 1
  opened = Index.open(circle)
  labels = opened.rows(range(6))["label"].tolist()
  mine = [i for i, label in enumerate(labels) if label == "z"]
  assert mine and labels == ["z" if i in mine else "x" for i in range(6)]
  hits = opened.search(at(0), where={"label": "z"})["row"].tolist()
  assert sorted(hits) == mine
  hits = opened.search(at(0), where={"label": "x"})["row"].tolist()
  assert sorted(hits) == [i for i in range(6) if i not in mine]


def test_removed_slides_are_gone_and_numbers_stay(circle):
  before = Index.open(circle)
  with store.change(circle) as connection:
    store.remove(connection, ["a"])
    store.draw_background(connection)
  opened = Index.open(circle)
  assert len(opened) == 3 and len(before) == 6
  hits = opened.search(at(0), k=9)
  assert hits["row"].tolist() == [4, 3, 5]
  with pytest.raises(ValueError, match="row 1 is not in the index"):
    opened.rows([1])
  # A reader keeps the state that it opened.
  assert before.search(at(0), k=1)["row"].tolist() == [0]


def test_a_change_that_fails_changes_nothing(circle):
  with (
    pytest.raises(ValueError, match=r"'aa' is not in the index; did you mean"),
    store.change(circle) as connection,
  ):
    store.remove(connection, ["c"])
    store.remove(connection, ["aa"])
  assert len(Index.open(circle)) == 6


@pytest.mark.parametrize(
  ("queries", "more", "message"),
  [
    (np.ones((1, 3)), {}, r"shape \(1, 3\): must be \(queries, 2\)"),
    (np.ones(2), {}, "must be"),
    ([[np.nan, 1]], {}, "1 of 1 rows are zero or not finite"),
    ([[0, 0]], {}, "zero or not finite"),
    (at(0), {"where": {"lable": "x"}}, "did you mean 'label'"),
    (at(0), {"where": {"score": 1}}, "want \\(lowest, highest\\)"),
    (at(0), {"k": 0}, "k = 0"),
  ],
)
def test_bad_questions(circle, queries, more, message):
  with pytest.raises(ValueError, match=message):
    Index.open(circle).search(queries, **more)


def test_an_empty_index_says_so(circle):
  with store.change(circle) as connection:
    store.remove(connection, ["a", "b", "c"])
    store.draw_background(connection)
  with pytest.raises(ValueError, match="is empty"):
    Index.open(circle).search(at(0))


def test_no_index_a_damaged_and_a_foreign_one(circle, tmp_path):
  with pytest.raises(ValueError, match="is no index"):
    Index.open(tmp_path)
  (part,) = (circle / "parts").iterdir()
  vectors = (part / "vectors.npy").read_bytes()
  (part / "vectors.npy").write_bytes(vectors[:-1])
  with pytest.raises(ValueError, match="the index is damaged"):
    Index.open(circle)
  (part / "vectors.npy").unlink()
  with pytest.raises(ValueError, match="the index is damaged"):
    Index.open(circle)
  (circle / store.FILE).write_bytes(b"no database, but long enough to be one")
  with pytest.raises(ValueError, match="cannot read"):
    Index.open(circle)
  (circle / store.FILE).unlink()
  sqlite3.connect(circle / store.FILE).close()
  with pytest.raises(ValueError, match="is of version 0"):
    Index.open(circle)


def slow(vectors, queries, k, allowed):
  """Rows by distance, one query and one row after another."""
  found = []
  for query in queries:
    ranked = sorted(
      (float(np.linalg.norm(query - vectors[row])), row) for row in allowed
    )
    found.append([row for _, row in ranked[:k]])
  return found


@pytest.fixture(scope="module")
def large(tmp_path_factory):
  """2,000 vectors around 20 directions, four slides in two parts, in codes."""
  folder = tmp_path_factory.mktemp("large")
  rng = np.random.default_rng(1)
  centres = tiny_index.directions(20, 16)
  vectors = centres[rng.integers(20, size=2000)]
  vectors = vectors + 0.15 * rng.normal(size=vectors.shape)
  slides = {f"s{i}": vectors[i * 500 : (i + 1) * 500] for i in range(4)}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(index, "EXACT", 600)
    tiny_index.make(folder, slides, part_rows=1000)
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  return folder / "index", unit.astype(np.float32)


def test_exact_search_is_the_slow_one(large):
  folder, vectors = large
  queries = vectors[::97] + np.float32(0.01)
  hits = Index.open(folder).search(queries, k=10, exact=True)
  found = hits["row"].to_numpy().reshape(-1, 10)
  unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
  wanted = slow(vectors, unit, 10, range(2000))
  # Half precision may swap rows that are as near as each other.
  same = [len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)]
  assert np.mean(same) > 9.8


def test_codes_find_nearly_all(large, monkeypatch):
  monkeypatch.setattr(index, "EXACT", 600)
  folder, vectors = large
  opened = Index.open(folder)
  queries = vectors[::61]
  for where, allowed in (
    (None, range(2000)),
    ({"slide_id": ["s1", "s2"]}, range(500, 1500)),
    ({"slide_id": "s3"}, range(1500, 2000)),
  ):
    hits = opened.search(queries, k=10, where=where)
    found = hits["row"].to_numpy().reshape(-1, 10)
    assert set(found.ravel()) <= set(allowed)
    wanted = slow(vectors, queries, 10, allowed)
    same = [len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)]
    assert np.mean(same) > 9.5


def test_codes_of_removed_slides_are_not_searched(large, monkeypatch, tmp_path):
  monkeypatch.setattr(index, "EXACT", 600)
  folder, vectors = large
  copy = shutil.copytree(folder, tmp_path / "copy")
  with store.change(copy) as connection:
    store.remove(connection, ["s0"])
    store.draw_background(connection)
  hits = Index.open(copy).search(vectors[:50], k=5)
  assert hits["row"].min() >= 500 and len(hits) == 250


def test_hits_by_slide():
  hits = pd.DataFrame(
    {
      "row": [5, 6, 7, 8], "rank": [0, 1, 2, 3],
      "slide_id": ["a", "b", "b", "a"], "patient_id": "p", "cohort": "",
      "organ": "", "label": ["x", "y", "y", "x"],
      "distance": [0.1, 0.2, 0.3, 0.4],
    }
  )  # fmt: skip
  found = index.by_slide(hits)
  # Four hits count 4, 3, 2, 1.
  assert found["score"].tolist() == [5, 5]
  assert found["slide_id"].tolist() == ["a", "b"]
  assert found["hits"].tolist() == [2, 2]
  assert index.by_slide(hits[:0]).empty
