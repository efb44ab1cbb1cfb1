"""Patients and groups: sums by hand."""

import numpy as np
import pandas as pd
import pytest

from data_prep.files import schema
from wsiseq_jax.spatial import cohort
from wsiseq_jax.spatial.settings import Settings


def settings(**groups):
  values = {"workdir": "w", "data": {"slides": "s"}, "groups": groups}
  return schema.build(Settings, values)


def rows(slide, patient, numerator, denominator, theory=2.0, statistic="K"):
  return [
    {
      "slide_id": slide,
      "patient_id": patient,
      "statistic": statistic,
      "from": "a",
      "to": "b",
      "at_um": at,
      "to_um": np.nan,
      "numerator": n,
      "denominator": float(denominator),
      "theory": theory,
    }
    for at, n in zip((10.0, 20.0), numerator, strict=True)
  ]


def test_slides_of_a_patient_are_added_up():
  curves = pd.DataFrame(
    rows("s1", "p", (2.0, 4.0), 1) + rows("s2", "p", (6.0, 8.0), 3, 4.0)
  )
  found = cohort.patients(curves)
  assert found["numerator"].tolist() == [8, 12]
  assert found["denominator"].tolist() == [4, 4]
  assert found["value"].tolist() == [2, 3]
  # Weighted as the counts are: (2 * 1 + 4 * 3) / 4.
  assert found["theory"].tolist() == [3.5, 3.5]
  np.testing.assert_allclose(found["relative"], [2 / 3.5, 3 / 3.5])
  assert found["slides"].tolist() == [2, 2]


def test_what_was_not_counted_has_no_value():
  curves = pd.DataFrame(rows("s1", "p", (0.0, 0.0), 0))
  assert len(cohort.patients(curves)) == 0
  assert len(cohort.patients(pd.DataFrame())) == 0


def test_densities_are_compared_as_they_are():
  curves = pd.DataFrame(rows("s", "p", (6.0, 6.0), 2, np.nan, "density"))
  assert cohort.patients(curves)["relative"].tolist() == [3, 3]


def many(shift):
  rng = np.random.default_rng(0)
  found = []
  for number in range(12):
    extra = shift if number % 2 else 0.0
    values = 2 + extra + rng.normal(0, 0.1, 2)
    found += rows(f"s{number}", f"p{number}", values, 1)
  return cohort.patients(pd.DataFrame(found))


GROUP = {f"p{n}": ("free", "attracted")[n % 2] for n in range(12)}


def test_groups_that_differ_and_groups_that_do_not():
  found = cohort.groups(many(1.0), GROUP, settings(permutations=499))
  (row,) = found.to_dict("records")
  assert (row["group_a"], row["group_b"]) == ("attracted", "free")
  assert (row["patients_a"], row["patients_b"]) == (6, 6)
  assert row["difference"] == pytest.approx(0.5, abs=0.1)  # theory is 2
  assert row["p"] < 0.02 and row["q"] == row["p"]
  found = cohort.groups(many(0.0), GROUP, settings(permutations=499))
  assert found["p"].item() > 0.05


def test_a_group_of_one_is_a_note():
  group = {"p0": "a", "p1": "b", "p2": "b"}
  found = cohort.groups(many(1.0), group, settings(permutations=99))
  assert found["p"].isna().all() and "two or more" in found["note"].item()


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"data": {"slides": "", "cells": ""}}, "name slides, or cells"),
    ({"statistics": {"step_um": 80.0}}, "config.statistics.step_um = 80"),
    ({"statistics": {"band_um": 300.0}}, "config.statistics.band_um = 300"),
    (
      {"statistics": {"simulations": 19, "level": 0.01}},
      "config.statistics.simulations = 19",
    ),
    ({"cells": {"unit": "mm"}}, "config.cells.unit = 'mm'"),
    ({"data": {"slides": "s", "part": "3"}}, "config.data.part = '3'"),
  ],
)
def test_wrong_settings(values, message):
  values = {"workdir": "w", "data": {"slides": "s"}} | values
  with pytest.raises(ValueError, match=message):
    schema.build(Settings, values, "config")
