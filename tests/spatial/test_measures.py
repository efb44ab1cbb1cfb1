"""Numbers of one slide: which rows there are, and some by hand."""

import numpy as np
import pytest
import shapely

from data_prep.files import schema
from wsiseq_jax.spatial import measures
from wsiseq_jax.spatial.points import Points
from wsiseq_jax.spatial.settings import Settings

WINDOW = shapely.box(0.0, 0.0, 1000.0, 1000.0)
REGION = shapely.box(300.0, 300.0, 700.0, 700.0)


def settings(**statistics):
  wanted = {"simulations": 39, "reach_um": 40.0, "step_um": 10.0}
  wanted |= {"border_um": 40.0} | statistics
  values = {"workdir": "w", "data": {"slides": "s"}, "statistics": wanted}
  return schema.build(Settings, values)


def cells(counts, seed=0):
  rng = np.random.default_rng(seed)
  names = np.repeat(list(counts), list(counts.values()))
  return Points.of("s", "p", rng.uniform(0, 1000, (len(names), 2)), names)


def rows(found, statistic):
  return {
    (row["from"], row["to"]): row
    for row in found.scores
    if row["statistic"] == statistic
  }


def test_every_statistic_of_two_types_and_a_region():
  found = measures.measure(
    cells({"a": 300, "b": 200}), WINDOW, REGION, settings()
  )
  pairs = {("a", "a"), ("a", "b"), ("b", "b")}
  for statistic in ("K", "G", "contacts"):
    assert set(rows(found, statistic)) == pairs
  for statistic in ("profile", "overlap"):
    assert set(rows(found, statistic)) == {("a", "regions"), ("b", "regions")}
  assert rows(found, "density")["a", ""]["value"] == pytest.approx(300)
  # Nothing is related: K and the profile are as expected.
  k = rows(found, "K")["a", "b"]
  assert k["value"] == pytest.approx(np.pi * 30**2, rel=0.25)
  assert k["null"] == "labels" and k["p"] > 0.05
  overlap = rows(found, "overlap")["a", "regions"]
  assert overlap["expected"] == pytest.approx(0.16)
  # The patent's method only where it is asked for.
  assert rows(found, "level_sets") == {} and found.notes == []


def test_curves_keep_what_they_are_made_of():
  found = measures.measure(
    cells({"a": 300, "b": 200}), WINDOW, REGION, settings()
  )
  profile = [
    row
    for row in found.curves
    if (row["statistic"], row["from"]) == ("profile", "a")
  ]
  assert [row["at_um"] for row in profile] == [-40, -20, 0, 20]
  # Bands of 20 µm around a square of 400 µm, its outer corners round.
  areas = [row["denominator"] * 1e6 for row in profile]
  inner = [360**2 - 320**2, 400**2 - 360**2]
  outer = [4 * 400 * 20 + np.pi * 20**2, 4 * 400 * 20 + np.pi * (40**2 - 20**2)]
  np.testing.assert_allclose(areas, inner + outer, rtol=1e-3)
  for row in profile:
    assert row["value"] == pytest.approx(row["numerator"] / row["denominator"])


def test_attraction_is_found_by_both_nulls():
  rng = np.random.default_rng(1)
  a = rng.uniform(100, 900, (150, 2))
  b = a + rng.normal(0, 5, (150, 2))
  other = rng.uniform(0, 1000, (300, 2))
  names = ["a"] * 150 + ["b"] * 150 + ["c"] * 300
  points = Points.of("s", "p", np.concatenate([a, b, other]), names)
  for null in ("labels", "shift"):
    found = measures.measure(
      points, WINDOW, None, settings(null=null, pairs=(("a", "b"),))
    )
    (row,) = rows(found, "K").values()
    assert row["null"] == null and row["p"] <= 0.05
    assert row["value"] > 1.5 * row["expected"]


def test_a_common_gradient_is_no_relation_for_uneven_density():
  """Both types thin out to the left, each by itself."""
  rng = np.random.default_rng(2)
  xy = rng.uniform(0, 1000, (2400, 2))
  xy = xy[rng.uniform(0, 1000, 2400) < xy[:, 0]]
  points = Points.of("s", "p", xy, np.where(np.arange(len(xy)) % 2, "a", "b"))
  found = measures.measure(
    points,
    WINDOW,
    None,
    settings(null="uniform", intensity_um=120.0, pairs=(("a", "b"),)),
  )
  (even,), (uneven,) = (rows(found, name).values() for name in ("K", "K_inhom"))
  assert even["null"] == "uniform" and even["p"] <= 0.05
  assert even["value"] > 1.2 * even["expected"]
  assert uneven["null"] == "intensity" and uneven["p"] > 0.05
  assert uneven["value"] == pytest.approx(uneven["expected"], rel=0.1)
  (l_row,) = rows(found, "L").values()
  assert l_row["value"] == pytest.approx((even["value"] / np.pi) ** 0.5)
  assert l_row["p"] == even["p"]


def test_a_single_type_is_not_tested_against_itself():
  found = measures.measure(cells({"cell": 200}), WINDOW, REGION, settings())
  (row,) = rows(found, "K").values()
  assert row["p"] == "" and row["expected"] == pytest.approx(np.pi * 900)
  assert rows(found, "contacts") == {}
  assert rows(found, "profile")["cell", "regions"]["p"] > 0


def test_few_cells_are_a_note():
  found = measures.measure(cells({"a": 300, "b": 5}), WINDOW, None, settings())
  assert [note.error for note in found.notes] == ["too_few_cells"]
  assert "5 cells of type 'b'" in found.notes[0].message
  assert set(rows(found, "K")) == {("a", "a")}
  assert rows(found, "density")["b", ""]["n_from"] == 5


def test_what_cannot_be_had_costs_nothing_else():
  # A shift of 2 mm leaves nothing of a window of 1 mm.
  found = measures.measure(
    cells({"a": 300, "b": 200}), WINDOW, REGION, settings(shift_um=2000.0)
  )
  assert {note.error for note in found.notes} == {"no_value"}
  assert "a and regions" in found.notes[0].message
  assert len(rows(found, "K")) == 3 and rows(found, "profile") == {}


def test_level_sets_where_they_are_asked_for():
  found = measures.measure(
    cells({"a": 300}), WINDOW, REGION, settings(level_sets=True)
  )
  (row,) = rows(found, "level_sets").values()
  assert row["null"] == "uniform" and 0 <= row["p"] <= 1


def test_only_the_most_frequent_types_are_compared():
  found = measures.measure(
    cells({"a": 300, "b": 200, "c": 100}), WINDOW, None, settings(max_types=2)
  )
  assert set(rows(found, "K")) == {("a", "a"), ("a", "b"), ("b", "b")}
  assert ("c", "") in rows(found, "density")
